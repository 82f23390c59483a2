"""The Python API: run a job, read runs, label pairs, and use the policies and reward models that runs made.

    import rlaif

    run = rlaif.run(["stage=rm", "labeler=cot"])
    run.summary["rm/accuracy"]

Everything here does what the command line does, by the same configuration and in the same folders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from rlaif.app.command.words import in_full, one_sentence
from rlaif.app.compose import composed, labeling_options
from rlaif.app.home import CODE
from rlaif.app.job import prepare_torch, run_job
from rlaif.data.datamodule import EncodedRow
from rlaif.data.encode import Encoder
from rlaif.errors import UserError
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import sample
from rlaif.io import digest
from rlaif.labelers import Labeler as _Labeler
from rlaif.models.weights import load_reward, load_top
from rlaif.options.job import Options
from rlaif.options.read import read
from rlaif.records import Pair, Preference, is_empty
from rlaif.stages.common.context import Context
from rlaif.stages.common.rows import encode_texts
from rlaif.stages.common.scoring import score_rows
from rlaif.store.manifest import inspect_artifact
from rlaif.tracking.runs import RunRecord, find_runs, load_run

T = TypeVar("T")


def run(overrides: Sequence[str] = ()) -> RunRecord:
    """Run one job, as `rlaif OVERRIDES` would, and return its record: summary, history, artifacts and paths.

    Without `paths.root=` it writes below `./outputs`. Raises UserError, whose text is what the command prints.
    """
    words = list(map(in_full, overrides))
    for word in words:
        if word in ("-m", "--multirun", "plan=true", "stage=doctor", "report.watch=true"):
            raise UserError(
                f"rlaif.run makes one run, and {word} makes none or several: use the command, a loop, or"
                " experiments=NAME"
            )

    def job() -> RunRecord:
        with composed(words) as cfg:
            summary = run_job(cfg, words, None)
        assert summary is not None  # None is a plan's or the doctor's
        return load_run(summary.parent)

    return _told(job)


def load_runs(
    root: str | Path = "outputs", *, stage: str | None = None, group: str | None = None
) -> pd.DataFrame:
    """Finished runs below `root` as a frame, oldest first: a row per run, a column per metric of their summaries.

    The columns `run`, `stage`, `name`, `group`, `started`, `path` and `overrides` (a tuple of words) come first. A
    metric that a run lacks is NaN.
    """
    runs = find_runs(Path(root).expanduser(), stage=stage, group=group)
    rows = [
        {
            "run": one.id,
            "stage": one.stage,
            "name": one.name,
            "group": one.group,
            "started": one.started,
            "path": one.path,
            "overrides": one.overrides,
            **one.summary,
        }
        for one in runs
    ]
    return pd.DataFrame(rows)


class Labeler:
    """An LLM that says which of two responses is better: `Labeler.from_preset(...).label(pairs)`."""

    def __init__(self, labeler: _Labeler) -> None:
        self._labeler = labeler

    @classmethod
    def from_preset(
        cls, preset: str, *, task: str = "docs", model: str = "embedded", overrides: Sequence[str] = ()
    ) -> Labeler:
        """The labeler `labeler=PRESET` with the prompt texts of `task`.

        Args:
            preset: an option of the group `labeler`, such as `detailed`, `cot` or `likelihood`.
            task: an option of the group `task`; its data are not read.
            model: `embedded`, a hub id, or a folder. For a server, give `backend=openai` and its keys
                as overrides; `model` is not loaded then.
            overrides: more words of the command line, such as `labeler.order=first`.

        Answers are kept in `outputs/labels.sqlite`, so that no question is paid for twice. Raises UserError for what
        does not exist or does not fit together.
        """
        base = ["model=embedded"] if model == "embedded" else ["model=hub", f"model.name={model}"]
        words = [f"labeler={preset}", f"task={task}", *base, *overrides]

        def made() -> Labeler:
            with composed(words) as cfg:
                options = labeling_options(cfg)
            prepare_torch(options)
            ctx = Context(options, None)
            return cls(ctx.labeler("labeler", options.seeds.label, stored=True))

        return _told(made)

    def label(self, pairs: Sequence[Pair | Mapping[str, str]]) -> list[Preference]:
        """The preference for each pair, in order: `p_a` in [0, 1], or None if no verdict could be read.

        A pair is a `Pair`, or a mapping with `prompt`, `response_a`, `response_b` and, if you like, `id` and
        the author's `reference` (which the preset `reference` compares with, and no other reads).
        """
        return list(self._labeler.label([_pair(index, one) for index, one in enumerate(pairs)]).preferences)


def _pair(index: int, one: Pair | Mapping[str, str]) -> Pair:
    if isinstance(one, Pair):
        return one
    missing = [key for key in ("prompt", "response_a", "response_b") if not isinstance(one.get(key), str)]
    if missing:
        raise UserError(f"pairs[{index}] has no text {missing[0]}: give prompt, response_a and response_b")
    name = str(one.get("id", index))
    pair = Pair(name, name, one["prompt"], one["response_a"], one["response_b"], "dataset")
    return replace(pair, reference=one.get("reference"))


class _OfRun:
    """A model that a run has made, with the run's tokenizer and limits."""

    def __init__(self, ctx: Context) -> None:
        self._ctx, self._model = ctx, ctx.model()
        ends: dict[str, Any] = {"eos_id": self._model.eos_id, "eos_ids": self._model.eos_ids}
        self._encoder = Encoder(self._model.tokenizer, **ends, **ctx.encoding)


class Policy(_OfRun):
    """A policy, by `load_policy`."""

    def __init__(self, ctx: Context, folder: Path | None) -> None:
        super().__init__(ctx)
        self._top = load_top(self._model, folder).frozen_copy()

    def generate(
        self,
        prompts: Sequence[str],
        *,
        temperature: float = 1.0,
        seed: int = 0,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """One response per prompt, drawn as RL and evaluation draw them; temperature 0 is greedy.

        The noise of a response depends on `seed`, the prompt and its place alone. `max_new_tokens` is the run's
        `task.max_response_tokens` unless it is given.
        """
        length = max_new_tokens or self._ctx.options.task.max_response_tokens
        drawn = sample(
            self._top,
            [self._encoder.prompt(text) for text in prompts],
            [int(digest([seed, text, place], 15), 16) for place, text in enumerate(prompts)],
            Decoding(length, temperature),
            eos_ids=self._model.eos_ids,
            max_rows=self._ctx.options.eval.max_rows,
        )
        return [self._encoder.decode(one.ids) for one in drawn]


class RewardModel(_OfRun):
    """A reward model, or the mean of an ensemble's members, by `load_reward_model`."""

    def __init__(self, ctx: Context, folder: Path) -> None:
        super().__init__(ctx)
        self._members = [member.frozen_copy() for member in load_reward(self._model, folder)]

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The normalised reward of each response to its prompt, as RL maximises it.

        0 is the mean over the task's references and 1 their standard deviation. An empty response, which loses to
        any text, gets -inf. Raises ValueError if the two lists differ in length.
        """
        texts = list(zip(prompts, responses, strict=True))
        rows = encode_texts(self._ctx, self._encoder, texts, "scoring")
        rewards = [self._member(member, rows) for member in self._members]
        means = torch.tensor(rewards, dtype=torch.float64).mean(dim=0).tolist()
        return [
            -float("inf") if is_empty(text) else mean for text, mean in zip(responses, means, strict=True)
        ]

    def _member(self, member: Any, rows: Sequence[EncodedRow]) -> list[float]:
        return [score + member.shift for score in score_rows(self._ctx, member.top, member.head, rows)]


def load_policy(run: RunRecord | str | Path) -> Policy:
    """The policy of a run (its record or its directory): RL's, else the SFT policy, else the base model.

    Raises UserError for a run of several arms, and for one whose artifacts are gone.
    """

    def loaded() -> Policy:
        record = _record(run)
        ctx = _context(record)
        folder = _artifact(record, "rl") or _artifact(record, "sft")
        return Policy(ctx, folder)

    return _told(loaded)


def load_reward_model(run: RunRecord | str | Path) -> RewardModel:
    """The reward model of a run, or the one that its policy was trained against. Raises UserError as `load_policy`."""

    def loaded() -> RewardModel:
        record = _record(run)
        folder = _artifact(record, "rm")
        if folder is None:
            raise UserError(
                f"{record.path}: the run has no reward model; run stage=rm, or a later one with reward=rm"
            )
        return RewardModel(_context(record), folder)

    return _told(loaded)


def _record(run: RunRecord | str | Path) -> RunRecord:
    return run if isinstance(run, RunRecord) else load_run(Path(run).expanduser())


def _context(record: RunRecord) -> Context:
    """A job under the run's own options, whose files are where the run is now."""
    options = read(Options, dict(record.config))
    paths = replace(options.paths, root=str(record.root), code=str(CODE))
    options = replace(options, paths=paths)
    prepare_torch(options)
    return Context(options, None)


def _artifact(record: RunRecord, kind: str) -> Path | None:
    """The folder of the run's artifact of `kind`; None if it has none."""
    names = [row.name for row in record.lineage if row.kind == kind]
    if not names:
        return None
    if len(names) > 1:
        raise UserError(
            f"{record.path}: the run compares arms, which have {len(names)} artifacts {kind}-*: run one arm's words by"
            " itself, which reuses what is there, and load that run"
        )
    folder = record.root / "artifacts" / names[0]
    manifest, fault = inspect_artifact(folder, names[0])
    if manifest is None:
        raise UserError(f"{folder} is gone or damaged ({fault}): run the same command again")
    return folder


def _told(work: Callable[[], T]) -> T:
    """`work()`; a fault of Hydra's grammar or composition is a UserError with the command's sentence."""
    try:
        return work()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_sentence(error)) from error
