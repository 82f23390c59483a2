"""What the labeler's tokens cost: the price list of conf/prices, and what a plan and a summary say of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from rlaif.errors import UserError
from rlaif.labelers import FREE, Estimate, Meter, Price

ENGINES_HERE = ("transformers", "scripted")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def priced_as(engine: str, backend: Mapping[str, Any]) -> str:
    """The name that the price list has a labeler under: a server's model, or the engine of this process."""
    return engine if engine in ENGINES_HERE else str(backend["name"])


def price_of(prices: Mapping[str, Any], engine: str, backend: Mapping[str, Any]) -> Price | None:
    """The price of a labeler's tokens; None where it is not known.

    Unlisted engines of this process and servers on this machine are free. Raises UserError for an entry
    that is no price.
    """
    name = priced_as(engine, backend)
    listed = prices["usd_per_million"].get(name)
    if listed is not None:
        return Price.from_mapping(listed, place=f"prices.usd_per_million.{name}")
    here = engine in ENGINES_HERE or urlsplit(str(backend["base_url"])).hostname in _LOOPBACK
    return FREE if here else None


def meter_of(key: str, node: Mapping[str, Any], price: Price | None, name: str) -> Meter:
    """The meter of the labeler composed at `key`. Raises UserError for a budget that cannot be kept."""
    if node["budget_usd"] is not None and price is None:
        raise UserError(
            f"{key}.budget_usd={node['budget_usd']} cannot be kept, since the price of {name} is not known:"
            " write it into conf/prices/default.yaml, or use max_seconds instead"
        )
    return Meter(
        name=key,
        price=price,
        budget_usd=node["budget_usd"],
        max_seconds=node["max_seconds"],
        clock=time.monotonic,
    )


def seconds_elsewhere(engine: str, backend: Mapping[str, Any], guess: Estimate) -> float | None:
    """Seconds of labeling that are not this machine's matrix work; None where they are."""
    if engine == "transformers":
        return None
    return 0.0 if engine == "scripted" else guess.calls * backend["seconds_per_call"] / backend["concurrency"]


def usd_of(price: Price, counters: Mapping[str, float]) -> float:
    """US dollars of the calls that `counters` of a LabelResult were asked for; reused answers are not in them."""
    return price.usd(*(counters[name] for name in ("tokens_in", "tokens_out", "tokens_cached")))
