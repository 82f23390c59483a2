"""The families of algorithms behind `rl=`, and what each has to say for itself as a stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.stages.common.context import Context
from rlaif.stages.common.stage import Parents, Work
from rlaif.store import Artifact


@dataclass(frozen=True)
class Family:
    """Functions of `Stage` that differ between RL on rollouts and preference optimisation on labelled pairs."""

    parents: Callable[[Context], tuple[str, ...]]
    config: Callable[[Context], dict[str, Any]]
    build: Callable[[Context, Path, Parents], dict[str, Any]]
    work: Callable[[Context], Work]
    check: Callable[[Context], None]
    gate: Callable[[Context, Parents], dict[str, Any]] = lambda ctx, built: {}
    review: Callable[[Context, Artifact], dict[str, Any]] = lambda ctx, artifact: {}
