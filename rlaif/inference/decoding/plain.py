"""Sampling by transformers' own `generate` and caches, for models that do not take our attention patterns.

A pad would become part of a recurrent state. So a batch has none: it starts with as many tokens as its shortest prompt
has, and what longer prompts have beyond that is fed token by token, in place of tokens drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from rlaif.inference.batches import ACCELERATOR_SHARE, FORWARD_TOKENS, pad_right
from rlaif.inference.decoding.drawing import Decoding, pick_tokens
from rlaif.inference.decoding.replay import Decoded, upto_end
from rlaif.models.parts.decoder import generate
from rlaif.models.split import Top, Trunk

# Prompts of a batch differ by at most this share of a response's length: one token fed costs what one drawn does.
SPREAD = 0.5


def cut_by_length(
    batches: Iterable[Sequence[int]], lengths: Sequence[int], max_new_tokens: int
) -> Iterator[list[int]]:
    """The batches of prompts, longest first, cut where their lengths would differ too much."""
    for batch in batches:
        part: list[int] = []
        for index in batch:
            if part and lengths[part[0]] - lengths[index] > SPREAD * max_new_tokens:
                yield part
                part = []
            part.append(index)
        yield part


class _Rows:
    """What `generate` asks at each step, of tokens (B, T) that are the beginnings of prompt and response."""

    def __init__(
        self, prompts: Sequence[Sequence[int]], uniforms: Tensor, decoding: Decoding, eos_ids: Collection[int]
    ) -> None:
        self.ids, self.lengths = pad_right(prompts, 0, uniforms.device)
        self.shortest, self.longest = min(map(len, prompts)), max(map(len, prompts))
        self._uniforms, self._decoding = uniforms, decoding
        self._eos = torch.tensor(sorted(eos_ids), dtype=torch.long, device=uniforms.device)

    def draw(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Logits (B, V) whose largest is the prompt's next token, or the token drawn from `logits` (B, V)."""
        at, limit = ids.shape[1], self._decoding.max_new_tokens
        places = (at - self.lengths).clamp(0, limit - 1)
        noise = self._uniforms.gather(1, places[:, None]).squeeze(1)
        tokens = pick_tokens(
            logits, noise, temperature=self._decoding.temperature, top_k=self._decoding.top_k
        )
        if at < self.longest:
            tokens = torch.where(at < self.lengths, self.ids[:, at], tokens)
        return torch.zeros_like(logits).scatter(1, tokens[:, None], 1.0)

    def ended(self, ids: Tensor, _: Tensor) -> Tensor:
        """Whether each response is complete (B,)."""
        drawn = ids.shape[1] - self.lengths
        at_end = (ids[:, -1:] == self._eos).any(dim=1)
        return (drawn > 0) & (at_end | (drawn >= self._decoding.max_new_tokens))


# What models keep between passes must not be made in inference mode: training could not use it.
@torch.inference_mode(False)
@torch.no_grad()
def decode_plain(
    top: Top,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    decoding: Decoding,
    eos_ids: Collection[int],
    keep_features: bool,
) -> Decoded:
    """Responses to `prompts` by the noise `uniforms` (B, max_new_tokens); rows that have ended go on, unread."""
    rows = _Rows(prompts, uniforms.clone().to(top.device), decoding, eos_ids)
    steps = rows.longest - rows.shortest + decoding.max_new_tokens
    done = _generate(top, rows, steps).tolist()
    limit = decoding.max_new_tokens
    drawn = (row[len(prompt) :][:limit] for row, prompt in zip(done, prompts, strict=True))
    responses = [upto_end(response, eos_ids) for response in drawn]
    finished = [response[-1] in eos_ids for response in responses]
    texts = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    return Decoded(responses, finished, _features(top.trunk, texts) if keep_features else None)


def _generate(top: Top, rows: _Rows, steps: int) -> Tensor:
    """Prompts and responses (B, T)."""
    start, cached = rows.ids[:, : rows.shortest], top.trunk.verdict.cached
    with top.running() as lm:
        return generate(lm, start, steps, rows.draw, rows.ended, use_cache=cached)


def _features(trunk: Trunk, texts: Sequence[Sequence[int]]) -> Tensor:
    """The trunk's activations (B, S, D) of whole texts (ids if the model is `full`)."""
    ids, _ = pad_right(texts, 0, trunk.device)
    tokens = FORWARD_TOKENS * (1 if trunk.device.type == "cpu" else ACCELERATOR_SHARE)
    return torch.cat([trunk(part) for part in ids.split(max(1, tokens // ids.shape[1]))])
