"""Which kernel computes attention: a pure function of the device, the lengths and the scoring.

On a CPU and on Apple's GPUs nothing is compiled. The lengths at which CUDA changes kernels are untimed on a GPU.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal

logger = logging.getLogger(__name__)

Kernel = Literal["flash", "masked", "flex", "products"]
"""`flash`: SDPA without a mask; `masked`: SDPA with one; `flex`: flex attention; `products`: plain matrix products."""

COMPILED = ("cuda",)  # where flex attention is compiled; elsewhere it runs unfused, for tests alone
# Keys beyond which a mask of all positions costs more than compiling a kernel does.
LONG = 2048
# Keys beyond which the scores of all positions do, which soft caps and sinks need outside flex attention.
LONG_SCORES = 512
SMALLEST_HEAD = 16  # of flex attention's kernels


def choose_kernel(device: str, *, keys: int, queries: int, head: int, masked: bool, fused: bool) -> Kernel:
    """The kernel for `queries` positions that see `keys` at most, with heads of size `head`, on a type of device.

    Args:
        device: as in `torch.device.type`.
        masked: more is hidden than what comes later in a row (a window, another text).
        fused: the scores are products alone: no soft cap and no sinks, which SDPA does not know.
    """
    if fused and not masked:
        return "flash"
    long = keys > (LONG if fused else LONG_SCORES)
    # One query, or a few: their scores are small whatever the length, and flex attention pads them to a block.
    if device in COMPILED and long and 2 * queries > keys and head >= SMALLEST_HEAD:
        return "flex"
    return "masked" if fused else "products"


_WORDS: dict[Kernel, str] = {
    "flash": "torch's fused attention without a mask (flash where the dtype allows it)",
    "masked": "torch's fused attention with a mask",
    "flex": "flex attention, compiled at its first use",
    "products": "plain matrix products with a mask",
}


@cache
def say(device: str, kernel: Kernel, what: str) -> None:
    """Log, once per process and only where there is a choice, which kernel `what` runs by."""
    if device in COMPILED:
        logger.info("attention on %s: %s by %s", device, what, _WORDS[kernel])
