"""Alarms reach the log, the run record, the summary and the page, and cost no training."""

from __future__ import annotations

import logging
from html import unescape
from types import SimpleNamespace

import pytest
from ppo_cases import make_module, train

from rlaif.errors import UserError
from rlaif.options.read import read
from rlaif.options.training import AlarmLimits
from rlaif.stages.rl.alarms import raise_alarms
from rlaif.tracking import Run
from rlaif.tracking.glossary import unknown

FAST = ["stage=rl", "rl.lr=0.03", "rl.num_epochs=3"]  # six iterations that move far
TIGHT = ["rl.alarms.window=1", "rl.alarms.kl=0.01"]


def test_an_alarm_is_told_everywhere_and_once(pipeline, run, caplog, warm_root) -> None:
    with caplog.at_level(logging.WARNING, logger="rlaif"):
        record = run(*FAST, *TIGHT)
    alerts = [row for row in record.alerts if row["title"] == "KL runaway"]
    assert len(alerts) == 1 and record.summary["rl/alarms"] >= 1
    assert alerts[0]["text"] in record.summary["rl/warning"] and "rl.alarms.kl=0.01" in alerts[0]["text"]
    assert sum(alerts[0]["text"] in r.getMessage() for r in caplog.records) == 1
    first = next(
        i for i, row in enumerate(r for r in record.history if "rl/kl" in r) if i and not row["rl/kl"] <= 0.01
    )
    assert f"At iteration {first} the KL" in alerts[0]["text"]
    assert unknown(record.summary) == []

    judged = run("stage=eval", *FAST[1:], *TIGHT)
    assert {row.kind: row.reused for row in judged.lineage}["rl"]
    assert judged.summary["rl/warning"] == record.summary["rl/warning"]
    assert [row for row in judged.alerts if row["title"] == "KL runaway"][0]["text"] == alerts[0]["text"]
    page = unescape((warm_root / "reports" / f"eval-{judged.id}.html").read_text(encoding="utf-8"))
    assert alerts[0]["text"] in page[: page.index("<h2>")], "what one reads first"


def test_other_limits_are_no_other_policy(pipeline, run) -> None:
    record = run(*FAST, *TIGHT)
    other = run(*FAST, "rl.alarms.kl=null", "rl.alarms.entropy=null", "rl.alarms.window=5")
    assert other.lineage[0].digest == record.lineage[0].digest and other.lineage[0].reused
    assert not any(row["title"] == "KL runaway" for row in other.alerts)
    assert run("stage=rl").summary["rl/alarms"] == 0 and "rl/warning" not in run("stage=rl").summary


def test_every_iteration_logs_what_a_diagnosis_needs(pipeline) -> None:
    wanted = """
    reward kl entropy approx_kl clip_fraction explained_variance value_loss eos_rate response_length copy_rate
    distinct_3 seconds_rollout seconds_prepare seconds_reward seconds_update
    """
    rows = [row for row in pipeline.history if "rl/reward" in row]
    assert len(rows) == pipeline.summary["rl/iterations"]
    for row in rows:
        assert {f"rl/{name}" for name in wanted.split()} <= row.keys()
        assert 0 < row["rl/seconds_reward"] < row["rl/seconds_prepare"]


def test_a_resumed_run_raises_the_alarms_of_the_whole_one(tiny_model, tmp_path) -> None:
    """The history is in the checkpoint; what fired before the kill is told again by the run that goes on."""
    limits = AlarmLimits(window=1, kl=1e-4, entropy=None, explained_variance=None, eos_rate=None, length=None)
    options = SimpleNamespace(rl=SimpleNamespace(alarms=limits))

    def alerts(folder, name, iterations):
        with Run(
            directory=tmp_path / name,
            stage="rl",
            config={},
            overrides=[],
            group=None,
            name="n",
            wandb_options=None,
        ) as record:
            ctx = SimpleNamespace(options=options, run=record)
            watch = lambda history: raise_alarms(ctx, history)  # noqa: E731
            module = make_module(tiny_model("top:1"), iterations=4, rollouts=32, watch=watch)
            train(module, tmp_path / folder, iterations)
            return [(alarm.title, alarm.text) for alarm in raise_alarms(ctx, module.history)]

    whole = alerts("whole", "one", 4)
    before, after = alerts("parts", "two", 2), alerts("parts", "three", 4)
    assert len(whole) == 1 and "At iteration 1 " in whole[0][1]
    assert before == after == whole
    for name in ("one", "two", "three"):
        assert len((tmp_path / name / "alerts.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("window", 0, "rl.alarms.window=0 .*: write a whole number from 1"),
        ("window", 1.5, "rl.alarms.window=1.5 is not a whole number"),
        ("kl", 0.0, "rl.alarms.kl=0.0 .* above 0, or null"),
        ("entropy", 0, "rl.alarms.entropy=0 .* above 0 and below 1, or null"),
        ("entropy", 20, "rl.alarms.entropy=20 .* above 0 and below 1, or null"),
        ("eos_rate", 1.0, "rl.alarms.eos_rate=1.0 .* above 0 and below 1, or null"),
        ("eos_rate", -0.1, "rl.alarms.eos_rate=-0.1 .* above 0 and below 1, or null"),
        ("length", 1.0, "rl.alarms.length=1.0 .* above 1, or null"),
    ],
)
def test_limits_that_make_no_sense_are_refused(key, value, words) -> None:
    fine = {"window": 3, "kl": 25.0, "entropy": 0.2, "explained_variance": -1.0, "eos_rate": 0.2}
    fine["length"] = 2.0
    read(AlarmLimits, fine, "rl.alarms")
    read(AlarmLimits, {**dict.fromkeys(fine), "window": 1}, "rl.alarms")
    with pytest.raises(UserError, match=words):
        read(AlarmLimits, {**fine, key: value}, "rl.alarms")
