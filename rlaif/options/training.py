"""Options of sampling, training and rewards: `sft`, `sample`, `rm`, `reward`, `rl`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from rlaif.options.rules import ABSENT, Count, Count0, Finite, From0, Name, Number, Part, Positive, Share

Schedule = Literal["constant", "linear", "cosine"]
Labels = Literal["ai", "gold", "mixed", "ai_then_gold", "shuffled"]
Between = Annotated[float, Number(0, 1, above=True, below=True)]
# At a half no preference would be left.
Smoothing = Annotated[float, Number(0, 0.5, below=True)]
AtLeast2 = Annotated[int, Number(2, whole=True)]


@dataclass(frozen=True, kw_only=True)
class SFTOptions:
    """`sft`: supervised fine-tuning; `enabled: false` passes the base model through.

    Fields with a default belong to `sft=revisions`.
    """

    enabled: bool
    num_rows: Count | None
    num_epochs: Count
    batch_size: Count
    micro_batch_size: Count | None
    lr: Positive
    weight_decay: From0
    eps: Positive
    schedule: Schedule
    warmup_fraction: Share
    gradient_clip: From0
    revisions: Count = ABSENT
    principles: str | None = ABSENT
    temperature: From0 = ABSENT
    max_critique_tokens: Count = ABSENT
    first_temperature: Positive = ABSENT
    first_top_k: Count0 = ABSENT

    @property
    def revised(self) -> bool:
        """Whether the targets are revisions of the base model's own responses, not the task's references."""
        return self.enabled and self.revisions is not ABSENT


REVISING = (
    *("revisions", "principles", "temperature", "max_critique_tokens"),
    *("first_temperature", "first_top_k"),
)
"""Keys of `sft` that only the making of revisions reads."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """`sample`: the response pairs to be labelled."""

    source: Literal["auto", "dataset", "policy"]
    num_prompts: Count
    num_samples: Count
    temperature: Positive
    top_k: Count0
    max_redraws: Count0
    max_rows: Count


@dataclass(frozen=True, kw_only=True)
class RMOptions:
    """`rm`: the reward model, the labels that it learns, and its loss."""

    init: Literal["sft", "base"]
    num_epochs: Count
    patience: Count | None
    batch_size: Count
    micro_batch_size: Count | None
    ensemble: Count
    bootstrap: bool
    lr: Positive
    head_lr_factor: From0
    weight_decay: From0
    eps: Positive
    schedule: Schedule
    warmup_fraction: Share
    gradient_clip: From0
    labels: Labels
    n: Count | None
    label_noise: Share
    min_confidence: Annotated[float, Number(0, 0.5)]
    confidence_weight: From0
    hard_labels: bool
    margin: From0
    label_smoothing: Smoothing
    label_temperature: Positive
    centering: From0
    validation_fraction: Part
    test_fraction: Part
    normalize_rows: AtLeast2


@dataclass(frozen=True, kw_only=True)
class RewardOptions:
    """`reward`: what RL maximises. Fields with a default belong to some kinds only."""

    kind: str
    normalize_rows: Count0 = ABSENT
    # ensemble
    how: Literal["mean", "min", "mean_minus_variance"] = ABSENT
    coefficient: From0 = ABSENT
    # hub
    name: Name = ABSENT
    revision: str | None = ABSENT
    format: Literal["chat", "pair", "policy"] = ABSENT
    max_tokens: Count = ABSENT
    dtype: str = ABSENT
    trust_remote_code: bool = ABSENT
    # length
    target: Count | None = ABSENT


@dataclass(frozen=True, kw_only=True)
class HeldOutOptions:
    """`rl.held_out`: the reward on prompts that no reward model was trained on.

    Profiles set the number of prompts for every algorithm; one that draws no rollouts has nothing else of it.
    """

    num_prompts: Count
    every: Count | None = ABSENT


@dataclass(frozen=True, kw_only=True)
class PolicyTrackOptions:
    """`rl.track`: reward and a held-out measure on fixed validation prompts."""

    every: Count | None
    judge: Literal["rouge", "judge"]
    num_prompts: Count
    patience: Count | None
    keep: Literal["last", "best"]


@dataclass(frozen=True, kw_only=True)
class AlarmLimits:
    """`rl.alarms`: when each alarm fires; None switches it off. Means are over `window` iterations.

    `kl`: nats per response; `entropy`: share of the first iteration's; `explained_variance`: its lowest value;
    `eos_rate`: fall since the first iteration, as a share of responses; `length`: factor, up or down.
    """

    window: Count
    kl: Positive | None
    entropy: Between | None
    explained_variance: Finite | None
    eos_rate: Between | None
    length: Annotated[float, Number(1, above=True)] | None


@dataclass(frozen=True, kw_only=True)
class RLOptions:
    """`rl`: the algorithm, its settings, and what watches it. The presets are in conf/rl/, with their sources.

    Fields with a default belong to some of the families: RL on the policy's own rollouts, preference optimisation on
    labelled pairs (`ON_PAIRS`), likelihood of revisions (`ON_REVISIONS`), and best of n, which trains nothing.
    """

    algorithm: str
    max_rows: Count
    best_of: AtLeast2 = ABSENT
    # what is trained
    loss: str = ABSENT
    num_epochs: Positive = ABSENT
    lr: Positive = ABSENT
    weight_decay: From0 = ABSENT
    eps: Positive = ABSENT
    schedule: Schedule = ABSENT
    warmup_fraction: Share = ABSENT
    gradient_clip: From0 = ABSENT
    beta: From0 = ABSENT
    # on labelled pairs
    batch_size: Count = ABSENT
    micro_batch_size: Count | None = ABSENT
    margin: From0 = ABSENT
    label_smoothing: Smoothing = ABSENT
    length_normalized: bool = ABSENT
    nll_weight: From0 = ABSENT
    # on revisions
    revisions: Count = ABSENT
    reviser: Literal["policy", "labeler"] = ABSENT
    principles: str | None = ABSENT
    revision_temperature: From0 = ABSENT
    max_critique_tokens: Count = ABSENT
    # on rollouts
    advantage: str = ABSENT
    loss_mean: str = ABSENT
    num_responses: Count = ABSENT
    responses_per_iteration: Count = ABSENT
    num_prompts: Count = ABSENT
    prompts_per_iteration: Count = ABSENT
    samples_per_prompt: Count = ABSENT
    minibatch_rollouts: Count = ABSENT
    ppo_epochs: Count = ABSENT
    temperature: Positive = ABSENT
    value_lr_factor: From0 = ABSENT
    kl: Literal["reward", "loss"] = ABSENT
    kl_estimator: Literal["k1", "k2", "k3"] = ABSENT
    kl_controller: Literal["fixed", "adaptive"] = ABSENT
    kl_target: Positive = ABSENT
    kl_horizon: Positive = ABSENT
    convex_kl: bool = ABSENT
    gamma: Share = ABSENT
    lam: Share = ABSENT
    clip: Positive = ABSENT
    value_clip: From0 = ABSENT
    value_coefficient: From0 = ABSENT
    value: Literal["shared", "separate", "none"] = ABSENT
    whiten_rewards: bool = ABSENT
    whiten_advantages: bool = ABSENT
    missing_eos_penalty: From0 = ABSENT
    missing_eos_score: Finite | None = ABSENT
    length_penalty: From0 = ABSENT
    max_kl: Positive | None = ABSENT
    held_out: HeldOutOptions = ABSENT
    track: PolicyTrackOptions = ABSENT
    alarms: AlarmLimits = ABSENT


ON_PAIRS = ("batch_size", "micro_batch_size", "margin", "label_smoothing", "length_normalized", "nll_weight")
"""Keys of `rl` that only preference optimisation reads, or also `rl=sft_revisions` (`batch_size`)."""
ON_REVISIONS = ("revisions", "reviser", "principles", "revision_temperature", "max_critique_tokens")
"""Keys of `rl` that only `rl=sft_revisions` reads."""


@dataclass(frozen=True)
class Revising:
    """How a policy's responses are revised, whichever group of settings says so.

    `place` is that group: `sft` (sft=revisions: the base model's responses) or `rl` (rl=sft_revisions: those of the
    SFT policy). `max_rows` are decoded at once.
    """

    place: Literal["sft", "rl"]
    reviser: Literal["policy", "labeler"]
    rounds: int
    principles: str | None
    temperature: float
    max_critique_tokens: int
    first_temperature: float
    first_top_k: int
    max_rows: int

    @property
    def words(self) -> str:
        """What chooses it."""
        return "sft=revisions" if self.place == "sft" else "rl=sft_revisions"
