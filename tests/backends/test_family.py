"""Families of models by their names, as providers, hubs, routers and folders write them."""

from __future__ import annotations

import pytest

from rlaif.backends.family import family, model_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-4o-2024-08-06", "gpt"),
        ("openai/gpt-4o", "gpt"),
        ("ft:gpt-4o-mini-2024-07-18:acme::abc", "gpt"),
        ("chatgpt-4o-latest", "gpt"),
        ("o3-mini", "gpt"),
        ("claude-3-5-sonnet-20241022", "claude"),
        ("us.anthropic.claude-3-haiku-20240307-v1:0", "claude"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama"),
        ("meta-llama/Meta-Llama-3-8B", "llama"),
        ("Qwen/Qwen2.5-7B", "qwen"),
        ("/models/Qwen2.5-7B-Instruct/", "qwen"),
        ("SmolLM2-135M-Instruct", "smollm"),
        ("HuggingFaceTB/SmolLM2-360M", "smollm"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral"),
        ("mistralai/Mixtral-8x7B-v0.1", "mistral"),
        ("google/gemma-2-9b-it", "gemma"),
        ("gemini-1.5-pro", "gemini"),
        ("a-lab/Brandnew-1B", "brandnew"),
        ("7b-unnamed", "7b-unnamed"),
    ],
)
@pytest.mark.parametrize("engine", ["openai", "transformers"])
def test_a_models_family_does_not_hang_on_where_it_runs(engine, name, expected) -> None:
    assert family(engine, name) == expected


def test_rules_and_encoders_are_families_of_their_own() -> None:
    assert family("scripted", "longer") == "rule longer" != family("scripted", "overlap")
    assert family("encoder", "embedded") == family("encoder", "ORG/NAME") == "encoder"
    assert family("openai", None) is family("scripted", None) is family("openai", "") is None


def test_a_models_name_has_no_folder() -> None:
    assert model_name("/models/Qwen2.5-7B/") == "qwen2.5-7b" and model_name("gpt-4o") == "gpt-4o"
