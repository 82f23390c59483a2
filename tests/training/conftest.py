"""A bare Trainer, and text with the trunk's features."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pair_rows import tensor_row

from rlaif.data.datamodule import EncodedRow, PreferenceRow
from rlaif.stages.common.training.trainer import quiet_lightning


@pytest.fixture
def make_bare_trainer():
    """`make_bare_trainer(max_epochs, **more)`: one CPU, no logger, no files."""

    def make(max_epochs: int, **more) -> pl.Trainer:
        quiet_lightning()
        options = {"enable_checkpointing": False, "num_sanity_val_steps": 0, **more}
        return pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=max_epochs,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            **options,
        )

    return make


@pytest.fixture
def encode_row():
    """`encode_row(model, prompt, response)`: an encoded text whose response ends with EOS."""

    def encode(model, prompt: str, response: str) -> EncodedRow:
        start = model.tokenizer.encode(prompt)
        ids = torch.tensor([*start, *model.tokenizer.encode(response), model.eos_id])
        features = model.trunk(ids[None])[0]
        return EncodedRow(ids, features[: len(start)], features[len(start) :])

    return encode


@pytest.fixture
def encode_pair(encode_row):
    """`encode_pair(model, prompt, a, b, p_a, weight=1.0)`: two encoded responses to one prompt, with a label."""

    def encode(model, prompt: str, a: str, b: str, p_a: float, weight: float = 1.0) -> PreferenceRow:
        first, second = encode_row(model, prompt, a), encode_row(model, prompt, b)
        return tensor_row(first.prompt, first.response, second.response, p_a, weight)

    return encode
