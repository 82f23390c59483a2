"""Log-probabilities of given texts, with what several of them share computed once.

An item is a prefix (for instance the context that both responses of a pair answer) and the suffixes scored
after it. The prefix runs once and its keys and values are read by every suffix; the vocabulary head runs
only where a log-probability is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif.inference.batches import length_buckets, pad_right
from rlaif.inference.cache import AfterPrefix, Capture, KVCache
from rlaif.models.split import Top
from rlaif.ops import token_logprobs

MAX_TOKENS = 6144
MAX_ROWS = 64


@dataclass(frozen=True)
class SharedPrefix:
    """Token ids that several suffixes follow. Suffixes are not empty; the prefix has at least one token."""

    prefix: tuple[int, ...]
    suffixes: tuple[tuple[int, ...], ...]


def _device(top: Top) -> torch.device:
    return top.norm.weight.device


def _after_prefix(top: Top, groups: Sequence[SharedPrefix]) -> tuple[Tensor, list[list[int]]]:
    """Hidden states (N, S, D) that predict each suffix's tokens, for all suffixes of all groups.

    The last prefix token is fed again as the first token of each suffix: its output predicts the suffix's
    first token, and so every prediction is read from the suffix pass.
    """
    device, trunk = _device(top), top.trunk
    rows = [([group.prefix[-1], *suffix[:-1]], index) for index, group in enumerate(groups) for suffix in group.suffixes]
    ids, _ = pad_right([row for row, _ in rows], 0, device)
    owner = torch.tensor([index for _, index in rows], device=device)
    before = torch.tensor([len(group.prefix) - 1 for group in groups], device=device)
    targets = [list(suffix) for group in groups for suffix in group.suffixes]
    if int(before.max()) == 0:
        return top(trunk(ids)), targets
    prefixes, _ = pad_right([group.prefix[:-1] or (0,) for group in groups], 0, device)
    cache = KVCache(trunk.config, len(groups), prefixes.shape[1], trunk.dtype, device)
    capture = Capture(cache)
    top(trunk(prefixes, capture), capture)
    lengths = before[owner]
    attend = AfterPrefix(cache, owner, lengths, ids.shape[1])
    positions = lengths[:, None] + torch.arange(ids.shape[1], device=device)
    bound = int(lengths.max()) + ids.shape[1]
    return top(trunk(ids, attend, positions, bound), attend, positions, bound), targets


def _sums(top: Top, hidden: Tensor, targets: list[list[int]]) -> list[float]:
    """Sum of log-probabilities of each row's targets; the head runs on real positions only."""
    row = torch.tensor([i for i, target in enumerate(targets) for _ in target], device=hidden.device)
    column = torch.tensor([j for target in targets for j in range(len(target))], device=hidden.device)
    token = torch.tensor([t for target in targets for t in target], device=hidden.device)
    sums = torch.zeros(len(targets), dtype=torch.float64, device=hidden.device)
    for part in range(0, len(token), 512):  # bounds the (positions, V) logits
        piece = slice(part, part + 512)
        scores = token_logprobs(top.logits(hidden[row[piece], column[piece]]), token[piece])
        sums.index_add_(0, row[piece], scores.double())
    return sums.tolist()


def batches_of_groups(groups: Sequence[SharedPrefix]) -> Iterable[list[int]]:
    """Batches of group indices by total length; a group is never split."""
    lengths = [len(g.prefix) + sum(len(s) for s in g.suffixes) for g in groups]
    return length_buckets(lengths, max_tokens=MAX_TOKENS, max_rows=MAX_ROWS)


@torch.inference_mode()
def sequence_logprobs(
    top: Top, groups: Sequence[SharedPrefix], progress: Callable[[int], None] | None = None
) -> list[tuple[float, ...]]:
    """Sum of log-probabilities (nats) of every suffix given its prefix, group by group."""
    results: list[tuple[float, ...]] = [()] * len(groups)
    for indices in batches_of_groups(groups):
        chosen = [groups[i] for i in indices]
        sums = iter(_sums(top, *_after_prefix(top, chosen)))
        for index, group in zip(indices, chosen, strict=True):
            results[index] = tuple(next(sums) for _ in group.suffixes)
        if progress:
            progress(len(indices))
    return results


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all rows share."""
    low, high = min(rows), max(rows)
    length = 0
    while length < min(len(low), len(high)) and low[length] == high[length]:
        length += 1
    return length


@torch.inference_mode()
def next_token_logprobs(top: Top, prompts: Sequence[Sequence[int]], tokens: Sequence[int]) -> tuple[list[list[float]], int]:
    """Log-probability (nats) of each of `tokens` right after each prompt, and the number of tokens saved.

    What all prompts share at their start (preamble, exemplars) runs once; the head runs on last positions.
    """
    shared = min(common_prefix(prompts), min(len(p) for p in prompts) - 1) if len(prompts) > 1 else 0
    shared = shared if shared >= 16 else 0
    device, trunk = _device(top), top.trunk
    results: list[list[float]] = [[]] * len(prompts)
    cache = None
    if shared:
        cache = KVCache(trunk.config, 1, shared, trunk.dtype, device)
        capture = Capture(cache)
        top(trunk(torch.tensor([list(prompts[0][:shared])], device=device), capture), capture)
    lengths = [len(p) - shared for p in prompts]
    wanted = torch.tensor(tokens, device=device)
    for indices in length_buckets(lengths, max_tokens=MAX_TOKENS, max_rows=MAX_ROWS):
        ids, counts = pad_right([prompts[i][shared:] for i in indices], 0, device)
        if cache is None:
            hidden = top(trunk(ids))
        else:
            owner = torch.zeros(len(indices), dtype=torch.long, device=device)
            attend = AfterPrefix(cache, owner, torch.full_like(owner, shared), ids.shape[1])
            positions = (shared + torch.arange(ids.shape[1], device=device))[None]
            bound = shared + ids.shape[1]
            hidden = top(trunk(ids, attend, positions, bound), attend, positions, bound)
        last = hidden[torch.arange(len(indices), device=device), counts - 1]
        scores = top.logits(last).float().log_softmax(dim=-1)[:, wanted]
        for index, row in zip(indices, scores.tolist(), strict=True):
            results[index] = row
    return results, shared * (len(prompts) - 1)
