"""Where a model runs, and in which dtype."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch

from rlaif.errors import UserError

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


_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_bytes(device: str) -> int | None:
    """All the memory of a kind of device, whatever of it is free; None if the system does not say."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    if device == "mps":
        return int(torch.mps.recommended_max_memory())
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # A container's limit; `max` is none.
    told = [Path(file).read_text().strip() for file in _LIMITS if Path(file).is_file()]
    return min([physical, *(int(text) for text in told if text.isdigit())])


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
