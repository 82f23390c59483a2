"""Where the jobs of a sweep run: what a launcher needs, and how it shares this machine among them."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig

from rlaif.app.home import CODE
from rlaif.errors import UserError
from rlaif.io.cores import SHARE, cores

_PACKAGES = {
    "joblib": ("hydra_joblib_launcher", "hydra-joblib-launcher"),
    "submitit_local": ("hydra_submitit_launcher", "hydra-submitit-launcher"),
    "submitit_slurm": ("hydra_submitit_launcher", "hydra-submitit-launcher"),
}


@dataclass(frozen=True)
class Place:
    """A launcher by name, and how many jobs it gets at once (None: all)."""

    name: str
    batch: int | None


def place_of(config: DictConfig, batch: int | None) -> Place:
    """The launcher of a multirun, ready to start processes. Raises UserError if what it needs is not there."""
    name = str(config.hydra.runtime.choices["hydra/launcher"])
    if batch is not None and batch < 1:
        raise UserError(
            f"hydra.sweeper.max_batch_size={batch}: write a number of jobs, or null for all at once"
        )
    if name in _PACKAGES:
        _check(name)
    at_once = _at_once(name, config.hydra.launcher)
    if at_once is not None:
        os.environ[SHARE] = str(max(1, cores() // at_once))
    if (CODE / "train.py").is_file():  # a checkout, which other processes find wherever they are started
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CODE), os.environ.get("PYTHONPATH")]))
    # submitit starts all jobs that it gets in processes on this machine, at once.
    return Place(name, batch or (at_once if name == "submitit_local" else None))


def close(place: Place) -> None:
    """End the processes that joblib keeps for the next batch, and with them what they hold of memory and GPU."""
    if place.name == "joblib":
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)


def _at_once(name: str, launcher: Any) -> int | None:
    """How many jobs share this machine; None where they do not."""
    if name == "joblib":
        return cores() if launcher.n_jobs < 0 else int(launcher.n_jobs)
    if name == "submitit_local":
        return max(1, cores() // int(launcher.cpus_per_task or 1))
    return None


def _check(name: str) -> None:
    module, package = _PACKAGES[name]
    if find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{module}") is None:
        raise UserError(
            f"hydra/launcher={name} needs {package}, which is not installed: run `pip install 'rlaif[cluster]'`"
        )
    if name == "submitit_slurm" and shutil.which("sbatch") is None:
        raise UserError(
            f"hydra/launcher={name} needs Slurm's sbatch, which is not on PATH: start the sweep on a cluster, or "
            "write hydra/launcher=submitit_local"
        )
