"""What the plan says of time, against the arithmetic by hand."""

from types import SimpleNamespace

import pytest

from rlaif.app import plan
from rlaif.app.plan import estimate_seconds, seconds_of, total_seconds
from rlaif.stages.common.stage import Work
from rlaif.stages.graph import Planned


def test_seconds_by_hand() -> None:
    """A machine of 1e9 FLOP/s, 1e6 weights of which 2e5 are trained; products run at 30%, 10% and 20% of the rate."""
    each = {
        "forward": 2 * 1e6 * 300 / (1e9 * 0.3),
        "decoded": 2 * 1e6 * 50 / (1e9 * 0.1),
        "trained": 6 * 2e5 * 100 / (1e9 * 0.2),
    }
    assert list(each.values()) == pytest.approx([2.0, 1.0, 0.6])
    for kind, seconds in each.items():
        tokens = {"forward": 300, "decoded": 50, "trained": 100}[kind]
        assert seconds_of(Work(**{kind: tokens}), 1e9, 1e6, 2e5) == pytest.approx(seconds)
    assert seconds_of(Work(300, 50, 100), 1e9, 1e6, 2e5) == pytest.approx(3.6)
    # Twice as fast a machine takes half the time; twice the weights, twice the time.
    assert seconds_of(Work(300), 2e9, 1e6, 2e5) == pytest.approx(1.0)
    assert seconds_of(Work(300), 1e9, 2e6, 2e5) == pytest.approx(4.0)


def test_what_exists_costs_nothing_and_what_waits_for_others_takes_their_time(monkeypatch) -> None:
    monkeypatch.setattr(plan, "matrix_rate", lambda dtype, device: 1e9)
    monkeypatch.setattr(plan, "parameters", lambda ctx: (1e6, 2e5))
    ctx = SimpleNamespace(
        model_spec=SimpleNamespace(dtype="float32", device="cpu"),
        options=SimpleNamespace(models=SimpleNamespace(tiny=False)),
    )
    planned = [
        Planned("sft", "sft-1", True, Work(forward=1e9)),
        Planned("sample", "sample-1", False, Work(decoded=50)),
        Planned("label", "label-1", False, Work(forward=300, seconds=40.0)),
    ]
    # Three seconds to start each; 1 s of decoding; a server's 40 s whatever this machine would take.
    assert estimate_seconds(ctx, planned) == pytest.approx({"sft-1": 0.0, "sample-1": 4.0, "label-1": 43.0})
    assert total_seconds(ctx, planned) == pytest.approx(47.0)
