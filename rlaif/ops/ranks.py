"""Processes that train one module together: a few functions that do nothing when there is only one process.

Every process holds the same weights and rows. It takes its share of each batch, and sums over the batch are summed
over the processes, so that an update equals that of one process with the whole batch.
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
    """This process's contiguous part of `rows`; parts differ by at most one row."""
    first, last = (len(rows) * (rank() + i) // ranks() for i in (0, 1))
    return cast(Rows, rows[first:last])


def joined(own: Sequence[T]) -> list[T]:
    """The parts of all processes, concatenated: the inverse of `own_share`."""
    if ranks() == 1:
        return list(own)
    parts: list[list[T]] = [[]] * ranks()
    dist.all_gather_object(parts, list(own))
    return [row for part in parts for row in part]


def total(value: Tensor) -> Tensor:
    """The sum over processes of `value`, which has the same shape in all; no gradient passes."""
    if ranks() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def by_first(compute: Callable[[], T]) -> T:
    """The result of `compute`, called only in the first process, for all processes."""
    if ranks() == 1:
        return compute()
    box = [compute() if rank() == 0 else None]
    dist.broadcast_object_list(box)
    return cast(T, box[0])
