"""Pairs of the responses that a policy has just drawn, and what has to be left out of them."""

from __future__ import annotations

from rlaif.data.datamodule import PreferenceRow
from rlaif.data.policy_pairs import PolicyPair
from rlaif.inference.rollouts import Rollout
from rlaif.records import Pair


def rollout_pairs(rollout: Rollout, iteration: int) -> list[PolicyPair]:
    """The rollout's rows two by two, both responses to a prompt adjacent, with the trunk's own features of them.

    No label is known yet. A pair's id is its own in the whole run, though a prompt returns in later iterations.
    """
    samples, starts, ends = rollout.samples(), rollout.response_mask.int().argmax(1), rollout.last + 1
    pairs = []
    for row in range(0, len(rollout), 2):
        a, b = samples[row], samples[row + 1]
        own = Pair.between(a, b, f"{a.prompt_id}#{iteration}.{row // 2}")
        start, features, ids = int(starts[row]), rollout.features[row : row + 2], rollout.ids[row : row + 2]
        (end_a, end_b) = ends[row : row + 2].tolist()
        texts = features[0, :start], features[0, start:end_a], features[1, start:end_b]
        pairs.append(PolicyPair(PreferenceRow(own, *texts), ids[0, start:end_a], ids[1, start:end_b]))
    return pairs


def is_equal(pair: Pair) -> bool:
    """Whether both responses read the same, so that nothing can be preferred."""
    return pair.response_a == pair.response_b
