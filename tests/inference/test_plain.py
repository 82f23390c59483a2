"""Models that take whole texts only: what they sample and score is what a loop over one text at a time gives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from zoo import build
from zoo.family import family

from rlaif.errors import UserError
from rlaif.inference.decoding import plain
from rlaif.inference.decoding.drawing import Decoding, pick_tokens, row_uniforms
from rlaif.inference.decoding.sampler import sample
from rlaif.inference.decoding.warm import WarmPrompts, warm_next_token_logprobs
from rlaif.inference.features import FeatureCache
from rlaif.inference.packing import SharedPrefix
from rlaif.inference.scorer import next_token_logprobs, sequence_logprobs
from rlaif.models import flat
from rlaif.models.assemble import make_trunk
from rlaif.models.pairs import PaddedPairs, PairCausal
from rlaif.models.parts import probe

# Position biases, states, convolutions; the last has no cache that holds.
NAMES = ["bloom", "falcon", "qwen3_next", "lfm2", "mamba", "minimax"]
EOS = {2, 9, 30, 31, 32, 33, 34, 35}  # many, so that rows end


def prompts_of(name: str) -> list[list[int]]:
    """Of several lengths, with tokens that end a response in two of them, and one twice."""
    rows = family(name).ids.tolist()
    first = [*rows[0][:7], 30, 2, 9, 30]
    return [first, rows[1][:9], rows[0][3:15], rows[1][:9], rows[0][:5], [4, 9]]


def moved(name: str, trainable: str, dtype: torch.dtype = torch.float32):
    """A policy whose weights are no longer the base model's."""
    top = family(name).trunk(trainable, dtype).new_top()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in top.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return top


@torch.no_grad()
def drawn_one_by_one(top, prompt, seed, decoding):
    """A response and its features, from whole passes over one text."""
    response: list[int] = []
    for uniform in row_uniforms([seed], decoding.max_new_tokens)[0]:
        hidden = top(top.trunk(torch.tensor([[*prompt, *response]])))
        logits = top.logits(hidden[:, -1])
        own = pick_tokens(logits, uniform[None], temperature=decoding.temperature, top_k=decoding.top_k)
        response.append(int(own))
        if response[-1] in EOS:
            break
    return response, top.trunk(torch.tensor([[*prompt, *response]]))[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("trainable", ["top:2", "lora:2", "full"])
def test_samples_are_those_of_whole_passes_over_one_text(name, trainable):
    top, decoding = moved(name, trainable), Decoding(7, 1.3, 20)
    prompts, seeds = prompts_of(name), [11, 12, 13, 14, 15, 16]
    found = sample(top, prompts, seeds, decoding, eos_ids=EOS, max_rows=4, keep_features=True)
    for prompt, seed, one in zip(prompts, seeds, found, strict=True):
        ids, features = drawn_one_by_one(top, prompt, seed, decoding)
        assert list(one.ids) == ids and one.finished == (ids[-1] in EOS)
        assert one.features.shape == features.shape
        # Recurrent states amplify rounding, and some models' features are large.
        assert float((one.features - features).abs().max()) < 1e-4 * float(features.abs().max())
    assert any(one.finished for one in found) and len({len(one.ids) for one in found}) > 1
    assert len({one.ids for one in found}) == len(found)


@pytest.mark.parametrize("trainable", ["full", "top:2"])
@torch.no_grad()
def test_bf16_samples_run_the_masters_of_the_policy(trainable):
    top, prompts = moved("falcon", trainable, torch.bfloat16), prompts_of("falcon")[:2]
    found = sample(top, prompts, [1, 2], Decoding(3, 0.0), eos_ids=(), max_rows=4)
    for prompt, one in zip(prompts, found, strict=True):
        for place, token in enumerate(one.ids):
            logits = top.logits(top(top.trunk(torch.tensor([[*prompt, *one.ids[:place]]])))[0, -1]).float()
            assert float(logits.max() - logits[token]) < 0.15, "the largest but for rounding"


def test_a_checkpoint_s_own_settings_of_generation_are_not_used():
    """They would ban tokens, or force some."""
    trunk, prompts = family("falcon").trunk("top:2"), prompts_of("falcon")
    words = {"eos_ids": EOS, "max_rows": 6}
    before = sample(trunk.new_top(), prompts, range(6), Decoding(6, 0.0), **words)
    kept = trunk.lm.generation_config
    own = {"repetition_penalty": 9.0, "min_new_tokens": 5, "suppress_tokens": list(before[0].ids)}
    trunk.lm.generation_config = type(kept)(**own)
    try:
        assert sample(trunk.new_top(), prompts, range(6), Decoding(6, 0.0), **words) == before
    finally:
        trunk.lm.generation_config = kept


def test_prompts_of_a_batch_differ_by_half_a_response():
    lengths = [30, 29, 26, 25, 24, 3]
    cut = list(plain.cut_by_length([[0, 1, 2, 3], [4, 5]], lengths, 8))
    assert cut == [[0, 1, 2], [3], [4], [5]]


@torch.no_grad()
def whole_logprobs(top, ids):
    return top.logits(top(top.trunk(torch.tensor([ids]))))[0].log_softmax(-1)


@pytest.mark.parametrize("name", ["bloom", "qwen3_next"])
def test_texts_that_share_a_beginning_are_scored_as_if_alone(name):
    """What they share is longer than what other models run once."""
    top, (one, other) = family(name).base("top:2"), family(name).ids.tolist()
    prompts = [[*one, *other[:3]], [*one, 40], [*one, *other[:5]]]
    rows, saved = next_token_logprobs(top, prompts, [20, 21])
    assert saved == 0
    for prompt, row in zip(prompts, rows, strict=True):
        wanted = whole_logprobs(top, prompt)[-1]
        assert row == pytest.approx([wanted[20].item(), wanted[21].item()], abs=1e-4)
    groups = [
        SharedPrefix(tuple(one), ((5, 6, 7), (8,))),
        SharedPrefix((*one, 4), (tuple(other[:6]), (9, 3), (11,))),
    ]
    for group, sums in zip(groups, sequence_logprobs(top, groups), strict=True):
        for suffix, found in zip(group.suffixes, sums, strict=True):
            scores, start = whole_logprobs(top, [*group.prefix, *suffix]), len(group.prefix)
            wanted = sum(float(scores[start + i - 1, token]) for i, token in enumerate(suffix))
            assert found == pytest.approx(wanted, abs=3e-4)


def test_a_verdict_after_a_rationale_runs_its_whole_prompt():
    top, prompts, warm = family("lfm2").base("top:2"), prompts_of("lfm2"), WarmPrompts(2**24)
    sample(top, prompts, range(6), Decoding(3, 1.0), eos_ids=EOS, max_rows=6, warm=warm)
    assert warm_next_token_logprobs(top, [[*prompt, 5] for prompt in prompts], [20], warm) is None


@pytest.mark.parametrize("name", ["falcon", "lfm2"])
@pytest.mark.parametrize("pattern", [PairCausal, lambda spans: PaddedPairs(spans, torch.device("cpu"))])
def test_gradients_of_packed_pairs_are_those_of_the_texts_apart(name, pattern):
    """The prompt that two texts share counts once for each position that is read."""
    kind, top = family(name), moved(name, "top:2")
    one, other = kind.ids.tolist()
    pairs = [(one[:5], one[5:9], other[:7]), (other[:8], other[8:12], []), (one[9:12], other[4:6], one[:1])]
    spans, packed, read, texts = [], [], [], []
    for prompt, a, b in pairs:
        start = len(packed)
        packed += [*prompt, *a, *b]
        spans.append((start, start + len(prompt), start + len(prompt) + len(a), len(packed)))
        read += range(start + len(prompt) - 1, len(packed))
        texts.append(([*prompt, *a], range(len(prompt) - 1, len(prompt) + len(a))))
        if b:
            texts.append(([*prompt, *b], range(len(prompt), len(prompt) + len(b))))
    features = torch.cat([top.trunk(torch.tensor([text]))[0] for text, _ in texts])
    ends = torch.tensor([0, *map(len, (text for text, _ in texts))]).cumsum(0).tolist()
    of_text = [features[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
    joined = torch.cat([of_text[0], of_text[1][5:], of_text[2], of_text[3], of_text[4][3:]])[None]
    found = top(joined, pattern(spans), rows=torch.tensor([read]))[0]
    wanted = torch.cat(
        [top(own[None])[0, list(places)] for own, (_, places) in zip(of_text, texts, strict=True)]
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    weights = torch.linspace(-1, 1, found.numel()).view_as(found)
    gradients = [torch.autograd.grad((x * weights).sum(), list(top.parameters())) for x in (found, wanted)]
    for own, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(own, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()) + 1e-5)


def test_kept_features_are_those_of_each_text_alone(tmp_path):
    """Prompts with several responses, some of which another call has left."""
    trunk = family("qwen3_next").trunk("top:2")
    model, cache = SimpleNamespace(trunk=trunk, identity="q", device="cpu"), FeatureCache(tmp_path, 2**24)
    one, other = (tuple(row) for row in family("qwen3_next").ids.tolist())
    groups = [
        SharedPrefix(one[:9], (other[:5], other[3:12], one[2:4])),
        SharedPrefix(other[:4], (one[:6], other[4:9])),
    ]
    cache.get(model, [SharedPrefix(one[:9], (other[3:12],))])
    for group, found in zip(groups, cache.get(model, groups), strict=True):
        for suffix, features in zip(group.suffixes, found.suffixes, strict=True):
            wanted = trunk(torch.tensor([[*group.prefix, *suffix]]))[0]
            assert float((torch.cat((found.prefix, features)) - wanted).abs().max()) < 1e-4 * float(
                wanted.abs().max()
            )


def test_ragged_rows_are_not_packed(monkeypatch):
    """Even where their padding would cost more than attention row by row."""
    top = family("falcon").base("top:2")
    ids = family("falcon").ids
    reads = torch.zeros(ids.shape, dtype=torch.bool)
    reads[0, 3], reads[1, 23] = True, True
    monkeypatch.setattr(flat, "ROW_COST", 0)
    monkeypatch.setattr(flat, "_flat", None)
    assert flat.hidden_at(top, top.trunk(ids), reads).shape == (2, 32)


def test_what_lets_a_token_see_the_next_ones_is_refused(monkeypatch):
    """A likelihood that has seen its own token would be read as skill."""
    lm = build("falcon")
    forward = type(lm.transformer).forward

    def leaky(self, input_ids=None, inputs_embeds=None, **more):
        out = forward(self, input_ids, inputs_embeds=inputs_embeds, **more)
        out.last_hidden_state = out.last_hidden_state + out.last_hidden_state.mean(1, keepdim=True)
        return out

    monkeypatch.setattr(type(lm.transformer), "forward", leaky)
    with pytest.raises(UserError, match="FalconForCausalLM cannot be used: .* see what follows it"):
        make_trunk(lm, "full", torch.float32, None)


def test_what_changes_its_own_weights_is_refused_also_when_the_verdict_is_known(tmp_path):
    """RWKV rescales its weights in its first forward pass: an export would hold others than the checkpoint's."""
    for _ in range(2):
        with pytest.raises(UserError, match=r"RwkvForCausalLM cannot be used: .*changes its weights"):
            make_trunk(
                build("rwkv", rescale_every=2),
                "full",
                torch.float32,
                None,
                verdicts=tmp_path,
                identity="rescales",
            )
    lm = build("rwkv", rescale_every=0)
    make_trunk(lm, "full", torch.float32, None, verdicts=tmp_path, identity="leaves them")


def test_a_cache_that_gives_other_numbers_is_found_and_not_used(monkeypatch):
    """Samples would be of another policy than the one that is trained."""
    assert make_trunk(build("falcon"), "full", torch.float32, None).verdict.cached
    generate = probe.generate

    def forgetful(lm, start, steps, draw, *more, use_cache):
        return generate(
            lm, start, steps, lambda ids, logits: draw(ids, logits.roll(1, -1)), *more, use_cache=use_cache
        )

    monkeypatch.setattr(probe, "generate", forgetful)
    trunk = make_trunk(build("falcon"), "full", torch.float32, None)
    assert not trunk.verdict.cached and not trunk.verdict.wrong
    asked = []
    monkeypatch.setattr(
        plain, "generate", lambda *a, use_cache: asked.append(use_cache) or generate(*a, use_cache=use_cache)
    )
    sample(trunk.new_top(), [[5, 6, 7]], [0], Decoding(2, 0.0), eos_ids=(), max_rows=1)
    assert asked == [False]
