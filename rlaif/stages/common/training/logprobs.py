"""Log-probabilities of responses from the trunk's features, and how far two policies differ on them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rlaif.data.datamodule import TokenBatch
from rlaif.data.policy_pairs import PolicyPairBatch
from rlaif.models.flat import hidden_at
from rlaif.models.pairs import pair_attention
from rlaif.models.split import Top


def response_hidden(top: Top, features: Tensor, mask: Tensor) -> Tensor:
    """Hidden states (N, D) that predict the N counted tokens of `mask` (B, T), row by row.

    No token at position 0 is counted. The last layer runs only on the positions that predict counted tokens, and so
    does the vocabulary head on what is returned.
    """
    return hidden_at(top, features, mask.roll(-1, dims=1))


def scatter_counted(values: Tensor, mask: Tensor) -> Tensor:
    """Values (N,) of the counted tokens put back in place: (B, T), zero elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)


def response_logprobs(top: Top, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
    """Log-probabilities (B, T) of the response tokens under the sampling temperature; zero elsewhere."""
    mask = batch.response_mask
    hidden = response_hidden(top, batch.features, mask)
    return scatter_counted(top.logprobs(hidden, batch.ids[mask], temperature), mask)


@torch.no_grad()
def mean_log_ratio(policy: Top, reference: Top, batches: Iterable[TokenBatch], temperature: float) -> float:
    """Mean over all responses of log policy(response) - log reference(response), nats.

    This estimates KL(policy || reference) if the policy has drawn the responses at this temperature.
    """
    summed, count = 0.0, 0
    for batch in batches:
        new, old = (response_logprobs(top, batch, temperature) for top in (policy, reference))
        summed += float((new - old).sum())
        count += len(batch.ids)
    return summed / count


def pair_logprobs(top: Top, batch: PolicyPairBatch) -> Tensor:
    """Log-probabilities (B, 2) of both responses of each pair, summed over their tokens (nats).

    A pair's prompt runs once, and the last layer and the vocabulary head only where a response token is predicted.
    """
    pairs = batch.pairs
    attend = pair_attention(pairs.spans, pairs.features.device)
    hidden = top(pairs.features, attend, pairs.positions, rows=batch.reads)[0]
    logprobs = top.logprobs(hidden, batch.ids)
    summed = torch.zeros(2 * len(batch), dtype=logprobs.dtype, device=logprobs.device)
    return summed.index_add(0, batch.owners, logprobs).view(-1, 2)
