"""Preference pairs for a policy that learns from them: the reward model's, with what their log-probabilities need.

Notation as in `datamodule`: B pairs, N packed tokens, R response tokens of all pairs together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from rlaif.data.datamodule import (
    EncodedRow,
    PreferenceBatch,
    PreferenceRow,
    TextDataModule,
    TokenBatch,
    collate_preferences,
    collate_sequences,
)


@dataclass(frozen=True)
class PolicyPair:
    """A pair as tensors, its responses' ids (A,) and (B,), and their log-probabilities under the reference policy.

    `reference` is (of a, of b), summed over tokens, in nats. `mismatch` is the prompt with a response to another one,
    and `mismatch_reference` that response's log-probability; None unless the loss reads it.
    """

    row: PreferenceRow
    ids_a: Tensor
    ids_b: Tensor
    reference: tuple[float, float] = (0.0, 0.0)
    mismatch: EncodedRow | None = None
    mismatch_reference: float = 0.0

    def __len__(self) -> int:
        """Tokens of prompt | a | b."""
        return len(self.row)


@dataclass(frozen=True)
class PolicyPairBatch:
    """B pairs packed into one row of N tokens, whose R response tokens are predicted.

    reads (1, R): the position that predicts each response token, pair by pair, a before b (the first token of either
    is predicted by the prompt's last); ids (R,): these tokens; owners (R,): 2 i for those of pair i's a, 2 i + 1 for
    b's; tokens (B, 2) and reference (B, 2): each response's token count and log-probability, in float32. `mismatch`
    holds B texts, and mismatch_reference (B,) their log-probabilities, if the rows have them.
    """

    pairs: PreferenceBatch
    reads: Tensor
    ids: Tensor
    owners: Tensor
    tokens: Tensor
    reference: Tensor
    mismatch: TokenBatch | None
    mismatch_reference: Tensor

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.tokens)

    def to(self, device: Any) -> PolicyPairBatch:
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        moved: dict[str, Any] = {name: part.to(device) for name, part in parts if part is not None}
        return replace(self, **moved)


def collate_policy_pairs(rows: Sequence[PolicyPair]) -> PolicyPairBatch:
    """Pack the pairs into one row.

    >>> from rlaif.records import Pair
    >>> pair = Pair("id", "prompt id", "prompt", "response a", "response b", "dataset")
    >>> prompt, a, b = torch.tensor([1, 2]), torch.tensor([3, 4, 5]), torch.tensor([6, 7])
    >>> batch = collate_policy_pairs([PolicyPair(PreferenceRow(pair, prompt, a, b, p_a=0.9), a, b)])
    >>> batch.reads.tolist(), batch.ids.tolist(), batch.owners.tolist(), batch.tokens.tolist()
    ([[1, 2, 3, 1, 5]], [3, 4, 5, 6, 7], [0, 0, 0, 1, 1], [[3.0, 2.0]])
    """
    pairs = collate_preferences([row.row for row in rows])
    reads, counts = [], []
    for start, a, b, end in pairs.spans:
        if not start < a < b < end:
            raise ValueError("a pair needs a prompt and two responses of at least one token each")
        reads += [torch.arange(a - 1, b - 1), torch.tensor([a - 1]), torch.arange(b, end - 1)]
        counts += [b - a, end - b]
    return PolicyPairBatch(
        pairs=pairs,
        reads=torch.cat(reads)[None],
        ids=torch.cat([ids for row in rows for ids in (row.ids_a, row.ids_b)]),
        owners=torch.arange(2 * len(rows)).repeat_interleave(torch.tensor(counts)),
        tokens=torch.tensor(counts, dtype=torch.float32).view(-1, 2),
        reference=torch.tensor([row.reference for row in rows], dtype=torch.float32),
        mismatch=collate_sequences(others)
        if (others := [row.mismatch for row in rows if row.mismatch])
        else None,
        mismatch_reference=torch.tensor([row.mismatch_reference for row in rows], dtype=torch.float32),
    )


def policy_pairs_view(
    phases: Sequence[Sequence[PolicyPair]],
    validation: Sequence[PolicyPair],
    *,
    epochs_per_phase: int,
    batch_size: int,
    micro_batch_size: int,
    seed: int,
) -> TextDataModule:
    """The datamodule's view of pairs for a policy: batches and order are those of its preference view."""
    return TextDataModule(
        phases,
        validation,
        epochs_per_phase=epochs_per_phase,
        collate=collate_policy_pairs,
        length=len,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        seed=seed,
    )
