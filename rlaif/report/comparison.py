"""Tables of `stage=compare`: the arms' own numbers, then their policies against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich.table import Table as RichTable
from rich.text import Text

from rlaif.figures.rows import latest_table
from rlaif.report.curve import curve_table, terminal_curve
from rlaif.stages.eval.judge_tables import self_preference_grid, terminal_grid
from rlaif.stats import ALPHA, holm
from rlaif.study.arm_table import LETTERED
from rlaif.study.controls import ControlArm
from rlaif.study.diagnosis_table import diagnosis_table, terminal_diagnosis
from rlaif.study.labelers import (
    PairRow,
    bare_p,
    labelers_of,
    labelers_table,
    pair_row,
    shown_pairs,
    terminal_labelers,
)
from rlaif.study.sweeps import Sweep
from rlaif.study.verdict import Verdict
from rlaif.tracking.glossary import names
from rlaif.tracking.runs import Row, RunRecord, Scalar, interval, number
from rlaif.tracking.text import MISSING, metric_label, metric_range, metric_value, p_text, percent

_NAMED = 3  # head-to-heads in the headline
_TERMINAL_COLUMNS = 5  # a terminal has room for these; the page has all


@dataclass(frozen=True)
class ArmRow:
    """One arm: per metric its text and interval (or an empty text), and how it did in the tests.

    Arms that share a letter of `group` are not told apart; `tied`: not told apart from the best arm.
    `over_baseline`: the p of its win rate against 50%, Holm-adjusted over all arms.
    """

    arm: str
    cells: tuple[tuple[str, str], ...]
    seeds: str = ""
    group: str = ""
    p_holm: str = MISSING
    best: bool = False
    tied: bool = False
    over_baseline: str = MISSING


@dataclass(frozen=True)
class VerdictRow:
    """One head-to-head, as text; `controlled` is the win rate at equal length.

    `tied`: not significant at 5% after Holm's correction.
    """

    first: str
    second: str
    win_rate: str
    interval: str
    n: str
    p: str
    p_holm: str
    tied: bool
    winner: str
    controlled: str = MISSING
    controlled_interval: str = ""

    @property
    def rate(self) -> str:
        """The win rate with its interval."""
        return with_range(self.win_rate, self.interval)

    @property
    def at_equal_length(self) -> str:
        """The length-controlled win rate with its interval."""
        return with_range(self.controlled, self.controlled_interval)

    @property
    def outcome(self) -> str:
        """Who wins, if that is decided."""
        return "undecided" if self.tied else f"{self.winner} wins"


@dataclass(frozen=True)
class ArmsTable:
    """What `stage=compare` shows: `metrics` are the columns that at least one arm has.

    `main` is the metric that `tests` are on or, without any, the one that ranks the arms, if any does; `caption` says
    how they were made. `swept`: the arms are those of a sweep. `pairs`: how many were tested; `tests` has those
    that are shown. The table is false if it has neither arms nor verdicts.
    """

    metrics: tuple[str, ...]
    arms: tuple[ArmRow, ...]
    verdicts: tuple[VerdictRow, ...]
    tests: tuple[PairRow, ...] = ()
    main: str = ""
    caption: str = ""
    controls: tuple[ControlArm, ...] = ()
    swept: bool = False
    pairs: int = 0

    def __bool__(self) -> bool:
        return bool(self.arms or self.verdicts)

    @property
    def judged(self) -> bool:
        """Whether several arms were judged against their baselines; these tests form one family."""
        return sum(row.over_baseline != MISSING for row in self.arms) > 1

    @property
    def repeated(self) -> bool:
        """Whether an arm ran with several seeds."""
        return any(row.seeds not in ("", "1") for row in self.arms)


def arms_table(
    arms: Mapping[str, Mapping[str, Scalar]],
    verdicts: Sequence[Row],
    tests: Sequence[Row] = (),
    controls: Sequence[Row] = (),
    metrics: Sequence[str] = (),
) -> ArmsTable:
    """Per-arm rows, head-to-head rows and paired tests.

    `arms`: name to summary, with `seeds`, `best`, `p_holm` and `group` if there are `tests` (rows of
    `study.arm_table.compare_items`). `verdicts`: rows with `first`, `second`, `win_rate` (of first over
    second), `ci_low`, `ci_high`, `p`, `p_holm`, `n` and `win_rate_lc`; missing values print as a dash.
    `controls`: rows of `study.diagnosis.control_row`. `metrics`: the columns, starting with the one that ranks the
    arms; by default those of the registry's table.
    A missing `p_holm` is computed over these rows; a verdict without p is tied if its interval contains 50%.
    """
    shown = tuple(
        name
        for name in metrics or names("arms")
        if any(number(values, name) is not None for values in arms.values())
    )
    over_baseline = holm(
        {arm: p for arm, values in arms.items() if (p := number(values, "eval/p_value")) is not None}
    )
    return ArmsTable(
        shown,
        tuple(_arm_row(arm, values, shown, over_baseline.get(arm)) for arm, values in arms.items()),
        tuple(_verdict_row(row) for row in _with_holm(verdicts)),
        tuple(map(pair_row, shown_pairs(tests))),
        str(tests[0]["metric"]) if tests else next(iter(metrics), ""),
        _caption(tests),
        tuple(ControlArm(str(row["arm"]), row["state"], str(row["sentence"])) for row in controls),
        pairs=len(tests),
    )


def _arm_row(
    arm: str, values: Mapping[str, Scalar], metrics: Sequence[str], over_baseline: float | None
) -> ArmRow:
    seeds, p, best = number(values, "seeds"), number(values, "p_holm"), bool(values.get("best"))
    return ArmRow(
        arm,
        tuple(_arm_cell(values, name) for name in metrics),
        "" if seeds is None else f"{seeds:.0f}",
        str(values.get("group") or ""),
        bare_p(p),
        best,
        tied=p is not None and p >= ALPHA,
        over_baseline=bare_p(over_baseline),
    )


def _caption(tests: Sequence[Row]) -> str:
    if not tests:
        return ""
    count, seeds, pairs = tests[0]["n"], tests[0]["seeds"], len(tests)
    over = method = ""
    if seeds > 1:
        over, method = (
            f"and {seeds} seeds ",
            "Student's t over seeds and prompts at once, with seeds paired too",
        )
    else:
        method = "exact McNemar, or Student's t over whole prompts if prompts repeat or scores are not 0 or 1"
    arms = len({str(test[side]) for test in tests for side in ("first", "second")})
    letters = "Arms that share a letter are not told apart at 5%, which does not make them equal."
    return (
        f"Tested on {metric_label(str(tests[0]['metric']))}, on the same {count} test items {over}in all arms: "
        f"p against the best arm ({method}), Holm over {pairs:,} pair{'s' if pairs > 1 else ''} of arms. "
        + (letters if arms <= LETTERED else f"No letters for groups of arms: there are more than {LETTERED}.")
    )


def arms_verdict(table: ArmsTable) -> Verdict | None:
    """Which arm leads on the tested metric, else who won head to head; None if neither was tested.

    If a control arm did not work, the verdict says only that.
    """
    if failures := [control.failure for control in table.controls if control.failure]:
        return Verdict(" ".join(failures), "open")
    if table.main not in table.metrics:
        return _duels_verdict(table.verdicts)
    best = next((row for row in table.arms if row.best), table.arms[0])
    value, shown = best.cells[table.metrics.index(table.main)]
    lead = f"{metric_label(table.main)} {value}" + (f" (95% CI {shown})" if shown else "")
    if not best.best:
        sentence = f"{best.arm} has the best {lead}; whether the difference is real was not tested."
        return Verdict(sentence, "open") if len(table.arms) > 1 else None
    tied = [row.arm for row in table.arms if row.tied]
    rest = [row.arm for row in table.arms if not row.best and row.p_holm == MISSING]
    aside = f" ({_listed(rest)} could not be tested)" if rest else ""
    if not tied:
        return Verdict(f"{best.arm} is best: {lead}, significantly ahead of every other arm{aside}.", "win")
    lead = f"{best.arm} has the best {lead}"
    return Verdict(f"No single winner: {lead}, not told apart from {_listed(tied)}{aside}.", "open")


def _listed(arms: Sequence[str]) -> str:
    return "; ".join(arms[:4]) + (f" and {len(arms) - 4} more" if len(arms) > 4 else "")


def _duels_verdict(duels: Sequence[VerdictRow]) -> Verdict | None:
    if not duels:
        return None
    won = [duel for duel in duels if not duel.tied]
    if len(duels) == 1:
        (duel,) = duels
        lead = f"{duel.winner} wins" if won else f"No clear difference between {duel.first} and {duel.second}"
        return Verdict(f"{lead}: {_duel_text(duel)}.", "win" if won else "open")
    if not won:
        undecided = f"No two of the policies that met are told apart at 5% (Holm over {len(duels)} pairs)"
        return Verdict(f"{undecided}; that does not make them equal.", "open")
    rest = len(won) - _NAMED
    named = "; ".join(map(_duel_text, won[:_NAMED])) + (f"; and {rest} more" if rest > 0 else "")
    others = "" if len(won) == len(duels) else " The policies of no other pair are told apart at 5%."
    return Verdict(f"Head to head: {named}.{others}", "win")


def _duel_text(duel: VerdictRow) -> str:
    shown = f"95% CI {duel.interval}" if duel.interval else ""
    p = "" if duel.p_holm == MISSING else f"Holm {duel.p_holm}"
    known = ", ".join(filter(None, (shown, p)))
    text = f"the judge prefers {duel.first} to {duel.second} in {with_range(duel.win_rate, known)}"
    return text if duel.controlled == MISSING else f"{text}, at equal length in {duel.at_equal_length}"


def _with_holm(verdicts: Sequence[Row]) -> list[Row]:
    raw = {str(index): p for index, row in enumerate(verdicts) if (p := number(row, "p")) is not None}
    adjusted = holm(raw) if raw else {}
    return [{"p_holm": adjusted.get(str(index)), **row} for index, row in enumerate(verdicts)]


def _arm_cell(values: Mapping[str, Scalar], name: str) -> tuple[str, str]:
    found = interval(values, name)
    shown = metric_range(name, found.low, found.high) if found else ""
    return metric_value(name, number(values, name)), shown


def _verdict_row(row: Row) -> VerdictRow:
    win, low, high = (number(row, key) for key in ("win_rate", "ci_low", "ci_high"))
    p, adjusted, count = number(row, "p"), number(row, "p_holm"), number(row, "n")
    deciding = p if adjusted is None else adjusted
    overlaps = low is None or high is None or low <= 0.5 <= high
    tied = overlaps if deciding is None else deciding >= ALPHA
    first, second = str(row.get("first", MISSING)), str(row.get("second", MISSING))
    winner = "" if tied or win is None else first if win > 0.5 else second
    shown = metric_range("eval/win_rate", low, high) if low is not None and high is not None else ""
    controlled, controlled_range = _arm_cell({f"eval/{key}": row[key] for key in row}, "eval/win_rate_lc")
    return VerdictRow(
        first,
        second,
        percent(win),
        shown,
        MISSING if count is None else f"{count:.0f}",
        p_text(p),
        p_text(adjusted),
        tied,
        winner,
        controlled,
        controlled_range,
    )


def with_range(value: str, shown: str) -> str:
    """A value with its interval, if there is one."""
    return f"{value} ({shown})" if shown else value


def terminal_arms(table: ArmsTable) -> list[RichTable]:
    """The tables for the terminal (a second one only if there are head-to-heads).

    `*` marks the best arm, `=` those tied with it.
    """
    controls = [f"Control {control.arm}: {control.sentence}." for control in table.controls]
    metrics = _terminal_metrics(table)
    rest = len(table.metrics) - len(metrics)
    more = f"The report has {rest} more column{'s' if rest > 1 else ''}." if rest else ""
    marks = "* is the best, = is not told apart from it." if table.tests else ""
    caption = " ".join(filter(None, (table.caption, marks, *controls, more)))
    arms = RichTable(title="Arms", caption=caption or None, header_style="bold")
    if table.tests:
        arms.add_column("")
    arms.add_column("arm", overflow="fold")
    if table.repeated:
        arms.add_column("seeds", justify="right")
    for name in metrics:
        arms.add_column(metric_label(name), justify="right")
    if table.judged:
        arms.add_column("over SFT, Holm p", justify="right")
    if table.tests:
        arms.add_column("Holm p", justify="right", no_wrap=True)
        arms.add_column("group")
    for row in table.arms:
        arms.add_row(*_terminal_row(table, row))
    if not table.verdicts:
        return [arms]
    duels = RichTable(title="Head to head", header_style="bold")
    for column in ("first", "second", "win rate", "at equal length", "n", "p", "Holm", "verdict"):
        duels.add_column(column, overflow="fold")
    for duel in table.verdicts:
        texts = (duel.rate, duel.at_equal_length, duel.n, duel.p, duel.p_holm)
        duels.add_row(Text(duel.first), Text(duel.second), *texts, Text(duel.outcome))
    return [arms, duels]


def _terminal_metrics(table: ArmsTable) -> list[str]:
    """The tested metric and those that matter most besides, in the table's order (of a sweep: its first columns)."""
    ranked = [table.main, *(() if table.swept else names("arms_terminal")), *table.metrics]
    room = _TERMINAL_COLUMNS - table.judged  # which has a column of its own
    chosen = [name for name in dict.fromkeys(ranked) if name in table.metrics][:room]
    return [name for name in table.metrics if name in chosen]


def _terminal_row(table: ArmsTable, row: ArmRow) -> list[str | Text]:
    chosen = [row.cells[table.metrics.index(name)] for name in _terminal_metrics(table)]
    cells: list[str | Text] = [Text(row.arm), *([row.seeds] if table.repeated else [])]
    cells += [f"{value}\n({shown})" if shown else value for value, shown in chosen]
    cells += [row.over_baseline] if table.judged else []
    if not table.tests:
        return cells
    return ["*" if row.best else "=" if row.tied else "", *cells, row.p_holm, row.group]


def sweep_table(found: Sweep, columns: Sequence[str] = ()) -> ArmsTable:
    """The arms of a sweep as those of any comparison, with its metrics as columns.

    With `columns`: the metric that ranks the arms, and those of `columns` in which arms differ.
    """
    arms = {str(row["arm"]): row for row in found.rows}
    main = found.metrics[0]
    differing = [name for name in columns if len({number(row, name) for row in found.rows}) > 1]
    alike = [] if len(arms) < 2 else [name for name in columns if name not in (main, *differing)]
    chosen = list(dict.fromkeys([main, *differing])) if columns else found.metrics
    table = arms_table(arms, (), found.tests, metrics=chosen)
    ranked = f"Ranked by {metric_label(main)}; not tested: the arms share no test items of it."
    parts = (table.caption, "" if found.tests else ranked, *found.notes, _alike(found.rows[0], alike))
    return replace(table, swept=True, caption=" ".join(filter(None, parts)))


def _alike(row: Row, names: Sequence[str]) -> str:
    """What the metrics are in which no two arms differ."""
    known = [(name, number(row, name)) for name in names]
    same = [f"{metric_label(name)} {metric_value(name, value)}" for name, value in known if value is not None]
    return f"The same in all arms: {', '.join(same)}." if same else ""


def recorded_arms(runs: Sequence[RunRecord], columns: Sequence[str] = ()) -> ArmsTable:
    """The table that `stage=compare` recorded in `runs`; an empty one if it did not.

    `columns`: its metrics, after the tested one if that is none of them; by default those of the registry's table.
    """
    arms = {str(row["arm"]): row for run in runs for row in run.table("arms") if "arm" in row}
    verdicts = [row for run in runs for row in run.table("verdicts")]
    table = arms_table(arms, verdicts, latest_table(runs, "arm_tests"), latest_table(runs, "controls"))
    if not columns:
        return table
    first = [table.main] if table.main in table.metrics and table.main not in columns else []
    shown = arms_table(arms, (), metrics=(*first, *columns))
    return replace(table, metrics=shown.metrics, arms=_with_cells(table.arms, shown.arms))


def _with_cells(rows: Sequence[ArmRow], shown: Sequence[ArmRow]) -> tuple[ArmRow, ...]:
    return tuple(replace(row, cells=one.cells) for row, one in zip(rows, shown, strict=True))


def terminal_comparison(run: RunRecord) -> list[RichTable]:
    """All tables of a comparison's run: arms, head-to-heads, curve, diagnosis, labelers."""
    arms = recorded_arms([run])
    curve, diagnosis = curve_table(run.table("curve")), diagnosis_table(run.table("diagnosis"))
    labelers, preferred = (
        labelers_table(*labelers_of([run])),
        self_preference_grid(run.table("self_preference")),
    )
    return [
        *(terminal_arms(arms) if arms else []),
        *([terminal_grid(preferred)] if preferred else []),
        *([terminal_curve(curve)] if curve else []),
        *([terminal_diagnosis(diagnosis)] if diagnosis else []),
        *([terminal_labelers(labelers)] if labelers else []),
    ]
