"""Over-optimisation of a policy: proxy reward beside a held-out measure, over the distance it has moved.

A proxy reward keeps rising while what it stands for turns and falls (Gao et al. 2022, arXiv:2210.10760, who plot both
over the square root of the KL). The tracker measures both on fixed prompts every few iterations, remembers the best
policy, and says when to stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import stdtr
from torch import Tensor

from rlaif.models.split import Top

LEVEL = 0.05  # the chance that a run whose held-out measure never falls is stopped at all

Measured = tuple[float, float, float, Sequence[float]]
"""Proxy reward, held-out measure, KL, and the held-out measure per prompt (NaN if it could not be read)."""


@dataclass(frozen=True)
class TrackOptions:
    """Measure every `every` iterations; stop after `patience` measurements below the best (None: never)."""

    every: int
    patience: int | None
    keep: Literal["last", "best"]


@dataclass(frozen=True)
class Point:
    """The policy after `iteration` iterations: proxy reward, held-out measure, KL to the reference (nats).

    `golds` is the held-out measure of each prompt, of which `gold` is the mean; empty if only the mean is known.
    """

    iteration: int
    proxy: float
    gold: float
    kl: float
    golds: Sequence[float] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "golds", tuple(self.golds))


def best_point(points: Sequence[Point]) -> Point:
    """The first point with the highest held-out measure; NaN ranks below every number."""
    return max(points, key=lambda point: -math.inf if math.isnan(point.gold) else point.gold)


def over_optimised(points: Sequence[Point], patience: int, *, level: float = LEVEL) -> bool:
    """Whether the held-out measure has been below its best for `patience` points, beyond noise, as the proxy rose.

    The best of several measurements exceeds the truth, so later ones fall short of it by chance alone. A stop requires
    the mean of the last `patience` points to be below the best point, by a one-sided t-test paired by prompt. Its
    level is split over all points that could have been the best and all looks, so that a run whose measure never truly
    falls stops with probability at most `level`, however long it is. If the measure is not known per prompt, there is
    no noise to judge by, and no stop.
    """
    candidates = len(points) - patience
    best = best_point(points)
    if points.index(best) >= candidates or not points[-1].proxy > best.proxy:
        return False
    # Summed over the candidates of a look and over all looks: level * sum of 1 / (m (m + 1)) = level.
    return _fall_p(best, points[-patience:]) < level / (candidates**2 * (candidates + 1))


def _fall_p(best: Point, later: Sequence[Point]) -> float:
    """One-sided p of the held-out measure's fall from `best` to the mean of `later`, paired by prompt."""
    if any(len(point.golds) != len(best.golds) for point in later):
        return 1.0
    difference = np.mean([point.golds for point in later], axis=0) - np.asarray(best.golds)
    difference = difference[np.isfinite(difference)]
    count, differing = len(difference), int(np.count_nonzero(difference))
    if count < 2 or not differing:
        return 1.0
    mean, error = float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(count)
    p = float(stdtr(count - 1, mean / error)) if error > 0 else float(mean >= 0)
    # No test that is symmetric in the signs of this many differences can go lower.
    return max(p, 2.0**-differing)


class Tracker:
    """Measures `policy` by `measure` on fixed prompts. Its state is part of PPO's checkpoints.

    `again` measures the current policy and the one it started from on other prompts: the measurement that the best
    policy was chosen by is biased upwards by that choice.
    """

    def __init__(
        self,
        policy: Top,
        measure: Callable[[], Measured],
        options: TrackOptions,
        *,
        again: Callable[[], tuple[Measured, Measured]] | None = None,
    ) -> None:
        self._policy, self._measure, self._options, self._again = policy, measure, options, again
        self.points: list[Point] = []
        self._best: dict[str, Tensor] = {}

    def at(self, iteration: int) -> dict[str, float]:
        """Metrics of the policy before `iteration` if a measurement is due; else none."""
        return {} if iteration % self._options.every else self.measure(iteration)

    def measure(self, iteration: int) -> dict[str, float]:
        """Metrics of the policy after `iteration` iterations, measured once."""
        if not self.points or self.points[-1].iteration != iteration:
            self.points.append(Point(iteration, *self._measure()))
            if self._options.keep == "best" and best_point(self.points) is self.points[-1]:
                state = self._policy.state_dict()
                self._best = {name: value.detach().clone() for name, value in state.items()}
        return point_metrics(self.points[-1])

    @property
    def should_stop(self) -> bool:
        """Whether the last measurement says that more training harms."""
        patience = self._options.patience
        return patience is not None and over_optimised(self.points, patience)

    def keep(self) -> Point:
        """Load the weights of the policy to keep, and return the measurement that it was chosen by."""
        if self._options.keep == "last":
            return self.points[-1]
        self._policy.load_state_dict(self._best)
        return best_point(self.points)

    def told(self) -> tuple[Point, Point]:
        """Load the policy to keep; the measurements to show, its own and that of the start.

        Those of the last policy are on the fixed prompts; those of the best policy are repeated on other prompts.
        """
        kept, start = self.keep(), self.points[0]
        if self._options.keep == "last" or self._again is None:
            return kept, start
        now, before = self._again()
        return Point(kept.iteration, *now), Point(start.iteration, *before)

    def state_dict(self) -> dict[str, Any]:
        return {"points": [asdict(point) for point in self.points], "best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points = [Point(**point) for point in state["points"]]
        self._best = dict(state["best"])


def point_metrics(point: Point) -> dict[str, float]:
    """A measurement as metrics `rl/track_*`."""
    return {f"rl/track_{name}": getattr(point, name) for name in ("proxy", "gold", "kl")}
