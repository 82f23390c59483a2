"""A process of `trainer.devices` besides the command's own, which starts it for one fit (see `ranks`).

`python -m rlaif.app.follow CONFIG KIND FOLDER RANK SIZE PORT`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from rlaif.app.job import prepare_torch
from rlaif.stages.common.context import Context
from rlaif.stages.common.training.ranks import Place, follow
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES


def main(words: Sequence[str]) -> None:
    """Build what the leader builds, up to the end of its fit."""
    config, kind, folder, *place = words
    cfg = OmegaConf.load(config)
    assert isinstance(cfg, DictConfig)
    cfg.trainer.progress = False
    prepare_torch(cfg)
    follow(Place(*map(int, place)))
    Graph(Context(cfg, None), STAGES).follow(kind, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
