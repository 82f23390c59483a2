"""Log-probabilities of responses from the trunk's features, and how far two policies differ on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from rlaif.data.datamodule import TokenBatch
from rlaif.data.policy_pairs import PolicyPair, PolicyPairBatch, collate_policy_pairs
from rlaif.inference.batches import forward_batches
from rlaif.inference.features import MAX_ROWS
from rlaif.models.flat import hidden_at
from rlaif.models.pairs import pair_attention
from rlaif.models.split import Top
from rlaif.ops import joined, own_share, token_entropy

ENTROPY_ROWS = 128  # rows whose logits exist at once on a CPU; 16 times as many on an accelerator


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


def entropies(top: Top, hidden: Tensor, temperature: float) -> Tensor:
    """Entropy (N,) of the next token's distribution after each of the hidden states (N, D), nats."""
    chunks = hidden.split(ENTROPY_ROWS * (1 if hidden.device.type == "cpu" else 16))
    return torch.cat([token_entropy(top.logits(chunk) / temperature) for chunk in chunks])


def pair_hidden(top: Top, batch: PolicyPairBatch) -> Tensor:
    """Hidden states (R, D) that predict the R response tokens of a batch of pairs.

    A pair's prompt runs once, and the last layer and the vocabulary head only where a response token is predicted.
    """
    pairs = batch.pairs
    attend = pair_attention(pairs.spans, pairs.features.device)
    return top(pairs.features, attend, pairs.positions, rows=batch.reads)[0]


def by_response(values: Tensor, batch: PolicyPairBatch) -> Tensor:
    """Values (R,) of the response tokens, summed over each response: (B, 2)."""
    summed = torch.zeros(2 * len(batch), dtype=values.dtype, device=values.device)
    return summed.index_add(0, batch.owners, values).view(-1, 2)


def pair_logprobs(top: Top, batch: PolicyPairBatch, temperature: float = 1.0) -> Tensor:
    """Log-probabilities (B, 2) of both responses of each pair, summed over their tokens (nats)."""
    return by_response(top.logprobs(pair_hidden(top, batch), batch.ids, temperature), batch)


@torch.no_grad()
def of_pairs(
    read: Callable[[PolicyPairBatch], Tensor],
    pairs: Sequence[PolicyPair],
    device: str,
    advance: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """What `read` (batch of B pairs -> (B, ...)) gives for all pairs in order, on the CPU; there has to be one.

    Processes that train together each read their share, and all get the whole.
    """
    own = own_share(pairs)
    found: list[Tensor | None] = [None] * len(own)
    for indices in forward_batches([len(pair) for pair in own], device, max_rows=MAX_ROWS):
        batch = collate_policy_pairs([own[i] for i in indices]).to(device)
        for index, values in zip(indices, read(batch).cpu(), strict=True):
            found[index] = values
        advance(len(indices))
    return torch.stack([values for values in joined(found) if values is not None])
