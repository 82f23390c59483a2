"""The engines of labelers and judges: how each is made, and what its tokens and seconds cost.

A new backend is a module in rlaif/backends/, an entry of `ENGINES`, and conf/backend/NAME.yaml.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rlaif.backends.base import Backend
from rlaif.backends.openai.backend import ChatTemplate, OpenAIBackend, OpenAIOptions
from rlaif.backends.openai.http import HttpOptions
from rlaif.backends.scripted import ScriptedBackend
from rlaif.backends.transformers import TransformersBackend
from rlaif.errors import UserError
from rlaif.labelers import FREE, Estimate, Meter, Price
from rlaif.models.checkpoint import expanded, require_source
from rlaif.models.load import ModelSpec, describe_model, load_tokenizer
from rlaif.options.labeling import BackendOptions, LabelingOptions
from rlaif.options.read import plain

if TYPE_CHECKING:
    from rlaif.stages.common.context import Context

_SNAPSHOT = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8})$")


def priced_as(engine: str, backend: BackendOptions) -> str:
    """The name that the price list has a labeler under: a server's model, or the engine of this process."""
    return engine if ENGINES[engine].here else backend.name


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
    here = ENGINES[engine].here or _on_this_machine(urlsplit(str(backend.base_url)).hostname)
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


def meter_of(key: str, own: LabelingOptions, price: Price | None, name: str) -> Meter:
    """The meter of the labeler composed at `key`. Raises UserError for a budget that cannot be kept."""
    if own.budget_usd is not None and price is None:
        raise UserError(
            f"{key}.budget_usd={own.budget_usd} cannot be kept, since the price of {name} is not known:"
            " write it into conf/prices/default.yaml, or use max_seconds instead"
        )
    return Meter(
        name=key,
        price=price,
        budget_usd=own.budget_usd,
        max_seconds=own.max_seconds,
        clock=time.monotonic,
    )


def seconds_elsewhere(engine: str, backend: BackendOptions, guess: Estimate) -> float | None:
    """Seconds of labeling that are not this machine's matrix work; None where they are."""
    return ENGINES[engine].seconds(backend, guess)


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


def openai_backend(own: BackendOptions, cache_dir: Path) -> OpenAIBackend:
    """The backend of `backend=openai`; nothing is sent yet. Raises UserError for settings that cannot work."""
    http = HttpOptions(**{key: getattr(own, key) for key in _HTTP_KEYS}, max_concurrency=own.concurrency)
    options = OpenAIOptions(
        model=own.name,
        revision=own.revision,
        api=own.api,
        top_logprobs=own.top_logprobs,
        choice_samples=own.choice_samples,
        http=http,
    )
    return OpenAIBackend(options, None if options.api == "chat" else _template(own.tokenizer, cache_dir))


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


def _transformers(ctx: Context, labeler: LabelingOptions, chat: bool) -> Backend:
    spec = ctx.labeler_spec
    ctx.check_once(spec, chat=chat)
    identity = {**describe_model(spec, ctx.cache_dir), "dtype": spec.dtype}
    return TransformersBackend(identity, lambda: ctx.load(spec), max_rows=ctx.options.backend.max_rows)


def _openai(ctx: Context, labeler: LabelingOptions, chat: bool) -> Backend:
    """One for labeler and judge, so that it is probed once and its rate limits hold for both."""
    backend = ctx.options.backend
    if backend not in ctx.servers:
        ctx.servers[backend] = openai_backend(backend, ctx.cache_dir)
    return ctx.servers[backend]


def _scripted(ctx: Context, labeler: LabelingOptions, chat: bool) -> Backend:
    return ScriptedBackend(**plain(labeler.scripted))


@dataclass(frozen=True)
class Engine:
    """How a backend is made of (job, the own `labeler` or `judge`, whether prompts are chats), and what it costs.

    `here`: in this process, so that it is free and priced by its own name; else by `backend.name`. `seconds` of calls,
    by the own `backend`, are None where they are this machine's matrix work. `alone`: a rule without a model, which
    any labeler may take whatever `backend=` is. `needs`: the keys of `backend` that it reads. `hints`: what else to
    write where answers cannot be read.
    """

    make: Callable[[Context, LabelingOptions, bool], Backend]
    here: bool = False
    seconds: Callable[[BackendOptions, Estimate], float | None] = lambda backend, guess: 0.0
    alone: bool = False
    needs: tuple[str, ...] = ()
    hints: Callable[[BackendOptions], list[str]] = lambda backend: []


ENGINES: dict[str, Engine] = {
    "transformers": Engine(
        _transformers, here=True, seconds=lambda backend, guess: None, needs=("source", "max_rows")
    ),
    "openai": Engine(
        _openai,
        needs=("base_url", "tokenizer"),
        seconds=lambda own, guess: guess.calls * own.seconds_per_call / own.concurrency,
        hints=lambda own: [f"backend.api={'completions' if own.api == 'chat' else 'chat'}"],
    ),
    "scripted": Engine(_scripted, here=True, alone=True),
}
"""By `backend.engine`, or `labeler.backend` for those that stand alone."""


def engine_of(wanted: str, have: str) -> Engine:
    """The engine of `labeler.backend=wanted` where `backend=` sets up `have`. UserError for one that cannot be."""
    alone = [name for name, engine in ENGINES.items() if engine.alone]
    groups = " or ".join(f"backend={name}" for name in ENGINES if name not in alone)
    if have not in ENGINES:
        raise UserError(f"backend.engine={have} is not known: write {groups}")
    if wanted != have and wanted not in alone:
        raise UserError(
            f"labeler.backend={wanted} is not what backend={have} sets up: write {' or '.join(alone)}, or leave it out"
            f" and write {groups}"
        )
    return ENGINES[wanted]
