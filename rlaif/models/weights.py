"""Trained weights on disk: a top (and its scalar head) as safetensors, and whole models for users elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from rlaif.models.load import LanguageModel
from rlaif.models.split import ScalarHead, Top

TOP_FILE = "top.safetensors"


def save_modules(path: Path, modules: dict[str, nn.Module]) -> None:
    """Save the modules' weights as fp32 safetensors, names prefixed by the module's key."""
    tensors = {
        f"{key}.{name}": value.detach().float().cpu().contiguous()
        for key, module in modules.items()
        for name, value in module.state_dict().items()
    }
    save_file(tensors, path)


def load_modules(path: Path, modules: dict[str, nn.Module]) -> None:
    """Load what `save_modules` wrote; every name must be there."""
    tensors = load_file(path)
    for key, module in modules.items():
        module.load_state_dict(
            {k.removeprefix(f"{key}."): v for k, v in tensors.items() if k.startswith(f"{key}.")}
        )


def load_top(model: LanguageModel, directory: Path | None) -> Top:
    """The policy top stored in `directory`, or the base model's own top."""
    top = model.trunk.new_top()
    if directory is not None:
        load_modules(directory / TOP_FILE, {"top": top})
    return top.to(model.device)


def load_reward(model: LanguageModel, directory: Path) -> tuple[Top, ScalarHead]:
    """The reward model's top and score head stored in `directory`."""
    top, head = model.trunk.new_top(), ScalarHead(model.trunk.config.hidden_size)
    load_modules(directory / TOP_FILE, {"top": top, "score": head})
    return top.to(model.device), head.to(model.device)


def _write_hf(directory: Path, model: LanguageModel, state: dict[str, Any], config: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().float().cpu().contiguous().clone() for k, v in state.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n", encoding="utf-8")
    model.tokenizer.save_pretrained(directory)


def _config(model: LanguageModel) -> dict[str, Any]:
    config = model.trunk.hf_config.to_dict()
    config.update(dtype="float32", pad_token_id=model.pad_id, eos_token_id=model.eos_id)
    return config


def export_policy(directory: Path, model: LanguageModel, top: Top) -> None:
    """Write the whole policy so that `AutoModelForCausalLM.from_pretrained(directory)` loads it."""
    config = _config(model)
    architecture = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
    config["architectures"] = [architecture[config["model_type"]]]
    _write_hf(directory, model, top.to_hf(), config)
    generation = {"eos_token_id": model.eos_id, "pad_token_id": model.pad_id}
    (directory / "generation_config.json").write_text(
        json.dumps(generation, indent=2) + "\n", encoding="utf-8"
    )


def export_reward(directory: Path, model: LanguageModel, top: Top, head: ScalarHead) -> None:
    """Write the whole reward model so that `AutoModelForSequenceClassification` (num_labels=1) scores the same.

    transformers pools the last token that is not a pad; our responses end in EOS, which is no pad here.
    """
    config = _config(model)
    architecture = {
        "llama": "LlamaForSequenceClassification",
        "mistral": "MistralForSequenceClassification",
        "qwen2": "Qwen2ForSequenceClassification",
    }
    config.update(
        architectures=[architecture[config["model_type"]]],
        num_labels=1,
        id2label={"0": "LABEL_0"},
        label2id={"LABEL_0": 0},
    )
    state = {k: v for k, v in top.to_hf().items() if k != "lm_head.weight"}
    _write_hf(directory, model, {**state, "score.weight": head.weight}, config)
