"""Log-probabilities of given texts, with what several of them share computed once.

An item is a prefix (for instance the context that both responses of a pair answer) and the suffixes scored
after it. The prefix runs once and its keys and values are read by every suffix; the vocabulary head runs
only where a log-probability is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from rlaif.inference.batches import length_buckets, pad_right
from rlaif.inference.cache import AfterPrefix, Capture, KVCache
from rlaif.inference.packing import SharedPrefix, pack
from rlaif.models.decoder import Causal
from rlaif.models.split import Top
from rlaif.ops import token_logprobs

MAX_TOKENS = 6144
MAX_ROWS = 64


def _device(top: Top) -> torch.device:
    return top.norm.weight.device


def _predicting(group: SharedPrefix) -> list[int]:
    """Positions in the packed row whose outputs predict the suffixes' tokens, in order."""
    return [
        position
        for start, end in group.spans()
        for position in (len(group.prefix) - 1, *range(start, end - 1))
    ]


def _sums(top: Top, groups: Sequence[SharedPrefix]) -> list[float]:
    """Sum of log-probabilities of every suffix; the vocabulary head runs on the positions that are read."""
    device, packed = _device(top), pack(groups, _device(top))
    features = top.trunk(packed.ids, packed.attend, packed.positions, packed.max_position)
    hidden = top(features, packed.attend, packed.positions, packed.max_position)
    row = torch.tensor([i for i, g in enumerate(groups) for s in g.suffixes for _ in s], device=device)
    column = torch.tensor([position for g in groups for position in _predicting(g)], device=device)
    token = torch.tensor([t for g in groups for s in g.suffixes for t in s], device=device)
    lengths = [len(s) for g in groups for s in g.suffixes]
    scores = []
    for part in range(0, len(token), 512):  # bounds the (positions, V) logits
        piece = slice(part, part + 512)
        scores.append(token_logprobs(top.logits(hidden[row[piece], column[piece]]), token[piece]))
    return [float(part.double().sum()) for part in torch.cat(scores).split(lengths)]


def batches_of_groups(groups: Sequence[SharedPrefix]) -> Iterable[list[int]]:
    """Batches of group indices by total length; a group is never split."""
    return length_buckets([len(g) for g in groups], max_tokens=MAX_TOKENS, max_rows=MAX_ROWS)


@torch.inference_mode()
def sequence_logprobs(
    top: Top, groups: Sequence[SharedPrefix], progress: Callable[[int], None] | None = None
) -> list[tuple[float, ...]]:
    """Sum of log-probabilities (nats) of every suffix given its prefix, group by group."""
    results: list[tuple[float, ...]] = [()] * len(groups)
    for indices in batches_of_groups(groups):
        chosen = [groups[i] for i in indices]
        sums = iter(_sums(top, chosen))
        for index, group in zip(indices, chosen, strict=True):
            results[index] = tuple(next(sums) for _ in group.suffixes)
        if progress:
            progress(len(indices))
    return results


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all rows share."""
    low, high = min(map(list, rows)), max(map(list, rows))
    length = 0
    while length < min(len(low), len(high)) and low[length] == high[length]:
        length += 1
    return length


@torch.inference_mode()
def next_token_logprobs(
    top: Top, prompts: Sequence[Sequence[int]], tokens: Sequence[int]
) -> tuple[list[list[float]], int]:
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
            hidden = top(trunk(ids), Causal())
        else:
            attend = AfterPrefix(cache, ids.shape[1])
            positions = (shared + torch.arange(ids.shape[1], device=device))[None]
            bound = shared + ids.shape[1]
            hidden = top(trunk(ids, attend, positions, bound), attend, positions, bound)
        last = hidden[torch.arange(len(indices), device=device), counts - 1]
        scores = top.logits(last).float().log_softmax(dim=-1)[:, wanted]
        for index, row in zip(indices, scores.tolist(), strict=True):
            results[index] = row
    return results, shared * (len(prompts) - 1)
