"""Readout `reference`: which response is nearer to the author's, by similarities that are known here."""

from __future__ import annotations

import math

import pytest
from labeler_cases import options, pair, scripted, templates

from rlaif.backends.base import SimilarityScore
from rlaif.errors import UserError
from rlaif.labelers import Labeler, LabelStore


class Table:
    """Similarities by response; everything else that it is asked about is remembered."""

    def __init__(self, known):
        self.known, self.asked = known, []

    def identity(self):
        return {"engine": "table"}

    def similarities(self, items):
        self.asked += items
        return [SimilarityScore(self.known[text], tokens_in=2) for text, _ in items]


KNOWN = {"near": 0.9, "far": 0.3, "opposite": -1.0}


def labeler(backend, store=None, **changes):
    changes = {"readout_kind": "reference", "readout_temperature": 0.1} | changes
    return Labeler(backend, templates(), options(**changes), store=store, progress=None)


def of(a, b, number=0, reference="the author's"):
    return pair(number, response_a=a, response_b=b, reference=reference)


def test_the_nearer_response_is_preferred_by_the_stated_temperature():
    table = Table(KNOWN)
    result = labeler(table).label([of("near", "far"), of("far", "near", 1), of("near", "near", 2)])
    p = 1 / (1 + math.exp(-(0.9 - 0.3) / 0.1))
    assert [x.p_a for x in result.preferences] == [pytest.approx(p), pytest.approx(1 - p), 0.5]
    assert {x.provenance for x in result.preferences} == {"reference"}
    assert set(table.asked) == {("near", "the author's"), ("far", "the author's")}, "no prompt, no position"
    assert len(result.judgements) == 3 and {x.order for x in result.judgements} == {"ab"}


def test_without_a_reference_there_is_no_verdict():
    table = Table(KNOWN)
    result = labeler(table).label([of("near", "far", reference=None), of("near", "far", 1)])
    assert [x.p_a is None for x in result.preferences] == [True, False]
    assert result.judgements[0].state == "unparsed" and "no reference" in result.judgements[0].text
    assert result.unread.rate == 0.5 and len(table.asked) == 2


def test_an_empty_response_loses_without_being_compared():
    table = Table(KNOWN)
    result = labeler(table).label([of("opposite", "", reference="r"), of("", " ", 1)])
    assert [x.p_a for x in result.preferences] == [1.0, 0.5] and table.asked == []
    items = [("prompt", "opposite", "r"), ("prompt", "", "r"), ("prompt", "near", "r")]
    assert labeler(table).scores(items) == [-1.0, -1.0, 0.9]


def test_what_was_compared_once_is_not_compared_again(tmp_path):
    store = LabelStore(tmp_path / "labels.sqlite", claim_seconds=60.0)
    first, second = Table(KNOWN), Table(KNOWN)
    labeler(first, store).label([of("near", "far")])
    result = labeler(second, store, readout_temperature=1.0).label(
        [of("near", "far"), of("near", "opposite", 1)]
    )
    assert result.counters["reused"] == 0 or ("far", "the author's") in second.asked  # a batch is asked whole
    again = labeler(Table({}), store).label([of("near", "far")])
    assert again.preferences[0].p_a == pytest.approx(1 / (1 + math.exp(-6)))
    other = Table({"near": 0.0, "far": 0.0})
    assert labeler(other, store).label([of("near", "far", reference="another")]).preferences[0].p_a == 0.5


@pytest.mark.parametrize("value", [math.nan, 1.5, -2.0, math.inf])
def test_what_is_no_cosine_is_a_failure(value):
    result = labeler(Table({"near": value, "far": 0.1})).label([of("near", "far")])
    assert result.judgements[0].state == "failed" and result.preferences[0].p_a is None


def test_engine_and_readout_must_fit():
    with pytest.raises(UserError, match="labeler=reference sets both"):
        labeler(scripted())
    with pytest.raises(UserError, match="labeler=reference sets both"):
        labeler(Table(KNOWN), readout_kind="choice")
