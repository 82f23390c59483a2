"""Documented functions of Python source: (code without its docstring, first sentence of the docstring).

Source is read with `ast`; nothing is imported or run.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

MIN_STATEMENTS = 3
"""Statements that a body must have, so that there is something to describe."""

MIN_SHARED_STEMS = 1 / 3
"""Share of the sentence's content words that the code must mention: weeds out remarks about other things."""

_STOP_WORDS = (
    "a an and any are as at be been being but by can could do does for from given had has have how if in "
    "into is it its may might must no not of on one only or other otherwise over so some such than that the "
    "their them then there these they this those to up use used using was we were what when where whether "
    "which while who will with within without would you your"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())

_SKIPPED_SECTION = re.compile(
    r"^\s*(>>>|\.\. |:\w|@\w|[*+-] |(args?|arguments|parameters?|params|returns?|raises|yields?|examples?|notes?|"
    r"input|output|usage|see also)\s*:?\s*$)",
    re.IGNORECASE,
)
_UNDERLINE = re.compile(r"^\s*([-=~^*#\"])\1{2,}\s*$")
_ROLE = re.compile(r":(?:[a-z]+:)*[a-z]+:`([^`]+)`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^>`]*>`_{0,2}")
_EMPHASIS = re.compile(r"(?<![\w*`])\*{1,2}([A-Za-z_]\w*)\*{1,2}(?![\w*`])")
_SENTENCE_END = re.compile(r"[.!?](?=\s)")
_SHORT_FORMS = "e.g i.e etc vs cf eq eqn fig no approx resp al w.r.t a.k.a ca incl viz sec ch"
_ABBREVIATIONS = frozenset(_SHORT_FORMS.split())
_UNWANTED = re.compile(
    r"https?:|www\.|>>>|::|:\w+:|\\|\||[{}@<>=~#$^]|: |\bTODO\b|\bFIXME\b|\bXXX\b|\bPEP \d|\bRFC\b|\.\.\.|"
    r"\b(deprecated|docstring|copied from|adapted from|see|backwards? compat\w*|this (class|module|"
    r"test|function is|method is|method was))\b",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r"^(see|tests?|testing|same as|deprecated|alias|refer|notes?|warning|example|usage|todo|hack|"
    r"overrid\w+|overloaded|inherit\w*|implement\w*|returns? self|wrapper|thin|equivalent|based on|like|"
    r"just like|similar to|convenience|shortcut|backend|dummy|stub|no-?op|not|private|internal|public|helper|"
    r"called|callback|hook|handlers?|handle\w*|used|utility|abstract|default|do|does|main|entry|constructor|"
    r"initiali[sz]\w*|init|set-?up|mixin|property|getter|setter|forward pass|function|method|subroutine|"
    r"an?|the|this|these|if|when|we|for|in|it|you|here|unless|since|because|should|only|true|false|some)\b",
    re.IGNORECASE,
)
_PUNCTUATION = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-"}
)
_WORD = re.compile(r"[A-Za-z]+")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


@dataclass(frozen=True)
class SentenceFilter:
    """Which rows are kept: by characters of the code and words of the sentence (bounds included)."""

    max_prompt_chars: int
    min_reference_words: int
    max_reference_words: int


@dataclass(frozen=True)
class DocumentedFunction:
    """A function: its code without docstring and decorators, and the author's sentence about it."""

    qualname: str
    code: str
    sentence: str


def documented_functions(source: str, limits: SentenceFilter) -> Iterator[DocumentedFunction]:
    """Functions and methods of a module's `source` that pass the filters, in order of appearance.

    Nested functions and special methods are left out. Raises SyntaxError (or ValueError for null bytes) if the
    source does not parse.
    """
    lines = source.splitlines()
    seen: set[str] = set()
    for qualname, node in _functions(ast.parse(source).body, ""):
        if qualname in seen:
            continue
        sentence = _described_by(node, limits)
        code = _code_without_docstring(node, lines, limits.max_prompt_chars) if sentence else None
        if sentence and code and _tells_about(sentence, code):
            seen.add(qualname)
            yield DocumentedFunction(qualname, code, sentence)


def _functions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, FunctionNode]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, FunctionNode):
            special = node.name.startswith("__") and node.name.endswith("__")
            if not special and not node.name.lower().lstrip("_").startswith("test"):
                yield f"{prefix}{node.name}", node
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from _functions(node.body, prefix)
            yield from _functions(getattr(node, "orelse", []), prefix)


def _described_by(node: FunctionNode, limits: SentenceFilter) -> str | None:
    docstring = ast.get_docstring(node, clean=False)
    if docstring is None or len(node.body) < 2:
        return None
    # The cheap bound first: most functions are too long, and then nothing else need be read.
    if (node.end_lineno or 0) - node.body[1].lineno > limits.max_prompt_chars // 8:
        return None
    sentence = first_sentence(docstring) if _real_statements(node) >= MIN_STATEMENTS else None
    words = len((sentence or "").split())
    return sentence if limits.min_reference_words <= words <= limits.max_reference_words else None


def _real_statements(node: FunctionNode) -> int:
    """Statements of the body; 0 for a stub, and if a nested docstring would give the answer away."""
    count = 0
    for statement in node.body[1:]:
        for part in ast.walk(statement):
            if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
                return 0
            if isinstance(part, ast.Raise) and _raised(part) == "NotImplementedError":
                return 0
            if isinstance(part, ast.stmt) and not isinstance(
                part, ast.Pass | ast.Import | ast.ImportFrom | ast.Global | ast.Nonlocal
            ):
                count += 1
    return count


def _raised(node: ast.Raise) -> str | None:
    error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    return error.id if isinstance(error, ast.Name) else None


def _code_without_docstring(node: FunctionNode, lines: list[str], max_chars: int) -> str | None:
    docstring, end = node.body[0], node.end_lineno or 0
    doc_first, doc_last = docstring.lineno, docstring.end_lineno or docstring.lineno
    if doc_first == node.lineno or node.body[1].lineno <= doc_last:
        return None
    kept = lines[node.lineno - 1 : doc_first - 1] + lines[doc_last:end]
    kept = [line.rstrip().expandtabs(4) for line in kept if line.strip()]
    indent = len(kept[0]) - len(kept[0].lstrip())
    # A line left of its `def` belongs to a multi-line string, which cannot be moved.
    if any(line[:indent].strip() for line in kept):
        return None
    code = "\n".join(line[indent:] for line in kept)
    return code if len(code) <= max_chars and code.isascii() else None


def first_sentence(docstring: str) -> str | None:
    """The first sentence of a docstring as one plain line that ends in a full stop.

    None if none can stand alone (a heading, a directive, an address, a remark to other developers, unbalanced markup).
    """
    lines: list[str] = []
    for line in inspect.cleandoc(docstring).splitlines():
        if _UNDERLINE.match(line):
            return None
        if not line.strip() or _SKIPPED_SECTION.match(line):
            break
        lines.append(line.strip())
    text = _plain(" ".join(lines))
    sentence = text[: _end_of_sentence(text)].strip()
    if not sentence or sentence[-1] in ":;,!?" or not _well_formed(sentence):
        return None
    sentence = sentence[0].upper() + sentence[1:].rstrip(". ") + "."
    return None if _UNWANTED.search(sentence) or _BOILERPLATE.match(sentence) else sentence


def _plain(text: str) -> str:
    """Without reStructuredText markup, on one line; code stays between single backticks."""
    text = _ROLE.sub(lambda match: f"`{match[1].split('<')[0].strip().lstrip('~!').split('.')[-1]}`", text)
    text = _LINK.sub(r"\1", text.replace("``", "`"))
    return " ".join(_EMPHASIS.sub(r"\1", text).translate(_PUNCTUATION).split())


def _end_of_sentence(text: str) -> int:
    for match in _SENTENCE_END.finditer(text):
        words_before = text[: match.start()].split()
        last = words_before[-1].lstrip("([").lower() if words_before else ""
        following = text[match.end() :].lstrip()[:1]
        if last not in _ABBREVIATIONS and not following.islower():
            return match.end()
    return len(text)


def _well_formed(sentence: str) -> bool:
    return (
        sentence.isascii()
        and sentence[0].isalpha()
        and sentence.count("`") % 2 == 0
        and sentence.count('"') % 2 == 0
        and sentence.count("(") == sentence.count(")")
        and sentence.count("[") == sentence.count("]")
        and "_ " not in sentence
    )


def content_words(text: str) -> list[str]:
    """Lower-case words that carry meaning (not stop words, at least three letters), in order."""
    words = (word.lower() for word in _WORD.findall(text))
    return [word for word in words if len(word) > 2 and word not in STOP_WORDS]


def _tells_about(sentence: str, code: str) -> bool:
    """Whether the code mentions enough of the sentence's words, and does not quote the sentence itself."""
    if sentence.rstrip(".").lower() in " ".join(code.replace("#", " ").lower().split()):
        return False
    stems = {word[:5] for word in content_words(sentence)}
    shared = stems & {part.lower()[:5] for part in _CAMEL.findall(code)}
    return len(shared) >= max(1, MIN_SHARED_STEMS * len(stems))
