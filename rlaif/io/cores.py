"""How many processor cores a job may use."""

from __future__ import annotations

import os
import sys

SHARE = "RLAIF_CORES"  # set by a sweep that runs several jobs on one machine: the cores of each


def cores() -> int:
    """The cores that this process may use; macOS does not say which, so all."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def own_cores() -> int:
    """The cores that are this job's, if it shares the machine with other jobs of a sweep."""
    return int(os.environ.get(SHARE) or cores())
