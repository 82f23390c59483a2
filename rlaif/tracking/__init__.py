"""Run records, W&B, and the glossary of metrics. (The Lightning logger is in `rlaif.tracking.lightning`.)"""

from rlaif.tracking.run import Run, run_directory
from rlaif.tracking.wandb_run import WandbOptions

__all__ = ["Run", "WandbOptions", "run_directory"]
