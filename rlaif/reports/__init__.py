"""Reports from run directories: tables, figures and one self-contained HTML page."""

from rlaif.reports.arms import compare_items, curve_rows, mean_summary, standing
from rlaif.reports.card import ModelCard, TextFormat, model_card
from rlaif.reports.compare import ArmsTable, arms_table, terminal_arms
from rlaif.reports.controls import CONTROLS
from rlaif.reports.curve import curve_table, terminal_curve
from rlaif.reports.diagnosis import (
    ROLES,
    control_row,
    diagnose,
    diagnosis_table,
    diagnosis_verdict,
    terminal_diagnosis,
)
from rlaif.reports.labelers import compare_labelers, labelers_of, labelers_table, terminal_labelers
from rlaif.reports.markdown import comparison_markdown
from rlaif.reports.page import render_report
from rlaif.reports.runs import RunRecord, find_runs, load_run
from rlaif.reports.summary import result_table
from rlaif.reports.tables import Table, ablation_table, terminal_table
from rlaif.reports.verdict import Verdict, same_judge, verdict

__all__ = [
    "CONTROLS",
    "ROLES",
    "ArmsTable",
    "ModelCard",
    "RunRecord",
    "Table",
    "TextFormat",
    "Verdict",
    "ablation_table",
    "arms_table",
    "compare_items",
    "compare_labelers",
    "comparison_markdown",
    "control_row",
    "curve_rows",
    "curve_table",
    "diagnose",
    "diagnosis_table",
    "diagnosis_verdict",
    "find_runs",
    "labelers_of",
    "labelers_table",
    "load_run",
    "mean_summary",
    "model_card",
    "render_report",
    "result_table",
    "same_judge",
    "standing",
    "terminal_arms",
    "terminal_curve",
    "terminal_diagnosis",
    "terminal_labelers",
    "terminal_table",
    "verdict",
]
