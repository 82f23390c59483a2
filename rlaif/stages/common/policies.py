"""The SFT policy as a parent, and responses drawn from a policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import Receive, Sampled, sample
from rlaif.io import digest, read_json, write_json
from rlaif.models.split import Top
from rlaif.models.weights import load_top
from rlaif.records import Prompt, Sample
from rlaif.stages.common.context import Context
from rlaif.stages.common.stage import Parents

BEST_OF_FILE = "best_of.json"


def draw(
    ctx: Context,
    top: Top,
    prompts: Sequence[Prompt],
    keys: Sequence[Any],
    decoding: Decoding,
    max_rows: int,
    what: str,
    *,
    keep_features: bool = False,
    receive: Receive | None = None,
) -> list[Sampled]:
    """One response per prompt; `keys[i]` determines its noise. `sample` says what the last two are."""
    seeds = [int(digest(key, 15), 16) for key in keys]
    encoded = [ctx.encoder.prompt(p.prompt) for p in prompts]
    with ctx.progress.task(f"sampling ({what})", len(prompts)) as advance:
        return sample(
            top,
            encoded,
            seeds,
            decoding,
            eos_ids=ctx.model().eos_ids,
            max_rows=max_rows,
            keep_features=keep_features,
            receive=receive,
            progress=advance,
        )


def to_sample(ctx: Context, prompt: Prompt, drawn: Sampled) -> Sample:
    """A drawn response as a record."""
    return Sample(
        prompt.id,
        prompt.prompt,
        ctx.encoder.decode(drawn.ids),
        len(drawn.ids),
        drawn.finished,
        prompt.reference,
        prompt.group,
        tuple(drawn.ids),
    )


def write_best_of(folder: Path, count: int) -> None:
    """Mark the policy in `folder` as one of whose responses the best of `count` is given."""
    write_json(folder / BEST_OF_FILE, {"best_of": count})


def best_of(folder: Path) -> int:
    """Of how many responses of the policy in `folder` the best is given: 1 for all but best of n."""
    file = folder / BEST_OF_FILE
    return int(read_json(file)["best_of"]) if file.exists() else 1


def sft_parent(ctx: Context) -> tuple[str, ...]:
    """`sft` as a parent, or nothing if the base model is passed through."""
    return ("sft",) if ctx.options.sft.enabled else ()


def policy_top(ctx: Context, parents: Parents) -> Any:
    """The SFT policy's top, or the base model's."""
    return load_top(ctx.model(), parents["sft"].path if "sft" in parents else None)
