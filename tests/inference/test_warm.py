"""Verdicts that go on from kept prompts against plain passes over the whole text."""

import random

import pytest
import torch

from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import sample
from rlaif.inference.decoding.warm import WarmPrompts, warm_next_token_logprobs


def generated(model, top, *, max_bytes: int, max_rows: int):
    """Prompts that were generated from, the verdict prompts that go on from them, and what was kept."""
    draw = random.Random(3)
    lead = [draw.randrange(10, 60) for _ in range(20)]
    prompts = [lead + [draw.randrange(10, 60) for _ in range(draw.randrange(1, 25))] for _ in range(7)]
    warm = WarmPrompts(max_bytes)
    decoding = Decoding(6, 1.0)
    drawn = sample(
        top, prompts, list(range(7)), decoding, eos_ids=model.eos_ids, max_rows=max_rows, warm=warm
    )
    return [
        [*p, *d.ids, 5, 6, 7][: len(p) + draw.randrange(2, 9)] for p, d in zip(prompts, drawn, strict=True)
    ], warm


@pytest.mark.parametrize("trainable", ["full", "top:1"])
@pytest.mark.parametrize("max_rows", [7, 3])
def test_verdicts_equal_plain_passes(tiny_model, trainable, max_rows):
    model = tiny_model(trainable)
    top = model.trunk.new_top()
    verdicts, warm = generated(model, top, max_bytes=2**30, max_rows=max_rows)
    answer = warm_next_token_logprobs(top, verdicts, [20, 21], warm)
    assert answer is not None
    rows, saved = answer
    assert saved == sum(warm.find(prompt)[2] for prompt in verdicts)
    with torch.no_grad():
        for prompt, row in zip(verdicts, rows, strict=True):
            plain = top.logits(top(model.trunk(torch.tensor([prompt]))))[0, -1].log_softmax(-1)
            assert row == pytest.approx([plain[20].item(), plain[21].item()], abs=1e-5)
            # mutation: a prompt that is cut by its last token has another answer
            cut = top.logits(top(model.trunk(torch.tensor([prompt[:-1]]))))[0, -1].log_softmax(-1)
            assert row != pytest.approx([cut[20].item(), cut[21].item()], abs=1e-5)


def test_nothing_is_answered_from_prompts_that_were_not_kept(tiny_model):
    model = tiny_model("full")
    top = model.trunk.new_top()
    verdicts, warm = generated(model, top, max_bytes=2**30, max_rows=7)
    assert warm_next_token_logprobs(top, [*verdicts, [9, 9, 9]], [20], warm) is None
    assert warm.find(verdicts[0][: warm.find(verdicts[0])[2]]) is None, "a verdict needs a token of its own"
    _, none = generated(model, top, max_bytes=10, max_rows=7)
    assert warm_next_token_logprobs(top, verdicts, [20], none) is None
