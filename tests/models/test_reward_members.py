"""Reward models on disk and elsewhere: normalisation folded in, ensembles, scores in transformers' own class."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlaif.models.export.whole import export_reward
from rlaif.models.split import ScalarHead
from rlaif.models.weights import (
    NORMALIZATION_FILE,
    TOP_FILE,
    Normalization,
    RewardMember,
    load_reward,
    save_reward,
)

SCALES = [Normalization(2.5, -0.75), Normalization(0.5, 1.25)]


def members(model, count: int) -> list[RewardMember]:
    """Members with weights of their own, normalised by `SCALES`."""
    made = []
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        top = model.trunk.new_top()
        with torch.no_grad():
            for parameter in top.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        made.append(RewardMember.fold(top, ScalarHead(32).init_normal(generator), SCALES[index]))
    return made


def texts(model, count: int = 7) -> list[list[int]]:
    """Token ids of several lengths; every second text was cut and does not end in EOS."""
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, 250, (3 + 4 * i,), generator=generator).tolist() for i in range(count)]
    return [row if index % 2 else [*row, model.eos_id] for index, row in enumerate(rows)]


def padded(rows: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    ids = [row + [pad] * (width - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@torch.no_grad()
def own_scores(model, member: RewardMember, rows: list[list[int]]) -> torch.Tensor:
    """One text at a time, without padding, before the shift."""
    top = member.top if model.trunk.dtype == torch.float32 else member.top.frozen_copy()
    return torch.stack([member.head(top(model.trunk(torch.tensor([row]))))[0, -1] for row in rows])


def normalised(model, member: RewardMember, rows: list[list[int]]) -> RewardMember:
    """The member with scores of `rows` that spread by 1, as after training."""
    again = Normalization.of(own_scores(model, member, rows).tolist())
    folded = RewardMember.fold(member.top, member.head, again)
    return replace(folded, normalization=replace(again, scale=again.scale * member.normalization.scale))


def test_normalisation_by_hand() -> None:
    found = Normalization.of([1.0, 3.0, 5.0, 7.0])  # mean 4, variance (9 + 1 + 1 + 9) / 4 = 5
    assert found.scale == pytest.approx(1 / math.sqrt(5)) and found.shift == pytest.approx(-4 / math.sqrt(5))
    scores = torch.randn(300, generator=torch.Generator().manual_seed(0)) * 3 - 7
    found = Normalization.of(scores.tolist())
    rewards = found.scale * scores.double() + found.shift
    assert abs(float(rewards.mean())) < 1e-9 and float(rewards.std(correction=0)) == pytest.approx(1)
    # mutation: scaling by the sample's standard deviation misses 1
    assert float(rewards.std()) != pytest.approx(1, abs=1e-4)
    assert math.isfinite(Normalization.of([2.0, 2.0]).scale), "no spread is no division by zero"


def test_folding_scales_the_scores_and_keeps_their_order(tiny_model) -> None:
    model = tiny_model("top:1")
    top, head = model.trunk.new_top(), ScalarHead(32).init_normal(torch.Generator().manual_seed(1))
    before = head.weight.clone()
    hidden = torch.randn(50, 32, generator=torch.Generator().manual_seed(2))
    member = RewardMember.fold(top, head, SCALES[0])
    raw, reward = head(hidden), member.head(hidden) + member.shift
    torch.testing.assert_close(reward, 2.5 * raw - 0.75, rtol=0, atol=1e-5)
    assert torch.equal(raw.argsort(), reward.argsort()) and torch.equal(head.weight, before)
    # sigmoid of a difference over the scale is the trained probability
    torch.testing.assert_close((reward[:25] - reward[25:]) / SCALES[0].scale, raw[:25] - raw[25:])


def test_a_frozen_copy_scores_the_same_and_is_apart(tiny_model) -> None:
    model = tiny_model("top:1")
    (member,) = members(model, 1)
    copy = member.frozen_copy()
    rows = texts(model)
    expected = own_scores(model, member, rows)
    with torch.no_grad():
        member.head.weight.zero_()
        member.top.norm.weight.zero_()
    torch.testing.assert_close(own_scores(model, copy, rows), expected, rtol=0, atol=1e-6)
    assert not any(p.requires_grad for p in [*copy.top.parameters(), *copy.head.parameters()])


@pytest.mark.parametrize("trainable", ["full", "top:1"])
def test_an_ensemble_survives_a_round_trip(tiny_model, tmp_path, trainable) -> None:
    model = tiny_model(trainable)
    made, rows = members(model, 2), texts(model)
    save_reward(tmp_path, made)
    names = set(load_file(tmp_path / TOP_FILE))
    assert {
        "top.model.norm.weight",
        "score.weight",
        "member1.top.model.norm.weight",
        "member1.score.weight",
    } <= names
    assert all(name.startswith(("top.", "score.", "member1.top.", "member1.score.")) for name in names)
    stored = json.loads((tmp_path / NORMALIZATION_FILE).read_text())
    assert stored == [{"scale": 2.5, "shift": -0.75}, {"scale": 0.5, "shift": 1.25}]
    read = load_reward(model, tmp_path)
    assert [member.normalization for member in read] == SCALES
    for one, other in zip(made, read, strict=True):
        assert torch.equal(own_scores(model, one, rows), own_scores(model, other, rows))
    first, second = (own_scores(model, member, rows) for member in read)
    assert (first - second).abs().max() > 0.1, "members are told apart"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("trainable", ["full", "top:1", "lora:2"])
def test_exported_members_give_the_same_scores(tiny_model, tmp_path, trainable, dtype) -> None:
    """In one padded batch of seven lengths, EOS or not, from each member's folder.

    In bf16 two implementations differ by the last place of the hidden state, so the bound is of their root
    mean square, on the scale of training.
    """
    model = tiny_model(trainable, dtype)
    rows = texts(model)
    made = [normalised(model, member, rows) for member in members(model, 2)]
    export_reward(tmp_path, model, made)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.pad_token_id == model.pad_id != model.eos_id
    for name, member in zip(("", "member1"), made, strict=True):
        loaded = AutoModelForSequenceClassification.from_pretrained(
            tmp_path, subfolder=name, dtype=getattr(torch, dtype)
        ).eval()
        with torch.no_grad():
            exported = loaded(**padded(rows, model.pad_id)).logits.squeeze(-1).float()
        expected = own_scores(model, member, rows)
        assert float(expected.std(correction=0)) == pytest.approx(1, abs=1e-2)
        gap = exported - expected
        if dtype == "float32":
            assert gap.abs().max() < 1e-5
        else:
            assert gap.square().mean().sqrt() / member.normalization.scale < 1e-2
        assert (loaded.config.reward_shift, loaded.config.reward_scale) == (
            member.shift,
            member.normalization.scale,
        )


def test_a_pad_that_is_eos_would_read_the_wrong_token(tiny_model, tmp_path) -> None:
    """Mutation of the export: transformers pools the last token that is no pad."""
    model = tiny_model("top:1")
    made, rows = members(model, 1), texts(model)
    export_reward(tmp_path, model, made)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    loaded.config.pad_token_id = model.eos_id
    with torch.no_grad():
        wrong = loaded(**padded(rows, model.eos_id)).logits.squeeze(-1)
    gap = (wrong - own_scores(model, made[0], rows)).abs()
    assert gap[::2].min() > 1e-2 and gap[1::2].max() < 1e-5, "wrong exactly where the text ends in EOS"


def test_an_export_leaves_no_member_of_a_larger_one(tiny_model, tmp_path) -> None:
    model = tiny_model("top:1")
    export_reward(tmp_path, model, members(model, 2))
    (tmp_path / "member9").mkdir()
    (tmp_path / "member9" / "notes.txt").write_text("somebody's own")
    export_reward(tmp_path, model, members(model, 1))
    assert sorted(folder.name for folder in tmp_path.glob("member*")) == ["member9"]


def test_an_export_gets_a_pad_where_no_token_is_free_for_it(tiny_model, tmp_path) -> None:
    """Every token of the model could end a text: one more row of the embedding, and the scores stay."""
    model = replace(tiny_model("top:1"), pad_id=None)
    made, rows = members(model, 1), texts(model)
    export_reward(tmp_path, model, made)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.pad_token_id == len(model.tokenizer) and model.tokenizer.pad_token_id == 0
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        exported = loaded(**padded(rows, tokenizer.pad_token_id)).logits.squeeze(-1)
    torch.testing.assert_close(exported, own_scores(model, made[0], rows), rtol=0, atol=1e-5)
