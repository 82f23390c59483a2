"""Panels of judges: by hand, and properties over random preferences."""

from __future__ import annotations

import numpy as np
import pytest

from rlaif.records import Pair, Preference
from rlaif.stages.common.measures.panel import mean_preference, panel, vote
from rlaif.stages.common.measures.win_rate import compare


def _said(name: str, p: float | None, state: str = "unparsed") -> Preference:
    return Preference(name, p, None, None, 1, "ok" if p is not None else state, "score")  # type: ignore[arg-type]


def _pairs(count: int) -> list[Pair]:
    return [Pair(str(i), f"q{i}", "prompt", "a", "b", "policy") for i in range(count)]


def test_by_hand() -> None:
    assert mean_preference([0.9, 0.6, None, 0.3]) == pytest.approx(0.6)
    assert mean_preference([None, None]) is None and vote([None], tie_margin=0.1) is None
    # Win, win, loss, unread: two votes of three. A tie is half a vote.
    assert vote([0.9, 0.7, 0.1, None], tie_margin=0.05) == pytest.approx(2 / 3)
    assert vote([0.9, 0.52], tie_margin=0.05) == pytest.approx(0.75)
    assert vote([0.9, 0.1], tie_margin=0.05) == 0.5
    # One sure judge outweighs two in the mean, and is outvoted by them.
    assert mean_preference([0.99, 0.4, 0.4]) > 0.5 > vote([0.99, 0.4, 0.4], tie_margin=0.02)


def test_a_majority_wins_by_any_lead() -> None:
    """Two of three is a lead of 1/6, which a wide margin of the judges' own verdicts must not turn into a tie."""
    pairs = _pairs(1)
    found, margin = panel("vote", pairs, [[_said("0", p)] for p in (0.9, 0.9, 0.1)], tie_margin=0.3)
    (verdict,) = compare(pairs, found, [(1, 1)], tie_margin=margin)
    assert verdict.outcome == "win"
    found, margin = panel("mean", pairs, [[_said("0", p)] for p in (0.9, 0.9, 0.1)], tie_margin=0.3)
    (verdict,) = compare(pairs, found, [(1, 1)], tie_margin=margin)
    assert verdict.outcome == "tie" and margin == 0.3


def test_what_no_judge_could_read_is_unread_and_why() -> None:
    pairs = _pairs(3)
    first = [_said("2", 0.7), _said("1", None, "failed"), _said("0", None, "failed")]
    second = [_said("0", None, "failed"), _said("1", None), _said("2", None)]
    found, _ = panel("mean", pairs, [first, second], tie_margin=0.02)
    assert [(own.pair_id, own.p_a, own.state) for own in found] == [
        ("0", None, "failed"),
        ("1", None, "unparsed"),
        ("2", 0.7, "ok"),
    ]
    with pytest.raises(ValueError, match="no preference for pair '2'"):
        panel("mean", pairs, [first, second[:2]], tie_margin=0.02)


@pytest.mark.parametrize("how", ["mean", "vote"])
def test_panels_do_not_hang_on_order_or_on_what_is_called_a(how) -> None:
    rng, pairs = np.random.default_rng(0), _pairs(40)
    judges = [
        [_said(pair.id, None if rng.random() < 0.2 else float(rng.random())) for pair in pairs]
        for _ in range(3)
    ]
    swapped = [
        [_said(own.pair_id, None if own.p_a is None else 1 - own.p_a) for own in given] for given in judges
    ]
    first, back, mirrored = (
        panel(how, pairs, given, tie_margin=0.1)[0] for given in (judges, judges[::-1], swapped)
    )
    for one, two, other in zip(first, back, mirrored, strict=True):
        assert one.p_a == pytest.approx(two.p_a) and one.state == two.state == other.state
        assert one.p_a is None or other.p_a == pytest.approx(1 - one.p_a)
    alone, _ = panel("mean", pairs, judges[:1], tie_margin=0.1)
    assert [own.p_a for own in alone] == [own.p_a for own in judges[0]]
