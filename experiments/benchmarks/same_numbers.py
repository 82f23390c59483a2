"""Do two checkouts give the same numbers? One smoke run of each, and every metric, row and weight compared.

    python experiments/benchmarks/same_numbers.py OLD_CHECKOUT NEW_CHECKOUT --rename ppo=rl -- stage=pipeline seed=1

For refactorings that must change nothing. Seconds and rates are left out; a stage that was renamed, and its metrics
with it, is given by `--rename`. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

TIMES = ("seconds", "per_s", "created", "bytes", "reused")
Facts = dict[str, Any]


def facts(checkout: Path, words: list[str], renamed: Mapping[str, str]) -> Facts:
    """Everything that a run of `checkout` leaves, by name: metrics, rows of tables, tensors."""
    with tempfile.TemporaryDirectory() as folder:
        place = ["profile=smoke", "tracking=none", f"paths.root={folder}"]
        environment = {**os.environ, "PYTHONPATH": str(checkout), "RLAIF_ROOT": str(checkout)}
        subprocess.run(
            [sys.executable, str(checkout / "train.py"), *place, *words],
            cwd=checkout,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        found: Facts = {}
        for artifact in sorted((Path(folder) / "artifacts").glob("*-*")):
            kind = artifact.name.split("-")[0]
            for name, value in _of_artifact(artifact):
                found[_renamed(f"{kind}: {name}", renamed)] = value
    return found


def _of_artifact(artifact: Path) -> Iterator[tuple[str, Any]]:
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    yield from manifest["metrics"].items()
    for file in sorted(artifact.rglob("*")):
        name = str(file.relative_to(artifact))
        if file.suffix == ".safetensors":
            yield from ((f"{name}: {key}", tensor) for key, tensor in load_file(file).items())
        elif file.suffix == ".jsonl":
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
                yield from ((f"{name}:{number}: {key}", value) for key, value in json.loads(line).items())


def _renamed(name: str, renamed: Mapping[str, str]) -> str:
    kind, _, rest = name.partition(": ")
    for old, new in renamed.items():
        kind, rest = (new if kind == old else kind), rest.replace(f"{old}/", f"{new}/")
    return f"{kind}: {rest}"


def differences(old: Facts, new: Facts) -> list[str]:
    """What differs, one line each."""
    told = [f"only in one of them: {name}" for name in sorted(old.keys() ^ new.keys()) if not _time(name)]
    for name in sorted(old.keys() & new.keys()):
        x, y = old[name], new[name]
        same = torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y or (x != x and y != y)
        if not same and not _time(name):
            told.append(name if isinstance(x, torch.Tensor) else f"{name}: {x} became {y}")
    return told


def _time(name: str) -> bool:
    return any(part in name for part in TIMES)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rename", action="append", default=[], metavar="OLD=NEW")
    parser.add_argument("words", nargs="*", help="words of train.py, after --")
    args = parser.parse_args()
    renamed = dict(pair.split("=") for pair in args.rename)
    old, new = (facts(path.resolve(), args.words, renamed) for path in (args.old, args.new))
    told = differences(old, new)
    tensors = sum(isinstance(value, torch.Tensor) for value in new.values())
    print(f"{len(new)} values, {tensors} of them tensors: {len(told)} differ")
    print("\n".join(told[:40]))
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
