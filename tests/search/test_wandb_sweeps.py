"""The W&B sweep files: W&B's own reader and command builder, the same space as Hydra's, and jobs that compose."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from jobs import CODE
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from wandb.sdk.launch.sweeps.utils import (
    create_sweep_command,
    create_sweep_command_args,
    load_sweep_config,
    make_launch_sweep_entrypoint,
)

from rlaif.app.compose import composed, read_options
from rlaif.app.search.space import read_space
from rlaif.tracking.glossary import describe, table

FILES = sorted((CODE / "sweeps" / "wandb").glob("*.yaml"))
KEYS = {"program", "method", "metric", "parameters", "command", "early_terminate", "run_cap"}
DISTRIBUTIONS = {"log_uniform_values": float, "int_uniform": int}
GOALS = {"up": "maximize", "down": "minimize"}

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def _sweep(file: Path) -> dict[str, Any]:
    found = load_sweep_config(str(file))
    assert found is not None
    return found


def _knob(parameter: dict[str, Any]) -> BaseDistribution:
    """A parameter by W&B's documentation: both ends are included, `values` are a choice."""
    if "values" in parameter:
        return CategoricalDistribution([str(value) for value in parameter["values"]])
    kinds = {
        "log_uniform_values": lambda low, high: FloatDistribution(low, high, log=True),
        "int_uniform": IntDistribution,
    }
    return kinds[parameter["distribution"]](parameter["min"], parameter["max"])


def test_every_sweep_has_a_file_for_wandb() -> None:
    assert [file.stem for file in FILES] == sorted(file.stem for file in (CODE / "sweeps").glob("*.yaml"))


@each_file
def test_the_file_is_as_wandb_reads_it(file) -> None:
    """The part of W&B's schema that the files use, closed: an unknown key would be ignored by its server."""
    sweep = _sweep(file)
    assert sweep.keys() <= KEYS and sweep["program"] == "train.py"
    assert sweep["method"] in ("grid", "bayes") and ("metric" in sweep or sweep["method"] == "grid")
    for parameter in sweep["parameters"].values():
        if sweep["method"] == "grid":
            assert parameter.keys() == {"values"} and len(parameter["values"]) > 1
        else:
            kind = DISTRIBUTIONS[parameter["distribution"]]
            assert parameter.keys() == {"distribution", "min", "max"}
            assert all(type(parameter[end]) is kind for end in ("min", "max")), (
                "1e-5 without a dot is a text in YAML"
            )
            assert 0 < parameter["min"] < parameter["max"]
    if sweep["method"] == "bayes":
        assert sweep["early_terminate"].keys() == {"type", "min_iter", "eta"} and sweep["run_cap"] > 0
        assert sweep["early_terminate"]["type"] == "hyperband"


@each_file
def test_the_metric_is_the_registrys_and_so_is_its_goal(file) -> None:
    sweep = _sweep(file)
    if "metric" not in sweep:
        assert file.stem == "ledger"
        return
    name, goal = sweep["metric"]["name"], sweep["metric"]["goal"]
    metric = describe(name)
    assert metric is not None and GOALS[metric.better] == goal
    if "early_terminate" in sweep:  # it reads the history
        assert name in {one.name for one in table("curves")} | {"rl/track_gold"}


@each_file
def test_it_searches_what_hydras_sweep_of_that_name_does(file) -> None:
    sweeper = yaml.safe_load((CODE / "sweeps" / file.name).read_text(encoding="utf-8"))["hydra"]["sweeper"]
    words = [f"{key}={value}" for key, value in sweeper["params"].items()]
    space, sweep = read_space(OverridesParser.create().parse_overrides(words)), _sweep(file)
    assert {key: _knob(parameter) for key, parameter in sweep["parameters"].items()} == dict(space.knobs)
    assert [word for word in sweep["command"] if not word.startswith("${")] == list(space.fixed)
    if "objective" in sweeper:
        assert (
            sweep["metric"]["name"] == sweeper.get("prune_on")
            or sweep["metric"]["name"] == sweeper["objective"]
        )


@each_file
def test_each_value_composes_by_the_command_that_wandbs_agent_builds(file) -> None:
    sweep = _sweep(file)
    ends = [
        [(key, value) for value in parameter.get("values", [parameter.get("min"), parameter.get("max")])]
        for key, parameter in sweep["parameters"].items()
    ]
    for point in itertools.zip_longest(*ends):
        chosen = [pair or own[-1] for pair, own in zip(point, ends)]
        variables = create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen}})
        entry, arguments = make_launch_sweep_entrypoint(
            variables, create_sweep_command(list(sweep["command"]))
        )
        assert entry is not None and entry[:3] == ["${env}", "${interpreter}", "${program}"]
        words = [*entry[3:], *arguments]
        with composed([*words, f"paths.root={sys.prefix}/none"]) as cfg:
            options = read_options(cfg)
        for key, value in chosen:
            if key not in ("labeler", "experiments"):  # groups: composing them is the check
                assert OmegaConf.select(cfg, key) == value
        assert options.stage == ("compare" if file.stem == "ledger" else words[0].partition("=")[2])
