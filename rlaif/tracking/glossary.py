"""The registry of metrics: what each means, how it is written, which direction is better, which tables show it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from rlaif.io import from_yaml

FILE = Path(__file__).with_name("glossary.yaml")

Format = Literal["number", "percent", "points", "signed", "duration", "text"]
Better = Literal["up", "down", "none"]


@dataclass(frozen=True)
class Metric:
    """One metric. `name` may contain `*`, which stands for one or more characters other than `/`.

    `interval`: how the 95% interval `<name>_ci_low`, `<name>_ci_high` is made; None if there is none.
    `neutral`: the value of chance, or of no difference.
    """

    name: str
    label: str
    formula: str
    unit: str
    range: str
    format: Format
    better: Better
    interval: str | None = None
    neutral: float | None = None

    def __post_init__(self) -> None:
        for key, known in (("format", get_args(Format)), ("better", get_args(Better))):
            value = getattr(self, key)
            if value not in known:
                raise ValueError(
                    f"{FILE.name}: {self.name} has {key}: {value}; write one of {', '.join(known)}"
                )


@dataclass(frozen=True)
class Shown:
    """A metric's line or column in a table. `label` and `note` are the table's words for it.

    `if_any`: no line if its value is 0. `versus`: `<base>` or `<base>_policy` beside `<base>_baseline`, with
    `<base>_gain`.
    """

    name: str
    group: str
    label: str
    note: str = ""
    if_any: bool = False
    versus: bool = False


@dataclass(frozen=True)
class Registry:
    """`glossary.yaml`, read: metrics by name, tables by name, and `arm`, how a metric of an arm is described."""

    metrics: Mapping[str, Metric]
    tables: Mapping[str, tuple[Shown, ...]]
    arm: Mapping[str, str]


def describe(name: str) -> Metric | None:
    """The metric of exactly this name, an end of an interval, the longest pattern that fits, or an arm's metric."""
    *arm, stage, own = name.split("/") if "/" in name else ("", name)
    if arm:
        found = describe(f"{stage}/{own}")
        return found and replace(found, **_arm_words("/".join(arm), found))
    return entries().get(name) or _end_of_interval(name) or _of_pattern(name)


def unknown(names: Iterable[str]) -> list[str]:
    """The `names` that the registry does not describe, sorted, each once."""
    return sorted({name for name in names if describe(name) is None})


def entries() -> Mapping[str, Metric]:
    """All metrics by name or pattern, in the file's order, without those derived from them (intervals, arms)."""
    return registry().metrics


def table(name: str, group: str | None = None) -> tuple[Shown, ...]:
    """What a table shows, in its order: everything, or one group."""
    return tuple(one for one in registry().tables[name] if group in (None, one.group))


def names(table_name: str, group: str | None = None) -> list[str]:
    """The metrics of a table, in its order."""
    return [one.name for one in table(table_name, group)]


def groups(table_name: str) -> list[str]:
    """The groups of a table, in its order."""
    return list(dict.fromkeys(one.group for one in table(table_name)))


@cache
def registry() -> Registry:
    """The registry, read once."""
    return read_registry(FILE)


def read_registry(file: Path) -> Registry:
    """Read a file like `glossary.yaml`. Raises ValueError for a table with a metric that is not in it."""
    loaded = from_yaml(file.read_text(encoding="utf-8"))
    metrics = {name: Metric(name, **fields) for name, fields in loaded["metrics"].items()}
    tables = {name: tuple(_shown(metrics, name, "", node)) for name, node in loaded["tables"].items()}
    return Registry(metrics, tables, loaded["arm"])


def _shown(metrics: Mapping[str, Metric], table_name: str, group: str, node: Any) -> Iterator[Shown]:
    """The lines of a table, or of one of its groups (`node`: names, names to words, or groups)."""
    for name, words in (dict.fromkeys(node) if isinstance(node, list) else node).items():
        if name in metrics:
            own = words if isinstance(words, dict) else {"label": words or metrics[name].label}
            yield Shown(name, group, **{"label": metrics[name].label} | own)
        elif group or "/" in name:
            raise ValueError(
                f"{FILE.name}: table {table_name} has {name}, which is none of the metrics above"
            )
        else:
            yield from _shown(metrics, table_name, name, words)


def _arm_words(arm: str, metric: Metric) -> dict[str, Any]:
    words = registry().arm
    return {key: words[key].format(arm=arm, label=metric.label, formula=metric.formula) for key in words}


def _end_of_interval(name: str) -> Metric | None:
    base, found, end = name.partition("_ci_")
    metric = describe(base) if found and end in ("low", "high") else None
    if metric is None or metric.interval is None:
        return None
    side = {"low": "lower end", "high": "upper end"}[end]
    return replace(
        metric,
        name=f"{metric.name}_ci_{end}",
        label=f"{metric.label}, {side}",
        formula=f"{side} of the 95% interval of {base} ({metric.interval})",
        interval=None,
        neutral=None,
    )


def _of_pattern(name: str) -> Metric | None:
    fits = [
        (metric, found)
        for metric in entries().values()
        if "*" in metric.name and (found := _compiled(metric.name).fullmatch(name))
    ]
    if not fits:
        return None
    metric, found = max(fits, key=lambda one: len(one[0].name))
    label = metric.label
    for part in found.groups():
        label = label.replace("*", part.replace("_", " "), 1)
    return replace(metric, label=label)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("([^/]+)".join(map(re.escape, pattern.split("*"))))
