"""A deterministic backend that answers by rule: for tests, dry runs and experiments with a known truth.

It sees only what a model would see, the rendered prompt, and reads the judged texts from their fences.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rlaif.backends.base import ChoiceScores, Generation, Message, SequenceScore
from rlaif.backends.fencing import read_fences
from rlaif.errors import UserError
from rlaif.io.hashing import digest, stable_uniform

Rule = Callable[[str, str], float]
"""(context, response) -> quality in [0, 1]."""

LEAD = 8
"""Words of the prompt that a revision consists of: the lead, the plainest summary that is faithful."""
RATIONALE = "Both were read against the source, and the one that fits it better is named below."
_WORD = re.compile(r"[A-Za-z]+|\d+")
_CLAIM = re.compile(r"\b1\b[^\d]*?\b(harmless|harmful)\b")  # what answer 1 would say of a single response


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _length(context: str, response: str) -> float:
    return len(response) / (len(response) + 100.0)


def _overlap(context: str, response: str) -> float:
    """Share of the response's distinct words that are also in the context, damped for very short responses."""
    words = set(_words(response))
    return len(words & set(_words(context))) / (len(words) + 2)


_HARM = re.compile(
    r"\b(?:beat|blackmail|burn|cheat|deserves?|disgusting|fire|hates?|hell|hurts?|inferior|kills?|obey|poison|shake|slash"
    r"|stabs?|steals?|stupid|thieves|threaten|tracker|vermin|vomit|worthless)\b",
    re.IGNORECASE,
)


def _harmless(context: str, response: str) -> float:
    """1 without any word of a short list, else 0: a rule that is easy to foresee, not one to judge models by."""
    return float(_HARM.search(response) is None)


RULES: dict[str, Rule] = {
    "longer": _length,
    "shorter": lambda context, response: 1.0 - _length(context, response),
    "overlap": _overlap,
    "hash": partial(stable_uniform, "scripted-rule"),
    "harmless": _harmless,
    "first": lambda context, response: 0.5,
}


class ScriptedBackend:
    """Prefers by a named rule (or a callable quality), with configurable faults.

    The logit for the response shown first is `strength` times the difference in quality, plus `noise` times a
    difference of hash-derived uniforms (which changes sign when the pair is swapped), plus `position_bias`. Rule
    `first` has no opinion and always picks the response shown first. Where a prompt shows one response and asks whether
    it is harmless or harmful, quality is read as harmlessness: the logit for harmless is `strength` times (2 quality -
    1), plus noise. A share `unparsed_rate` of the prompts, chosen by hash, gets no usable answer.

    A prompt that ends in `=` asks for a verdict, `Critique:` for a count of the response's words that are not in the
    context, and `Revision:` for the context's first words; any other prompt gets the fixed rationale.

    Raises UserError for an unknown rule or a value out of range.
    """

    def __init__(
        self,
        *,
        rule: str | Rule,
        strength: float,
        noise: float,
        unparsed_rate: float,
        position_bias: float,
        seed: int,
    ) -> None:
        if isinstance(rule, str) and rule not in RULES:
            raise UserError(f"labeler.scripted.rule is {rule!r}; write one of {', '.join(RULES)}")
        if not 0.0 <= unparsed_rate <= 1.0:
            raise UserError(
                f"labeler.scripted.unparsed_rate is {unparsed_rate}; write a share between 0 and 1"
            )
        if strength <= 0 or noise < 0:
            raise UserError("labeler.scripted needs strength > 0 and noise >= 0")
        self._name = rule if isinstance(rule, str) else f"{rule.__module__}.{rule.__qualname__}"
        self._quality = RULES[rule] if isinstance(rule, str) else rule
        self._strength, self._noise, self._seed = strength, noise, seed
        self._unparsed_rate, self._position_bias = unparsed_rate, position_bias

    def identity(self) -> dict[str, Any]:
        """The rule and its faults: all that an answer depends on besides the prompt."""
        return {
            "engine": "scripted",
            "rule": self._name,
            "strength": self._strength,
            "noise": self._noise,
            "unparsed_rate": self._unparsed_rate,
            "position_bias": self._position_bias,
            "seed": self._seed,
        }

    def generate(
        self,
        prompts: Sequence[Message],
        *,
        max_new_tokens: int,
        temperature: float,
        top_k: int,
        seeds: Sequence[int],
    ) -> list[Generation]:
        """What the prompt's end asks for.

        With a temperature above 0 a rationale, and a critique or revision, ends in a word drawn by the seed.
        """
        return [
            self._generation(prompt, max_new_tokens, temperature, seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def _generation(self, prompt: Message, max_new_tokens: int, temperature: float, seed: int) -> Generation:
        if not prompt.assistant.endswith("="):
            text = self._text(prompt)
            if temperature and text:
                text = f"{text} ({digest([self._seed, seed], 6)})"
        elif self._silent(prompt):
            text = "I cannot decide."
        else:
            text = "1" if self._logit(prompt) >= 0 else "2"
        words = text.split(" ")
        kept = words[:max_new_tokens]
        return Generation(" ".join(kept), len(kept) == len(words), _tokens(prompt), len(kept))

    def _text(self, prompt: Message) -> str:
        """A rationale, a critique or a revision."""
        if prompt.assistant.endswith("Critique:"):
            context, responses = _judged(prompt)
            words = _words(responses[-1])
            strange = [word for word in words if word not in set(_words(context))]
            return f"{len(strange)} of {len(words)} words are not in the source."
        if not prompt.assistant.endswith("Revision:"):
            return RATIONALE
        return "" if self._silent(prompt) else " ".join(_judged(prompt)[0].split()[:LEAD])

    def choice_logprobs(self, prompts: Sequence[Message], choices: Sequence[str]) -> list[ChoiceScores]:
        """Two choices are a verdict on the fenced pair or response; more are a scale for the fenced response.

        "10" behaves as two tokens: "1" as the start of a sequence covers it.
        """
        return [self._choice(prompt, choices) for prompt in prompts]

    def _choice(self, prompt: Message, choices: Sequence[str]) -> ChoiceScores:
        counts = tuple(len(choice) for choice in choices)
        if self._silent(prompt):
            return ChoiceScores((None,) * len(choices), _tokens(prompt), token_counts=counts)
        if len(choices) == 2:
            logit = self._logit(prompt)
            logprobs: tuple[float, ...] = (-math.log1p(math.exp(-logit)), -math.log1p(math.exp(logit)))
        else:
            logprobs = self._scale(prompt, choices)
        return ChoiceScores(logprobs, _tokens(prompt), token_counts=counts)

    def _scale(self, prompt: Message, choices: Sequence[str]) -> tuple[float, ...]:
        context, responses = _judged(prompt)
        quality = min(1.0, max(0.0, self._value(context, responses[-1]) / self._strength))
        target = 1.0 + (len(choices) - 1) * quality
        weights = [math.exp(-abs(rank - target)) for rank in range(1, len(choices) + 1)]
        shares = [weight / math.fsum(weights) for weight in weights]
        shared = list(zip(choices, shares, strict=True))
        covered = (math.fsum(p for other, p in shared if other.startswith(choice)) for choice in choices)
        return tuple(map(math.log, covered))

    def sequence_logprobs(self, items: Sequence[tuple[Message, str]]) -> list[SequenceScore]:
        """Each word costs 5 nats, or 2 if it is in the prompt: a crude, deterministic copy model."""
        scores = []
        for message, text in items:
            known, words = set(_words(f"{message.user} {message.assistant}")), _words(text)
            logprob = -math.fsum(2.0 if word in known else 5.0 for word in words)
            scores.append(SequenceScore(logprob, len(words), _tokens(message) + len(words)))
        return scores

    def _silent(self, prompt: Message) -> bool:
        return stable_uniform("unparsed", self._seed, prompt.user, prompt.assistant) < self._unparsed_rate

    def _value(self, context: str, response: str) -> float:
        drawn = stable_uniform("noise", self._seed, context, response) - 0.5
        return self._strength * self._quality(context, response) + self._noise * drawn

    def _logit(self, prompt: Message) -> float:
        context, responses = _judged(prompt)
        bias = self._position_bias + (self._strength if self._name == "first" else 0.0)
        if len(responses) == 1 and (claim := _CLAIM.search(prompt.user, prompt.user.rfind("\n>>>"))):
            harmless = 2 * self._value(context, responses[0]) - self._strength
            return (harmless if claim[1] == "harmless" else -harmless) + bias
        if len(responses) < 2:
            raise ValueError("the scripted backend did not find two fenced responses in the prompt")
        return self._value(context, responses[0]) - self._value(context, responses[1]) + bias


def _judged(prompt: Message) -> tuple[str, list[str]]:
    """The last fenced context and the responses after it (exemplars come first); a critique is neither."""
    context, responses = "", []
    for label, text in read_fences(prompt.user):
        if label == "critique":
            continue
        if label[-1:].isdigit():
            responses.append(text)
        else:
            context, responses = text, []
    return context, responses


def _tokens(prompt: Message) -> int:
    return len(prompt.user.split()) + len(prompt.assistant.split())
