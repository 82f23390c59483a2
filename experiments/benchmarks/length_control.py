"""Our length-controlled win rate beside AlpacaEval 2's published one, on one table of preferences.

    python experiments/benchmarks/length_control.py --peer-python PEER_ENV/bin/python    # without it: our copy alone

The table is simulated from a fixed seed: seven models against one baseline on 1,500 prompts, with soft preferences that
depend on quality, on how a model's quality changes with the prompt's difficulty, on the log-ratio of the lengths (so
neither formula is the one that made the data), and on noise. The truth is the mean preference at equal length.

Both are logistic regressions of the preference, read at equal length (Dubois et al. 2024, arXiv:2404.04475; AlpacaEval
0.6.6, metrics/glm_winrate.py). Where they differ:

- Length: both take tanh(d / sd(d)) of the difference d, the deviation over the table's prompts; ours divides by n,
  theirs by n - 1. Lee et al. (2023) regress on the ratio of lengths and read at 1, the last column.
- Difficulty: theirs has a term for each instruction's difficulty, fitted once over a leaderboard of models and
  published as a file for its own 805 instructions. For any other prompts there is none, and ours has no such term.
  Here it is the one that made the table. Prediction averages over the prompts' difficulties.
- Regularisation: ours has none; theirs is L1 (by liblinear), its strength one of ten between 1e-4 and 1e4 by five-fold
  cross-validation over prompts, the intercept (`not_gamed_baseline`) penalised like the rest.
- Gamed baselines: theirs adds, at weight 0.2, the baseline's own answers to prompts that asked it to be brief or
  verbose, without an intercept for them, so that a length coefficient cannot stand for quality.
- Interval: ours is a bootstrap of the whole fit; theirs is the standard error of the predicted preferences, which are
  all equal without a difficulty term.

`minimal`, `noreg` and `v1` are AlpacaEval's own names: length alone, with difficulty, and with gamed baselines too (the
published number). Each is computed by a few lines of our own (`alpaca_eval`), and with --peer-python by the package.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from rlaif.stats import length_controlled_win_rate

SEED, PROMPTS, GAMED_WEIGHT = 20, 1500, 0.2
STRENGTHS = np.logspace(-4, 4, 10)
MODELS = {  # quality, its change with difficulty, log-ratio of lengths
    "equal, equal length": (0.0, 0.0, 0.0),
    "better, equal length": (0.5, 0.2, 0.0),
    "better, a third shorter": (0.5, 0.2, -0.4),
    "equal, twice as long": (0.0, 0.1, 0.7),
    "worse, three times as long": (-0.4, -0.3, 1.1),
    "better, half longer": (0.3, 0.0, 0.4),
    "worse, a quarter shorter": (-0.5, -0.2, -0.3),
}
GAMED = {"brief": (0.0, 0.0, -0.9), "verbose": (0.0, 0.0, 0.6)}
Array = np.ndarray


@dataclass(frozen=True)
class Model:
    """Preferences for a model over the baseline (n,), lengths of both in characters, and the truth at equal length."""

    p: Array
    length: Array
    baseline: Array
    truth: float

    @property
    def difference(self) -> Array:
        """The standardised difference, with AlpacaEval's sign (the baseline's length minus the model's)."""
        difference = self.baseline - self.length
        return difference / difference.std(ddof=1)


@dataclass(frozen=True)
class Table:
    """Models, gamed baselines, and each prompt's difficulty (n,)."""

    models: Mapping[str, Model]
    gamed: Mapping[str, Model]
    difficulty: Array


def simulated(seed: int, prompts: int) -> Table:
    rng = np.random.default_rng(seed)
    hard, baseline = rng.normal(size=prompts), rng.lognormal(6.9, 0.6, prompts).round()

    def model(quality: float, slope: float, ratio: float) -> Model:
        length = np.maximum(1, (baseline * np.exp(ratio + rng.normal(0, 0.35, prompts))).round())
        at_equal_length = 1.5 * (quality + slope * hard + rng.normal(0, 0.8, prompts))
        p = expit(at_equal_length + 1.8 * np.tanh(np.log(length / baseline)))
        return Model(p, length, baseline, float(expit(at_equal_length).mean()))

    models = {name: model(*values) for name, values in MODELS.items()}
    gamed = {name: model(*values) for name, values in GAMED.items()}
    return Table(models, gamed, hard)


def loss(weights: Array, x: Array, p: Array, share: Array) -> Array:
    """Log-loss per row of soft targets p."""
    score = x @ weights
    return share * (np.logaddexp(0, score) - p * score)


def fit(x: Array, p: Array, share: Array, strength: float) -> Array:
    """argmin |w|_1 + strength * sum of log-losses, w as the difference of two non-negative halves."""
    columns = x.shape[1]

    def objective(halves: Array) -> tuple[float, Array]:
        weights = halves[:columns] - halves[columns:]
        slope = strength * (share * (expit(x @ weights) - p)) @ x
        return halves.sum() + strength * loss(weights, x, p, share).sum(), np.concatenate(
            [1 + slope, 1 - slope]
        )

    options = {"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9}
    found = minimize(
        objective,
        np.zeros(2 * columns),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * 2 * columns,
        options=options,
    )
    return found.x[:columns] - found.x[columns:]


def alpaca_eval(name: str, model: Model, table: Table) -> float:
    """AlpacaEval's length-controlled win rate by the formula `name`, as described above."""
    gamed = list(table.gamed.values()) if name == "v1" else []
    difficulty = [] if name == "minimal" else [np.concatenate([table.difficulty] * (1 + len(gamed)))]
    own = np.concatenate([np.full(len(model.p), value) for value in (1.0, *[0.0] * len(gamed))])
    length = np.tanh(np.concatenate([each.difference for each in (model, *gamed)]))
    x = np.stack([length, *difficulty, own], axis=1)
    p = np.concatenate([each.p for each in (model, *gamed)])
    share = np.where(own == 1, 1.0, GAMED_WEIGHT / 2)
    folds = np.arange(len(p)) % 5
    scores = [
        np.mean(
            [
                loss(fit(x[folds != k], p[folds != k], share[folds != k], c), x, p, share)[folds == k].mean()
                for k in range(5)
            ]
        )
        for c in STRENGTHS
    ]
    weights = fit(x, p, share, float(STRENGTHS[int(np.argmin(scores))]))
    at_equal_length = x[: len(model.p)].copy()
    at_equal_length[:, 0] = 0
    return float(expit(at_equal_length @ weights).mean())


def by_ratio(model: Model) -> float:
    """Lee et al. (2023): a logistic regression on the ratio of lengths, read at 1."""
    x = np.stack([model.length / model.baseline - 1, np.ones(len(model.p))], axis=1)
    return float(expit(fit(x, model.p, np.ones(len(model.p)), 1e4)[1]))


def peer(table: Table, python: str) -> Any:
    """AlpacaEval's own numbers: {model: {formula: win rate}} and versions."""

    def plain(models: Mapping[str, Model]) -> dict[str, Any]:
        return {
            name: {"p": own.p.tolist(), "length": own.length.tolist(), "baseline": own.baseline.tolist()}
            for name, own in models.items()
        }

    data = {
        "models": plain(table.models),
        "gamed": plain(table.gamed),
        "difficulty": table.difficulty.tolist(),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.json"
        file.write_text(json.dumps(data))
        script = Path(__file__).with_name("peer_length_control.py")
        done = subprocess.run([python, str(script), str(file)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.rsplit("RESULT ", 1)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="interpreter of an environment with alpaca_eval")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    table = simulated(args.seed, args.prompts)
    theirs = peer(table, args.peer_python) if args.peer_python else None
    names = ("minimal", "noreg", "v1")
    heads = ["model", "raw", "truth", "ours", "95%", *names, "v1 - ours", "by ratio"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    apart = 0.0
    for name, model in table.models.items():
        clusters = list(range(len(model.p)))
        own = length_controlled_win_rate(model.p, model.length, model.baseline, clusters, seed=0)
        copied = {kind: alpaca_eval(kind, model, table) for kind in names}
        shown = theirs["rates"][name] if theirs else copied
        apart = max(apart, *(abs(shown[kind] - copied[kind]) for kind in names))
        cells = [f"{100 * value:.1f}" for value in (model.p.mean(), model.truth, own.estimate)]
        cells += [f"{100 * own.low:.1f} to {100 * own.high:.1f}"]
        cells += [f"{100 * shown[kind]:.1f}" for kind in names]
        cells += [f"{100 * (shown['v1'] - own.estimate):+.2f}", f"{100 * by_ratio(model):.1f}"]
        print("| " + " | ".join([name, *cells]) + " |")
    if theirs:
        print(f"\nThe package and our copy of its formulas differ by at most {100 * apart:.3f} points.")
        print(theirs["versions"])


if __name__ == "__main__":
    main()
