"""The whole path in one table: labels, reward model, RL, evaluation, each only where it was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable
from rich.text import Text

from rlaif.reports.runs import Row, RunRecord, Scalar, interval, number, series
from rlaif.reports.text import metric_range, metric_value, p_text, percent, plain, signed
from rlaif.stats import Interval, linear_trend

Summary = Mapping[str, Scalar]
Sides = tuple[str, str]
ROUGE: Sides = ("eval/rouge_l_policy", "eval/rouge_l_baseline")
LENGTH: Sides = ("eval/length_policy", "eval/length_baseline")
COPY: Sides = ("eval/copy_rate_policy", "eval/copy_rate_baseline")
EOS: Sides = ("eval/eos_rate_policy", "eval/eos_rate_baseline")
EMPTY: Sides = ("eval/empty_rate_policy", "eval/empty_rate_baseline")
REWARD: Sides = ("eval/reward_policy", "eval/reward_baseline")

_EMPTY = "they lose to any text"


@dataclass(frozen=True)
class ResultRow:
    """One line of the result table. `metric` is the summary's name, for the glossary."""

    stage: str
    label: str
    metric: str
    value: str
    interval: str = ""
    note: str = ""


@dataclass(frozen=True)
class RewardRise:
    """The proxy reward at the start and the end of RL, along a line through all iterations.

    `change` has the interval of that line's rise; without bounds where too few iterations, or none, are known.
    Without a history, baseline and policy on the evaluation's prompts stand for start and end.
    """

    start: float
    end: float
    change: Interval

    @property
    def clear(self) -> bool:
        """Whether it surely rose."""
        return self.change.low > 0


def merge_runs(runs: Sequence[RunRecord]) -> dict[str, Scalar]:
    """One summary for the stages of one path; where two runs give a metric, the later run counts."""
    merged: dict[str, Scalar] = {}
    for run in runs:
        merged.update({name: value for name, value in run.summary.items() if value is not None})
    return merged


def reward_rise(summary: Summary, history: Sequence[Row] = ()) -> RewardRise | None:
    """How far RL raised its reward; None where that is not known."""
    values = series(history, "ppo/reward")[1]
    if len(values) < 2:
        end, start = both_sides(summary, REWARD)
        if start is None or end is None:
            return None
        gain = interval(summary, "eval/reward_gain")
        low, high = (gain.low, gain.high) if gain else (math.nan, math.nan)
        return RewardRise(start, end, Interval(end - start, low, high, 0))
    change = linear_trend(values)
    middle = statistics.fmean(values)
    return RewardRise(middle - change.estimate / 2, middle + change.estimate / 2, change)


def change_text(change: Interval) -> str:
    """A change with its interval, if it has one."""
    if math.isnan(change.low):
        return signed(change.estimate)
    return f"{signed(change.estimate)}, 95% interval {signed(change.low)} to {signed(change.high)}"


def both_sides(summary: Summary, names: Sides) -> tuple[float | None, float | None]:
    """A measure of the policy and of the baseline."""
    return number(summary, names[0]), number(summary, names[1])


def result_rows(summary: Summary, history: Sequence[Row] = ()) -> list[ResultRow]:
    """All measured lines, in the order of the path."""
    groups: tuple[Callable[[], list[ResultRow]], ...] = (
        lambda: _label_rows(summary),
        lambda: _reward_model_rows(summary),
        lambda: _rl_rows(summary, history),
        lambda: _evaluation_rows(summary),
    )
    return [row for group in groups for row in group()]


def _single(summary: Summary, stage: str, name: str, label: str, note: str = "") -> list[ResultRow]:
    value = number(summary, name)
    if value is None:
        return []
    found = interval(summary, name)
    shown = metric_range(name, found.low, found.high) if found else ""
    return [ResultRow(stage, label, name, metric_value(name, value), shown, note)]


def _versus(summary: Summary, label: str, names: Sides, note: str = "") -> list[ResultRow]:
    policy, baseline = both_sides(summary, names)
    if policy is None:
        return []
    name = names[0].removesuffix("_policy")
    value = metric_value(name, policy)
    if baseline is None:
        return [ResultRow("Evaluation", label, names[0], value, note=note)]
    text = f"{value} vs {metric_value(name, baseline)}"
    gain = interval(summary, f"{name}_gain")
    if gain is None:
        return [ResultRow("Evaluation", label, names[0], text, note=note or "policy vs baseline")]
    shown = f"{signed(gain.low)} to {signed(gain.high)}"
    told = f"policy vs baseline: {signed(gain.estimate)} with its interval"
    return [ResultRow("Evaluation", label, names[0], text, shown, f"{told}; {note}" if note else told)]


def _label_rows(summary: Summary) -> list[ResultRow]:
    count = number(summary, "label/alignment_n")
    note = f"with gold preferences, n = {plain(count)}" if count else "with gold preferences"
    return [
        *_some(summary, "sample/empty_rate", "empty responses sampled", _EMPTY),
        *_single(summary, "Labels", "label/alignment", "labeler alignment", note),
        *_single(
            summary, "Labels", "label/same_position_rate", "same position in both orders", "position bias"
        ),
        *_single(
            summary, "Labels", "label/choice_mass", "probability on the choices", "of the next token, mean"
        ),
        *_single(summary, "Labels", "label/unparsed_rate", "unparsed"),
        *_single(summary, "Labels", "label/failed_rate", "failed calls", _retry_note(summary)),
        *_some(
            summary, "label/empty_rate", "empty response in the pair", "it loses to any text; no one is asked"
        ),
        *_some(summary, "label/asked_again", "asked again", "answers"),
        *_cost_rows(summary),
    ]


def _retry_note(summary: Summary) -> str:
    return "labeler.retry=failed asks them again" if number(summary, "label/failed_rate") else ""


def _some(summary: Summary, name: str, label: str, note: str, stage: str = "Labels") -> list[ResultRow]:
    """A line for what is worth one only where it happened."""
    return _single(summary, stage, name, label, note) if number(summary, name) else []


def _cost_rows(summary: Summary) -> list[ResultRow]:
    """Nothing for a labeler that neither costs money nor had anything to reuse."""
    reused = number(summary, "label/reused")
    if not number(summary, "label/usd") and not reused:
        return []
    note = f"US dollars; {plain(reused)} answers reused at no cost" if reused else "US dollars"
    estimated = number(summary, "label/usage_estimated")
    if estimated:
        note += f"; tokens estimated for {percent(estimated)} of the calls"
    return _single(summary, "Labels", "label/usd", "cost of this run", note)


def _reward_model_rows(summary: Summary) -> list[ResultRow]:
    count, p = number(summary, "rm/n"), number(summary, "rm/length_only_p_value")
    held_out = f"{plain(count)} held-out pairs" if count else "held-out labels"
    test = "" if p is None else f"against the reward model: {p_text(p)}"
    return [
        *_single(summary, "Reward model", "rm/accuracy", "accuracy on its labels", held_out),
        *_single(summary, "Reward model", "rm/length_only_accuracy", 'if it were "longer is better"', test),
        *_single(summary, "Reward model", "rm/gold_accuracy", "accuracy on gold"),
    ]


def _rl_rows(summary: Summary, history: Sequence[Row]) -> list[ResultRow]:
    rise = reward_rise(summary, history)
    rows = []
    if rise:
        value = f"{plain(rise.start)} → {plain(rise.end)}"
        rows.append(ResultRow("RL", "reward (proxy)", "ppo/reward", value, note=change_text(rise.change)))
    else:
        rows += _single(summary, "RL", "ppo/reward", "reward (proxy)", "at the end")
    return [
        *rows,
        *_held_out_rows(summary),
        *_scale_rows(summary),
        *_single(
            summary,
            "RL",
            "ppo/objective",
            "objective (RL maximises it)",
            "reward less penalties and KL, at the end",
        ),
        *_single(summary, "RL", "ppo/kl", "KL from the reference", "nats per response"),
        *_single(summary, "RL", "ppo/eos_rate", "ends by itself"),
        *_some(summary, "ppo/empty_rate", "empty responses", _EMPTY, "RL"),
    ]


def _scale_rows(summary: Summary) -> list[ResultRow]:
    """How much of the raw reward 1 is, and so 1 of every penalty."""
    words, sd = summary.get("ppo/reward_scale"), number(summary, "ppo/reward_raw_sd")
    if not words:
        return []
    value = "" if sd is None else f"{plain(sd)} raw"
    return [ResultRow("RL", "1 of reward and penalties is", "ppo/reward_scale", value, note=str(words))]


def _held_out_rows(summary: Summary) -> list[ResultRow]:
    """The proxy on prompts that the reward model was not trained on, with the interval of its gain."""
    name = "ppo/reward_held_out"
    start, end = both_sides(summary, (f"{name}_start", name))
    gain, found = number(summary, f"{name}_gain"), interval(summary, f"{name}_gain")
    if start is None or end is None or gain is None:
        return []
    bounds = f", 95% interval {signed(found.low)} to {signed(found.high)}" if found else ""
    value, note = f"{plain(start)} → {plain(end)}", f"{signed(gain)}{bounds}"
    return [ResultRow("RL", "reward (proxy), prompts new to it", name, value, note=note)]


def _evaluation_rows(summary: Summary) -> list[ResultRow]:
    p, judge = number(summary, "eval/p_value"), summary.get("eval/judge")
    count = number(summary, "eval/n")
    parts = [
        p_text(p) if p is not None else "",
        f"n = {plain(count)}" if count else "",
        f"judge: {judge}" if judge else "",
    ]
    return [
        *_single(summary, "Evaluation", "eval/win_rate", "win rate", ", ".join(filter(None, parts))),
        *_single(summary, "Evaluation", "eval/win_rate_lc", "win rate, length-controlled"),
        *_some(summary, "eval/unparsed_rate", "unparsed verdicts", "", "Evaluation"),
        *_some(summary, "eval/failed_rate", "failed calls of the judge", "", "Evaluation"),
        *_some(summary, "eval/asked_again", "asked again", "stored answers, by judge.retry", "Evaluation"),
        *_versus(summary, "reward (proxy), held-out prompts", REWARD),
        *_versus(summary, "ROUGE-L to the author's text", ROUGE, "held-out: no model judges it"),
        *_versus(summary, "length", LENGTH),
        *_versus(summary, "copy rate", COPY),
        *_versus(summary, "ends by itself", EOS),
        *(_versus(summary, "empty responses", EMPTY, _EMPTY) if any(both_sides(summary, EMPTY)) else []),
    ]


def proxy_and_judge(summary: Summary, history: Sequence[Row] = ()) -> list[tuple[str, str, str]]:
    """(who, measure, value) for the reward and what RL maximised beside what others say of the result."""
    rise, win = reward_rise(summary, history), number(summary, "eval/win_rate")
    policy, baseline = both_sides(summary, ROUGE)
    cards = []
    if rise:
        cards.append(("Proxy", "reward, before penalties and KL", change_text(rise.change)))
    objective = number(summary, "ppo/objective")
    if objective is not None:
        cards.append(
            ("Objective", "at the end: what RL maximised, reward less penalties and KL", signed(objective))
        )
    if win is not None:
        found = interval(summary, "eval/win_rate")
        shown = f", {metric_range('eval/win_rate', found.low, found.high)}" if found else ""
        cards.append(("Judge", f"win rate{shown}; 50% is no difference", percent(win)))
    if policy is not None and baseline is not None:
        cards.append(("Held-out", "ROUGE-L, policy minus baseline", signed(policy - baseline)))
    return cards


def result_table(summary: Summary, history: Sequence[Row] = ()) -> RichTable:
    """The end-of-run printout: one line for each measure that the run has, proxy beside judge at the end."""
    view = RichTable(title="Result", header_style="bold")
    for column in ("stage", "measure"):
        view.add_column(column)
    view.add_column("value", justify="right", no_wrap=True)
    view.add_column("95% interval", justify="right", no_wrap=True)
    view.add_column("note", overflow="fold")
    last = None
    for row in result_rows(summary, history):
        if last not in (None, row.stage):
            view.add_section()
        stage = "" if row.stage == last else row.stage
        view.add_row(stage, row.label, row.value, row.interval, Text(row.note))
        last = row.stage
    cards = proxy_and_judge(summary, history)
    if len(cards) > 1:
        view.add_section()
        for position, (who, measure, value) in enumerate(cards):
            view.add_row("Proxy vs judge" if position == 0 else "", who.lower(), value, "", measure)
    return view
