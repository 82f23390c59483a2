"""The one datamodule layer: a base LightningDataModule with an SFT, a preference and a prompt view.

Rows hold token ids and, from the inference layer, the trunk's features of the same tokens (the ids
themselves if the model is `full`). The tokenizer comes in through the encoder; order and batches depend on
the seed and the epoch alone, so that a resumed run sees what an uninterrupted one sees.

Notation: B rows, T positions, D hidden size. Masks are True where a position counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


@dataclass(frozen=True)
class EncodedRow:
    """One encoded text: ids (T,), features (T, D) or ids (T,), and where the response starts."""

    ids: Tensor
    features: Tensor
    prompt_length: int


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
class PreferenceBatch:
    """Pairs, each as one sequence prompt | a | b, right-padded.

    features (B, T, D) or (B, T); positions (B, T), where b's restart after the prompt; blocked (B, T, T),
    True where a query must not see a key (b's tokens do not see a's); last (B, 2), the last token of a and
    of b; p_a (B,). The scores are those of prompt | a and prompt | b run apart, at little more than half
    the tokens.
    """

    features: Tensor
    positions: Tensor
    blocked: Tensor
    last: Tensor
    p_a: Tensor

    def to(self, device: Any) -> PreferenceBatch:
        return PreferenceBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class PreferenceRow:
    """One pair with its soft label."""

    a: EncodedRow
    b: EncodedRow
    p_a: float


def collate_sequences(rows: Sequence[EncodedRow]) -> TokenBatch:
    """Right-pad rows.

    >>> row = EncodedRow(torch.tensor([5, 6, 7]), torch.tensor([5, 6, 7]), 1)
    >>> batch = collate_sequences([row, EncodedRow(torch.tensor([8, 9]), torch.tensor([8, 9]), 1)])
    >>> batch.ids.tolist(), batch.response_mask.tolist(), batch.last.tolist()
    ([[5, 6, 7], [8, 9, 0]], [[False, True, True], [False, True, False]], [2, 1])
    """
    lengths = torch.tensor([len(row.ids) for row in rows])
    width = int(lengths.max())
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    first = rows[0].features
    features = torch.zeros(len(rows), width, *first.shape[1:], dtype=first.dtype)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = row.ids
        features[index, : len(row.ids)] = row.features
        mask[index, row.prompt_length : len(row.ids)] = True
    return TokenBatch(ids, features, mask, lengths - 1)


def collate_preferences(rows: Sequence[PreferenceRow]) -> PreferenceBatch:
    """Pack each pair into one sequence; both responses must follow the same prompt."""
    prompts = [row.a.prompt_length for row in rows]
    first = [len(row.a.ids) for row in rows]
    widths = [a + len(row.b.ids) - p for row, a, p in zip(rows, first, prompts, strict=True)]
    like = rows[0].a.features
    features = torch.zeros(len(rows), max(widths), *like.shape[1:], dtype=like.dtype)
    positions = torch.arange(max(widths)).repeat(len(rows), 1)
    blocked = torch.zeros(len(rows), max(widths), max(widths), dtype=torch.bool)
    for index, (row, prompt, end, width) in enumerate(zip(rows, prompts, first, widths, strict=True)):
        features[index, :end] = row.a.features
        features[index, end:width] = row.b.features[prompt:]
        positions[index, end:] -= end - prompt
        blocked[index, end:, prompt:end] = True
    last = torch.tensor([[end - 1, width - 1] for end, width in zip(first, widths, strict=True)])
    p_a = torch.tensor([row.p_a for row in rows], dtype=torch.float32)
    return PreferenceBatch(features, positions, blocked, last, p_a)


class Rows(Dataset):
    """A list as a torch data set."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class EpochBatches(Sampler[list[int]]):
    """Batches of similar length in an order that depends on (seed, epoch) alone.

    Rows are shuffled, cut into pools of `pool` batches, sorted by length inside a pool, and the batches
    are shuffled again: little padding, and still a different neighbourhood in every epoch. Lightning calls
    `set_epoch`, also after a resume.
    """

    @property
    def sampler(self) -> EpochBatches:
        """Itself: Lightning tells the epoch to a batch sampler's `sampler` alone."""
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
    """Train and validation rows of one view.

    Args:
        train, validation: rows (`EncodedRow`, `PreferenceRow` or prompt ids).
        collate: turns a list of rows into a batch.
        length: a row's length in tokens, for batching.
    """

    def __init__(
        self,
        train: Sequence[Any],
        validation: Sequence[Any],
        *,
        collate: Callable[[Sequence[Any]], Any],
        length: Callable[[Any], int],
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.train, self.validation = train, validation
        self._collate, self._length = collate, length
        self._batch_size, self._seed = batch_size, seed

    def train_dataloader(self) -> DataLoader:
        batches = EpochBatches([self._length(row) for row in self.train], self._batch_size, self._seed)
        return DataLoader(Rows(self.train), batch_sampler=batches, collate_fn=self._collate)

    def val_dataloader(self) -> DataLoader:
        order = sorted(range(len(self.validation)), key=lambda i: self._length(self.validation[i]))
        batches = [order[i : i + self._batch_size] for i in range(0, len(order), self._batch_size)]
        return DataLoader(Rows(self.validation), batch_sampler=batches, collate_fn=self._collate)

    @classmethod
    def sft_view(
        cls, train: Sequence[EncodedRow], validation: Sequence[EncodedRow], *, batch_size: int, seed: int
    ) -> TextDataModule:
        """Prompt and target in one sequence; the loss reads `response_mask`."""
        return cls(
            train,
            validation,
            collate=collate_sequences,
            length=lambda r: len(r.ids),
            batch_size=batch_size,
            seed=seed,
        )

    @classmethod
    def preference_view(
        cls,
        train: Sequence[PreferenceRow],
        validation: Sequence[PreferenceRow],
        *,
        batch_size: int,
        seed: int,
    ) -> TextDataModule:
        """Pairs with soft labels."""
        return cls(
            train,
            validation,
            collate=collate_preferences,
            length=lambda r: max(len(r.a.ids), len(r.b.ids)),
            batch_size=batch_size,
            seed=seed,
        )


class PromptCursor:
    """The prompt view: which prompts iteration t of RL uses, without repeats inside a pass.

    A pure function of (seed, iteration), so that a resumed run continues where it stood.
    """

    def __init__(self, count: int, per_iteration: int, seed: int) -> None:
        self.count, self.per_iteration, self.seed = count, per_iteration, seed

    def indices(self, iteration: int) -> list[int]:
        """The prompts of iteration `iteration` (0-based); passes over the set are reshuffled."""
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
