"""Whose verdicts gold is: people's, simulated people's, or none; and what is made of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from jobs import job_context

from rlaif.backends.encoder import EncoderBackend
from rlaif.errors import UserError
from rlaif.io import read_jsonl, stable_uniform
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES
from rlaif.stages.rm.data import reward_data

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
HARMLESS = ["task=harmless", f"task.path={FIXTURES / 'hh_harmless.jsonl'}"]
SCRIPTED = ["stage=label", "labeler=scripted"]


def sampled(record, root):
    (name,) = [row.name for row in record.lineage if row.kind == "sample"]
    return {row["id"]: row for row in read_jsonl(root / "artifacts" / name / "pairs.jsonl")}


def preferred_by_meaning(pairs):
    """p_a of each pair by the encoder's cosines: the rule of simulated people, written out."""
    encoder = EncoderBackend(name="embedded", revision=None, max_tokens=256, device="cpu")
    found = {}
    for name, pair in pairs.items():
        sides = [(pair[side], pair["reference"]) for side in ("response_a", "response_b")]
        a, b = (score.similarity for score in encoder.similarities(sides))
        found[name] = 1 / (1 + math.exp(-(a - b) / 0.1))
    return found


def test_alignment_is_measured_on_the_policys_own_pairs(run, warm_root) -> None:
    record = run(*SCRIPTED, "labeler.scripted.rule=longer")
    summary, pairs = record.summary, sampled(record, warm_root)
    assert summary["label/gold_source"] == "simulated"
    gold = preferred_by_meaning(pairs)
    rows = {row["id"]: row for row in record.table("items")}
    own = {name: row for name, row in rows.items() if name in pairs}
    assert set(own) == set(pairs) and len(pairs) == summary["label/n"] == summary["label/alignment_n"]
    for name, row in own.items():
        assert row["gold"] == pytest.approx(gold[name], abs=1e-4)
    right = [
        0.5 if row["p_a"] == 0.5 else float((row["p_a"] > 0.5) == (gold[name] > 0.5))
        for name, row in own.items()
    ]
    assert summary["label/alignment"] == pytest.approx(sum(right) / len(right))
    # Constructed pairs are beside it, not in it.
    made = [row for name, row in rows.items() if name not in pairs]
    assert len(made) == summary["label/alignment_constructed_n"] == 16
    assert all("label/alignment" not in row and "label/alignment_constructed" in row for row in made)


def test_without_simulated_people_only_constructed_pairs_have_gold(run) -> None:
    summary = run(*SCRIPTED, "people.simulated=never").summary
    assert summary["label/gold_source"] == "constructed" and summary["label/alignment_n"] == 16
    assert summary["label/alignment"] == summary["label/alignment_constructed"]


def test_a_labeler_by_reference_is_not_measured_against_itself(run) -> None:
    summary = run("stage=label", "labeler=reference").summary
    assert "label/alignment" not in summary and "label/alignment_constructed" not in summary
    assert summary["label/n"] > 0 and summary["label/unparsed_rate"] == 0


def test_people_are_people_where_there_are_any(run) -> None:
    summary = run(*SCRIPTED, *HARMLESS).summary
    # Those that are labelled for training count too: they are labelled anyway.
    assert summary["label/gold_source"] == "human"
    assert summary["label/alignment_n"] > summary["label/n"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stage=label", *HARMLESS, "people.simulated=always"], "has people's own preferences"),
        (["stage=label", *HARMLESS, "labeler=reference"], "no prompt of task harmless has one"),
        (["stage=eval", *HARMLESS, "judge=reference", "labeler=scripted"], "judge=reference compares with"),
        (["stage=rm", "rm.labels=gold", "people.simulated=never"], "people.simulated=always"),
    ],
)
def test_what_cannot_be_had_is_said(words, said, run) -> None:
    with pytest.raises(UserError, match=said):
        run(*words)


@pytest.fixture(scope="module")
def trained_on(run, warm_root):
    """`trained_on(*words)`: the rows of a reward model that learns people's labels, by pair."""
    run("stage=sample")

    def rows(*words):
        place = ["profile=smoke", "tracking=none", f"paths.root={warm_root}", "stage=rm", "rm.labels=gold"]
        ctx = job_context([*place, "rm.bootstrap=false", *words])
        graph = Graph(ctx, STAGES)
        graph.check("rm")
        assert "label" not in STAGES["rm"].parents(ctx), "people are asked, the labeler is not"
        data = reward_data(ctx, {kind: graph.get(kind) for kind in STAGES["rm"].parents(ctx)})
        every = [*(row for phase in data.phases for row in phase), *data.validation, *data.test]
        return {row.pair.id: row for row in every}

    return rows


def test_a_reward_model_learns_what_simulated_people_say(trained_on) -> None:
    plain = trained_on()
    assert plain and all(row.p_a == row.pair.gold for row in plain.values())
    assert {row.pair.gold_source for row in plain.values()} == {"simulated"}


def test_noise_turns_a_share_of_the_labels_round_and_leaves_gold(trained_on) -> None:
    plain, noisy = trained_on(), trained_on("people.noise=0.3")
    turned = {name for name in plain if stable_uniform("people-noise", 0, name) < 0.3}
    assert 0 < len(turned) < len(plain)
    for name, row in noisy.items():
        assert row.pair.gold == plain[name].pair.gold
        assert row.p_a == pytest.approx(1 - row.pair.gold if name in turned else row.pair.gold)
    more = trained_on("people.noise=0.6")
    assert turned < {name for name, row in more.items() if row.p_a != row.pair.gold}


def test_fewer_labels_are_a_subset(trained_on) -> None:
    plain, fewer, least = trained_on(), trained_on("people.n=36"), trained_on("people.n=30")
    assert len(least) == 30 and len(fewer) == 36 and set(least) < set(fewer) < set(plain)


def test_gold_accuracy_knows_no_noise(run) -> None:
    clean, noisy = (run("stage=rm", "rm.labels=gold", f"people.noise={noise}").summary for noise in (0, 0.5))
    assert clean["rm/gold_source"] == noisy["rm/gold_source"] == "simulated"
    assert (
        clean["rm/accuracy"] == clean["rm/gold_accuracy"]
        and noisy["rm/accuracy"] != noisy["rm/gold_accuracy"]
    )


def test_the_judge_is_by_reference_and_the_labeler_stands_beside_it(pipeline) -> None:
    summary = pipeline.summary
    assert summary["eval/judge"] == "reference" and 0 <= summary["eval/labeler_win_rate"] <= 1
    assert "judge/warning" not in summary
