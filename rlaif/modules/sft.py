"""Supervised fine-tuning: next-token loss on the target of (prompt, target) rows."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from rlaif.data.datamodule import TokenBatch
from rlaif.models.split import Top
from rlaif.modules.optim import OptimOptions, build_optimizer, clip_each_group, response_logprobs
from rlaif.ops import sft_loss


class SFTModule(pl.LightningModule):
    """Trains a top on the trunk's features (paper section 3, step 1)."""

    def __init__(self, top: Top, optim: OptimOptions) -> None:
        super().__init__()
        self.top, self._optim = top, optim
        self.metrics: dict[
            str, float
        ] = {}  # the last epoch's, also after a resume that has nothing left to train

    def _loss(self, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return sft_loss(response_logprobs(self.top, batch), batch.response_mask)

    def training_step(self, batch: TokenBatch, batch_index: int) -> Tensor:
        loss, _ = self._loss(batch)
        self.log("sft/loss", loss, prog_bar=True, batch_size=len(batch.ids))
        return loss

    def validation_step(self, batch: TokenBatch, batch_index: int) -> None:
        loss, metrics = self._loss(batch)
        self.log("sft/val_loss", loss, batch_size=int(metrics["tokens"]), on_epoch=True, prog_bar=True)

    def on_train_epoch_end(self) -> None:
        self.metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sft_metrics"] = self.metrics

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.metrics = checkpoint["sft_metrics"]

    def configure_optimizers(self) -> dict[str, Any]:
        return build_optimizer([(self.top.parameters(), 1.0)], self._optim)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        clip_each_group(optimizer, gradient_clip_val)
