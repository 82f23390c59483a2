"""A composed configuration made ready: seeds, engines, and values that are still missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlaif.errors import UserError
from rlaif.options.schema import missing_value

SEEDS = {
    "sft": ("sft",),
    "sample": ("sample",),
    "label": ("label",),
    "rm": ("rm",),
    "rl": ("rl",),
    "eval": ("eval",),
    "pipeline": ("rm", "rl"),
}


def apply_seed(cfg: DictConfig) -> None:
    """`seed=` sets the requested stage's seed only (for `pipeline`: rm and rl), so that the rest is shared.

    An arm of a comparison counts as the stage that it runs `until`; until eval, as a pipeline.
    """
    stage = cfg.stage
    if stage == "compare":
        stage = "pipeline" if cfg.until == "eval" else cfg.until
    if cfg.seed is not None:
        for name in SEEDS.get(stage, ()):
            cfg.seeds[name] = cfg.seed


def apply_engine(cfg: DictConfig) -> None:
    """`backend: null` of a labeler or judge becomes the engine that `backend=` sets up.

    With `models.tiny=true` the engine of this process is a random model, which puts no mass on any choice:
    there `min_mass` is 0, since it would stop all that is tried with it. A server's model stays what it is.
    """
    for key in ("labeler", "judge"):
        if cfg[key].backend is None:
            cfg[key].backend = cfg.backend.engine
        if cfg.models.tiny and cfg[key].backend == "transformers":
            cfg[key].min_mass = 0.0


def require_values(cfg: DictConfig) -> None:
    """Raises UserError for a key that has no value (`???`)."""
    missing = list(_without_value(OmegaConf.to_container(cfg, resolve=False), ""))
    if missing:
        raise UserError(missing_value(missing))


def _without_value(node: Any, place: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _without_value(value, f"{place}.{key}".lstrip("."))
    elif node == "???":
        yield place
