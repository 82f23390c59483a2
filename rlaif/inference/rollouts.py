"""Collecting one iteration of on-policy responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlaif.data.datamodule import TokenBatch
from rlaif.inference.batches import pad_right
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
    last (N,) index of the last response token, finished (N,) whether it is EOS. `seeds` determined each
    row's noise: a hash of (seed, iteration, prompt id, sample).
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
            raise ValueError("prompts, responses and seeds must have one entry per row")

    def __len__(self) -> int:
        return self.ids.shape[0]

    def lengths(self) -> Tensor:
        """Number of response tokens per row (N,)."""
        return self.response_mask.sum(dim=1)

    def batches(self, rows: int) -> Iterator[TokenBatch]:
        """The responses in batches of `rows` rows."""
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
    """Samples `samples_per_prompt` responses per prompt with keyed noise.

    The noise of a response depends only on (seed, iteration, prompt id, sample).
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

        The sample numbers of a prompt that recurs within an iteration continue, so that no response is a copy.
        Processes that train together each sample their share, and all get the whole.
        """
        drawn_before: Counter[int] = Counter()
        rows = []
        for i in indices:
            rows += [(i, drawn_before[i] + s) for s in range(self._samples)]
            drawn_before[i] += self._samples
        return self._drawn(policy, rows, iteration)

    def each(self, policy: Top) -> Rollout:
        """One response per prompt, for measurements: the noise is always that of the first iteration."""
        return self._drawn(policy, [(i, 0) for i in range(len(self._prompts))], 0)

    def _drawn(self, policy: Top, rows: Sequence[tuple[int, int]], iteration: int) -> Rollout:
        """Responses for `rows`, each a (prompt's index, sample)."""
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
        features = pad_sequence([d.features for d in drawn if d.features is not None], batch_first=True)
        texts = [[*prompt, *d.ids] for prompt, d in zip(encoded, drawn, strict=True)]
        ids, lengths = pad_right(texts, 0, features.device)
        starts = torch.tensor([len(prompt) for prompt in encoded], device=ids.device)
        places = torch.arange(ids.shape[1], device=ids.device)
        return Rollout(
            ids,
            features,
            (starts[:, None] <= places) & (places < lengths[:, None]),
            lengths - 1,
            torch.tensor([d.finished for d in drawn], device=ids.device),
            tuple(self._prompts[i] for i, _ in rows),
            tuple(self._decode(d.ids) for d in drawn),
            tuple(seeds),
        )
