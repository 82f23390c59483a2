"""A labeler's engine as configuration: its server, and what its tokens cost."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rlaif.backends.openai.backend import ChatTemplate, OpenAIBackend, OpenAIOptions
from rlaif.backends.openai.http import HttpOptions
from rlaif.errors import UserError
from rlaif.labelers import FREE, Estimate, Meter, Price
from rlaif.models.checkpoint import expanded, require_source
from rlaif.models.load import ModelSpec, load_tokenizer
from rlaif.options.labeling import BackendOptions, LabelerNode

ENGINES_HERE = ("transformers", "scripted")
_SNAPSHOT = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8})$")


def priced_as(engine: str, backend: BackendOptions) -> str:
    """The name that the price list has a labeler under: a server's model, or the engine of this process."""
    return engine if engine in ENGINES_HERE else backend.name


def price_of(prices: Mapping[str, Any], engine: str, backend: BackendOptions) -> Price | None:
    """The price of a labeler's tokens; None where it is not known.

    A listed model costs its price wherever it is served: a proxy on this machine passes the bill on, under the
    model's name or a provider's prefix (openai/NAME) or dated snapshot of it (NAME-2024-07-18). Unlisted engines
    of this process and servers on this machine are free. Raises UserError for an entry that is no price.
    """
    table = prices["usd_per_million"]
    for name in _forms(priced_as(engine, backend)):
        if table.get(name) is not None:
            return Price.from_mapping(table[name], place=f"prices.usd_per_million.{name}")
    here = engine in ENGINES_HERE or _on_this_machine(urlsplit(backend.base_url).hostname)
    return FREE if here else None


def _forms(name: str) -> list[str]:
    """A model's name as it stands, without the provider's prefix, and without the date of a snapshot."""
    last = name.rsplit("/", 1)[-1]
    return list(dict.fromkeys([name, _SNAPSHOT.sub("", name), last, _SNAPSHOT.sub("", last)]))


def _on_this_machine(host: str | None) -> bool:
    if host is None or host == "localhost" or host.endswith(".localhost"):
        return host is not None
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def meter_of(key: str, node: LabelerNode, price: Price | None, name: str) -> Meter:
    """The meter of the labeler composed at `key`. Raises UserError for a budget that cannot be kept."""
    if node.budget_usd is not None and price is None:
        raise UserError(
            f"{key}.budget_usd={node.budget_usd} cannot be kept, since the price of {name} is not known:"
            " write it into conf/prices/default.yaml, or use max_seconds instead"
        )
    return Meter(
        name=key,
        price=price,
        budget_usd=node.budget_usd,
        max_seconds=node.max_seconds,
        clock=time.monotonic,
    )


def seconds_elsewhere(engine: str, backend: BackendOptions, guess: Estimate) -> float | None:
    """Seconds of labeling that are not this machine's matrix work; None where they are."""
    if engine == "transformers":
        return None
    return 0.0 if engine == "scripted" else guess.calls * backend.seconds_per_call / backend.concurrency


def usd_of(price: Price, counters: Mapping[str, float]) -> float:
    """US dollars of the calls that `counters` of a LabelResult were asked for; reused answers are not in them."""
    return price.usd(*(counters[name] for name in ("tokens_in", "tokens_out", "tokens_cached")))


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


def openai_backend(node: BackendOptions, cache_dir: Path) -> OpenAIBackend:
    """The backend of `backend=openai`; nothing is sent yet. Raises UserError for settings that cannot work."""
    http = HttpOptions(**{key: getattr(node, key) for key in _HTTP_KEYS}, max_concurrency=node.concurrency)
    options = OpenAIOptions(
        model=node.name,
        revision=node.revision,
        api=node.api,
        top_logprobs=node.top_logprobs,
        choice_samples=node.choice_samples,
        http=http,
    )
    return OpenAIBackend(options, None if options.api == "chat" else _template(node.tokenizer, cache_dir))


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
