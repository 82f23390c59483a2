"""`rl=best_of_n`: no training; of several responses of the SFT policy, the one with the highest reward is given.

Stiennon et al. 2020 (arXiv:2009.01325), Nakano et al. 2021 (arXiv:2112.09332). It costs nothing to train and n times as
much to answer: what RL buys has to be held against it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif.errors import UserError
from rlaif.models.weights import TOP_FILE, save_modules
from rlaif.options.read import need
from rlaif.stages.common.context import Context
from rlaif.stages.common.policies import policy_top, sft_parent, write_best_of
from rlaif.stages.common.rewards.kinds import NO_REWARD, check_reward, reward_config, reward_parents
from rlaif.stages.common.stage import Parents, Work
from rlaif.stages.common.training.history import HISTORY_FILE, write_history
from rlaif.stages.rl.budget import NOTHING_DRAWN
from rlaif.stages.rl.family import Family


def _check(ctx: Context) -> None:
    need(ctx.options.rl, "rl", ("best_of",), "rl=best_of_n")
    if ctx.options.reward.kind == "none":
        raise UserError(NO_REWARD)
    if not ctx.options.eval.temperature:
        raise UserError(
            "rl=best_of_n chooses among different responses, but eval.temperature=0 always gives the same one: write "
            "eval.temperature=1"
        )
    check_reward(ctx)


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    """The SFT policy's weights, and of how many of its responses the best is taken."""
    save_modules(folder / TOP_FILE, {"top": policy_top(ctx, parents)})
    write_best_of(folder, ctx.options.rl.best_of)
    write_history(folder / HISTORY_FILE, [])
    return {"rl/best_of": ctx.options.rl.best_of}


def _config(ctx: Context) -> dict[str, Any]:
    return {
        "rl": {"algorithm": ctx.options.rl.algorithm, "best_of": ctx.options.rl.best_of},
        "reward": reward_config(ctx),
        "model": ctx.model_identity,
        "encoding": ctx.encoding,
    }


RERANKING = Family(
    parents=lambda ctx: (*reward_parents(ctx), *sft_parent(ctx)),
    config=_config,
    build=_build,
    work=lambda ctx: Work(),
    check=_check,
    review=lambda ctx, policy: dict(NOTHING_DRAWN),
)
