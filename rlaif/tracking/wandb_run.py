"""Opens one Weights & Biases run with explicit settings.

W&B's own environment variables apply if the configuration says nothing; none is ever set, and the process-wide run is
never reused: both would leak from one job of a multirun into the next.
"""

from __future__ import annotations

import logging
import netrc
import os
import shlex
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit
from urllib.request import getproxies

from rlaif.errors import UserError
from rlaif.io.wandb_log import repair
from rlaif.tracking.glossary import entries
from rlaif.tracking.killed import is_gone

logger = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline", "disabled"]
Upload = Literal["metrics", "text", "weights"]
# W&B serves its public cloud under the first name, and accepts a login stored for the second.
_PUBLIC_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
_CONNECT_SECONDS = 30.0
_REACH_SECONDS = 3.0
_TRUE = ("1", "true", "t", "yes", "y", "on")

AXES = {"sft": "sft/step", "rm": "rm/step", "rl": "rl/iteration"}
"""The x-axis of a stage's metrics on W&B, where a job's stages each count their own steps."""
OTHER_AXIS = "step"
KL = "rl/kl"


@dataclass(frozen=True)
class WandbOptions:
    """How a run is tracked on W&B.

    `mode`: auto is online if a login exists, else offline. `upload` limits what leaves the machine: numbers only
    (metrics), samples and prompts too (text), or model files too (weights).
    """

    project: str
    mode: Mode
    entity: str | None
    group: str | None
    job_type: str
    tags: tuple[str, ...]
    upload: Upload

    def __post_init__(self) -> None:
        for key, value, allowed in (("mode", self.mode, Mode), ("upload", self.upload, Upload)):
            if value not in get_args(allowed):
                raise UserError(f"tracking.{key} is {value!r}; write one of {', '.join(get_args(allowed))}")


def has_login() -> bool:
    """Whether a W&B key is in the environment or in the netrc file (which the NETRC variable may name)."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    named = os.environ.get("NETRC")
    candidates = [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "")).netloc
    hosts = _PUBLIC_HOSTS if server in ("", _PUBLIC_HOSTS[0]) else (server,)
    for path in candidates:
        try:
            entries = netrc.netrc(path).hosts
        except (OSError, netrc.NetrcParseError):
            continue  # W&B itself reports a broken netrc file and continues without it
        if any(entries[host][2] for host in hosts if host in entries):
            return True
    return False


def resolve_mode(mode: Mode) -> Literal["online", "offline", "disabled"]:
    """The mode that `mode` stands for on this machine.

    auto follows WANDB_DISABLED and WANDB_MODE if they are set, and otherwise is online exactly if a login exists.
    """
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_DISABLED", "").lower() in _TRUE:
        return "disabled"
    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked in ("offline", "dryrun"):
        return "offline"
    if asked == "disabled":
        return "disabled"
    return "online" if has_login() else "offline"


def check_environment(mode: Mode) -> None:
    """Raises UserError, before any work, for a W&B variable that would make W&B fail later."""
    if resolve_mode(mode) == "disabled":
        return
    import wandb

    try:
        wandb.Settings().update_from_env_vars(dict(os.environ))
    except Exception as error:  # its validation's own types
        lines = str(error).splitlines()
        field = lines[1].strip() if len(lines) > 2 else ""
        why = lines[2].strip().split(" [type=")[0] if len(lines) > 2 else " ".join(lines)
        name = f"WANDB_{field.upper()}"
        shown = f"{name}={os.environ[name]}" if name in os.environ else "a WANDB_ variable of the environment"
        raise UserError(
            f"{shown} cannot be used ({why}): correct or unset it, or write tracking=none"
        ) from None


@dataclass(frozen=True)
class RunKey:
    """Which W&B run to open: with `resume`, one of this id that already has data is continued.

    `part` tells apart the files of one run that are opened within a second.
    """

    id: str | None = None
    resume: bool = False
    part: str = ""


NEW = RunKey()


def axis_of(name: str) -> str:
    """The metric that is the x-axis of the metric `name`."""
    return AXES.get(name.partition("/")[0], OTHER_AXIS)


def sync_command(root: Path) -> str:
    """The command that uploads every offline run below `root` that has not been uploaded yet.

    What killed runs have left is made whole first. A log that does not even name its run, and so holds nothing, is set
    aside.
    """
    for file in root.glob("runs/*/*/wandb/offline-run-*/run-*.wandb"):
        if is_gone(file.parents[2]) and not repair(file):
            file.parent.rename(file.parent.with_name(f"empty-{file.parent.name}"))
    return f"wandb sync {shlex.quote(str(root))}/runs/*/*/wandb/offline-run-*"


def open_run(
    options: WandbOptions,
    *,
    directory: Path,
    name: str,
    config: dict[str, Any],
    key: RunKey = NEW,
    commit: str | None = None,
) -> Any | None:
    """A W&B run with its files below `directory`, or None if disabled. The caller finishes it.

    If W&B cannot start a run, mode auto continues offline, or without W&B if even that fails, with a warning; other
    modes raise UserError. W&B's summary keeps the best value of each metric's history, if one direction is better,
    until the run's own summary replaces it.
    """
    mode = resolve_mode(options.mode)
    if mode == "disabled":
        return None
    start = partial(_init, options, directory=directory, name=name, config=config, key=key, commit=commit)
    try:
        if mode == "online":
            _reach()
        run = start(mode)
    except Exception as error:  # W&B's own types are many, and tracking must not cost a run
        sentence = str(error).splitlines()[0] if str(error) else type(error).__name__
        if options.mode != "auto":
            raise UserError(
                f"tracking.mode={options.mode}: W&B could not start a run ({sentence}); "
                "write tracking.mode=offline to track without the server"
            ) from error
        if mode == "offline":
            logger.warning("W&B could not start a run (%s): continuing without it", sentence)
            return None
        logger.warning("W&B is not reachable (%s): tracking offline, `wandb sync` uploads it later", sentence)
        run = start("offline")
    _define_metrics(run)
    return run


def _define_metrics(run: Any) -> None:
    """Each metric's x-axis, and which value of a history the summary keeps.

    The KL divergence is defined by itself: it is the x-axis of over-optimisation too, in charts that say so, and every
    row that has an RL metric has it.
    """
    for axis in (OTHER_AXIS, *AXES.values()):
        run.define_metric(axis, hidden=True)
    # No pattern for all: of two that fit a name, W&B takes one or the other.
    for stage in dict.fromkeys(name.partition("/")[0] for name in entries()):
        run.define_metric(f"{stage}/*", step_metric=axis_of(f"{stage}/"))
    run.define_metric(KL, step_metric=axis_of(KL))
    for metric in entries().values():
        if metric.better != "none" and "*" not in metric.name:
            kept = {"up": "max", "down": "min"}[metric.better]
            run.define_metric(metric.name, step_metric=axis_of(metric.name), summary=kept)


def _reach() -> None:
    """Raises OSError if W&B's server does not accept a connection: its own client would try for a minute."""
    address = urlsplit(os.environ.get("WANDB_BASE_URL") or f"https://{_PUBLIC_HOSTS[0]}")
    if getproxies() or not address.hostname:
        return  # behind a proxy only a request would show it
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname, port), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise OSError(f"{address.hostname}:{port} accepts no connection: {error}") from None


def check_reachable() -> None:
    """Raises OSError if W&B's server accepts no connection."""
    _reach()


def _init(
    options: WandbOptions,
    mode: Literal["online", "offline"],
    *,
    directory: Path,
    name: str,
    config: dict[str, Any],
    key: RunKey,
    commit: str | None,
) -> Any:
    import wandb

    settings = wandb.Settings(
        silent=True,
        quiet=True,
        console="off",
        init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT") or _CONNECT_SECONDS),
        reinit="create_new",  # never the open run of an earlier job
        disable_git=True,  # it would record the remote's address, which may hold a login
        git_commit=commit,
        disable_code=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,  # it would record the command line, overrides with keys included
        x_sync_dir_suffix=key.part,
    )
    return wandb.init(
        project=options.project,
        entity=options.entity,
        group=options.group,
        job_type=options.job_type,
        tags=list(options.tags),
        name=name,
        id=key.id,
        resume="allow" if key.resume else None,
        config=config,
        mode=mode,
        dir=str(directory),
        settings=settings,
    )


def as_table(rows: list[dict[str, Any]]) -> Any:
    """Rows as a wandb.Table: columns by first appearance, missing cells None, nested values as text."""
    import wandb

    columns: list[str | int] = list(dict.fromkeys(key for row in rows for key in row))
    data = [[_cell(row.get(str(column))) for column in columns] for row in rows]
    return wandb.Table(columns=columns, data=data, allow_mixed_types=True)


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
