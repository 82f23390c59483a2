"""The whole path in one table: labels, reward model, RL, evaluation, each only where it was measured."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table as RichTable
from rich.text import Text

from rlaif.figures.rows import ROUGE, ResultRow, Summary, both_sides, change_text, table_rows
from rlaif.stages.eval.section import evaluation_notes
from rlaif.stages.label.section import label_lines, label_notes
from rlaif.stages.rl.section import reward_rise, rl_lines
from rlaif.stages.rm.section import reward_model_notes
from rlaif.tracking.glossary import table
from rlaif.tracking.runs import Row, RunRecord, Scalar, interval, number
from rlaif.tracking.text import metric_range, percent, signed


def merge_runs(runs: Sequence[RunRecord]) -> dict[str, Scalar]:
    """One summary for the stages of one path; if two runs have a metric, the later run counts."""
    return {name: value for run in runs for name, value in run.summary.items() if value is not None}


def result_rows(summary: Summary, history: Sequence[Row] = ()) -> list[ResultRow]:
    """A line for everything that was measured, in the order of the path."""
    notes = label_notes(summary) | reward_model_notes(summary) | evaluation_notes(summary)
    return table_rows(table("result"), summary, notes, label_lines(summary) | rl_lines(summary, history))


def proxy_and_judge(summary: Summary, history: Sequence[Row] = ()) -> list[tuple[str, str, str]]:
    """(who, measure, value): the reward and what RL maximised beside what others say about the result."""
    rise, win = reward_rise(summary, history), number(summary, "eval/win_rate")
    policy, baseline = both_sides(summary, ROUGE)
    cards = []
    if rise:
        value, _, bounds = change_text(rise.change).partition(", ")
        cards.append(("Proxy", "; ".join(filter(None, ["reward, before penalties and KL", bounds])), value))
    objective = number(summary, "rl/objective")
    if objective is not None:
        what = "at the end: what RL maximised, reward less penalties and KL"
        cards.append(("Objective", what, signed(objective)))
    if win is not None:
        found = interval(summary, "eval/win_rate")
        shown = f", {metric_range('eval/win_rate', found.low, found.high)}" if found else ""
        cards.append(("Judge", f"win rate{shown}; 50% is no difference", percent(win)))
    if policy is not None and baseline is not None:
        gain = interval(summary, "eval/rouge_l_gain")
        shown = f", {metric_range('eval/rouge_l_gain', gain.low, gain.high)}" if gain else ""
        cards.append(("Held-out", f"ROUGE-L, policy minus baseline{shown}", signed(policy - baseline)))
    return cards


def result_table(summary: Summary, history: Sequence[Row] = ()) -> RichTable:
    """The end-of-run printout: one line per measure that the run has, and at the end proxy beside judge."""
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
