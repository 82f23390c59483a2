"""What a policy's training has used: responses drawn, their tokens, and labels asked for meanwhile.

Read off the history, so that it is known of policies that were trained before.
"""

from __future__ import annotations

from rlaif.stages.common.context import Context
from rlaif.stages.common.rewards.kinds import reward_kind
from rlaif.stages.rl.alarms import read_history
from rlaif.store import Artifact

NOTHING_DRAWN = {"rl/responses": 0, "rl/tokens_generated": 0, "rl/labels": 0}
"""Of a policy that learns from pairs which exist before it does, or that is not trained."""
LABELLED = ("rl/train_pairs", "rl/unread_dropped", "rl/dropped_pairs")
"""The pairs of an iteration that the labeler was asked about."""


def drawn(ctx: Context, policy: Artifact, per_iteration: int) -> dict[str, int]:
    """The budget that a policy on its own responses has used, `per_iteration` of them drawn in each iteration."""
    rows = [row for row in read_history(policy) if "rl/response_length" in row]
    responses, labels = len(rows) * per_iteration, 0
    if reward_kind(ctx).by_labeler:
        labels = responses
    elif ctx.options.reward.kind == "none":
        labels = sum(int(row.get(name, 0)) for row in rows for name in LABELLED)
    return {
        "rl/responses": responses,
        # A mean over so many responses of whole numbers.
        "rl/tokens_generated": sum(round(row["rl/response_length"] * per_iteration) for row in rows),
        "rl/labels": labels,
    }
