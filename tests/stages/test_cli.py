"""train.py as a user starts it: multiruns, exit codes, what stands on stdout and stderr, and where."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from rlaif.tracking.runs import find_runs, load_run

CODE = Path(__file__).resolve().parents[2]
NOISE = ("Using default tokenizer", "logging interval", "Converting", "Traceback", "Warning:", "wandb:")


def _kinds(root: Path) -> Counter[str]:
    """Finished artifacts by kind."""
    return Counter(f.name.split("-")[0] for f in (root / "artifacts").iterdir() if not f.name.startswith("."))


def _wandb_runs(root: Path) -> list[Path]:
    return sorted(root.glob("runs/*/*/wandb/offline-run-*"))


def _last_line(text: str) -> str:
    return text.rstrip("\n").splitlines()[-1]


@pytest.fixture(scope="module")
def ablation(command, tmp_path_factory):
    """The six jobs of the interface's example, started from another directory: (root, process)."""
    root = tmp_path_factory.mktemp("ablation")
    words = ["-m", "stage=rm", "labeler=base,cot,fewshot", "labeler.order=first,both", "profile=smoke"]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = command(*words, f"paths.root={root}", cwd=elsewhere)
    assert list(elsewhere.iterdir()) == [], "everything that a run writes lies below paths.root"
    return root, done


def test_an_ablation_shares_what_its_arms_have_in_common(ablation) -> None:
    root, done = ablation
    assert done.returncode == 0, done.stderr
    assert _kinds(root) == {"sft": 1, "sample": 1, "label": 6, "rm": 6}
    records = find_runs(root, stage="rm")
    assert len(records) == 6 and len({tuple(r.overrides) for r in records}) == 6
    assert len({record.group for record in records}) == 1 and records[0].group
    assert len({row.digest for r in records for row in r.lineage if row.kind == "label"}) == 6


def test_each_job_has_a_wandb_run_and_the_sweep_a_report(ablation) -> None:
    root, done = ablation
    runs = _wandb_runs(root)
    assert len(runs) == 6 and len({run.parents[1] for run in runs}) == 6
    for run in runs:
        (log,) = run.glob("run-*.wandb")
        assert log.stat().st_size > 5_000
    summaries = re.findall(r"^summary: (.+)$", done.stdout, re.MULTILINE)
    assert len(summaries) == 6 and re.match(
        r"sweep: rm-[0-9a-f]{8} \(6 jobs: 6 finished\); ", _last_line(done.stdout)
    )
    assert {load_run(Path(path).parent).state for path in summaries} == {"finished"}
    (page,) = root.glob("reports/sweep-*.html")
    text = page.read_text(encoding="utf-8")
    assert all(
        f"labeler={name}, labeler.order={order}" in text
        for name in ("base", "cot", "fewshot")
        for order in ("first", "both")
    )
    assert f"sweep report: {page}" in done.stdout and "Tested on RM gold accuracy, on the same" in text


def test_the_output_is_readable_in_a_file(ablation) -> None:
    """Tables as wide as a page, none of the libraries' own lines, no control codes."""
    _, done = ablation
    assert max(len(line) for line in done.stdout.splitlines()) in range(100, 500)
    assert "length-cont…" not in done.stdout and "\x1b[" not in done.stdout + done.stderr
    for word in NOISE:
        assert word not in done.stdout + done.stderr, word


def test_a_failing_job_in_the_middle_stops_no_other(ablation, command) -> None:
    root, _ = ablation
    before = len(find_runs(root, state=None)), len(_wandb_runs(root)), _kinds(root)
    done = command(
        "-m",
        "stage=rm",
        "labeler=base",
        "rm.micro_batch_size=null,99,4",
        "profile=smoke",
        f"paths.root={root}",
    )
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert errors == ["error: rm.micro_batch_size=99 is larger than rm.batch_size=8: write 1 to 8, or null"]
    assert "Traceback" not in done.stderr
    records = find_runs(root, state=None)[before[0] :]
    assert [record.state for record in records] == ["finished", "failed", "finished"]
    assert len(_wandb_runs(root)) == before[1] + 3
    assert _kinds(root) == before[2] + Counter(label=0, rm=1), "first: reused; last: only its reward model"
    assert f"summary: {records[-1].path / 'summary.json'}\n" in done.stdout
    assert "(3 jobs: 2 finished, 1 failed)" in _last_line(done.stdout)


def test_a_sweep_file_needs_no_flag(command, pipeline, copied_root) -> None:
    """`sweeps=NAME` is a multirun of its own; values on the command line replace the file's."""
    root = copied_root(["sft", "sample", "label"])
    before = _kinds(root)
    words = ["labeler=scripted,likelihood", "profile=smoke", "tracking=none"]
    done = command("sweeps=labelers", *words, f"paths.root={root}")
    assert done.returncode == 0, done.stderr
    records = find_runs(root, stage="label")
    assert [{"sweeps=labelers", "labeler=scripted"} <= set(record.overrides) for record in records] == [
        True,
        False,
    ]
    after = _kinds(root)
    assert (after["sft"], after["sample"]) == (before["sft"], before["sample"]), "both jobs reuse them"
    (page,) = root.glob("reports/sweep-*.html")
    text = page.read_text(encoding="utf-8")
    assert (
        "labeler=scripted" in text and "labeler=likelihood" in text and f"sweep report: {page}" in done.stdout
    )
    assert done.stdout.count("summary: ") == 2 and _last_line(done.stdout).startswith("sweep: labelers-")


@pytest.mark.parametrize(
    "words, said",
    [
        (["labeler=nonsense"], "labeler=nonsense is not an option of labeler: write one of base, cot,"),
        (["rm.lrr=1"], "rm.lrr is not a configuration key: did you mean rm.lr?"),
        (["-m", "stage=rm", "labeler=base,nonsense"], "labeler=nonsense is not an option of labeler"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(words, said, command, tmp_path) -> None:
    done = command(*words, "profile=smoke", "tracking=none", f"paths.root={tmp_path / 'root'}", cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("error: ") and said in lines[-1]
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "Traceback" not in done.stderr and "summary:" not in done.stdout
    assert not (tmp_path / "root" / "artifacts").exists()
