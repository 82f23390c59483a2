"""What a search came to: its trials, the best of them, and the command that confirms it on fresh seeds."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from rlaif.app.search.objective import Objective
from rlaif.app.search.space import written
from rlaif.app.search.study import ERROR, RUN, STALE, Search
from rlaif.io import read_json, write_text
from rlaif.tracking.runs import interval
from rlaif.tracking.text import metric_label, metric_range, metric_value

FRESH = (101, 102, 103)
"""Seeds of a confirmation, far from those that people search and sweep over."""
_CONFIRMED = {
    "label": ("label", "seeds.label", "label/alignment"),
    "rm": ("rm", "seeds.rm", "rm/gold_accuracy,rm/accuracy"),
    "rl": ("eval", "seeds.rl", "eval/win_rate"),
    "eval": ("eval", "seeds.rl", "eval/win_rate"),
    "pipeline": ("eval", "seeds.rl", "eval/win_rate"),
}
"""By stage: up to where the arms run, the seed that is repeated, and the metrics of items that they are tested on."""
STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class Command:
    """How the search was called: the program, its stage, and the words that all trials share."""

    program: str
    stage: str
    words: tuple[str, ...]

    def line(self, words: Sequence[str]) -> str:
        """A command that can be pasted into a shell."""
        # A sweep's file makes a multirun of whatever it is part of.
        single = ["hydra.mode=RUN"] if any(word.startswith("sweeps=") for word in words) else []
        return " ".join([self.program, *map(shlex.quote, [*words, *single])])

    def report(self, name: str) -> str:
        """The command that shows the trials as the jobs of a sweep, at any time."""
        places = [word for word in self.words if word.startswith("paths.root=")]
        return self.line(["stage=report", f"sweep={name}", *places])

    def again(self, point: Sequence[str]) -> str:
        """The command of one trial."""
        return self.line([*self.words, *point])

    def confirm(self, point: Sequence[str]) -> str:
        """The values of `point` against the configuration's own, on a fresh split of the data and fresh seeds."""
        kept = [word for word in self.words if not _is_seed(word)]
        seeds = ",".join(map(str, FRESH))
        if self.stage not in _CONFIRMED:
            return f"{self.line([*kept, *point, 'seeds.data=1'])} -m seed={seeds}"
        until, seed, tests = _CONFIRMED[self.stage]
        kept = [word for word in kept if not word.startswith("stage=")]
        arms = f"+arms={{default: [], best: [{', '.join(map(_quoted, point))}]}}"
        fresh = ["seeds.data=1", f"+repeat={{{seed}: [{seeds}]}}"]
        return self.line(["stage=compare", f"until={until}", *kept, arms, *fresh, f"test=[{tests}]"])


def _quoted(word: str) -> str:
    """A word within a list of an override."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _is_seed(word: str) -> bool:
    return word.lstrip("+").startswith(("seed=", "seeds."))


def best_trials(search: Search) -> list[FrozenTrial]:
    """The best finished trial, if any; of several objectives, the trials that no other betters in all."""
    if not search.trials(TrialState.COMPLETE):
        return []
    if len(search.objectives) == 1:
        return [search.study.best_trial]
    return sorted(search.study.best_trials, key=lambda trial: trial.number)


def trials_table(search: Search) -> Table:
    """A line for each trial but those that a killed process left, the best marked with a star."""
    best = {trial.number for trial in best_trials(search)}
    table = Table(
        title=f"Search {search.place.name}", header_style="bold", caption="* is the best." if best else None
    )
    table.add_column("")
    table.add_column("trial", justify="right")
    for one in search.objectives:
        table.add_column(metric_label(one.name), justify="right")
    for key in search.space.knobs:
        table.add_column(key.lstrip("+"), justify="right", overflow="fold")
    table.add_column("state", overflow="fold")
    for trial in search.trials():
        if STALE not in trial.user_attrs:
            table.add_row("*" if trial.number in best else "", str(trial.number), *_cells(search, trial))
    return table


def _cells(search: Search, trial: FrozenTrial) -> list[str]:
    finished = trial.state == TrialState.COMPLETE
    values = trial.values if finished else [math.nan] * len(search.objectives)
    shown = [metric_value(one.name, value) for one, value in zip(search.objectives, values)]
    knobs = [_short(trial.params[key]) if key in trial.params else "" for key in search.space.knobs]
    error = trial.user_attrs.get(ERROR)
    return [*shown, *knobs, f"{STATES[trial.state]}{f': {error}' if error else ''}"]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def point_words(search: Search, trial: FrozenTrial) -> list[str]:
    """The values of a trial as words of a command."""
    return [f"{key}={written(trial.params[key], knob)}" for key, knob in search.space.knobs.items()]


def sentences(search: Search, command: Command) -> list[str]:
    """What the search found, how far it can be believed, and what to run to know."""
    best, ended = best_trials(search), search.trials(TrialState.COMPLETE, TrialState.PRUNED)
    if not best:
        return ["no trial has finished: there is no best one"]
    said = []
    for trial in best:
        words = point_words(search, trial)
        measured = ", ".join(_measured(search, trial, one) for one in search.objectives)
        said += [f"best: {measured} with {' '.join(words)}", f"again: {command.again(words)}"]
    found = "the best" if len(best) == 1 else "a point of this front"
    said.append(
        f"caution: {found} of {len(ended)} trials was chosen by the very measurement that is shown, so it looks better "
        "than it is (the winner's curse): on a fresh split of the data and fresh seeds, "
        f"{'this' if command.stage in _CONFIRMED else 'this (without a test)'} tells what it is worth"
    )
    said.append(f"confirm: {command.confirm(point_words(search, best[0]))}")
    said.append(f"report: {command.report(search.place.name)}")
    return said


def _measured(search: Search, trial: FrozenTrial, one: Objective) -> str:
    """A metric of a trial's run, with its interval where it has one."""
    value = trial.values[search.objectives.index(one)]
    text = f"{one.name} {metric_value(one.name, value)}"
    folder = trial.user_attrs.get(RUN)
    file = search.place.root / str(folder) / "summary.json"
    found = interval(read_json(file), one.name) if folder and file.is_file() else None
    return text if found is None else f"{text} ({metric_range(one.name, found.low, found.high)})"


def write_results(search: Search, command: Command) -> Path:
    """Write `optimization_results.yaml` into the study's folder; the names of Hydra's own Optuna plugin are kept."""
    best = best_trials(search)
    names = [one.name for one in search.objectives]
    solutions = [
        {"params": trial.params, "values": trial.values, "run": trial.user_attrs.get(RUN)} for trial in best
    ]
    found: dict[str, Any] = {"name": "optuna", "study": search.place.name, "objectives": names}
    found |= {"directions": [one.direction for one in search.objectives]}
    if len(names) == 1 and best:
        found |= {
            "best_params": best[0].params,
            "best_value": best[0].value,
            "run": best[0].user_attrs.get(RUN),
        }
    else:
        found |= {"solutions": solutions}
    if best:
        words = point_words(search, best[0])
        found |= {"command": command.again(words), "confirm": command.confirm(words)}
    found |= {"trials": [_row(trial) for trial in search.trials() if STALE not in trial.user_attrs]}
    file = search.place.folder / "optimization_results.yaml"
    write_text(file, yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=1000))
    return file


def _row(trial: FrozenTrial) -> Mapping[str, Any]:
    values = trial.values if trial.state == TrialState.COMPLETE else None
    row = {"number": trial.number, "state": STATES[trial.state], "params": trial.params, "values": values}
    return row | {key: trial.user_attrs[key] for key in (RUN, ERROR) if key in trial.user_attrs}


def unheard_pruner(search: Search) -> str | None:
    """A warning if the pruner never got a value, since it then pruned nothing."""
    trials: Sequence[FrozenTrial] = search.trials(TrialState.COMPLETE)
    if search.options.pruner == "none" or not trials or any(trial.intermediate_values for trial in trials):
        return None
    metric = search.options.prune_on or search.objectives[0].name
    return (
        f"hydra.sweeper.pruner={search.options.pruner} pruned nothing, since no history has {metric}: write "
        f"hydra.sweeper.prune_on=METRIC, one that the runs log while they train, such as rm/val_loss or rl/reward"
    )
