"""Figures: valid SVG with the right texts and points."""

import math
import xml.etree.ElementTree as ET

from matplotlib.axes import Axes
from synthetic_runs import ppo_history

from rlaif.figures.curves import (
    JudgedPoint,
    _track,
    learning_curves,
    over_metric,
    proxy_vs_judge,
    rising_pieces,
)
from rlaif.figures.plots import ForestRow, forest_plot, reliability_plot
from rlaif.io.lineage import ArtifactKey, LineageRow
from rlaif.report.lineage import MAX_NODES, lineage_graph
from rlaif.report.summary import result_rows
from rlaif.tracking.runs import RunRecord
from rlaif.tracking.text import duration, metric_value, p_text, percent, plain, signed, size


def texts(svg):
    tree = ET.fromstring(svg)
    return {node.text for node in tree.iter("{http://www.w3.org/2000/svg}text")}


def test_forest_plot_keeps_labels_as_text():
    rows = [ForestRow("a <b> $x_{ $", 0.6, 0.5, 0.7, "best"), ForestRow("no interval", 0.4)]
    svg = forest_plot(rows, title='t "q"', reference=0.5, percent=True, axis_label="rate", width=6.0)
    assert {"a <b> $x_{ $", "no interval", "rate", "60%"} <= texts(svg)


def test_learning_curves_are_one_panel_a_metric():
    svg = learning_curves(
        {"x": ppo_history(), "y": ppo_history(0, 1)}, ["rl/kl", "rl/reward", "no/thing"], title="t"
    )
    assert {"RL KL", "RL reward", "x", "y"} <= texts(svg)
    assert learning_curves({"x": []}, ["rl/kl"], title="t") == ""


def test_proxy_axis_is_the_root_of_kl():
    rows = [
        {"step": 0, "rl/kl": -0.1, "rl/reward": 1.0},
        {"step": 1, "rl/kl": 4.0, "rl/reward": 2.0},
        {"step": 2},
    ]
    assert _track(rows) == [(0.0, 1.0), (2.0, 2.0)]
    svg = proxy_vs_judge({"a": rows}, [JudgedPoint("a", 4.0, 2.0, 0.6, 0.5, 0.7)], title="t")
    assert "judge: win rate over the baseline" in texts(svg)
    alone = proxy_vs_judge({}, [JudgedPoint("a", 4.0, None, 0.6, 0.5, 0.7)], title="t")
    assert (
        "judge: win rate" in svg
        and "proxy: reward" in svg
        and "proxy" not in alone
        and "judge: win rate" in alone
    )
    assert alone.count("KL from the reference") == 1 < svg.count("KL from the reference")
    assert proxy_vs_judge({}, [], title="t") == ""


def test_the_proxy_on_held_out_prompts_is_dashed_beside_it(monkeypatch):
    drawn, plot = [], Axes.plot

    def spied(axes, *arguments, **options):
        drawn.append([list(arguments[0]), list(arguments[1]), arguments[2:]])
        return plot(axes, *arguments, **options)

    monkeypatch.setattr(Axes, "plot", spied)
    rows = [{"step": i, "rl/kl": float(i * i), "rl/reward": 0.5 * i} for i in range(4)]
    rows[0]["rl/reward_held_out"], rows[3]["rl/reward_held_out"] = 0.1, 0.2
    assert "proxy: reward, before penalties and KL (dashed: on held-out prompts)" in texts(
        proxy_vs_judge({"a": rows}, [], title="t")
    )
    assert drawn == [[[0, 1, 2, 3], [0, 0.5, 1, 1.5], ()], [[0, 3], [0.1, 0.2], ("--o",)]]
    known = {f"rl/reward_held_out{end}": value for end, value in (("", 0.2), ("_start", 0.1), ("_gain", 0.1))}
    bounds = {"rl/reward_held_out_gain_ci_low": -0.3, "rl/reward_held_out_gain_ci_high": 0.5}
    (row,) = result_rows({**known, **bounds})
    minus = signed(-1.0)[0]
    assert (row.value, row.note) == ("0.100 → 0.200", f"+0.100, 95% interval {minus}0.300 to +0.500")


def test_reliability_leaves_out_empty_bins():
    bins = [
        {"n": 0, "mean_predicted": math.nan, "mean_observed": math.nan},
        {"n": 5, "mean_predicted": 0.7, "mean_observed": 0.6},
    ]
    assert "predicted" in texts(reliability_plot({"": bins}, title="t"))
    assert reliability_plot({"": bins[:1]}, title="t") == ""


def run(*rows):
    return RunRecord(path=None, id="r", stage="s", state="finished", lineage=rows)


def node(digest, *parents, reused=False):
    return LineageRow("k", digest, tuple(ArtifactKey("k", parent) for parent in parents), reused=reused)


def test_lineage_puts_parents_left_and_unites_runs():
    first = run(node("a"), node("b", "a"), node("c", "a", "b", reused=True))
    second = run(node("a", reused=True), node("c", "a", "b"), node("d", "gone"))
    graph = lineage_graph([first, second], [first])
    assert {n.digest: n.depth for n in graph.nodes} == {"a": 0, "b": 1, "c": 2, "d": 0}
    assert {n.digest: n.reused for n in graph.nodes} == dict.fromkeys("abcd", False)
    assert len(graph.edges) == 3 and graph.note == "4 artifacts in all, 2 of them shared by several runs."
    assert lineage_graph([run()], [run()]) is None


def test_a_large_lineage_draws_the_shown_run_alone():
    many = run(*(node(f"n{i}") for i in range(MAX_NODES + 1)))
    graph = lineage_graph([many, run(node("x"))], [run(node("x"))])
    assert [n.digest for n in graph.nodes] == ["x"] and graph.note.startswith("Drawn: the best arm.")


def test_numbers_as_text():
    assert [plain(v) for v in (256, 1234.6, 0.2134, 18.44, 0.00004, math.nan)] == [
        "256",
        "1,235",
        "0.213",
        "18.4",
        "4e-05",
        "–",
    ]
    assert (percent(0.634), signed(-0.5), signed(2.0)) == ("63.4%", "−0.500", "+2")
    assert [p_text(v) for v in (0.0004, 0.031, 0.31)] == ["p < 0.001", "p = 0.031", "p = 0.31"]
    assert [duration(v) for v in (3.21, 59.6, 200, 7500)] == ["3.2 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]
    assert [size(v) for v in (12, 1500, 28e6, 3e12)] == ["12 B", "1.5 kB", "28.0 MB", "3000.0 GB"]
    assert metric_value("eval/judge", "name") == "name" and metric_value("rm/accuracy", 0.5) == "50.0%"


def test_the_fits_of_one_history_are_lines_of_their_own():
    assert rising_pieces([0, 8, 16, 0, 8, 3]) == [slice(0, 3), slice(3, 5), slice(5, 6)]
    assert rising_pieces([1, 2]) == [slice(0, 2)]
    fit = [{"step": step, "rm/loss": 1.0 + step} for step in range(12)]
    drawn = [learning_curves({"run": rows}, ["rm/loss"], title="t").lower() for rows in (fit, fit + fit)]
    assert [text.count("data-line=") for text in drawn] == [1, 2]


def test_a_tracked_run_is_drawn_over_the_root_of_its_kl(monkeypatch) -> None:
    """Two policies of one history are two lines each; rows without a measurement are left out."""
    drawn = []
    plot = Axes.plot

    def spy(axes, xs, ys, *rest, **style):
        drawn.append((list(xs), list(ys)))
        return plot(axes, xs, ys, *rest, **style)

    monkeypatch.setattr(Axes, "plot", spy)
    rows = [
        {"step": step, "rl/track_kl": kl, "rl/track_proxy": kl / 2, "rl/track_gold": gold}
        for step, kl, gold in [(0, -1e-3, 0.2), (2, 4.0, 0.4), (4, 9.0, 0.3), (0, 0.0, 0.2), (2, 1.0, 0.1)]
    ]
    rows.insert(1, {"step": 1, "rl/kl": 5.0})
    svg = over_metric(
        {"one": rows, "none": [{"step": 0}]}, "rl/track_kl", ["rl/track_proxy", "rl/track_gold"], title="t"
    )
    assert svg.startswith("<svg") and "held-out measure" in svg
    assert drawn == [
        ([0.0, 2.0, 3.0], [-5e-4, 2.0, 4.5]),
        ([0.0, 1.0], [0.0, 0.5]),
        ([0.0, 2.0, 3.0], [0.2, 0.4, 0.3]),
        ([0.0, 1.0], [0.2, 0.1]),
    ]
    assert (
        over_metric({"none": [{"step": 0}]}, "rl/track_kl", ["rl/track_proxy", "rl/track_gold"], title="t")
        == ""
    )
