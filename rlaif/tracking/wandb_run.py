"""Opens one Weights & Biases run with explicit settings, never through the environment.

Setting WANDB_MODE, or reusing the process-wide run, would leak from one job of a multirun into the next.
"""

from __future__ import annotations

import logging
import netrc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from rlaif.errors import UserError

logger = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline", "disabled"]
Upload = Literal["metrics", "text", "weights"]
# W&B serves its public cloud under the first name and accepts a login stored for the second.
_PUBLIC_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
_CONNECT_SECONDS = 30.0


@dataclass(frozen=True)
class WandbOptions:
    """How a run is tracked on W&B.

    `mode`: auto is online where a login exists, else offline. `upload` bounds what leaves the machine:
    numbers only, samples and prompts too (text), or model files too (weights).
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
            continue  # W&B itself reports a broken netrc file and goes on without it
        if any(entries[host][2] for host in hosts if host in entries):
            return True
    return False


def resolve_mode(mode: Mode) -> Literal["online", "offline", "disabled"]:
    """The mode that `mode` stands for on this machine.

    auto follows a WANDB_MODE that the user has set, and otherwise is online exactly if a login exists.
    """
    if mode != "auto":
        return mode
    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked in ("offline", "dryrun"):
        return "offline"
    if asked == "disabled":
        return "disabled"
    return "online" if has_login() else "offline"


def open_run(options: WandbOptions, *, directory: Path, name: str, config: dict[str, Any]) -> Any | None:
    """A new W&B run with its files below `directory`, or None if disabled. The caller finishes it.

    An unreachable server makes mode auto go offline with a warning.
    Raises UserError if mode is online and the server cannot be reached or refuses the login.
    """
    mode = resolve_mode(options.mode)
    if mode == "disabled":
        return None
    import wandb  # costs most of a second: only where it is used

    try:
        run = _init(options, mode, directory=directory, name=name, config=config)
    except (wandb.errors.CommError, wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
        sentence = str(error).splitlines()[0] if str(error) else type(error).__name__
        if options.mode != "auto" or mode == "offline":
            raise UserError(
                f"tracking.mode={options.mode}: W&B could not start a run ({sentence}); "
                "write tracking.mode=offline to track without the server"
            ) from error
        logger.warning("W&B is not reachable (%s): tracking offline, `wandb sync` uploads it later", sentence)
        run = _init(options, "offline", directory=directory, name=name, config=config)
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _init(
    options: WandbOptions,
    mode: Literal["online", "offline"],
    *,
    directory: Path,
    name: str,
    config: dict[str, Any],
) -> Any:
    import wandb

    settings = wandb.Settings(
        silent=True,
        quiet=True,
        console="off",
        init_timeout=_CONNECT_SECONDS,
        reinit="create_new",  # never the open run of an earlier job
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,  # it would record the command line, overrides with keys included
    )
    return wandb.init(
        project=options.project,
        entity=options.entity,
        group=options.group,
        job_type=options.job_type,
        tags=list(options.tags),
        name=name,
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
