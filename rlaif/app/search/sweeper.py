"""`hydra/sweeper=optuna`: a multirun whose jobs are the trials of a search."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from rlaif.app.sweep.grid import GridSweeper
from rlaif.errors import UserError
from rlaif.io import digest
from rlaif.io.terminal import console
from rlaif.options.read import read
from rlaif.options.search import SearchOptions

if TYPE_CHECKING:  # Optuna and torch take seconds, which other commands need not wait for
    from rlaif.app.search.objective import Objective
    from rlaif.app.search.results import Command
    from rlaif.app.search.space import Space
    from rlaif.app.search.study import Search
    from rlaif.app.sweep.jobs import Composer
    from rlaif.tracking.sweep import Ledger

_NAME = re.compile(r"[\w.-]+")


class OptunaSweeper(Sweeper):
    """Hydra's side of a search; its values are those of conf/hydra/sweeper/optuna.yaml."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._options = search_options(self.values)
        self._hydra = GridSweeper(self._options.n_jobs, self._options.params)
        self._hydra.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are left. Raises UserError at the end if some of them failed."""
        from rlaif.app.disk import written_below
        from rlaif.app.search.objective import read_objectives
        from rlaif.app.search.space import read_space
        from rlaif.app.search.study import goal_of, grid_of
        from rlaif.app.search.trial import check_pruner
        from rlaif.app.sweep.jobs import Composer, check_ledger
        from rlaif.app.sweep.launchers import place_of

        options, composer = self._options, Composer(self._hydra)
        space = read_space(self._hydra.parsed(arguments))
        _check_words(composer, space)
        cfg = composer.job(space.fixed)
        objectives = read_objectives(options, str(cfg.stage))
        check_pruner(options, objectives)
        goal = goal_of(options, grid_of(options, space))
        self._place = place_of(self._hydra.config, options.n_jobs)
        if cfg.plan:
            self._plan(space, goal)
            return
        check_ledger(self._hydra, cfg)
        root = Path(str(cfg.paths.root)).expanduser().absolute()
        with written_below(str(cfg.paths.root)):
            self._search(composer, cfg, root, space, objectives)

    def _search(
        self, composer: Composer, cfg: DictConfig, root: Path, space: Space, objectives: tuple[Objective, ...]
    ) -> None:
        from rlaif.app.search.place import Place
        from rlaif.app.search.results import Command
        from rlaif.app.search.study import open_search
        from rlaif.app.sweep.start import opened

        program = "python train.py" if Path(sys.argv[0]).name == "train.py" else "rlaif"
        command = Command(program, str(cfg.stage), space.fixed)
        kind = _kind(self._options, str(cfg.stage), space, objectives)
        name = _name(self._options, kind)
        with _alone(root, name):
            identity = _identity(name, space)
            ledger = opened(root, identity, composer.again([space.fixed]), cfg.sweep.on_drift)
            place = Place(root, ledger.id)
            search = open_search(place, self._options, space, objectives, kind)
            self._hydra.write_to(place.folder)
            start = {"command": f"{program} {shlex.join(sys.argv[1:])}", "said": _said(search)}
            with ledger.start(start), _report_at_end(ledger, cfg):
                self._run(search, command, lambda batch: self._launch(search, ledger, composer, batch))

    def _run(self, search: Search, command: Command, launch: Any) -> None:
        again = search.go_on()
        more = f"; {again} are tried again" if again else ""
        print(f"search {search.place.name}: {_said(search)}{more}", flush=True)
        try:
            search.run(launch)
        finally:
            if search.trials():
                _show(search, command)
        if search.failed:
            count = len(search.failed)
            raise UserError(f"{count} of {search.ran} trials failed, the last one: {search.failed[-1]}")

    def _launch(self, search: Search, ledger: Ledger, composer: Composer, batch: Sequence[Any]) -> str | None:
        """Run the jobs of a batch; what the launcher says if it loses them."""
        from rlaif.app.search.job import enter, trial_words
        from rlaif.app.sweep.launchers import close

        jobs = []
        for trial in batch:
            search.place.outcome(trial.number).unlink(
                missing_ok=True
            )  # of a study of this name that was deleted
            words = [*search.space.fixed, *search.space.words(trial.params)]
            enter(ledger, trial, words, composer.flat(words))
            jobs.append([*words, *trial_words(search.place, trial)])
        try:
            self._hydra.new_launcher().launch(jobs, initial_job_idx=batch[0].number)
        except (
            Exception
        ) as error:  # each launcher has its own; the outcomes on disk say which jobs have ended
            return f"{type(error).__name__}: {error}".split("\n")[0]
        finally:
            close(self._place)
        return None

    def _plan(self, space: Space, goal: int) -> None:
        """The plan of one trial, at values drawn at random; no study is made."""
        import optuna

        from rlaif.app.search.place import make_sampler, quiet_optuna

        quiet_optuna()
        trial = optuna.create_study(sampler=make_sampler(self._options, 0)).ask(dict(space.knobs))
        words = space.words(trial.params)
        print(f"plan of one of {goal} trials, {' '.join(words)}")
        self._hydra.new_launcher().launch([[*space.fixed, *words]], initial_job_idx=0)


def _said(search: Search) -> str:
    return f"{search.goal - search.left} of {search.goal} trials have ended"


def search_options(values: Any) -> SearchOptions:
    """The options under `hydra.sweeper`. Raises UserError for an invalid one."""
    plain = OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True)
    assert isinstance(plain, dict)
    plain.pop("_target_", None)
    return read(SearchOptions, plain, "hydra.sweeper")


def _check_words(composer: Composer, space: Space) -> None:
    """Compose every choice before anything runs: a mistake must not cost a trial."""
    from optuna.distributions import CategoricalDistribution

    ways = {
        key: list(knob.choices) if isinstance(knob, CategoricalDistribution) else [getattr(knob, "low", None)]
        for key, knob in space.knobs.items()
    }
    for index in range(max(map(len, ways.values()))):
        point = {key: values[min(index, len(values) - 1)] for key, values in ways.items()}
        composer.job([*space.fixed, *space.words(point)])


def _kind(
    options: SearchOptions, stage: str, space: Space, objectives: Sequence[Objective]
) -> dict[str, Any]:
    """What makes a search what it is, by the names that a sentence gives it."""
    from rlaif.app.sweep.identity import aside

    return {
        "stage": stage,
        "words": sorted(word for word in space.fixed if not aside(word)),
        "space": space.described,
        "objectives": [[one.name, one.direction] for one in objectives],
        "sampler": [options.sampler, options.seed],
    }


def _name(options: SearchOptions, kind: dict[str, Any]) -> str:
    """The study's name: the user's, or the file's or stage's with a digest of what the search is."""
    if options.study_name is not None:
        if not _NAME.fullmatch(options.study_name):
            raise UserError(
                f"hydra.sweeper.study_name={options.study_name} names a folder: write letters, digits, - and _"
            )
        return options.study_name
    files = [word.partition("=")[2] for word in kind["words"] if word.startswith("sweeps=")]
    title = re.sub(r"[^\w-]+", "-", files[-1]) if files else f"search_{kind['stage']}"
    return f"{title}-{digest(kind, 8)}"


def _identity(name: str, space: Space) -> Any:
    from rlaif.app.sweep.identity import Identity

    return Identity(name, tuple(sorted(space.knobs)), space.fixed, own=name)


@contextmanager
def _alone(root: Path, name: str) -> Iterator[None]:
    """Two processes would take each other's running trials for those of a killed one."""
    (root / "sweeps").mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / "sweeps" / f".{name}.search.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"the search {name} is running already: wait for it, or write another hydra.sweeper.study_name"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _report_at_end(ledger: Ledger, cfg: DictConfig) -> Iterator[None]:
    """Render the page of the trials once they have run, or once too many have failed."""
    from rlaif.app.compose import read_options
    from rlaif.app.report import finished_runs, write_sweep
    from rlaif.stages.common.context import Context

    try:
        yield
    finally:
        runs = finished_runs(ledger)
        with suppress(UserError):  # of a setting that only the trials have
            if len(runs) > 1:
                page = write_sweep(Context(read_options(cfg), None), ledger.id, runs, ledger)
                print(f"sweep report: {page}", flush=True)


def _show(search: Search, command: Command) -> None:
    from rlaif.app.search.results import sentences, trials_table, unheard_pruner, write_results

    console().print(trials_table(search))
    for sentence in filter(None, [*sentences(search, command), unheard_pruner(search)]):
        print(sentence)
    print(f"results: {write_results(search, command)}", flush=True)
