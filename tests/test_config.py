"""Every YAML file composes, says what it is for, and is where the interface says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from rlaif.app.command.help import help_text
from rlaif.app.command.words import arranged
from rlaif.app.job import OTHER_STAGES
from rlaif.options.job import Options
from rlaif.options.read import read
from rlaif.stages.registry import STAGES

CODE = Path(__file__).resolve().parents[1]
CONF = CODE / "conf"
HYDRA_GROUPS = {"hydra", "templates"}
# Values that a file leaves to the user (`???`).
GIVEN = {
    "task=custom": ["task.path=FILE"],
    "model=hub": ["model.name=DIR"],
    "reward=hub": ["reward.name=DIR"],
    "backend=openai": ["backend.base_url=URL", "backend.name=NAME"],
}


def _options(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.yaml") if not file.stem.startswith("_"))


GROUPS = {
    folder.name: _options(folder)
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name not in HYDRA_GROUPS
} | {name: _options(CODE / name) for name in ("experiments", "sweeps")}
FILES = [
    file
    for name in ("conf", "experiments", "sweeps")
    for file in sorted((CODE / name).rglob("*.yaml"))
    if "templates" not in file.parts
]


@pytest.fixture(scope="module")
def composed() -> Iterator[Callable[..., DictConfig]]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *overrides: compose("config", overrides=list(overrides), return_hydra_config=True)


def _plain(cfg: DictConfig) -> dict[str, Any]:
    copy = cfg.copy()
    OmegaConf.set_struct(copy, False)
    copy.pop("hydra")
    return OmegaConf.to_container(copy, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


@pytest.mark.parametrize("position", range(max(map(len, GROUPS.values()))))
def test_every_option_of_every_group_composes(composed, position: int) -> None:
    """One option of each group at a time, so that a few compositions read every file."""
    words = [f"{group}={options[position]}" for group, options in GROUPS.items() if position < len(options)]
    given = [value for word in words for value in GIVEN.get(word, [])]
    values = _plain(composed(*words, *given))
    for word in words:
        group, option = word.split("=")
        if group in ("labeler", "judge"):
            assert values[group]["name"] == option
        elif group == "stage" and not {"experiments", "sweeps"} & {w.split("=")[0] for w in words}:
            assert values["stage"] == option
        elif group == "task":
            assert values["task"]["name"] == option
    read(Options, values)
    assert "???" not in str(values)


def test_the_groups_and_stages_are_those_of_the_interface() -> None:
    wanted = {*"stage task model backend labeler judge rm reward rl trainer tracking profile".split()}  # noqa: SIM905
    assert wanted | {"experiments", "sweeps"} <= set(GROUPS)
    assert set(GROUPS["stage"]) == {*STAGES, *OTHER_STAGES, "ppo"}, "ppo is another name for rl"
    assert GROUPS["judge"] == GROUPS["labeler"]
    assert {"base", "detailed", "fewshot", "cot", "likelihood", "scripted"} <= set(GROUPS["labeler"])
    assert GROUPS["experiments"] and GROUPS["sweeps"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CODE)))
def test_every_file_says_what_it_is_for(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    package = lines[0] == "# @package _global_"
    trivial = len(lines) <= 2 and file.parent.name == "stage"
    assert trivial or lines[1 if package else 0].startswith(("# ", "defaults:")), file
    if file.parent.name in ("experiments", "sweeps"):
        assert package and any(f"={file.stem}" in line for line in lines[:6]), "the command is in the header"


def test_the_flag_of_a_multirun_may_be_appended() -> None:
    words = ["stage=rm", "labeler=base,cot", "-m", "seed=0,1"]
    assert arranged(words) == ["-m", "stage=rm", "labeler=base,cot", "seed=0,1"]
    assert arranged(["a=1", "b=2"]) == ["a=1", "b=2"], "nothing else moves"


def test_help_names_every_option_and_no_other_file() -> None:
    """What a newcomer reads first: the commands, then each group's options with a line on each."""
    shown = help_text(CODE, "rlaif")
    groups = {
        head.split("=")[0]: body for head, _, body in (b.partition("\n") for b in shown.split("\n\n")[2:])
    }
    for group, options in GROUPS.items():
        if group == "judge" or options == ["default"]:
            assert group == "judge" or f"{group}.KEY" in shown
            continue
        lines = groups[group].splitlines()
        assert [line.split()[0] for line in lines] == sorted(options), group
        assert all(len(line.split()) > 3 for line in lines), "a line on each"
    assert "_common" not in shown and "templates" not in shown and "experiments=NAME" in shown


def test_judge_is_the_labeler_unless_it_is_chosen(composed) -> None:
    same = _plain(composed("labeler=cot", "task=helpful"))
    assert same["judge"] == same["labeler"] and same["judge"]["name"] == "cot"
    # Where the author's sentence is known, it judges; an experiment or the command line may choose another.
    assert _plain(composed("labeler=cot"))["judge"]["name"] == "reference"
    assert _plain(composed("experiments=label_vs_length"))["judge"]["name"] == "likelihood"
    apart = _plain(composed("labeler=cot", "judge=base", "judge.order=first"))
    assert (apart["labeler"]["name"], apart["judge"]["name"]) == ("cot", "base")
    assert (apart["labeler"]["order"], apart["judge"]["order"]) == ("both", "first")


def test_profiles_set_sizes_only() -> None:
    """A profile that changed a learning rate, the KL weight or a temperature would make smoke another algorithm."""
    fixed = {"lr", "beta", "temperature", "clip", "gamma", "lam", "algorithm", "schedule"}
    for file in (CONF / "profile").glob("*.yaml"):
        values = yaml.safe_load(file.read_text()) or {}
        keys = {key for node in values.values() if isinstance(node, dict) for key in node}
        assert not keys & fixed, file.name


def test_seeds_default_to_zero_and_seed_to_none(composed) -> None:
    values = _plain(composed())
    assert values["seed"] is None
    assert values["seeds"] == dict.fromkeys(
        ("data", "revise", "sft", "sample", "label", "rm", "rl", "eval"), 0
    )
    assert values["stage"] == "pipeline" and values["tracking"]["mode"] == "auto"


def test_a_sweep_file_is_a_multirun(composed) -> None:
    for name in GROUPS["sweeps"]:
        hydra = composed(f"sweeps={name}").hydra
        jobs = math.prod(value.count(",") + 1 for value in map(str, hydra.sweeper.params.values()))
        assert str(hydra.mode) == "RunMode.MULTIRUN" and jobs >= 2, name


def test_a_wandb_sweep_names_real_keys_and_no_hydra_option(composed) -> None:
    """They are below sweeps/, where Hydra looks, but only for W&B's agent."""
    files = sorted((CODE / "sweeps" / "wandb").glob("*.yaml"))
    assert files
    for file in files:
        values = yaml.safe_load(file.read_text())
        assert values["program"] == "train.py" and "${args_no_hyphens}" in values["command"]
        words = [
            f"{key}={node['values'][0] if 'values' in node else node['min']}"
            for key, node in values["parameters"].items()
        ]
        words += [word for word in values["command"] if not word.startswith("${")]
        stage = "compare" if file.stem == "ledger" else values["command"][3].removeprefix("stage=")
        assert _plain(composed(*words))["stage"] == stage, "values and steps: tests/search"


def test_directories_hang_on_the_root(composed, tmp_path: Path) -> None:
    hydra = composed(f"paths.root={tmp_path}").hydra
    assert hydra.run.dir.startswith(str(tmp_path)) and hydra.sweep.dir.startswith(str(tmp_path))
