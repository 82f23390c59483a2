"""Saves a workspace and a report at W&B, each time in place of what an earlier call has saved."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlaif.io import read_json, write_json
from rlaif.tracking.wandb_run import check_reachable

logger = logging.getLogger(__name__)

Ids = Mapping[str, str]
_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "workspace": ("_internal_name", "_internal_id"),
    "report": ("id",),
}
"""Where the package's own objects keep which saved view they are."""


def save(models: Mapping[str, Any], memory: Path) -> Mapping[str, str]:
    """Save `workspace` and `report`; their addresses. `memory` is the file with the ids of what was saved.

    A login's own entity is used where none is set. Raises OSError if the server accepts no connection, and W&B's own
    exceptions.
    """
    check_reachable()
    import wandb

    entity = next(iter(models.values())).entity or str(wandb.Api().default_entity)
    place = f"{entity}/{next(iter(models.values())).project}"
    known: dict[str, dict[str, Ids]] = read_json(memory) if memory.is_file() else {}
    addresses = {}
    for name, model in models.items():
        model.entity = entity
        ids = _save(model, _ATTRIBUTES[name], known.get(place, {}).get(name))
        known.setdefault(place, {})[name] = ids
        write_json(memory, known)
        addresses[name] = str(model.url)
    return addresses


def _save(model: Any, attributes: tuple[str, ...], ids: Ids | None) -> Ids:
    """Save in place of the view `ids`, or anew if there is none or it was deleted."""
    fresh = {key: getattr(model, key) for key in attributes}
    if ids is not None:
        _set(model, ids)
        if not _refused(model.save):
            return {key: getattr(model, key) for key in attributes}
        _set(model, fresh)
    model.save()
    return {key: getattr(model, key) for key in attributes}


def _set(model: Any, values: Mapping[str, str]) -> None:
    for key, value in values.items():
        setattr(model, key, value)


def _refused(save_in_place: Callable[[], object]) -> bool:
    try:
        save_in_place()
    except Exception as error:  # W&B's own types are many
        logger.info("W&B does not have the earlier view (%s): saving a new one", error)
        return True
    return False
