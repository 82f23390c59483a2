"""The engines of labelers and judges: how each is created, and what its tokens and seconds cost.

A new backend is a module in rlaif/backends/, an entry of `ENGINES`, and conf/backend/NAME.yaml.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rlaif.backends.base import Backend, Comparing
from rlaif.backends.encoder import EncoderBackend
from rlaif.backends.openai.backend import ChatTemplate, OpenAIBackend, OpenAIOptions
from rlaif.backends.openai.http import HttpOptions
from rlaif.backends.scripted import ScriptedBackend
from rlaif.backends.transformers import TransformersBackend
from rlaif.errors import UserError
from rlaif.labelers import FREE, Estimate, Meter, Price
from rlaif.models.files.source import expanded, require_source
from rlaif.models.kernels.devices import resolve_device
from rlaif.models.load import ModelSpec, describe_model, load_tokenizer
from rlaif.options.labeling import BackendOptions, LabelingOptions
from rlaif.options.read import plain

if TYPE_CHECKING:
    from rlaif.stages.common.context import Context

ENCODER_TOKENS_PER_S = 3000.0  # of the embedded sentence encoder on two CPU cores: a small part of any job
_SNAPSHOT = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8})$")


def priced_as(engine: str, backend: BackendOptions) -> str:
    """A labeler's name in the price list: a server's model, or the engine of this process."""
    return engine if ENGINES[engine].here else backend.name


def price_of(prices: Mapping[str, Any], engine: str, backend: BackendOptions) -> Price | None:
    """The price of a labeler's tokens; None if unknown.

    A listed model costs its price wherever it is served, since a proxy on this machine passes the bill on: under the
    model's name, with a provider's prefix (openai/NAME), or as a dated snapshot (NAME-2024-07-18). Unlisted engines
    of this process and servers on this machine are free. Raises UserError for an entry that is not a price.
    """
    table = prices["usd_per_million"]
    for name in _forms(priced_as(engine, backend)):
        if table.get(name) is not None:
            return Price.from_mapping(table[name], place=f"prices.usd_per_million.{name}")
    here = ENGINES[engine].here or _on_this_machine(urlsplit(str(backend.base_url)).hostname)
    return FREE if here else None


def _forms(name: str) -> list[str]:
    """A model's name as given, without the provider's prefix, and without the date of a snapshot."""
    last = name.rsplit("/", 1)[-1]
    return list(dict.fromkeys([name, _SNAPSHOT.sub("", name), last, _SNAPSHOT.sub("", last)]))


def _on_this_machine(host: str | None) -> bool:
    name = host or ""
    try:
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def meter_of(key: str, own: LabelingOptions, price: Price | None, name: str) -> Meter:
    """The meter of the labeler composed at `key`. Raises UserError for a budget that cannot be enforced."""
    if own.budget_usd is not None and price is None:
        raise UserError(
            f"{key}.budget_usd={own.budget_usd} cannot be kept, since the price of {name} is not known:"
            " write it into conf/prices/default.yaml, or use max_seconds instead"
        )
    return Meter(
        name=key, price=price, budget_usd=own.budget_usd, max_seconds=own.max_seconds, clock=time.monotonic
    )


def free_meter(name: str) -> Meter:
    """The meter of a policy that answers for itself, which nobody pays and no bound of the labeler holds for."""
    return Meter(name=name, price=FREE, budget_usd=None, max_seconds=None, clock=time.monotonic)


def seconds_elsewhere(engine: str, backend: BackendOptions, guess: Estimate) -> float | None:
    """Seconds of labeling that are not this machine's matrix work; None if they are."""
    return ENGINES[engine].seconds(backend, guess)


def _template(name: str, cache_dir: Path) -> ChatTemplate:
    source = "embedded" if name == "embedded" else "hub"
    key, path = "backend.tokenizer", expanded(name)
    spec = ModelSpec(source, path, None, "full", "float32", "cpu", trust_remote_code=False, key=key)
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
    """One backend for labeler and judge, so that it is probed once and its rate limits hold for both.

    Nothing is sent yet. Raises UserError for settings that cannot work.
    """
    own = ctx.options.backend
    if own not in ctx.servers:
        same = {field.name for field in fields(HttpOptions)} - {"max_concurrency"}
        http = HttpOptions(**{key: getattr(own, key) for key in same}, max_concurrency=own.concurrency)
        options = OpenAIOptions(own.name, own.revision, own.api, own.top_logprobs, own.choice_samples, http)
        template = None if own.api == "chat" else _template(own.tokenizer, ctx.cache_dir)
        ctx.servers[own] = OpenAIBackend(options, template)
    return ctx.servers[own]


def _scripted(ctx: Context, labeler: LabelingOptions, chat: bool) -> Backend:
    return ScriptedBackend(**plain(labeler.scripted))


def _encoder(ctx: Context, labeler: LabelingOptions, chat: bool) -> Comparing:
    return EncoderBackend(**plain(labeler.encoder), device=resolve_device(ctx.options.trainer.accelerator))


@dataclass(frozen=True)
class Engine:
    """How a backend is made from (job, options of `labeler` or `judge`, whether prompts are chats), and its cost.

    `here`: runs in this process, so it is priced by the engine's name, not `backend.name`, and free by default.
    `seconds` of calls are None if they are this machine's matrix work. `alone`: a rule, or a model of its own, which
    any labeler may use whatever `backend=` is. `needs`: the keys of `backend` that it reads. `hints`: settings to try
    if answers cannot be read.
    """

    make: Callable[[Context, LabelingOptions, bool], Backend | Comparing]
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
    "encoder": Engine(
        _encoder, here=True, alone=True, seconds=lambda own, guess: guess.tokens_in / ENCODER_TOKENS_PER_S
    ),
}
"""By `backend.engine`, or by `labeler.backend` for those that stand alone."""


def engine_of(wanted: str, have: str) -> Engine:
    """The engine for `labeler.backend=wanted` if `backend=` sets up `have`. Raises UserError if there is none."""
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
