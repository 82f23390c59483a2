"""The reference pages, generated from what the program itself reads.

Keys come from the options' dataclasses, their defaults and meanings from the YAML files in conf/ and the comments in
them, metrics from the registry, and commands from the help text. Nothing here is written by hand twice.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import yaml

from rlaif.app.command.help import help_text
from rlaif.app.home import CODE, CONF, OPTIONAL
from rlaif.options.job import Options
from rlaif.options.read import all_rules, leaves, rules
from rlaif.options.rules import Anything, Choice, Number, Rule, Switch, Texts
from rlaif.tracking.glossary import Metric, entries

Values = Mapping[str, Any]
_KEY = re.compile(r"(?P<indent> *)(?P<key>[\w-]+):(?P<rest>.*)")
_TRAILING = re.compile(r"\s#\s+(.*)")
_LONGEST = 400  # characters of a default, beyond which it is not repeated
_LITERAL = re.compile(r"(?:true|false|null|auto)\b|[\w./]+(?::| \||, \w+ or| or )|\w*[^\w\s]")
"""How a meaning begins whose first word is a value and so keeps its case."""


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
    name = f'<a id="{metric.name}"></a>`{metric.name}`<br>{_prose(metric.label)}'
    better = {"up": "higher", "down": "lower", "none": ""}[metric.better]
    words = (metric.formula, metric.unit, metric.range, better, metric.interval or "")
    return name, *map(_prose, words)


def configuration_page() -> str:
    """Every key of every group, from the options' dataclasses."""
    parts = [
        "# Configuration",
        "`GROUP=OPTION` chooses an option of a group; `GROUP.KEY=VALUE` changes one setting of it. The first default is"
        " that of the option you get without choosing; `VALUE: OPTION` is that of another option, or of the only ones"
        " that have the key. `???` must be given, and `${KEY}` follows another key.",
    ]
    parts += [_group_section(name) for name in [*groups(), *OPTIONAL]]
    rows = list(_plain_rows())
    parts.append(_table("Without a group", ("key", "values", "default", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def _plain_rows() -> Iterator[tuple[str, ...]]:
    """The keys of no group: those of config.yaml, and those that a stage brings along."""
    files = [CONF / "config.yaml", *options_of("stage").values()]
    defaults: dict[str, Any] = {}
    comments: dict[str, str] = {}
    for file in files:
        defaults, comments = _merged(option_values(file), defaults), comments_of(file) | comments
    for key, rule in all_rules(Options).items():
        if key.split(".")[0] not in groups():
            yield _key_row(key, rule, _code(_at(defaults, key)), comments.get(key, ""))


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
    if group == "judge":
        parts.append(
            "As `labeler`: the same options, and the same keys. Without `judge=`, the labeler judges."
        )
    elif isinstance(own, type) and own.__doc__:
        parts.append(_first_paragraph(own.__doc__))
    if group != "judge" and list(files) != ["default"]:
        rows = [
            (f'<a id="{group}={name}"></a>`{group}={name}`', _option(file)) for name, file in files.items()
        ]
        parts.append(_table(None, ("option", "what it is"), rows))
    keys = list(_key_rows(group, own)) if isinstance(own, type) else []
    if isinstance(own, Anything):
        default = _code(option_values(files["default"]))
        keys = [_key_row(group, own, default, head_of(files["default"]))]
    if keys:
        parts.append(_table(None, ("key", "values", "default", "meaning"), keys))
    return "\n\n".join(parts)


def _option(file: Path) -> str:
    """What an option is, in its file's own words; a profile also says what it sets."""
    told = _prose(head_of(file))
    if file.parent.name != "profile":
        return told
    values = [f"`{key}={_yaml(value)}`" for key, value in leaves(option_values(file))]
    return f"{told} Sets {', '.join(values)}." if values else told


def _key_rows(group: str, own: type) -> Iterator[tuple[str, ...]]:
    files = options_of(group)
    first = _default_option(group)
    order = [first, *(name for name in files if name != first)]
    values = {name: option_values(files[name]) for name in order}
    comments = {name: _inherited_comments(files[name]) for name in order}
    told: set[str] = set()
    for key, rule in all_rules(own).items():
        parent = key.rpartition(".")[0]
        if parent and parent not in told and (above := comments[first].get(parent)) and group != "judge":
            yield f"`{group}.{parent}`", "", "", _prose(above)
        told.add(parent)
        have = [name for name in order if _at(values[name], key) is not _NOTHING]
        meaning = _meaning(group, {name: comments[name].get(key, "") for name in have}, first)
        if group == "judge":
            meaning = f"see [`labeler.{key}`](#labeler.{key})"
        default = _defaults({name: _at(values[name], key) for name in have}, first)
        yield _key_row(f"{group}.{key}", rule, default, meaning)


def _inherited_comments(file: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for base in _bases(file):
        found |= comments_of(base)
    return found


def _defaults(values: Mapping[str, Any], first: str) -> str:
    """The default, and which options have another one. A value that is the option's own name says nothing."""
    by_value: dict[str, list[str]] = {}
    for name, value in values.items():
        if name == first or value != name:
            by_value.setdefault(_code(value), []).append(name)
    parts = [code if first in names else f"{code}: {', '.join(names)}" for code, names in by_value.items()]
    return "<br>".join(parts)


def _meaning(group: str, comments: Mapping[str, str], first: str) -> str:
    """The default option's comment, and those of options that say something else."""
    by_text: dict[str, list[str]] = {}
    for name, text in comments.items():
        if text:
            by_text.setdefault(text, []).append(name)
    if len(by_text) == 1:
        return next(iter(by_text))
    parts = [
        text if first in names else f"With {_options(group, names)}: {text}"
        for text, names in by_text.items()
    ]
    return ". ".join(part.removesuffix(".") for part in parts)


def _options(group: str, names: Iterable[str]) -> str:
    return ", ".join(f"`{group}={name}`" for name in names)


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
            words = [" ".join(above).removesuffix("."), trailing[1] if trailing else ""]
            if any(words):
                found[".".join(key for _, key in path)] = ". ".join(filter(None, words))
            above = []
        else:
            above = []
    return found


def head_of(file: Path) -> str:
    """The comment that a file begins with."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if "@package" not in line]
    return " ".join(line.lstrip("# ").strip() for line in takewhile(lambda line: line.startswith("#"), lines))


def _key_row(key: str, rule: Rule, default: str, meaning: str) -> tuple[str, ...]:
    words = rule.words if isinstance(rule, Choice) else ()
    literal = _LITERAL.match(meaning) or re.split(r"\W", meaning)[0] in words
    told = meaning if literal or meaning.startswith("see [") else meaning[:1].upper() + meaning[1:]
    linked = told if told.startswith("see [") else _prose(told.removesuffix("."))
    return f'<a id="{key}"></a>`{key}`', _values(rule), default, linked


def _code(value: Any) -> str:
    if isinstance(value, dict) and len(_yaml(value)) > _LONGEST:
        return "as in its file"
    return "" if value is _NOTHING else f"`{_yaml(value)}`"


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


def _table(title: str | None, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *(tuple(map(_cell, row)) for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {title}\n\n{table}" if title else table


def _cell(text: str) -> str:
    """A bar would end the cell, in a code span too."""
    return text.replace("|", "\\|")


def _prose(text: str) -> str:
    """A comment as Markdown: what is between backticks is code, and no other character means anything."""
    parts = text.split("`")
    escaped = [re.sub(r"[*{}\[\]_]", r"\\\g<0>", html.escape(part, quote=False)) for part in parts[::2]]
    codes = [f"`{part}`" for part in parts[1::2]]
    return "".join(word for pair in zip(escaped, [*codes, ""]) for word in pair)


def _first_paragraph(docstring: str) -> str:
    return " ".join(docstring.split("\n\n")[0].split())
