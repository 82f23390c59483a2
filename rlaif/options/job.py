"""The options of one job, read once at its start from the composed configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

from rlaif.options.dashboard import DashboardOptions
from rlaif.options.labeling import BackendOptions, EvalOptions, JudgeOptions, LabelingOptions, PeopleOptions
from rlaif.options.read import read
from rlaif.options.rules import ABSENT, Count, Count0, From0, Name, Number, Port, Positive, Share
from rlaif.options.training import Revising, RewardOptions, RLOptions, RMOptions, SampleOptions, SFTOptions

TooLong = Literal["error", "truncate", "drop"]
OnDrift = Literal["refuse", "new", "accept"]
JUDGES = "judges."
"""Before the name of one of `judges`, in keys and messages."""


def called(key: str) -> str:
    """What a sentence calls the labeler at `key`: `labeler`, `judge`, or `judge NAME` for one of `judges`."""
    return f"judge {key.removeprefix(JUDGES)}" if key.startswith(JUDGES) else key


@dataclass(frozen=True, kw_only=True)
class SeedOptions:
    """`seeds`: one per stage, and `data` for the split."""

    data: Count0
    revise: Count0
    sft: Count0
    sample: Count0
    label: Count0
    rm: Count0
    rl: Count0
    eval: Count0


@dataclass(frozen=True, kw_only=True)
class PathOptions:
    """`paths`: where a job writes, and where conf/ is."""

    root: Name
    code: Name


@dataclass(frozen=True, kw_only=True)
class TinyOptions:
    """`models.tiny`: a random model of a few thousand weights in place of every model."""

    tiny: bool


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """`demo`: the sizes of a run on the embedded task, and the minutes that `auto` has for it."""

    size: Literal["auto", "small", "medium", "large", "full"]
    minutes: Positive


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """`doctor`: how many gold pairs are attacked with injected text."""

    injection_pairs: Count0


@dataclass(frozen=True, kw_only=True)
class PlannerOptions:
    """`planner`: the size of difference that stage=doctor plans for, of which metric, at which power."""

    effect: Positive | None
    metric: Name
    power: Annotated[float, Number(0.5, 1, below=True)]
    seeds: Any


@dataclass(frozen=True, kw_only=True)
class LedgerOptions:
    """`ledger`: the models and data that some claims need and that do not come with the package."""

    small_labeler: Name | None
    large_labeler: Name | None
    harmless: Name | None


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """`task.columns`: the user's names for our columns."""

    prompt: str | None
    reference: str | None
    response_a: str | None
    response_b: str | None
    label: str | None
    id: str | None
    subset: str | None


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """`task`: where prompts, references and pairs come from, and how text becomes tokens.

    Fields with a default belong to some sources only.
    """

    name: str
    source: str
    templates: str
    chat: bool
    prefix: str
    suffix: str
    separator: str
    max_prompt_tokens: Count
    max_response_tokens: Count
    too_long: TooLong | None
    too_long_prompts: TooLong
    too_long_responses: TooLong
    max_rows: Count | None
    test_fraction: Share
    validation_fraction: Share
    sft: bool
    safety: bool
    public: bool
    # files and hub data sets
    path: tuple[str, ...] = ABSENT
    hub_split: str = ABSENT
    hub_data_dir: str | None = ABSENT
    gold_fraction: Share = ABSENT
    columns: ColumnOptions = ABSENT
    gold_confidence: Any = ABSENT
    # docs
    packages: tuple[str, ...] | None = ABSENT
    gold_pairs_per_construction: Count0 = ABSENT
    max_prompt_chars: Count = ABSENT
    min_reference_words: Count0 = ABSENT
    max_reference_words: Count = ABSENT


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """`model`: the base model of policy and reward model, and which part of it is trained."""

    source: str
    name: Name
    revision: str | None
    trainable: str
    lora_alpha: Positive
    dtype: str
    chat_template: Name | None
    trust_remote_code: bool
    trunk_cache_gb: From0


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """`sweep`: what a multirun does if code or configuration have changed since it was started."""

    on_drift: OnDrift


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """`report`: the runs that stage=report reads, whether it serves the page, and how many samples a run keeps."""

    sweep: str | None
    stage: str | None
    group: str | None
    runs: tuple[str, ...] | None
    limit: Count
    watch: bool
    port: Port
    samples: Count0


@dataclass(frozen=True, kw_only=True)
class TrackingOptions:
    """`tracking`: Weights & Biases. Null settings follow its own environment variables, then our defaults."""

    mode: str
    project: Name | None
    entity: str | None
    group: str | None
    name: str | None
    tags: tuple[str, ...] | None
    upload: str | None


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """`trainer`: device, processes, threads, and how progress is shown."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"]
    devices: Count
    strategy: Literal["auto", "ddp"]
    threads: Count | None
    progress: Any


@dataclass(frozen=True, kw_only=True)
class Options:
    """A job's whole configuration. Nodes of type Any hold names of the user's own."""

    stage: str
    seed: Count0 | None
    seeds: SeedOptions
    paths: PathOptions
    plan: bool
    force: Any
    export: Name | None
    export_format: Literal["whole", "adapter"]
    models: TinyOptions
    demo: DemoOptions
    task: TaskOptions
    model: ModelOptions
    backend: BackendOptions
    labeler: LabelingOptions
    judge: LabelingOptions
    judges: Any
    sft: SFTOptions
    sample: SampleOptions
    people: PeopleOptions
    rm: RMOptions
    reward: RewardOptions
    rl: RLOptions
    eval: EvalOptions
    report: ReportOptions
    sweep: SweepOptions
    dashboard: DashboardOptions = ABSENT  # runs do not record it
    trainer: TrainerOptions
    tracking: TrackingOptions
    prices: Any
    doctor: DoctorOptions = ABSENT
    planner: PlannerOptions = ABSENT
    ledger: LedgerOptions
    # stage=compare
    arms: Any
    grid: Any
    repeat: Any
    repeats: Count | None
    until: Literal["sft", "sample", "label", "rm", "rl", "eval"]
    test: tuple[str, ...] | None
    curve: Any
    diagnose: Any
    controls: Any
    compare: Any
    claim: Any

    @cached_property
    def jury(self) -> Mapping[str, JudgeOptions]:
        """The judges of `judges`, once their overrides are composed (`rlaif.app.compose`), in order."""
        return {name: read(JudgeOptions, own, f"judges.{name}") for name, own in (self.judges or {}).items()}

    @property
    def revising(self) -> Revising | None:
        """How responses are revised; None if nothing is trained on revisions."""
        rl, sft = self.rl, self.sft
        if rl.algorithm == "sft_revisions":
            return Revising(
                place="rl",
                reviser=rl.reviser,
                rounds=rl.revisions,
                principles=rl.principles,
                temperature=rl.revision_temperature,
                max_critique_tokens=rl.max_critique_tokens,
                first_temperature=rl.temperature,
                first_top_k=0,
                max_rows=rl.max_rows,
            )
        if not sft.revised:
            return None
        return Revising(
            place="sft",
            reviser="labeler",
            rounds=sft.revisions,
            principles=sft.principles,
            temperature=sft.temperature,
            max_critique_tokens=sft.max_critique_tokens,
            first_temperature=sft.first_temperature,
            first_top_k=sft.first_top_k,
            max_rows=self.sample.max_rows,
        )

    @property
    def judge_keys(self) -> tuple[str, ...]:
        """Where the judges are composed: `judge` alone, or `judges.NAME` for each of `judges`."""
        return tuple(f"{JUDGES}{name}" for name in self.jury) or ("judge",)

    @property
    def deciding_keys(self) -> tuple[str, ...]:
        """The judges whose verdicts the win rate is made of: the first, or all of a panel."""
        return self.judge_keys if self.eval.panel != "none" else self.judge_keys[:1]

    def asked(self, key: str) -> LabelingOptions:
        """The labeler composed at `key`: `labeler`, `judge`, `judges.NAME`, or simulated `people` as one."""
        if key == "people":
            return self.people.labeling(self.labeler)
        if key.startswith(JUDGES):
            return self.jury[key.removeprefix(JUDGES)].judge
        return {"labeler": self.labeler, "judge": self.judge}[key]

    def engine_at(self, key: str) -> BackendOptions:
        """The backend that the labeler at `key` may run on: its own if it is one of `judges`."""
        return self.jury[key.removeprefix(JUDGES)].backend if key.startswith(JUDGES) else self.backend

    def named(self, key: str) -> str:
        """What tables and sentences call the labeler at `key`."""
        return key.removeprefix(JUDGES) if key.startswith(JUDGES) else str(self.asked(key).name)


def with_seed(options: Options) -> Options:
    """`seed=` sets the requested stage's seed only (for `pipeline`: rm and rl), so that the rest is shared.

    An arm of a comparison counts as the stage that it runs `until`, and as a pipeline if that is eval.
    """
    if options.seed is None:
        return options
    named = seeded_stages(options.stage, options.until)
    seeds = {name: options.seed for name in named if hasattr(options.seeds, name)}
    return replace(options, seeds=replace(options.seeds, **seeds))


def seeded_stages(stage: str, until: str) -> tuple[str, ...]:
    """The stages whose seed `seed=` sets."""
    if stage == "compare":
        stage = "pipeline" if until == "eval" else until
    return ("rm", "rl") if stage == "pipeline" else (stage,)


def with_engine(options: Options) -> Options:
    """Replaces `backend: null` of a labeler or judge by the engine that `backend=` sets up.

    With `models.tiny=true` this process's engine is a random model, which puts no mass on any choice: its `min_mass`
    is 0, since any other value would stop every trial run. A server's model keeps its own.
    """

    def prepared(own: LabelingOptions) -> LabelingOptions:
        own = replace(own, backend=own.backend or options.backend.engine)
        here = options.models.tiny and own.backend == "transformers"
        return replace(own, min_mass=0.0) if here else own

    return replace(options, labeler=prepared(options.labeler), judge=prepared(options.judge))
