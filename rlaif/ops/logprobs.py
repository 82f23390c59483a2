"""Log-probabilities and entropy of token distributions, in float32 whatever the logits' dtype."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows of logits upcast at once: without gradients the float32 copy is this many rows, not the batch.
_CHUNK_ROWS = 1024


def _upcast(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability (nats) of `ids` (...) under `logits` (..., V); returns (...) in float32.

    Computed as the chosen logit minus logsumexp, so that no (..., V) log-softmax is kept.
    float64 logits stay float64. Raises ValueError when the shapes do not fit.
    """
    if logits.shape[:-1] != ids.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit ids {tuple(ids.shape)}")
    chosen = _upcast(logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1))
    rows = logits.reshape(-1, logits.shape[-1]).split(_CHUNK_ROWS)
    normaliser = torch.cat([torch.logsumexp(_upcast(part), dim=-1) for part in rows])
    return chosen - normaliser.view(ids.shape)


def _entropy_rows(logits: Tensor) -> Tensor:
    logp = torch.log_softmax(_upcast(logits), dim=-1)
    probability = logp.exp()
    # 0 log 0 = 0; replacing -inf before the product keeps its gradient finite too.
    return -(probability * logp.masked_fill(probability == 0, 0.0)).sum(-1)


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy (nats) of each distribution of `logits` (..., V); returns (...) in float32.

    Logits of -inf (forbidden tokens) contribute nothing.
    """
    rows = logits.reshape(-1, logits.shape[-1]).split(_CHUNK_ROWS)
    return torch.cat([_entropy_rows(part) for part in rows]).view(logits.shape[:-1])
