"""The same work by two checkouts of this project, in one run on one machine.

    git worktree add ../before COMMIT
    python experiments/benchmarks/commits.py --before ../before [--dtype bfloat16]

Each side is a process of its own, with its own code and its own `gpu_work.py`, on the same weights (the embedded model)
and the same token ids. The two take turns, work by work; a figure is the median over the turns, after one that is not
counted. Results are compared: hidden states of the trunk, gradients of the reward step, sampled ids, and the metrics of
a PPO iteration.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
WORKS = ("trunk", "reward", "decode", "ppo")
TOP = 4
ROWS, LENGTH = 12, 256  # of the trunk's pass
PAIRS, PROMPT, RESPONSE = 8, 160, 32
DECODED, NEW_TOKENS = 32, 48
BATCH, PPO_TOKENS = 16, 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="a checkout of the commit to compare with")
    parser.add_argument("--cache", type=Path, default=Path("outputs/cache"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--works", default=",".join(WORKS))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
    elif options.before is None:
        parser.error("--before: write the path of a checkout")
    else:
        compare(options)


class Side:
    """A process that does named works on request."""

    def __init__(self, checkout: Path, options: argparse.Namespace) -> None:
        words = [
            sys.executable,
            "-P",
            str(Path(__file__).resolve()),
            "--worker",
            f"--threads={options.threads}",
        ]
        words += [f"--dtype={options.dtype}", f"--cache={options.cache.resolve()}"]
        path = os.pathsep.join(
            str(p) for p in (checkout.resolve(), checkout.resolve() / "experiments/benchmarks")
        )
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": path},
        )

    def run(self, name: str) -> dict[str, Any]:
        """Seconds and results of one work."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(name, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended in work {name}")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(options: argparse.Namespace) -> None:
    """Print a row per work."""
    sides = {"before": Side(options.before, options), "now": Side(ROOT, options)}
    print(f"| work ({options.dtype}) | before s | now s | now / before | each turn | largest difference |")
    print("|---|---|---|---|---|---|")
    for name in options.works.split(","):
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        results: dict[str, Any] = {}
        for turn in range(options.turns + 1):
            order = sides if turn % 2 else dict(reversed(sides.items()))
            for side, process in order.items():
                found = process.run(name)
                results[side] = found["result"]
                if turn:
                    seconds[side].append(found["seconds"])
        middle = {side: median(values) for side, values in seconds.items()}
        ratios = [now / before for now, before in zip(seconds["now"], seconds["before"], strict=True)]
        gap = max(abs(a - b) for a, b in zip(results["before"], results["now"], strict=True))
        print(
            f"| {name} | {middle['before']:.3f} | {middle['now']:.3f} | "
            f"**{middle['now'] / middle['before']:.2f}** | {', '.join(f'{r:.2f}' for r in ratios)} | {gap:.2g} |",
            flush=True,
        )
    for process in sides.values():
        process.close()


def work(options: argparse.Namespace) -> None:
    """Do what standard input names, and answer with a line of JSON each."""
    import torch

    from rlaif.models.load import ModelSpec, load_model

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    spec = ModelSpec("embedded", "x", None, f"top:{TOP}", options.dtype, "cpu", False)
    works = make_works(load_model(spec, options.cache))
    for line in sys.stdin:
        run = works[line.strip()]()
        start = clock()
        result = run()
        print(json.dumps({"seconds": clock() - start, "result": result}), flush=True)


# CPU seconds: other processes then matter less. With several threads they would count more than once.
clock = time.process_time
Work = Callable[[], list[float]]


def make_works(model: Any) -> dict[str, Callable[[], Work]]:
    """Each name's preparation, which is not timed, and which gives what is."""
    import torch
    from gpu_work import fit, ppo_module, random_rows

    from rlaif.inference.decoding.drawing import Decoding
    from rlaif.inference.decoding.sampler import sample
    from rlaif.models.pairs import PairCausal

    trunk, vocabulary = model.trunk, model.trunk.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (ROWS, LENGTH), generator=generator)
    top = trunk.new_top()
    frozen = top.frozen_copy()
    size = PROMPT + 2 * RESPONSE
    spans = [
        (n * size, n * size + PROMPT, n * size + PROMPT + RESPONSE, (n + 1) * size) for n in range(PAIRS)
    ]
    within = torch.cat((torch.arange(PROMPT + RESPONSE), torch.arange(PROMPT, PROMPT + RESPONSE)))
    positions = within.repeat(PAIRS)[None]
    read = torch.tensor([[place - 1 for *_, a_end, b_end in spans for place in (a_end, b_end)]])
    features = torch.randn(1, PAIRS * size, trunk.config.hidden_size, generator=generator).to(trunk.dtype)
    prompts = random_rows(DECODED, 48, 64, vocabulary, 1)

    def trunk_pass() -> list[float]:
        with torch.inference_mode():
            return trunk(ids)[0, -1, :64].float().tolist()

    def reward_step() -> list[float]:
        top.zero_grad()
        hidden = top(features, PairCausal(spans), positions, PROMPT + RESPONSE, rows=read)
        hidden.float().square().mean().backward()
        return sorted(float(weight.grad.norm()) for weight in top.parameters())

    def decode() -> list[float]:
        rows = sample(
            frozen, prompts, range(DECODED), Decoding(NEW_TOKENS, 1.0), eos_ids=(), max_rows=DECODED
        )
        return [float(token) for row in rows for token in row.ids]

    def ppo() -> Work:
        module = ppo_module(trunk, batch=BATCH, new_tokens=PPO_TOKENS, value="shared", minibatch=8)

        def iteration() -> list[float]:
            fit(module, "cpu", 1)
            return [module.history[0][name] for name in ("rl/reward", "rl/policy_loss")]

        return iteration

    return {
        "trunk": lambda: trunk_pass,
        "reward": lambda: reward_step,
        "decode": lambda: decode,
        "ppo": ppo,
    }


if __name__ == "__main__":
    main()
