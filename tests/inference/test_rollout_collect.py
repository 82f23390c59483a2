"""Collecting responses: what stands where, and that only the key decides the noise."""

from dataclasses import replace

import pytest
import torch

from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.rollouts import RolloutCollector
from rlaif.records import Prompt

PROMPTS = [Prompt(f"p{i}", "word " * (1 + i) + "?") for i in range(4)]


def _collector(model, *, samples=1, max_rows=64, seed=0, new=6, prompts=PROMPTS):
    return RolloutCollector(
        prompts,
        [model.tokenizer.encode(p.prompt) for p in prompts],
        model.tokenizer.decode,
        Decoding(new, 1.0),
        eos_ids=model.eos_ids,
        samples_per_prompt=samples,
        max_rows=max_rows,
        seed=seed,
    )


def _ids(rollout):
    """(prompt id, response ids) of each row."""
    return [
        (prompt.id, tuple(row[mask].tolist()))
        for prompt, row, mask in zip(rollout.prompts, rollout.ids, rollout.response_mask, strict=True)
    ]


@pytest.mark.parametrize("trainable", ["full", "top:1"])
def test_everything_stands_in_its_place(tiny_model, trainable):
    model = tiny_model(trainable)
    rollout = _collector(model, samples=3).collect(model.trunk.new_top(), [2, 0, 3], 5)
    assert len(rollout) == 9
    assert [p.id for p in rollout.prompts] == ["p2"] * 3 + ["p0"] * 3 + ["p3"] * 3
    for row, prompt in enumerate(rollout.prompts):
        start, end = len(model.tokenizer.encode(prompt.prompt)), int(rollout.last[row]) + 1
        assert rollout.ids[row, :start].tolist() == model.tokenizer.encode(prompt.prompt)
        assert rollout.response_mask[row].nonzero().flatten().tolist() == list(range(start, end))
        assert rollout.lengths()[row] == end - start <= 6
        response = rollout.ids[row, start:end].tolist()
        assert rollout.responses[row] == model.tokenizer.decode(response)
        assert bool(rollout.finished[row]) == (response[-1] == model.eos_id)
        assert model.eos_id not in response[:-1]
        sample = rollout.samples()[row]
        assert (sample.prompt_id, sample.prompt, sample.reference) == (prompt.id, prompt.prompt, None)
        assert (sample.response, sample.tokens) == (rollout.responses[row], end - start)
        assert sample.finished is bool(rollout.finished[row])
        fresh = model.trunk(rollout.ids[row : row + 1, :end])[0]
        torch.testing.assert_close(rollout.features[row, :end], fresh, rtol=0, atol=1e-5)
    assert not rollout.features.is_inference(), "the update trains on them"


def test_a_response_that_ends_itself_is_finished(tiny_model):
    """EOS made the likeliest token: rows end at different lengths, and EOS counts."""
    model = tiny_model("full")
    top = model.trunk.new_top()
    with torch.no_grad():
        top.norm.weight.mul_(10)
        top.embedding[model.eos_id].mul_(6)
    rollout = _collector(model, samples=16, new=20).collect(top, [0, 1, 2, 3], 0)
    assert 0.2 < rollout.finished.float().mean() < 1
    assert len(set(rollout.lengths().tolist())) > 3
    for row, finished in enumerate(rollout.finished.tolist()):
        assert finished == (rollout.ids[row, rollout.last[row]].item() == model.eos_id)
        assert finished or rollout.lengths()[row] == 20
    assert rollout.response_mask[torch.arange(64), rollout.last].all()


def test_noise_depends_on_seed_iteration_prompt_and_sample_alone(tiny_model):
    model = tiny_model("top:1")
    top = model.trunk.new_top()
    base = _ids(_collector(model, samples=2).collect(top, [0, 1, 2, 3], 1))
    assert len({response for _, response in base}) == 8
    reordered = _ids(_collector(model, samples=2, max_rows=1).collect(top, [3, 1], 1))
    assert reordered == base[6:8] + base[2:4]
    other_place = _collector(model, samples=2, prompts=PROMPTS[::-1])
    assert _ids(other_place.collect(top, [3], 1)) == base[:2]
    drawn = _collector(model, samples=2).collect(top, [0, 1], 1)
    assert drawn.seeds[2:] == _collector(model, samples=2).collect(top, [1], 1).seeds
    assert len({*drawn.seeds, *_collector(model, samples=2).collect(top, [0, 1], 2).seeds}) == 8
    for other in (
        _collector(model, samples=2).collect(top, [0, 1, 2, 3], 2),
        _collector(model, samples=2, seed=1).collect(top, [0, 1, 2, 3], 1),
    ):
        assert not set(_ids(other)) & set(base)


def test_a_prompt_that_comes_twice_gets_other_responses(tiny_model):
    model = tiny_model("top:1")
    top = model.trunk.new_top()
    rows = _ids(_collector(model, samples=2).collect(top, [0, 1, 0], 0))
    assert len(set(rows)) == 6
    more = _ids(_collector(model, samples=4).collect(top, [0], 0))
    assert rows[:2] + rows[4:] == more, "its samples are counted on"


def test_a_rollout_checks_itself(tiny_model):
    model = tiny_model("top:1")
    rollout = _collector(model).collect(model.trunk.new_top(), [0, 1], 0)
    empty, leading = rollout.response_mask.clone(), rollout.response_mask.clone()
    empty[1] = False
    leading[0, 0] = True
    for wrong in (
        {"response_mask": empty},
        {"response_mask": leading},
        {"response_mask": rollout.response_mask[:, :-1]},
        {"features": rollout.features[:1]},
        {"prompts": rollout.prompts[:1]},
        {"responses": ()},
        {"seeds": (1,)},
    ):
        with pytest.raises(ValueError):
            replace(rollout, **wrong)
