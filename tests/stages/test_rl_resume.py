"""Every preset of `rl`, killed with SIGKILL where a checkpoint is or is not yet, and continued: not a bit differs."""

from __future__ import annotations

import json
import logging
import os
import signal
from itertools import count
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from rlaif.backends.transformers import TransformersBackend
from rlaif.inference.rollouts import RolloutCollector
from rlaif.io import sha256_file
from rlaif.stages.common.training.likelihood import LikelihoodModule
from rlaif.stages.common.training.trainer import CHECKPOINT, AtomicCheckpointIO
from rlaif.stages.rl.offline.module import PreferenceModule
from rlaif.stages.rl.online.module import PPOModule
from rlaif.stages.rl.online_pairs.module import OnlinePairsModule
from rlaif.tracking.runs import RunRecord

CONF = Path(__file__).resolve().parents[2] / "conf"
ITERATIONS = 3
COMMON = ["stage=rl", "rl.num_epochs=1.5", "rl.lr=0.003"]
OFFLINE = {"dpo": ["stage=rl", "rl=dpo", "rl.loss=kto", "rl.num_epochs=3", "rl.batch_size=8"]}
NEW_PAIRS = ["rl=online_dpo", "labeler=scripted", "labeler.scripted.rule=longer", "rl.batch_size=4"]
REVISED = ["stage=rl", "rl=sft_revisions", "rl.reviser=policy", "rl.num_prompts=8", "rl.batch_size=4"]
SPENT = ("usd", "tokens_in", "tokens_out", "tokens_cached", "reused")  # what was paid for in a process
ADAPTIVE = ["rl.kl_controller=adaptive", "rl.kl_target=0.01", "rl.kl_horizon=50"]
JOBS = {
    **{
        file.stem: [f"rl={file.stem}"]
        for file in sorted((CONF / "rl").glob("[!_]*.yaml"))
        if file.stem not in (*OFFLINE, "best_of_n", "online_dpo", "sft_preferred", "sft_revisions")
    },
    "adaptive": ["rl=ppo", *ADAPTIVE],
}
# What a run is killed at: the start of an iteration, in the middle of one, and before its checkpoint is written.
STARTING = (RolloutCollector, "collect")
UPDATING = (PPOModule, "training_step")
SAVING = (AtomicCheckpointIO, "save_checkpoint")


def _run_until(words: list[str], owner: type, name: str, call: int) -> None:
    """One job, killed when it calls `owner.name` for the `call`th time."""
    from rlaif.app.job import run_job

    calls, method = count(1), getattr(owner, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*arguments, **options)

    setattr(owner, name, counted)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=words, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        cfg.pop("hydra")
    run_job(cfg, words, None)


def _kill(words: list[str], moment: tuple[type, str], call: int) -> None:
    process = processes.start(_run_until, words, *moment, call)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _checkpoint(root: Path) -> dict[str, Any]:
    (partial,) = root.glob("artifacts/.partial-rl-*")
    return torch.load(partial / "work" / "checkpoints" / CHECKPOINT, weights_only=True)


def _results(record: RunRecord) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """Digest of the trained weights, and history and summary without times."""
    row = record.lineage[0]
    folder = Path(record.path).parents[2] / "artifacts" / row.name
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    rows = [_untimed(row) for row in (*history, record.summary)]
    return sha256_file(folder / "top.safetensors"), rows[:-1], rows[-1]


def _untimed(row: dict[str, Any]) -> dict[str, Any]:
    own = {k: v for k, v in row.items() if k.startswith("rl/") and "seconds" not in k and "per_s" not in k}
    return {k: v for k, v in own.items() if k.removeprefix("rl/") not in SPENT}


def _updates_of_an_iteration(words: list[str]) -> int:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        rl = compose("config", overrides=words).rl
    return rl.ppo_epochs * rl.prompts_per_iteration * rl.samples_per_prompt // rl.minibatch_rollouts


@pytest.mark.parametrize("name", JOBS)
def test_a_killed_run_ends_bit_identical(pipeline, run, copied_root, caplog, name: str) -> None:
    words = [*COMMON, *JOBS[name]]
    whole = _results(run(*words))
    root = copied_root(["sft", "sample", "label", "rm"])
    elsewhere = [*words, "profile=smoke", "tracking=none", f"paths.root={root}"]
    kills = [(UPDATING, _updates_of_an_iteration(elsewhere) + 2, 0), (STARTING, 2, 1)]
    if name == "adaptive":
        kills.insert(1, (SAVING, 1, 0))
    for (
        moment,
        call,
        kept,
    ) in kills:  # in the second iteration, before its checkpoint, at the third one's start
        _kill(elsewhere, moment, call)
        assert _checkpoint(root)["epoch"] == kept
    with caplog.at_level(logging.INFO, logger="rlaif"):
        ended = _results(run(*words, root=root))
    assert "continuing from the last whole epoch" in caplog.text
    assert ended == whole
    assert len(whole[1]) == ITERATIONS and len({row["rl/kl"] for row in whole[1]}) == ITERATIONS
    coefficients = {row["rl/kl_coefficient"] for row in whole[1]}
    assert len(coefficients) == (ITERATIONS if name == "adaptive" else 1)


@pytest.mark.parametrize("name", OFFLINE)
def test_a_killed_preference_run_ends_bit_identical(pipeline, run, copied_root, caplog, name: str) -> None:
    words = OFFLINE[name]
    whole = _results(run(*words))
    epoch = len(whole[1]) // 3
    root = copied_root(["sft", "sample", "label"])
    elsewhere = [*words, "profile=smoke", "tracking=none", f"paths.root={root}"]
    # In the second epoch, and before the third one's checkpoint is written.
    for moment, call, kept in (((PreferenceModule, "training_step"), epoch + 2, 0), (SAVING, 2, 1)):
        _kill(elsewhere, moment, call)
        assert _checkpoint(root)["epoch"] == kept
    with caplog.at_level(logging.INFO, logger="rlaif"):
        ended = _results(run(*words, root=root))
    assert "continuing from the last whole epoch" in caplog.text
    assert ended == whole
    assert len({row["rl/loss"] for row in whole[1]}) == 3 * epoch > 3


@pytest.mark.parametrize("reward", ["none", "length"])
def test_a_killed_run_on_new_pairs_ends_bit_identical(
    pipeline, run, copied_root, caplog, reward: str
) -> None:
    """Killed in the second iteration, whose labels are stored by then, before its checkpoint, and after it."""
    words = [*COMMON, *NEW_PAIRS, f"reward={reward}"]
    whole = _results(run(*words))
    root = copied_root(["sft"])
    elsewhere = [*words, "profile=smoke", "tracking=none", f"paths.root={root}"]
    for moment, call, kept in (
        ((OnlinePairsModule, "training_step"), 6, 0),
        (SAVING, 1, 0),
        (STARTING, 2, 1),
    ):
        _kill(elsewhere, moment, call)
        assert _checkpoint(root)["epoch"] == kept
    with caplog.at_level(logging.INFO, logger="rlaif"):
        ended = _results(run(*words, root=root))
    assert "continuing from the last whole epoch" in caplog.text
    assert ended == whole
    assert len(whole[1]) == ITERATIONS and len({row["rl/kl"] for row in whole[1]}) == ITERATIONS


def test_a_killed_run_on_revisions_ends_bit_identical(pipeline, run, copied_root) -> None:
    """Killed while it revises, in the second epoch, and before the last checkpoint."""
    words = [*REVISED, "rl.num_epochs=3", "rl.lr=0.003", "labeler.batch_size=4"]
    whole = _results(run(*words))
    root = copied_root(["sft"])
    elsewhere = [*words, "profile=smoke", "tracking=none", f"paths.root={root}"]
    _kill(
        elsewhere, (TransformersBackend, "generate"), 2
    )  # one of two batches of critiques is stored, no revision
    (partial,) = root.glob("artifacts/.partial-revise-*")
    first = (partial / "work" / "first.jsonl").read_text()
    for moment, call, kept in (((LikelihoodModule, "training_step"), 3, 0), (SAVING, 2, 1)):
        _kill(elsewhere, moment, call)
        assert _checkpoint(root)["epoch"] == kept
    ended = run(*words, root=root)
    assert _results(ended) == whole
    assert len({row["rl/loss"] for row in whole[1]}) == 6
    (revise,) = root.glob("artifacts/revise-*")
    revised = [json.loads(line) for line in (revise / "revisions.jsonl").read_text().splitlines()]
    drawn = [json.loads(line) for line in first.splitlines()]
    assert len(drawn) == 8
    assert {row["prompt_id"]: row["response"] for row in drawn} == {
        row["prompt_id"]: row["response"] for row in revised
    }
