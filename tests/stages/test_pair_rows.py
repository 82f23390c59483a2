"""Pairs become rows with the trunk's features, and rows get the rewards that their texts would get alone."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rlaif.data.datamodule import collate_preferences
from rlaif.data.encode import Encoder
from rlaif.inference.features import FeatureCache
from rlaif.io.progress import Progress
from rlaif.models.split import ScalarHead
from rlaif.records import Pair
from rlaif.stages.common.rows import encode_pairs
from rlaif.stages.common.scoring import pair_scores, score_pairs

LONG = "a prompt that is far longer than the limit, so that its end is cut away, and more of it"
TEXTS = (
    ("one prompt", "yes", "a longer answer than the other one"),
    (LONG, "short", "to the long prompt"),
    ("one prompt", "no", "a third answer"),
    ("", "x", "y"),
    (LONG[:-7], "short", "cut to the same prompt as the second"),
    ("one prompt", "a third answer", "an answer that is cut as well, since it is too long for its own limit"),
)
PAIRS = [Pair(f"pair{i}", f"prompt{i}", *texts, origin="dataset") for i, texts in enumerate(TEXTS)]


@pytest.fixture
def context(tiny_model, tmp_path):
    """`context(trainable, dtype)`: what encode_pairs and score_pairs ask of a job."""

    def make(trainable="top:1", dtype="float32", max_prompt_tokens=40):
        model = tiny_model(trainable, dtype)
        encoder = Encoder(
            model.tokenizer,
            chat=False,
            prefix="Q: ",
            suffix="\nA:",
            separator=" ",
            max_prompt_tokens=max_prompt_tokens,
            max_response_tokens=48,
            too_long="truncate",
            eos_id=model.eos_id,
        )
        return SimpleNamespace(
            model=lambda: model,
            encoder=encoder,
            features=FeatureCache(tmp_path / "trunk", 2**30),
            progress=Progress(False),
        )

    return make


def _members(ctx, count=2):
    members = []
    for seed in range(count):
        top = ctx.model().trunk.new_top()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in top.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        members.append((top, ScalarHead(32).init_normal(generator)))
    return members


def _alone(ctx, top, head, prompt, response):
    """The reward of one text, run by itself."""
    ids = torch.tensor([[*ctx.encoder.prompt(prompt), *ctx.encoder.response(response)]])
    with torch.no_grad():
        return float(head(top(ctx.model().trunk(ids)))[0, -1])


def _assert_alone(ctx, members, scores, pairs=PAIRS):
    assert len(scores) == len(members)
    for (top, head), own in zip(members, scores, strict=True):
        expected = [
            tuple(_alone(ctx, top, head, pair.prompt, text) for text in (pair.response_a, pair.response_b))
            for pair in pairs
        ]
        torch.testing.assert_close(torch.tensor(own), torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("trainable", ["full", "top:1", "top:2"])
def test_pairs_score_as_their_texts_do_alone(context, trainable):
    ctx = context(trainable)
    assert len(ctx.encoder.raw_prompt(LONG)) > 40 == len(ctx.encoder.prompt(LONG)), "one is truncated"
    members, rows = _members(ctx), encode_pairs(ctx, PAIRS, "pairs")
    scores = score_pairs(ctx, members, rows)
    _assert_alone(ctx, members, scores)
    spread = torch.tensor(scores)
    assert (spread[0] - spread[1]).abs().min() > 1e-4, "each member has scores of its own"
    whole = context(trainable, max_prompt_tokens=400)
    with pytest.raises(AssertionError):
        _assert_alone(whole, members, scores)


@pytest.mark.parametrize("trainable", ["full", "top:1"])
def test_rows_keep_the_order_of_their_pairs(context, trainable):
    ctx = context(trainable)
    rows = encode_pairs(ctx, PAIRS, "pairs")
    for pair, row in zip(PAIRS, rows, strict=True):
        prompt = ctx.encoder.prompt(pair.prompt)
        assert len(row.prompt) == len(prompt)
        for part, text in ((row.a, pair.response_a), (row.b, pair.response_b)):
            fresh = ctx.model().trunk(torch.tensor([[*prompt, *ctx.encoder.response(text)]]))[0]
            torch.testing.assert_close(torch.cat((row.prompt, part)), fresh, rtol=0, atol=1e-5)
    assert encode_pairs(ctx, [], "pairs") == []


def test_a_subset_costs_no_second_trunk_pass(context, monkeypatch):
    ctx = context()
    rows = encode_pairs(ctx, PAIRS, "pairs")
    trunk = ctx.model().trunk
    monkeypatch.setattr(trunk, "forward", None)
    for row, again in zip(rows[4:0:-2], encode_pairs(ctx, PAIRS[4:0:-2], "fewer pairs"), strict=True):
        assert all(torch.equal(getattr(row, part), getattr(again, part)) for part in ("prompt", "a", "b"))
    crossed = Pair("new", "prompt0", "one prompt", "no", "yes", origin="dataset")
    (row,) = encode_pairs(ctx, [crossed], "responses of two other pairs")
    assert torch.equal(row.a, rows[2].a)
    assert torch.equal(row.b, rows[0].a)


def test_labelled_rows_score_like_their_pairs(context):
    ctx = context()
    members, rows = _members(ctx, 1), encode_pairs(ctx, PAIRS, "pairs")
    labelled = [replace(row, p_a=1.0, weight=0.0) for row in rows]
    assert score_pairs(ctx, members, labelled) == score_pairs(ctx, members, rows)
    assert score_pairs(ctx, members, []) == [[]]


def test_scores_are_those_of_training_in_its_dtype(context):
    """In bf16 too, where a frozen copy is kept in it and the masters are cast at use; the masters stay as they are."""
    ctx = context("top:1", "bfloat16")
    members, rows = _members(ctx), encode_pairs(ctx, PAIRS, "pairs")
    before = [{k: v.clone() for k, v in top.state_dict().items()} for top, _ in members]
    scores = score_pairs(ctx, members, rows)
    batch = collate_preferences(rows)
    assert batch.features.dtype == torch.bfloat16
    for (top, head), own, kept in zip(members, scores, before, strict=True):
        with torch.no_grad():
            trained = torch.stack(pair_scores(top, head, batch), dim=1)
        torch.testing.assert_close(torch.tensor(own), trained, rtol=0, atol=2e-2)
        assert all(p.requires_grad and p.dtype == torch.float32 for p in top.parameters())
        assert all(torch.equal(value, kept[name]) for name, value in top.state_dict().items())


def test_order_and_batches_do_not_matter(context, monkeypatch):
    ctx = context()
    members, rows = _members(ctx), encode_pairs(ctx, PAIRS, "pairs")
    scores = score_pairs(ctx, members, rows)
    monkeypatch.setattr("rlaif.stages.common.scoring.MAX_ROWS", 1)
    for own, reversed_rows in zip(scores, score_pairs(ctx, members, rows[::-1]), strict=True):
        torch.testing.assert_close(torch.tensor(own[::-1]), torch.tensor(reversed_rows), rtol=0, atol=1e-5)
