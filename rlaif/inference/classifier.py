"""Reward models that were trained elsewhere: text in tokens of their own, one number out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlaif.errors import UserError
from rlaif.inference.batches import length_buckets
from rlaif.inference.scorer import MAX_ROWS, MAX_TOKENS
from rlaif.io import digest, sha256_file
from rlaif.models.load import describe_pretrained, ensure_pad

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassifierSpec:
    """Which sequence classifier, and in what dtype and where it computes."""

    name: str
    revision: str | None
    dtype: str  # resolved: bfloat16 | float32
    device: str
    trust_remote_code: bool
    max_tokens: int

    def describe(self, cache_dir: Path) -> dict[str, Any]:
        """What its scores depend on, without loading it. Raises UserError where it does not exist."""
        found = describe_pretrained("reward.name", self.name, self.revision, cache_dir)
        return {**found, "reads": self._reads(), "dtype": self.dtype, "max_tokens": self.max_tokens}

    def _reads(self) -> str | None:
        """What a folder's tokenizer and chat template are; a hub id's revision stands for them."""
        folder = Path(self.name).expanduser()
        if not folder.is_dir():
            return None
        files = sorted(f for f in folder.iterdir() if f.suffix in (".json", ".jinja", ".txt", ".model"))
        return digest([[file.name, sha256_file(file)] for file in files], 16)

    def check(self) -> None:
        """Raises UserError for anything but a classifier with one label, by its configuration alone."""
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self.name, **self.origin)
        except (OSError, ValueError) as error:
            raise self._not_loaded(error) from error
        kinds = config.architectures or []
        if not any(kind.endswith("ForSequenceClassification") for kind in kinds) or config.num_labels != 1:
            raise UserError(
                f"reward.name={self.name} is {', '.join(kinds) or 'a model'} with num_labels={config.num_labels}, and "
                "a reward model is a ...ForSequenceClassification with num_labels=1: name such a one"
            )

    @property
    def origin(self) -> dict[str, Any]:
        """What every `from_pretrained` of it gets."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def load(self) -> TextClassifier:
        """Raises UserError where it cannot be loaded, or was never trained to score."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging as hf_logging

        hf_logging.disable_progress_bar()
        hf_logging.set_verbosity_error()
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.name, truncation_side="left", **self.origin)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                self.name,
                dtype=getattr(torch, self.dtype),
                use_safetensors=True,
                output_loading_info=True,
                **self.origin,
            )
        except (OSError, ValueError) as error:
            raise self._not_loaded(error) from error
        if info["missing_keys"]:
            raise UserError(
                f"reward.name={self.name} is no trained reward model: its file lacks "
                f"{min(info['missing_keys'])}, which would be random"
            )
        _agree_on_pad(tokenizer, model.config.get_text_config())
        return TextClassifier(model, tokenizer, self)

    def _not_loaded(self, error: Exception) -> UserError:
        return UserError(f"reward.name={self.name} could not be loaded: {str(error).splitlines()[0]}")


class TextClassifier:
    """A transformers sequence classifier with one label, and the tokenizer that came with it.

    A row is what that tokenizer makes of a text: `input_ids`, and `token_type_ids` where there are segments.
    """

    def __init__(self, model: Any, tokenizer: Any, spec: ClassifierSpec) -> None:
        self.tokenizer = tokenizer
        self._model, self._spec, self._warned = model.eval().to(spec.device), spec, False
        # What `export_reward` leaves apart, since heads have no bias.
        self._shift = float(getattr(model.config, "reward_shift", 0.0))

    def as_chat(self, prompt: str, response: str) -> dict[str, list[int]]:
        """The row of a user's message and the assistant's reply. Raises UserError without a chat template."""
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"reward.format=chat, but the tokenizer of reward.name={self._spec.name} has no chat template: "
                "write reward.format=pair for an encoder, or reward.format=policy"
            )
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return self._last({"input_ids": self.tokenizer.apply_chat_template(messages, return_dict=False)})

    def as_pair(self, prompt: str, response: str) -> dict[str, list[int]]:
        """The row of two segments, with what the tokenizer puts around them; the longer one is cut."""
        row = self.tokenizer(prompt, response)
        if len(row["input_ids"]) > self._spec.max_tokens:
            self._warn()
            row = self.tokenizer(
                prompt, response, truncation="longest_first", max_length=self._spec.max_tokens
            )
        return {key: value for key, value in row.items() if key != "attention_mask"}

    def as_tokens(self, ids: Sequence[int]) -> dict[str, list[int]]:
        """The row of ids that its tokenizer made before."""
        return self._last({"input_ids": list(ids)})

    @torch.no_grad()
    def scores(self, rows: Sequence[dict[str, list[int]]]) -> list[float]:
        """The logit of each row, with the shift that a model exported here names."""
        out = torch.zeros(len(rows))
        lengths = [len(row["input_ids"]) for row in rows]
        for batch in length_buckets(lengths, max_tokens=MAX_TOKENS, max_rows=MAX_ROWS):
            padded = self.tokenizer.pad([rows[i] for i in batch], padding_side="right", return_tensors="pt")
            logits = self._model(**padded.to(self._spec.device)).logits
            out[batch] = logits[:, 0].float().cpu()
        return [score + self._shift for score in out.tolist()]

    def _last(self, row: dict[str, list[int]]) -> dict[str, list[int]]:
        """The row without what is too much of its beginning."""
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


def _agree_on_pad(tokenizer: Any, config: Any) -> None:
    """Pad as the model was made to find the end of its text; decoders read their score there."""
    if config.pad_token_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    else:
        ensure_pad(tokenizer)
        config.pad_token_id = tokenizer.pad_token_id
