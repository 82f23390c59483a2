"""compare: all - every policy meets every other and the SFT policy, with one strength for each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from rlaif.errors import UserError
from rlaif.io import read_jsonl
from rlaif.stages.eval.round_robin import meeting_rows, strength_items, strength_metrics
from rlaif.stats import bradley_terry
from rlaif.tracking.glossary import unknown
from rlaif.tracking.runs import RunRecord

# The random model barely moves at the preset's rate, and equal answers would only tie.
_DPO = "'rl=dpo', 'rl.lr=0.03'"
ARMS = f"+arms={{ai: [{_DPO}], people: [{_DPO}, 'rm.labels=gold'], best: ['rl=best_of_n', 'reward=rouge']}}"
WORDS = ("stage=compare", ARMS, "compare=all", "test=[eval/win_rate]")
PLAYERS = ("ai", "people", "best", "SFT")


def table(record: RunRecord, name: str) -> list[dict]:
    return list(read_jsonl(record.path / "tables" / f"{name}.jsonl"))


@pytest.fixture(scope="module")
def compared(pipeline: RunRecord, run: Callable[..., RunRecord]) -> RunRecord:
    return run(*WORDS, "+repeat={seeds.rl: [0, 1]}", "eval.num_prompts=24")


def test_all_pairs_meet(compared: RunRecord) -> None:
    verdicts = table(compared, "verdicts")
    assert [(row["first"], row["second"]) for row in verdicts] == list(combinations(PLAYERS, 2))
    assert all(row["n"] == 24 and row["ci_low"] <= row["win_rate"] <= row["ci_high"] for row in verdicts)
    assert all(row["p_holm"] >= row["p"] for row in verdicts)
    summary = compared.summary
    for arm in PLAYERS[:-1]:
        low, own, high = (summary[f"{arm}/eval/strength{end}"] for end in ("_ci_low", "", "_ci_high"))
        assert low < own < high
    assert unknown([name for name in summary if name.endswith("strength")]) == []


def test_the_meeting_with_the_sft_policy_is_the_arms_own_evaluation(compared: RunRecord) -> None:
    """The same answers, judge and prompts: not a verdict may differ."""
    rates = {row["first"]: row["win_rate"] for row in table(compared, "verdicts") if row["second"] == "SFT"}
    assert rates == pytest.approx({arm: compared.summary[f"{arm}/eval/win_rate"] for arm in PLAYERS[:-1]})


def test_strengths_are_those_of_the_recorded_verdicts(compared: RunRecord) -> None:
    folders = sorted(
        (compared.root / "artifacts").glob("roundrobin-*"), key=lambda path: path.stat().st_mtime
    )[-2:]
    values = []
    for folder in folders:
        rows = list(read_jsonl(folder / "meetings.jsonl"))
        prompts = sorted({row["id"] for row in rows})
        outcomes = np.array(
            [
                [
                    next(
                        row["value"]
                        for row in rows
                        if (row["id"], row["first"], row["second"]) == (prompt, *pair)
                    )
                    for pair in combinations(PLAYERS, 2)
                ]
                for prompt in prompts
            ]
        )
        fitted = bradley_terry(list(combinations(range(4), 2)), outcomes).values
        values.append(fitted[:3] - fitted[3])
    wanted = np.mean(values, axis=0)
    assert [compared.summary[f"{arm}/eval/strength"] for arm in PLAYERS[:-1]] == pytest.approx(wanted)


def test_a_second_time_nothing_is_judged(
    compared: RunRecord, run: Callable[..., RunRecord], monkeypatch
) -> None:
    from rlaif.stages.eval import round_robin

    monkeypatch.setattr(round_robin, "_met", None)
    again = run(*WORDS, "+repeat={seeds.rl: [0, 1]}", "eval.num_prompts=24")
    assert table(again, "verdicts") == table(compared, "verdicts")


def meetings(wins: dict[tuple[str, str], list[float | None]]) -> list[dict]:
    return [
        {"id": f"q{i}", "prompt_id": f"q{i}", "first": x, "second": y, "value": value}
        for (x, y), values in wins.items()
        for i, value in enumerate(values)
        if value is not None
    ]


def test_unread_verdicts_are_left_out_pair_by_pair() -> None:
    rows = meetings(
        {("x", "y"): [1, 1, 0, None], ("x", "SFT"): [1, 1, 1, 0.5], ("y", "SFT"): [0, 1, None, None]}
    )
    (xy, x_sft, y_sft) = meeting_rows([rows])
    assert (xy["win_rate"], xy["n"]) == (pytest.approx(2 / 3), 3)
    assert (x_sft["win_rate"], x_sft["n"]) == (0.875, 4) and (y_sft["win_rate"], y_sft["n"]) == (0.5, 2)
    items = strength_items(rows)
    assert list(items) == ["x", "y"] and len(items["x"]) == 4
    metrics = strength_metrics(items["x"])
    assert metrics["eval/strength"] == pytest.approx(np.mean([row["eval/strength"] for row in items["x"]]))
    assert metrics["eval/strength"] > strength_metrics(items["y"])["eval/strength"]


def test_groups_are_resampled_together() -> None:
    """Prompts of one conversation say less than as many of their own."""
    rows = meetings({("x", "SFT"): [1, 1, 1, 1, 0, 0, 1, 1] * 3})
    grouped = [{**row, "group": f"g{int(row['id'][1:]) // 4}"} for row in rows]
    alone, together = (meeting_rows([own])[0] for own in (rows, grouped))
    assert together["ci_high"] - together["ci_low"] > alone["ci_high"] - alone["ci_low"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["until=rm"], "compare: all needs policies, but until=rm"),
        (["compare=everyone"], "compare='?everyone'? is neither a list of pairs of arms nor all"),
        (["+arms={SFT: ['rl=dpo']}"], "the SFT policy play as SFT: name the arm SFT otherwise"),
        (
            ["+arms={a: ['rl=dpo'], b: ['rl=dpo', 'sft.lr=0.5']}"],
            "compare: all needs arms with the same model",
        ),
    ],
)
def test_what_cannot_meet_is_refused(
    run: Callable[..., RunRecord], tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(*WORDS, *words, root=tmp_path / "root")
    assert not list((tmp_path / "root").glob("artifacts/*-*")), "before anything is built"
