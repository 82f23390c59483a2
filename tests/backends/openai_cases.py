"""Backends over a server of the tests, with waits short enough for them."""

from __future__ import annotations

from typing import Any

from local_server import MODEL

from rlaif.backends.openai.backend import ChatTemplate, OpenAIBackend, OpenAIOptions
from rlaif.backends.openai.http import HttpOptions

TEMPLATE = ChatTemplate(lambda user: f"<user>{user}</user><model>", "toy")
HTTP = {
    "api_key_env": None,
    "timeout_s": 0.3,
    "connect_timeout_s": 2.0,
    "max_concurrency": 4,
    "requests_per_minute": None,
    "tokens_per_minute": None,
    "max_retries": 3,
    "backoff_s": 0.01,
    "max_wait_s": 2.0,
}


def http_options(base_url: str, **changes: Any) -> HttpOptions:
    return HttpOptions(base_url=base_url, **(HTTP | changes))


def backend(
    base_url: str,
    *,
    api: Any = "completions",
    model: str = MODEL,
    top: int = 20,
    samples: int = 0,
    template: ChatTemplate | None = TEMPLATE,
    **changes: Any,
) -> OpenAIBackend:
    options = OpenAIOptions(
        model=model,
        revision=None,
        api=api,
        top_logprobs=top,
        choice_samples=samples,
        http=http_options(base_url, **changes),
    )
    return OpenAIBackend(options, template)
