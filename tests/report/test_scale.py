"""The page of many runs grows with their number, not with that of their pairs."""

from __future__ import annotations

import csv
import importlib.util
import re
from pathlib import Path

import pytest

from rlaif.report.page import render_report
from rlaif.stats.pairs import Arms
from rlaif.study.labelers import MOST_PAIRS
from rlaif.tracking.runs import find_runs

SCRIPT = Path(__file__).parents[2] / "experiments" / "benchmarks" / "report_scale.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pages of 40 and 80 of the benchmark's runs: number to file, and how often arms were compared with others."""
    spec = importlib.util.spec_from_file_location("report_scale", SCRIPT)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    benchmark.STEPS, benchmark.ITEMS = 250, 40
    root = tmp_path_factory.mktemp("scale")
    benchmark.write_runs(root, 80)
    runs, calls = find_runs(root), []
    against = Arms.against
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arms, "against", lambda *arguments: (calls.append(1), against(*arguments))[1])
        files, counts = {}, {}
        for count in (40, 80):
            calls.clear()
            files[count] = render_report(runs[:count], root / f"r{count}.html", title="t")
            counts[count] = len(calls)
    return files, counts


def test_bytes_per_run_are_bounded(made):
    """A run is some rows of tables; 20 MB for 500 runs are 40 kB each, with all figures and scripts."""
    files, _ = made
    sizes = {count: file.stat().st_size for count, file in files.items()}
    assert (sizes[80] - sizes[40]) / 40 < 15_000
    assert sizes[80] < 80 * 40_000


def test_arms_are_compared_by_arm_not_by_pair(made):
    """Of arms, and of labelers twice (unread as wrong, and as half right): A - 1 calls each."""
    assert made[1] == {40: 3 * 39, 80: 3 * 79}


def test_the_page_shows_the_best_arm_s_pairs_and_a_file_has_all(made):
    files, _ = made
    text, pairs = files[80].read_text(), 80 * 79 // 2
    assert pairs > MOST_PAIRS
    assert "The best arm against each other one (79 of 3,160 pairs)" in text and "r80_pairs.csv" in text
    assert "Holm over 3,160 pairs of arms" in text and "No letters for groups of arms" in text
    for name in ("pairs", "labeler_pairs"):
        with files[80].with_name(f"r80_{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == pairs == len({(row["first"], row["second"]) for row in rows})
    # Holm over the file's own p-values, by hand.
    reached, family = 0.0, sorted(rows, key=lambda row: float(row["p"]))
    for rank, row in enumerate(family):
        reached = max(reached, min(1.0, float(row["p"]) * (pairs - rank)))
        assert float(row["p_holm"]) == pytest.approx(reached, rel=2e-5)


def test_figures_show_a_stated_number_of_arms_and_points(made):
    text = made[0][80].read_text()
    assert "The first 60 of 80 arms; the table has all." in text and "The first 40 of 80 arms." in text
    assert "Of more than 200 points of a curve" in text
    lines = re.findall(r'data-line="[^"]+">(?:<title>[^<]*</title>)?\s*<path d="([^"]+)"', text)
    assert len(lines) == 3 * 40
    counts = [line.count("L") + line.count("M") for line in lines]
    assert max(counts) <= 200 and min(counts) > 100


def test_many_arms_are_rows_of_the_configuration(made):
    text = made[0][80].read_text()
    part = text[text.index("Keys that differ between the arms (2)") :]
    assert (
        part.index("<th>Arm</th><th>labeler.name</th><th>rm.lr</th>") < 400
        and part.count("<tr data-arm=") == 80
    )
