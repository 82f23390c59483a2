"""What each swap of a module gives: RMSNorm, the gate in place, the last layer at chosen rows.

    python experiments/benchmarks/swaps.py --cores 1

Modules of transformers at SmolLM2-135M's sizes with random weights, each against its swap, on the same input, in
alternation; the time is the best of several. Values and gradients are compared first, as norms of differences.
`--rows` positions of each text are read where only some are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from rlaif.models.assemble import make_trunk
from rlaif.models.parts.swaps import kind_of, swap_modules

TEXTS, LENGTH, TOP = 4, 256, 4
CONFIG = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=6,  # those below the top are not timed
    num_attention_heads=9,
    num_key_value_heads=3,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}  # sums over a thousand positions
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Work:
    """The same work without and with a swap; `parts` are what gradients are compared of."""

    name: str
    plain: Run
    swapped: Run
    parts: tuple[list[Tensor], list[Tensor]]
    backward: bool


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def module_work(name: str, own: nn.Module, kind: str, dtype: torch.dtype, *, backward: bool) -> Work:
    own = own.to(dtype).requires_grad_(backward)
    other = deepcopy(own)
    swap_modules(other)
    assert kind_of(other) == kind
    inputs = [drawn(TEXTS, LENGTH, CONFIG.hidden_size).to(dtype).requires_grad_(backward) for _ in range(2)]
    runs = [lambda m=m, x=x: m(x) for m, x in zip((own, other), inputs, strict=True)]
    parts = ([inputs[0], *own.parameters()], [inputs[1], *other.parameters()])
    return Work(name, runs[0], runs[1], parts, backward)


def rows_work(lm: nn.Module, dtype: torch.dtype, read: int, *, backward: bool) -> Work:
    """A top of four layers over given features, read at `read` positions of each text."""
    top = make_trunk(lm, f"top:{TOP}", dtype, None).new_top().requires_grad_(backward)
    features = drawn(TEXTS, LENGTH, CONFIG.hidden_size).to(dtype)
    rows = torch.linspace(LENGTH // 2, LENGTH - 1, read).long().expand(TEXTS, -1)

    def everywhere() -> Tensor:
        return top(features).gather(1, rows[:, :, None].expand(-1, -1, CONFIG.hidden_size))

    weights = list(top.parameters())
    name = f"top:{TOP}, read at {read} of {LENGTH} positions"
    return Work(name, everywhere, lambda: top(features, rows=rows), (weights, weights), backward)


def once(run: Run, parts: list[Tensor], backward: bool) -> tuple[float, list[Tensor]]:
    """Seconds, and what was computed: the output and the gradients of `parts`."""
    for part in parts:
        part.grad = None
    started = time.perf_counter()
    if not backward:
        with torch.no_grad():
            out = run()
        return time.perf_counter() - started, [out]
    out = run()
    out.backward(drawn(*out.shape, seed=1).to(out.dtype))  # not along the input, where a norm's gradient is 0
    seconds = time.perf_counter() - started
    return seconds, [out.detach(), *(part.grad.clone() for part in parts)]  # type: ignore[union-attr]


def compare(work: Work, repeats: int, close: float) -> tuple[float, float, float]:
    """Best seconds of both, and the largest difference of a tensor, in units of its norm."""
    gap, best = 0.0, [float("inf")] * 2
    for turn in range(repeats + 1):
        found = [
            once(run, parts, work.backward)
            for run, parts in zip((work.plain, work.swapped), work.parts, strict=True)
        ]
        if turn == 0:
            pairs = zip(found[0][1], found[1][1], strict=True)
            gap = max(float((x - y).float().norm() / y.float().norm().clamp_min(1e-12)) for x, y in pairs)
            if gap > close:
                raise SystemExit(f"{work.name}: the swap differs by {gap:.1e}")
            continue
        best = [min(old, seconds) for old, (seconds, _) in zip(best, found, strict=True)]
    return best[0], best[1], gap


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32])
    own = parser.parse_args()
    torch.set_num_threads(own.cores)
    print(f"torch {version('torch')}, transformers {version('transformers')}, {own.cores} core(s), ", end="")
    print(
        f"{torch.backends.cpu.get_cpu_capability()}, {TEXTS} texts of {LENGTH} tokens, best of {own.repeats}\n"
    )
    print("| work | dtype | pass | plain ms | swapped ms | ratio | largest difference |")
    print("|---|---|---|---|---|---|---|")
    torch.manual_seed(0)
    lm = LlamaForCausalLM(CONFIG)
    layer = lm.model.layers[0]
    for dtype in (torch.float32, torch.bfloat16):
        for backward in (False, True):
            works = [
                module_work("RMSNorm", deepcopy(layer.input_layernorm), "norm", dtype, backward=backward),
                module_work("SwiGLU", deepcopy(layer.mlp), "gate", dtype, backward=backward),
                *(rows_work(deepcopy(lm), dtype, read, backward=backward) for read in own.rows),
            ]
            for work in works:
                if backward and work.name == "SwiGLU":
                    continue  # in place only where no gradient needs what it overwrites
                plain, swapped, gap = compare(work, own.repeats, CLOSE[dtype])
                told = "forward, backward" if backward else "forward"
                kind = str(dtype).removeprefix("torch.")
                times = f"{1e3 * plain:.2f} | {1e3 * swapped:.2f} | {plain / swapped:.2f}"
                print(f"| {work.name} | {kind} | {told} | {times} | {gap:.0e} |", flush=True)


if __name__ == "__main__":
    main()
