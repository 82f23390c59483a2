"""Decoding in static shapes gives what decoding that drops finished rows gives."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.fused import FusedStep
from rlaif.inference.decoding.replay import POLL, Replays, Shape, StaticDecoder
from rlaif.inference.decoding.sampler import sample
from rlaif.models.assemble import make_trunk
from rlaif.models.tiny import tiny_config, tiny_lm


def _prompts(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 30, (count,), generator=generator).tolist()
    return [torch.randint(3, 250, (n,), generator=generator).tolist() for n in lengths]


def _close(mine, other):
    """Equal to a ten-thousandth of what is compared, which must be something."""
    size = other.float().std().item()
    assert size > 0
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-4 * size)


def _strong(model):
    """A top whose layers, and the trunk's, move the residual stream by much: no part is lost in rounding."""
    top = model.trunk.new_top()
    with torch.no_grad():
        layers = model.trunk.lm.get_submodule(model.trunk.decoder.path.layers)
        for part in (*layers[: model.trunk.first_top], *top.layers):
            for weight in part.parameters():
                if weight.dim() == 2:
                    weight.mul_(12)
    return top


def _ending(model):
    """A policy that ends most responses, each at its own time."""
    top = model.trunk.new_top()
    with torch.no_grad():
        top.norm.weight.mul_(10)
        if top.embedding is not None:
            top.embedding[model.eos_id].mul_(6)
    return top


def _both(top, prompts, decoding, **words):
    seeds = range(len(prompts))
    return [
        sample(top, prompts, seeds, decoding, max_rows=words["rows"], replay=replay, **words["more"])
        for replay in (False, True)
    ]


@pytest.mark.parametrize("trainable", ["full", "top:1", "lora:2"])
@pytest.mark.parametrize(
    "decoding", [Decoding(40, 1.0), Decoding(20, 0.0), Decoding(7, 0.8, top_k=5)], ids=str
)
def test_responses_and_features_are_the_same(tiny_model, trainable, decoding):
    model = tiny_model(trainable)
    more = {"eos_ids": model.eos_ids, "keep_features": True}
    plain, static = _both(_ending(model), _prompts(21), decoding, rows=10, more=more)
    assert [one.ids for one in static] == [one.ids for one in plain]
    assert [one.finished for one in static] == [one.finished for one in plain]
    if trainable == "full" and decoding.max_new_tokens == 40:
        assert any(one.finished for one in plain) and not all(len(one.ids) == 40 for one in plain)
    for mine, other in zip(static, plain, strict=True):
        _close(mine.features, other.features)


def test_each_of_several_ends_counts_and_no_end_is_no_end(tiny_model):
    model = tiny_model("full")
    top, prompts = _ending(model), _prompts(16, seed=3)
    free = sample(top, prompts, range(16), Decoding(24, 1.0), eos_ids=(), max_rows=16, replay=True)
    assert all(len(one.ids) == 24 and not one.finished for one in free)
    ends = (free[0].ids[5], free[1].ids[9])
    plain, static = _both(top, prompts, Decoding(24, 1.0), rows=16, more={"eos_ids": ends})
    assert [one.ids for one in static] == [one.ids for one in plain]
    assert static[0].finished and static[0].ids[-1] in ends and static[0].features is None


def test_the_captured_step_follows_a_policy_that_is_trained(tiny_model):
    model = tiny_model("top:1")
    top, prompts, decoding = model.trunk.new_top(), _prompts(8), Decoding(6, 0.0)
    words = {"eos_ids": (), "max_rows": 8}
    before = sample(top, prompts, range(8), decoding, replay=True, **words)
    captured = list(Replays.of(model.trunk)._decoders.values())
    with torch.no_grad():
        for weight in top.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3)
    after = sample(top, prompts, range(8), decoding, replay=True, **words)
    assert [one.ids for one in after] != [one.ids for one in before]
    plain = sample(top, prompts, range(8), decoding, replay=False, **words)
    assert [one.ids for one in after] == [one.ids for one in plain]
    assert list(Replays.of(model.trunk)._decoders.values()) == captured, "one capture serves both"


def test_adapters_that_were_dropped_as_idle_add_nothing(tiny_model):
    model = tiny_model("lora:2")
    top, prompts, words = model.trunk.new_top(), _prompts(5), {"eos_ids": (), "max_rows": 5}
    with torch.no_grad():
        for name, weight in top.named_parameters():
            if name.endswith(".b"):
                weight.fill_(0.5)
    trained = sample(top, prompts, range(5), Decoding(8, 0.0), replay=True, **words)
    idle = model.trunk.new_top().frozen_copy()
    plain = sample(idle, prompts, range(5), Decoding(8, 0.0), replay=False, **words)
    static = sample(idle, prompts, range(5), Decoding(8, 0.0), replay=True, **words)
    assert [one.ids for one in static] == [one.ids for one in plain] != [one.ids for one in trained]


class _Count(TorchDispatchMode):
    """Operations that a device would get, without views, and looks of the host at its memory."""

    VIEWS = ("view", "expand", "slice", "select", "unsqueeze", "squeeze", "transpose", "t.", "as_strided")

    def __init__(self):
        super().__init__()
        self.operations = self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__
        self.reads += name.startswith(("_local_scalar_dense", "item", "nonzero", "is_nonzero"))
        self.operations += not name.startswith((*self.VIEWS, "detach", "alias", "_unsafe_view"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [8, 64])
def test_a_token_costs_a_bounded_number_of_operations_and_no_look_of_the_host(tiny_model, rows):
    model = tiny_model("top:1")
    top = model.trunk.new_top()
    with torch.inference_mode():
        replays = Replays.of(model.trunk)
        twin = replays.twin(top)
        decoder = replays.decoder(twin, rows, 64, Decoding(POLL, 1.0), model.eos_ids, True)
        assert isinstance(decoder, StaticDecoder)
        decoder.advance()
        with _Count() as count:
            decoder.advance()
    assert count.reads == 0
    # On a CPU a norm is about ten operations; on an accelerator, one.
    assert count.operations <= 55 * model.trunk.config.num_layers + 40


def _decoder(model, top, fused):
    """A loaded decoder of eight rows, before its first token."""
    with torch.inference_mode():
        twin = Replays(model.trunk).twin(top)
        shape = Shape(8, 64, Decoding(POLL, 1.0), (), True)
        decoder = StaticDecoder(twin, shape, fused=fused)
        generator = torch.Generator().manual_seed(0)
        for cache in (*decoder.cache.keys, *decoder.cache.values):
            cache.copy_(torch.randn(cache.shape, generator=generator))
        decoder.lengths.copy_(torch.tensor([1, 3, 60, 17, 5, 9, 40, 2]))
        decoder.logits.copy_(torch.randn(decoder.logits.shape, generator=generator))
        decoder.uniforms.copy_(torch.rand(decoder.uniforms.shape, generator=generator))
    return decoder


@pytest.mark.parametrize("trainable", ["full", "top:1"])
def test_a_fused_step_computes_what_the_layers_do(tiny_model, trainable):
    model = tiny_model(trainable)
    top = _strong(model)
    plain, fused = (_decoder(model, top, fused) for fused in (False, True))
    assert fused._fused is not None and plain._fused is None
    with torch.inference_mode():
        for decoder in (plain, fused, plain, fused):
            decoder.advance()
    assert fused.tokens.equal(plain.tokens) and fused.tokens[:, :2].any()
    for mine, other in (
        (fused.logits, plain.logits),
        (fused.features, plain.features),
        *zip(fused.cache.keys, plain.cache.keys, strict=True),
        *zip(fused.cache.values, plain.cache.values, strict=True),
    ):
        _close(mine, other)


def test_fused_layers_read_what_is_copied_into_the_policy_later(tiny_model):
    model = tiny_model("full")
    top = _strong(model)
    with torch.inference_mode():
        replays = Replays(model.trunk)
        first = StaticDecoder(replays.twin(top), Shape(8, 64, Decoding(4, 0.0), (), False), fused=True)
        other = StaticDecoder(replays.twin(top), Shape(16, 64, Decoding(4, 0.0), (), False), fused=True)
        before = _two_steps(first).clone()
    with torch.no_grad():
        top.layers[0].self_attn.k_proj.weight.mul_(3)
        top.layers[1].mlp.up_proj.weight.mul_(-2)
    with torch.inference_mode():
        replays.twin(top)
        plain = StaticDecoder(Replays(model.trunk).twin(top), first.shape, fused=False)
        found, expected = [_two_steps(decoder)[:8] for decoder in (first, other)], _two_steps(plain)
    assert (expected - before).abs().max() > before.std(), "the change is seen"
    for logits in found:
        _close(logits, expected)


def _two_steps(decoder):
    """Logits after token 7 and the next one, from an empty cache (token 0 pads: its embedding is zero)."""
    for cache in (*decoder.cache.keys, *decoder.cache.values):
        cache.zero_()
    decoder.lengths.fill_(1)
    decoder.position.zero_()
    decoder.logits.zero_()
    decoder.logits[:, 7] = 1
    decoder.advance()
    decoder.advance()
    return decoder.logits


def test_adapters_and_other_gates_are_left_to_the_layers(tiny_model):
    assert not FusedStep.fits(tiny_model("lora:2").trunk.new_top())
    assert FusedStep.fits(tiny_model("full").trunk.new_top())
    for changed in ({"hidden_act": "gelu"}, {"attention_bias": True, "head_dim": 16}):
        config = tiny_config(259)
        config.update(changed)
        fits = FusedStep.fits(make_trunk(tiny_lm(config), "full", torch.float32, None).new_top())
        assert fits == ("hidden_act" not in changed), changed
