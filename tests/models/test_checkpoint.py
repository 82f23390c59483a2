"""Every weight comes from the checkpoint, or the load ends with a sentence that names what is wrong."""

from __future__ import annotations

import json
import os

import pytest
import torch
from model_folders import LAYERS, edit_config, edit_weights, save_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlaif.errors import UserError
from rlaif.models.files.source import read_config
from rlaif.models.kernels.devices import resolve_dtype
from rlaif.models.load import (
    ModelSpec,
    check_model,
    default_trainable,
    describe_model,
    load_model,
)


def _spec(folder, trainable="top:1"):
    return ModelSpec("hub", str(folder), None, trainable, "float32", "cpu", False)


def _logits(folder, ids):
    model = load_model(_spec(folder), folder.parent)
    top = model.trunk.new_top()
    with torch.no_grad():
        return top.logits(top(model.trunk(ids)))


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "model")


@pytest.fixture
def ids():
    return torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(1))


def _without(part):
    return lambda weights: {name: value for name, value in weights.items() if part not in name}


def _with(**extra):
    return lambda weights: weights | {name.replace("__", "."): value for name, value in extra.items()}


def _spoiled(value):
    def spoil(weights):
        weights["model.layers.2.mlp.down_proj.weight"][0, 0] = value
        return weights

    return spoil


@pytest.mark.parametrize(
    "change, words",
    [
        (_without(".layers.2."), ["lacks model.layers.2.input_layernorm.weight", "6 more", "30"]),
        (_without("lm_head"), ["lacks lm_head.weight", "random"]),
        (_without("model.norm"), ["lacks model.norm.weight"]),
        (_without("q_proj"), ["lacks model.layers.0.self_attn.q_proj.weight"]),
        (
            _with(model__layers__3__mlp__up_proj__weight=torch.ones(1)),
            ["unused", "model.layers.3.mlp.up_proj"],
        ),
        (_with(model__layers__0__self_attn__q_proj__bias=torch.ones(32)), ["unused", "q_proj.bias"]),
        (_spoiled(float("nan")), ["model.layers.2.mlp.down_proj.weight", "not finite"]),
        (_spoiled(float("inf")), ["model.layers.2.mlp.down_proj.weight", "not finite"]),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(folder, change, words) -> None:
    edit_weights(folder, change)
    with pytest.raises(UserError, match=r"model\.name=") as caught:
        load_model(_spec(folder), folder.parent)
    assert all(word in str(caught.value) for word in words), caught.value


def test_an_error_is_the_same_one_each_time(folder) -> None:
    """transformers reads in threads, some of which still do when the first one has ended the load."""
    edit_weights(folder, _spoiled(float("nan")))
    told = set()
    for _ in range(20):
        with pytest.raises(UserError) as caught:
            load_model(_spec(folder), folder.parent)
        told.add(str(caught.value).partition(": ")[2])
    assert told == {"model.layers.2.mlp.down_proj.weight holds values that are not finite"}


@pytest.mark.parametrize(
    "values, words",
    [
        ({"num_hidden_layers": LAYERS - 1}, ["unused", "model.layers.2."]),
        ({"num_hidden_layers": LAYERS + 1}, ["lacks model.layers.3."]),
        ({"vocab_size": 300}, ["model.embed_tokens.weight", "[259, 32]", "[300, 32]"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantised (gptq)"]),
        ({"hidden_act": "nonsense"}, ["'nonsense'"]),
        ({"model_type": "gpt_neox"}, ["lacks gpt_neox.embed_in.weight"]),
        ({"model_type": "t5gemma"}, ["'t5gemma' has no causal language model"]),
    ],
)
def test_a_configuration_of_another_model_is_refused_before_weights_are_read(folder, values, words) -> None:
    edit_config(folder, **values)
    with pytest.raises(UserError) as caught:
        check_model(_spec(folder))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "model."])
def test_wrappers_in_names_change_nothing(folder, ids, prefix) -> None:
    expected = _logits(folder, ids)
    edit_weights(folder, lambda weights: {prefix + name: value for name, value in weights.items()})
    assert torch.equal(_logits(folder, ids), expected)


def test_wrappers_inside_names_and_a_bare_backbone_change_nothing(folder, ids) -> None:
    expected = _logits(folder, ids)
    edit_weights(folder, lambda ws: {n.replace("layers.1.", "layers.1._orig_mod."): w for n, w in ws.items()})
    assert torch.equal(_logits(folder, ids), expected)
    edit_weights(
        folder, lambda ws: {n.replace("_orig_mod.", "").removeprefix("model."): w for n, w in ws.items()}
    )
    assert torch.equal(_logits(folder, ids), expected)


def test_unused_weights_outside_of_the_model_are_named(folder, ids, caplog) -> None:
    expected = _logits(folder, ids)
    extra = {
        "v_head__weight": torch.ones(1),
        "model__layers__0__self_attn__rotary_emb__inv_freq": torch.ones(4),
    }
    edit_weights(folder, _with(**extra))
    assert torch.equal(_logits(folder, ids), expected)
    assert "unused weights of the checkpoint: v_head.weight" in caplog.text
    assert "inv_freq" not in caplog.text


def test_shards_are_read_and_missed(folder, ids) -> None:
    expected = _logits(folder, ids)
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: weights[name] for name in own}, folder / file, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    assert torch.equal(_logits(folder, ids), expected)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="lacks model-00002-of-00002.safetensors"):
        check_model(_spec(folder))


def test_damaged_files_are_one_sentence(folder) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for kept in (4, 2000, len(whole) - 1):
        weights.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=r"model\.safetensors could not be loaded"):
            check_model(_spec(folder))
    weights.write_bytes(whole)
    for text in ("{", "", "[]", '{"no": "model_type"}'):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"model\.name="):
            check_model(_spec(folder))


def test_a_tied_model_with_a_head_of_its_own_is_refused(tmp_path, ids) -> None:
    folder = save_model(tmp_path / "tied", tie_word_embeddings=True)
    expected = _logits(folder, ids)
    same = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    edit_weights(folder, lambda weights: weights | {"lm_head.weight": same.clone()})
    assert torch.equal(_logits(folder, ids), expected)
    edit_weights(folder, lambda weights: weights | {"lm_head.weight": same + 1})
    with pytest.raises(UserError, match="tie_word_embeddings"):
        load_model(_spec(folder), tmp_path)


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "relu", "silu"])
def test_the_activation_of_the_configuration_runs(tmp_path, ids, activation) -> None:
    folder = save_model(tmp_path / "model", hidden_act=activation)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
    torch.testing.assert_close(_logits(folder, ids), expected, rtol=0, atol=1e-5)


def test_another_file_of_the_same_size_and_age_is_another_model(folder, tmp_path) -> None:
    weights = folder / "model.safetensors"
    before, stat = describe_model(_spec(folder), tmp_path), weights.stat()
    edit_weights(folder, lambda found: {name: value + 1 for name, value in found.items()})
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert weights.stat().st_size == stat.st_size
    assert describe_model(_spec(folder), tmp_path)["weights"] != before["weights"]


@pytest.mark.parametrize(
    "file", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
)
def test_what_makes_tokens_of_text_is_part_of_a_model(folder, tmp_path, file) -> None:
    before = describe_model(_spec(folder), tmp_path)
    (folder / file).write_text((folder / file).read_text().rstrip() + "  \n")
    assert describe_model(_spec(folder), tmp_path)["text"] != before["text"]
    (folder / "README.md").write_text("A model.")
    renamed = folder.rename(folder.parent / "renamed")
    after = describe_model(_spec(renamed), tmp_path)
    assert after["weights"] == before["weights"]


def test_names_of_dtypes() -> None:
    assert {resolve_dtype(name, "cpu") for name in ("bf16", "bfloat16", "torch.bfloat16", "BF16")} == {
        "bfloat16"
    }
    assert {resolve_dtype(name, "cpu") for name in ("fp32", "float", "float32")} == {"float32"}
    for name in ("float16", "fp16", "half"):
        with pytest.raises(UserError, match=r"backend\.dtype=.*overflows"):
            resolve_dtype(name, "cpu", "backend.dtype")
    with pytest.raises(UserError, match="int8 is not known"):
        resolve_dtype("int8", "cpu")


@pytest.mark.parametrize("layers, expected", [(1, "full"), (2, "top:1"), (4, "top:3"), (5, "top:4")])
def test_the_default_split_fits_small_models(tmp_path, layers, expected) -> None:
    folder = save_model(tmp_path / "model", num_hidden_layers=layers)
    assert default_trainable(_spec(folder, "auto")) == expected


def test_a_name_that_is_nowhere_costs_no_retries(monkeypatch) -> None:
    """With the hub out of reach: a closed port answers at once, where transformers would ask again and again."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"no such directory, and the hub at http://127.0.0.1:9 cannot be reached"
    ):
        read_config("model.name", "models/missing")
