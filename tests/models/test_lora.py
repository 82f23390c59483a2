"""Adapters: what they compute, what of them is trained and stored, and what roles share."""

import pytest
import torch
from safetensors.torch import load_file

from rlaif.errors import UserError
from rlaif.models.load import ModelSpec, model_sizes
from rlaif.models.lora import _AdaptedLinear, parse_lora
from rlaif.models.weights import load_modules, save_modules

RANK, ALPHA = 2, 4.0  # alpha: tests/conftest.py
SCALE = ALPHA / RANK


@pytest.fixture
def ids():
    return torch.randint(3, 250, (3, 17), generator=torch.Generator().manual_seed(1))


def stirred(top, size=0.05):
    """The top with every entry of its A and B moved."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in top.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return top


def merged(full, adapted, scale=SCALE):
    """`full`, a top of all weights, with scale B A added to each of its linear layers by hand."""
    weights, low = full.state_dict(), adapted.state_dict()
    for name in {name.rsplit(".", 1)[0] for name in low}:
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + scale * low[f"{name}.b"] @ low[f"{name}.a"]
    full.load_state_dict(weights)
    return full


def gradients(top, features):
    top.zero_grad()
    hidden = top(features)
    hidden.mul(torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)).sum().backward()
    return {name: parameter.grad for name, parameter in top.named_parameters()}


# What they compute.


def test_a_role_starts_as_the_base_model(tiny_model, ids):
    adapted, full = tiny_model("lora:2").trunk.new_top(), tiny_model("full").trunk.new_top()
    expected = full.logits(full(ids))
    assert torch.equal(adapted.logits(adapted(ids)), expected)
    copy = adapted.frozen_copy()
    assert torch.equal(copy.logits(copy(ids)), expected) and not list(copy.parameters())
    assert all(bool(v.any()) for name, v in adapted.named_parameters() if name.endswith(".a"))
    stirred(adapted)
    moved = adapted.logits(adapted(ids))
    assert (moved - expected).abs().max() > 1e-2
    copy = adapted.frozen_copy()
    assert torch.equal(copy.logits(copy(ids)), moved) and len(list(copy.parameters())) == 3 * 7 * 2


def test_adapters_compute_what_merged_weights_do(tiny_model, ids):
    adapted = stirred(tiny_model("lora:2").trunk.new_top())
    full = tiny_model("full").trunk
    with torch.no_grad():
        hidden = adapted(ids)
        torch.testing.assert_close(hidden, merged(full.new_top(), adapted)(ids), rtol=0, atol=1e-5)
        exported = full.new_top()
        exported.load_state_dict(adapted.whole().state_dict())
        torch.testing.assert_close(hidden, exported(ids), rtol=0, atol=1e-5)
        unscaled = merged(full.new_top(), adapted, scale=1.0)
        assert (hidden - unscaled(ids)).abs().max() > 1e-2, "a scale left out is seen"


def test_gradients_are_those_of_the_merged_weights_projected(tiny_model, ids):
    """W + s B A: dL/dB = s dL/dW A^T and dL/dA = s B^T dL/dW, in float64."""
    model = tiny_model("lora:2", "float64")
    adapted = stirred(model.trunk.new_top()).double()
    full = merged(tiny_model("full", "float64").trunk.new_top().double(), adapted)
    own, whole, low = gradients(adapted, ids), gradients(full, ids), adapted.state_dict()

    def largest_gap(scale):
        gaps = []
        for name in {name.rsplit(".", 1)[0] for name in low}:
            dense = scale * whole[f"{name}.weight"]
            gaps.append((own[f"{name}.b"] - dense @ low[f"{name}.a"].T).abs().max())
            gaps.append((own[f"{name}.a"] - low[f"{name}.b"].T @ dense).abs().max())
        return float(torch.stack(gaps).max())

    assert largest_gap(SCALE) < 1e-5, "the base's rotary tables are float32"
    assert largest_gap(1.0) > 1e-2


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_has_the_gradients_of_finite_differences(bias):
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 3, 5), "weight": (4, 5), "a": (2, 5), "b": (4, 2)}
    parts = {k: torch.randn(v, generator=generator, dtype=torch.float64) for k, v in shapes.items()}
    offset = torch.randn(4, generator=generator, dtype=torch.float64) if bias else None
    x, a, b = (parts[name].requires_grad_() for name in ("x", "a", "b"))

    def layer(x, a, b):
        return _AdaptedLinear.apply(x, parts["weight"], offset, a, b, 3.0)

    expected = torch.nn.functional.linear(x, parts["weight"] + 3 * b @ a, offset)
    torch.testing.assert_close(layer(x, a, b), expected)
    assert torch.autograd.gradcheck(layer, (x, a, b))


def test_a_small_update_is_not_lost_in_bf16(tiny_model, ids):
    """Why adapters are not merged for computing: bf16 weights swallow what adapters add to them."""
    model = tiny_model("lora:2", "bfloat16")
    adapted, base = model.trunk.new_top(), model.trunk.new_top().frozen_copy()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name.endswith(".b"):
                parameter.fill_(2e-5)
        weights, kept = adapted.whole().state_dict(), base.whole().state_dict()
        moved = (adapted.frozen_copy()(ids) - base(ids)).float().abs().mean()
    changed = [(weights[n].bfloat16() != kept[n].bfloat16()).float().mean() for n in weights if "proj" in n]
    assert float(torch.stack(changed).mean()) < 0.1, "nearly every merged weight rounds back to the base's"
    assert moved > 1e-4


# What is trained and stored.


def test_only_adapters_are_trained_and_stored(tiny_model, ids, tmp_path):
    model = tiny_model("lora:2")
    top = stirred(model.trunk.new_top())
    linear = [name for name, _ in model.trunk.lm.named_parameters() if name.endswith("_proj.weight")]
    assert len(linear) == 3 * 7
    names = {f"{n.removesuffix('.weight')}.{part}" for n in linear for part in "ab"}
    assert set(top.state_dict()) == names == {name for name, _ in top.named_parameters()}
    top.logprobs(top(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in top.parameters())
    assert all(p.grad is None and not p.requires_grad for p in model.trunk.parameters())
    save_modules(tmp_path / "top.safetensors", {"top": top})
    assert set(load_file(tmp_path / "top.safetensors")) == {f"top.{name}" for name in names}
    read = model.trunk.new_top()
    load_modules(tmp_path / "top.safetensors", {"top": read})
    assert torch.equal(read(ids), top(ids))


def test_roles_share_the_base_and_nothing_else(tiny_model, ids):
    model = tiny_model("lora:2")
    policy, value = model.trunk.new_top(), model.trunk.new_top()
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), value.parameters(), strict=True))
    before = value(ids)
    trunk = [parameter.clone() for parameter in model.trunk.parameters()]
    stirred(policy)
    assert torch.equal(value(ids), before) and not torch.allclose(policy(ids), before, atol=1e-2)
    assert policy.layers[0].mlp.up_proj.base.weight is value.layers[0].mlp.up_proj.base.weight
    assert all(torch.equal(a, b) for a, b in zip(trunk, model.trunk.parameters(), strict=True))
    own = sum(p.numel() for p in policy.parameters())
    assert own < sum(p.numel() for p in model.trunk.parameters()) / 8


# What a user writes.


def test_bad_adapters_are_refused():
    assert parse_lora("lora:8", 16.0).scale == 2.0
    assert parse_lora("full", None) is None and parse_lora("top:4", None) is None
    with pytest.raises(UserError, match=r"model\.trainable=lora:0"):
        parse_lora("lora:0", 16.0)
    for alpha in (None, 0.0, -1.0):
        with pytest.raises(UserError, match=r"model\.lora_alpha"):
            parse_lora("lora:8", alpha)


def test_a_plan_counts_no_gradients_of_frozen_weights():
    def trained(trainable):
        spec = ModelSpec("tiny", "tiny", None, trainable, "float32", "cpu", False, lora_alpha=ALPHA)
        return model_sizes(spec)

    (whole, full), (same, adapted), (_, upper) = trained("full"), trained("lora:2"), trained("top:1")
    assert whole == same == full and upper < adapted < full
