"""What the plan says of time, against the arithmetic by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rlaif.app.plan import machine
from rlaif.app.plan import seconds as plan
from rlaif.app.plan.seconds import estimate_seconds, seconds_of, total_seconds
from rlaif.stages.common.stage import Rates, Work
from rlaif.stages.graph import Planned

RATES = Rates(forward=500.0, decoded=200.0, steps=10.0, trained=1000.0, scored=4000.0, ranked=2000.0)


def test_seconds_by_hand() -> None:
    each = {
        "forward": 1000 / 500,
        "decoded": 1000 / 200,
        "steps": 1000 / 10,
        "trained": 1.0,
        "scored": 1000 / 4000,
        "ranked": 1000 / 2000,
    }
    for kind, seconds in each.items():
        assert seconds_of(Work(**{kind: 1000}), RATES) == pytest.approx(seconds)
        assert seconds_of(Work(**{kind: 1000}), replace(RATES, **{kind: 50.0})) == pytest.approx(20.0)
    assert seconds_of(Work(1000, 1000, 30, 1000, 1000, seconds=7.0), RATES) == pytest.approx(18.25)


def test_work_adds_up_and_an_unknown_price_stays_unknown() -> None:
    both = Work(1, 2, 3, 4, 5, usd=0.5, seconds=6.0) + Work(10, 20, 30, 40, 50, usd=0.25, seconds=60.0)
    assert both == Work(11, 22, 33, 44, 55, usd=0.75, seconds=66.0)
    assert (Work() + Work(usd=None)).usd is None and (Work(usd=None) + Work()).usd is None


def test_what_exists_costs_nothing_and_what_waits_for_others_takes_their_time(monkeypatch) -> None:
    monkeypatch.setattr(plan, "machine_rates", lambda ctx: RATES)
    ctx = SimpleNamespace()
    planned = [
        Planned("sft", "sft-1", True, Work(forward=1e9)),
        Planned("sample", "sample-1", False, Work(decoded=600)),
        Planned("label", "label-1", False, Work(seconds=40.0)),
    ]
    # A second to start each; three of decoding; a server's 40 s whatever this machine would take.
    assert estimate_seconds(ctx, planned) == pytest.approx({"sft-1": 0.0, "sample-1": 4.0, "label-1": 41.0})
    assert total_seconds(ctx, planned) == pytest.approx(45.0)
    monkeypatch.setattr(plan, "machine_rates", None)
    assert total_seconds(ctx, planned[:1]) == 0.0, "what exists needs no measurement"


def test_rates_are_those_of_a_clock(monkeypatch, tiny_model) -> None:
    """With a clock that counts the tokens that the model really runs, a rate is one over the cost of a token."""
    model = tiny_model("top:1")
    now, trunk = [0.0], type(model.trunk).forward

    def forward(self, ids, *rest):
        now[0] += 0.01 * ids.numel()
        return trunk(self, ids, *rest)

    monkeypatch.setattr(type(model.trunk), "forward", forward)

    def clock():
        now[0] += 1e-3  # the top's part of a run
        return now[0]

    monkeypatch.setattr(machine.time, "perf_counter", clock)
    state = torch.get_rng_state()
    rates = machine.measure(model)
    assert torch.equal(torch.get_rng_state(), state), "the clock decides how much is drawn"
    assert rates.forward == pytest.approx(100.0, rel=0.05) and rates.decoded == pytest.approx(100.0, rel=0.05)
    # Nothing that the top runs on is computed by the trunk: its rows take one tick of this clock.
    assert rates.trained == pytest.approx(112 * 16 / 1e-3) and rates.scored == rates.ranked == rates.trained


def test_a_machine_is_measured_once_if_nothing_else_kept_it_busy(monkeypatch, context, tmp_path) -> None:
    ctx, calls = context(f"paths.root={tmp_path}"), []
    monkeypatch.setattr(machine, "measure", lambda model: calls.append(model) or RATES)
    monkeypatch.setattr(machine, "_ALONE", math.inf)
    assert machine.machine_rates(ctx) == machine.machine_rates(ctx) == RATES and len(calls) == 2
    monkeypatch.setattr(machine, "_ALONE", 0.0)
    assert machine.machine_rates(ctx) == machine.machine_rates(ctx) == RATES and len(calls) == 3
    monkeypatch.setattr(machine, "_machine", lambda: ["another"])
    assert machine.machine_rates(ctx) == RATES and len(calls) == 4
