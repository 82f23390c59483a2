"""sft=revisions: the policy learns what the labeler's engine made of its own responses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlaif.data.datamodule import collate_sequences
from rlaif.errors import UserError
from rlaif.io import read_records
from rlaif.labelers.revision.principles import drawn_principles, read_principles
from rlaif.models.weights import load_top
from rlaif.records import Revision
from rlaif.stages.common.rows import encode_texts
from rlaif.stages.common.training.logprobs import response_logprobs
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES

CODE = Path(__file__).resolve().parents[2]
WORDS = ("stage=sft", "sft=revisions", "labeler=scripted", "sft.num_rows=8")


def artifact(record, root: Path, kind: str) -> Path:
    (row,) = [row for row in record.lineage if row.kind == kind]
    return root / "artifacts" / row.name


def revisions(record, root: Path) -> list[Revision]:
    return read_records(artifact(record, root, "revise") / "revisions.jsonl", Revision)


@pytest.fixture(scope="module")
def revised(run, warm_root):
    record = run(*WORDS)
    return record, revisions(record, warm_root)


def test_the_artifact_has_every_step_of_every_prompt(revised, context) -> None:
    """The scripted engine's revision is the prompt's first eight words."""
    record, rows = revised
    ctx = context(*WORDS)
    own = ctx.encoder.fitting(ctx.task.train, limit=8)
    held = ctx.encoder.fitting(ctx.task.validation, limit=8)
    assert [(row.split, row.prompt_id) for row in rows] == [
        *(("train", prompt.id) for prompt in own),
        *(("validation", prompt.id) for prompt in held),
    ]
    principles = read_principles(CODE / "conf" / "templates" / "docs" / "principles.txt")
    for row in rows:
        assert row.revisions == (" ".join(row.prompt.split()[:8]),)
        assert row.critiques[0].endswith("words are not in the source.")
        assert row.principles == drawn_principles(principles, 1, seed=0, prompt_id=row.prompt_id)
    assert len({row.response for row in rows}) == len(rows), "each prompt has noise of its own"
    assert record.summary["sft/revisions"] == len(rows) and record.summary["sft/rows"] == 8
    assert record.summary["sft/tokens_out"] == sum(len(r.critiques[0].split()) + 8 for r in rows)
    assert record.summary["sft/usd"] == 0
    shown = record.table("revisions")
    assert shown == [] or shown[0]["prompt_id"] == rows[0].prompt_id


def test_seeds_of_sft_share_the_revisions_and_a_seed_of_its_own_makes_others(run, revised, warm_root) -> None:
    record, rows = revised
    other = run(*WORDS, "seed=1")
    assert artifact(other, warm_root, "revise") == artifact(record, warm_root, "revise")
    assert artifact(other, warm_root, "sft") != artifact(record, warm_root, "sft")
    assert [row.reused for row in other.lineage if row.kind == "revise"] == [True]
    fresh = run("stage=revise", *WORDS[1:], "seed=5")
    drawn = read_records(artifact(fresh, warm_root, "revise") / "revisions.jsonl", Revision)
    assert [row.prompt_id for row in drawn] == [row.prompt_id for row in rows]
    assert all(a.response != b.response for a, b in zip(drawn, rows, strict=True))
    assert [row.principles for row in drawn] != [row.principles for row in rows]


def test_what_does_not_change_the_revisions_is_not_in_their_digest(context) -> None:
    names = {
        word: Graph(context(*WORDS, word), STAGES).name("revise")
        for word in (
            "seeds.sft=0",
            "sft.lr=0.1",
            "sample.temperature=0.5",
            "sample.max_rows=3",
            "labeler.order=first",
        )
    }
    assert len(set(names.values())) == 1, names
    for word in ("sft.revisions=2", "sft.temperature=1", "sft.first_temperature=0.5", "seeds.revise=1"):
        assert Graph(context(*WORDS, word), STAGES).name("revise") not in names.values(), word


def test_a_killed_run_draws_no_response_twice(run, revised, context, tmp_path) -> None:
    """What a killed run has left is taken as it is; half a line, and the rest, is drawn as it would have been."""
    _, rows = revised
    ctx = context(*WORDS)
    name = Graph(ctx, STAGES).name("revise")
    work = tmp_path / "artifacts" / f".partial-{name}" / "work"
    work.mkdir(parents=True)
    lines = [
        json.dumps({"prompt_id": row.prompt_id, "response": f"kept {i}"}) for i, row in enumerate(rows[:3])
    ]
    half = json.dumps({"prompt_id": rows[3].prompt_id, "response": "lost"})[:-4]
    (work / "first.jsonl").write_text("\n".join([*lines, half]), encoding="utf-8")
    words = ("stage=revise", *WORDS[1:], "labeler.batch_size=1")
    record = run(*words, root=tmp_path)
    assert artifact(record, tmp_path, "revise").name == name
    again = revisions(record, tmp_path)
    assert [row.response for row in again[:3]] == ["kept 0", "kept 1", "kept 2"]
    assert [row.response for row in again[3:]] == [row.response for row in rows[3:]]
    assert not (artifact(record, tmp_path, "revise") / "work").exists()
    forced = run(*words, "force=true", root=tmp_path)
    assert forced.summary["sft/reused"] == 2 * (len(rows) - 3), "only what is about other texts is asked"


def test_the_policy_learns_the_revisions(run, warm_root, context) -> None:
    """Two revisions by heart: they become likely, the first responses and the references do not."""
    longer = ("sft.num_rows=2", "sft.num_epochs=80", "sft.lr=0.01")
    words = (*WORDS, "model.trainable=full", *longer)
    record, ctx = run(*words), context(*words)
    rows = [row for row in revisions(record, warm_root) if row.split == "train"]
    tops = {
        "base": load_top(ctx.model(), None),
        "sft": load_top(ctx.model(), artifact(record, warm_root, "sft")),
    }
    references = {prompt.id: prompt.reference for prompt in ctx.task.train}
    texts = {
        "revision": [(row.prompt, row.text) for row in rows],
        "first": [(row.prompt, row.response) for row in rows],
        "reference": [(row.prompt, references[row.prompt_id]) for row in rows],
    }

    def nats(who: str, what: str) -> float:
        batch = collate_sequences(encode_texts(ctx, ctx.encoder, texts[what], "test"))
        with torch.no_grad():
            return -float(response_logprobs(tops[who], batch).sum() / batch.response_mask.sum())

    assert nats("base", "revision") > 4
    told = {what: nats("sft", what) for what in texts}
    assert told["revision"] < 0.5 and told["first"] > 4 and told["reference"] > 3, told


def test_empty_revisions_are_dropped_and_counted(run, warm_root) -> None:
    record = run(*WORDS, "labeler.scripted.unparsed_rate=0.4")
    rows = revisions(record, warm_root)
    empty = {
        split: sum(not row.text for row in rows if row.split == split) for split in ("train", "validation")
    }
    assert 0 < empty["train"] < 8
    assert record.summary["sft/rows"] == 8 - empty["train"]
    assert record.summary["sft/revision_empty_rate"] == pytest.approx(sum(empty.values()) / len(rows))
    assert any(f"{sum(empty.values())} are empty" in alert["text"] for alert in record.alerts)


def test_cut_revisions_have_no_end_or_are_dropped(context) -> None:
    from rlaif.data.encode import Cuts
    from rlaif.stages.common.revisions.rows import revised_rows

    def row(name: str, text: str, cut: bool = False, error: str | None = None) -> Revision:
        texts = ((), ()) if error else (("c",), (text,))
        return Revision(name, "def f(): ...", "train", "x", ("p",), *texts, cut, error)

    rows = [row("whole", "abc"), row("cut", "abc", cut=True), row("long", "y" * 60), row("blank", " \n")]
    rows.append(row("failed", "", error="no"))
    for rule, sizes in (("truncate", [5, 4, 32]), ("drop", [5])):
        ctx, cuts = context(*WORDS, f"task.too_long_responses={rule}"), Cuts()
        ids = [one.ids[one.prompt.shape[0] :].tolist() for one in revised_rows(ctx, rows, "test", cuts)]
        end = ctx.model().eos_id
        assert [len(own) for own in ids] == sizes, "a separator, the text and EOS, byte by byte"
        assert [own[-1] == end for own in ids] == [True, False, False][: len(sizes)]
        told = (cuts.rows, cuts.responses_cut, cuts.responses_dropped)
        assert told == ((3, 2, 0) if rule == "truncate" else (3, 0, 2))


def test_a_task_without_references_is_tuned_on_revisions(context) -> None:
    words = ("task=harmless", f"task.path={CODE}/tests/fixtures/hh_harmless.jsonl", "labeler=scripted")
    assert not context(*words).options.sft.enabled
    ctx = context(*words, "sft=revisions", "task.validation_fraction=0.2")
    STAGES["sft"].check(ctx)
    STAGES["revise"].check(ctx)
    assert STAGES["sft"].parents(ctx) == ("revise",)


@pytest.mark.parametrize(
    "words, said",
    [
        (["sft=default"], "stage=revise makes what sft=revisions or rl=sft_revisions is trained on"),
        (["labeler=reference"], "labeler=reference compares texts and writes none"),
        (["sft.revisions=9"], "sft.revisions=9 rounds need a principle each, but there are 8"),
        (["sft.principles=absent.txt"], "there is no file absent.txt"),
        (["task.validation_fraction=0"], "has none for validation"),
    ],
)
def test_what_cannot_be_revised_is_refused_before_it_is_drawn(context, words, said) -> None:
    with pytest.raises(UserError, match=said):
        Graph(context(*WORDS[:3], "stage=revise", *words), STAGES).check("revise")


def test_a_plan_counts_the_work_and_the_name_is_that_of_the_artifact(context, revised, warm_root) -> None:
    record, rows = revised
    ctx = context(*WORDS, "seeds.revise=9")
    work = STAGES["revise"].work(ctx)
    assert work.usd == 0 and work.written > 0 and work.decoded > 0, "the policy here, the engine by rule"
    twice = STAGES["revise"].work(context(*WORDS, "seeds.revise=9", "sft.revisions=2"))
    assert twice.written == pytest.approx(2 * work.written) and twice.decoded == work.decoded
    local = STAGES["revise"].work(context(*WORDS, "seeds.revise=9", "labeler=base"))
    assert local.written == 0 and local.decoded > work.decoded + len(rows) * 96
    own = Graph(context(*WORDS), STAGES)
    assert own.name("sft") == artifact(record, warm_root, "sft").name
    assert [one.exists for one in own.plan("sft")] == [True, True]
    assert "revisions" not in STAGES["sft"].config(ctx)["sft"], "their own digest covers them"
