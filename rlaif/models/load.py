"""The only place that loads base weights: embedded GGUF, local directory, hub, or the tiny random model.

`describe_model` is cheap (it never loads weights), so that a stage can check whether its artifact exists;
`load_model` does the work.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlaif.errors import UserError
from rlaif.io import sha256_file
from rlaif.models.assemble import make_trunk
from rlaif.models.files import embedded
from rlaif.models.files.checkpoint import check_weights, load_causal_lm
from rlaif.models.files.headers import stored_weights
from rlaif.models.files.identity import describe_pretrained, hashed
from rlaif.models.files.source import local_folder, pinned, quiet, read_config, reading
from rlaif.models.lora import parse_lora
from rlaif.models.sizes import ModelSizes
from rlaif.models.split import Trunk, parse_trainable
from rlaif.models.tiny import tiny_config, tiny_lm, tiny_tokenizer
from rlaif.tokens import check_chat, check_vocabulary, choose_pad, choose_template, end_ids, special_ids


@dataclass(frozen=True)
class ModelSpec:
    """Which base model, how much of it is trained, and in which dtype and where it runs."""

    source: str  # embedded | hub | tiny
    name: str
    revision: str | None
    trainable: str  # full | top:K | lora:R
    dtype: str  # resolved: bfloat16 | float32
    device: str
    trust_remote_code: bool
    lora_alpha: float | None = None  # of lora:R only
    key: str = field(default="model.name", compare=False)  # the configuration key that names it, for messages
    chat_template: str | None = None  # the name of one of the tokenizer's, or a file; None: its default


@dataclass(frozen=True)
class LanguageModel:
    """A loaded base model: the shared trunk and its tokenizer.

    `eos_ids` end a response, the training target first. `pad_id` ends none; None if no token is free for it.
    """

    trunk: Trunk
    tokenizer: Any
    identity: dict[str, Any]
    device: str
    eos_ids: tuple[int, ...]
    pad_id: int | None
    generation: Mapping[str, Any] = field(default_factory=dict)  # the base model's generation_config.json

    @property
    def eos_id(self) -> int:
        """The token that responses are trained to end with."""
        return self.eos_ids[0]


def describe_model(spec: ModelSpec, cache_dir: Path) -> dict[str, Any]:
    """What the model's outputs depend on, without loading it. Raises UserError if it does not exist."""
    found = _describe(spec, cache_dir)
    if spec.chat_template is not None:
        file = Path(spec.chat_template).expanduser()
        found["chat_template"] = sha256_file(file)[:16] if file.is_file() else spec.chat_template
    return found


def _describe(spec: ModelSpec, cache_dir: Path) -> dict[str, Any]:
    if spec.source == "tiny":
        return {"source": "tiny", "name": "tiny-random-llama", "weights": "seed0"}
    if spec.source == "embedded":
        weights = hashed(embedded.embedded_gguf(), cache_dir)[:16]
        return {"source": "embedded", "name": embedded.NAME, "weights": weights}
    if spec.source != "hub":
        role = spec.key.split(".")[0]
        raise UserError(f"{role}.source={spec.source} is not known: write embedded, hub or tiny")
    return describe_pretrained(
        spec.key, spec.name, spec.revision, cache_dir, trust_remote_code=spec.trust_remote_code
    )


def _origin(spec: ModelSpec) -> dict[str, Any]:
    """Arguments of every `from_pretrained` call for a model."""
    revision = pinned(spec.key, spec.name, spec.revision) if spec.source == "hub" else None
    return {"revision": revision, "trust_remote_code": spec.trust_remote_code}


def _read_tokenizer(source: str, spec: ModelSpec) -> Any:
    from transformers import AutoTokenizer

    with reading(spec.key, source):
        tokenizer = AutoTokenizer.from_pretrained(source, **_origin(spec))
    choose_template(tokenizer, spec.chat_template, f"{spec.key.split('.')[0]}.chat_template")
    return tokenizer


def _stated_ends(spec: ModelSpec, tokenizer: Any, config: Any, folder: Path) -> list[int]:
    """EOS ids of generation_config.json and of the configuration, which has a default if it gives none."""
    generation = _generation(spec, folder)
    special = special_ids(tokenizer)
    own = [
        i for part in (config, config.get_text_config()) for i in _ids(getattr(part, "eos_token_id", None))
    ]
    stated = [i for i in own if i in special or tokenizer.eos_token_id is None]
    return [*_ids(generation.get("eos_token_id")), *stated]


def _generation(spec: ModelSpec, folder: Path) -> dict[str, Any]:
    """What generation_config.json says; nothing if there is none."""
    file = folder / "generation_config.json"
    with reading(spec.key, str(file)):
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _check_tokens(
    spec: ModelSpec, tokenizer: Any, config: Any, sizes: ModelSizes, folder: Path
) -> tuple[int, ...]:
    """The ids that end a response. Raises UserError for a tokenizer that is not the model's."""
    with _about(spec):
        check_vocabulary(tokenizer, sizes.vocab_size)
        return end_ids(tokenizer, _stated_ends(spec, tokenizer, config, folder), sizes.vocab_size)


@contextmanager
def _about(spec: ModelSpec) -> Iterator[None]:
    """Name the model in an error about it, whatever its class."""
    with reading(spec.key, spec.name):
        try:
            yield
        except UserError as error:
            raise UserError(f"{spec.key}={spec.name}: {error}") from None


def check_model(spec: ModelSpec, *, chat: bool = False) -> ModelSizes | None:
    """Raise UserError for what `load_model` would refuse, as far as configuration, tokenizer and headers show.

    With `chat` the chat template must be usable too. None if `spec` names no kind of model that there is.
    """
    if spec.source not in ("embedded", "hub", "tiny"):
        return None
    sizes = read_sizes(spec)
    if spec.source == "hub" and Path(spec.name).is_dir():
        config, folder = read_config(spec.key, spec.name, **_origin(spec)), Path(spec.name)
        check_weights(spec.key, spec.name, config, stored_weights(spec.key, folder))
        tokenizer = _read_tokenizer(spec.name, spec)
        _check_tokens(spec, tokenizer, config, sizes, folder)
        if chat:
            check_chat(tokenizer)
    return sizes


def read_model_config(spec: ModelSpec) -> Any:
    """transformers' configuration of a model; None for those that are known here. Raises UserError."""
    return read_config(spec.key, spec.name, **_origin(spec)) if spec.source == "hub" else None


def base_files(spec: ModelSpec, cache_dir: Path) -> tuple[str, str | None]:
    """Where an adapter finds its base model: (hub id, commit) or (directory, None). Raises UserError."""
    if spec.source == "tiny":
        raise UserError(
            "export_format=adapter: the tiny random model is in no folder that an adapter could name: write "
            "export_format=whole"
        )
    name = _source(spec, cache_dir)
    if Path(name).is_dir():
        return str(Path(name).resolve()), None
    return name, pinned(spec.key, name, spec.revision)


def load_tokenizer(spec: ModelSpec, cache_dir: Path) -> Any:
    """The model's tokenizer alone."""
    if spec.source == "tiny":
        return tiny_tokenizer()
    return _read_tokenizer(_source(spec, cache_dir), spec)


def _source(spec: ModelSpec, cache_dir: Path) -> str:
    """The directory or hub id to read."""
    return str(embedded.convert_embedded(cache_dir)) if spec.source == "embedded" else spec.name


def load_model(spec: ModelSpec, cache_dir: Path) -> LanguageModel:
    """Load the base model once: trunk in the compute dtype, on `spec.device`."""
    identity = describe_model(spec, cache_dir)
    generation: dict[str, Any] = {}
    if spec.source == "tiny":
        tokenizer = tiny_tokenizer()
        ends: tuple[int, ...] = (tokenizer.eos_token_id,)
        config = tiny_config(len(tokenizer))
        lm = tiny_lm(config)
    else:
        source = _source(spec, cache_dir)
        tokenizer, ends, config, lm = _read_pretrained(source, spec)
        generation = _generation(spec, local_folder(spec.key, source, spec.revision))
    sizes = ModelSizes.of(config)
    pad = choose_pad(tokenizer, ends, sizes.vocab_size)
    if pad is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    parse_trainable(spec.trainable, sizes.num_layers)  # its message is about the option, not the model
    with _about(spec):
        trunk = make_trunk(
            lm,
            spec.trainable,
            getattr(torch, spec.dtype),
            spec.lora_alpha,
            device=spec.device,
            verdicts=cache_dir / "verdicts",
            identity=identity,
        )
    return LanguageModel(trunk, tokenizer, identity, spec.device, ends, pad, generation)


def _read_pretrained(source: str, spec: ModelSpec) -> tuple[Any, tuple[int, ...], Any, nn.Module]:
    """(tokenizer, ids that end a response, transformers config, its module in fp32) of a directory or hub id."""
    quiet()
    config = read_config(spec.key, source, **_origin(spec))
    with _about(spec):  # a model of another kind is refused before its weights are read
        sizes = ModelSizes.of(config)
    tokenizer = _read_tokenizer(source, spec)
    folder = local_folder(spec.key, source, spec.revision)
    ends = _check_tokens(spec, tokenizer, config, sizes, folder)
    return tokenizer, ends, config, load_causal_lm(spec.key, source, config, stored_weights(spec.key, folder))


DEFAULT_TOP = 4


def default_trainable(spec: ModelSpec) -> str:
    """What `model.trainable=auto` means: top:4, or all layers but one if the model has at most four.

    Raises UserError if the model's configuration cannot be read.
    """
    layers = read_sizes(spec).num_layers
    if layers > DEFAULT_TOP:
        return f"top:{DEFAULT_TOP}"
    return f"top:{layers - 1}" if layers > 1 else "full"


HEAD_SHARE = 1 / 6  # the vocabulary head runs only on response tokens, about this share of all


def model_sizes(spec: ModelSpec) -> tuple[float, float]:
    """Weights that a token is multiplied by (in all layers, in trained layers), without loading any.

    A frozen layer under an adapter counts two thirds as trained: the gradient of its weights is not computed.
    """
    sizes = read_sizes(spec)
    trained = float(parse_trainable(spec.trainable, sizes.num_layers) * sizes.layer_weights)
    if parse_lora(spec.trainable, spec.lora_alpha):
        trained *= 2 / 3
    head = HEAD_SHARE * sizes.head_weights
    return sizes.num_layers * sizes.layer_weights + head, trained + head


def read_sizes(spec: ModelSpec) -> ModelSizes:
    """The sizes of a model, by its configuration alone. Raises UserError if that cannot be read."""
    if spec.source == "embedded":
        return embedded.SIZES
    tiny = spec.source == "tiny"
    config = tiny_config(len(tiny_tokenizer())) if tiny else read_config(spec.key, spec.name, **_origin(spec))
    with _about(spec):
        return ModelSizes.of(config)
