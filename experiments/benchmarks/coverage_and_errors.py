"""How often every interval covers the truth, and how often a table of equal arms tells two apart.

    python experiments/benchmarks/coverage_and_errors.py    # about ten minutes on one core; try --trials 100

Everything is simulated from a fixed seed: items in clusters (prompts with several pairs), wins, ties and scores, and
seeds that have their own spread. The intervals and tests are those behind every table of the reports. A cell's
standard error is 0.7 points at 1,000 trials. (This file is not called `statistics.py` because the scripts beside it
import the standard library's.)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from rlaif.stats import (
    Interval,
    clustered_sign_test,
    length_controlled_win_rate,
    linear_trend,
    mean_interval,
    paired_difference,
    paired_tests,
    proportion_interval,
)

Rng = np.random.Generator


@dataclass(frozen=True)
class Outcomes:
    """0/1 outcomes with ties: K clusters of `size` items, with mean `rate` before ties.

    `alike`: the correlation of a cluster's items. `spread`: the standard deviation of the seeds' own rates.
    `hard`: how far items shift the rate up or down, the same for all seeds.
    """

    n: int
    size: int = 1
    rate: float = 0.65
    alike: float = 0.3
    ties: float = 0.0
    seeds: int = 1
    spread: float = 0.0
    hard: float = 0.0

    @property
    def truth(self) -> float:
        return self.rate * (1 - self.ties) + 0.5 * self.ties

    @property
    def clusters(self) -> np.ndarray:
        return np.repeat(np.arange(self.n // self.size), self.size)

    def items(self, rng: Rng) -> np.ndarray:
        """The items' rates (n,), which all seeds and arms share."""
        count = self.n // self.size
        if self.size == 1:
            return self.rate + self.hard * rng.choice([-1, 1], count)
        strength = (1 - self.alike) / self.alike
        return np.repeat(rng.beta(self.rate * strength, (1 - self.rate) * strength, count), self.size)

    def draw(self, rng: Rng, items: np.ndarray | None = None) -> np.ndarray:
        """(S, n) outcomes."""
        own = self.items(rng) if items is None else items
        level = rng.normal(0, self.spread, (self.seeds, 1)) if self.seeds > 1 else 0.0
        won = (rng.random((self.seeds, self.n)) < np.clip(own + level, 0, 1)).astype(float)
        won[rng.random(won.shape) < self.ties] = 0.5
        return won


def covers(trials: int, draw: Callable[[Rng], Interval], truth: float, seed: int = 0) -> float:
    rng = np.random.default_rng(seed)
    found = [draw(rng) for _ in range(trials)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def proportions() -> Iterator[tuple[str, Outcomes]]:
    for n in (24, 50, 100, 500):
        yield f"n = {n}", Outcomes(n)
        yield f"n = {n}, rate 0.9", Outcomes(n, rate=0.9)
        yield f"n = {n}, half tied", Outcomes(n, ties=0.5)
    for n in (24, 60, 120, 480):
        yield f"n = {n}, pairs of one prompt", Outcomes(n, size=2)
        yield f"n = {n}, four of one prompt, a tenth tied", Outcomes(n, size=4, ties=0.1)


def seeded() -> Iterator[tuple[str, Outcomes]]:
    for n in (50, 200, 500):
        for seeds in (2, 3, 5):
            for spread in (0.0, 0.02, 0.08):
                yield (
                    f"n = {n}, {seeds} seeds, spread {spread}",
                    Outcomes(n, seeds=seeds, spread=spread, hard=0.25),
                )


def coverage(trials: int) -> None:
    print("| interval | case | covers |\n|---|---|---|")
    for name, case in proportions():
        rate = covers(trials, lambda rng, c=case: proportion_interval(c.draw(rng), c.clusters), case.truth)
        print(f"| proportion (alignment, accuracy, win rate) | {name} | {rate:.1%} |", flush=True)
    for name, case in seeded():
        rate = covers(trials, lambda rng, c=case: proportion_interval(c.draw(rng), c.clusters), case.truth)
        print(f"| proportion over seeds | {name} | {rate:.1%} |", flush=True)
    for n in (24, 100, 500):
        clusters = np.repeat(np.arange(n // 2), 2)

        def scores(rng: Rng, n: int = n) -> np.ndarray:
            return rng.gamma(2, 0.1, n // 2).repeat(2) + rng.normal(0, 0.05, n)

        rate = covers(trials, lambda rng, c=clusters, s=scores: mean_interval(s(rng), c), 0.2)
        print(
            f"| mean (ROUGE-L, length, reward), skewed, two of one prompt | n = {n} | {rate:.1%} |",
            flush=True,
        )
        case = Outcomes(n, size=2)

        def gap(rng: Rng, case: Outcomes = case) -> Interval:
            items = case.items(rng)
            return paired_difference(case.draw(rng, items), case.draw(rng, items), case.clusters)[0]

        print(f"| paired difference of outcomes | n = {n} | {covers(trials, gap, 0.0):.1%} |", flush=True)
        rate = covers(max(200, trials // 5), lambda rng, n=n: _controlled(rng, n), 0.6)
        print(f"| win rate at equal length | n = {n} | {rate:.1%} |", flush=True)
    for n in (6, 12, 48):
        rate = covers(trials, lambda rng, n=n: linear_trend(rng.normal(0, 1, n)), 0.0)
        print(f"| trend over iterations | {n} iterations | {rate:.1%} |", flush=True)


def _controlled(rng: Rng, n: int) -> Interval:
    """Preferences whose log-odds rise with the length difference; 60% at equal length."""
    gap = rng.normal(2, 8, n)
    chance = 1 / (1 + np.exp(-(np.log(0.6 / 0.4) + 1.0 * np.tanh(gap / 8))))
    won = (rng.random(n) < chance).astype(float)
    return length_controlled_win_rate(won, 20 + gap, np.full(n, 20.0), range(n), seed=0, resamples=300)


def errors(trials: int) -> None:
    print("\n| table of equal arms | told apart | best against each alone, Holm over those |\n|---|---|---|")
    for arms in (2, 5, 8, 12):
        for case in (
            Outcomes(60, hard=0.25),
            Outcomes(120, size=2),
            Outcomes(200, ties=0.2, hard=0.25),
            Outcomes(200, seeds=2, spread=0.02, hard=0.25),
            Outcomes(500, seeds=3, spread=0.02, hard=0.25),
        ):
            wrong, alone = _table_errors(trials if arms < 8 else max(200, trials // 4), arms, case)
            told = f"{arms} arms, n = {case.n}" + (f", {case.size} of one prompt" if case.size > 1 else "")
            told += (f", {case.seeds} seeds, spread {case.spread}" if case.seeds > 1 else "") + (
                ", a fifth tied" if case.ties else ""
            )
            print(f"| {told} | {wrong:.1%} | {alone:.1%} |", flush=True)
    rng = np.random.default_rng(3)
    flat = [
        clustered_sign_test(rng.choice([-1, 1], 40).repeat(4), np.repeat(np.arange(40), 4))
        for _ in range(trials)
    ]
    print(f"| win rate against 50%, 40 prompts of 4 alike | {np.mean(np.array(flat) < 0.05):.1%} | |")


def _table_errors(trials: int, arms: int, case: Outcomes) -> tuple[float, float]:
    rng, wrong, alone = np.random.default_rng(1), 0, 0
    for _ in range(trials):
        items = case.items(rng)
        tests = paired_tests({str(arm): case.draw(rng, items) for arm in range(arms)}, case.clusters)
        wrong += any(test.p_holm < 0.05 for test in tests)
        mine = [test.p_value for test in tests if test.first == tests[0].first]
        alone += len(mine) * min(mine) < 0.05
    return wrong / trials, alone / trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    args = parser.parse_args()
    coverage(args.trials)
    errors(max(200, args.trials // 2))


if __name__ == "__main__":
    main()
