"""What a search is for: directions of the registry, and the sentences for metrics that have none."""

from __future__ import annotations

import pytest

from rlaif.app.search.objective import Objective, read_objectives, read_values
from rlaif.app.search.trial import check_pruner
from rlaif.errors import UserError
from rlaif.options.read import read
from rlaif.options.search import SearchOptions


@pytest.mark.parametrize(
    "objective, direction",
    [("rm/accuracy", "maximize"), ("rm/best_val_loss", "minimize"), ("rm/accuracy_ci_low", "maximize")],
)
def test_the_registry_knows_the_direction(search_options, objective, direction) -> None:
    assert read_objectives(search_options(objective=objective), "rm") == (Objective(objective, direction),)


def test_without_a_word_it_is_what_ranks_the_stages_arms(search_options) -> None:
    found = {
        stage: read_objectives(search_options(), stage)[0].name for stage in ("rm", "label", "rl", "pipeline")
    }
    assert found == {
        "rm": "rm/accuracy",
        "label": "label/alignment",
        "rl": "rl/reward",
        "pipeline": "eval/win_rate",
    }


@pytest.mark.parametrize(
    "values, said",
    [
        ({"objective": "rm/acuracy"}, "rm/acuracy is not a metric: did you mean rm/accuracy"),
        ({"objective": "zzz"}, "zzz is not a metric: write one of"),
        ({"objective": "rm/n"}, "rm/n is better neither .* or hydra.sweeper.direction=minimize or maximize"),
        ({"objective": ["rm/accuracy", "rl/kl"]}, "rl/kl is better neither"),
        ({"objective": "rm/ece", "direction": ["minimize", "maximize"]}, "2 values for 1 objectives"),
        (
            {"objective": "rm/ece", "direction": "down"},
            "direction=down is not known: write minimize, maximize",
        ),
    ],
)
def test_what_cannot_be_optimised_is_refused(search_options, values, said) -> None:
    with pytest.raises(UserError, match=said):
        read_objectives(search_options(**values), "rm")


def test_a_stated_direction_stands(search_options) -> None:
    options = search_options(objective=["rm/accuracy", "rl/kl"], direction=["maximize", "minimize"])
    assert [one.direction for one in read_objectives(options, "rl")] == ["maximize", "minimize"]


def test_a_run_without_the_metric_names_those_that_it_has() -> None:
    summary = {"rm/accuracy": 0.7, "rm/ece": None, "rm/gold_source": "simulated"}
    assert read_values(summary, [Objective("rm/accuracy", "maximize")]) == [0.7]
    with pytest.raises(UserError, match="no rm/acc: write hydra.sweeper.objective=rm/accuracy"):
        read_values(summary, [Objective("rm/acc", "maximize")])
    with pytest.raises(UserError, match="rm/ece is None, not a number"):
        read_values(summary, [Objective("rm/ece", "minimize")])


@pytest.mark.parametrize(
    "values, objectives, said",
    [
        (
            {"prune_on": "rm/val_loss"},
            ["rm/accuracy"],
            "read by no pruner: write hydra.sweeper.pruner=median",
        ),
        ({"pruner": "median"}, ["rm/accuracy", "rm/ece"], "needs a single objective"),
        ({"pruner": "median", "prune_on": "rm/lr"}, ["rm/accuracy"], "prune_on=rm/lr is better neither"),
        ({"pruner": "median", "prune_on": "rm/val_los"}, ["rm/accuracy"], "did you mean rm/val_loss"),
    ],
)
def test_a_pruner_without_anything_to_go_by_is_refused(search_options, values, objectives, said) -> None:
    with pytest.raises(UserError, match=said):
        check_pruner(search_options(**values), [Objective(name, "maximize") for name in objectives])


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("sampler", "cmaes", "hydra.sweeper.sampler=cmaes is not known: write tpe, random or grid"),
        ("n_trials", 0, "hydra.sweeper.n_trials=0 is out of range"),
        ("trials", 3, "hydra.sweeper.trials is not a configuration key"),
        ("max_failure_rate", 2, "hydra.sweeper.max_failure_rate=2"),
    ],
)
def test_a_wrong_option_names_its_key(search_values, key, value, said) -> None:
    with pytest.raises(UserError, match=said):
        read(SearchOptions, {**search_values, key: value}, "hydra.sweeper")
