"""Over-optimisation of a policy: proxy reward beside a held-out measure, over the distance it has gone.

A reward that is only a proxy rises on while what it stands for turns and falls (Gao et al. 2022, who draw both
over the square root of the KL). The tracker measures both on fixed prompts every few iterations, remembers the
best policy, and says when to stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rlaif.models.split import Top
from rlaif.modules.optim import response_hidden
from rlaif.rollout import Rollout

CHUNK = 64  # rollouts whose hidden states exist at once


@dataclass(frozen=True)
class TrackOptions:
    """Measure every `every` iterations; stop after `patience` measurements without a gain (None: never)."""

    every: int
    patience: int | None
    keep: Literal["last", "best"]


@dataclass(frozen=True)
class Point:
    """The policy after `iteration` iterations: proxy reward, held-out measure, KL to the reference (nats)."""

    iteration: int
    proxy: float
    gold: float
    kl: float


def best_point(points: Sequence[Point]) -> Point:
    """The first point with the highest held-out measure; NaN is below every number."""
    return max(points, key=lambda point: -math.inf if math.isnan(point.gold) else point.gold)


def over_optimised(points: Sequence[Point], patience: int) -> bool:
    """Whether the held-out measure has not risen for `patience` points while the proxy did."""
    best = best_point(points)
    since = len(points) - 1 - points.index(best)
    return since >= patience and points[-1].proxy > best.proxy


@torch.no_grad()
def rollout_kl(policy: Top, reference: Top, rollout: Rollout, temperature: float) -> float:
    """KL(policy || reference), mean nats a response, estimated on the policy's own samples."""
    total = 0.0
    for index in torch.arange(len(rollout), device=rollout.ids.device).split(CHUNK):
        mask, features = rollout.response_mask[index], rollout.features[index]
        ids = rollout.ids[index][mask]
        new, old = (
            top.logprobs(response_hidden(top, features, mask), ids, temperature)
            for top in (policy, reference)
        )
        total += float((new - old).sum())
    return total / len(rollout)


class Tracker:
    """Measures `policy` by `measure`: () -> (proxy, gold, kl). Its state is part of PPO's checkpoints."""

    def __init__(
        self, policy: Top, measure: Callable[[], tuple[float, float, float]], options: TrackOptions
    ) -> None:
        self._policy, self._measure, self._options = policy, measure, options
        self.points: list[Point] = []
        self._best: dict[str, Tensor] = {}

    def at(self, iteration: int) -> dict[str, float]:
        """Metrics of the policy as it stands before `iteration`, where a measurement is due; else none."""
        return {} if iteration % self._options.every else self.measure(iteration)

    def measure(self, iteration: int) -> dict[str, float]:
        """Metrics of the policy as it stands after `iteration` iterations, measured once."""
        if not self.points or self.points[-1].iteration != iteration:
            self.points.append(Point(iteration, *self._measure()))
            if self._options.keep == "best" and best_point(self.points) is self.points[-1]:
                self._best = {
                    name: value.detach().clone() for name, value in self._policy.state_dict().items()
                }
        return point_metrics(self.points[-1])

    @property
    def should_stop(self) -> bool:
        """Whether the last measurement says that more training harms."""
        patience = self._options.patience
        return patience is not None and over_optimised(self.points, patience)

    def keep(self) -> Point:
        """Put the weights of the policy to keep in place, and return its measurement."""
        if self._options.keep == "last":
            return self.points[-1]
        self._policy.load_state_dict(self._best)
        return best_point(self.points)

    def state_dict(self) -> dict[str, Any]:
        return {"points": [asdict(point) for point in self.points], "best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points = [Point(**point) for point in state["points"]]
        self._best = dict(state["best"])


def point_metrics(point: Point) -> dict[str, float]:
    """A measurement as metrics `ppo/track_*`."""
    return {f"ppo/track_{name}": getattr(point, name) for name in ("proxy", "gold", "kl")}
