"""A task's prompt texts: Jinja2 files that can be edited without touching code, checked when loaded.

A template set is a folder with `task.yaml` (polarity, cues), `pair.j2`, `question.j2`, `rationale.j2`, `prompt.j2`
(the layout), `score.j2`, `harm.j2`, three `likelihood_*.j2` pieces, `exemplars.yaml`, and `critique.j2` and
`revision.j2`, by which responses are revised. Every other `NAME.j2` is the preamble NAME. A file missing from the
folder is taken from the folder `_common` beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jinja2
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlaif.backends.fencing import fence, neutralise
from rlaif.errors import UserError
from rlaif.io import digest, from_yaml

Polarity = Literal["better", "worse"]

VARIABLES: dict[str, dict[str, Any]] = {
    "pair": {"context": "c", "response_1": "r", "response_2": "s"},
    "question": {},
    "rationale": {},
    "prompt": {
        "preamble": "p",
        "exemplars": [{"pair": "p", "rationale": "r", "verdict": "1"}],
        "pair": "p",
        "question": "q",
        "cue": "c",
        "rationale_cue": "r",
    },
    "score": {"context": "c", "response": "r", "detailed": True},
    "harm": {"context": "c", "response": "r", "first": "harmless", "second": "harmful"},
    "likelihood_forward": {"context": "c"},
    "likelihood_empty": {},
    "likelihood_reverse": {"response": "r"},
    "critique": {"principle": "p", "context": "c", "response": "r"},
    "revision": {"principle": "p", "context": "c", "response": "r", "critique": "k"},
}
"""The template files of a set and the variables that each may use, with sample values; a preamble has none."""

COMMON = "_common"
REVISING = ("critique", "revision")
"""The templates of critique and revision, which no label depends on."""

_TASK_KEYS = {
    "polarity": str,
    "chat": bool,
    "cue": str,
    "rationale_cue": str,
    "score_cue": str,
    "likelihood_chat": bool,
}


@dataclass(frozen=True)
class Exemplar:
    """A worked example; `preferred` is the **better** response, whatever the set's polarity."""

    context: str
    response_a: str
    response_b: str
    rationale: str
    preferred: Literal["a", "b"]


@dataclass(frozen=True)
class TemplateSet:
    """The loaded texts of one task.

    `polarity` says what the prompts ask for: the better response (or a quality score), or the worse one. `preambles`
    are the names of the texts with which a prompt may begin.
    """

    directory: Path
    polarity: Polarity
    chat: bool
    cue: str
    rationale_cue: str
    score_cue: str
    likelihood_chat: bool
    exemplars: tuple[Exemplar, ...]
    preambles: tuple[str, ...]
    texts: Mapping[str, str] = dataclasses.field(repr=False)
    templates: Mapping[str, jinja2.Template] = dataclasses.field(repr=False, compare=False)

    @classmethod
    def load(cls, directory: Path) -> TemplateSet:
        """Read and check a template folder; a UserError names the file (and line) that is wrong."""
        if not directory.is_dir():
            raise UserError(
                f"task.templates={directory.name}: there is no folder {directory}; make it, with the texts that differ"
                f" from {directory.parent / COMMON}"
            )
        names = _preambles(directory)
        files = [*(f"{name}.j2" for name in (*VARIABLES, *names)), "task.yaml", "exemplars.yaml"]
        return _loaded(directory, names, tuple((file, _read(_place(directory, file))) for file in files))

    def identity(self, preamble: str) -> str:
        """A digest of every text that may appear in prompts with this preamble and ask for a preference or a score."""
        others = {f"{name}.j2" for name in (*self.preambles, *REVISING, "harm")} - {f"{preamble}.j2"}
        return digest({name: text for name, text in self.texts.items() if name not in others}, 32)

    def revising(self) -> dict[str, str]:
        """The texts that prompts for critiques and revisions are made of."""
        return {name: self.texts[f"{name}.j2"] for name in REVISING}

    def place(self, name: str) -> Path:
        """The file that `name` was read from."""
        return _place(self.directory, name)

    def render(self, name: str, **values: Any) -> str:
        """Template `name` with `values`, without surrounding blank lines.

        Judged texts (`context`, `response`, `response_1`, `response_2`, `critique`) are neutralised here, whether or
        not the template fences them.
        """
        safe = {key: neutralise(value) if key in _JUDGED else value for key, value in values.items()}
        try:
            return self.templates[name].render(safe).strip("\n")
        except Exception as error:  # a template is a program: on some text it may raise anything
            shown = "".join(f", {key} {safe[key][:40]!r}" for key in sorted(_JUDGED & safe.keys()))
            why = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{self.place(f'{name}.j2')} cannot be filled in ({why}{shown}); correct it"
            ) from error


_JUDGED = frozenset({"context", "response", "response_1", "response_2", "critique"})


def toward_better(value: float, low: float, high: float, polarity: Polarity) -> float:
    """`value` on the scale [low, high] as evidence for the *better* response.

    The only place that knows what `polarity: worse` means: a prompt that asks which response is worse (or how bad one
    is) is answered on the mirrored scale. The function is its own inverse.
    """
    return value if polarity == "better" else low + high - value


@cache
def _loaded(directory: Path, preambles: tuple[str, ...], texts: tuple[tuple[str, str], ...]) -> TemplateSet:
    """The set of these texts, which a job asks for at every stage: parsed and compiled once."""
    given = dict(texts)
    return TemplateSet(
        directory=directory,
        **_task(_place(directory, "task.yaml"), given["task.yaml"]),
        exemplars=_exemplars(_place(directory, "exemplars.yaml"), given["exemplars.yaml"]),
        preambles=preambles,
        texts=given,
        templates=_compile(directory, {file: text for file, text in texts if file.endswith(".j2")}),
    )


def _place(directory: Path, name: str) -> Path:
    """The folder's own file, else the common one; if neither exists, where the folder's own should be."""
    own, common = directory / name, directory.parent / COMMON / name
    return common if common.exists() and not own.exists() else own


def _preambles(directory: Path) -> tuple[str, ...]:
    files = [*directory.glob("*.j2"), *(directory.parent / COMMON).glob("*.j2")]
    return tuple(sorted({file.stem for file in files} - VARIABLES.keys()))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: this file of the task's prompt templates is missing; write it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error


def _compile(directory: Path, texts: Mapping[str, str]) -> dict[str, jinja2.Template]:
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["fence"] = fence
    compiled = {}
    for file, text in texts.items():
        path, name = _place(directory, file), file.removesuffix(".j2")
        variables = VARIABLES.get(name, {})
        try:
            compiled[name] = environment.from_string(text)
            compiled[name].render(variables)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{path}, line {error.lineno}: {error.message}") from error
        except (jinja2.TemplateError, TypeError, AttributeError, ArithmeticError) as error:
            known = ", ".join(variables) or "none"
            raise UserError(f"{path}: {error}; the variables of this file are: {known}") from error
    return compiled


def _yaml(path: Path, text: str) -> Any:
    try:
        return from_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error


def _task(path: Path, text: str) -> dict[str, Any]:
    values = _yaml(path, text)
    if not isinstance(values, dict) or set(values) != set(_TASK_KEYS):
        raise UserError(f"{path}: write exactly these keys: {', '.join(_TASK_KEYS)}")
    for key, kind in _TASK_KEYS.items():
        if not isinstance(values[key], kind):
            raise UserError(f"{path}: {key} is {values[key]!r}; write a {kind.__name__}")
    if values["polarity"] not in ("better", "worse"):
        raise UserError(f"{path}: polarity is {values['polarity']!r}; write better or worse")
    for key in ("cue", "rationale_cue", "score_cue"):
        if not values[key] or values[key] != values[key].strip():
            raise UserError(
                f"{path}: {key} is empty or has spaces around it; the answer must follow it directly"
            )
    return values


def _exemplars(path: Path, text: str) -> tuple[Exemplar, ...]:
    rows = _yaml(path, text)
    names = [field.name for field in dataclasses.fields(Exemplar)]
    if not isinstance(rows, list):
        raise UserError(f"{path}: write a list of exemplars, each with {', '.join(names)}")
    for number, row in enumerate(rows, start=1):
        fit = (
            isinstance(row, dict) and set(row) == set(names) and all(isinstance(v, str) for v in row.values())
        )
        if not fit:
            raise UserError(
                f"{path}, exemplar {number}: write exactly these keys, as text: {', '.join(names)}"
            )
        if row["preferred"] not in ("a", "b"):
            raise UserError(f"{path}, exemplar {number}: preferred is {row['preferred']!r}; write a or b")
    return tuple(Exemplar(**{key: value.strip("\n") for key, value in row.items()}) for row in rows)
