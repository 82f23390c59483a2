"""A research harness for reinforcement learning from AI feedback (Lee et al. 2023, arXiv:2309.00267).

The Python API is `run`, `load_runs`, `Labeler`, `load_policy` and `load_reward_model` (see `rlaif.api`), with the
records `Pair`, `Preference` and `RunRecord` and the error `UserError`. They are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlaif.version import __version__

if TYPE_CHECKING:
    from rlaif.api import Labeler, load_policy, load_reward_model, load_runs, run
    from rlaif.errors import UserError
    from rlaif.records import Pair, Preference
    from rlaif.tracking.runs import RunRecord

_HOMES = {
    **dict.fromkeys(("Labeler", "load_policy", "load_reward_model", "load_runs", "run"), "rlaif.api"),
    **dict.fromkeys(("Pair", "Preference"), "rlaif.records"),
    "RunRecord": "rlaif.tracking.runs",
    "UserError": "rlaif.errors",
}
__all__ = [
    "Labeler",
    "Pair",
    "Preference",
    "RunRecord",
    "UserError",
    "__version__",
    "load_policy",
    "load_reward_model",
    "load_runs",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rlaif' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
