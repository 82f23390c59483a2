"""The task `tldr`: Reddit posts, human summaries of them, and human comparisons of summaries."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlaif.data.files.cells import kind_of, text_of
from rlaif.data.files.readers import HubPart, columns_of, read_rows
from rlaif.data.files.rows import Drops, Splitting, TaskRow, content_id, group_of, task_from_rows
from rlaif.data.report import columns_notes
from rlaif.errors import UserError
from rlaif.records import TaskData

SLIDER = range(1, 10)
"""Confidence of a comparison, two-sided: 1 = certainly the first summary, 9 = certainly the second."""

AUTHOR = "ref"
"""The `policy` of a summary that the post's author wrote."""

_PROMPT = re.compile(
    r"SUBREDDIT:\s*r/(?P<subreddit>\S*)\s+TITLE:(?P<title>.*?)\nPOST:(?P<post>.*?)(\nTL;DR:)?\s*", re.DOTALL
)

TARGETS = ("label", "summary", "completion")
"""Columns, besides `prompt`, in which published copies of the posts keep the summary."""

KNOWN = ("info", "summaries", "choice", "extra", "subreddit", "title", "post", "prompt", *TARGETS)

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Content:
    """A row's content. `confidence` is the slider's position if the row is a comparison that has one."""

    prompt: str
    reference: str | None
    responses: tuple[str, str] | None = None
    label: float | None = None
    confidence: int | None = None


def load_tldr(
    *, paths: Sequence[str], hub: HubPart, gold_confidence: Sequence[int], splitting: Splitting
) -> TaskData:
    """The `tldr` task: prompt = subreddit, title and post; reference = a human summary.

    Args:
        paths: files in one of the published schemas, or hub ids: comparisons (`info summaries choice extra`), posts
            by column (`subreddit title post summary`), or posts as prompts (`prompt` with `label`, `summary` or
            `completion`).
        hub: which part of a hub data set is read.
        gold_confidence: slider positions whose comparisons serve as gold (Lee et al. 2023: 1, 2, 8, 9); all others
            are only for training. The slider has two sides: `>= 8` would keep only one of them.

    A comparison's reference is the author's own summary if it is one of the two. Comparisons of news articles (the
    data set has some) are dropped and counted. Raises UserError, naming file, row and column, for anything that
    cannot be read as intended.
    """
    sure = frozenset(gold_confidence)
    if not sure or not sure <= set(SLIDER):
        raise UserError(
            f"task.gold_confidence={list(gold_confidence)} must list slider positions from {SLIDER[0]} to "
            f"{SLIDER[-1]}, such as [1,2,8,9]."
        )
    drops = Drops(Counter({"news_rows_dropped": 0}))
    columns: dict[str, None] = {}
    posts = [post for path in paths for post in _read(path, hub, drops, columns)]
    if not posts:
        raise UserError(f"{', '.join(paths)}: no row is about a Reddit post, and task=tldr needs some.")
    repeats: Counter[str] = Counter()
    rows = [_task_row(content, sure, repeats, place) for content, place in posts]
    notes = columns_notes("posts and comparisons of summaries", columns, KNOWN)
    return task_from_rows("tldr", rows, splitting, drops=drops, notes=notes)


def _task_row(content: Content, sure: frozenset[int], repeats: Counter[str], place: str) -> TaskRow:
    texts = content.prompt, content.reference, content.responses
    own, group, trusted = content_id(texts, repeats), group_of(content.prompt), content.confidence in sure
    return TaskRow(own, group, *texts, content.label, trusted, place)


def _read(path: str, hub: HubPart, drops: Drops, columns: dict[str, None]) -> Iterable[tuple[Content, str]]:
    """The posts of one file or hub data set, each with its place; `drops` counts rows about something else."""
    raw = read_rows(path, hub)
    present = columns_of(raw)
    columns |= dict.fromkeys(present)
    parse = _parser(present, path)
    for row in raw:
        place = f"{path}, {row.place}"
        content = parse(row.values, place)
        if content is None:
            drops.add("news_rows_dropped", place)
        else:
            yield content, place


def _parser(columns: Sequence[str], path: str) -> Callable[[Values, str], Content | None]:
    """The reader of the schema that has these columns."""
    if {"info", "summaries", "choice"} <= set(columns):
        return comparison
    if {"subreddit", "title", "post", "summary"} <= set(columns):
        return _posted
    for target in TARGETS:
        if {"prompt", target} <= set(columns):
            return partial(_prompted, target=target)
    raise UserError(
        f"{path} has the columns {', '.join(columns)}; task=tldr reads info, summaries and choice "
        "(comparisons), subreddit, title, post and summary (posts), or prompt and label (posts)."
    )


def _posted(values: Values, where: str) -> Content:
    return Content(_post(values, where), _text(values, "summary", where) or None)


def _prompted(values: Values, where: str, target: str) -> Content:
    """A published prompt is taken apart, so that a post has the same text (and split) whatever its file."""
    found = _PROMPT.fullmatch(_text(values, "prompt", where))
    if found is None:
        raise UserError(f"{where}: column 'prompt' must read SUBREDDIT: r/..., TITLE: ..., POST: ..., TL;DR:")
    return Content(_post(found.groupdict(), where), _text(values, target, where) or None)


def comparison(values: Values, where: str) -> Content | None:
    """A row of `info`, `summaries`, `choice` and `extra`; None if it is about something other than a post."""
    info = _mapping(values.get("info"), "info", where)
    if info.get("post") is None and info.get("article") is not None:
        return None
    summaries, choice = values.get("summaries"), values.get("choice")
    if not isinstance(summaries, list) or len(summaries) != 2:
        raise UserError(f"{where}: column 'summaries' must hold two summaries.")
    if isinstance(choice, bool) or choice not in (0, 1):
        raise UserError(f"{where}: column 'choice' is {choice!r}, but the better summary is number 0 or 1.")
    first, second = (_text(_mapping(one, "summaries", where), "text", where) for one in summaries)
    authored = [one["text"].strip() for one in summaries if one.get("policy") == AUTHOR]
    return Content(
        _post(info, where),
        next(iter(authored), None),
        (first, second),
        float(choice == 0),
        _confidence(values.get("extra"), where),
    )


def _confidence(extra: Any, where: str) -> int | None:
    value = None if extra is None else _mapping(extra, "extra", where).get("confidence")
    if value is not None and (isinstance(value, bool) or value not in SLIDER):
        raise UserError(
            f"{where}: extra.confidence is {value!r}, but the slider has positions {SLIDER[0]} to {SLIDER[-1]}."
        )
    return value


def _post(values: Values, where: str) -> str:
    """The prompt's text without its cue, in the query format of Huang et al. 2024 (arXiv:2403.17031)."""
    subreddit, title, post = (_text(values, name, where) for name in ("subreddit", "title", "post"))
    return f"SUBREDDIT: r/{subreddit.removeprefix('r/')}\n\nTITLE: {title}\n\nPOST: {post}"


def _text(values: Values, name: str, where: str) -> str:
    return text_of(values.get(name), f"{where}: '{name}'").strip()


def _mapping(value: Any, name: str, where: str) -> Values:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: column '{name}' must hold objects, not {kind_of(value)}.")
    return value
