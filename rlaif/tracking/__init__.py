"""Run records, W&B, and the glossary of metrics. (The Lightning logger is in `rlaif.tracking.lightning`.)"""

from rlaif.tracking.run import Run, Watch, run_directory
from rlaif.tracking.wandb_run import WandbOptions, check_environment

__all__ = ["Run", "WandbOptions", "Watch", "check_environment", "run_directory"]
