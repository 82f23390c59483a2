"""The size of a demo: the largest that fits, by measured rates and the plan; chosen once, then ordinary values."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise

import pytest
from jobs import job_context

from rlaif.app.compose import composed, read_options
from rlaif.app.plan import sizes
from rlaif.app.plan.sizes import FOR_STAGES, SIZES, path_seconds, sized
from rlaif.labelers import LabelerOptions, estimate
from rlaif.options.read import plain
from rlaif.stages.common.labeling import filler_pairs, labeling_work
from rlaif.stages.common.limits import CHARS_PER_TOKEN
from rlaif.stages.common.stage import Rates

RATES = Rates(forward=500.0, decoded=250.0, steps=10.0, trained=1000.0, scored=3000.0, ranked=2000.0)
# The demo's sizes with smoke's few rows, so that nothing large is read.
FEW = ["task.packages=[jinja2,rich,click]", "tracking=none", "model.dtype=float32"]


@pytest.fixture
def words(warm_root):
    return [*FEW, f"paths.root={warm_root}"]


def options(words):
    with composed(words) as cfg:
        return read_options(cfg)


def chosen(words):
    with composed(words) as cfg:
        return sized(read_options(cfg), words)


def numbers(found):
    return {key: plain(getattr(found, key)) for key in ("sft", "sample", "rm", "rl", "eval", "task")}


def seconds(words, size, rates=RATES):
    return path_seconds(job_context([*words, f"size={size}", f"demo.size={size}"]), rates)


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(sizes, "machine_rates", lambda ctx: RATES)


def test_sizes_grow(words) -> None:
    times = [seconds(words, size) for size in SIZES]
    assert all(earlier < later for earlier, later in pairwise(times)) and times[-1] > 1.8 * times[0]
    double = Rates(**{name: 2 * rate for name, rate in asdict(RATES).items()})
    assert seconds(words, "small", double) < 0.6 * times[0]


@pytest.mark.parametrize("wanted", SIZES)
def test_the_largest_that_fits_is_chosen(wanted, words, measured, monkeypatch) -> None:
    enough = (seconds(words, wanted) + 1) / 60 / FOR_STAGES
    found = chosen([*words, f"demo.minutes={enough}"])
    assert found.options.demo.size == wanted and wanted in found.why and "demo.minutes" in found.why
    assert numbers(found.options) == numbers(options([*words, f"size={wanted}"]))
    # Once chosen, it is not measured again.
    monkeypatch.setattr(sizes, "machine_rates", None)
    again = chosen(list(found.words))
    assert numbers(again.options) == numbers(found.options) and again.why == ""


@pytest.mark.parametrize(("labeler", "times"), [("likelihood", 1), ("detailed", 2), ("score", 2)])
def test_a_plan_counts_that_choices_behind_a_space_are_read_again(labeler, times, words) -> None:
    """The embedded model's tokenizer keeps a space apart from the digit after it."""
    ctx = job_context([*words, f"labeler={labeler}"])
    pairs = filler_pairs(ctx, ctx.task.train[:8])
    guess = estimate(pairs, ctx.templates, LabelerOptions.of(ctx.options.labeler, seed=0))
    work = labeling_work(ctx, "labeler", 0, pairs)
    assert work.forward == pytest.approx(times * guess.tokens_run * 4 / CHARS_PER_TOKEN)


def test_less_time_than_the_smallest_needs_is_said(words, measured) -> None:
    found = chosen([*words, "demo.minutes=0.1"])
    assert found.options.demo.size == "small" and "the smallest, beyond demo.minutes=0.1" in found.why


def test_what_is_set_by_hand_stays(words, measured) -> None:
    found = chosen([*words, "rl.num_prompts=77", "sample.num_prompts=55", "demo.size=small"]).options
    assert (found.rl.num_prompts, found.sample.num_prompts) == (77, 55)
    assert found.eval.num_prompts == 96 and found.demo.size == "small"


@pytest.mark.parametrize(
    "more",
    [
        ["demo.size=full"],
        ["task=helpful"],  # nobody's own data shrink with the machine
        ["profile=smoke"],
        ["stage=report"],
    ],
)
def test_nothing_else_is_measured_for(more, words, monkeypatch) -> None:
    monkeypatch.setattr(sizes, "machine_rates", None)
    given = [word for word in words if "packages" not in word] + more
    own = options(given)
    found = chosen(given)
    assert found.options == replace(own, demo=replace(own.demo, size="full")) and found.words == tuple(given)


def test_a_smoke_run_may_be_given_a_size(words) -> None:
    found = chosen([*words, "profile=smoke", "demo.size=small"]).options
    assert found.sample.num_prompts == 24, "the profile's own sizes come last"
