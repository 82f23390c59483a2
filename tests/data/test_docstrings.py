"""First sentences and code without its docstring, on hand-written sources."""

from __future__ import annotations

import ast
import textwrap

import pytest

from rlaif.data.docs.docstrings import SentenceFilter, content_words, documented_functions, first_sentence

LIMITS = SentenceFilter(max_prompt_chars=450, min_reference_words=4, max_reference_words=24)


def _found(source: str, limits: SentenceFilter = LIMITS) -> dict[str, tuple[str, str]]:
    rows = documented_functions(textwrap.dedent(source), limits)
    return {row.qualname: (row.code, row.sentence) for row in rows}


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sum of the parts.", "Return the sum of the parts."),
        ("return the sum of the parts", "Return the sum of the parts."),
        ("Return the sum\n    of the parts.  Then more.\n\n    And more.", "Return the sum of the parts."),
        ("Join paths, e.g. two of them. Second.", "Join paths, e.g. two of them."),
        ("Scale by 1.5 at most. Second.", "Scale by 1.5 at most."),
        ("Call :meth:`~pkg.Thing.run` on ``items``.", "Call `run` on `items`."),
        ("Copy *source* over **target** now.", "Copy source over target now."),
        ("Read a file.\n:param path: where", "Read a file."),
        ("Read a file.\nArgs:\n    path: where", "Read a file."),
        ("Read the user\u2019s file.", "Read the user's file."),
    ],
)
def test_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


@pytest.mark.parametrize(
    "docstring",
    [
        "",
        "Heading\n-------\n\nText.",
        "Return one of the following:",
        "Deprecated, use the other one.",
        "See the base class for details.",
        "Test that parsing works well.",
        "Returns self for chaining calls.",
        "Fetch https://example.org/page and parse it.",
        "Run it::\n\n    code",
        ">>> f(1)\n2",
        "Unbalanced `quote in the text.",
        "Return the na\u00efve sum of parts.",
        "``code`` first is no sentence.",
        "Return x -> y for the pair.",
    ],
)
def test_no_usable_sentence(docstring):
    assert first_sentence(docstring) is None


def test_code_keeps_comments_and_loses_docstring_decorators_and_indent():
    found = _found(
        '''
        class Box:
            @property
            def total_weight(self) -> float:
                """Return the total weight of all items.

                Longer story.
                """

                # heavy ones first
                items = sorted(self.items)
                weight = sum(items)
                return weight
        '''
    )
    code = (
        "def total_weight(self) -> float:\n"
        "    # heavy ones first\n"
        "    items = sorted(self.items)\n"
        "    weight = sum(items)\n"
        "    return weight"
    )
    assert found == {"Box.total_weight": (code, "Return the total weight of all items.")}


BODY = "\n    total = 0\n    for part in parts:\n        total += part\n    return total\n"
GOOD = f'def add(parts):\n    """Return the total of all parts."""{BODY}'


def test_the_good_example_passes():
    assert set(_found(GOOD)) == {"add"}
    ast.parse(_found(GOOD)["add"][0])


@pytest.mark.parametrize(
    "source",
    [
        'def add(parts):\n    """Return the total of all parts."""\n    return sum(parts)\n',  # one statement
        'def add(parts):\n    """Return the total of all parts."""\n    pass\n',
        'def add(parts):\n    """Return the total of all parts."""\n',
        GOOD.replace("return total", "raise NotImplementedError"),
        GOOD.replace("return total", "raise NotImplementedError('add')"),
        GOOD.replace("def add", "def __add__"),
        GOOD.replace("def add", "def test_add"),
        GOOD.replace("Return the total of all parts.", "Total."),  # too few words
        GOOD.replace("the total of all parts", "a purple elephant beside mountains"),  # not about the code
        GOOD.replace("total = 0", "# Return the total of all parts.\n    total = 0"),  # gives it away
        GOOD.replace("total = 0", "def inner():\n        'Add up.'\n        return 1\n    total = 0"),
        GOOD.replace("total = 0", "total = '\u00e9'"),
        GOOD.replace("total = 0", "total = '" + "x" * 450 + "'"),
        "def outer():\n" + textwrap.indent(GOOD, "    ") + "    return add\n",
    ],
)
def test_left_out(source):
    assert set(_found(source)) == set()


def test_second_definition_of_a_name_is_left_out_and_conditional_ones_are_seen():
    later = GOOD.replace("total", "amount")
    found = _found(f"if True:\n{textwrap.indent(GOOD, '    ')}else:\n{textwrap.indent(later, '    ')}")
    assert found["add"][1] == "Return the total of all parts."


def test_character_limit_is_inclusive():
    size = len(_found(GOOD)["add"][0])
    assert "add" in _found(GOOD, SentenceFilter(size, 4, 24))
    assert "add" not in _found(GOOD, SentenceFilter(size - 1, 4, 24))


def test_word_limits_are_inclusive():  # "Return the total of all parts." has six words
    assert "add" in _found(GOOD, SentenceFilter(450, 6, 6))
    assert "add" not in _found(GOOD, SentenceFilter(450, 7, 9))
    assert "add" not in _found(GOOD, SentenceFilter(450, 1, 5))


def test_content_words():
    assert content_words("Return the sum of `total_weight`, if any.") == ["return", "sum", "total", "weight"]
