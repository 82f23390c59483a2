"""Prices by hand, tokens against what was sent, and bounds that stop between two batches."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
from labeler_cases import Recorder, options, pair, pairs, scripted, templates, timeless

from rlaif.errors import UserError
from rlaif.labelers import FREE, Labeler, LabelStore, Meter, Price

PRICE = Price(tokens_in=1.0, tokens_out=4.0, tokens_cached=0.5)
# By hand, at 1000 tokens in, 200 of them cached, 500 out, in dollars per million:
CHOICE_USD = (800 * 1.0 + 200 * 0.5) / 1e6  # 0.0009
RATIONALE_USD = (1000 * 1.0 + 500 * 4.0) / 1e6  # 0.003


class Clock:
    """Time that only calls move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Paid:
    """The scripted answers at stated token counts; each call takes a second of the given clock."""

    def __init__(self, clock: Clock, sizes=None) -> None:
        self.inner, self.clock, self.sizes = scripted(), clock, sizes or itertools.repeat(1000)
        self.batches: list[list[float]] = []  # dollars of each call

    def identity(self):
        return self.inner.identity()

    def _charge(self, answers, **counts):
        self.clock.now += len(answers)
        sized = [dataclasses.replace(a, tokens_in=next(self.sizes), **counts) for a in answers]
        self.batches.append(
            [
                (a.tokens_in - a.tokens_cached + 4 * getattr(a, "tokens_out", 0) + a.tokens_cached / 2) / 1e6
                for a in sized
            ]
        )
        return sized

    def choice_logprobs(self, prompts, choices):
        return self._charge(self.inner.choice_logprobs(prompts, choices), tokens_cached=200)

    def generate(self, prompts, **kwargs):
        return self._charge(self.inner.generate(prompts, **kwargs), tokens_out=500)


def meter(clock=None, *, budget_usd=None, max_seconds=None, price=PRICE, kind=Meter, name="labeler"):
    return kind(
        name=name,
        price=price,
        budget_usd=budget_usd,
        max_seconds=max_seconds,
        clock=clock or Clock(),
    )


def labeler(store=None, clock=None, backend=None, bounds=None, **changes):
    clock = clock or Clock()
    return Labeler(
        backend or Paid(clock),
        templates(),
        options(**changes),
        store=store,
        progress=None,
        meter=bounds or meter(clock),
    )


def stopped(tmp_path, count: int, *, kind=Meter, bound, **changes) -> tuple[str, Paid, int]:
    """The sentence that ends a bounded labeling of `count` pairs, its backend, and the answers kept."""
    clock = Clock()
    backend = Paid(clock)
    with LabelStore(tmp_path / "labels.sqlite", claim_seconds=600.0) as store:
        bounds = meter(clock, kind=kind, **bound)
        with pytest.raises(UserError) as caught:
            labeler(store, clock, backend, bounds, **changes).label(pairs(count))
        return str(caught.value), backend, len(store)


def test_a_price_counts_cached_tokens_once():
    assert PRICE.usd(1000, 0, 200) == pytest.approx(CHOICE_USD, abs=1e-15)
    assert PRICE.usd(1000, 500, 0) == pytest.approx(RATIONALE_USD, abs=1e-15)
    assert FREE.usd(1e9, 1e9, 1e8) == 0.0
    assert Price.from_mapping({"in": 1, "out": 4, "cached": 0.5}, place="x") == PRICE
    assert PRICE.usd(1000, 0, 0) == pytest.approx(0.001, abs=1e-15)  # were nothing cached


@pytest.mark.parametrize(
    "values",
    [{"in": 1, "out": 2}, {"in": 1, "out": 2, "cached": -1}, {"in": "1", "out": 2, "cached": 0}, {"inn": 1}],
)
def test_an_entry_that_is_no_price_is_named(values):
    with pytest.raises(UserError, match=r"prices\.x is .*write in, out and cached"):
        Price.from_mapping(values, place="prices.x")


@pytest.mark.parametrize("bound", [0, -1.0, "1", True, float("nan")])
def test_a_bound_is_a_number_above_zero(bound):
    for key in ("budget_usd", "max_seconds"):
        with pytest.raises(UserError, match=rf"judge\.{key} is .*above 0, or null"):
            meter(name="judge", **{key: bound})
    with pytest.raises(ValueError, match="needs a price"):
        meter(budget_usd=1.0, price=None)


def test_tokens_of_chain_of_thought_hold_both_prompt_passes():
    backend = Recorder(scripted())
    result = Labeler(backend, templates(), options(cot=True), store=None, progress=None).label(pairs(3))
    words = [len(m.user.split()) + len(m.assistant.split()) for m, _ in backend.generated]
    second = [len(m.user.split()) + len(m.assistant.split()) for m, _ in backend.chosen]
    both = [x + y for x, y in zip(words, second, strict=True)]
    assert [j.tokens_in for j in result.judgements] == both
    assert result.counters["tokens_in"] == sum(both)
    assert result.counters["tokens_out"] == sum(j.tokens_out for j in result.judgements) > 0
    assert [j.tokens_in for j in result.judgements] != second  # one pass alone would be told apart


def test_tokens_of_a_call_that_two_pairs_share_are_counted_once_in_the_cost():
    twins = [pair(0), pair(0, id="twin")]
    result = labeler().label(twins)
    assert [j.tokens_in for j in result.judgements] == [1000] * 4
    assert (result.counters["tokens_in"], result.counters["tokens_cached"]) == (2000, 400)


def test_a_budget_stops_before_it_is_passed_and_the_rest_is_done_later(tmp_path):
    """20 judgements in batches of 4 at 0.0036: after two, 0.0072 are spent and a third would make 0.0108."""
    said, backend, kept = stopped(tmp_path, 10, bound={"budget_usd": 0.01})
    assert said == (
        "labeler.budget_usd=0.01 has no room for another batch: 8 of 20 judgements are done, for 0.0072 USD and"
        " 8.0 s in this run; they are kept, and the same command with a higher bound continues from there"
    )
    assert [len(batch) for batch in backend.batches] == [4, 4] and kept == 8
    with LabelStore(tmp_path / "labels.sqlite", claim_seconds=600.0) as store:
        rest = labeler(store, bounds=meter(budget_usd=0.012)).label(pairs(10))
    assert (rest.counters["asked"], rest.counters["reused"]) == (12, 8)
    assert timeless(rest.judgements) == timeless(labeler().label(pairs(10)).judgements)


class Forgetful(Meter):
    """Wrong: expects the next batch to cost nothing."""

    def reached(self, phase, calls):
        return super().reached(phase, 0)


class Blended(Meter):
    """Wrong: takes rationales and verdicts to cost the same."""

    def reached(self, phase, calls):
        return super().reached("any", calls)

    def add(self, phase, **counts):
        super().add("any", **counts)


def test_without_a_mean_the_budget_would_be_passed(tmp_path):
    _, backend, _ = stopped(tmp_path, 10, kind=Forgetful, bound={"budget_usd": 0.01})
    assert sum(map(sum, backend.batches)) > 0.01


def test_each_step_of_chain_of_thought_has_its_own_mean(tmp_path):
    """Four rationales cost 0.012 and their verdicts, asked right after them, 0.0036; all eight of both 0.0312."""
    said, _, kept = stopped(tmp_path, 4, cot=True, bound={"budget_usd": 0.013})
    assert (
        "4 of 8 judgements are done, for 0.0156 USD" in said and kept == 8
    )  # the first verdicts had no mean
    said, _, kept = stopped(tmp_path / "b", 4, cot=True, bound={"budget_usd": 0.030})
    assert "4 of 8 judgements are done, for 0.0276 USD" in said and kept == 12
    enough = labeler(bounds=meter(budget_usd=0.0315), cot=True).label(pairs(4))
    assert PRICE.usd(*(enough.counters[k] for k in ("tokens_in", "tokens_out", "tokens_cached"))) == (
        pytest.approx(8 * (CHOICE_USD + RATIONALE_USD), abs=1e-12)
    )
    with pytest.raises(UserError, match="4 of 8 judgements"):
        labeler(bounds=meter(budget_usd=0.0315, kind=Blended), cot=True).label(pairs(4))


def test_uneven_costs_pass_a_budget_by_one_batch_at_most(tmp_path):
    for seed in range(20):
        draw = random.Random(seed)
        clock = Clock()
        backend = Paid(clock, iter(lambda draw=draw: draw.choice([250, 1000, 9000]), None))
        budget = draw.uniform(0.002, 0.05)
        try:
            labeler(None, clock, backend, meter(clock, budget_usd=budget)).label(pairs(10))
        except UserError as stop:
            assert "labeler.budget_usd=" in str(stop) and "nothing is kept" in str(stop)
            before_last = sum(map(sum, backend.batches[:-1]))
            assert backend.batches and before_last <= budget
        else:
            assert len(backend.batches) == 5


def test_seconds_stop_in_the_same_way(tmp_path):
    said, backend, kept = stopped(tmp_path, 10, bound={"max_seconds": 10})
    assert said.startswith("labeler.max_seconds=10 has no room for another batch: 8 of 20 judgements")
    assert kept == 8 and len(backend.batches) == 2


@pytest.mark.parametrize("kind, parts", [("score", 2), ("likelihood", 4)])
def test_a_pointwise_judgement_is_done_when_all_its_parts_are(tmp_path, kind, parts):
    clock = Clock()

    class Timed(Recorder):
        def choice_logprobs(self, prompts, choices):
            clock.now += len(prompts)
            return super().choice_logprobs(prompts, choices)

        def sequence_logprobs(self, items):
            clock.now += len(items)
            return super().sequence_logprobs(items)

    bounds = meter(clock, max_seconds=9)
    one = labeler(None, clock, Timed(scripted()), bounds, readout_kind=kind, batch_size=4)
    with pytest.raises(UserError, match=rf"{8 // parts} of 6 judgements are done, for 0\.0"):
        one.label(pairs(6))


def test_direct_rewards_are_bounded_too():
    clock = Clock()
    one = labeler(None, clock, bounds=meter(clock, budget_usd=0.005), readout_kind="score")
    with pytest.raises(UserError, match="4 of 12 scores are done"):
        one.scores(
            [(p.prompt, response, None) for p in pairs(6) for response in (p.response_a, p.response_b)]
        )


def test_one_meter_bounds_all_that_its_labeler_is_asked(tmp_path):
    clock = Clock()
    one = labeler(None, clock, bounds=meter(clock, budget_usd=0.01))
    one.label(pairs(4))
    with pytest.raises(UserError, match="for 0.0072 USD"):
        one.label([pair(number) for number in range(4, 8)])


def test_stored_answers_cost_nothing(tmp_path):
    with LabelStore(tmp_path / "labels.sqlite", claim_seconds=600.0) as store:
        labeler(store).label(pairs(5))
        clock = Clock()
        again = labeler(store, clock, bounds=meter(clock, budget_usd=1e-9, max_seconds=1e-9)).label(pairs(5))
    assert (again.counters["asked"], again.counters["reused"], again.counters["tokens_in"]) == (0, 10, 0)


def test_a_stop_leaves_no_claim(tmp_path):
    stopped(tmp_path, 10, bound={"budget_usd": 0.01})
    with LabelStore(tmp_path / "labels.sqlite", claim_seconds=600.0) as other:
        clock = Clock()
        finished = labeler(other, clock, bounds=meter(clock, max_seconds=1000)).label(pairs(10))
    assert finished.counters["asked"] == 12


def test_time_spent_waiting_for_another_process_counts(tmp_path):
    class Ticking(Clock):
        def __call__(self) -> float:
            self.now += 1.0
            return self.now

    path = tmp_path / "labels.sqlite"
    with LabelStore(path, claim_seconds=600.0) as holder, LabelStore(path, claim_seconds=600.0) as store:
        claimed: list[str] = []

        class Held(LabelStore):
            """Another process takes every batch first."""

            def claim(self, keys, *, stale=None):
                claimed.extend(keys)
                holder.claim(keys)
                return store.claim(keys)

        held = Held(path, claim_seconds=600.0)
        with pytest.raises(UserError, match=r"labeler\.max_seconds=5 .* 0 of 8 judgements"):
            labeler(held, bounds=meter(Ticking(), max_seconds=5)).label(pairs(4))
        held.close()
    assert claimed


def test_bounds_are_no_part_of_the_labels_identity():
    names = {"budget_usd", "max_seconds"}
    assert names.isdisjoint(f.name for f in dataclasses.fields(options()))
    assert labeler(bounds=meter(budget_usd=1.0)).identity() == labeler().identity()
