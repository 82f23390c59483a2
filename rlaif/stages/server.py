"""The labeler's server, from the settings of backend=openai."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.backends.http import HttpOptions
from rlaif.backends.openai import ChatTemplate, OpenAIBackend, OpenAIOptions
from rlaif.errors import UserError
from rlaif.models.checkpoint import expanded, require_source
from rlaif.models.load import ModelSpec, load_tokenizer

_HTTP_KEYS = (
    "base_url",
    "api_key_env",
    "timeout_s",
    "connect_timeout_s",
    "requests_per_minute",
    "tokens_per_minute",
    "max_retries",
    "backoff_s",
    "max_wait_s",
)


def openai_backend(node: Mapping[str, Any], cache_dir: Path) -> OpenAIBackend:
    """The backend of `backend=openai`; nothing is sent yet. Raises UserError for settings that cannot work."""
    http = HttpOptions(**{key: node[key] for key in _HTTP_KEYS}, max_concurrency=node["concurrency"])
    options = OpenAIOptions(
        model=str(node["name"]),
        revision=node["revision"],
        api=node["api"],
        top_logprobs=node["top_logprobs"],
        choice_samples=node["choice_samples"],
        http=http,
    )
    return OpenAIBackend(
        options, None if options.api == "chat" else _template(str(node["tokenizer"]), cache_dir)
    )


def _template(name: str, cache_dir: Path) -> ChatTemplate:
    source = "embedded" if name == "embedded" else "hub"
    spec = ModelSpec(
        source,
        expanded(name),
        None,
        "full",
        "float32",
        "cpu",
        trust_remote_code=False,
        key="backend.tokenizer",
    )
    instead = "write the hub id or the folder of the served model, or backend.api=chat"
    try:
        if source == "hub":
            require_source(spec.key, spec.name)
        tokenizer = load_tokenizer(spec, cache_dir)
    except UserError as error:
        raise UserError(f"{error}; {instead}") from None
    if tokenizer.chat_template is None:
        raise UserError(f"backend.tokenizer={name} has no chat template: {instead}")
    return ChatTemplate.of(tokenizer)
