"""What the sampling engine promises: the exact distribution, log-probabilities of a fresh pass, one allocation,
and that sorting, batching and dropping rows change nothing."""

import math
from collections import Counter
from itertools import product

import pytest
import torch
from scipy.stats import chisquare

from rlaif.inference.cache import KVCache
from rlaif.inference.decoding import sampler
from rlaif.inference.decoding.drawing import Decoding, row_uniforms
from rlaif.inference.decoding.sampler import sample
from rlaif.models.assemble import make_trunk
from rlaif.models.files.embedded import convert_embedded
from rlaif.models.load import ModelSpec, load_model
from rlaif.models.tiny import tiny_config, tiny_lm


def _prompts(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 30, (count,), generator=generator).tolist()
    return [torch.randint(3, 250, (n,), generator=generator).tolist() for n in lengths]


@pytest.fixture
def ending(tiny_model):
    """(model, top) of a policy that ends most responses, each at its own time."""
    model = tiny_model("full")
    top = model.trunk.new_top()
    with torch.no_grad():
        top.norm.weight.mul_(10)
        top.embedding[model.eos_id].mul_(6)
    return model, top


# Distribution.


@torch.no_grad()
def _exact(top, prompt, length, temperature, end):
    """{response: probability} of each response that there is, by a plain pass."""
    responses = list(product(range(top.trunk.config.vocab_size), repeat=length))
    ids = torch.tensor([[*prompt, *tokens] for tokens in responses])
    logprobs = (top.logits(top(top.trunk(ids))) / temperature).log_softmax(-1)[:, len(prompt) - 1 : -1]
    found = {}
    for tokens, rows in zip(responses, logprobs.tolist(), strict=True):
        response = tokens[: tokens.index(end) + 1] if end in tokens else tokens
        pairs = zip(rows, response, strict=False)
        found[response] = math.exp(sum(row[token] for row, token in pairs))
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    return found


def _p_value(drawn, exact):
    """Of the chi-square test; responses expected less than five times count as one."""
    common = {ids for ids, p in exact.items() if p * drawn.total() >= 5}
    observed = [drawn[ids] for ids in common] + [sum(n for ids, n in drawn.items() if ids not in common)]
    expected = [exact[ids] * drawn.total() for ids in common]
    expected.append(drawn.total() - sum(expected))
    assert len(observed) > 30
    return chisquare(observed, expected).pvalue


def test_whole_responses_come_as_often_as_they_should():
    """All responses of up to three tokens over a vocabulary of six, EOS among them, from two prompts at once."""
    config = tiny_config(6, layers=2)
    trunk = make_trunk(tiny_lm(config, seed=3), "top:1", torch.float32, None)
    top = trunk.new_top()
    with torch.no_grad():
        top.norm.weight.mul_(3)
    prompts, draws, temperature = [[3, 5, 4, 4, 1], [1, 4]], 4000, 0.7
    rows = sample(
        top,
        prompts * draws,
        range(2 * draws),
        Decoding(3, temperature),
        eos_ids=(2,),
        max_rows=1000,
    )
    for place, prompt in enumerate(prompts):
        drawn = Counter(row.ids for row in rows[place::2])
        assert _p_value(drawn, _exact(top, prompt, 3, temperature, 2)) > 1e-3
        for wrong in ({"temperature": 1.0}, {"prompt": prompts[1 - place]}):  # the same test must see these
            right = {"prompt": prompt, "length": 3, "temperature": temperature, "end": 2}
            assert _p_value(drawn, _exact(top, **{**right, **wrong})) < 1e-9, wrong


# Log-probabilities.


@pytest.mark.parametrize("trainable", ["full", "top:1"])
def test_the_probabilities_it_draws_by_are_those_of_a_fresh_pass(tiny_model, monkeypatch, trainable):
    """Of every token, with rows of many lengths, of which some end early and are dropped."""
    model, temperature, new = tiny_model(trainable), 0.8, 10
    top = model.trunk.new_top()
    with torch.no_grad():
        top.norm.weight.mul_(10)
    prompts, seeds, seen = _prompts(24), range(24), {}
    end = sample(top, prompts, seeds, Decoding(new, temperature), eos_ids=(), max_rows=9)[0].ids[3]
    pick = sampler.pick_tokens

    def spy(logits, uniforms, **options):
        # A row's uniforms are its own, and so tell which row and position the logits belong to.
        seen.update(zip(uniforms.tolist(), (logits / temperature).log_softmax(-1), strict=True))
        return pick(logits, uniforms, **options)

    monkeypatch.setattr(sampler, "pick_tokens", spy)
    rows = sample(top, prompts, seeds, Decoding(new, temperature), eos_ids=(end,), max_rows=9)
    assert any(row.finished for row in rows) and not all(row.finished for row in rows)
    noise, off_by_one = row_uniforms(seeds, new), []
    with torch.no_grad():
        for prompt, row, uniforms in zip(prompts, rows, noise.tolist(), strict=True):
            logits = top.logits(top(model.trunk(torch.tensor([[*prompt, *row.ids]]))))[0]
            fresh = (logits / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
            own = torch.stack([seen[uniform] for uniform in uniforms[: len(row.ids)]])
            torch.testing.assert_close(own, fresh, rtol=0, atol=1e-4)
            off_by_one.append((own[1:] - fresh[:-1]).abs().max().item() if len(own) > 1 else 1.0)
    assert min(off_by_one) > 1e-2


# Memory and rows.


def test_keys_and_values_are_allocated_once_and_rows_come_longest_first(tiny_model, monkeypatch):
    top = tiny_model("top:1").trunk.new_top()
    made, steps, new = [], [], 7

    class Counted(KVCache):
        def __init__(self, config, rows, slots, *more):
            super().__init__(config, rows, slots, *more)
            made.append((rows, slots))

    step = sampler._Batch.step

    def spy(batch, tokens, live):
        before = [tensor.data_ptr() for tensor in (*batch.cache.keys, *batch.cache.values)]
        step(batch, tokens, live)
        after = [tensor.data_ptr() for tensor in (*batch.cache.keys, *batch.cache.values)]
        steps.append((before == after, tuple(after), batch.lengths.tolist()))

    monkeypatch.setattr(sampler, "KVCache", Counted)
    monkeypatch.setattr(sampler._Batch, "step", spy)
    prompts = _prompts(20)
    sample(top, prompts, range(20), Decoding(new, 1.0), eos_ids=(), max_rows=8)
    lengths = sorted(map(len, prompts), reverse=True)
    assert made == [(rows, lengths[start] + new) for rows, start in ((8, 0), (8, 8), (4, 16))]
    assert len(steps) == 3 * (new - 1), "the last token's logits are not needed"
    for batch in range(3):
        own = steps[batch * (new - 1) : (batch + 1) * (new - 1)]
        assert all(same for same, _, _ in own) and len({places for _, places, _ in own}) == 1
        assert own[0][2] == [length + 1 for length in lengths[8 * batch : 8 * batch + 8]]


def test_dropping_sorting_and_batching_rows_change_nothing(ending, monkeypatch):
    model, top = ending
    prompts, seeds, decoding = _prompts(40, seed=2), list(range(40)), Decoding(16, 1.0)
    kept, keep = [], sampler._Batch.keep

    def spy(batch, rows):
        kept.append(len(rows))
        keep(batch, rows)

    monkeypatch.setattr(sampler._Batch, "keep", spy)

    def draw(order=range(40), max_rows=40, keep_share=sampler.KEEP_SHARE):
        monkeypatch.setattr(sampler, "KEEP_SHARE", keep_share)
        rows = sample(
            top,
            [prompts[i] for i in order],
            [seeds[i] for i in order],
            decoding,
            eos_ids=model.eos_ids,
            max_rows=max_rows,
            keep_features=True,
        )
        return dict(zip(order, rows, strict=True))

    first = draw()
    assert len(kept) > 2 and min(kept) < 10, "rows do end and are dropped"
    assert len({len(row.ids) for row in first.values()}) > 4
    kept.clear()
    others = [draw(keep_share=-1.0)]
    assert not kept, "none is dropped"
    others += [
        draw(keep_share=1.0),
        draw(range(39, -1, -1)),
        draw(max_rows=7),
        draw(max_rows=1),
        draw([17, 3]),
    ]
    for other in others:
        for row, got in other.items():
            assert (got.ids, got.finished) == (first[row].ids, first[row].finished)
            torch.testing.assert_close(got.features, first[row].features, rtol=0, atol=1e-5)


# A real model.


def test_greedy_decoding_of_the_embedded_model_equals_generate(request):
    from transformers import AutoModelForCausalLM

    cache = request.config.cache.mkdir("embedded-model")
    model = load_model(ModelSpec("embedded", "", None, "top:2", "float32", "cpu", False), cache)
    plain = AutoModelForCausalLM.from_pretrained(convert_embedded(cache), dtype=torch.float32).eval()
    texts = [
        "The capital of France is",
        "def add(a, b):\n    ",
        "Once upon a time, by the sea, there lived an old",
    ]
    prompts, new = [model.tokenizer.encode(text) for text in texts], 8
    top = model.trunk.new_top().frozen_copy()
    rows = sample(top, prompts, [0] * 3, Decoding(new, 0.0), eos_ids=model.eos_ids, max_rows=3)
    for prompt, row in zip(prompts, rows, strict=True):
        expected = plain.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=model.pad_id,
            eos_token_id=model.eos_id,
        )[0, len(prompt) :].tolist()
        assert list(row.ids) == expected
