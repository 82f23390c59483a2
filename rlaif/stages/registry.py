"""The stages that make artifacts, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rlaif.stages.common.stage import Stage
from rlaif.stages.eval import stage as evaluate
from rlaif.stages.label import stage as label
from rlaif.stages.revise import stage as revise
from rlaif.stages.rl import stage as rl
from rlaif.stages.rm import stage as rm
from rlaif.stages.sample import stage as sample
from rlaif.stages.sft import stage as sft

STAGES: Mapping[str, Stage] = MappingProxyType(
    {
        "revise": revise.STAGE,
        "sft": sft.STAGE,
        "sample": sample.STAGE,
        "label": label.STAGE,
        "rm": rm.STAGE,
        "rl": rl.STAGE,
        "eval": evaluate.STAGE,
    }
)
