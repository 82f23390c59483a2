"""Log-probabilities of given texts, with what several of them share computed once.

An item is a prefix (for instance the context that both responses of a pair answer) and the suffixes scored
after it. The prefix runs once and its keys and values are read by every suffix; the vocabulary head runs
only where a log-probability is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from rlaif.inference.batches import forward_batches
from rlaif.inference.cache import KVCache
from rlaif.inference.packing import SharedPrefix, group_neighbours, pack, run_prefix, shared_tokens
from rlaif.models.split import Top


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


def batches_of_groups(top: Top, groups: Sequence[SharedPrefix]) -> Iterable[list[int]]:
    """Batches of group indices by total length; a group is never split."""
    return forward_batches([len(g) for g in groups], _device(top))


@torch.inference_mode()
def sequence_logprobs(
    top: Top, groups: Sequence[SharedPrefix], progress: Callable[[int], None] | None = None
) -> list[tuple[float, ...]]:
    """Sum of log-probabilities (nats) of every suffix given its prefix, group by group."""
    results: list[tuple[float, ...]] = [()] * len(groups)
    for indices in batches_of_groups(top, groups):
        chosen = [groups[i] for i in indices]
        sums = iter(_sums(top, chosen))
        for index, group in zip(indices, chosen, strict=True):
            results[index] = tuple(next(sums) for _ in group.suffixes)
        if progress:
            progress(len(indices))
    return results


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
    shared = shared_tokens(prompts)
    before = run_prefix(top, prompts[0][:shared])[0] if shared else None
    groups, owners = group_neighbours([prompt[shared:] for prompt in prompts])
    wanted = torch.tensor(tokens, device=_device(top))
    results: list[list[float]] = [[]] * len(prompts)
    for indices in batches_of_groups(top, groups):
        last = _last_hidden(top, [groups[i] for i in indices], before)
        scores = top.choice_logprobs(last, wanted).tolist()
        for owner, row in zip((o for i in indices for o in owners[i]), scores, strict=True):
            results[owner] = row
    saved = sum(len(g.prefix) * (len(g.suffixes) - 1) for g in groups)
    return results, shared * (len(prompts) - 1) + saved
