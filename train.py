"""`python train.py stage=rm labeler=cot`: the one command. See README.md; every option lives in conf/."""

import os
import sys
import uuid
from pathlib import Path

os.environ.setdefault("RLAIF_ROOT", str(Path(__file__).resolve().parent))
os.environ["HYDRA_FULL_ERROR"] = "1"
os.environ["RLAIF_JOB"] = uuid.uuid4().hex[:8]

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rlaif.errors import UserError

failed: list[str] = []


def one_sentence(error: Exception) -> str:
    """The error's own words on one line."""
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    from rlaif.stages.app import run_job

    job = HydraConfig.get()
    group = Path(job.sweep.dir).name if job.mode == RunMode.MULTIRUN else None
    try:
        summary = run_job(cfg, list(job.overrides.task), group)
    except (UserError, OmegaConfBaseException, HydraException) as error:
        # In a multirun the later jobs still run; the exit code tells at the end.
        failed.append(one_sentence(error))
        print(f"error: {failed[-1]}", file=sys.stderr)
        return
    if summary:
        print(f"summary: {summary}")


if __name__ == "__main__":
    try:
        main()
    except (UserError, OmegaConfBaseException, HydraException) as error:
        sys.exit(print(f"error: {one_sentence(error)}", file=sys.stderr) or 2)
    sys.exit(2 if failed else 0)
