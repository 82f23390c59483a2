"""The arms of an experiment file: written out under `arms:`, made by `grid:`, repeated by `repeat:`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from rlaif.errors import UserError
from rlaif.options.job import Options, SeedOptions
from rlaif.options.read import plain, read
from rlaif.options.rules import shown
from rlaif.stages.common.context import Context
from rlaif.stages.eval.round_robin import BASELINE
from rlaif.study.controls import CONTROLS
from rlaif.study.diagnosis import ROLES
from rlaif.tracking.glossary import unknown

ALL = "all"  # of `compare:`: every policy against every other
_BARE = re.compile(r"[\w./:+-]+")


@dataclass(frozen=True)
class Arm:
    """One arm: a context per value of `repeat:` (by name, such as `seeds.rm=1`; the empty name without any)."""

    name: str
    runs: Mapping[str, Context]

    @property
    def first(self) -> Context:
        return next(iter(self.runs.values()))


@dataclass(frozen=True)
class Curve:
    """Metrics `y` over `x`, a metric or a configuration key, with a line per value of the key `by`."""

    x: str
    y: tuple[str, ...]
    by: str | None

    @property
    def keys(self) -> tuple[str, ...]:
        """The axes that are configuration keys."""
        return tuple(name for name in (self.x, self.by) if name and "/" not in name)


def read_arms(ctx: Context) -> list[Arm]:
    """The experiment's arms, in its order. Raises UserError for an experiment that cannot be run."""
    arms = arm_overrides(plain(ctx.options.arms), plain(ctx.options.grid))
    repeats = combinations("repeat", _repeat(ctx.options))
    _check(ctx, list(arms), repeats)
    return [Arm(name, _runs(ctx, overrides, repeats)) for name, overrides in arms.items()]


def _repeat(options: Options) -> dict[str, Any]:
    """The seeds of `repeat:`, each key with `repeats` of them if that is given."""
    own: dict[str, Any] = plain(options.repeat)
    if options.repeats is None:
        return own
    if not own:
        raise UserError(
            f"repeats={options.repeats} has no meaning, since the experiment repeats nothing: write "
            "'repeat={seeds.rl: [0, 1]}' instead"
        )
    return dict.fromkeys(own, list(range(options.repeats)))


def arm_overrides(arms: Mapping[str, list[str]], grid: Mapping[str, Any]) -> dict[str, list[str]]:
    """Overrides by arm: those of `arms`, then a `key=value, key=value` per point of `grid`.

    Raises UserError for a factor that is not a list, and for a name that occurs twice.
    """
    points = [
        [f"{key}={_as_override(value)}" for key, value in point.items()]
        for point in (combinations("grid", grid) if grid else [])
    ]
    made = {", ".join(point): point for point in points}
    if twice := sorted(set(arms) & set(made)):
        raise UserError(f"arms has {twice[0]!r}, which grid makes too: rename it, or take it out")
    return {**arms, **made}


def combinations(node: str, factors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All combinations of the values of the factors under `node`; only the empty one without factors."""
    for key, values in factors.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{node}: {key} must be a list of values, not {values}: write {key}: [...]")
    return [dict(zip(factors, values, strict=True)) for values in product(*factors.values())]


def _as_override(value: Any) -> str:
    """A value in Hydra's grammar: words bare, other text quoted."""
    if isinstance(value, str) and not _BARE.fullmatch(value):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return shown(value)


def _runs(ctx: Context, overrides: Sequence[str], repeats: Sequence[Mapping[str, int]]) -> dict[str, Context]:
    """The arm's options (experiment, then command line, then its overrides) with each repeat's seeds."""
    assert ctx.compose is not None
    options = ctx.compose(overrides)
    runs = {}
    for repeat in repeats:
        seeds = plain(options.seeds) | {key.removeprefix("seeds."): seed for key, seed in repeat.items()}
        seeded = replace(options, seeds=read(SeedOptions, seeds, "seeds"))
        runs[", ".join(f"{key}={seed}" for key, seed in repeat.items())] = ctx.with_options(seeded)
    return runs


def _check(ctx: Context, arms: Sequence[str], repeats: Sequence[Mapping[str, int]]) -> None:
    until, pairs = ctx.options.until, plain(ctx.options.compare)
    if not arms:
        raise UserError("stage=compare needs an experiment: write experiments=NAME (a file in experiments/)")
    for key in repeats[0]:
        if key not in {f"seeds.{name}" for name in plain(ctx.options.seeds)}:
            raise UserError(f"repeat: {key} is not a seed: write one such as seeds.rm, or use grid for it")
        if ctx.options.seed is not None:
            raise UserError(
                f"seed={ctx.options.seed} has no effect on an experiment that repeats its arms: "
                f"write 'repeat={{{key}:[{ctx.options.seed}]}}' to choose their seeds"
            )
    if pairs == ALL:
        _check_all(ctx, arms, until)
        return
    if not isinstance(pairs, list):
        raise UserError(
            f"compare={shown(pairs)} is neither a list of pairs of arms nor all: write one of them"
        )
    for pair in pairs:
        _check_pair(pair, arms, until)
    if pairs and len(repeats) > 1:
        raise UserError(
            "compare takes a single policy of each arm in a pair: write compare: all, drop compare, or drop repeat"
        )


def _check_all(ctx: Context, arms: Sequence[str], until: str) -> None:
    """Raises UserError unless every arm's policy can meet every other's."""
    if until not in ("rl", "eval"):
        raise UserError(f"compare: all needs policies, but until={until}: write until: eval, or drop compare")
    if not ctx.task.test:
        raise UserError("compare: all needs test prompts to meet on: write a larger task.test_fraction")
    if BASELINE in arms:
        raise UserError(
            f"compare: all has the SFT policy play as {BASELINE}: name the arm {BASELINE} otherwise"
        )


def _check_pair(pair: Sequence[str], arms: Sequence[str], until: str) -> None:
    if len(pair) != 2 or set(pair) - set(arms):
        raise UserError(f"compare: {list(pair)} is not a pair of arms: write two of {', '.join(arms)}")
    if until not in ("rl", "eval"):
        raise UserError(
            f"compare needs policies, but until={until}: write until: rl or eval, or drop compare"
        )


def read_curve(ctx: Context) -> Curve | None:
    """The experiment's curve. Raises UserError for names that do not exist."""
    values = plain(ctx.options.curve)
    if not values:
        return None
    if not {"x", "y"} <= set(values) <= {"x", "y", "by"}:
        raise UserError(f"curve has the keys {', '.join(values)}: write x and y, and by for several lines")
    y = [values["y"]] if isinstance(values["y"], str) else values["y"]
    curve = Curve(values["x"], tuple(y), values.get("by"))
    _check_metrics("curve", [name for name in (curve.x, *curve.y) if "/" in name or name in curve.y])
    for key in curve.keys:
        if not has_key(ctx.options, key):
            raise UserError(f"curve: {key} is not a configuration key: write one such as rm.labels")
    return curve


def read_roles(ctx: Context, arms: Sequence[Arm]) -> dict[str, str]:
    """Arms of the diagnosis by role; empty without one. Raises UserError for roles or arms that do not exist."""
    roles: dict[str, str] = plain(ctx.options.diagnose)
    if not roles:
        return {}
    if set(roles) != set(ROLES):
        raise UserError(
            f"diagnose has the roles {', '.join(roles)}: name an arm for each of {', '.join(ROLES)}"
        )
    missing = sorted(set(roles.values()) - {arm.name for arm in arms})
    if missing:
        names = ", ".join(arm.name for arm in arms)
        raise UserError(f"diagnose: {missing[0]} is not an arm: write one of {names}")
    if ctx.options.until != "eval":
        raise UserError(f"diagnose needs judged policies, but until={ctx.options.until}: write until: eval")
    return roles


def read_controls(ctx: Context, arms: Sequence[Arm]) -> dict[str, str]:
    """The kind of each control arm, by name. Raises UserError for arms and kinds that do not exist."""
    controls: dict[str, str] = plain(ctx.options.controls)
    names = [arm.name for arm in arms]
    for name, kind in controls.items():
        if name not in names:
            raise UserError(f"controls: {name} is not an arm: write one of {', '.join(names)}")
        if kind not in CONTROLS:
            raise UserError(f"controls: {name}={kind} is not known: write one of {', '.join(CONTROLS)}")
    if controls and ctx.options.until != "eval":
        raise UserError(
            f"controls are judged by their responses, but until={ctx.options.until}: write until: eval or drop controls"
        )
    return controls


def read_tests(ctx: Context) -> list[str]:
    """The metrics under `test:`. Raises UserError for one that does not exist."""
    metrics: list[str] = list(ctx.options.test or ())
    _check_metrics("test", metrics)
    return metrics


def _check_metrics(key: str, names: Sequence[str]) -> None:
    missing = [name for name in names if name.count("/") != 1] or unknown(names)
    if missing:
        raise UserError(f"{key}: {missing[0]} is not a metric: write one such as rm/gold_accuracy")


def setting(arm: Context, key: str) -> Any:
    """The arm's value of a configuration key, for a group the name of its option; None if it has none."""
    value = node_of(arm.options, key)
    if not isinstance(value, dict):
        return value
    return next((value[key] for key in ("name", "kind", "algorithm") if key in value), value)


def has_key(options: Options, key: str) -> bool:
    """Whether there is a configuration key of this dotted name, whatever its value."""
    parent, _, name = key.rpartition(".")
    value = node_of(options, parent)
    return isinstance(value, dict) and name in value


def node_of(options: Options, key: str) -> Any:
    """The plain value at a dotted key (all options at the empty one); None if there is none."""
    value = plain(options)
    for name in filter(None, key.split(".")):
        value = value.get(name) if isinstance(value, dict) else None
    return value
