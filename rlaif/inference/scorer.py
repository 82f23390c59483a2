"""Log-probabilities of given texts, with what several of them share computed once.

An item is a prefix (for instance the context that both responses of a pair answer) and the suffixes scored
after it. The prefix runs once and its keys and values are read by every suffix; the vocabulary head runs
only where a log-probability is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from rlaif.inference.batches import length_buckets
from rlaif.inference.cache import Capture, KVCache
from rlaif.inference.packing import SharedPrefix, pack
from rlaif.models.split import Top

MAX_TOKENS = 3072
MAX_ROWS = 64
MIN_SHARED = 16  # tokens below which sharing a beginning is not worth its bookkeeping


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
    scores = top.logprobs(hidden[row, column], token)
    return [float(part.double().sum()) for part in scores.split(lengths)]


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


def group_neighbours(rows: Sequence[Sequence[int]]) -> tuple[list[SharedPrefix], list[list[int]]]:
    """Rows with their neighbours' common beginning as groups, and the rows' indices of each group.

    The two orders of a pair share its context. A group grows only while its prefix does not shrink.
    """
    runs: list[list[int]] = []
    reach = 0  # the open group's prefix; for a single row, the least that is worth sharing
    for index, row in enumerate(rows):
        if runs:
            same = min(common_prefix([rows[runs[-1][0]], row]), len(row) - 1, len(rows[runs[-1][0]]) - 1)
            if same >= reach:
                reach = same if len(runs[-1]) == 1 else reach
                runs[-1].append(index)
                continue
        runs.append([index])
        reach = MIN_SHARED
    groups = []
    for run in runs:
        first = rows[run[0]]
        cut = min(common_prefix([rows[i] for i in run]), min(len(rows[i]) for i in run) - 1)
        groups.append(SharedPrefix(tuple(first[:cut]), tuple(tuple(rows[i][cut:]) for i in run)))
    return groups, runs


def _last_hidden(top: Top, groups: Sequence[SharedPrefix], before: KVCache | None) -> Tensor:
    """Hidden states (number of suffixes, D) at the last token of every suffix, group by group."""
    packed = pack(groups, _device(top), before)
    features = top.trunk(packed.ids, packed.attend, packed.positions, packed.max_position)
    hidden = top(features, packed.attend, packed.positions, packed.max_position)
    ends = [(row, end - 1) for row, group in enumerate(groups) for _, end in group.spans()]
    row, column = torch.tensor(ends, device=hidden.device).unbind(dim=1)
    return hidden[row, column]


@torch.inference_mode()
def next_token_logprobs(
    top: Top, prompts: Sequence[Sequence[int]], tokens: Sequence[int]
) -> tuple[list[list[float]], int]:
    """Log-probability (nats) of each of `tokens` right after each prompt, and the number of tokens saved.

    What all prompts share at their start (preamble, exemplars) runs once, and so does what neighbours share
    after it (a pair's context, for its two orders); the head runs on last positions.
    """
    shared = min(common_prefix(prompts), min(len(p) for p in prompts) - 1) if len(prompts) > 1 else 0
    shared = shared if shared >= MIN_SHARED else 0
    before = _prefix_cache(top, prompts[0][:shared]) if shared else None
    groups, owners = group_neighbours([prompt[shared:] for prompt in prompts])
    wanted = torch.tensor(tokens, device=_device(top))
    results: list[list[float]] = [[]] * len(prompts)
    for indices in batches_of_groups(groups):
        last = _last_hidden(top, [groups[i] for i in indices], before)
        scores = top.logits(last).float().log_softmax(dim=-1)[:, wanted].tolist()
        for owner, row in zip((o for i in indices for o in owners[i]), scores, strict=True):
            results[owner] = row
    saved = sum(len(g.prefix) * (len(g.suffixes) - 1) for g in groups)
    return results, shared * (len(prompts) - 1) + saved


def _prefix_cache(top: Top, prefix: Sequence[int]) -> KVCache:
    """Keys and values of one text, in all layers."""
    trunk, device = top.trunk, _device(top)
    cache = KVCache(trunk.config, 1, len(prefix), trunk.dtype, device)
    capture = Capture(cache)
    top(trunk(torch.tensor([list(prefix)], device=device), capture), capture)
    return cache
