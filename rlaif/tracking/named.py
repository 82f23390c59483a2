"""Runs by the names that users write: an ID or its beginning or end, a folder, or `latest`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rlaif.errors import UserError
from rlaif.tracking.runs import RunRecord, load_run, run_folders

_LATEST = re.compile(r"latest(?:~(\d+))?")
_SHOWN = 6  # candidates that a sentence names


def named_runs(root: Path, names: Sequence[str], stages: Sequence[str]) -> list[RunRecord]:
    """The runs that `names` mean, in their order, whatever their states.

    A name is a run's ID (the name of its folder), an unambiguous beginning of it, its last 8 characters, a path to its
    folder, `latest`, or `latest~N` for the N-th before it; the last two count finished runs of `stages`.
    Raises UserError for a name that is unknown, ambiguous or there twice.
    """
    folders = run_folders(root)
    found = [_latest(folders, name, stages) or _named(folders, name, root) for name in names]
    paths = [run.path.resolve() for run in found]
    for name, path in zip(names, paths, strict=True):
        if paths.count(path) > 1:
            raise UserError(f"runs={','.join(names)} has {name} twice (run {path.name}): name each run once")
    return found


def short_name(run: RunRecord) -> str:
    """The last 8 characters of an ID like `20260101T000000Z-1a2b3c4d`; any other ID as it is."""
    _, _, end = run.id.rpartition("-")
    return end if re.fullmatch(r"[0-9a-f]{8}", end) else run.id


def _latest(folders: Sequence[Path], name: str, stages: Sequence[str]) -> RunRecord | None:
    """The run that `latest` or `latest~N` means; None for any other name."""
    wanted = _LATEST.fullmatch(name)
    if wanted is None:
        return None
    back, count = int(wanted[1] or 0), 0
    for folder in reversed(folders):
        if folder.parent.name in stages and (run := load_run(folder)).state == "finished":
            if count == back:
                return run
            count += 1
    raise UserError(
        f"runs={name}: there {'is' if count == 1 else 'are'} {count or 'no'} finished run{'' if count == 1 else 's'}"
        f"{f', so write latest up to latest~{count - 1}' if count else ': run a stage first'}"
    )


def _named(folders: Sequence[Path], name: str, root: Path) -> RunRecord:
    own = Path(name).expanduser()
    if len(own.parts) > 1 and own.is_dir():
        if not (own / "meta.json").is_file():
            raise UserError(
                f"runs={name} is no run's folder: write one of RUNS/STAGE/TIME-ID, which has a meta.json"
            )
        return load_run(own.absolute())
    exact = [folder for folder in folders if folder.name == name]
    fits = exact or [f for f in folders if name and (f.name.startswith(name) or f.name.endswith(f"-{name}"))]
    if len(fits) == 1:
        return load_run(fits[0])
    if fits:
        raise UserError(f"runs={name} fits {len(fits)} runs: write one of {_list(fits)}")
    if not folders:
        raise UserError(
            f"runs={name}: there is no run in {root / 'runs'}; run a stage first, or write its paths.root"
        )
    raise UserError(f"runs={name} is no run of {root / 'runs'}: write one of {_list(folders)}")


def _list(folders: Sequence[Path]) -> str:
    """The newest so many, newest first."""
    newest = [f"{folder.name} ({folder.parent.name})" for folder in reversed(folders)]
    rest = len(newest) - _SHOWN
    return ", ".join(newest[:_SHOWN]) + (f" or {rest} older ones" if rest > 0 else "")
