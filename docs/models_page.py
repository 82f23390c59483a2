"""The page of models that were seen to work, from the record of `tests/models/test_families.py`.

`python docs/models_page.py` runs these tests, which takes about two minutes, and writes docs/models.md;
`python docs/models_page.py RECORD` makes the page of a record that `RLAIF_FAMILIES=RECORD pytest ...` has written.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests" / "models" / "test_families.py"
PAGE = HERE / "models.md"


@dataclass(frozen=True)
class Column:
    """A column says yes for a type for which each of `checks` held, and `otherwise` for others.

    `plain` are the checks of a type that takes whole texts only, where they are others.
    """

    name: str
    meaning: str
    checks: tuple[str, ...]
    plain: tuple[str, ...] | None = None
    otherwise: str = "no"

    def cell(self, held: Collection[str]) -> str:
        """What it says of a type for which the checks `held` did."""
        checks = self.checks if self.plain is None or "plain rows" not in held else self.plain
        return "yes" if set(checks) <= set(held) else self.otherwise


COLUMNS = (
    Column(
        "packed rows",
        "pairs that share their prompt, and texts that share a beginning, run as one row and equal the texts apart; "
        "of an `apart` type each text is a row of its own, which costs time and changes nothing else",
        ("patterns", "packed pair", "shared prefix", "chosen rows"),
        otherwise="apart",
    ),
    Column(
        "sampling",
        "greedy samples of prompts of different lengths are the ids of `generate`, without its cache where that gives "
        "other logits than whole texts do",
        ("decoding",),
    ),
    Column(
        "`top:K`",
        "frozen trunk and trained top give the whole model's logits, bit by bit if both run transformers' attention; "
        "gradients reach the top alone and are the whole model's",
        ("split", "bit-equal", "gradients", "top:2"),
        plain=("split", "bit-equal", "gradients"),
    ),
    Column("`full`", "a role starts as the base model, and its export computes what it computes", ("full",)),
    Column("`lora:R`", "the same, with adapters", ("lora:2",)),
    Column("bfloat16", "computing in bfloat16 over float32 masters stays near float32", ("bf16",)),
)

_HEAD = """# Models

Made by `docs/models_page.py` from the record of `tests/models/test_families.py` on {date}, with torch {torch} and
transformers {transformers}. Each type was built with random weights at a small size (four layers, width 32), with the
windows, soft caps, scales, sinks, experts and latent attention that it has, and compared with transformers' own
forward pass, `generate` and gradients.

No list decides how a model runs: a probe runs a few tokens of yours when it is loaded, and `stage=doctor` shows what it
found. A type that is missing here may work too.

| column | yes means |
|---|---|
{legend}

"""


def page(record: Mapping[str, Any]) -> str:
    """Markdown with one line for each type and each variant of the record."""
    families: Mapping[str, Mapping[str, Any]] = record["families"]
    types = {name: found for name, found in families.items() if "," not in name}
    variants = {name: found for name, found in families.items() if name not in types}
    refused = [name for name, found in types.items() if "refused" in found["held"]]
    head = _HEAD.format(
        date=record["date"],
        legend="\n".join(f"| {column.name} | {column.meaning} |" for column in COLUMNS),
        **record["versions"],
    )
    parts = [
        head + _table({name: found for name, found in types.items() if name not in refused}),
        "## Variants\n\nOther configurations of some of these types.\n\n" + _table(variants),
        "## Refused\n\nOne sentence says why: " + ", ".join(f"`{name}`" for name in sorted(refused)) + ".\n",
    ]
    return "\n".join(parts)


def _table(families: Mapping[str, Mapping[str, Any]]) -> str:
    head = " | ".join(column.name for column in COLUMNS)
    lines = [f"| type | class | {head} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, found in sorted(families.items()):
        kind, _, variant = name.partition(", ")
        cells = [column.cell(found["held"]) for column in COLUMNS]
        label = f"`{kind}`, {variant}" if variant else f"`{kind}`"
        lines.append(f"| {label} | {found['class']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def recorded() -> dict[str, Any]:
    """The record of a run of the tests. Raises CalledProcessError if one of them fails."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "families.json"
        line = [sys.executable, "-m", "pytest", str(TESTS)]
        subprocess.run(line, cwd=HERE.parent, env={**os.environ, "RLAIF_FAMILIES": str(file)}, check=True)
        return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    given = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]
    PAGE.write_text(page(given[0] if given else recorded()), encoding="utf-8")
    print(PAGE)
