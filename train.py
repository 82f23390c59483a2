"""`python train.py stage=rm labeler=cot`: the one command. See README.md; every option lives in conf/."""

import os
import sys
import tempfile
import uuid
from pathlib import Path

os.environ.setdefault("RLAIF_ROOT", str(Path(__file__).resolve().parent))
os.environ |= {"HYDRA_FULL_ERROR": "1", "RLAIF_JOB": uuid.uuid4().hex[:8]}

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlaif.app.command_line import arranged, help_text, one_sentence
from rlaif.app.disk import not_written
from rlaif.errors import UserError

FAILED = "RLAIF_FAILED"  # names the file in which jobs note that they failed: some launchers start processes


def report(error: Exception) -> None:
    """A user's mistake: one sentence on stderr, no traceback."""
    print(f"error: {one_sentence(error)}", file=sys.stderr)
    Path(os.environ[FAILED]).write_text(f"{one_sentence(error)}\n", encoding="utf-8")


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    from rlaif.app.job import run_job

    job = HydraConfig.get()
    group = Path(job.sweep.dir).name if job.mode == RunMode.MULTIRUN else None
    try:
        summary = run_job(cfg, list(job.overrides.task), group)
    except (UserError, OmegaConfBaseException, HydraException) as error:
        report(error)  # in a multirun the later jobs still run; the exit code tells at the end
        return
    if summary:
        print(f"summary: {summary}")


if __name__ == "__main__":
    sys.argv[1:] = arranged(sys.argv[1:])
    OmegaConf.register_new_resolver("rlaif_help", lambda: help_text(Path(os.environ["RLAIF_ROOT"])))
    with tempfile.TemporaryDirectory(prefix="rlaif-") as folder:
        os.environ[FAILED] = str(Path(folder) / "failed")
        try:
            main()
        except (UserError, OmegaConfBaseException, HydraException) as error:
            report(error)
        except OSError as error:  # Hydra's own folders
            report(not_written(error))
        failed = Path(os.environ[FAILED]).exists()
    sys.exit(2 if failed else 0)
