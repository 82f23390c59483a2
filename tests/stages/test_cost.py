"""Prices, bounds and the injection probe as users meet them."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from rlaif.errors import UserError
from rlaif.labelers import FREE, Estimate, Price
from rlaif.options.labeling import BackendOptions
from rlaif.options.read import read
from rlaif.stages.common.engines import meter_of, price_of, priced_as, seconds_elsewhere

HOSTED = {"name": "some-model", "base_url": "https://models.example/v1"}
PRICES = {"usd_per_million": {"listed": {"in": 1.0, "out": 2.0, "cached": 0.5}}}
PAID = ["labeler=scripted", "prices.usd_per_million.scripted={in: 1000, out: 1000, cached: 0}"]


def backend(own: dict[str, str]) -> BackendOptions:
    """The options of `backend`, with those that no price asks for left out."""
    return read(BackendOptions, {"engine": "openai", "revision": None} | own, "backend")


def test_what_runs_here_is_free_and_what_is_not_listed_elsewhere_unknown():
    assert price_of(PRICES, "transformers", backend({"name": "any"})) is FREE
    assert price_of(PRICES, "openai", backend(HOSTED)) is None
    for host in ("localhost:8000", "127.0.0.1:1", "[::1]:5"):
        assert price_of(PRICES, "openai", backend(HOSTED | {"base_url": f"http://{host}/v1"})) is FREE
    listed = HOSTED | {"name": "listed"}
    assert price_of(PRICES, "openai", backend(listed)) == Price(1.0, 2.0, 0.5)
    assert price_of(PRICES, "openai", backend(listed | {"base_url": "http://localhost/v1"})) == Price(
        1.0, 2.0, 0.5
    )
    assert (priced_as("openai", backend(HOSTED)), priced_as("scripted", backend(HOSTED))) == (
        "some-model",
        "scripted",
    )
    with pytest.raises(UserError, match=r"prices\.usd_per_million\.listed is"):
        price_of({"usd_per_million": {"listed": {"in": 1.0}}}, "openai", backend(listed))


@pytest.mark.parametrize(
    "name", ["listed", "openai/listed", "listed-2026-01-31", "openrouter/x/listed-20260131"]
)
def test_a_priced_model_costs_its_price_behind_a_proxy_on_this_machine(name):
    proxy = {"name": name, "base_url": "http://127.0.0.1:4000/v1"}
    assert price_of(PRICES, "openai", backend(proxy)) == Price(1.0, 2.0, 0.5)
    assert price_of(PRICES, "openai", backend(proxy | {"base_url": HOSTED["base_url"]})) == Price(
        1.0, 2.0, 0.5
    )


@pytest.mark.parametrize("name", ["listed-mini", "unlisted", "my-listed", "listed/other"])
def test_other_models_on_this_machine_stay_free(name):
    for host in ("127.0.0.2:1", "[::1]", "toy.localhost:80"):
        assert price_of(PRICES, "openai", backend({"name": name, "base_url": f"http://{host}/v1"})) is FREE
    for host in ("10.0.0.2:1", "localhost.example"):
        assert price_of(PRICES, "openai", backend({"name": name, "base_url": f"http://{host}/v1"})) is None


def test_a_budget_without_a_price_is_refused_in_one_sentence():
    node = SimpleNamespace(budget_usd=2.0, max_seconds=None)
    with pytest.raises(UserError) as caught:
        meter_of("judge", node, None, "some-model")
    said = str(caught.value)
    assert "judge.budget_usd=2.0" in said and "some-model" in said and "conf/prices/default.yaml" in said
    assert (
        meter_of("judge", SimpleNamespace(budget_usd=None, max_seconds=None), None, "some-model").usd is None
    )
    assert meter_of("judge", node, FREE, "some-model").usd == 0.0


def test_a_budget_stops_the_stage_and_a_higher_one_goes_on(run, pipeline, copied_root) -> None:
    root = copied_root(["sft", "sample"])
    words = ["stage=label", *PAID, "labeler.batch_size=4"]
    free = run("stage=label", "labeler=scripted", "labeler.batch_size=4")
    with pytest.raises(UserError) as caught:
        run(*words, "labeler.budget_usd=2", root=root)
    said = str(caught.value)
    told = re.match(
        r"labeler\.budget_usd=2 has no room .*: (\d+) of (\d+) judgements are done, for (\S+) USD", said
    )
    assert told and "higher bound" in said and "\n" not in said
    done, total, spent = int(told[1]), int(told[2]), float(told[3])
    assert 0 < done < total and done % 4 == 0
    assert 1.0 < spent < 2.0 + spent * 4 / done, "passed by one batch at most, whose cost is the mean's"
    assert not list((root / "artifacts").glob("label-*"))

    rest = run(*words, "labeler.budget_usd=2000", root=root)
    assert rest.summary["label/reused"] == done
    assert total == rest.summary["label/reused"] + _asked(rest)
    # Neither bound nor price is part of what the labels are.
    assert rest.lineage[0].digest == free.lineage[0].digest
    assert free.summary["label/usd"] == 0.0
    words_read = rest.summary["label/tokens_in"]  # of all judgements, the reused ones among them
    assert rest.summary["label/usd"] + spent == pytest.approx(words_read * 1000 / 1e6, abs=1e-3)


def _asked(record) -> int:
    """Judgements whose answer this run asked for: two orders a pair, but for those with an empty response."""
    pairs = record.summary["label/n"] + record.summary["label/alignment_constructed_n"]
    asked = round(pairs * (1 - record.summary["label/empty_rate"]))
    return int(2 * asked - record.summary["label/reused"])


def test_seconds_stop_the_stage(run, pipeline, warm_root) -> None:
    with pytest.raises(UserError, match=r"labeler\.max_seconds=1e-07 has no room for another batch: \d+ of"):
        run(
            "stage=label",
            "labeler=scripted",
            "labeler.scripted.seed=77",
            "labeler.batch_size=4",
            "labeler.max_seconds=1e-7",
            root=warm_root,
        )


def test_a_plan_tells_tokens_and_money(run, pipeline, capsys) -> None:
    run("plan=true", "stage=label", "labeler.scripted.seed=78", *PAID)
    line = next(line for line in capsys.readouterr().out.splitlines() if "build" in line)
    cells = [cell.strip() for cell in line.strip("│┃ ").split("│")]
    tokens, usd = float(cells[3].replace(",", "")), float(cells[-1])
    assert tokens > 1000
    assert usd == pytest.approx(tokens * 1000 / 1e6, rel=0.01)


def test_a_plan_without_a_price_says_so(run, pipeline, capsys) -> None:
    from rlaif.app.plan.seconds import _usd
    from rlaif.stages.common.stage import Work

    assert _usd([Work(usd=1.5), Work(usd=None)]) == "unknown"
    assert _usd([Work(usd=1.5), Work()]) == "1.500"
    guess = Estimate(calls=10, tokens_in=1, tokens_out=1, tokens_run=1)
    assert seconds_elsewhere("transformers", {}, guess) is None
    assert seconds_elsewhere("scripted", {}, guess) == 0.0


@pytest.mark.parametrize("labeler", ["likelihood", "base"])
def test_doctor_reports_flip_rates(run, pipeline, capsys, labeler) -> None:
    run("stage=doctor", f"labeler={labeler}", "doctor.injection_pairs=4")
    text = capsys.readouterr().out
    for name in ("all attacks", "control", "forged_verdict", "fake_turn", "ignore_above", "near_empty"):
        assert re.search(rf"{name}: \S+ of \d+", text), name
    run("stage=doctor", f"labeler={labeler}", "doctor.injection_pairs=0")
    assert "not measured: doctor.injection_pairs=0" in capsys.readouterr().out
