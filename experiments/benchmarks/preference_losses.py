"""Every loss of `rl=dpo` on given log-probabilities, against TRL's own.

    python experiments/benchmarks/preference_losses.py --peer-python PEER_ENV/bin/python

The peer has its own environment, that of `reward.py`. Both sides get the same random log-probabilities, in float64, of
pairs whose first response is the preferred one. TRL divides IPO's log-ratios by the responses' lengths and adds the
preferred response's likelihood to ORPO: `length_normalized` and `nll_weight` here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch

from rlaif.ops import PREFERENCE_LOSSES, PairLogprobs, PreferenceKnobs, preference_loss

PAIRS, MISMATCH = 64, 0.8
MORE = {
    "simpo": {"margin": 0.7},
    "robust": {"label_smoothing": 0.15},
    "ipo": {"length_normalized": True},
    "orpo": {"nll_weight": 1.0},
}
BETA = 0.3


def drawn() -> PairLogprobs:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, 40, (PAIRS, 2), generator=generator).double()
    policy = -(torch.rand(PAIRS, 2, generator=generator, dtype=torch.float64) * 3 + 0.05) * tokens
    reference = policy + torch.randn(PAIRS, 2, generator=generator, dtype=torch.float64) * 4
    return PairLogprobs(policy, reference, tokens, torch.tensor(MISMATCH, dtype=torch.float64))


def ours(pairs: PairLogprobs) -> dict[str, float]:
    label = torch.ones(PAIRS, dtype=torch.float64)
    return {
        name: float(preference_loss(name, pairs, label, PreferenceKnobs(BETA, **MORE.get(name, {})))[0])
        for name in PREFERENCE_LOSSES
        if name != "sft"
    }


def theirs(pairs: PairLogprobs, python: str) -> dict[str, float]:
    data = {name: getattr(pairs, name).tolist() for name in ("policy", "reference", "tokens")}
    knobs = {"beta": BETA, "margin": 0.7, "label_smoothing": 0.15, "kl": MISMATCH}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.json"
        file.write_text(json.dumps({**data, "knobs": knobs}))
        script = Path(__file__).with_name("peer_losses.py")
        done = subprocess.run([python, str(script), str(file)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.rsplit("RESULT ", 1)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="interpreter of an environment with TRL")
    pairs = drawn()
    mine, peer = ours(pairs), theirs(pairs, parser.parse_args().peer_python)
    print("| loss | ours | TRL | difference |\n|---|---|---|---|")
    for name, value in mine.items():
        print(f"| `{name}` | {value:.9f} | {peer[name]:.9f} | {abs(value - peer[name]):.0e} |")


if __name__ == "__main__":
    main()
