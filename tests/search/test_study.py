"""The search over jobs that cost nothing: a known optimum, and the same trials whether or not it was killed."""

from __future__ import annotations

import math

import pytest
from optuna.trial import TrialState

from rlaif.app.search.results import Command, best_trials, sentences, write_results
from rlaif.app.search.study import ERROR, TURN
from rlaif.errors import UserError
from rlaif.io import from_yaml

SPACE = [
    "stage=rm",
    "rm.lr=tag(log,interval(1e-6,1e-2))",
    "rm.num_epochs=range(1,5)",
    "labeler=choice(base,cot)",
]


def accuracy(point) -> dict[str, float]:
    """Best at lr = 1e-4, 3 epochs, labeler=cot, where it is 1."""
    off = (math.log10(point["rm.lr"]) + 4) ** 2 / 8 + (point["rm.num_epochs"] - 3) ** 2 / 20
    return {"rm/accuracy": 1 - off - 0.1 * (point["labeler"] != "cot")}


def _points(search) -> list[tuple[int, dict]]:
    """What counts: turn and values of the trials that ended, in the order of their turns."""
    ended = search.trials(TrialState.COMPLETE, TrialState.PRUNED)
    return sorted(((trial.user_attrs[TURN], trial.params) for trial in ended), key=lambda row: row[0])


def test_it_finds_a_known_optimum_better_than_chance(searching, jobs, tmp_path) -> None:
    best = {}
    for sampler in ("tpe", "random"):
        search = searching(SPACE, root=tmp_path / sampler, sampler=sampler, n_trials=30)
        search.run(jobs(search, accuracy))
        (trial,) = best_trials(search)
        best[sampler] = trial.value
        assert trial.value == max(accuracy(point)["rm/accuracy"] for _, point in _points(search))
        if sampler == "tpe":
            assert 3e-5 < trial.params["rm.lr"] < 3e-4 and trial.params["labeler"] == "cot"
    assert best["tpe"] > 0.97 and best["tpe"] > best["random"]


def test_a_loss_is_minimised(searching, jobs) -> None:
    search = searching(["x=interval(-1,1)"], objective="rm/best_val_loss", n_trials=12)
    search.run(jobs(search, lambda point: {"rm/best_val_loss": (point["x"] - 0.5) ** 2}))
    (trial,) = best_trials(search)
    assert trial.value == min((point["x"] - 0.5) ** 2 for _, point in _points(search))


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_a_killed_search_goes_on_as_if_nothing_had_been(searching, jobs, tmp_path, n_jobs) -> None:
    """Killed among the random trials, among those that learn from the results so far, and at the last one."""
    own = {"n_trials": 6, "startup_trials": 2, "n_jobs": n_jobs}
    whole = searching(SPACE, root=tmp_path / "whole", **own)
    whole.run(jobs(whole, accuracy))
    for kill in (1, 3, 5):
        root = tmp_path / f"killed-{kill}"
        search = searching(SPACE, root=root, **own)
        with pytest.raises(KeyboardInterrupt):
            search.run(jobs(search, accuracy, kill=kill))
        search = searching(SPACE, root=root, **own)
        # Of a batch, those that had ended count; the one that was killed and those after it are tried again.
        assert search.go_on() == n_jobs - kill % n_jobs
        search.run(jobs(search, accuracy))
        assert _points(search) == _points(whole) and len(_points(whole)) == 6
        assert search.left == 0 and not search.trials(TrialState.RUNNING, TrialState.WAITING)


def test_a_trial_killed_while_its_values_were_drawn_gets_the_same_ones(searching, jobs, tmp_path) -> None:
    whole = searching(SPACE, root=tmp_path / "whole", n_trials=2)
    whole.run(jobs(whole, accuracy))
    search = searching(SPACE, root=tmp_path / "killed", n_trials=2)
    search.study.enqueue_trial({}, user_attrs={TURN: 0})
    from rlaif.app.search.place import make_sampler

    search.study.sampler = make_sampler(search.options, 0)
    search.study.ask({"rm.lr": search.space.knobs["rm.lr"]})  # killed before the second value
    search = searching(SPACE, root=tmp_path / "killed", n_trials=2)
    assert search.go_on() == 1
    search.run(jobs(search, accuracy))
    assert _points(search) == _points(whole)


def test_a_job_that_ended_before_the_kill_is_not_run_again(searching, jobs) -> None:
    search = searching(SPACE, n_trials=2)
    trial = search.ask()
    jobs(search, accuracy).end(trial.number, accuracy(trial.params))
    search = searching(SPACE, n_trials=2)
    assert search.go_on() == 0 and search.left == 1
    assert best_trials(search)[0].value == accuracy(trial.params)["rm/accuracy"]


def test_a_larger_number_adds_trials_and_a_smaller_one_runs_none(searching, jobs) -> None:
    own = jobs(searching(SPACE, n_trials=3), accuracy)
    own.search.run(own)
    more = jobs(searching(SPACE, n_trials=5), accuracy)
    more.search.run(more)
    assert more.batches == [[3], [4]] and [turn for turn, _ in _points(more.search)] == [0, 1, 2, 3, 4]
    none = jobs(searching(SPACE, n_trials=2), accuracy)
    none.search.run(none)
    assert none.batches == []


def test_another_seed_proposes_other_values(searching, jobs, tmp_path) -> None:
    found = []
    for seed in (0, 0, 1):
        search = searching(SPACE, root=tmp_path / str(len(found)), seed=seed, n_trials=3)
        search.run(jobs(search, accuracy))
        found.append([point["rm.lr"] for _, point in _points(search)])
    assert found[0] == found[1] and not set(found[0]) & set(found[2])


def test_failed_trials_are_kept_told_and_made_up_for(searching, jobs) -> None:
    def half(point) -> dict:
        return {"error": "rm.lr is too large"} if point["rm.lr"] > 1e-3 else accuracy(point)

    search = searching(SPACE, n_trials=8, max_failure_rate=0.9)
    search.run(jobs(search, half))
    failed = search.trials(TrialState.FAIL)
    assert failed and {trial.user_attrs[ERROR] for trial in failed} == {"rm.lr is too large"}
    assert len(search.trials(TrialState.COMPLETE)) == 8 and search.failed == ["rm.lr is too large"] * len(
        failed
    )


def test_a_search_ends_when_too_many_fail(searching, jobs) -> None:
    search = searching(SPACE, n_trials=50)
    with pytest.raises(
        UserError, match=r"4 of 4 trials failed, more than hydra.sweeper.max_failure_rate=0.5 .* no"
    ):
        search.run(jobs(search, lambda point: {"error": "no"}))


def test_a_metric_that_no_run_has_ends_it_at_once(searching, jobs) -> None:
    search = searching(SPACE, objective="rl/reward", n_trials=50)
    with pytest.raises(UserError, match="no rl/reward: write hydra.sweeper.objective=rm/accuracy"):
        search.run(jobs(search, accuracy))
    assert search.ran == 1


def test_what_a_launcher_loses_is_a_failed_trial(searching) -> None:
    search = searching(SPACE, n_trials=2)
    with pytest.raises(UserError, match="the last one: TerminatedWorkerError: a worker died"):
        search.run(lambda batch: "TerminatedWorkerError: a worker died")


def test_a_grid_tries_everything_once_and_what_failed_again(searching, jobs) -> None:
    words = ["a=choice(x,y)", "b=range(1,4)"]

    def but_one(point) -> dict:
        return {"error": "no"} if point == {"a": "x", "b": 2} else {"rm/accuracy": point["b"]}

    search = searching(words, sampler="grid", n_trials=None)
    search.run(jobs(search, but_one))
    assert [(p["a"], p["b"]) for _, p in _points(search)] == [
        ("x", 1),
        ("x", 3),
        ("y", 1),
        ("y", 2),
        ("y", 3),
    ]
    assert search.left == 1
    search = searching(words, sampler="grid", n_trials=None)
    assert search.go_on() == 1
    again = jobs(search, lambda point: {"rm/accuracy": point["b"]})
    search.run(again)
    assert len(again.batches) == 1 and search.left == 0 and len(_points(search)) == 6


def test_without_a_grid_the_number_of_trials_is_needed(searching, jobs) -> None:
    search = searching(SPACE, n_trials=None)
    with pytest.raises(
        UserError, match="n_trials=null has no end: write a number, or hydra.sweeper.sampler=grid"
    ):
        search.run(jobs(search, accuracy))


def test_two_objectives_have_a_front(searching, jobs) -> None:
    """The front of (x, x^2), both large and small at once, worked out by a loop over all pairs."""
    search = searching(["x=interval(-1,1)"], objective=["rm/accuracy", "rm/ece"], n_trials=15)
    search.run(jobs(search, lambda point: {"rm/accuracy": point["x"], "rm/ece": point["x"] ** 2}))
    values = [trial.values for trial in search.trials()]

    def bettered(own) -> bool:
        return any(o[0] >= own[0] and o[1] <= own[1] and o != own for o in values)

    front = [trial.values for trial in best_trials(search)]
    assert sorted(front) == sorted(own for own in values if not bettered(own)) and 1 < len(front) < 15
    text = "\n".join(sentences(search, Command("rlaif", "rm", ("stage=rm",))))
    assert text.count("best: rm/accuracy ") == len(front) and "a point of this front" in text


def test_a_name_holds_one_search(searching, jobs) -> None:
    search = searching(SPACE, n_trials=1)
    search.run(jobs(search, accuracy))
    with pytest.raises(
        UserError, match=r"study_name=study names a search of another kind, which differs in its space"
    ):
        searching([*SPACE[:2], "rm.num_epochs=range(1,9)"], n_trials=1)
    with pytest.raises(UserError, match="differs in its objectives"):
        searching(SPACE, objective="rm/gold_accuracy")


def test_the_results_say_what_to_run_and_that_the_best_is_flattered(searching, jobs) -> None:
    words = ["stage=rm", "seeds.rm=4", "task=docs", "rm.lr=interval(0.25,0.75)"]
    search = searching(words, n_trials=3, sampler="random")
    ends = {"rm/accuracy_ci_low": 0.25, "rm/accuracy_ci_high": 0.75}
    search.run(jobs(search, lambda point: {"rm/accuracy": point["rm.lr"]} | ends))
    (best,) = best_trials(search)
    lr, command = best.params["rm.lr"], Command("python train.py", "rm", search.space.fixed)
    first, again, caution, confirm, report = sentences(search, command)
    assert first == f"best: rm/accuracy {100 * lr:.1f}% (25.0\u201375.0%) with rm.lr={lr!r}"
    assert again == f"again: python train.py stage=rm seeds.rm=4 task=docs rm.lr={lr!r}"
    assert "the best of 3 trials" in caution and "winner's curse" in caution
    assert confirm == (
        "confirm: python train.py stage=compare until=rm task=docs "
        f"""'+arms={{default: [], best: ["rm.lr={lr!r}"]}}' """
        "seeds.data=1 '+repeat={seeds.rm: [101,102,103]}' 'test=[rm/gold_accuracy,rm/accuracy]'"
    )
    assert report == "report: python train.py stage=report sweep=study"
    found = from_yaml(write_results(search, command).read_text())
    assert found["best_params"] == best.params and found["best_value"] == best.value
    assert found["confirm"] == confirm.removeprefix("confirm: ") and len(found["trials"]) == 3
