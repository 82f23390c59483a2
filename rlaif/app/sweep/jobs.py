"""The jobs of one multirun: composed, entered into the ledger, launched, and what is said at the end."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from rlaif.app.command.failures import note_failure
from rlaif.app.command.words import one_sentence
from rlaif.app.compose import read_options, resolved
from rlaif.app.disk import written_below
from rlaif.app.report import EACH_TIME, finished_runs, write_sweep
from rlaif.app.sweep.identity import aside, flat_config, identity_of, job_key
from rlaif.app.sweep.launchers import Place, close, place_of
from rlaif.app.sweep.start import Point, opened, register, said
from rlaif.errors import UserError
from rlaif.io.plain import json_ready
from rlaif.options.job import OnDrift
from rlaif.stages.common.context import Context
from rlaif.stages.registry import STAGES
from rlaif.tracking.redact import redact, redact_assignments
from rlaif.tracking.sweep import Job, Ledger
from rlaif.tracking.sweep.ledger import counts

if TYPE_CHECKING:
    from rlaif.app.sweep.grid import GridSweeper

logger = logging.getLogger(__name__)

RECORDED = (*STAGES, "pipeline", "compare")
_ROUNDS = 2  # how often one start launches a job whose process dies
_DIRECTORY = "hydra.sweep.dir"
_WHY = {"stopped": "its process has died", "queued": "it was not started"}


def run_sweep(
    sweeper: GridSweeper, overrides: Sequence[Override], jobs: Sequence[Sequence[str]]
) -> list[Any]:
    """Run what is left of a sweep; what its jobs returned. Raises what a job raised, once all others have run."""
    place = place_of(sweeper.config, sweeper.max_batch_size)
    composer = Composer(sweeper)
    composed = [composer.job(words) for words in jobs]
    first = composed[0]
    if any(cfg.plan or cfg.stage not in RECORDED for cfg in composed):
        return _plain(sweeper, place, jobs)
    check_ledger(sweeper, first)
    root = Path(first.paths.root).expanduser().absolute()
    with written_below(str(first.paths.root)):
        ledger = opened(root, identity_of(overrides), composer.again(jobs), first.sweep.on_drift)
        points = _points(composed, jobs)
        fates = register(ledger, points, force=bool(first.force))
        logger.info("sweep %s: %d jobs: %s", ledger.id, len(points), said(fates))
        sweeper.write_to(ledger.folder)
        start = {"command": _command(sys.argv), "launcher": place.name, "said": said(fates), "fates": fates}
        with ledger.start(start):
            outcome = _work(sweeper, place, ledger, [p for p in points if fates[p.key] != "skipped"])
        _render(ledger, first)
    _end(place, ledger, points, _report_command(ledger, jobs[0]), outcome)
    return list(outcome.returned)


def check_ledger(sweeper: GridSweeper, cfg: DictConfig) -> None:
    """Raises UserError for words of the command that a ledger cannot follow; `cfg` is a job's configuration."""
    if any(word.startswith(f"{_DIRECTORY}=") for word in sweeper.config.hydra.overrides.hydra):
        raise UserError(
            f"{_DIRECTORY} is where a sweep keeps its ledger: leave it out, and write paths.root=DIR"
        )
    if cfg.sweep.on_drift not in get_args(OnDrift):
        raise UserError(f"sweep.on_drift={cfg.sweep.on_drift} is not known: write {_or(get_args(OnDrift))}")


def _render(ledger: Ledger, cfg: DictConfig) -> None:
    """Render the sweep's report once more if it lacks something: of few jobs, one that ends well has rendered it."""
    runs, whole = finished_runs(ledger), all(job.state == "finished" for job in ledger.jobs())
    if len(runs) < 2 or (whole and len(runs) <= EACH_TIME):
        return
    with suppress(UserError):  # a first job that was refused has said so
        ctx = Context(read_options(cfg), None)
        print(f"sweep report: {write_sweep(ctx, ledger.id, runs, ledger)}")


def _plain(sweeper: GridSweeper, place: Place, jobs: Sequence[Sequence[str]]) -> list[Any]:
    """Launch jobs that leave no results, such as plans, without a ledger."""
    outcome = launched(sweeper, place, jobs)
    if error := outcome.gave_up or outcome.raised:
        raise error
    return list(outcome.returned)


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


class Composer:
    """Composes jobs as the launchers will."""

    def __init__(self, sweeper: GridSweeper) -> None:
        self._load = sweeper.hydra_context.config_loader.load_sweep_config
        self._config = sweeper.config

    def job(self, words: Sequence[str]) -> DictConfig:
        """The configuration of a job, without Hydra's own."""
        cfg = self._load(self._config, list(words))
        with open_dict(cfg):
            cfg.pop("hydra")
        return cfg

    def flat(self, words: Sequence[str]) -> dict[str, Any]:
        """The flat configuration of a job, as the ledger keeps it."""
        return _flat(self.job(words))

    def again(self, jobs: Sequence[Sequence[str]]) -> Callable[[Job], Mapping[str, Any] | str]:
        """The present flat configuration of a recorded job, or the sentence that says why there is none."""
        # What stands aside (paths, tracking) is not in a row's words, and is this command's.
        own = [word for word in jobs[0] if aside(word)]

        def compose(job: Job) -> Mapping[str, Any] | str:
            words = [word for word in job.words if not aside(word)]
            try:
                return self.flat([*words, *own])
            except (UserError, OmegaConfBaseException, HydraException) as error:
                return one_sentence(error)

        return compose


def _flat(cfg: DictConfig) -> dict[str, Any]:
    return dict(redact(json_ready(flat_config(resolved(cfg)))))


def _points(composed: Sequence[DictConfig], jobs: Sequence[Sequence[str]]) -> list[Point]:
    """The points of the grid; one of several that are the same job."""
    found: dict[str, Point] = {}
    for cfg, words in zip(composed, jobs, strict=True):
        key = job_key(cfg, words)
        found.setdefault(key, Point(key, tuple(words), _flat(cfg)))
    if len(found) < len(jobs):
        logger.warning("%d jobs are the same as others of this sweep and run once", len(jobs) - len(found))
    return list(found.values())


def _command(line: Sequence[str]) -> str:
    """A command line as people type it."""
    program = "python train.py" if Path(line[0]).name == "train.py" else "rlaif"
    return f"{program} {shlex.join(map(redact_assignments, line[1:]))}"


def _report_command(ledger: Ledger, words: Sequence[str]) -> str:
    """The command that shows the sweep."""
    places = [word for word in words if word.startswith("paths.root=")]
    return _command([sys.argv[0], "stage=report", f"sweep={ledger.id}", *places])


def _work(sweeper: GridSweeper, place: Place, ledger: Ledger, left: Sequence[Point]) -> Outcome:
    """Launch what is left, and again what then is: jobs whose process died, or which another one has given up."""
    outcome = Outcome()
    for _ in range(_ROUNDS):
        if not left:
            break
        outcome = launched(sweeper, place, [point.words for point in left], outcome)
        close(place)
        before, left = left, [point for point in left if _is_left(ledger, point.key)]
        if outcome.gave_up and left == before:
            break
    return outcome


def _is_left(ledger: Ledger, key: str) -> bool:
    """Whether a job is neither finished nor failed, once no process runs it."""
    ledger.wait(key)
    job = ledger.job(key)
    return job is not None and job.state not in ("finished", "failed")


@dataclass(frozen=True)
class Outcome:
    """What the jobs returned, the first error of one that no sentence explains, and why a launcher gave up."""

    returned: Sequence[Any] = ()
    raised: Exception | None = None
    gave_up: Exception | None = None


def launched(
    sweeper: GridSweeper, place: Place, jobs: Sequence[Sequence[str]], before: Outcome | None = None
) -> Outcome:
    """Launch jobs in batches of as many as the launcher gets at once."""
    returned, raised = list(before.returned if before else ()), before.raised if before else None
    size = place.batch or max(len(jobs), 1)
    for number in range(0, len(jobs), size):
        batch = [list(words) for words in jobs[number : number + size]]
        try:
            results = sweeper.new_launcher().launch(batch, initial_job_idx=number)
        except Exception as error:  # each launcher has its own
            return Outcome(returned, raised, error)
        for result in results:
            try:
                returned.append(result.return_value)
            except Exception as error:  # what the job raised
                raised = raised or error
    return Outcome(returned, raised)


def _end(place: Place, ledger: Ledger, points: Sequence[Point], command: str, outcome: Outcome) -> None:
    """Say what became of the jobs; raises what nothing else has said."""
    jobs = [job for point in points if (job := ledger.job(point.key))]
    failed = [job for job in jobs if job.state != "finished"]
    for job in failed:
        print(f"{job.title} {job.state}: {job.error or _WHY.get(job.state, '')}", file=sys.stderr)
    numbers = ", ".join(f"{number} {state}" for state, number in counts(jobs).items())
    print(f"sweep: {ledger.id} ({len(jobs)} jobs: {numbers}); {command}")
    if outcome.raised:
        raise outcome.raised
    if outcome.gave_up:
        raise UserError(
            f"hydra/launcher={place.name}: {one_sentence(outcome.gave_up)}; the same command goes on"
        ) from outcome.gave_up
    if failed:
        note_failure(f"{len(failed)} of {len(jobs)} jobs of sweep {ledger.id} have not finished")
