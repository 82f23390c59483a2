"""The datamodule layer: a base LightningDataModule with an SFT, a preference and a prompt view.

Rows hold token ids and, from the inference layer, the trunk's features of the same tokens (the ids themselves if the
model is `full`). Order and batches depend only on the seed and the epoch, so that a resumed run sees what an
uninterrupted one sees.

Notation: B rows, T positions, D hidden size. Masks are True where a position counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rlaif.ops import own_share
from rlaif.records import Pair


@dataclass(frozen=True)
class EncodedRow:
    """One encoded text: ids (P + R,), and features (P, D) and (R, D) of its prompt and response (ids if `full`)."""

    ids: Tensor
    prompt: Tensor
    response: Tensor

    @property
    def prompt_length(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded sequences: ids (B, T), features (B, T, D) or (B, T), response_mask (B, T), last (B,).

    `response_mask` is True on response tokens (EOS included); `last` is the index of the last real token.
    """

    ids: Tensor
    features: Tensor
    response_mask: Tensor
    last: Tensor

    def to(self, device: Any) -> TokenBatch:
        return TokenBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class PreferenceRow:
    """One pair as tensors, and its soft label.

    Features of the prompt (P, D) and of the responses a (A, D) and b (B, D), EOS included; ids (P,), (A,), (B,)
    if the model is `full`. `p_a` is the probability that a is better (NaN if unlabelled, which makes any loss NaN),
    `weight` the pair's weight in the loss: one number, or one per member of an ensemble.
    """

    pair: Pair
    prompt: Tensor
    a: Tensor
    b: Tensor
    p_a: float = math.nan
    weight: float | tuple[float, ...] = 1.0

    def __len__(self) -> int:
        """Tokens of prompt | a | b."""
        return len(self.prompt) + len(self.a) + len(self.b)


@dataclass(frozen=True)
class PreferenceBatch:
    """B pairs packed into one row of N tokens without padding, each as prompt | a | b.

    features (1, N, D) or (1, N); positions (1, N), which start at 0 in each pair, and for b again after the prompt;
    spans: where each pair's prompt, a and b start and where b ends; last (B, 2): the last token of a and of b;
    p_a (B,) and weight (B,), or (B, members), in float32. Under the attention of `spans` the scores are those of
    separate runs of prompt | a and prompt | b, at little more than half the tokens.
    """

    features: Tensor
    positions: Tensor
    spans: tuple[tuple[int, int, int, int], ...]
    last: Tensor
    p_a: Tensor
    weight: Tensor

    def to(self, device: Any) -> PreferenceBatch:
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def _joined(rows: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Each row's parts (., D) or (.,), concatenated and right-padded with zeros: (B, T, D) or (B, T)."""
    lengths = [sum(map(len, parts)) for parts in rows]
    like = rows[0][0]
    joined = torch.zeros(len(rows), max(lengths), *like.shape[1:], dtype=like.dtype)
    for own, parts, length in zip(joined, rows, lengths, strict=True):
        torch.cat(parts, out=own[:length])
    return joined


def collate_sequences(rows: Sequence[EncodedRow]) -> TokenBatch:
    """Right-pad rows.

    >>> first = EncodedRow(torch.tensor([5, 6, 7]), torch.tensor([5]), torch.tensor([6, 7]))
    >>> batch = collate_sequences([first, EncodedRow(torch.tensor([8, 9]), torch.tensor([8]), torch.tensor([9]))])
    >>> batch.ids.tolist(), batch.response_mask.tolist(), batch.last.tolist()
    ([[5, 6, 7], [8, 9, 0]], [[False, True, True], [False, True, False]], [2, 1])
    """
    ids = _joined([(row.ids,) for row in rows])
    features = _joined([(row.prompt, row.response) for row in rows])
    starts = torch.tensor([row.prompt_length for row in rows])
    ends = torch.tensor([len(row.ids) for row in rows])
    places = torch.arange(ids.shape[1])
    mask = (places >= starts[:, None]) & (places < ends[:, None])
    return TokenBatch(ids, features, mask, ends - 1)


def collate_preferences(rows: Sequence[PreferenceRow]) -> PreferenceBatch:
    """Pack the pairs into one row.

    >>> pair = Pair("id", "prompt id", "prompt", "response a", "response b", "dataset")
    >>> prompt, a, b = torch.tensor([1, 2]), torch.tensor([3, 4, 5]), torch.tensor([6, 7])
    >>> batch = collate_preferences([PreferenceRow(pair, prompt, a, b, p_a=0.9)])
    >>> batch.features.tolist(), batch.positions.tolist(), batch.spans, batch.last.tolist()
    ([[1, 2, 3, 4, 5, 6, 7]], [[0, 1, 2, 3, 4, 2, 3]], ((0, 2, 5, 7),), [[4, 6]])
    """
    spans, positions, start = [], [], 0
    for row in rows:
        a = start + len(row.prompt)
        b, end = a + len(row.a), start + len(row)
        spans.append((start, a, b, end))
        positions += [torch.arange(b - start), torch.arange(a - start, a - start + end - b)]
        start = end
    return PreferenceBatch(
        features=torch.cat([part for row in rows for part in (row.prompt, row.a, row.b)])[None],
        positions=torch.cat(positions)[None],
        spans=tuple(spans),
        last=torch.tensor([(b - 1, end - 1) for _, _, b, end in spans]),
        p_a=torch.tensor([row.p_a for row in rows], dtype=torch.float32),
        weight=torch.tensor([row.weight for row in rows], dtype=torch.float32),
    )


class Rows(Dataset):
    """A list as a torch data set."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class EpochBatches(Sampler[list[int]]):
    """Batches of rows of similar length, in an order that depends only on (seed, epoch).

    Rows are shuffled, cut into pools of `pool` batches and sorted by length inside each pool, and the batches
    are shuffled: little padding, and still different neighbours in every epoch. Lightning calls `set_epoch`,
    also after a resume.
    """

    @property
    def sampler(self) -> EpochBatches:
        """Itself: Lightning passes the epoch only to a batch sampler's `sampler`."""
        return self

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, pool: int = 16) -> None:
        self.lengths, self.batch_size, self.seed, self.pool = lengths, batch_size, seed, pool
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        span = self.pool * self.batch_size
        batches = []
        for start in range(0, len(order), span):
            rows = sorted(order[start : start + span], key=lambda i: self.lengths[i])
            batches += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[index]


class TextDataModule(pl.LightningDataModule):
    """Training and validation rows of one view.

    The training loader yields the micro-batches of one optimiser step as a list, so that a loss can be a mean over
    the step; the validation loader yields single batches. Of processes that train together, each gets its share of
    every step (possibly no row of a small one) and all validation rows.

    Args:
        phases: the training rows (`EncodedRow` or `PreferenceRow`) of each phase, in the order of training.
        epochs_per_phase: epochs per phase; with several phases the Trainer must reload the loader every epoch.
        collate: turns a list of rows into a batch.
        length: a row's length in tokens, for batching.
        batch_size, micro_batch_size: rows per optimiser step, and per forward pass.
    """

    def __init__(
        self,
        phases: Sequence[Sequence[Any]],
        validation: Sequence[Any],
        *,
        epochs_per_phase: int,
        collate: Callable[[Sequence[Any]], Any],
        length: Callable[[Any], int],
        batch_size: int,
        micro_batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.phases, self.validation = phases, validation
        self._epochs_per_phase, self._collate, self._length = epochs_per_phase, collate, length
        self._batch_size, self._micro_batch_size, self._seed = batch_size, micro_batch_size, seed

    def _micro_batches(self, rows: Sequence[Any]) -> list[Any]:
        rows, size = own_share(rows), self._micro_batch_size
        return [self._collate(rows[i : i + size]) for i in range(0, len(rows), size)]

    def train_dataloader(self) -> DataLoader:
        epoch = self.trainer.current_epoch if self.trainer else 0
        rows = self.phases[min(epoch // self._epochs_per_phase, len(self.phases) - 1)]
        batches = EpochBatches([self._length(row) for row in rows], self._batch_size, self._seed)
        return DataLoader(Rows(rows), batch_sampler=batches, collate_fn=self._micro_batches)

    def val_dataloader(self) -> DataLoader:
        size, rows = self._micro_batch_size, sorted(self.validation, key=self._length)
        return DataLoader(Rows(rows), batch_size=size, collate_fn=self._collate)

    @classmethod
    def sft_view(
        cls,
        train: Sequence[EncodedRow],
        validation: Sequence[EncodedRow],
        *,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
    ) -> TextDataModule:
        """Prompt and target in one sequence; the loss reads `response_mask`."""
        return cls(
            [train],
            validation,
            epochs_per_phase=1,
            collate=collate_sequences,
            length=lambda r: len(r.ids),
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            seed=seed,
        )

    @classmethod
    def preference_view(
        cls,
        phases: Sequence[Sequence[PreferenceRow]],
        validation: Sequence[PreferenceRow],
        *,
        epochs_per_phase: int,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
    ) -> TextDataModule:
        """Pairs with soft labels, in phases that may differ in their labels."""
        return cls(
            phases,
            validation,
            epochs_per_phase=epochs_per_phase,
            collate=collate_preferences,
            length=len,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            seed=seed,
        )


class PromptCursor:
    """The prompt view: which prompts iteration t of RL uses, without repeats within a pass.

    A pure function of (seed, iteration), so that a resumed run continues where it stopped.
    """

    def __init__(self, count: int, per_iteration: int, seed: int) -> None:
        self.count, self.per_iteration, self.seed = count, per_iteration, seed

    def indices(self, iteration: int) -> list[int]:
        """The prompts of `iteration` (0-based); each pass over the set is reshuffled."""
        wanted: list[int] = []
        position = iteration * self.per_iteration
        while len(wanted) < self.per_iteration:
            turn, offset = divmod(position, self.count)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
            order = torch.randperm(self.count, generator=generator).tolist()
            taken = order[offset : offset + self.per_iteration - len(wanted)]
            wanted += taken
            position += len(taken)
        return wanted
