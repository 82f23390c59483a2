"""One more process of `trainer.devices`, which the command's own process starts for one fit (see `ranks`).

`python -m rlaif.app.follow CONFIG KIND FOLDER RANK SIZE PORT`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlaif.app.job import prepare_torch
from rlaif.io import from_yaml
from rlaif.options.job import Options
from rlaif.options.read import read
from rlaif.stages.common.context import Context
from rlaif.stages.common.training.ranks import Place, follow
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES


def main(words: Sequence[str]) -> None:
    """Build what the leader builds, up to the end of its fit."""
    config, kind, folder, *place = words
    values = from_yaml(Path(config).read_text(encoding="utf-8"))
    options = read(Options, values)
    options = replace(options, trainer=replace(options.trainer, progress=False))
    prepare_torch(options)
    follow(Place(*map(int, place)))
    Graph(Context(options, None), STAGES).follow(kind, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
