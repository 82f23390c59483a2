"""Options of labelers and judges, and of the engines that run them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from rlaif.options.rules import ABSENT, Count, Count0, Finite, From0, Name, Number, Positive, Share

ReadoutKind = Literal["choice", "score", "likelihood", "text", "reference"]
Direction = Literal["forward", "reverse"]
Normalize = Literal["none", "tokens"]
OrderMode = Literal["first", "random", "both", "both_consistent"]
Averaging = Literal["prob", "logit"]
Retry = Literal["unparsed", "failed", "all"]


@dataclass(frozen=True, kw_only=True)
class ReadoutOptions:
    """How a number is read from the model.

    `temperature` divides the choices' log-probabilities (`choice`) or the difference between the two
    responses' scores (`score`, `likelihood`, `reference`) before the softmax or sigmoid that gives `p_a`.
    `direction`, `prior_weight` and `normalize` belong to `likelihood`, `max_tokens` (new tokens of a verdict) to
    `text`.
    """

    kind: ReadoutKind
    temperature: Positive
    direction: Direction
    prior_weight: From0
    normalize: Normalize
    max_tokens: Count

    @property
    def pointwise(self) -> bool:
        """Whether each response is read on its own, so that a pair has no positions."""
        return self.kind in ("score", "likelihood", "reference")


@dataclass(frozen=True, kw_only=True)
class ScriptedOptions:
    """`labeler.scripted`: the rule that answers, and its faults."""

    rule: str
    strength: Positive
    noise: From0
    unparsed_rate: Share
    position_bias: Finite
    seed: Count0


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """`labeler.encoder`: the sentence encoder of readout `reference`, which reads `max_tokens` of a text."""

    name: Name
    revision: str | None
    max_tokens: Count


@dataclass(frozen=True, kw_only=True)
class LabelingOptions:
    """`labeler` and `judge`: prompt strategy x readout x order x self-consistency, and the limits of their stages.

    `min_mass` is the least next-token probability that the choices of a `choice` or `score` readout must carry
    together. `temperature` and `top_k` (0: no limit) apply to sampled text. `batch_size` prompts reach the backend at
    once and are committed to the store together. A null `backend` stands for the engine that `backend=` sets up.
    """

    name: str | None
    backend: str | None
    preamble: Name
    exemplars: Count0
    cot: bool
    max_rationale_tokens: Count
    min_mass: Share
    readout: ReadoutOptions
    order: OrderMode
    averaging: Averaging
    samples: Count
    temperature: From0
    top_k: Count0
    batch_size: Count
    max_unparsed: Share
    min_alignment: Share | None
    budget_usd: Positive | None
    max_seconds: Positive | None
    retry: Retry | None
    scripted: ScriptedOptions
    encoder: EncoderOptions

    @property
    def engine(self) -> str:
        """`backend`, once `with_engine` has filled it in."""
        assert self.backend is not None
        return self.backend


@dataclass(frozen=True, kw_only=True)
class PeopleOptions:
    """`people`: who they are where a data set has no preferences of people, and how they label."""

    simulated: Literal["auto", "always", "never"]
    temperature: Positive
    encoder: EncoderOptions
    noise: Share
    n: Count | None
    seed: Count0

    def labeling(self, base: LabelingOptions) -> LabelingOptions:
        """Simulated people as a labeler by reference; `base` gives the limits that it shares with any labeler."""
        readout = replace(base.readout, kind="reference", temperature=self.temperature)
        plain: dict[str, Any] = {"cot": False, "exemplars": 0, "samples": 1, "order": "first"}
        return replace(
            base,
            name="simulated people",
            backend="encoder",
            readout=readout,
            encoder=self.encoder,
            batch_size=4096,
            budget_usd=None,
            max_seconds=None,
            retry=None,
            **plain,
        )


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """`backend`: the engine of labelers and judges, in this process or behind a server.

    `revision` is that of the model in both cases. Fields with a default belong to one of the engines only.
    """

    engine: str
    name: Name
    revision: str | None
    # openai
    base_url: Name = ABSENT
    api: Literal["completions", "chat"] = ABSENT
    tokenizer: Name = ABSENT
    api_key_env: str | None = ABSENT
    top_logprobs: Count = ABSENT
    choice_samples: Count0 = ABSENT
    timeout_s: Positive = ABSENT
    connect_timeout_s: Positive = ABSENT
    concurrency: Count = ABSENT
    requests_per_minute: Positive | None = ABSENT
    tokens_per_minute: Positive | None = ABSENT
    max_retries: Count0 = ABSENT
    backoff_s: Positive = ABSENT
    max_wait_s: From0 = ABSENT
    seconds_per_call: From0 = ABSENT
    # transformers
    source: str = ABSENT
    dtype: str = ABSENT
    chat_template: Name | None = ABSENT
    trust_remote_code: bool = ABSENT
    max_rows: Count = ABSENT


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """One of `judges`, as its overrides compose it: its own `judge` and the `backend` that runs it."""

    judge: LabelingOptions
    backend: BackendOptions


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """`eval`: how the two policies answer held-out prompts, what counts as a tie, and whose verdict counts.

    `safety`: the share of harmless answers too, each judged on its own, and how many of `num_safe_prompts` harmless
    questions are refused.
    """

    num_prompts: Count
    temperature: From0
    top_k: Count0
    tie_margin: Annotated[float, Number(0, 0.5)]
    panel: Literal["none", "mean", "vote"]
    labeler_verdict: bool
    safety: bool
    num_safe_prompts: Count
    max_rows: Count
