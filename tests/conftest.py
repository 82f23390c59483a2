"""Shared fixtures: a tiny random model built in code, nothing from the network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

for name in ("RLAIF_ROOT", "RLAIF_CODE"):
    os.environ.setdefault(name, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Inherited from the process that distributes the tests; what is printed here goes to a pipe.
os.environ.pop("COLUMNS", None)

# How long an example takes says something of the machine, not of the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _own_noise():
    """Each test starts from the same global random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def tiny_model(tmp_path):
    """`tiny_model(trainable)` loads the tiny random model in fp32."""
    from rlaif.models.load import ModelSpec, load_model

    def load(trainable: str = "top:1", dtype: str = "float32"):
        spec = ModelSpec("tiny", "tiny", None, trainable, dtype, "cpu", False, lora_alpha=4.0)
        return load_model(spec, tmp_path)

    return load
