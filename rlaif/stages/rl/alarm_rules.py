"""Alarms of RL: signs in the history of the iterations that training is going wrong.

Every rule compares the mean of the last iterations with a fixed limit, or with the first iteration, whose responses
are the SFT policy's own. Comparisons are written so that a NaN sets off an alarm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rlaif.options.training import AlarmLimits

Row = Mapping[str, float]


@dataclass(frozen=True)
class Alarm:
    """What happened, at which iteration (from 0), and what to change."""

    title: str
    iteration: int
    text: str


def alarms(history: Sequence[Row], limits: AlarmLimits) -> list[Alarm]:
    """The alarms that `history` (metrics `rl/*` per iteration) sets off, each kind once, in its order.

    A function of the history alone, so that a resumed run has the same alarms as an uninterrupted one.
    """
    found: dict[str, Alarm] = {}
    for iteration in range(limits.window, len(history)):
        recent = history[iteration - limits.window + 1 : iteration + 1]
        for title, text in _fired(history[0], recent, limits):
            found.setdefault(title, Alarm(title, iteration, f"At iteration {iteration} {text}."))
    return list(found.values())


def _fired(start: Row, recent: Sequence[Row], limits: AlarmLimits) -> Iterator[tuple[str, str]]:
    for title, (key, rule) in RULES.items():
        limit = getattr(limits, key)
        text = None if limit is None else rule(start, recent, limit)
        if text:
            yield title, text


def _mean(rows: Sequence[Row], name: str) -> float | None:
    """Mean over the rows that have the metric; None if none has."""
    values = [row[name] for row in rows if name in row]
    return fmean(values) if values else None


def _kl_runaway(start: Row, recent: Sequence[Row], limit: float) -> str | None:
    kl = _mean(recent, "rl/kl")
    if kl is None or kl <= limit:
        return None
    return (
        f"the KL to the SFT policy was {kl:.1f} nats per response, above rl.alarms.kl={limit:g}: the distance "
        "is outrunning the reward. Raise rl.beta, lower rl.lr, or stop in time with rl.max_kl"
    )


def _entropy_collapse(start: Row, recent: Sequence[Row], limit: float) -> str | None:
    first, now = start["rl/entropy"], _mean(recent, "rl/entropy")
    if now is None or now >= limit * first:
        return None
    return (
        f"the entropy had gone from {first:.3f} to {now:.3f} nats per token, below rl.alarms.entropy={limit:g} of "
        "its start: the policy gives one answer and no longer explores. Lower rl.lr or rl.ppo_epochs, or raise "
        "rl.beta"
    )


def _value_divergence(start: Row, recent: Sequence[Row], limit: float) -> str | None:
    loss = _mean(recent, "rl/value_loss")
    known = [row for row in recent if not math.isnan(row.get("rl/explained_variance", math.nan))]
    explained = _mean(known, "rl/explained_variance")  # undefined for constant returns
    diverged = loss is not None and not math.isfinite(loss)
    if not diverged and (explained is None or explained >= limit):
        return None
    measured = (
        f"the value loss was {loss}"
        if diverged
        else f"the critic's explained variance was {explained:.2f}, below rl.alarms.explained_variance={limit:g}"
    )
    return (
        f"{measured}: its values are further from the returns than a constant would be, so the advantages are "
        "noise. Lower rl.value_lr_factor or rl.lr, or write rl.value=separate or rl=rloo"
    )


def _eos_loss(start: Row, recent: Sequence[Row], limit: float) -> str | None:
    first, now = start["rl/eos_rate"], _mean(recent, "rl/eos_rate")
    if now is None or now >= first - limit:
        return None
    return (
        f"the share of responses that end by themselves had fallen from {first:.0%} to {now:.0%}, by more than "
        f"rl.alarms.eos_rate={limit:g}: the policy forgets to stop. Raise rl.missing_eos_penalty or "
        "rl.length_penalty, or check whether the reward favours length"
    )


def _length_drift(start: Row, recent: Sequence[Row], limit: float) -> str | None:
    first, now = start["rl/response_length"], _mean(recent, "rl/response_length")
    if now is None or first / limit <= now <= first * limit:
        return None
    way = "shorter" if now < first else "longer"
    return (
        f"responses had become {way}, from {first:.1f} to {now:.1f} tokens, by more than a factor of "
        f"rl.alarms.length={limit:g}: much of the reward's gain may be length. Compare with reward=length, read "
        "the length-controlled win rate, or set rl.length_penalty"
    )


Rule = Callable[[Row, Sequence[Row], float], str | None]
# By title: the limit's name in `AlarmLimits`, and a rule (first iteration, last iterations, limit) -> what is wrong.
RULES: Mapping[str, tuple[str, Rule]] = {
    "KL runaway": ("kl", _kl_runaway),
    "entropy collapse": ("entropy", _entropy_collapse),
    "value divergence": ("explained_variance", _value_divergence),
    "EOS loss": ("eos_rate", _eos_loss),
    "length drift": ("length", _length_drift),
}
