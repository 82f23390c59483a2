"""The diagnosis as a table, and the verdict that its checks add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable
from rich.text import Text

from rlaif.study.diagnosis import PARTS, WRITTEN
from rlaif.study.verdict import Verdict
from rlaif.tracking.runs import Row, number


def diagnosis_verdict(rows: Sequence[Row]) -> Verdict:
    """The part to look at first: the earliest with a `no` or a failed control, else the earliest with an open question.

    `rows` are those of `Check.row`. A part builds on those before it (SFT, RL, reward), and within a part whatever
    was measured without the control stands.
    """
    failed = [row for row in rows if row["state"] == "failed"]
    for part in PARTS:
        if answered := [row for row in rows if row["part"] == part and row["state"] == "no"]:
            more = f" {_no_control(failed)}" if failed else ""
            return Verdict(f"{_blame(part, 'no', answered)}{more}", "loss")
        if any(row["part"] == part for row in failed):
            return Verdict(f"{_no_control(failed)} Try: {failed[0]['advice']}.", "open")
    for part in PARTS:
        if answered := [row for row in rows if row["part"] == part and row["state"] == "open"]:
            return Verdict(_blame(part, "open", answered), "open")
    return Verdict(
        "None of the three is to blame: the SFT policy answers its prompts, RL raises a sound reward and no "
        "other, and what the real reward pays for raises the held-out measure beyond length.",
        "win",
    )


def _no_control(failed: Sequence[Row]) -> str:
    """That nothing follows from controls that did not work."""
    asked = " ".join(f"{row['question']} Cannot be said ({row['measured']}: {_cell(row)})." for row in failed)
    return f"The control failed, so nothing is concluded from it. {asked}"


def _blame(part: str, state: str, answered: Sequence[Row]) -> str:
    answer = "No" if state == "no" else "Not shown"
    asked = " ".join(f"{row['question']} {answer} ({_cell(row)})." for row in answered)
    lead = f"It is the {part}." if state == "no" else f"Nothing is surely wrong; look at the {part} first."
    return f"{lead} {asked} Try: {answered[0]['advice']}."


@dataclass(frozen=True)
class DiagnosisTable:
    """The checks in text, under the verdict; `rows`: part, question, measured, value, rule, answer."""

    verdict: Verdict
    rows: tuple[tuple[str, str, str, str, str, str], ...]


HEADS = ("part", "question", "measured", "value", "rule", "answer")
_ANSWERS = {"yes": "yes", "no": "no", "failed": "the control failed", "open": "not shown"}


def diagnosis_table(rows: Sequence[Row]) -> DiagnosisTable | None:
    """What `stage=compare` shows of a diagnosis; None without one."""
    if not rows:
        return None
    body = tuple(
        (row["part"], row["question"], row["measured"], _cell(row), row["rule"], _ANSWERS[row["state"]])
        for row in rows
    )
    return DiagnosisTable(diagnosis_verdict(rows), body)


def _cell(row: Row) -> str:
    value, low, high = (number(row, name) for name in ("value", "ci_low", "ci_high"))
    written = WRITTEN[row["unit"]]
    if value is None:
        return "not measured"
    if low is None or high is None:
        return f"{written(value)}, no interval"
    return f"{written(value)} ({written(low).removesuffix(' points')} to {written(high)})"


def terminal_diagnosis(table: DiagnosisTable) -> RichTable:
    """The checks for the terminal, with the verdict below."""
    view = RichTable(title="Diagnosis", header_style="bold", caption=Text(table.verdict.sentence))
    for head in HEADS:
        view.add_column(head, overflow="fold", no_wrap=head in ("part", "answer"))
    last = None
    for row in table.rows:
        if last not in (None, row[0]):
            view.add_section()
        view.add_row(Text("" if row[0] == last else row[0]), *map(Text, row[1:]))
        last = row[0]
    return view
