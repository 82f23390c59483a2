"""Published schemas of preferences and of targets, each read into the columns of the task `custom`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from os.path import commonprefix
from typing import Any, TypeGuard

from rlaif.data.files.cells import kind_of, text_of
from rlaif.data.files.conversations import is_conversation, prompt_text, response_text, shared_turns
from rlaif.data.files.hh import ASSISTANT, sided, split_dialogue
from rlaif.data.files.labels import lettered, numbered
from rlaif.data.files.readers import Row
from rlaif.data.files.rows import Drops
from rlaif.data.files.tldr import comparison
from rlaif.errors import UserError
from rlaif.io import stable_uniform


@dataclass(frozen=True)
class Source:
    """What a schema's reader needs to know: the file's name, the prompt's column, the seed that assigns sides.

    `label` is the column of the verdicts in schemas that may have one; None if they are not wanted.
    """

    path: str
    prompt: str | None
    seed: int
    label: str | None = "label"


Values = Mapping[str, Any]
Read = Callable[[Sequence[Row], Source, Drops], list[Row]]


@dataclass(frozen=True)
class Schema:
    """A schema, recognised by its columns; `also` are columns that it reads if present.

    `named` are its names for columns of the task, for messages. `published` are its columns for an id and a subset,
    which are read unless the file or the user has others.
    """

    name: str
    columns: tuple[str, ...]
    also: tuple[str, ...]
    read: Read
    named: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)


def recognise(present: Sequence[str], prompt: str | None) -> Schema | None:
    """The first schema whose columns are all present; `prompt` is the prompt's column, if there is one."""
    found = {*present, *(["prompt"] if prompt else [])}
    return next((schema for schema in SCHEMAS if found.issuperset(schema.columns)), None)


def _pair(row: Row, seed: int, *texts: str) -> Row:
    """The pair of `texts` (prompt, better, worse); a hash decides which side the better one has."""
    return sided(row, stable_uniform("pair-side", seed, *texts) < 0.5, *texts)


# {chosen, rejected} of TRL and Anthropic, with or without a prompt, as texts or as messages.


def _preferences(rows: Sequence[Row], source: Source, drops: Drops) -> list[Row]:
    found = [pair for row in rows for pair in _preferred(row, source, drops)]
    if not found:
        raise UserError(
            f"{source.path}: in no row do 'chosen' and 'rejected' share a dialogue up to its last {ASSISTANT!r}; "
            "if the prompt has a column of its own, write task.columns.prompt=NAME."
        )
    return found


def _preferred(row: Row, source: Source, drops: Drops) -> list[Row]:
    """The pairs of a row; none if it is dropped. Lists of texts give each chosen against each rejected one."""
    where = f"{source.path}, {row.place}"
    chosen, rejected = row.values.get("chosen"), row.values.get("rejected")
    prompt = row.values.get(source.prompt) if source.prompt else None
    if prompt is not None and _is_texts(chosen) and _is_texts(rejected):
        sides = product(chosen, rejected)
        return [_pair(row, source.seed, *_prompted(prompt, *pair, where)) for pair in sides]
    if is_conversation(chosen) and is_conversation(rejected):
        texts = _conversations(prompt, chosen, rejected, where)
    elif isinstance(chosen, str) and isinstance(rejected, str):
        texts = _texts(prompt, chosen, rejected, where)
    else:
        held = f"chosen: {_held(chosen)}, rejected: {_held(rejected)}"
        raise UserError(
            f"{where}: columns 'chosen' and 'rejected' must both hold a dialogue as text, or both as messages, or, "
            f"beside a prompt, both a list of texts ({held})."
        )
    if isinstance(texts, str):
        drops.add(texts, where)
        return []
    if prompt is None and isinstance(chosen, str):
        # The same sides as under task=helpful and harmless.
        return [sided(row, stable_uniform("hh-side", source.seed, chosen, rejected) < 0.5, *texts)]
    return [_pair(row, source.seed, *texts)]


def _is_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _held(value: Any) -> str:
    return "messages" if is_conversation(value) else kind_of(value)


Texts = tuple[str, str, str]
"""Prompt, chosen and rejected."""


def _texts(prompt: Any, chosen: str, rejected: str, where: str) -> Texts | str:
    """The texts, or why the row is dropped."""
    if prompt is not None:
        return _prompted(prompt, chosen, rejected, where)
    split = split_dialogue(chosen, rejected)
    if split is not None:
        return split.prompt, split.chosen.strip(), split.rejected.strip()
    if ASSISTANT in chosen or ASSISTANT in rejected:
        return "diverging_rows_dropped"
    # TRL's implicit prompt: the shared beginning, up to a whole word.
    shared = commonprefix([chosen, rejected])
    shared = shared[: max(map(shared.rfind, " \n\t")) + 1]
    if not shared.strip():
        return "without_shared_prompt_dropped"
    return shared.strip(), chosen[len(shared) :].strip(), rejected[len(shared) :].strip()


def _prompted(prompt: Any, chosen: str, rejected: str, where: str) -> Texts:
    at = f"{where}: column 'prompt'"
    text = prompt_text(prompt, at) if is_conversation(prompt) else text_of(prompt, at)
    return text, chosen.strip(), rejected.strip()


def _conversations(prompt: Any, chosen: list[Any], rejected: list[Any], where: str) -> Texts | str:
    turns = shared_turns(chosen, rejected)
    begin = chosen[:turns]
    if any(message.get("role") == "user" for one in (chosen, rejected) for message in one[turns:]):
        return "diverging_rows_dropped"
    if is_conversation(prompt):
        # Some data sets repeat the prompt's messages in both conversations.
        begin = begin if begin[: len(prompt)] == prompt else [*prompt, *begin]
        text = prompt_text(begin, f"{where}: column 'prompt'")
    elif begin:
        text = prompt_text(begin, f"{where}: column 'chosen'")
        if isinstance(prompt, str) and prompt.strip() not in text:
            raise UserError(
                f"{where}: column 'prompt' is not what the messages of 'chosen' begin with; leave one of them "
                "out (task.columns.prompt=null)."
            )
    elif isinstance(prompt, str):
        text = prompt
    else:
        return "without_shared_prompt_dropped"
    better = response_text(chosen[turns:], f"{where}: column 'chosen'").strip()
    return text, better, response_text(rejected[turns:], f"{where}: column 'rejected'").strip()


def _openai(rows: Sequence[Row], source: Source, drops: Drops) -> list[Row]:
    found = []
    for row in rows:
        where = f"{source.path}, {row.place}"
        given, better, worse = (row.values.get(name) for name in OPENAI)
        messages = given.get("messages") if isinstance(given, Mapping) else None
        if not (is_conversation(messages) and is_conversation(better) and is_conversation(worse)):
            raise UserError(
                f"{where}: 'input' must hold messages, and 'preferred_output' and 'non_preferred_output' each a "
                "list of one message."
            )
        prompt = prompt_text(messages or (), f"{where}: column 'input'")
        sides = zip(OPENAI[1:], (better, worse), strict=True)
        texts = [response_text(one, f"{where}: column '{name}'").strip() for name, one in sides]
        found.append(_pair(row, source.seed, prompt, *texts))
    return found


OPENAI = ("input", "preferred_output", "non_preferred_output")


def _comparisons(rows: Sequence[Row], source: Source, drops: Drops) -> list[Row]:
    found = []
    for row in rows:
        where = f"{source.path}, {row.place}"
        read = comparison(row.values, where)
        if read is None or read.responses is None:
            drops.add("news_rows_dropped", where)
            continue
        a, b = read.responses
        values = {"prompt": read.prompt, "reference": read.reference, "response_a": a, "response_b": b}
        found.append(Row(row.place, {**values, "label": read.label}))
    if not found:
        raise UserError(f"{source.path}: no row is about a Reddit post.")
    return found


def _numbered(rows: Sequence[Row], source: Source, drops: Drops) -> list[Row]:
    """AlpacaEval's annotations (`preference`) and LLMBar's (`label`): 1 or 2 is the better output."""
    found = []
    for row in rows:
        where, values = f"{source.path}, {row.place}", row.values
        names = (source.label,) if source.label not in ("label", None) else ("preference", source.label)
        name = next((name for name in names if name in values), None)
        prompt = _instruction(values, where)
        a, b = (_text(values, column, where) for column in ("output_1", "output_2"))
        label = numbered(values[name], f"{where}: column '{name}'") if name else None
        found.append(Row(row.place, {"prompt": prompt, "response_a": a, "response_b": b, "label": label}))
    return found


def _judgebench(rows: Sequence[Row], source: Source, drops: Drops) -> list[Row]:
    """JudgeBench's pairs, with its verdicts (`A>B`) if there are any."""
    found = []
    for row in rows:
        where = f"{source.path}, {row.place}"
        texts = [_text(row.values, name, where) for name in JUDGEBENCH]
        verdict = row.values.get(source.label) if source.label else None
        label = lettered(verdict, f"{where}: column '{source.label}'")
        found.append(Row(row.place, {**dict(zip(PAIR, texts, strict=True)), "label": label}))
    return found


JUDGEBENCH = ("question", "response_A", "response_B")
PAIR = ("prompt", "response_a", "response_b")


def _targets(column: str) -> Read:
    """(prompt or instruction, target) rows: the target is the reference."""

    def read(rows: Sequence[Row], source: Source, drops: Drops) -> list[Row]:
        found = []
        for row in rows:
            where = f"{source.path}, {row.place}"
            prompt = _prompt(row, source, where) if source.prompt else _instruction(row.values, where)
            value = row.values.get(column)
            target = response_text(value, f"{where}: column '{column}'") if is_conversation(value) else value
            found.append(Row(row.place, {"prompt": prompt, "reference": target}))
        return found

    return read


def _messages(rows: Sequence[Row], source: Source, drops: Drops) -> list[Row]:
    found = []
    for row in rows:
        where, value = f"{source.path}, {row.place}: column 'messages'", row.values.get("messages")
        if not is_conversation(value):
            raise UserError(f"{where} must hold a list of messages with role and content.")
        answered = value[-1].get("role") == "assistant" and len(value) > 1
        prompt = prompt_text(value[:-1] if answered else value, where)
        reference = response_text(value[-1:], where) if answered else None
        found.append(Row(row.place, {"prompt": prompt, "reference": reference}))
    return found


def _unpaired(rows: Sequence[Row], source: Source, drops: Drops) -> list[Row]:
    """{prompt, completion, label}: a good completion of a prompt beside a bad one, each used once."""
    good: dict[str, list[tuple[Row, str]]] = defaultdict(list)
    bad: dict[str, list[tuple[Row, str]]] = defaultdict(list)
    for row in rows:
        where, label = f"{source.path}, {row.place}", row.values.get("label")
        if not (isinstance(label, bool) or label in (0, 1) or str(label).lower() in ("true", "false")):
            raise UserError(
                f"{where}: column 'label' is {label!r}, but must be true (good) or false (bad) for a single completion."
            )
        value, at = row.values.get("completion"), f"{where}: column 'completion'"
        text = response_text(value, at) if is_conversation(value) else text_of(value, at)
        side = good if label in (True, 1) or str(label).lower() == "true" else bad
        side[_prompt(row, source, where)].append((row, text.strip()))
    found = []
    for prompt in dict.fromkeys([*good, *bad]):
        matched = zip(good[prompt], bad[prompt], strict=False)
        found += [_pair(row, source.seed, prompt, better, worse) for (row, better), (_, worse) in matched]
        pairs = min(len(good[prompt]), len(bad[prompt]))
        for row, _ in [*good[prompt][pairs:], *bad[prompt][pairs:]]:
            drops.add("without_partner_dropped", f"{source.path}, {row.place}")
    if not found:
        raise UserError(
            f"{source.path}: no prompt has both a completion labelled true and one labelled false, so there is "
            "nothing to compare; give pairs (prompt, chosen, rejected), or leave the labels out with "
            "task.columns.label=null to use the completions as references."
        )
    return found


def _prompt(row: Row, source: Source, where: str) -> str:
    value, where = row.values.get(source.prompt or "prompt"), f"{where}: column '{source.prompt}'"
    return prompt_text(value, where) if is_conversation(value) else text_of(value, where)


def _instruction(values: Values, where: str) -> str:
    """Alpaca's instruction followed by its input, or whichever of the two there is."""
    parts = [_text(values, name, where) for name in ("instruction", "input") if values.get(name) is not None]
    return "\n\n".join(part for part in parts if part.strip())


def _text(values: Values, name: str, where: str) -> str:
    return text_of(values.get(name), f"{where}: column '{name}'")


SCHEMAS = (
    Schema("chosen and rejected (TRL, Anthropic)", ("chosen", "rejected"), ("prompt",), _preferences),
    Schema("OpenAI's preferences", OPENAI, (), _openai),
    Schema("comparisons of summaries", ("info", "summaries", "choice"), ("extra",), _comparisons),
    Schema(
        "AlpacaEval's annotations",
        ("instruction", "output_1", "output_2"),
        ("input", "preference", "label"),
        _numbered,
        {"prompt": "instruction"},
    ),
    Schema(
        "LLMBar's annotations",
        ("input", "output_1", "output_2"),
        ("preference", "label"),
        _numbered,
        {"prompt": "input"},
    ),
    Schema(
        "JudgeBench's pairs",
        JUDGEBENCH,
        ("label",),
        _judgebench,
        {"prompt": "question"},
        {"id": "pair_id", "subset": "source"},
    ),
    Schema("messages (TRL, OpenAI)", ("messages",), (), _messages),
    Schema("unpaired preferences (TRL)", ("prompt", "completion", "label"), (), _unpaired),
    Schema("prompt and completion (TRL)", ("prompt", "completion"), (), _targets("completion")),
    Schema("Alpaca's instructions", ("instruction", "output"), ("input",), _targets("output")),
)
"""The first that fits is used; none is for the task's own columns."""
