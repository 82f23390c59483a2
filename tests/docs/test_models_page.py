"""The page of models says what the tests of all types say, no more and no less."""

from __future__ import annotations

import re
import sys

import pytest
from site_blocks import DOCS
from zoo.expected import FLOAT32, PATTERNS, PLAIN, REFUSED, UNSPLIT, WORKING

sys.path.append(str(DOCS))

from models_page import COLUMNS, PAGE, page

_LINE = re.compile(r"^\| `([\w-]+)`(, [^|]+)? \| (\w+) \| (.+) \|$", re.MULTILINE)


def _lines(text: str) -> dict[str, dict[str, str]]:
    """The cells of each type's line, by column."""
    names = [column.name for column in COLUMNS]
    return {
        kind + (variant or ""): dict(zip(names, cells.split(" | "), strict=True))
        for kind, variant, _, cells in _LINE.findall(text)
    }


def test_the_page_has_the_tests_own_types_and_how_each_runs() -> None:
    text = PAGE.read_text(encoding="utf-8")
    found = _lines(text)
    assert set(found) == set(WORKING)
    assert {name for name, cells in found.items() if cells["packed rows"] == "yes"} == set(PATTERNS)
    assert {name for name, cells in found.items() if cells["`top:K`"] == "no"} == set(UNSPLIT)
    assert {name for name, cells in found.items() if cells["bfloat16"] == "no"} == set(FLOAT32)
    assert all(cells["`full`"] == "yes" for cells in found.values())
    assert re.findall(r"`([\w-]+)`", text.partition("## Refused")[2]) == sorted(REFUSED)


@pytest.mark.parametrize("lost", ["packed pair", "decoding", "gradients", "bf16"])
def test_one_check_that_did_not_hold_is_a_no(lost: str) -> None:
    every = [check for column in COLUMNS for check in column.checks]
    held = {"sound": every, "lossy, tied": [check for check in every if check != lost], "odd": ["refused"]}
    families = {name: {"class": "SomeForCausalLM", "held": checks} for name, checks in held.items()}
    record = {"date": "2026-01-02", "versions": {"torch": "1", "transformers": "2"}, "families": families}
    found = _lines(page(record))
    assert set(found["sound"].values()) == {"yes"} and "odd" not in found
    no = [column.name for column in COLUMNS if lost in column.checks]
    assert [name for name, cell in found["lossy, tied"].items() if cell != "yes"] == no
    assert page(record).endswith("`odd`.\n")


def test_a_type_of_whole_texts_needs_no_packed_rows_and_one_that_is_not_split_says_so() -> None:
    every = ["plain rows", "split", "bit-equal", "gradients"]
    held = {"whole": every, "joint": [check for check in every if check != "split"]}
    families = {name: {"class": "SomeForCausalLM", "held": checks} for name, checks in held.items()}
    record = {"date": "2026-01-02", "versions": {"torch": "1", "transformers": "2"}, "families": families}
    found = _lines(page(record))
    assert {name: cells["`top:K`"] for name, cells in found.items()} == {"whole": "yes", "joint": "no"}
    assert {cells["packed rows"] for cells in found.values()} == {"apart"}


def test_every_plain_type_says_so() -> None:
    found = _lines(PAGE.read_text(encoding="utf-8"))
    assert all(found[name]["packed rows"] == "apart" for name in PLAIN)
