"""stage=rm from its end: normalisation, measures, tables, and the exported model with the code of its card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean, pstdev

import pytest
import torch
from jobs import job_context

from rlaif.errors import UserError
from rlaif.inference.rollouts import Rollout
from rlaif.io import read_jsonl, read_records, stable_uniform
from rlaif.models.weights import load_reward
from rlaif.records import Pair, Prompt
from rlaif.report.summary import result_table
from rlaif.stages.common.context import Context
from rlaif.stages.common.rewards.kinds import make_reward
from rlaif.stages.common.rows import encode_pairs
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES
from rlaif.stages.rm.measures import preferred_scores
from rlaif.tracking.glossary import unknown

ROOT = Path(__file__).resolve().parents[2]
HH = ["task=harmless", f"task.path={ROOT / 'tests' / 'fixtures' / 'hh_harmless.jsonl'}", "labeler=scripted"]
ENSEMBLE = ["stage=rm", "rm.ensemble=2", "rm.lr=0.01"]


@pytest.fixture(scope="module")
def opened(pipeline, run, warm_root):
    """`opened(*overrides)`: the context of a job that has run (after the pipeline), and its reward model."""

    def start(*overrides: str):
        run(*overrides)
        words = ["profile=smoke", "tracking=none", f"paths.root={warm_root}", *overrides]
        ctx = job_context(words)
        return ctx, Graph(ctx, STAGES).get("rm")

    return start


@torch.no_grad()
def rewards_one_by_one(ctx: Context, artifact, texts) -> list[list[float]]:
    """Each member's normalised reward of each (prompt, response), one sequence at a time, without the cache.

    A response is a text, or the ids that the policy wrote.
    """
    model, rows = ctx.model(), []
    for member in load_reward(model, artifact.path):
        ids = [
            [*ctx.encoder.prompt(p), *(ctx.encoder.response(r) if isinstance(r, str) else r)]
            for p, r in texts
        ]
        features = [model.trunk(torch.tensor([own])) for own in ids]
        rows.append([float(member.head(member.top(own))[0, -1]) + member.shift for own in features])
    return rows


def pairs_by_id(ctx: Context) -> dict[str, Pair]:
    sample = Graph(ctx, STAGES).get("sample")
    return {pair.id: pair for pair in read_records(sample.file("pairs.jsonl"), Pair)}


def test_references_have_mean_0_and_spread_1(run, opened) -> None:
    more = [*ENSEMBLE, "task.validation_fraction=0.3"]
    ctx, rm = opened(*more)
    references = [p for p in ctx.encoder.fitting(ctx.task.validation) if p.reference]
    assert len(references) >= 5
    members = rewards_one_by_one(ctx, rm, [(p.prompt, p.reference) for p in references])
    for rewards in members:
        assert fmean(rewards) == pytest.approx(0, abs=1e-5) and pstdev(rewards) == pytest.approx(1, abs=1e-5)
    scales = [member.normalization.scale for member in load_reward(ctx.model(), rm.path)]
    assert scales[0] != scales[1] and all(scale > 0 for scale in scales)
    # The key bounds how many: with two of them, two rewards of -1 and 1.
    ctx, few = opened(*more, "rm.normalize_rows=2")
    (rewards, _) = rewards_one_by_one(ctx, few, [(p.prompt, p.reference) for p in references])
    assert sorted(rewards[:2]) == pytest.approx([-1, 1], abs=1e-4)
    assert fmean(rewards) != pytest.approx(0, abs=1e-3)


def test_without_references_preferred_responses_stand_in(run, opened) -> None:
    ctx, rm = opened("stage=rm", *HH, "rm.validation_fraction=0.3")
    assert not any(p.reference for p in ctx.task.validation)
    label = Graph(ctx, STAGES).get("label")
    labels = {row["pair_id"]: row["p_a"] for row in read_jsonl(label.file("preferences.jsonl"))}
    held = [
        pair
        for pair in pairs_by_id(ctx).values()
        if 0.2 <= stable_uniform("rm-split", pair.prompt_id) < 0.5 and labels[pair.id] not in (None, 0.5)
    ]
    texts = [(p.prompt, p.response_a if labels[p.id] > 0.5 else p.response_b) for p in held]
    (rewards,) = rewards_one_by_one(ctx, rm, texts)
    assert len(texts) > 2
    assert fmean(rewards) == pytest.approx(0, abs=1e-5) and pstdev(rewards) == pytest.approx(1, abs=1e-5)


def test_preferred_scores_by_hand() -> None:
    scores = [(1.0, 2.0), (3.0, 4.0), (5.0, 6.0)]
    assert preferred_scores(scores, [0.9, 0.1, 0.5]) == [1.0, 4.0]
    assert preferred_scores(scores, [0.5, 0.1, 0.5]) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_metrics_and_tables_say_the_same(run, opened, warm_root) -> None:
    record = run(*ENSEMBLE)
    ctx, rm = opened(*ENSEMBLE)
    summary, pairs = record.summary, pairs_by_id(ctx)
    rows = [row for row in record.table("items") if "rm/accuracy" in row]
    assert len(rows) == summary["rm/n"] > 0 and unknown(summary) == []
    # Rewards and their signs, from the files alone.
    texts = [(pairs[row["id"]].prompt, pairs[row["id"]].ids_a) for row in rows]
    each = rewards_one_by_one(ctx, rm, texts)
    means = [fmean(own) for own in zip(*each, strict=True)]
    assert [row["reward_a"] for row in rows] == pytest.approx(means, abs=1e-4)
    right = [
        float((row["reward_a"] > row["reward_b"]) == (row["p_a"] > 0.5)) for row in rows if row["p_a"] != 0.5
    ]
    assert summary["rm/accuracy"] == pytest.approx(fmean(right))
    longer = [
        0.5
        if row["tokens_a"] == row["tokens_b"]
        else float((row["tokens_a"] > row["tokens_b"]) == (row["p_a"] > 0.5))
        for row in rows
    ]
    assert summary["rm/length_only_accuracy"] == pytest.approx(fmean(longer))
    assert summary["rm/disagreement"] == pytest.approx(fmean(row["disagreement"] for row in rows))
    assert summary["rm/disagreement"] > 1e-3
    for name, key in (("rm_confidence", "confidence"), ("rm_length", "length"), ("rm_disagreement",) * 2):
        table, key = record.table(name), key.removeprefix("rm_")
        assert sum(row["n"] for row in table) == len(right)
        assert all(summary[f"rm/{key}_{row['bin']}_accuracy"] == row["accuracy"] for row in table if row["n"])
    curves = {row["curve"] for row in record.table("rm_reliability")}
    assert curves == {"as trained", "fitted"} and summary["rm/fitted_temperature"] > 0
    page = (warm_root / "reports" / f"rm-{record.id}.html").read_text(encoding="utf-8")
    for words in ("<h2>Reward model</h2>", "By disagreement of the ensemble", "Reward model: reliability"):
        assert words in page, words
    measures = list(result_table(summary).columns[1].cells)
    assert measures.index('if it were "longer is better"') == measures.index("accuracy on its labels") + 1


def _rollout(ctx: Context, pairs: list[Pair]) -> Rollout:
    """The pairs' responses a as if the policy had given them."""
    model = ctx.model()
    starts = [ctx.encoder.prompt(p.prompt) for p in pairs]
    ids = [[*start, *p.ids_a] for start, p in zip(starts, pairs, strict=True)]
    width = max(map(len, ids))
    padded = torch.tensor([row + [model.pad_id] * (width - len(row)) for row in ids])
    places, ends = torch.arange(width), torch.tensor([len(row) for row in ids])
    mask = (places >= torch.tensor([len(start) for start in starts])[:, None]) & (places < ends[:, None])
    return Rollout(
        ids=padded,
        features=model.trunk(padded),
        response_mask=mask,
        last=ends - 1,
        finished=ends > 0,
        prompts=tuple(Prompt(p.prompt_id, p.prompt) for p in pairs),
        responses=tuple(p.response_a for p in pairs),
        seeds=tuple(range(len(pairs))),
    )


RULES = {
    "mean": lambda x, y: (x + y) / 2,
    "min": min,
    "mean_minus_variance": lambda x, y: (x + y) / 2 - 3 * ((x - y) / 2) ** 2,
}


@pytest.mark.parametrize("how", ["", *RULES])
def test_rl_maximises_what_becomes_of_the_members_rewards(how, run, opened) -> None:
    """In rollouts (from the policy's own features) and in stage=eval (from the cache's)."""
    chosen = ["reward=ensemble", f"reward.how={how}", "reward.coefficient=3"] if how else []
    ctx, rm = opened(*ENSEMBLE, *chosen)
    pairs = list(pairs_by_id(ctx).values())[:12]
    reward, rollout = make_reward(ctx, {"rm": rm}), _rollout(ctx, pairs)
    sides = [rewards_one_by_one(ctx, rm, texts) for texts in _texts(pairs)]
    (a, b) = ([RULES[how or "mean"](x, y) for x, y in zip(*side, strict=True)] for side in sides)
    assert reward(rollout).tolist() == pytest.approx(a, abs=1e-4, rel=1e-5)
    assert a != pytest.approx(sides[0][0], abs=1e-3), "mutation: the first member alone"
    spread = [abs(x - y) / 2 for x, y in zip(*sides[0], strict=True)]
    assert reward.measures == {"rl/reward_disagreement": pytest.approx(fmean(spread), abs=1e-4)}
    got = reward.of_pairs((rollout.samples(), rollout.samples()), encode_pairs(ctx, pairs, "pairs"))
    assert [x for x, _ in got] == pytest.approx(a, abs=1e-4, rel=1e-5)
    assert [y for _, y in got] == pytest.approx(b, abs=1e-4, rel=1e-5) and a != pytest.approx(b, abs=1e-3)


def _texts(pairs: list[Pair]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    return [(p.prompt, p.ids_a) for p in pairs], [(p.prompt, p.ids_b) for p in pairs]


def test_the_cards_code_gives_our_rewards(run, opened, tmp_path) -> None:
    """The exported ensemble, loaded and used with nothing but what README.md says."""
    run(*ENSEMBLE, f"export={tmp_path}")
    ctx, rm = opened(*ENSEMBLE)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    scope: dict = {}
    exec(code.replace('folder = "."', f"folder = {str(tmp_path)!r}"), scope)
    pairs = list(pairs_by_id(ctx).values())[:6]
    texts = [(p.prompt, p.response_a) for p in pairs] + [(pairs[0].prompt, "a long answer " * 40)]
    got = scope["rewards"]([p for p, _ in texts], [r for _, r in texts])
    means = [fmean(own) for own in zip(*rewards_one_by_one(ctx, rm, texts), strict=True)]
    assert got.tolist() == pytest.approx(means, abs=1e-5, rel=1e-5)
    assert len(scope["encode_response"](texts[-1][1])) == 32, "cut, so without EOS"
    config = [json.loads((tmp_path / f / "config.json").read_text()) for f in ("", "member1")]
    stored = json.loads(rm.file("normalization.json").read_text())
    assert [{"scale": c["reward_scale"], "shift": c["reward_shift"]} for c in config] == stored
    accuracy = f"{100 * rm.metrics['rm/accuracy']:.1f}%"
    assert f"| accuracy on held-out labels | {accuracy} |" in card and "likelihood" in card
    assert str(tmp_path) not in card


def test_exported_policies_have_cards_whose_code_runs(run, pipeline, tmp_path) -> None:
    for stage in ("sft", "rl"):
        run(f"stage={stage}", f"export={tmp_path / stage}")
        card = (tmp_path / stage / "README.md").read_text(encoding="utf-8")
        (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        scope: dict = {}
        exec(code.replace('folder = "."', f"folder = {str(tmp_path / stage)!r}"), scope)
        assert isinstance(scope["respond"]("def f(x): return x"), str)


def test_too_few_rows_to_normalise_by_are_refused(run) -> None:
    with pytest.raises(UserError, match=r"rm\.normalize_rows=1 "):
        run("stage=rm", "rm.normalize_rows=1")
