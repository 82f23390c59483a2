"""A comparison on W&B: each arm and seed is a run of one group, with the numbers that the run directory has."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import Any

import pytest
from jobs import start_job
from wandb_files import OfflineRun, offline_runs

from rlaif.io import read_jsonl
from rlaif.tracking.glossary import describe
from rlaif.tracking.runs import RunRecord
from rlaif.tracking.wandb_run import AXES

WORDS = [
    "stage=compare",
    "profile=smoke",
    "until=rl",
    "+arms.likely=['labeler=likelihood']",
    "+arms.longer=['labeler=scripted','labeler.scripted.rule=longer']",
    "+repeat={seeds.rl:[7,8]}",
    "tracking.mode=offline",
    "tracking.upload=text",
]
ARMS = [(arm, f"seeds.rl={seed}") for arm in ("likely", "longer") for seed in (7, 8)]


@pytest.fixture(scope="module")
def compared(warm_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunRecord]:
    home = str(tmp_path_factory.mktemp("wandb"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, home)
        record = start_job([*WORDS, f"paths.root={warm_root}"])
    assert record is not None
    yield record


@pytest.fixture(scope="module")
def logs(compared: RunRecord) -> dict[str, OfflineRun]:
    """By name; the comparison's own is under the empty one."""
    return {run.name if run.job_type == "arm" else "": run for run in offline_runs(compared.path)}


def test_one_group_holds_the_comparison_and_each_arm_and_seed(compared, logs) -> None:
    assert set(logs) == {"", *(f"{arm}, {run}" for arm, run in ARMS)}
    assert {run.group for run in logs.values()} == {f"compare-{compared.id}"}
    assert [run.exit for run in logs.values()] == [0] * 5
    assert logs[""].job_type == "comparison"
    for arm, run in ARMS:
        config = logs[f"{arm}, {run}"].config
        assert (config["arm"], config["seed"], config["comparison"]) == (arm, int(run[-1]), compared.id)
        assert config["seeds"]["rl"] == int(run[-1])
        assert config["labeler"]["name"] == ("likelihood" if arm == "likely" else "scripted")
        assert not {"arms", "repeat", "compare"} & set(config)


def test_the_numbers_are_those_of_the_run_directory(compared, logs) -> None:
    rows = compared.table("arm_runs")
    assert [(row["arm"], row["run"]) for row in rows] == ARMS
    for row in rows:
        summary = logs[f"{row['arm']}, {row['run']}"].summary
        numbers = {name: value for name, value in row.items() if "/" in name}
        assert len(numbers) > 50 and {name: summary.get(name) for name in numbers} == numbers
    assert {name: logs[""].summary.get(name) for name in compared.summary} == dict(compared.summary)
    for table in ("arms", "arm_runs", "labelers"):
        own = compared.table(table)
        assert _plain(logs[""].rows(table)) == _plain(own) and len(own) > 1


def _plain(rows: Any) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if isinstance(value, int | float | str)} for row in rows
    ]


def test_an_arm_has_its_own_curves_also_of_what_was_there(compared, logs) -> None:
    """The second seed trains only RL: the SFT policy and the reward model are the first one's, with their curves."""
    curves = {name: [row for row in run.history if "rl/kl" in row] for name, run in logs.items() if name}
    for (arm, run), name in zip(ARMS, curves, strict=True):
        policy = next(artifact for kind, artifact, _, _ in logs[name].artifacts if kind == "policy")
        kept = list(read_jsonl(compared.root / "artifacts" / policy / "history.jsonl"))
        assert [row["rl/kl"] for row in curves[name]] == [row["rl/kl"] for row in kept], (arm, run)
        assert [row["rl/iteration"] for row in curves[name]] == [row["step"] for row in kept] != []
    kl = {name: [row["rl/kl"] for row in rows] for name, rows in curves.items()}
    assert len({tuple(values) for values in kl.values()}) == 4  # no two are the same curve, nor mixed
    rows = [row for row in compared.table("arm_histories") if row["arm"] == "likely"]
    for seed, name in enumerate(("likely, seeds.rl=7", "likely, seeds.rl=8")):
        assert [row["rl/kl"] for row in rows if row["seed"] == seed] == kl[name]
    for part in ("sft/val_loss", "rm/loss"):
        parts = {
            name: [(row[AXES[part[:3].strip("/")]], row[part]) for row in run.history if part in row]
            for name, run in logs.items()
            if name
        }
        assert all(parts.values())
        assert parts["likely, seeds.rl=7"] == parts["likely, seeds.rl=8"]
    assert not any("/" in name for row in logs[""].history for name in row)
    labelled = {(row["arm"], row["run"]) for row in compared.history}
    assert labelled <= set(ARMS) and ("longer", "seeds.rl=8") in labelled


def test_the_kl_can_be_an_x_axis(logs) -> None:
    """Each row with a metric of RL has it."""
    rows = [row for run in logs.values() for row in run.history if "rl/reward" in row]
    assert rows and all(math.isfinite(row["rl/kl"]) for row in rows)


def test_every_name_is_in_the_registry(logs) -> None:
    names = {
        name
        for run in logs.values()
        for row in (*run.history, _without_tables(run.summary))
        for name in row
        if not name.startswith("_")
    }
    assert sorted(n for n in names if describe(n) is None and n not in {"step", *AXES.values()}) == []
    assert {"rl/kl", "rm/loss", "rl/iteration", "likely/rl/reward"} <= names


def _without_tables(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if not name.startswith("tables/")}


def test_lineage_leads_from_the_data_to_the_policy(logs) -> None:
    made: dict[str, str] = {}
    for arm, run in ARMS:
        found = logs[f"{arm}, {run}"]
        chain = {kind: (name, used, known) for kind, name, used, known in found.artifacts}
        assert {"dataset", "pairs", "labels", "reward-model", "policy"} <= set(chain)
        assert chain["dataset"][1] and not chain["policy"][1]
        for child, parent in (("policy", "reward-model"), ("reward-model", "labels"), ("labels", "pairs")):
            assert chain[parent][0] in chain[child][2]["parents"]
        if run == "seeds.rl=8":  # labels and reward model are those of the seed before
            assert chain["reward-model"][1] and chain["labels"][1]
        made |= {name: found.digests[name] for _, name, used, _ in found.artifacts if not used}
    for run in logs.values():  # what one run made is the same version where another uses it
        for _, name, _, _ in run.artifacts:
            assert run.digests[name] == made.get(name, run.digests[name])
    assert all(used for _, _, used, _ in logs[""].artifacts)
    policies = {name for kind, name, _, _ in logs[""].artifacts if kind == "policy"}
    assert len(policies) == 4 <= len(made)


def test_samples_and_judgements_are_tables_of_the_arm(logs) -> None:
    found = logs["longer, seeds.rl=7"]
    assert {"judgements", "items"} <= set(found.tables)
    assert all(row["id"] for row in found.rows("items"))


def test_the_printed_command_finds_every_run(compared, warm_root, capsys) -> None:
    start_job(["stage=sft", "profile=smoke", "tracking.mode=offline", f"paths.root={warm_root}"])
    (line,) = re.findall(r"^upload to W&B: (.*)$", capsys.readouterr().out, flags=re.MULTILINE)
    words = shlex.split(line)
    assert words[:2] == ["wandb", "sync"] and len(words) == 3
    found = {Path(place) for place in glob(words[2])}
    every = {file.parent for file in (warm_root / "runs").rglob("run-*.wandb")}
    assert {place.resolve() for place in found} == {place.resolve() for place in every} and len(found) >= 6
