"""Our decoder, split and unsplit, against transformers' own module with the same weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlaif.errors import UserError
from rlaif.models.export.whole import export_policy
from rlaif.models.kernels.devices import resolve_dtype
from rlaif.models.load import ModelSpec, describe_model, load_model
from rlaif.models.split import parse_trainable
from rlaif.models.tiny import tiny_config, tiny_state, tiny_tokenizer
from rlaif.models.weights import load_modules, save_modules


def _hf(config, state):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model


@pytest.fixture
def ids():
    return torch.randint(3, 250, (3, 17), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("trainable", ["full", "top:1", "top:2", "lora:2"])
def test_split_equals_transformers(tiny_model, ids, trainable):
    model = tiny_model(trainable)
    top = model.trunk.new_top()
    config = tiny_config(len(model.tokenizer))
    with torch.no_grad():
        expected = _hf(config, tiny_state(config))(ids).logits
        actual = top.logits(top(model.trunk(ids)))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_parity_can_fail(tiny_model, ids):
    """Rotary positions shifted by one must be seen by the comparison above (queries and keys move apart)."""
    model = tiny_model("top:1")
    top = model.trunk.new_top()
    right = top.logits(top(model.trunk(ids)))
    with torch.no_grad():
        top.layers[0].input_layernorm.weight.mul_(1.01)
    assert (top.logits(top(model.trunk(ids))) - right).abs().max() > 1e-4


@pytest.mark.parametrize("family", ["qwen2", "mistral"])
def test_other_families_equal_transformers(ids, tmp_path, family):
    from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

    sizes = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    extra = {"sliding_window": None} if family == "mistral" else {}
    config = {"qwen2": Qwen2Config, "mistral": MistralConfig}[family](
        **sizes, **extra, tie_word_embeddings=False
    )
    hf = {"qwen2": Qwen2ForCausalLM, "mistral": MistralForCausalLM}[family](config).eval()
    for name, parameter in hf.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    hf.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    spec = ModelSpec("hub", str(tmp_path / "model"), None, "top:1", "float32", "cpu", False)
    model = load_model(spec, tmp_path)
    top = model.trunk.new_top()
    with torch.no_grad():
        torch.testing.assert_close(top.logits(top(model.trunk(ids))), hf(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("trainable", ["full", "top:1", "lora:2"])
def test_exported_policy_gives_the_same_logits(tiny_model, ids, tmp_path, trainable):
    model = tiny_model(trainable)
    top = model.trunk.new_top()
    with torch.no_grad():
        for parameter in top.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    export_policy(tmp_path / "policy", model, top)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, top.logits(top(model.trunk(ids))), rtol=0, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_weights_survive_a_round_trip(tiny_model, tmp_path):
    model = tiny_model("top:2")
    top = model.trunk.new_top()
    with torch.no_grad():
        for parameter in top.parameters():
            parameter.normal_()
    save_modules(tmp_path / "top.safetensors", {"top": top})
    other = model.trunk.new_top()
    load_modules(tmp_path / "top.safetensors", {"top": other})
    assert all(torch.equal(a, b) for a, b in zip(top.parameters(), other.parameters(), strict=True))


def test_a_frozen_copy_never_moves(tiny_model, ids):
    """The reference stays bit-equal while the policy trains, tied embeddings included."""
    for trainable in ("full", "top:1", "lora:2"):
        model = tiny_model(trainable)
        policy = model.trunk.new_top()
        reference = policy.frozen_copy()
        before = reference.logits(reference(model.trunk(ids))).clone()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1)
        policy.logits(policy(model.trunk(ids))).float().logsumexp(-1).mean().backward()
        optimizer.step()
        assert torch.equal(reference.logits(reference(model.trunk(ids))), before)
        assert not torch.allclose(policy.logits(policy(model.trunk(ids))), before, atol=1e-2)


def test_bad_specs_are_refused(tmp_path):
    assert parse_trainable("full", 30) == 30
    assert parse_trainable("top:4", 30) == 4
    assert parse_trainable("lora:8", 30) == 30
    for bad in ("top:0", "top:30", "lora:", "lora:-8", "half"):
        with pytest.raises(UserError, match="model.trainable"):
            parse_trainable(bad, 30)
    for name in ("/nowhere/model", "./missing", "no-such-model"):
        with pytest.raises(UserError, match=r"model\.name"):
            describe_model(ModelSpec("hub", name, None, "full", "float32", "cpu", False), tmp_path)
    with pytest.raises(UserError, match=r"model\.dtype"):
        resolve_dtype("float16", "cpu")


@pytest.mark.parametrize("trainable", ["full", "top:1", "top:2", "lora:2"])
def test_the_last_layer_may_run_on_the_positions_that_are_read(tiny_model, ids, trainable):
    model = tiny_model(trainable)
    top = model.trunk.new_top()
    features = model.trunk(ids)
    rows = torch.tensor([[3, 9], [0, 16], [5, 5]])
    whole = top(features)
    picked = top(features, rows=rows)
    expected = torch.stack([whole[i, r] for i, r in enumerate(rows)])
    torch.testing.assert_close(picked, expected, rtol=0, atol=1e-5)
    gradients = []
    for output in (picked, expected):
        top.zero_grad()
        output.square().sum().backward(retain_graph=True)
        gradients.append(
            [p.grad.clone() for layer in top.layers for p in layer.parameters() if p.requires_grad]
        )
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_choices_are_not_rounded_to_the_steps_of_bf16(tiny_model):
    # Logits near 20 lie 1/8 apart in bf16; the difference of two choices must not.
    top = tiny_model("full").trunk.new_top()
    hidden = torch.randn(64, top.norm.weight.shape[0], generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = top.embedding.detach() * 60  # the head is tied to it
    with torch.no_grad():
        top.embedding.copy_(weight)
        tokens = torch.tensor([20, 21])
        got = top.choice_logprobs(hidden, tokens)
        exact = (hidden.double() @ weight.double().T)[:, tokens]
        rounded = top.logits(hidden).double()[:, tokens]
    difference = exact[:, 0] - exact[:, 1]
    assert torch.allclose((got[:, 0] - got[:, 1]).double(), difference, atol=1e-4, rtol=0)
    assert not torch.allclose(rounded[:, 0] - rounded[:, 1], difference, atol=1e-2, rtol=0)
