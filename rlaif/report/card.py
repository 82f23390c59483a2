"""The README.md of an exported model: what it is, what was measured, and code that loads and uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jinja2

from rlaif.figures.rows import table_rows
from rlaif.tracking.glossary import table
from rlaif.tracking.runs import Scalar


@dataclass(frozen=True)
class TextFormat:
    """How text becomes tokens, for the code in the card (as in `rlaif.data.encode.Encoder`)."""

    chat: bool
    prefix: str
    suffix: str
    separator: str
    eos_id: int
    max_prompt_tokens: int
    max_response_tokens: int


@dataclass(frozen=True)
class ModelCard:
    """The contents of a card. `stage` is the one that made the model, `members` the size of a reward ensemble.

    `labels` and `labeler` are None if no labels were used; `algorithm` and `reward` say, in words, how RL trained a
    policy and what it maximised; `metrics` are those of the model's artifact and its ancestors: the card leaves out
    those that are missing.
    """

    stage: Literal["sft", "rm", "rl"]
    artifact: str
    base: str
    hub_id: str | None
    trainable: str
    task: str
    labels: str | None
    labeler: str | None
    algorithm: str | None
    reward: str | None
    members: int
    adapter_of: str | None  # hub id or folder of the model that an adapter goes on; None for a whole model
    text: TextFormat
    metrics: Mapping[str, Scalar]


def model_card(card: ModelCard) -> str:
    """The card as Markdown, with the YAML front matter that model hubs read."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["literal"] = repr  # a Python literal in the card's code
    facts = table_rows(table("card", card.stage), card.metrics, {})
    return environment.get_template("model_card.md.j2").render(card=card, text=card.text, facts=facts)
