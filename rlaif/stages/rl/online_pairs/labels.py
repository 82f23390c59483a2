"""Who labels the pairs of an iteration: the job's labeler, or the difference of a reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from rlaif.inference.rollouts import Rollout
from rlaif.labelers import LabelResult
from rlaif.ops import penalised_scores
from rlaif.records import Pair
from rlaif.stages.common.context import Context
from rlaif.stages.common.labeling import check_unread, cost_metrics
from rlaif.stages.common.rewards.reward import Reward
from rlaif.stages.common.training.optim import require_finite

Labels = tuple[dict[int, float], dict[str, float]]
"""p_a of the pairs with a readable label, by the pair's number in its rollout, and metrics."""

Label = Callable[[Rollout, Mapping[int, Pair]], Labels]
"""(a rollout, its pairs to be labelled by their number) -> their labels."""

SPENT = {
    "rl/tokens_in": "tokens_in",
    "rl/tokens_out": "tokens_out",
    "rl/tokens_cached": "tokens_cached",
    "rl/reused": "reused",
}
"""Metrics of an iteration's labels, and the labeling's counters that they are."""


class LabelerLabels:
    """The labeler's preference for each pair, from the label store where it has the answer (Guo et al. 2024).

    Its bounds (`labeler.budget_usd`, `labeler.max_seconds`) are of the whole run. Raises UserError, with the cause, if
    more than `labeler.max_unparsed` of an iteration's judgements cannot be read.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx, self._labeler = ctx, ctx.labeler("labeler", ctx.options.seeds.label, stored=True)
        self._spent: dict[str, float] = {}  # in this process

    def __call__(self, rollout: Rollout, pairs: Mapping[int, Pair]) -> Labels:
        before, result = self._labeler.usd, self._labeler.label([*pairs.values()])
        check_unread(self._ctx, "labeler", result.unread, "an iteration's judgements")
        self._add(result)
        metrics = {name: float(result.counters[counter]) for name, counter in SPENT.items()}
        if before is not None:
            metrics["rl/usd"] = (self._labeler.usd or 0.0) - before
        labels = zip(pairs, (preference.p_a for preference in result.preferences), strict=True)
        return {number: p_a for number, p_a in labels if p_a is not None}, metrics

    def _add(self, result: LabelResult) -> None:
        for name, value in result.counters.items():
            self._spent[name] = self._spent.get(name, 0.0) + value

    def costs(self) -> dict[str, Any]:
        """What is known of the costs beside each iteration's; warns if prices or token counts are not."""
        if not self._spent:
            return {}
        told = cost_metrics(self._ctx, "labeler", self._spent, "rl")
        return {name: value for name, value in told.items() if name != "rl/usd"}


def reward_labels(ctx: Context, reward: Reward) -> Label:
    """Preferences from the difference of two scores, by Bradley and Terry (1952): p_a = sigmoid(score_a - score_b).

    A score is the reward less the penalties of `rl`, on the reward's own scale: a lead of one standard deviation over
    references is odds of e to 1, whatever the reward is made of, so that labels of all rewards are equally sure. (For
    a reward model this is not the probability that it was trained to give: that reads differences in its raw unit,
    `rl/reward_raw_sd` times these.) So the policy that the loss `sigmoid` aims at maximises score - beta KL, as the
    algorithms on rollouts do. A pair with a response whose reward could not be read has no label.
    """
    options = ctx.options.rl

    def label(rollout: Rollout, pairs: Mapping[int, Pair]) -> Labels:
        raw = reward(rollout).float().cpu()
        require_finite(raw, "reward", "rl")
        scores = penalised_scores(
            raw,
            rollout.finished.cpu(),
            rollout.lengths().cpu(),
            missing_eos_penalty=options.missing_eos_penalty,
            missing_eos_score=options.missing_eos_score,
            length_penalty=options.length_penalty,
        )
        a, b = scores.view(-1, 2).unbind(dim=1)
        p_a, unread = torch.sigmoid(a - b).tolist(), {row // 2 for row in reward.unread}
        metrics = {
            "rl/reward": float(raw.mean()),
            "rl/reward_std": float(raw.std(correction=0)),
            "rl/score": float(scores.mean()),
            **reward.measures,
        }
        return {number: p_a[number] for number in pairs if number not in unread}, metrics

    return label
