"""rl=sft_revisions: the SFT policy's own responses, criticised and revised, as the targets that it is fine-tuned on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jobs import job_context

from rlaif.data.datamodule import collate_sequences
from rlaif.errors import UserError
from rlaif.inference.decoding.drawing import Decoding
from rlaif.io import digest, read_jsonl, read_records
from rlaif.labelers.revision.principles import read_principles
from rlaif.labelers.revision.reviser import own_words
from rlaif.models.weights import load_top
from rlaif.records import Revision
from rlaif.stages.common.policies import draw, policy_top
from rlaif.stages.common.rows import encode_texts
from rlaif.stages.common.training.logprobs import response_logprobs
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES

CODE = Path(__file__).resolve().parents[2]
# Fine-tuned so far that it no longer says what the base model says.
START = ("stage=rl", "rl=sft_revisions", "rl.num_prompts=8", "rl.batch_size=4", "sft.lr=0.03")
WORDS = (*START, "rl.reviser=policy")
BY_LABELER = (*START, "rl.reviser=labeler", "labeler=scripted")


def artifact(record, root: Path, kind: str) -> Path:
    (row,) = [row for row in record.lineage if row.kind == kind]
    return root / "artifacts" / row.name


def revisions(record, root: Path) -> list[Revision]:
    return read_records(artifact(record, root, "revise") / "revisions.jsonl", Revision)


@pytest.fixture(scope="module")
def revised(run, warm_root):
    record = run(*WORDS)
    return record, revisions(record, warm_root)


def texts_of(ctx, top, prompts: list[str], limit: int) -> list[tuple[str, int]]:
    """What a policy says after these texts, greedily, and in how many tokens: one at a time, by another path."""
    from rlaif.inference.decoding.sampler import sample
    from rlaif.tokens import text_ids

    model = ctx.model()
    found = []
    for prompt in prompts:
        encoded = [text_ids(model.tokenizer, prompt)]
        (got,) = sample(top, encoded, [0], Decoding(limit, 0.0), eos_ids=model.eos_ids, max_rows=1)
        body = got.ids[:-1] if got.finished else got.ids
        found.append((model.tokenizer.decode(body, skip_special_tokens=True), len(got.ids)))
    return found


def test_the_sft_policy_revises_its_own_responses(revised, context, warm_root) -> None:
    """To the prompts of RL, with the SFT policy's weights in all three steps, not with the base model's."""
    record, rows = revised
    ctx = context(*WORDS)
    prompts = ctx.encoder.fitting(reversed(ctx.task.train), limit=8)
    assert [(row.split, row.prompt_id) for row in rows] == [("train", prompt.id) for prompt in prompts]
    top = load_top(ctx.model(), artifact(record, warm_root, "sft")).frozen_copy()
    keys = [[0, prompt.id, "first"] for prompt in prompts]
    first = draw(ctx, top, prompts, keys, Decoding(ctx.options.task.max_response_tokens, 1.0, 0), 8, "first")
    assert [row.response for row in rows] == [ctx.encoder.decode(one.ids) for one in first]
    templates, tokens = ctx.templates, sum(len(one.ids) for one in first)
    base, different = load_top(ctx.model(), None).frozen_copy(), 0
    for row in rows:
        (principle,) = row.principles
        shown = {"principle": principle, "context": row.prompt, "response": row.response}
        asked = templates.render("critique", **shown) + "\n\nCritique:"
        ((critique, spent),) = texts_of(ctx, top, [asked], 96)
        assert row.critiques == (own_words(critique, "Critique:"),)
        different += texts_of(ctx, base, [asked], 96) != [(critique, spent)]
        asked = templates.render("revision", critique=row.critiques[0], **shown) + "\n\nRevision:"
        ((revision, more),) = texts_of(ctx, top, [asked], ctx.options.task.max_response_tokens)
        assert row.revisions == (own_words(revision, "Revision:"),)
        tokens += spent + more
    summary = record.summary
    assert summary["rl/tokens_generated"] == tokens and summary["rl/responses"] == 16
    assert (summary["rl/revisions"], summary["rl/rows"], summary["rl/labels"]) == (8, 8, 0)
    assert "rl/usd" not in summary, "nobody is paid"
    assert different > 0
    drawn = draw(ctx, base, prompts, keys, Decoding(ctx.options.task.max_response_tokens, 1.0, 0), 8, "base")
    assert [ctx.encoder.decode(one.ids) for one in drawn] != [row.response for row in rows]


def test_the_labeler_revises_if_it_is_asked_to(run, warm_root, revised) -> None:
    """The scripted engine's revision is the prompt's first eight words; the first responses are the same."""
    record = run(*BY_LABELER)
    rows = revisions(record, warm_root)
    assert [row.response for row in rows] == [row.response for row in revised[1]]
    assert all(row.revisions == (" ".join(row.prompt.split()[:8]),) for row in rows)
    summary = record.summary
    assert summary["rl/tokens_out"] == sum(len(r.critiques[0].split()) + 8 for r in rows)
    assert summary["rl/usd"] == 0
    first = sum(row["tokens"] for row in _first(record, warm_root, rows))
    assert summary["rl/tokens_generated"] == first, "the labeler's tokens are not the policy's"


def _first(record, root: Path, rows) -> list[dict[str, int]]:
    """The first responses' lengths: bytes of the tiny tokenizer, and the end if there is one."""
    ctx = job_context(["profile=smoke", "tracking=none", f"paths.root={root}", *BY_LABELER])
    prompts = ctx.encoder.fitting(reversed(ctx.task.train), limit=len(rows))
    top = load_top(ctx.model(), artifact(record, root, "sft")).frozen_copy()
    keys = [[0, prompt.id, "first"] for prompt in prompts]
    drawn = draw(ctx, top, prompts, keys, Decoding(ctx.options.task.max_response_tokens, 1.0, 0), 8, "first")
    return [{"tokens": len(one.ids)} for one in drawn]


def test_seeds_of_rl_share_the_revisions(run, revised, warm_root) -> None:
    record, _ = revised
    other = run(*WORDS, "seeds.rl=1")
    assert artifact(other, warm_root, "revise") == artifact(record, warm_root, "revise")
    assert artifact(other, warm_root, "rl") != artifact(record, warm_root, "rl")
    assert [row.reused for row in other.lineage if row.kind == "revise"] == [True]


def test_the_digest_covers_what_makes_the_revisions(context, tmp_path) -> None:
    def name(*words: str, kind: str = "revise") -> str:
        return Graph(context(*WORDS, *words), STAGES).name(kind)

    mine = tmp_path / "mine.txt"
    mine.write_text("Be brief.\n")
    assert name("rl.lr=0.1", "rl.num_epochs=5", "seeds.rl=3", "rl.max_rows=3", "rm.n=5") == name()
    changes = [
        [f"rl.principles={mine}"],
        ["rl.revisions=2"],
        ["rl.revision_temperature=1"],
        ["rl.temperature=0.5"],
        ["rl.max_critique_tokens=8", "rl.num_prompts=4"],
        ["seeds.revise=1"],
        ["seeds.sft=1"],
        ["rl.reviser=labeler", "labeler=scripted"],
    ]
    names = [name(*words) for words in changes]
    assert len({name(), *names}) == len(changes) + 1
    mine.write_text("Be true.\n")
    assert name(f"rl.principles={mine}") not in names, "the text counts, not the file's name"
    assert name("rl.lr=0.1", kind="rl") != name(kind="rl")
    assert name("rl.revisions=2", kind="rl") != name(kind="rl"), "through its parent"


def test_templates_are_in_the_digest(context, monkeypatch) -> None:
    ctx = context(*WORDS)
    before, templates = Graph(ctx, STAGES).name("revise"), ctx.templates
    changed = {**templates.texts, "revision.j2": templates.texts["revision.j2"] + "\nBe brief."}
    monkeypatch.setattr(type(ctx), "templates", _with(templates, changed))
    assert Graph(ctx, STAGES).name("revise") != before


def _with(templates, texts):
    from dataclasses import replace

    return property(lambda ctx: replace(templates, texts=texts))


def test_what_the_policy_said_is_known_by_its_weights(run, warm_root) -> None:
    """Another SFT policy does not find the answers of this one in the store, and the same one finds them all."""
    words = (*WORDS, "seeds.revise=11", "seeds.sft=11")
    fresh = run("stage=revise", *words[1:])
    assert fresh.summary["rl/reused"] == 0
    again = run("stage=revise", *words[1:], "force=true")
    assert again.summary["rl/reused"] == 16 and again.summary["rl/tokens_out"] == 0
    assert again.summary["rl/tokens_generated"] == fresh.summary["rl/tokens_generated"] > 0


def test_an_asked_answer_belongs_to_the_content_of_the_policy(context) -> None:
    from rlaif.stages.common.revisions.making import _writer, revising

    ctx = context(*WORDS)
    one, other = (_writer(ctx, revising(ctx), [{"top.safetensors": sha}]) for sha in ("a", "b"))
    assert one is not None and other is not None
    assert digest(one.identity(), 16) != digest(other.identity(), 16)
    assert _writer(context(*BY_LABELER), revising(context(*BY_LABELER)), "x") is None


def test_the_policy_learns_the_revisions(run, warm_root, context) -> None:
    """Two revisions by heart: they become likely for the policy that starts from SFT; the first responses do not."""
    words = (*BY_LABELER, "model.trainable=full", "rl.num_prompts=2", "rl.num_epochs=80", "rl.lr=0.01")
    record, ctx = run(*words), context(*words)
    rows = revisions(record, warm_root)
    tops = {kind: load_top(ctx.model(), artifact(record, warm_root, kind)) for kind in ("sft", "rl")}
    texts = {
        "revision": [(row.prompt, row.text) for row in rows],
        "first": [(row.prompt, row.response) for row in rows],
    }

    def nats(who: str, what: str) -> float:
        batch = collate_sequences(encode_texts(ctx, ctx.encoder, texts[what], "test"))
        with torch.no_grad():
            return -float(response_logprobs(tops[who], batch).sum() / batch.response_mask.sum())

    assert nats("sft", "revision") > 2
    assert nats("rl", "revision") < 0.5 < 3 < nats("rl", "first")
    history = list(read_jsonl(artifact(record, warm_root, "rl") / "history.jsonl"))
    assert len(history) == 80 and history[0]["rl/loss"] == pytest.approx(nats("sft", "revision"), abs=1e-4)
    assert record.summary["rl/loss"] == pytest.approx(sum(row["rl/loss"] for row in history[-8:]) / 8)


def test_it_starts_from_the_sft_policy(run, warm_root, context) -> None:
    """A step of next to no length leaves the SFT policy's weights."""
    record = run(*WORDS, "rl.lr=1e-12", "rl.num_epochs=1")
    ctx = context(*WORDS)
    trained = load_top(ctx.model(), artifact(record, warm_root, "rl")).state_dict()
    start = policy_top(ctx, {"sft": _named(warm_root, record, "sft")}).state_dict()
    assert all(torch.allclose(trained[name], start[name], atol=1e-9) for name in start)


def _named(root: Path, record, kind: str):
    from types import SimpleNamespace

    return SimpleNamespace(path=artifact(record, root, kind))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sft=revisions"], "sft=revisions and rl=sft_revisions would revise twice in one job"),
        (["reward=rm"], "reads no reward, so reward=rm has no meaning: write reward=none"),
        (["rl.num_epochs=1.5"], "rl.num_epochs=1.5 must be a whole number of passes over the revisions"),
        (["rl.revisions=9"], "rl.revisions=9 rounds need a principle each, but there are 8"),
        (["rl.principles=absent.txt"], "rl.principles: there is no file absent.txt"),
        (["rl.reviser=labeler", "labeler=reference"], "rl.reviser=labeler has the labeler's engine write"),
        (["rl.reviser=judge"], "rl.reviser=judge is not known: write policy or labeler"),
        (["rl.algorithm=ppo"], "rl.loss is missing: write rl=ppo"),
        (["rl=ppo", "rl.algorithm=sft_revisions"], "rl.batch_size is missing: write rl=sft_revisions"),
    ],
)
def test_what_makes_no_sense_is_refused(context, words, said) -> None:
    with pytest.raises(UserError, match=said):
        Graph(context(*WORDS[:2], *words), STAGES).check("rl")


def test_a_revising_stage_needs_somebody_who_learns_from_it(context) -> None:
    with pytest.raises(
        UserError, match="stage=revise makes what sft=revisions or rl=sft_revisions is trained"
    ):
        Graph(context("stage=revise"), STAGES).check("revise")


def test_a_plan_counts_the_calls_once_and_only_if_they_are_to_be_made(
    context, revised, run, warm_root
) -> None:
    def work(*words: str):
        return STAGES["revise"].work(context(*WORDS, *words))

    own, twice = work(), work("rl.num_prompts=16")
    assert own.written == 0 and own.usd == 0
    assert twice.forward == pytest.approx(2 * own.forward, rel=0.3)
    response = STAGES["rl"].work(context(*WORDS, "rl.num_epochs=1")).trained
    assert STAGES["rl"].work(context(*WORDS, "rl.num_epochs=4")).trained == pytest.approx(4 * response)
    assert own.decoded > 8 * 96, "each critique as long as it may be"
    elsewhere = work("rl.reviser=labeler", "labeler=scripted")
    assert elsewhere.written > 8 * 96 and elsewhere.decoded < own.decoded
    rounds = work("rl.revisions=2")
    assert rounds.steps - own.steps == 96 + context(*WORDS).options.task.max_response_tokens
    record, _ = revised
    planned = {one.kind: one for one in Graph(context(*WORDS, "seeds.rl=99"), STAGES).plan("rl")}
    assert planned["revise"].name == artifact(record, warm_root, "revise").name
    assert planned["revise"].exists and not planned["rl"].exists
    assert list(planned) == ["sft", "revise", "rl"]


def test_no_verdict_of_the_labeler_is_taken_for_its_proxy(context) -> None:
    from rlaif.options.read import plain
    from rlaif.stages.eval.relatives import pleases_labeler
    from rlaif.stages.eval.stage import shows_proxy

    apart = ("labeler=likelihood", "judge=scripted")
    assert shows_proxy(context("stage=eval", "rl=dpo", *apart))
    for words in (WORDS, (*WORDS, "rl.reviser=labeler")):
        assert not shows_proxy(context(*words, *apart))
    assert not pleases_labeler(plain(context(*WORDS).options))
    assert pleases_labeler(plain(context(*WORDS, "rl.reviser=labeler").options))


def test_the_principles_of_the_task_are_used(revised) -> None:
    known = read_principles(CODE / "conf" / "templates" / "docs" / "principles.txt")
    drawn = {row.principles[0] for row in revised[1]}
    assert drawn <= set(known) and len(drawn) > 1
