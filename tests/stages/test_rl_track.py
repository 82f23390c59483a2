"""`rl.track` through its stage: measured on fixed prompts, told in history, summary and page, exact after a kill."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file

from rlaif.errors import UserError
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import sample
from rlaif.io import digest
from rlaif.models.weights import load_top
from rlaif.stages.common.policies import policy_top
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES
from rlaif.stages.rl.online.track import _tracked_prompts, check_track
from rlaif.tracking.glossary import unknown

TRACKED = ["stage=rl", "rl.lr=0.03", "rl.num_epochs=2", "rl.track.every=2", "rl.track.num_prompts=4"]


def _measured(record) -> list[tuple[int, float, float, float]]:
    names = ("rl/track_proxy", "rl/track_gold", "rl/track_kl")
    return [(row["step"], *(row[name] for name in names)) for row in record.history if names[0] in row]


def _policy(root: Path, record) -> dict:
    row = record.lineage[0]
    return load_file(root / "artifacts" / row.name / "top.safetensors")


@pytest.mark.parametrize("judge", ["rouge", "judge"])
def test_start_every_so_often_and_end_are_measured(judge, pipeline, run, warm_root) -> None:
    options = [*TRACKED, f"rl.track.judge={judge}", "judge=scripted"]
    record = run(*options)
    rows, summary = _measured(record), record.summary
    assert [step for step, *_ in rows] == [0, 2, 4] and summary["rl/iterations"] == 4
    assert rows[0][3] == 0.0 != rows[-1][3], "the first policy is the reference itself"
    assert all(0 <= gold <= 1 for _, _, gold, _ in rows)
    if judge == "judge":
        assert rows[0][2] == 0.5, "the SFT policy against itself, with the same noise"
    assert summary["rl/track_iteration"] == 4
    assert (summary["rl/track_proxy"], summary["rl/track_gold"], summary["rl/track_kl"]) == rows[-1][1:]
    assert (summary["rl/track_proxy_start"], summary["rl/track_gold_start"]) == rows[0][1:3]
    assert unknown(summary) == []
    judged = run("stage=eval", *options[1:])
    assert {row.kind: row.reused for row in judged.lineage}["rl"] and _measured(judged) == rows
    page = (warm_root / "reports" / f"eval-{judged.id}.html").read_text(encoding="utf-8")
    assert "Over-optimisation</h3>" in page


def test_measuring_does_not_move_the_policy(pipeline, run, warm_root) -> None:
    off, on = run(*TRACKED[:3]), run(*TRACKED)
    assert off.lineage[0].digest != on.lineage[0].digest
    one, two = _policy(warm_root, off), _policy(warm_root, on)
    assert all((one[name] == two[name]).all() for name in one)
    same = run(*TRACKED[:3], "rl.track.num_prompts=7")
    assert same.lineage[0].digest == off.lineage[0].digest, "no setting of what is off makes another policy"


def test_the_best_policy_is_kept_and_measured_again_on_other_prompts(run, warm_root, context) -> None:
    """Noise as a reward: where the best stands is luck, and its measurement too good by that luck."""
    words = [*TRACKED, "reward=random", "rl.track.every=1", "rl.track.keep=best", "rl.track.num_prompts=6"]
    words += ["rl.track.judge=judge", "judge=scripted", "judge.scripted.rule=shorter", "eval.tie_margin=0"]
    words += [
        "task.validation_fraction=0.3",
        "model.trainable=full",
        "rl.lr=0.005",
    ]  # what learns, and is told apart
    record = run(*words)
    rows, summary = _measured(record), record.summary
    first = next(row for row in rows if row[2] == max(gold for _, _, gold, _ in rows))
    assert summary["rl/track_iteration"] == first[0] > 0, rows
    # From the stored policy alone: other validation prompts, with the noise of the first iteration.
    ctx = context(*words[1:])
    fixed, others = _tracked_prompts(ctx)
    assert len(others) == 6 and not {p.cluster for p in fixed} & {p.cluster for p in others}
    assert {p.id for p in (*fixed, *others)} <= {p.id for p in ctx.task.validation}
    graph = Graph(ctx, STAGES)
    policy, start = load_top(ctx.model(), graph.get("rl").path), policy_top(ctx, {"sft": graph.get("sft")})
    encoded = [ctx.encoder.prompt(p.prompt) for p in others]
    decoding = Decoding(ctx.options.task.max_response_tokens, 1.0)
    seeds = [int(digest([0, 0, p.id, 0], 15), 16) for p in others]
    drawn = [
        sample(top.frozen_copy(), encoded, seeds, decoding, eos_ids=ctx.model().eos_ids, max_rows=8)
        for top in (policy, start)
    ]
    texts = [[ctx.encoder.decode(one.ids) for one in each] for each in drawn]
    wanted = fmean(0.5 + 0.5 * ((len(a) < len(b)) - (len(a) > len(b))) for a, b in zip(*texts, strict=True))
    assert summary["rl/track_gold"] == wanted != first[2], (wanted, first)
    assert summary["rl/track_gold_start"] == 0.5
    ratios = []
    for prompt, one in zip(encoded, drawn[0], strict=True):
        row, place = (
            torch.tensor([[*prompt, *one.ids]]),
            torch.arange(len(prompt), len(prompt) + len(one.ids)),
        )
        features = ctx.model().trunk(row)
        logps = [
            top.logits(top(features))[0].log_softmax(-1)[place - 1, row[0, place]] for top in (policy, start)
        ]
        ratios.append(float((logps[0] - logps[1]).sum()))
    assert summary["rl/track_kl"] == pytest.approx(fmean(ratios), abs=1e-3) and fmean(ratios) > 0.1


def test_the_best_of_one_prompt_cannot_be_measured_again(context) -> None:
    ctx = context(*TRACKED[1:], "rl.track.keep=best")
    check_track(ctx)
    ctx.task = replace(ctx.task, validation=ctx.task.validation[:1])
    with pytest.raises(UserError, match="there is only one: write a larger task.validation_fraction"):
        check_track(ctx)


def test_the_plan_counts_the_measurements(pipeline, run, capsys) -> None:
    def tokens(*words: str) -> int:
        assert run("stage=rl", "rl.num_epochs=5", "plan=true", *words) is None
        lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if "build" in line]
        (generated,) = [cells[5] for cells in lines if cells[1].strip() == "rl"]
        return int(generated.replace(",", ""))

    few = tokens()
    assert tokens("rl.track.every=5", "rl.track.num_prompts=4") > few
    assert tokens("rl.track.every=1", "rl.track.num_prompts=4") > tokens(
        "rl.track.every=5", "rl.track.num_prompts=4"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["rl.track.every=2", "rl.track.judge=bleu"],
            "rl.track.judge=bleu is not known: write rouge or judge",
        ),
        (["rl.track.every=2", "rl.track.keep=first"], "rl.track.keep=first is not known: write last or best"),
        (["rl.track.patience=2"], "write rl.track.every=2, say"),
        (["rl.track.keep=best"], "write rl.track.every=2, say"),
        (["rl.track.every=-1"], "rl.track.every=-1 is out of range: write a whole number from 1, or null"),
        (
            ["rl.track.every=2", "rl.track.num_prompts=0"],
            "rl.track.num_prompts=0 is out of range",
        ),
        (
            ["rl.track.every=2", "rl.track.patience=0"],
            "rl.track.patience=0 is out of range",
        ),
    ],
)
def test_options_that_cannot_be_had_are_refused(words, sentence, run, tmp_path) -> None:
    with pytest.raises(UserError) as told:
        run("stage=rl", *words, root=tmp_path / "root")
    assert sentence in str(told.value)
    assert not list((tmp_path / "root").glob("artifacts/*-*"))


def test_rouge_needs_references_and_says_so(run, tmp_path) -> None:
    rows = [{"prompt": f"Say {i} again.", "response_a": "a", "response_b": "b"} for i in range(60)]
    file = tmp_path / "plain.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["stage=rl", "task=custom", f"task.path={file}", "sft.enabled=false", "rl.track.every=1"]
    with pytest.raises(UserError, match="validation prompts with references"):
        run(*words, root=tmp_path / "root")
