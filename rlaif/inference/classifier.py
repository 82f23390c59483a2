"""Reward models trained elsewhere: text in, tokenized their own way; one number out."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlaif.errors import UserError
from rlaif.inference.batches import forward_batches
from rlaif.models.files.identity import describe_pretrained
from rlaif.models.files.source import pinned, read_config, reading
from rlaif.tokens import choose_pad

logger = logging.getLogger(__name__)

KEY = "reward.name"
# Modules in which transformers' models keep learned absolute positions.
_TABLES = re.compile(r"(?:^|\.)(?:position_embeddings|embed_positions|wpe|position_embed)$")


@dataclass(frozen=True)
class ClassifierSpec:
    """Which sequence classifier to use, its compute dtype and its device."""

    name: str
    revision: str | None
    dtype: str  # resolved: bfloat16 | float32
    device: str
    trust_remote_code: bool
    max_tokens: int

    def describe(self, cache_dir: Path) -> dict[str, Any]:
        """What its scores depend on, without loading it. Raises UserError if it does not exist."""
        found = describe_pretrained(
            KEY, self.name, self.revision, cache_dir, trust_remote_code=self.trust_remote_code
        )
        return {**found, "dtype": self.dtype, "max_tokens": self.max_tokens}

    def check(self) -> None:
        """Raises UserError if its configuration is not that of a classifier with one label."""
        config = self._config()
        kinds = config.architectures or []
        if not any(kind.endswith("ForSequenceClassification") for kind in kinds) or config.num_labels != 1:
            raise UserError(
                f"reward.name={self.name} is {', '.join(kinds) or 'a model'} with num_labels={config.num_labels}, but "
                "a reward model is a ...ForSequenceClassification with num_labels=1: name one of those"
            )

    @property
    def origin(self) -> dict[str, Any]:
        """The arguments common to every `from_pretrained`."""
        return {
            "revision": pinned(KEY, self.name, self.revision),
            "trust_remote_code": self.trust_remote_code,
        }

    def _config(self) -> Any:
        return read_config(KEY, self.name, **self.origin)

    def load(self) -> TextClassifier:
        """Raises UserError if it cannot be loaded, or was never trained to score."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging as hf_logging

        hf_logging.disable_progress_bar()
        hf_logging.set_verbosity_error()
        config = self._config()
        text = config.get_text_config()
        if text.pad_token_id is not None and not 0 <= text.pad_token_id < text.vocab_size:
            text.pad_token_id = None  # -1, or outside the vocabulary: no pad at all
        with reading(KEY, self.name):
            tokenizer = AutoTokenizer.from_pretrained(self.name, truncation_side="left", **self.origin)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                self.name,
                config=config,
                dtype=getattr(torch, self.dtype),
                use_safetensors=True,
                output_loading_info=True,
                **self.origin,
            )
        if info["mismatched_keys"]:
            raise UserError(
                f"reward.name={self.name}: {_first(info['mismatched_keys'])} does not have the shape in the checkpoint "
                "that config.json gives it: the two files are from different models"
            )
        if info["missing_keys"]:
            raise UserError(
                f"reward.name={self.name} is not a trained reward model: its checkpoint lacks "
                f"{min(info['missing_keys'])}, which would be random"
            )
        if info["unexpected_keys"]:
            logger.warning(
                "%s=%s: unused weights of the checkpoint: %s", KEY, self.name, _first(info["unexpected_keys"])
            )
        odd = [name for name, value in model.named_parameters() if not value.isfinite().all()]
        if odd:
            raise UserError(
                f"reward.name={self.name}: {odd[0]} holds values that are not finite (NaN or infinity)"
            )
        _agree_on_pad(tokenizer, model, self.name)
        return TextClassifier(model, tokenizer, self._bounded(model, tokenizer))

    def _bounded(self, model: Any, tokenizer: Any) -> ClassifierSpec:
        """This spec with `max_tokens` lowered to what the model and its tokenizer can take."""
        limits = [limit for limit in (_positions(model), tokenizer.model_max_length) if limit]
        most = min([self.max_tokens, *limits])
        if most < self.max_tokens:
            said = "reward.max_tokens=%d is more than reward.name=%s can read: it reads %d"
            logger.warning(said, self.max_tokens, self.name, most)
        return replace(self, max_tokens=most)


class TextClassifier:
    """A transformers sequence classifier with one label, and its tokenizer.

    A row is a tokenized text: `input_ids`, and `token_type_ids` for models with segments.
    """

    def __init__(self, model: Any, tokenizer: Any, spec: ClassifierSpec) -> None:
        self.tokenizer = tokenizer
        self._model, self._spec, self._warned = model.eval().to(spec.device), spec, False
        # `export_reward` stores the shift separately, since heads have no bias.
        self._shift = float(getattr(model.config, "reward_shift", 0.0))

    def as_chat(self, prompt: str, response: str) -> dict[str, list[int]]:
        """The row for a user's message and the assistant's reply. Raises UserError without a chat template."""
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"reward.format=chat, but the tokenizer of reward.name={self._spec.name} has no chat template: "
                "write reward.format=pair for an encoder, or reward.format=policy"
            )
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return self._last({"input_ids": self.tokenizer.apply_chat_template(messages, return_dict=False)})

    def as_pair(self, prompt: str, response: str) -> dict[str, list[int]]:
        """The row for two segments with the tokenizer's special tokens; the longer segment is cut."""
        row = self.tokenizer(prompt, response)
        if len(row["input_ids"]) > self._spec.max_tokens:
            self._warn()
            row = self.tokenizer(
                prompt, response, truncation="longest_first", max_length=self._spec.max_tokens
            )
        return {key: value for key, value in row.items() if key != "attention_mask"}

    def as_tokens(self, ids: Sequence[int]) -> dict[str, list[int]]:
        """The row for ids that its tokenizer produced earlier."""
        return self._last({"input_ids": list(ids)})

    @torch.no_grad()
    def scores(self, rows: Sequence[dict[str, list[int]]]) -> list[float]:
        """The logit of each row, plus the shift recorded by a model exported here.

        Raises UserError for a score that is not finite.
        """
        out = torch.zeros(len(rows))
        lengths = [len(row["input_ids"]) for row in rows]
        for batch in forward_batches(lengths, self._spec.device):
            padded = self.tokenizer.pad([rows[i] for i in batch], padding_side="right", return_tensors="pt")
            logits = self._model(**padded.to(self._spec.device)).logits
            out[batch] = logits[:, 0].float().cpu()
        odd = int((~out.isfinite()).sum())
        if odd:
            raise UserError(
                f"reward.name={self._spec.name} gave {odd} of {len(rows)} texts a score that is not finite: try "
                "reward.dtype=float32, or another reward model"
            )
        return [score + self._shift for score in out.tolist()]

    def _last(self, row: dict[str, list[int]]) -> dict[str, list[int]]:
        """The last `max_tokens` tokens of the row."""
        if len(row["input_ids"]) > self._spec.max_tokens:
            self._warn()
        return {key: value[-self._spec.max_tokens :] for key, value in row.items()}

    def _warn(self) -> None:
        if not self._warned:
            logger.warning(
                "some texts are longer than reward.max_tokens=%d and lose their beginning",
                self._spec.max_tokens,
            )
        self._warned = True


def _agree_on_pad(tokenizer: Any, model: Any, name: str) -> None:
    """Pad with the token by which the model finds the end of its text, where decoders read the score."""
    config = model.config.get_text_config()
    token = None if config.pad_token_id is None else tokenizer.convert_ids_to_tokens(config.pad_token_id)
    if token is not None:
        tokenizer.pad_token = token
    else:
        pad = choose_pad(tokenizer, {tokenizer.eos_token_id}, model.get_input_embeddings().num_embeddings)
        if pad is None:
            raise UserError(f"{KEY}={name} has no token other than EOS to pad with: add a pad token to it")
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
        config.pad_token_id = pad
    model.config.pad_token_id = config.pad_token_id


def _positions(model: Any) -> int | None:
    """Tokens for which a model has positions; None if these are not learned, or have no bound.

    A position table with a padding index also has rows up to that index (RoBERTa counts from after it).
    """
    tables = [m for n, m in model.named_modules() if _TABLES.search(n) and isinstance(m, torch.nn.Embedding)]
    rooms = [t.num_embeddings - (0 if t.padding_idx is None else t.padding_idx + 1) for t in tables]
    return min(rooms, default=getattr(model.config.get_text_config(), "max_position_embeddings", None))


def _first(names: Any) -> str:
    first = min(names)
    return str(first[0] if isinstance(first, tuple) else first)
