"""Reports from run directories: tables, figures and one self-contained HTML page."""

from rlaif.reports.compare import ArmsTable, arms_table, terminal_arms
from rlaif.reports.labelers import compare_labelers, labelers_of, labelers_table, terminal_labelers
from rlaif.reports.page import render_report
from rlaif.reports.runs import RunRecord, find_runs, load_run
from rlaif.reports.summary import result_table
from rlaif.reports.tables import Table, ablation_table, terminal_table
from rlaif.reports.verdict import Verdict, verdict

__all__ = [
    "ArmsTable",
    "RunRecord",
    "Table",
    "Verdict",
    "ablation_table",
    "arms_table",
    "compare_labelers",
    "find_runs",
    "labelers_of",
    "labelers_table",
    "load_run",
    "render_report",
    "result_table",
    "terminal_arms",
    "terminal_labelers",
    "terminal_table",
    "verdict",
]
