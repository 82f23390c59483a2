"""`rl=sft_revisions`: the SFT policy, fine-tuned on revisions of its own responses to RL's prompts.

Bai et al. 2022 (arXiv:2212.08073), section 3.1: a response is criticised in the light of a principle and rewritten, by
the labeler's engine or by the policy itself. The revisions are the artifact of stage=revise, which seeds of RL share.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from rlaif.data.datamodule import TextDataModule
from rlaif.data.encode import Cuts
from rlaif.errors import UserError
from rlaif.io import read_records
from rlaif.models.weights import TOP_FILE, save_modules
from rlaif.options.read import need, plain
from rlaif.options.training import ON_REVISIONS
from rlaif.records import Revision
from rlaif.stages.common.context import Context
from rlaif.stages.common.limits import cut_metrics, prompt_tokens, response_tokens
from rlaif.stages.common.policies import policy_top, sft_parent
from rlaif.stages.common.revisions.making import REVISIONS_FILE, dropped, revising
from rlaif.stages.common.revisions.rows import revised_rows
from rlaif.stages.common.rewards.kinds import check_reward
from rlaif.stages.common.stage import Parents, Work
from rlaif.stages.common.training.history import HISTORY_FILE, write_history
from rlaif.stages.common.training.likelihood import LikelihoodModule
from rlaif.stages.common.training.ranks import check_devices, training_together
from rlaif.stages.common.training.trainer import Advance, check_training, fit, make_trainer, optim_options
from rlaif.stages.rl.family import Family

OWN = (
    *("algorithm", "num_epochs", "batch_size", "micro_batch_size", "lr", "weight_decay", "eps", "schedule"),
    *("warmup_fraction", "gradient_clip"),
)
"""The keys of `rl` that are read here; those of the revisions are in the digest of stage=revise."""
LAST = 0.1  # of the steps, whose loss is averaged for the summary


def _check(ctx: Context) -> None:
    options = ctx.options.rl
    need(options, "rl", (*OWN, *ON_REVISIONS, "num_prompts", "temperature"), "rl=sft_revisions")
    revising(ctx)
    check_training("rl", options)
    check_devices(ctx, "rl.batch_size", options.batch_size)
    if options.num_epochs != int(options.num_epochs):
        raise UserError(
            f"rl.num_epochs={options.num_epochs:g} must be a whole number of passes over the revisions"
        )
    if ctx.options.reward.kind != "none":
        raise UserError(
            f"rl=sft_revisions learns revisions by likelihood and reads no reward, so reward={ctx.options.reward.kind} "
            "has no meaning: write reward=none"
        )
    check_reward(ctx)


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    options, epochs, cuts = ctx.options.rl, int(ctx.options.rl.num_epochs), Cuts()
    every = read_records(parents["revise"].file(REVISIONS_FILE), Revision)
    rows = revised_rows(ctx, every, "revisions", cuts)
    if not rows:
        raise UserError(
            f"no revision is left to train on: of {len(every)}, {dropped(every) or 'none are empty'}, and "
            f"{cuts.responses_dropped} are beyond task.max_response_tokens={ctx.options.task.max_response_tokens}; "
            "write another model or rl.reviser, or task.too_long=truncate"
        )
    data = TextDataModule.sft_view(
        rows,
        [],
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size or options.batch_size,
        seed=ctx.options.seeds.rl,
    )
    steps = epochs * -(-len(rows) // options.batch_size)
    module = LikelihoodModule(policy_top(ctx, parents), optim_options(options, steps), "rl")
    trainer = make_trainer(ctx, folder / "work", max_epochs=epochs, log_every=1, limit_val=False)
    planned = len(rows) * epochs
    task = ctx.progress.task("RL (revisions)", planned)
    with task as advance, training_together(ctx, "rl", folder):
        fit(trainer, module, folder / "work", data, progress=Advance(advance, planned))
    save_modules(folder / TOP_FILE, {"top": module.top})
    write_history(folder / HISTORY_FILE, [{"step": i, **row} for i, row in enumerate(module.history)])
    last = module.history[-max(1, round(LAST * steps)) :]
    cut = cut_metrics(ctx, "rl", cuts, "revisions")
    return {"rl/loss": fmean(row["rl/loss"] for row in last), "rl/rows": len(rows), **cut}


def _config(ctx: Context) -> dict[str, Any]:
    rl = plain(ctx.options.rl)
    own = {name: rl[name] for name in OWN}
    return {"rl": own, "model": ctx.model_identity, "encoding": ctx.encoding}


def _work(ctx: Context) -> Work:
    rows = min(ctx.options.rl.num_prompts, len(ctx.task.train))
    tokens = rows * (prompt_tokens(ctx) + response_tokens(ctx))
    return Work(forward=tokens, trained=tokens * ctx.options.rl.num_epochs)


REVISED = Family(
    parents=lambda ctx: ("revise", *sft_parent(ctx)),
    config=_config,
    build=_build,
    work=_work,
    check=_check,
    review=lambda ctx, policy: {"rl/labels": 0},  # stage=revise tells the rest
)
