"""Fine-tuning by likelihood: next-token loss on the target of (prompt, target) rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from rlaif.data.datamodule import TokenBatch
from rlaif.models.split import Top
from rlaif.ops import sft_loss, total
from rlaif.stages.common.training.logprobs import response_logprobs
from rlaif.stages.common.training.optim import OptimOptions, build_optimizer, require_finite, take_step


class LikelihoodModule(pl.LightningModule):
    """Trains a top on the trunk's features; its metrics are those of `stage`.

    `history` has a row per step.
    """

    def __init__(self, top: Top, optim: OptimOptions, stage: str = "sft") -> None:
        super().__init__()
        self.automatic_optimization = False  # gradients are computed micro-batch by micro-batch within a step
        self.top, self._optim, self._stage = top, optim, stage
        self.history: list[dict[str, float]] = []
        # The last epoch's, also after a resume that has nothing left to train.
        self.metrics: dict[str, float] = {}

    def _loss(
        self, batch: TokenBatch, tokens: Tensor | float | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The batch's share of the loss per token over `tokens` tokens (its own if None)."""
        return sft_loss(response_logprobs(self.top, batch), batch.response_mask, normalizer=tokens)

    def training_step(self, step: Sequence[TokenBatch], step_index: int) -> None:
        none = torch.zeros((), dtype=torch.long, device=self.device)
        tokens = total(sum((batch.response_mask.sum() for batch in step), none))
        losses = (self._loss(batch, tokens)[0] for batch in step)
        rate = self.optimizers().param_groups[0]["lr"]
        loss = take_step(self, losses, self._optim.gradient_clip, self._stage)
        size = sum(len(batch.ids) for batch in step)
        self.log(f"{self._stage}/loss", loss, prog_bar=True, batch_size=size)
        self.history.append({f"{self._stage}/loss": float(loss), f"{self._stage}/lr": rate})

    def validation_step(self, batch: TokenBatch, batch_index: int) -> None:
        loss, metrics = self._loss(batch)
        self.log(
            f"{self._stage}/val_loss", loss, batch_size=int(metrics["tokens"]), on_epoch=True, prog_bar=True
        )

    def on_train_epoch_end(self) -> None:
        measured, validated = self.trainer.callback_metrics, f"{self._stage}/val_loss"
        if validated in measured:
            place = f"{self._stage} after epoch {self.current_epoch + 1}"
            require_finite(measured[validated], "validation loss", place)
        self.metrics = {name: float(value) for name, value in measured.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["likelihood_metrics"], checkpoint["likelihood_history"] = self.metrics, self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.metrics, self.history = checkpoint["likelihood_metrics"], list(checkpoint["likelihood_history"])

    def configure_optimizers(self) -> dict[str, Any]:
        return build_optimizer([(self.top.parameters(), 1.0)], self._optim)
