"""Rows of single prompts that paired comparisons are made of."""

from __future__ import annotations

from rlaif.records import Comparison
from rlaif.stages.common.measures.text import rouge_l
from rlaif.stages.common.measures.win_rate import text_items


def _comparison(i: int, policy: str, baseline: str, reference: str | None) -> Comparison:
    return Comparison(f"c{i}", f"p{i}", "say", policy, baseline, "tie", 0.5, 3 + i, 7, reference)


def test_rows_hold_both_sides_and_what_another_prompt_would_give() -> None:
    rows = text_items(
        [
            _comparison(0, "open the file", "close the door", "open the file"),
            _comparison(1, "sum of values", "open the file", None),
            _comparison(2, "a b c", "open the file", "close the door"),
        ]
    )
    assert [row["id"] for row in rows] == ["c0", "c1", "c2"]
    assert [row["eval/length_policy"] for row in rows] == [3, 4, 5]
    assert rows[0]["eval/rouge_l_policy"] == 1.0
    assert rows[0]["eval/rouge_l_baseline"] == rouge_l("close the door", "open the file") < 1
    assert "eval/rouge_l_elsewhere" not in rows[0], "the next prompt has no reference"
    assert "eval/rouge_l_policy" not in rows[1]
    assert rows[1]["eval/rouge_l_elsewhere"] == rouge_l("open the file", "close the door")
    assert rows[2]["eval/rouge_l_elsewhere"] == 1.0, "the last one takes the first one's reference"
    assert text_items([]) == []
