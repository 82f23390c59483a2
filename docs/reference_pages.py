"""The reference pages, generated from what the program itself reads.

Keys come from the options' dataclasses, their defaults and meanings from the YAML files in conf/ and the comments in
them, metrics from the registry, and commands from the help text. Nothing here is written by hand twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import yaml

from rlaif.app.command_line import OPTIONAL, about, help_text
from rlaif.app.home import CODE, CONF
from rlaif.options.job import Options
from rlaif.options.read import all_rules, rules
from rlaif.options.rules import Anything, Choice, Number, Rule, Switch, Texts
from rlaif.tracking.glossary import Metric, entries

Values = Mapping[str, Any]
_KEY = re.compile(r"(?P<indent> *)(?P<key>[\w-]+):(?P<rest>.*)")
_TRAILING = re.compile(r"\s#\s+(.*)")


def pages() -> dict[str, str]:
    """Markdown by path below docs/."""
    return {
        "reference/configuration.md": configuration_page(),
        "reference/metrics.md": metrics_page(),
        "reference/cli.md": cli_page(),
    }


def cli_page() -> str:
    """The help text, as `rlaif --help` prints it."""
    text = help_text(CODE, "rlaif").replace("$$", "$")
    head = "# Command line\n\n`rlaif --help` prints this. In a checkout, `python train.py` is the same command.\n"
    return f"{head}\n```text\n{text}\n```\n"


def metrics_page() -> str:
    """Every metric of the registry, by stage."""
    stages: dict[str, list[Metric]] = {}
    for metric in entries().values():
        stages.setdefault(metric.name.partition("/")[0], []).append(metric)
    parts = [
        "# Metrics",
        "A run's `summary.json`, its history and W&B hold these; `*` stands for part of a name. A metric with an"
        " interval has `NAME_ci_low` and `NAME_ci_high` beside it. A metric of an arm or of a head-to-head of a"
        " comparison has its name in front: `ARM/rm/accuracy`.",
    ]
    for stage, metrics in stages.items():
        rows = [_metric_row(metric) for metric in metrics]
        parts.append(_table(stage, ("metric", "formula", "unit", "range", "better", "interval"), rows))
    return "\n\n".join(parts) + "\n"


def _metric_row(metric: Metric) -> tuple[str, ...]:
    name = f'<a id="{metric.name}"></a>`{metric.name}`<br>{metric.label}'
    better = {"up": "higher", "down": "lower", "none": ""}[metric.better]
    return name, metric.formula, metric.unit, metric.range, better, metric.interval or ""


def configuration_page() -> str:
    """Every key of every group, from the options' dataclasses."""
    parts = [
        "# Configuration",
        "`GROUP=OPTION` chooses an option of a group; `GROUP.KEY=VALUE` changes one setting of it. Where a key's"
        " default is that of one option only, the option is named. `???` must be given.",
    ]
    parts += [_group_section(name) for name in [*groups(), *OPTIONAL]]
    plain = [key for key in all_rules(Options) if key.split(".")[0] not in groups()]
    comments = comments_of(CONF / "config.yaml")
    defaults = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    defaults["doctor"] = {"injection_pairs": 16}
    comments |= {
        "doctor.injection_pairs": comments_of(CONF / "stage" / "doctor.yaml")["doctor.injection_pairs"]
    }
    rows = [
        _key_row(key, all_rules(Options)[key], _at(defaults, key), comments.get(key, "")) for key in plain
    ]
    parts.append(_table("Without a group", ("key", "values", "default", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def groups() -> list[str]:
    """The groups in conf/, in the order of its defaults list."""
    config = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    names = [next(iter(entry)) for entry in config["defaults"] if isinstance(entry, dict)]
    return [name for name in names if " " not in name and name not in OPTIONAL]


def options_of(group: str) -> dict[str, Path]:
    """The options of a group, by name."""
    folder = (CODE if group in OPTIONAL else CONF) / group
    return {file.stem: file for file in sorted(folder.glob("*.yaml")) if not file.stem.startswith("_")}


def _group_section(group: str) -> str:
    files = options_of(group)
    parts = [f"## {group}"]
    own = rules(Options).get(group)
    if isinstance(own, type) and own.__doc__:
        parts.append(_first_paragraph(own.__doc__))
    if group == "judge":
        parts.append("Its options are those of `labeler`, and its keys are explained there.")
    elif list(files) != ["default"]:
        rows = [(f'<a id="{group}={name}"></a>`{group}={name}`', about(file)) for name, file in files.items()]
        parts.append(_table(None, ("option", ""), rows))
    rows = list(_key_rows(group, own)) if isinstance(own, type) else []
    if isinstance(own, Anything):
        rows = [_key_row(group, own, _NOTHING, head_of(files["default"]))]
    if rows:
        parts.append(_table(None, ("key", "values", "default", "meaning"), rows))
    return "\n\n".join(parts)


def _key_rows(group: str, own: type) -> Iterator[tuple[str, ...]]:
    files = options_of(group)
    first = _default_option(group)
    order = [first, *(name for name in files if name != first)]
    values = {name: option_values(files[name]) for name in order}
    comments: dict[str, str] = {}
    for name in reversed(order):
        for file in _bases(files[name]):
            comments |= comments_of(file)
    for key, rule in all_rules(own).items():
        holder = next((name for name in order if _at(values[name], key) is not _NOTHING), first)
        default = _at(values[holder], key)
        meaning = comments.get(key, "")
        if group == "judge":
            meaning = f"see [`labeler.{key}`](#labeler.{key})"
        yield _key_row(
            f"{group}.{key}", rule, default, meaning, "" if holder == first else f"{group}={holder}"
        )


def _default_option(group: str) -> str:
    config = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    chosen = {k: v for entry in config["defaults"] if isinstance(entry, dict) for k, v in entry.items()}
    return str(chosen["labeler"] if group == "judge" else chosen[group])


_NOTHING: Any = object()


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return _NOTHING
        values = values[part]
    return values


def _bases(file: Path) -> list[Path]:
    """The files of the same folder that `file` starts from, itself last."""
    found: list[Path] = []
    for entry in (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("defaults", ()):
        if isinstance(entry, str) and entry != "_self_":
            found += _bases(file.with_name(f"{entry}.yaml"))
    return [*found, file]


def option_values(file: Path) -> dict[str, Any]:
    """What an option sets, with what it inherits; references to other keys as they are written."""
    merged: dict[str, Any] = {}
    for base in _bases(file):
        merged = _merged(merged, yaml.safe_load(base.read_text(encoding="utf-8")) or {})
    merged.pop("defaults", None)
    return merged


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def comments_of(file: Path) -> dict[str, str]:
    """The comment of each dotted key: the lines above it, and the rest of its own line.

    A comment above several keys is the first one's; a blank line ends it. The file's own comment comes first and is
    nobody's.
    """
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    lines = file.read_text(encoding="utf-8").splitlines()
    for line in dropwhile(lambda line: line.startswith("#"), lines):
        if line.lstrip().startswith("#"):
            above.append(line.strip().lstrip("# "))
        elif match := _KEY.match(line):
            indent = len(match["indent"])
            path = [*((deep, key) for deep, key in path if deep < indent), (indent, match["key"])]
            trailing = _TRAILING.search(match["rest"])
            words = [" ".join(above), trailing[1] if trailing else ""]
            if any(words):
                found[".".join(key for _, key in path)] = ": ".join(filter(None, words))
            above = []
        else:
            above = []
    return found


def head_of(file: Path) -> str:
    """The comment that a file begins with."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))


def _key_row(key: str, rule: Rule, default: Any, meaning: str, holder: str = "") -> tuple[str, ...]:
    shown = "" if default is _NOTHING else f"`{_yaml(default)}`"
    default_cell = f"{shown} ({holder})" if holder else shown
    return (
        f'<a id="{key}"></a>`{key}`',
        _values(rule),
        default_cell,
        meaning[:1].upper() + meaning[1:].removesuffix("."),
    )


def _yaml(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and not value.strip():
        return json.dumps(value)
    if isinstance(value, str):
        return value.replace("\n", "\\n")
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _values(rule: Rule) -> str:
    if isinstance(rule, Choice):
        text = ", ".join(f"`{word}`" for word in rule.words)
    elif isinstance(rule, Number):
        text = rule.described
    else:
        text = {Switch: "`true`, `false`", Texts: "list of texts", Anything: "as described"}.get(
            type(rule), "text"
        )
    return f"{text}, `null`" if rule.null and not isinstance(rule, Anything) else text


def _table(title: str | None, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *(tuple(map(_cell, row)) for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {title}\n\n{table}" if title else table


def _cell(text: str) -> str:
    """On one line; a bar inside a code span would end the cell."""
    return text.replace("|", "&#124;") if "`" not in text else text.replace("|", "\\|")


def _first_paragraph(docstring: str) -> str:
    return " ".join(docstring.split("\n\n")[0].split())
