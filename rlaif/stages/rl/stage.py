"""stage=rl: the policy, by RL on its own rollouts, preference optimisation, likelihood of revisions, or best of n."""

from __future__ import annotations

from rlaif.errors import UserError
from rlaif.ops import ALGORITHMS
from rlaif.stages.common.context import Context
from rlaif.stages.common.stage import Stage
from rlaif.stages.common.training.history import read_history
from rlaif.stages.rl.family import Family
from rlaif.stages.rl.offline.build import OFFLINE
from rlaif.stages.rl.online.build import ONLINE
from rlaif.stages.rl.online_pairs.build import ONLINE_PAIRS
from rlaif.stages.rl.reranking import RERANKING
from rlaif.stages.rl.revised import REVISED


def family(algorithm: str) -> Family:
    """The family of `rl.algorithm=algorithm`. Raises UserError if there is no such algorithm."""
    families = {
        **dict.fromkeys(ALGORITHMS, ONLINE),
        "dpo": OFFLINE,
        "online_dpo": ONLINE_PAIRS,
        "best_of_n": RERANKING,
        "sft_revisions": REVISED,
    }
    if algorithm not in families:
        *first, last = families
        raise UserError(f"rl.algorithm={algorithm} is not known: write {', '.join(first)} or {last}")
    return families[algorithm]


def _family(ctx: Context) -> Family:
    return family(ctx.options.rl.algorithm)


STAGE = Stage(
    "rl",
    7,
    "rl",
    lambda ctx: _family(ctx).parents(ctx),
    lambda ctx: _family(ctx).config(ctx),
    lambda ctx, folder, parents: _family(ctx).build(ctx, folder, parents),
    lambda ctx: _family(ctx).work(ctx),
    lambda ctx: _family(ctx).check(ctx),
    lambda ctx, built: _family(ctx).gate(ctx, built),
    review=lambda ctx, policy: _family(ctx).review(ctx, policy),
    history=read_history,
)
