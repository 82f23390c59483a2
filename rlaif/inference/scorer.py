"""Log-probabilities of given texts; what several of them share is computed once.

An item is a prefix (for instance the context of a pair's two responses) and the suffixes scored after it. The
prefix runs once and every suffix reads its keys and values; the vocabulary head runs only where a
log-probability is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlaif.inference.batches import forward_batches
from rlaif.inference.cache import KVCache
from rlaif.inference.packing import SharedPrefix, alone, group_neighbours, pack, run_prefix, shared_tokens
from rlaif.models.split import Top


def _device(top: Top) -> torch.device:
    return top.device


def _hidden(top: Top, groups: Sequence[SharedPrefix], before: KVCache | None) -> Tensor:
    """Hidden states (B, T, D) of the packed groups."""
    packed = pack(groups, _device(top), before)
    features = top.trunk(packed.ids, packed.attend, packed.positions, packed.max_position)
    return top(features, packed.attend, packed.positions, packed.max_position)


def _sums(top: Top, groups: Sequence[SharedPrefix], before: KVCache | None) -> list[float]:
    """Sum of log-probabilities of every suffix."""
    device, hidden = _device(top), _hidden(top, groups, before)
    row = torch.tensor([i for i, g in enumerate(groups) for s in g.suffixes for _ in s], device=device)
    # The outputs that predict a suffix are at the prefix's end and at all its own tokens but the last.
    spans = [(len(g.prefix) - 1, span) for g in groups for span in g.spans()]
    column = torch.tensor([p for last, (a, b) in spans for p in (last, *range(a, b - 1))], device=device)
    token = torch.tensor([t for g in groups for s in g.suffixes for t in s], device=device)
    lengths = [len(s) for g in groups for s in g.suffixes]
    scores = top.logprobs(hidden[row, column], token)
    return [float(part.sum()) for part in scores.cpu().double().split(lengths)]  # Apple's GPUs lack float64


@torch.inference_mode()
def sequence_logprobs(
    top: Top, groups: Sequence[SharedPrefix], progress: Callable[[int], None] | None = None
) -> list[tuple[float, ...]]:
    """Sum of log-probabilities (nats) of every suffix given its prefix, group by group.

    The beginning that all prefixes share (preamble, exemplars) runs once, if the model packs.
    """
    if not top.trunk.packs and any(len(group.suffixes) > 1 for group in groups):
        singles = [SharedPrefix(group.prefix, (suffix,)) for group in groups for suffix in group.suffixes]
        scores = (score for (score,) in sequence_logprobs(top, singles, progress))
        return [tuple(next(scores) for _ in group.suffixes) for group in groups]
    shared = shared_tokens(top, [group.prefix for group in groups])
    before = run_prefix(top, groups[0].prefix[:shared])[0] if shared else None
    groups = [SharedPrefix(group.prefix[shared:], group.suffixes) for group in groups]
    results: list[tuple[float, ...]] = [()] * len(groups)
    for indices in forward_batches(list(map(len, groups)), _device(top)):
        chosen = [groups[i] for i in indices]
        sums = iter(_sums(top, chosen, before))
        for index, group in zip(indices, chosen, strict=True):
            results[index] = tuple(next(sums) for _ in group.suffixes)
        if progress:
            progress(len(indices))
    return results


def _last_hidden(top: Top, groups: Sequence[SharedPrefix], before: KVCache | None) -> Tensor:
    """Hidden states (number of suffixes, D) at the last token of every suffix, group by group."""
    hidden = _hidden(top, groups, before)
    ends = [(row, end - 1) for row, group in enumerate(groups) for _, end in group.spans()]
    row, column = torch.tensor(ends, device=hidden.device).unbind(dim=1)
    return hidden[row, column]


@torch.inference_mode()
def next_token_logprobs(
    top: Top, prompts: Sequence[Sequence[int]], tokens: Sequence[int]
) -> tuple[list[list[float]], int]:
    """Log-probability (nats) of each of `tokens` right after each prompt, and the number of tokens saved.

    The beginning that all prompts share (preamble, exemplars) runs once, and so does what neighbours share
    after it (a pair's context, for its two orders); the head runs on last positions only.
    """
    shared = shared_tokens(top, prompts)
    before = run_prefix(top, prompts[0][:shared])[0] if shared else None
    grouped = group_neighbours if top.trunk.packs else alone
    groups, owners = grouped([prompt[shared:] for prompt in prompts])
    wanted = torch.tensor(tokens, device=_device(top))
    results: list[list[float]] = [[]] * len(prompts)
    for indices in forward_batches(list(map(len, groups)), wanted.device):
        last = _last_hidden(top, [groups[i] for i in indices], before)
        scores = top.choice_logprobs(last, wanted).tolist()
        for owner, row in zip((o for i in indices for o in owners[i]), scores, strict=True):
            results[owner] = row
    saved = sum(len(g.prefix) * (len(g.suffixes) - 1) for g in groups)
    return results, shared * (len(prompts) - 1) + saved
