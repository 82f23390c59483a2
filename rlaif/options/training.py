"""Options of sampling, training and rewards: `sft`, `sample`, `rm`, `reward`, `rl`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from rlaif.options.rules import ABSENT, Count, Count0, Finite, From0, Name, Number, Part, Positive, Share

Schedule = Literal["constant", "linear", "cosine"]
Labels = Literal["ai", "gold", "mixed", "ai_then_gold", "shuffled"]
Between = Annotated[float, Number(0, 1, above=True, below=True)]
AtLeast2 = Annotated[int, Number(2, whole=True)]


@dataclass(frozen=True, kw_only=True)
class SFTOptions:
    """`sft`: supervised fine-tuning; `enabled: false` passes the base model through."""

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
    # At a half no preference would be left.
    label_smoothing: Annotated[float, Number(0, 0.5, below=True)]
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
    """`rl.held_out`: the reward on prompts that no reward model was trained on."""

    every: Count | None
    num_prompts: Count


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
    """`rl`: the algorithm, its settings, and what watches it. The presets are in conf/rl/, with their sources."""

    algorithm: str
    advantage: str
    loss: str
    loss_mean: str
    num_epochs: Positive
    num_prompts: Count
    prompts_per_iteration: Count
    samples_per_prompt: Count
    minibatch_rollouts: Count
    ppo_epochs: Count
    temperature: Positive
    lr: Positive
    value_lr_factor: From0
    weight_decay: From0
    eps: Positive
    schedule: Schedule
    warmup_fraction: Share
    gradient_clip: From0
    beta: From0
    kl: Literal["reward", "loss"]
    kl_estimator: Literal["k1", "k2", "k3"]
    kl_controller: Literal["fixed", "adaptive"]
    kl_target: Positive
    kl_horizon: Positive
    convex_kl: bool
    gamma: Share
    lam: Share
    clip: Positive
    value_clip: From0
    value_coefficient: From0
    value: Literal["shared", "separate", "none"]
    whiten_rewards: bool
    whiten_advantages: bool
    missing_eos_penalty: From0
    missing_eos_score: Finite | None
    length_penalty: From0
    max_kl: Positive | None
    max_rows: Count
    held_out: HeldOutOptions
    track: PolicyTrackOptions
    alarms: AlarmLimits
