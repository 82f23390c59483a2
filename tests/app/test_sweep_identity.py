"""Which command lines are the same sweep, and which jobs the same job."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rlaif.app.compose import composed
from rlaif.app.sweep.identity import Identity, flat_config, identity_of, job_key


def _identity(line: str) -> Identity:
    return identity_of(OverridesParser.create().parse_overrides(line.split()))


PLAIN = "stage=rm labeler=base,cot rm.lr=1e-4"


@pytest.mark.parametrize(
    "line",
    [
        "rm.lr=1e-4 labeler=base,cot stage=rm",
        "stage=rm labeler=base,cot,fewshot rm.lr=1e-4",
        "stage=rm labeler=base,cot labeler=base rm.lr=1e-4",
        f"{PLAIN} seed=0,1",
        f"{PLAIN} seed=3 seeds.sft=0,1",
        f"{PLAIN} tracking=none tracking.project=x paths.root=/tmp/x force=true trainer.threads=2",
        f"{PLAIN} sweep.on_drift=accept",
    ],
)
def test_order_values_seeds_and_what_changes_no_result_leave_a_sweep_itself(line: str) -> None:
    assert _identity(line).id == _identity(PLAIN).id


@pytest.mark.parametrize(
    "line",
    [
        "stage=rm labeler=base,cot rm.lr=2e-4",
        "stage=rm labeler=base,cot",
        "stage=label labeler=base,cot rm.lr=1e-4",
        "stage=rm labeler=base rm.lr=1e-4",
        "stage=rm labeler=base,cot rm.lr=1e-4,2e-4",
        f"{PLAIN} task=custom",
        f"{PLAIN} trainer=cpu",
        f"{PLAIN} export=DIR",
    ],
)
def test_another_fixed_word_or_swept_key_is_another_sweep(line: str) -> None:
    assert _identity(line).id != _identity(PLAIN).id


def test_a_sweep_is_called_by_its_file_its_experiment_or_its_stage() -> None:
    assert _identity("stage=label sweeps=labelers labeler=a,b").name == "labelers"
    assert _identity("experiments=c01_x rm.lr=1,2").name == "c01_x"
    assert _identity("stage=rm seed=1,2").name == "rm"
    assert _identity("seed=1,2").name == "pipeline"
    assert _identity("stage=sft,rm").name == "stages"
    assert _identity(PLAIN).swept == ("labeler",) and _identity(PLAIN).fixed == ("rm.lr=0.0001", "stage=rm")


def _key(*words: str) -> str:
    with composed(["profile=smoke", *words]) as cfg:
        return job_key(cfg, words)


def test_a_seed_that_says_what_holds_anyway_makes_no_other_job() -> None:
    assert _key("stage=rm") == _key("stage=rm", "seed=0") == _key("seeds.rm=0", "stage=rm")
    assert _key("stage=rm", "seed=1") == _key("stage=rm", "seeds.rm=1") != _key("stage=rm")
    assert _key("stage=rm", "seeds.sft=1") != _key("stage=rm", "seed=1")
    assert _key("stage=ppo", "seed=1") == _key("stage=ppo", "seeds.rl=1") != _key("stage=ppo")
    arms = ["stage=compare", "until=ppo"]
    assert _key(*arms, "seed=1") == _key(*arms, "seeds.rl=1") != _key(*arms)
    assert _key("seed=2") == _key("seeds.rm=2", "seeds.rl=2") != _key("seeds.rl=2")
    assert _key("stage=rm", "tracking=none", "paths.root=x") == _key("stage=rm")
    assert _key("stage=rm", "rm.lr=1e-4") != _key("stage=rm")


def test_a_configuration_is_flat_and_without_what_changes_no_result() -> None:
    found = flat_config(
        {
            "rm": {"lr": 1, "x": {}},
            "paths": {"root": "/"},
            "trainer": {"threads": 1, "devices": 2},
            "plan": True,
        }
    )
    assert found == {"rm.lr": 1, "rm.x": {}, "trainer.devices": 2}
