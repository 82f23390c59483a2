"""Checkpoints of many types: loaded as transformers loads them, and refused if a weight would not be theirs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from loaded_types import TYPES, VOCABULARY, config_of, random_lm, save_lm
from model_folders import edit_config, edit_weights
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3Config,
    LlamaConfig,
    MixtralConfig,
    T5GemmaConfig,
)

from rlaif.errors import UserError
from rlaif.models.files import embedded
from rlaif.models.files.checkpoint import check_weights, load_causal_lm
from rlaif.models.files.headers import stored_weights
from rlaif.models.files.source import read_config
from rlaif.models.sizes import NO_LIMIT, ModelSizes

IDS = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))


def _load(folder: Path):
    return load_causal_lm(
        "model.name", str(folder), AutoConfig.from_pretrained(folder), stored_weights("k", folder)
    )


def _check(folder: Path) -> bool:
    return check_weights(
        "model.name", str(folder), AutoConfig.from_pretrained(folder), stored_weights("k", folder)
    )


def _logits(lm):
    with torch.no_grad():
        return lm(input_ids=IDS, use_cache=False).logits


def _same(lm, folder: Path) -> bool:
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return torch.equal(_logits(lm), _logits(theirs))


@pytest.fixture(scope="module", params=TYPES)
def saved(request, tmp_path_factory):
    """(type, folder, model)."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, save_lm(folder, request.param)


@pytest.fixture
def copy(saved, tmp_path):
    kind, folder, _ = saved
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return kind, tmp_path


def test_loads_as_transformers_does(saved) -> None:
    _, folder, lm = saved
    assert _check(folder)
    loaded = _load(folder)
    assert _same(loaded, folder)
    torch.testing.assert_close(_logits(loaded), _logits(lm), rtol=0, atol=1e-5)
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}


def test_shards_and_bf16_files_load_as_transformers_does(saved, tmp_path) -> None:
    _, _, lm = saved
    lm.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert _same(_load(tmp_path / "shards"), tmp_path / "shards")
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "shards", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    assert torch.bfloat16 in {
        value.dtype for value in load_file(tmp_path / "half" / "model.safetensors").values()
    }
    loaded = _load(tmp_path / "half")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32} and _same(
        loaded, tmp_path / "half"
    )


def test_any_weight_that_is_removed_is_missed_before_weights_are_read(saved) -> None:
    _, folder, _ = saved
    config, stored = AutoConfig.from_pretrained(folder), stored_weights("k", folder)
    for name in stored:
        left = {other: place for other, place in stored.items() if other != name}
        with pytest.raises(UserError, match=r"model\.name=.*(lacks|shape)"):
            check_weights("model.name", "m", config, left)


def test_a_layer_too_many_is_refused(copy) -> None:
    kind, folder = copy
    edit_weights(
        folder, lambda ws: ws | {re.sub(r"\.1\.", ".2.", n, count=1): w.clone() for n, w in ws.items()}
    )
    with pytest.raises(UserError, match="unused"):
        _check(folder)


def test_another_shape_is_refused(copy) -> None:
    _, folder = copy
    largest = max(load_file(folder / "model.safetensors").items(), key=lambda item: item[1].numel())[0]
    edit_weights(folder, lambda ws: ws | {largest: ws[largest][:-1].clone()})
    with pytest.raises(UserError, match="shape"):
        _check(folder)


def test_values_that_are_not_finite_are_named(copy) -> None:
    _, folder = copy
    name = sorted(load_file(folder / "model.safetensors"))[-1]

    def spoil(weights):
        weights[name].view(-1)[-1] = float("nan")
        return weights

    edit_weights(folder, spoil)
    assert _check(folder), "headers do not show values"
    with pytest.raises(UserError, match=rf"{re.escape(name)} holds values that are not finite"):
        _load(folder)


def test_names_of_wrappers_and_of_a_backbone_alone_change_nothing(copy) -> None:
    _, folder = copy
    expected = _logits(_load(folder))
    prefix = f"{_load(folder).base_model_prefix}."
    for renamed in ("module.{}", prefix + "{}"):
        edit_weights(folder, lambda ws, r=renamed: {r.format(n): w for n, w in ws.items()})
        assert torch.equal(_logits(_load(folder)), expected)
        edit_weights(folder, lambda ws, r=renamed: {n.removeprefix(r.format("")): w for n, w in ws.items()})
    edit_weights(folder, lambda ws: {n.removeprefix(prefix): w for n, w in ws.items()})
    assert torch.equal(_logits(_load(folder)), expected)


def test_a_loaded_model_does_not_hang_on_its_file(tmp_path) -> None:
    """An export may overwrite the file that a model was loaded from, which reading maps into memory."""
    save_lm(tmp_path, "llama")
    lm, file = _load(tmp_path), tmp_path / "model.safetensors"
    before = _logits(lm)
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(b"\0" * (file.stat().st_size // 2))
    assert torch.equal(_logits(lm), before)


def test_an_expert_between_others_is_missed_even_if_their_number_is_right(tmp_path) -> None:
    """Mutation of a checkpoint that transformers itself loads without a word, with experts in wrong places."""
    save_lm(tmp_path, "qwen3_moe")
    edit_weights(tmp_path, lambda ws: {n.replace("experts.1.", "experts.4."): w for n, w in ws.items()})
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    with pytest.raises(UserError, match=r"lacks model\.layers\.0\.mlp\.experts\.1\.down_proj\.weight"):
        _check(tmp_path)


def test_a_tied_head_that_differs_is_refused(tmp_path) -> None:
    for kind in ("gpt2", "gemma3_text", "opt"):
        folder = tmp_path / kind
        lm = save_lm(folder, kind, tie_word_embeddings=True)
        table = lm.get_input_embeddings().weight.detach()
        edit_weights(folder, lambda ws, t=table: ws | {"lm_head.weight": t.clone()})
        assert torch.equal(_logits(_load(folder)), _logits(lm))
        edit_weights(folder, lambda ws, t=table: ws | {"lm_head.weight": t + 1})
        with pytest.raises(UserError, match=r"lm_head\.weight differs from .*tie_word_embeddings"):
            _load(folder)


def test_a_model_with_pictures_loads_whole(tmp_path) -> None:
    config = Gemma3Config(
        text_config=config_of("gemma3_text").to_dict(),
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
        },
        mm_tokens_per_image=4,
    )
    random_lm(config).save_pretrained(tmp_path)
    assert _check(tmp_path) and _same(_load(tmp_path), tmp_path)
    assert ModelSizes.of(config).num_layers == 2 and ModelSizes.of(config).vocab_size == VOCABULARY


# Sizes.


def _flops(lm, length: int) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        lm(input_ids=IDS[:1, :length], use_cache=False)
    return counter.get_total_flops()


def test_sizes_are_what_a_token_is_multiplied_by(saved) -> None:
    """Twice the weights are the operations of one token, whose attention to itself is a few more."""
    kind, folder, lm = saved
    sizes = ModelSizes.of(AutoConfig.from_pretrained(folder))
    assert sizes.total_weights == sum(weight.numel() for weight in lm.parameters())
    assert sizes.vocab_size == VOCABULARY == _logits(lm).shape[-1]
    assert (sizes.num_layers, sizes.hidden_size) == (2, 32)
    assert (
        sizes.head_size == (16 if kind == "opt" else 32)
        and sizes.head_weights == VOCABULARY * sizes.head_size
    )
    assert sizes.tied == (lm.get_output_embeddings().weight is lm.get_input_embeddings().weight)
    assert sizes.max_positions == 64
    one = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager")
    found = _flops(one, 1) / 2
    expected = sizes.num_layers * sizes.layer_weights + sizes.head_weights
    assert found == pytest.approx(expected, rel=0.12), "norms, biases, projections and attention are the rest"


def test_sizes_of_published_models_need_no_weights() -> None:
    """Llama 2 7B, and Mixtral 8x7B with its 46.7 billion weights, of which a token uses 12.9."""
    llama = ModelSizes.of(LlamaConfig())
    assert (llama.total_weights, llama.head_weights) == (6_738_415_616, 32_000 * 4096)
    mixtral = ModelSizes.of(MixtralConfig())
    assert mixtral.total_weights == 46_702_792_704
    idle = (8 - 2) * 3 * 4096 * 14336
    used = 32 * mixtral.layer_weights + 2 * mixtral.head_weights
    assert used == pytest.approx(mixtral.total_weights - 32 * idle, rel=1e-6)


def _positions(kind: str, **settings) -> int:
    return ModelSizes.of(config_of(kind, **settings)).max_positions


def test_positions_end_where_a_row_would_depend_on_its_batch() -> None:
    """Seen in the model: beside a longer row, a row's logits move only beyond the limit."""
    long = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    pretrained = {"original_max_position_embeddings": 16}
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    by_layer = {
        "full_attention": long | pretrained,
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    for kind, rope, limit, extra in (
        ("phi3", long, 16, pretrained),
        ("llama", long | pretrained, 16, {}),
        ("llama", dynamic, 64, {}),
        ("gemma3_text", by_layer, 16, {}),
    ):
        config = config_of(kind, rope_parameters=rope, **extra)
        assert ModelSizes.of(config).max_positions == limit
        lm = random_lm(config)
        ids = torch.randint(3, VOCABULARY, (1, limit + 1), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            alone, within, beyond = (
                lm(ids[:, :n], use_cache=False).logits[0, :8] for n in (8, limit, limit + 1)
            )
        torch.testing.assert_close(within, alone, rtol=0, atol=1e-5)
        assert (beyond - alone).abs().max() > 1e-4
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    assert _positions("llama", rope_parameters=yarn) == 64


def test_models_without_positions_have_no_limit() -> None:
    assert (
        ModelSizes.of(BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=9)).max_positions
        == NO_LIMIT
    )


def test_a_type_that_is_no_causal_language_model_is_refused() -> None:
    with pytest.raises(UserError, match="'t5gemma' has no causal language model"):
        ModelSizes.of(T5GemmaConfig())


def test_the_embedded_models_sizes_are_those_of_its_file(request) -> None:
    folder = embedded.convert_embedded(request.config.cache.mkdir("embedded-model"))
    assert ModelSizes.of(AutoConfig.from_pretrained(folder)) == embedded.SIZES


_OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_kind"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + 1
        return out
"""


def test_code_that_comes_with_a_model_runs_if_it_is_trusted(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    lm = save_lm(tmp_path, "llama")
    (tmp_path / "own.py").write_text(_OWN_CODE)
    mapped = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    edit_config(tmp_path, model_type="own_kind", auto_map=mapped)
    with pytest.raises(UserError, match=r"model\.name="):
        read_config("model.name", str(tmp_path), trust_remote_code=False)
    config = read_config("model.name", str(tmp_path), trust_remote_code=True)
    stored = stored_weights("k", tmp_path)
    assert check_weights("k", "m", config, stored) and ModelSizes.of(config).num_layers == 2
    torch.testing.assert_close(
        _logits(load_causal_lm("k", "m", config, stored)), _logits(lm) + 1, rtol=0, atol=1e-5
    )
    last = next(n for n in stored if ".1." in n)
    with pytest.raises(UserError, match=rf"lacks {re.escape(last)}"):
        check_weights("k", "m", config, {n: s for n, s in stored.items() if n != last})
