"""Collecting one iteration of on-policy responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from rlaif.data.datamodule import TokenBatch
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import sample
from rlaif.io import digest
from rlaif.models.split import Top
from rlaif.ops import joined, own_share
from rlaif.records import Prompt, Sample


@dataclass(frozen=True)
class Rollout:
    """Responses of one iteration, right-padded.

    ids (N, T), features (N, T, D) or (N, T), response_mask (N, T) True on response tokens (EOS included),
    last (N,) index of the last response token, finished (N,) whether it is EOS. `seeds` decided each row's
    noise: a hash of (seed, iteration, prompt id, sample).
    """

    ids: Tensor
    features: Tensor
    response_mask: Tensor
    last: Tensor
    finished: Tensor
    prompts: tuple[Prompt, ...]
    responses: tuple[str, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        rows, width = self.ids.shape
        if self.features.shape[:2] != (rows, width) or self.response_mask.shape != (rows, width):
            raise ValueError("ids, features and response_mask must share their first two dimensions")
        if not self.response_mask.any(dim=1).all() or self.response_mask[:, 0].any():
            raise ValueError("every row needs a prompt token and a response token")
        if not len(self.prompts) == len(self.responses) == len(self.seeds) == rows:
            raise ValueError("there must be one prompt, one response and one seed per row")

    def __len__(self) -> int:
        return self.ids.shape[0]

    def lengths(self) -> Tensor:
        """Response tokens of each row (N,)."""
        return self.response_mask.sum(dim=1)

    def batches(self, rows: int) -> Iterator[TokenBatch]:
        """The responses as batches of so many rows."""
        parts = (self.ids, self.features, self.response_mask, self.last)
        return map(TokenBatch, *(part.split(rows) for part in parts))

    def samples(self) -> list[Sample]:
        """The responses as records, with their ids."""
        ids = iter(self.ids[self.response_mask].tolist())
        rows = []
        for prompt, text, tokens, done in zip(
            self.prompts, self.responses, self.lengths().tolist(), self.finished.tolist(), strict=True
        ):
            own = tuple(islice(ids, tokens))
            rows.append(
                Sample(prompt.id, prompt.prompt, text, tokens, done, prompt.reference, prompt.group, own)
            )
        return rows


class RolloutCollector:
    """Samples `samples_per_prompt` responses to given prompts with keyed noise.

    The noise of a response depends on (seed, iteration, prompt id, sample) alone.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        encoded: Sequence[Sequence[int]],
        decode: Callable[[Sequence[int]], str],
        decoding: Decoding,
        *,
        eos_ids: Collection[int],
        samples_per_prompt: int,
        max_rows: int,
        seed: int,
    ) -> None:
        self._prompts, self._encoded, self._decode, self._decoding = prompts, encoded, decode, decoding
        self._eos_ids, self._samples, self._max_rows, self._seed = eos_ids, samples_per_prompt, max_rows, seed

    def collect(self, policy: Top, indices: Sequence[int], iteration: int) -> Rollout:
        """Sample for the prompts at `indices`; the rows of one prompt are adjacent.

        If a prompt recurs in one iteration, its samples are numbered on, so that no response is a copy. Of
        processes that train together each samples its share, and all get the whole.
        """
        drawn_before: Counter[int] = Counter()
        rows = []
        for i in indices:
            rows += [(i, drawn_before[i] + s) for s in range(self._samples)]
            drawn_before[i] += self._samples
        return self._drawn(policy, rows, iteration)

    def each(self, policy: Top) -> Rollout:
        """One response to every prompt, for measurements: the noise is always that of the first iteration."""
        return self._drawn(policy, [(i, 0) for i in range(len(self._prompts))], 0)

    def _drawn(self, policy: Top, rows: Sequence[tuple[int, int]], iteration: int) -> Rollout:
        """Responses to the rows' (prompt's place, sample)."""
        seeds = [int(digest([self._seed, iteration, self._prompts[i].id, s], 15), 16) for i, s in rows]
        encoded = [list(self._encoded[i]) for i, _ in rows]
        drawn = joined(
            sample(
                policy,
                own_share(encoded),
                own_share(seeds),
                self._decoding,
                eos_ids=self._eos_ids,
                max_rows=self._max_rows,
                keep_features=True,
            )
        )
        lengths = [len(p) + len(d.ids) for p, d in zip(encoded, drawn, strict=True)]
        kept = [d.features for d in drawn if d.features is not None]
        first = kept[0]
        ids = torch.zeros(len(rows), max(lengths), dtype=torch.long, device=first.device)
        features = torch.zeros(
            len(rows), max(lengths), *first.shape[1:], dtype=first.dtype, device=first.device
        )
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, got, own) in enumerate(zip(encoded, drawn, kept, strict=True)):
            ids[row, : lengths[row]] = torch.tensor([*prompt, *got.ids])
            features[row, : lengths[row]] = own
            mask[row, len(prompt) : lengths[row]] = True
        return Rollout(
            ids,
            features,
            mask,
            torch.tensor(lengths, device=ids.device) - 1,
            torch.tensor([d.finished for d in drawn], device=ids.device),
            tuple(self._prompts[i] for i, _ in rows),
            tuple(self._decode(d.ids) for d in drawn),
            tuple(seeds),
        )
