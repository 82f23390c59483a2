"""stage=doctor: what this machine can run."""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from rich.table import Table

from rlaif.app.plan.models import check_memory, memory_lines, models_of, verdict_lines
from rlaif.app.plan.power import power_plan
from rlaif.app.plan.seconds import matrix_rate
from rlaif.backends.base import Backend, Message
from rlaif.backends.encoder import EncoderBackend
from rlaif.backends.openai.backend import OpenAIBackend
from rlaif.backends.scripted import ScriptedBackend
from rlaif.errors import UserError
from rlaif.io.terminal import console
from rlaif.labelers.answers import checked
from rlaif.labelers.prompts import CHOICES
from rlaif.models.kernels.devices import visible_gpus
from rlaif.options.job import JUDGES, called
from rlaif.stages.common.context import Context
from rlaif.stages.common.labeling import low_mass_hints
from rlaif.stages.label.injection import ATTACKS, injection_report
from rlaif.tracking.text import percent
from rlaif.tracking.wandb_run import has_login


def _machine(ctx: Context) -> str:
    free = shutil.disk_usage(ctx.root if ctx.root.exists() else ctx.root.anchor).free / 2**30
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{versions}, {os.cpu_count()} cores, {free:.0f} GiB free on disk"


def _device(ctx: Context) -> str:
    spec = ctx.model_spec
    rates = ", ".join(
        f"{name} {matrix_rate(name, spec.device) / 1e9:,.0f} GFLOP/s" for name in ("bfloat16", "float32")
    )
    gpus = ", ".join(map(device_name, visible_gpus())) or "none"
    return f"{device_name(spec.device)}; computes in {spec.dtype} ({rates}); GPUs: {gpus}"


def device_name(device: str) -> str:
    """What people call the hardware behind a torch device."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.backends.mps.get_name()} (trainer=mps)" if device == "mps" else "CPU"


def _memory(ctx: Context) -> str:
    """What the models take, by their sizes; raises UserError for one that cannot be held."""
    check_memory(ctx)
    return "\n".join(memory_lines(ctx))


def _model(ctx: Context) -> str:
    """The policy's model, and how the probe found that it runs."""
    model = ctx.model()
    layers, trained = model.trunk.config.num_layers, ctx.model_spec.trainable
    tokens = f"EOS {model.eos_id}, pad {model.pad_id}"
    told = f"{model.identity['name']}: {layers} layers, trained {trained}, {tokens}"
    return "\n".join([told, *verdict_lines(model.trunk.verdict, ctx.model_spec.dtype)])


def _other_model(ctx: Context, who: str) -> str:
    """The model of a labeler or judge in this process, if it is not the policy's, and how it runs."""
    spec = models_of(ctx)[who]
    return "\n".join([spec.name, *verdict_lines(ctx.load(spec).trunk.verdict, spec.dtype)])


def _task(ctx: Context) -> str:
    task = ctx.task
    splits = ", ".join(f"{len(getattr(task, name))} {name}" for name in ("train", "validation", "test"))
    return f"{task.name}: {splits} prompts; {len(task.pairs)} pairs, {len(task.gold_pairs)} gold pairs"


def _wandb(ctx: Context) -> str:
    return f"mode {ctx.options.tracking.mode}; " + (
        "a login is present: runs go online"
        if has_login()
        else "no login: runs stay offline; upload them with `wandb sync`"
    )


def _server(ctx: Context, key: str = "labeler") -> str:
    """Whether the server of the labeler at `key` answers, with which model, and how it reports probabilities."""
    backend, who = ctx.labeler(key, 0, stored=False).backend, called(key)
    return backend.describe() if isinstance(backend, OpenAIBackend) else f"none: the {who} is in this process"


def _choices(ctx: Context, key: str = "labeler") -> str:
    """Whether the model of the labeler at `key` puts its mass on the two choice tokens at all."""
    backend, own = ctx.labeler(key, 0, stored=False).backend, ctx.options.asked(key)
    who = key if key.startswith(JUDGES) else f"{key}={own.name}"
    if isinstance(backend, EncoderBackend):
        return f"none: {who} compares meanings and is asked no question"
    if isinstance(backend, ScriptedBackend):
        return f"none: {who} is a rule and is asked no question"
    question = Message("Which number is larger, 1 or 2? Answer with 1 or 2 only.", "Answer=")
    (scores,) = cast(Backend, backend).choice_logprobs([question], CHOICES)
    answer = checked(scores, choices=len(CHOICES))
    if answer.error is not None:
        raise UserError(f"the question whether 1 or 2 is larger got no answer: {answer.error}")
    mass, least = _mass(answer.logprobs), own.min_mass
    finding = f"{mass:.1%} of the next token's probability is on the choices 1 and 2"
    if mass < least:
        raise UserError(
            f"{finding}, less than {key}.min_mass={least:g}: the model says something else, and its verdicts will be"
            f" unparsed. Write {', '.join(low_mass_hints(ctx, key))}, or a lower {key}.min_mass"
        )
    return finding


def _mass(logprobs: Sequence[float | None]) -> float:
    return min(1.0, math.fsum(math.exp(value) for value in logprobs if value is not None))


def _injection(ctx: Context) -> str:
    """How often a response that talks to the labeler flips its verdict; answers are kept in the label store."""
    gold = [pair for pair in ctx.encoder.fitting(ctx.task.gold_pairs) if pair.gold not in (None, 0.5)]
    wanted = ctx.options.doctor.injection_pairs
    if not gold or not wanted:
        return "not measured: " + ("doctor.injection_pairs=0" if gold else "the task has no gold pairs")
    spread = gold[:: max(1, len(gold) // wanted)][:wanted]  # gold pairs are grouped by how they were made
    if ctx.options.labeler.readout.kind == "reference":
        return f"not measured: labeler={ctx.options.labeler.name} reads no prompt"
    labeler = ctx.labeler("labeler", ctx.options.seeds.label, stored=True)
    report = injection_report(labeler, spread)
    names = {"flip_rate": "all attacks", **{f"flip_rate_{name}": name for name in ATTACKS}}
    lines = [f"verdicts of {ctx.options.labeler.name} that an attack in the worse response flips:"]
    for name, shown in names.items():
        low, high = (percent(report[f"{name}_ci_{end}"]) for end in ("low", "high"))
        lines.append(f"{shown}: {percent(report[name])} of {report[f'{name}_n']} ({low} to {high})")
    return "\n".join(lines)


Check = Callable[[Context], str]
CHECKS: dict[str, Check] = {
    "machine": _machine,
    "device": _device,
    "memory": _memory,
    "model": _model,
    "task": _task,
    "wandb": _wandb,
    "labeler's server": _server,
    "labeler's choices": _choices,
    "injection": _injection,
}
_OF_SERVERS = ("labeler's choices", "injection")


def checks_of(ctx: Context) -> dict[str, Check]:
    """`CHECKS`, further models, server and choices of each of several judges, and the planner if it is asked."""
    found: dict[str, Check] = {}
    for name, check in CHECKS.items():
        found[name] = check
        if name == "model":
            found |= {f"{who}: model": partial(_other_model, who=who) for who in _others(ctx)}
    for key in ctx.options.judge_keys if ctx.options.jury else ():
        found[f"{key}: server"] = partial(_server, key=key)
        found[f"{key}: choices"] = partial(_choices, key=key)
    if ctx.options.planner.effect is not None:
        found["planner"] = power_plan
    return found


def _others(ctx: Context) -> list[str]:
    """Who else runs a model in this process; nobody if the policy's cannot be read, which its own check says."""
    try:
        return list(models_of(ctx))[1:]
    except UserError:
        return []


def _needs(check: str) -> dict[str, str]:
    """The checks that this one builds on, each with why it is left out if that one failed."""
    server = f"{check.removesuffix(': choices')}: server" if check.endswith(": choices") else None
    needed = {server: "its server failed"} if server else {}
    if check in _OF_SERVERS:
        needed["labeler's server"] = "the labeler's server failed"
    if needed or check.endswith("model"):
        needed["memory"] = "a model does not fit"
    return needed


def doctor(ctx: Context) -> None:
    """Print one line per check; raises UserError at the end if any failed.

    Checks that ask a labeler or judge are skipped once its server has failed: each would wait for all retries. Those
    that load a model are skipped if it does not fit.
    """
    table = Table(title="Doctor", header_style="bold")
    table.add_column("check")
    table.add_column("finding", overflow="fold")
    failed = []
    for name, check in checks_of(ctx).items():
        reasons = [why for needed, why in _needs(name).items() if needed in failed]
        if reasons:
            table.add_row(f"-- {name}", f"not checked: {reasons[0]}")
            continue
        try:
            table.add_row(f"[green]ok[/] {name}", check(ctx))
        except UserError as error:
            failed.append(name)
            table.add_row(f"[red]no[/] {name}", str(error))
    console().print(table)
    if failed:
        raise UserError(f"doctor: {', '.join(failed)} failed; see the lines above")
