"""A search with real jobs: kill -9 and the same command again, a pruned run, and the searches that come with it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import optuna
import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from rlaif.app.compose import composed
from rlaif.app.search.job import enter, trial_job, trial_words
from rlaif.app.search.objective import Objective
from rlaif.app.search.place import Place, make_sampler
from rlaif.app.search.space import Space
from rlaif.app.search.study import TURN, open_search
from rlaif.app.search.sweeper import search_options
from rlaif.app.search.trial import read_outcome
from rlaif.tracking.runs import find_runs, load_run
from rlaif.tracking.sweep import Ledger

LR = FloatDistribution(1e-4, 1e-1, log=True)
SMOKE = ["profile=smoke", "tracking=none"]


def _results(root: Path) -> dict:
    (file,) = root.glob("sweeps/*/optimization_results.yaml")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _drawn(options, count: int) -> list[float]:
    """What the random sampler proposes, turn by turn, in a study of its own that nothing interrupts."""
    drawn = []
    for turn in range(count):
        study = optuna.create_study(sampler=make_sampler(options, turn))
        drawn.append(study.ask({"rm.lr": LR}).params["rm.lr"])
    return drawn


def test_a_killed_search_goes_on_by_the_same_command(pipeline, copied_root, start_process, command) -> None:
    root = copied_root(["sft", "sample", "label"])
    words = ["-m", "hydra/sweeper=optuna", "stage=rm", "rm.lr=tag(log,interval(1e-4,1e-1))", *SMOKE]
    words += ["hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=4", f"paths.root={root}"]
    process, deadline = start_process(*words), time.monotonic() + 240
    while not list(root.glob("sweeps/*/trials/1.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = len(find_runs(root, stage="rm"))
    assert 2 <= before < 4 and not list(root.glob("sweeps/*/optimization_results.yaml"))

    done = command(*words)
    assert done.returncode == 0, done.stderr
    found = _results(root)
    trials = found["trials"]
    with composed(["hydra/sweeper=optuna", "hydra.sweeper.sampler=random"]):
        expected = _drawn(search_options(HydraConfig.get().sweeper), 4)
    assert [trial["state"] for trial in trials] == ["finished"] * 4
    assert sorted(trial["params"]["rm.lr"] for trial in trials) == sorted(expected)
    values = {trial["params"]["rm.lr"]: trial["values"][0] for trial in trials}
    assert found["best_value"] == max(values.values()) == values[found["best_params"]["rm.lr"]]
    runs = find_runs(root, stage="rm")
    assert {run.group for run in runs} == {found["study"]} and 4 <= len(runs) <= 5
    assert {run.summary["rm/accuracy"] for run in runs} == set(values.values())
    (page,) = root.glob("reports/sweep-*.html")
    assert f"sweep report: {page}" in done.stdout and "rm.lr=" in page.read_text(encoding="utf-8")
    assert "winner's curse" in done.stdout and "confirm: python train.py stage=compare" in done.stdout
    jobs = Ledger(root / "sweeps" / found["study"]).jobs()
    assert [job.state for job in jobs] == ["finished"] * 4 and sum(job.attempts for job in jobs) >= 4

    more = command(*(word.replace("n_trials=4", "n_trials=5") for word in words))
    assert more.returncode == 0 and "4 of 5 trials have ended" in more.stdout
    assert len(_results(root)["trials"]) == 5


TRAINED = ("stage=rm", "rm.num_epochs=4", "rm.lr=0.01")


@pytest.fixture
def trial(copied_root, pipeline):
    """`trial(before, pruner=...)`: the job of a trial after others with these histories of rm/val_loss."""
    root = copied_root(["sft", "sample", "label", "rl"])

    def run(*before: dict[int, float], job: tuple[str, ...] = TRAINED, **own: object):
        keys = [f"hydra.sweeper.{key}={value}" for key, value in {"prune_on": "rm/val_loss", **own}.items()]
        words = [*job, *SMOKE, f"paths.root={root}", "hydra/sweeper=optuna", *keys]
        with composed(words):
            options = search_options(HydraConfig.get().sweeper)
        place = Place(root, "study")
        objectives = (Objective("rm/accuracy", "maximize"),)
        search = open_search(place, options, Space((), {"rm.lr": LR}), objectives, {})
        for turn, history in enumerate(before):
            # As the trials of a search that maximises report a loss: with the sign turned.
            reported = {step: -value for step, value in history.items()}
            attrs = {TURN: turn}
            search.study.add_trial(create_trial(value=0.5, intermediate_values=reported, user_attrs=attrs))
        asked = search.ask()
        Ledger(place.folder).describe({"id": "study"})
        enter(Ledger(place.folder), asked, words, {})
        with composed([*words, *trial_words(place, asked)]) as cfg:
            failed = trial_job(cfg, HydraConfig.get())
        assert failed is None
        outcome = read_outcome(place.outcome(asked.number))
        search.tell(asked.number)
        return search, search.trials()[asked.number], outcome

    return run


GOOD, BAD = dict.fromkeys(range(40), 0.01), dict.fromkeys(range(40), 100.0)


def test_a_run_that_promises_nothing_is_pruned(trial) -> None:
    """Two earlier trials with far lower losses: the real one ends at its first validation."""
    search, told, outcome = trial(GOOD, GOOD, pruner="median", prune_startup=2)
    root = search.place.root
    assert told.state == TrialState.PRUNED and outcome.state == "pruned" and outcome.run is None
    (meta,) = root.glob("runs/rm/*/meta.json")
    run = load_run(meta.parent)
    rows = [row for row in run.history if "rm/val_loss" in row]
    assert run.state == "pruned" and len(rows) == 1, "it went no further"
    step, value = rows[0]["step"], rows[0]["rm/val_loss"]
    assert told.intermediate_values == {step: -value}
    assert (
        outcome.error
        == json.loads(meta.read_text())["error"]
        == f"rm/val_loss was {value:.3f} at step {step}"
    )
    assert not list(root.glob("artifacts/rm-*")), "what was half built is not published"
    assert find_runs(root, stage="rm") == []
    (job,) = Ledger(search.place.folder).jobs()
    assert job.state == "pruned" and job.error == outcome.error


def test_a_better_run_is_not_pruned_and_its_history_is_reported(trial) -> None:
    search, told, _ = trial(BAD, BAD, pruner="median", prune_startup=2)
    (run,) = find_runs(search.place.root, stage="rm")
    expected = {row["step"]: -row["rm/val_loss"] for row in run.history if "rm/val_loss" in row}
    assert told.state == TrialState.COMPLETE and told.intermediate_values == expected and len(expected) == 4
    assert told.value == run.summary["rm/accuracy"] and run.state == "finished" and run.group == "study"


def test_nothing_is_pruned_before_the_stated_step(trial) -> None:
    _, told, outcome = trial(GOOD, GOOD, pruner="median", prune_startup=2, prune_after=8)
    assert told.state == TrialState.PRUNED and "at step " in outcome.error
    assert max(told.intermediate_values) >= 8 and len(told.intermediate_values) > 1


def test_what_is_there_already_is_not_pruned(trial) -> None:
    """The curve of an artifact that is reused is logged too, when nothing can be saved any more."""
    best = dict.fromkeys(range(40), -1000000.0)  # as reported: a reward of a million
    search, told, _ = trial(
        best, best, job=("stage=rl",), prune_on="rl/reward", pruner="median", prune_startup=2
    )
    (run,) = find_runs(search.place.root, stage="rl")
    assert run.lineage[0].reused and any("rl/reward" in row for row in run.history)
    assert told.state == TrialState.COMPLETE and told.intermediate_values == {}


def test_a_failed_trial_is_told_and_stops_no_other(pipeline, copied_root, command) -> None:
    root = copied_root(["sft", "sample", "label"])
    words = [
        "-m",
        "hydra/sweeper=optuna",
        "hydra.sweeper.sampler=grid",
        "stage=rm",
        "rm.micro_batch_size=99,4",
        *SMOKE,
    ]
    done = command(*words, f"paths.root={root}")
    said = "rm.micro_batch_size=99 is larger than rm.batch_size=8: write 1 to 8, or null"
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [
        f"error: {said}",
        f"error: 1 of 2 trials failed, the last one: {said}",
    ]
    found = _results(root)
    assert [(trial["state"], trial.get("error")) for trial in found["trials"]] == [
        ("failed", said),
        ("finished", None),
    ]
    assert found["best_params"] == {"rm.micro_batch_size": "4"}
    jobs = Ledger(root / "sweeps" / found["study"]).jobs()
    assert [(job.state, job.error) for job in jobs] == [("failed", said), ("finished", None)]


@pytest.mark.parametrize("name", ["search_rm", "search_rl"])
def test_the_searches_that_come_with_it_run(name, pipeline, copied_root, command) -> None:
    root = copied_root(["sft", "sample", "label", "rm"])
    done = command(f"sweeps={name}", "hydra.sweeper.n_trials=1", *SMOKE, f"paths.root={root}")
    assert done.returncode == 0, done.stderr
    found = _results(root)
    assert [trial["state"] for trial in found["trials"]] == ["finished"] and found["study"].startswith(
        f"{name}-"
    )
    run = load_run(root / found["run"])
    assert run.summary[found["objectives"][0]] == found["best_value"]
    assert f"sweeps={name}" in found["command"] and found["command"].endswith("hydra.mode=RUN")


@pytest.mark.parametrize(
    "words, said",
    [
        (["hydra.sweeper.objective=rm/acuracy"], "rm/acuracy is not a metric: did you mean rm/accuracy"),
        (["rm.lrr=interval(0,1)"], "rm.lrr is not a configuration key: did you mean rm.lr"),
    ],
)
def test_a_mistake_costs_no_trial(words, said, command, tmp_path) -> None:
    own = [
        "-m",
        "hydra/sweeper=optuna",
        "stage=rm",
        "rm.weight_decay=interval(0,1)",
        f"paths.root={tmp_path}",
    ]
    done = command(*own, *words, *SMOKE)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("sweeps/*"))
