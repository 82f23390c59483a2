"""The sampling engine and the prefix-shared scorer against plain forward passes and transformers' generate."""

import pytest
import torch
from scipy.stats import chisquare

from rlaif.inference.batches import length_buckets
from rlaif.inference.decoding.drawing import Decoding, pick_tokens, row_uniforms
from rlaif.inference.decoding.sampler import sample
from rlaif.inference.packing import SharedPrefix, common_prefix, group_neighbours
from rlaif.inference.scorer import next_token_logprobs, sequence_logprobs


def _prompts(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 20, (count,), generator=generator).tolist()
    return [torch.randint(3, 250, (n,), generator=generator).tolist() for n in lengths]


def _plain_logprobs(model, top, prefix, suffix):
    ids = torch.tensor([[*prefix, *suffix]])
    logprobs = top.logits(top(model.trunk(ids))).float().log_softmax(-1)[0]
    return sum(logprobs[len(prefix) + i - 1, token].item() for i, token in enumerate(suffix))


@pytest.mark.parametrize("trainable", ["full", "top:1"])
def test_greedy_decoding_equals_transformers_generate(tiny_model, trainable):
    from transformers import LlamaForCausalLM

    from rlaif.models.tiny import tiny_config, tiny_state

    model = tiny_model(trainable)
    top = model.trunk.new_top()
    config = tiny_config(len(model.tokenizer))
    hf = LlamaForCausalLM(config).eval()
    hf.load_state_dict(tiny_state(config))
    prompts = _prompts(50)
    ours = sample(top, prompts, [0] * 50, Decoding(12, 0.0), eos_ids=model.eos_ids, max_rows=16)
    for prompt, got in zip(prompts, ours, strict=True):
        expected = hf.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=2,
        )[0, len(prompt) :].tolist()
        assert list(got.ids) == expected


def test_samples_do_not_depend_on_the_batch(tiny_model):
    model = tiny_model("top:1")
    top = model.trunk.new_top()
    prompts, seeds, decoding = _prompts(20), list(range(20)), Decoding(10, 1.0)
    together = sample(top, prompts, seeds, decoding, eos_ids=model.eos_ids, max_rows=20)
    alone = [
        sample(top, [p], [s], decoding, eos_ids=model.eos_ids, max_rows=1)[0]
        for p, s in zip(prompts, seeds, strict=True)
    ]
    assert [s.ids for s in together] == [s.ids for s in alone]
    other = sample(top, prompts, [s + 100 for s in seeds], decoding, eos_ids=model.eos_ids, max_rows=20)
    assert [s.ids for s in together] != [s.ids for s in other]


@pytest.mark.parametrize("trainable", ["full", "top:1", "lora:2"])
def test_kept_features_are_those_of_a_fresh_pass(tiny_model, trainable):
    model = tiny_model(trainable)
    top = model.trunk.new_top()
    prompts = _prompts(9)
    for prompt, got in zip(
        prompts,
        sample(
            top,
            prompts,
            list(range(9)),
            Decoding(6, 1.0),
            eos_ids=model.eos_ids,
            max_rows=4,
            keep_features=True,
        ),
        strict=True,
    ):
        fresh = model.trunk(torch.tensor([[*prompt, *got.ids]]))[0]
        torch.testing.assert_close(got.features, fresh, rtol=0, atol=1e-5)


def test_sampling_draws_from_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    draws = 20_000
    ids = pick_tokens(logits.expand(draws, 4), row_uniforms([7], draws)[0], temperature=0.7, top_k=0)
    expected = (logits / 0.7).softmax(-1) * draws
    assert (
        chisquare(
            torch.bincount(ids, minlength=4).numpy(), expected.numpy() / expected.sum().item() * draws
        ).pvalue
        > 1e-3
    )
    wrong = logits.softmax(-1).double() * draws  # the temperature forgotten: the same test must see it
    assert (
        chisquare(torch.bincount(ids, minlength=4).numpy(), (wrong / wrong.sum() * draws).numpy()).pvalue
        < 1e-6
    )
    top_two = pick_tokens(logits.expand(draws, 4), row_uniforms([7], draws)[0], temperature=1.0, top_k=2)
    assert set(top_two.tolist()) == {1, 2}


def test_sequence_logprobs_equal_plain_passes(tiny_model):
    model = tiny_model("top:1")
    top = model.trunk.new_top()
    texts = _prompts(24, seed=3)
    groups = [
        SharedPrefix(tuple(texts[3 * i]), (tuple(texts[3 * i + 1]), tuple(texts[3 * i + 2])))
        for i in range(8)
    ]
    groups.append(SharedPrefix((5,), ((6, 7), (8,))))
    with torch.no_grad():
        for group, scores in zip(groups, sequence_logprobs(top, groups), strict=True):
            for suffix, score in zip(group.suffixes, scores, strict=True):
                assert score == pytest.approx(_plain_logprobs(model, top, group.prefix, suffix), abs=1e-4)
        only = sequence_logprobs(top, [SharedPrefix((5,), ((6, 7), (8,)))])
        assert only[0][0] == pytest.approx(_plain_logprobs(model, top, (5,), (6, 7)), abs=1e-4)


def test_sequence_logprobs_run_a_shared_beginning_once(tiny_model, monkeypatch):
    model = tiny_model("top:1")
    top, start, rows = model.trunk.new_top(), list(range(10, 50)), []
    texts = _prompts(12, seed=4)
    groups = [
        SharedPrefix((*start, *texts[i]), (tuple(texts[i + 1]), tuple(texts[i + 2]))) for i in range(0, 12, 3)
    ]
    forward = top.trunk.forward
    monkeypatch.setattr(
        top.trunk, "forward", lambda ids, *more: (rows.append(ids.numel()), forward(ids, *more))[1]
    )
    with torch.no_grad():
        found = sequence_logprobs(top, groups)
        assert sum(rows) < sum(map(len, groups)) - 2 * len(start), "not four times"
        for group, scores in zip(groups, found, strict=True):
            for suffix, score in zip(group.suffixes, scores, strict=True):
                assert score == pytest.approx(_plain_logprobs(model, top, group.prefix, suffix), abs=1e-4)


@pytest.mark.parametrize("shared", [0, 30])
def test_next_token_logprobs_equal_plain_passes(tiny_model, shared):
    model = tiny_model("full")
    top = model.trunk.new_top()
    start = list(range(10, 10 + shared))
    prompts = [start + p for p in _prompts(12, seed=5)]
    with torch.no_grad():
        rows, saved = next_token_logprobs(top, prompts, [20, 21])
        assert saved == (0 if shared == 0 else 11 * common_prefix(prompts))
        for prompt, row in zip(prompts, rows, strict=True):
            plain = top.logits(top(model.trunk(torch.tensor([prompt]))))[0, -1].log_softmax(-1)
            assert row == pytest.approx([plain[20].item(), plain[21].item()], abs=1e-5)


@pytest.mark.parametrize("shared", [0, 30])
def test_the_orders_of_a_pair_share_their_context(tiny_model, shared):
    model = tiny_model("top:1")
    top = model.trunk.new_top()
    start, texts = list(range(10, 10 + shared)), _prompts(12, seed=6)
    pairs = [(list(range(40 + i, 60 + i)), texts[2 * i], texts[2 * i + 1]) for i in range(6)]
    prompts = [start + c + p for c, a, b in pairs for p in ([*a, 3, *b], [*b, 3, *a])]
    with torch.no_grad():
        rows, saved = next_token_logprobs(top, prompts, [20, 21])
        assert saved >= 6 * 20 + 11 * shared
        for prompt, row in zip(prompts, rows, strict=True):
            plain = top.logits(top(model.trunk(torch.tensor([prompt]))))[0, -1].log_softmax(-1)
            assert row == pytest.approx([plain[20].item(), plain[21].item()], abs=1e-5)


def test_neighbours_are_grouped_by_what_they_share():
    common = list(range(20))
    rows = [[*common, 1, 2], [*common, 3], [*common, 1], [*range(30, 50), 4], [7], [*common]]
    groups, owners = group_neighbours(rows)
    assert owners == [[0, 1, 2], [3], [4], [5]]
    assert groups[0] == SharedPrefix(tuple(common), ((1, 2), (3,), (1,)))
    for group, owner in zip(groups, owners, strict=True):
        assert [[*group.prefix, *suffix] for suffix in group.suffixes] == [rows[i] for i in owner]
        assert all(group.suffixes)


def test_length_buckets_cover_all_rows_once():
    lengths = torch.randint(1, 90, (57,)).tolist()
    batches = list(length_buckets(lengths, max_tokens=300, max_rows=7))
    assert sorted(i for batch in batches for i in batch) == list(range(57))
    assert all(len(b) <= 7 and (len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 300) for b in batches)


def test_samples_of_one_prompt_share_its_pass_and_change_nothing(tiny_model):
    model = tiny_model("top:1")
    top = model.trunk.new_top()
    prompts = [p for p in _prompts(5) for _ in range(3)]
    seeds, decoding = list(range(15)), Decoding(8, 1.0)
    shared = sample(top, prompts, seeds, decoding, eos_ids=model.eos_ids, max_rows=15, keep_features=True)
    for prompt, seed, got in zip(prompts, seeds, shared, strict=True):
        alone = sample(top, [prompt], [seed], decoding, eos_ids=model.eos_ids, max_rows=1, keep_features=True)
        assert alone[0].ids == got.ids
        torch.testing.assert_close(alone[0].features, got.features, rtol=0, atol=1e-5)


@pytest.mark.parametrize("trainable", ["full", "top:1"])
def test_prompts_that_begin_alike_share_that_and_change_nothing(tiny_model, trainable):
    model = tiny_model(trainable)
    top = model.trunk.new_top()
    lead, texts = list(range(30, 60)), _prompts(9, seed=4)
    pairs = [(list(range(10 + i, 30 + i)), texts[2 * i], texts[2 * i + 1]) for i in range(4)]
    prompts = [lead + c + p for c, a, b in pairs for p in ([*a, 3, *b], [*b, 3, *a])] + [lead + texts[8]]
    decoding = Decoding(8, 1.0)

    def draw(rows, **options):
        chosen = [prompts[i] for i in rows]
        return sample(top, chosen, rows, decoding, eos_ids=model.eos_ids, keep_features=True, **options)

    for tokens in (64, 4096):
        together = draw(list(range(9)), max_rows=9, prefill_tokens=tokens)
        for row, got in enumerate(together):
            (alone,) = draw([row], max_rows=1)
            assert alone.ids == got.ids
            fresh = model.trunk(torch.tensor([prompts[row] + list(got.ids)]))[0]
            torch.testing.assert_close(got.features, fresh, rtol=0, atol=1e-5)


def test_nothing_is_drawn_after_the_end_of_a_row_that_is_not_dropped_yet(tiny_model):
    top = tiny_model("top:1").trunk.new_top()
    prompts, seeds, decoding = _prompts(20, seed=9), list(range(20)), Decoding(10, 1.0)
    free = [d.ids for d in sample(top, prompts, seeds, decoding, eos_ids=(), max_rows=20)]
    end = free[0][2]  # one row of twenty ends here: too few to be dropped
    for ids, got in zip(
        free, sample(top, prompts, seeds, decoding, eos_ids=(end,), max_rows=20), strict=True
    ):
        assert got.ids == (ids[: ids.index(end) + 1] if end in ids else ids)
        assert got.finished == (end in ids)
