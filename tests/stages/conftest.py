"""Stages as users run them: composed by Hydra, in this warm process, over artifacts that the tests share."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import processes
import pytest
from jobs import CODE, job_context, start_job

from rlaif.labelers import LabelStore
from rlaif.stages.common.context import Context
from rlaif.tracking.runs import RunRecord

OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def warm_root(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The root that tests share: what one has built, the next reuses. Tests must not break it.

    All processes share the embedded model's converted file.
    """
    root = tmp_path_factory.mktemp("warm")
    assert pytestconfig.cache is not None
    models = pytestconfig.cache.mkdir("embedded-model") / "models"
    models.mkdir(exist_ok=True)
    (root / "cache").mkdir()
    (root / "cache" / "models").symlink_to(models)
    return root


@pytest.fixture(scope="session")
def run(warm_root: Path) -> Callable[..., RunRecord | None]:
    """`run("stage=rm", ..., root=None, group=None)`: one job under profile=smoke; its record, None for a plan."""

    def start(*overrides: str, root: Path | None = None, group: str | None = None) -> RunRecord | None:
        words = ["profile=smoke", "tracking=none", f"paths.root={root or warm_root}", *overrides]
        return start_job(words, group)

    return start


@pytest.fixture(scope="session")
def pipeline(run: Callable[..., RunRecord]) -> RunRecord:
    """The whole path under profile=smoke, once for the session."""
    return run("stage=pipeline")


@pytest.fixture
def copied_root(warm_root: Path, pipeline: RunRecord, tmp_path: Path) -> Callable[[Sequence[str]], Path]:
    """`copied_root(["sft", "rm"])`: a root of its own that starts with the pipeline's artifacts of these kinds."""

    def copy(kinds: Sequence[str]) -> Path:
        # Not whatever else the shared root has: that hangs on which tests have run before.
        for row in pipeline.lineage:
            if row.kind in kinds:
                shutil.copytree(warm_root / "artifacts" / row.name, tmp_path / "artifacts" / row.name)
        shutil.copytree(warm_root / "cache", tmp_path / "cache", symlinks=True)
        return tmp_path

    return copy


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`command("stage=rm", ..., cwd=...)`: train.py as a user starts it."""

    def start(*words: str, cwd: Path = CODE, **env: str) -> subprocess.CompletedProcess[str]:
        return processes.run_command(words, cwd=cwd, env={**_clean_environment(os.environ), **OFFLINE, **env})

    return start


@pytest.fixture(scope="session")
def start_process() -> Callable[..., processes.Command]:
    """`start_process("stage=rl", ...)`: train.py in the background, to be killed."""

    def start(*words: str) -> processes.Command:
        env = {**_clean_environment(os.environ), **OFFLINE}
        return processes.Command(words, cwd=CODE, env=env, folder=None)

    return start


def _clean_environment(environment: Any) -> dict[str, str]:
    """Without what the tests set for themselves: train.py must find its own place."""
    own = ("RLAIF_ROOT", "RLAIF_CODE", "WANDB_API_KEY")
    return {key: value for key, value in environment.items() if key not in own}


@pytest.fixture
def context(warm_root, tmp_path) -> Callable[..., Context]:
    """`context(*overrides)`: a job under profile=smoke that is only asked, not run, with labels of its own."""

    def make(*overrides: str) -> Context:
        words = ["profile=smoke", "tracking=none", f"paths.root={warm_root}", *overrides]
        ctx = job_context(words)
        ctx.label_store = LabelStore(tmp_path / "labels.sqlite", claim_seconds=60.0)
        return ctx

    return make
