"""Processes that train one module together, as few functions that do nothing where there is one process alone.

Every process holds the same weights and the same rows. Of each batch it takes its share, and what is summed
over the batch is summed over the processes: so an update is that of one process with the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
Rows = TypeVar("Rows", bound=Sequence[Any] | Tensor)


def ranks() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def own_share(rows: Rows) -> Rows:
    """This process's part of `rows`: neighbours, as many as the others have, or one fewer."""
    first, last = (len(rows) * (rank() + i) // ranks() for i in (0, 1))
    return cast(Rows, rows[first:last])


def joined(own: Sequence[T]) -> list[T]:
    """The parts of all processes one behind the other: what `own_share` has split."""
    if ranks() == 1:
        return list(own)
    parts: list[list[T]] = [[]] * ranks()
    dist.all_gather_object(parts, list(own))
    return [row for part in parts for row in part]


def total(value: Tensor) -> Tensor:
    """The sum of `value`, of one shape everywhere, over the processes; no gradient passes."""
    if ranks() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def by_first(compute: Callable[[], T]) -> T:
    """What the first process computes, for all of them; `compute` is called there alone."""
    if ranks() == 1:
        return compute()
    box = [compute() if rank() == 0 else None]
    dist.broadcast_object_list(box)
    return cast(T, box[0])
