"""The stages that make artifacts, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rlaif.stages import evaluate, label, ppo, rm, sample, sft
from rlaif.stages.graph import Stage

STAGES: Mapping[str, Stage] = MappingProxyType(
    {
        "sft": sft.STAGE,
        "sample": sample.STAGE,
        "label": label.STAGE,
        "rm": rm.STAGE,
        "ppo": ppo.STAGE,
        "eval": evaluate.STAGE,
    }
)
