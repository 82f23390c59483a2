"""Answers are stored, not verdicts: another reading of the same answers asks nothing."""

from __future__ import annotations

import math

import pytest
from labeler_cases import Recorder, options, pairs, scripted, templates

from rlaif.labelers import Labeler, LabelStore
from rlaif.labelers import labeler as labeler_module
from rlaif.labelers.readout.readouts import Reading


def label(store: LabelStore, backend: Recorder, **changes):
    return Labeler(backend, templates(), options(**changes), store=store, progress=None).label(pairs(4))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


@pytest.mark.parametrize(
    "first, second, factor",
    [
        ({"readout_temperature": 1.0}, {"readout_temperature": 4.0}, 0.25),
        ({"cot": True}, {"cot": True, "readout_temperature": 0.5}, 2.0),
        ({"readout_kind": "score"}, {"readout_kind": "score", "readout_temperature": 2.0}, 0.5),
        ({"readout_kind": "likelihood"}, {"readout_kind": "likelihood", "readout_temperature": 5.0}, 0.2),
    ],
    ids=["choice", "cot", "score", "likelihood"],
)
def test_another_readout_temperature_asks_nothing(tmp_path, first, second, factor):
    with LabelStore(tmp_path / "labels.sqlite", claim_seconds=60.0) as store:
        before, backend = label(store, Recorder(scripted()), **first), Recorder(scripted())
        after = label(store, backend, **second)
    assert backend.calls == after.counters["asked"] == 0
    assert after.counters["reused"] == before.counters["asked"] > 0
    for old, new in zip(before.judgements, after.judgements, strict=True):
        assert logit(new.p_a) == pytest.approx(factor * logit(old.p_a), abs=1e-9)
    assert [p.p_a for p in before.preferences] != [p.p_a for p in after.preferences]


@pytest.mark.parametrize(
    "change",
    [
        {"averaging": "logit"},
        {"order": "both_consistent"},
        {"order": "both_consistent", "readout_temperature": 0.1},
    ],
)
def test_another_aggregation_asks_nothing(tmp_path, change):
    with LabelStore(tmp_path / "labels.sqlite", claim_seconds=60.0) as store:
        label(store, Recorder(scripted()))
        assert label(store, Recorder(scripted()), **change).counters["asked"] == 0


def test_another_normalisation_of_a_likelihood_asks_nothing(tmp_path):
    with LabelStore(tmp_path / "labels.sqlite", claim_seconds=60.0) as store:
        label(store, Recorder(scripted()), readout_kind="likelihood", readout_normalize="tokens")
        total = label(store, Recorder(scripted()), readout_kind="likelihood", readout_normalize="none")
    assert total.counters["asked"] == 0


def test_a_new_parser_reads_the_stored_texts(tmp_path, monkeypatch):
    def backwards(text: str, **how: object) -> Reading:
        return Reading(1.0 if text.strip() == "2" else 0.0, "ok", "text")

    with LabelStore(tmp_path / "labels.sqlite", claim_seconds=60.0) as store:
        before, backend = label(store, Recorder(scripted()), readout_kind="text"), Recorder(scripted())
        monkeypatch.setattr(labeler_module, "read_text", backwards)
        after = label(store, backend, readout_kind="text")
    assert backend.calls == 0
    assert [j.text for j in after.judgements] == [j.text for j in before.judgements]
    assert [j.p_a for j in after.judgements] == [1 - j.p_a for j in before.judgements]


@pytest.mark.parametrize(
    "change",
    [{"preamble": "detailed"}, {"readout_kind": "text"}, {"readout_kind": "score"}, {"exemplars": 1}],
)
def test_another_question_is_asked(tmp_path, change):
    """What the reuse above would be worth if it held for everything: nothing."""
    with LabelStore(tmp_path / "labels.sqlite", claim_seconds=60.0) as store:
        label(store, Recorder(scripted()))
        assert label(store, Recorder(scripted()), **change).counters["asked"] > 0
