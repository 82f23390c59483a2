"""The reward model: soft-label Bradley-Terry on AI preferences (paper section 3, step 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from rlaif.data.datamodule import PreferenceBatch
from rlaif.models.decoder import DenseCausal
from rlaif.models.split import ScalarHead, Top
from rlaif.modules.optim import OptimOptions, build_optimizer, clip_each_group
from rlaif.ops import bradley_terry_loss


@dataclass(frozen=True)
class PreferenceLossOptions:
    """Knobs of `ops.bradley_terry_loss`."""

    margin: float
    label_smoothing: float
    temperature: float
    centering: float


def sequence_scores(top: Top, head: ScalarHead, features: Tensor, last: Tensor) -> Tensor:
    """Reward (B,) of each sequence, read at its last token `last` (B,) (EOS where the response has one)."""
    return head(top(features, rows=last[:, None])).squeeze(1)


def pair_scores(top: Top, head: ScalarHead, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """Rewards (B,) of a and of b; the prompt they share runs once."""
    hidden = top(batch.features, DenseCausal(batch.blocked), batch.positions, rows=batch.last)
    reward = head(hidden)
    return reward[:, 0], reward[:, 1]


class RewardModule(pl.LightningModule):
    """Trains a top and a score head; keeps the weights of the epoch with the lowest validation loss."""

    def __init__(
        self,
        top: Top,
        head: ScalarHead,
        optim: OptimOptions,
        loss: PreferenceLossOptions,
        *,
        head_lr_factor: float,
    ) -> None:
        super().__init__()
        self.top, self.head = top, head
        self._optim, self._loss_options, self._head_factor = optim, loss, head_lr_factor
        self.best_loss = float("inf")
        self.best_state: dict[str, Tensor] = {}

    def _loss(self, batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        reward_a, reward_b = pair_scores(self.top, self.head, batch)
        options = self._loss_options
        return bradley_terry_loss(
            reward_a,
            reward_b,
            batch.p_a,
            margin=options.margin,
            label_smoothing=options.label_smoothing,
            temperature=options.temperature,
            centering=options.centering,
            weight=None,
        )

    def training_step(self, batch: PreferenceBatch, batch_index: int) -> Tensor:
        loss, metrics = self._loss(batch)
        self.log("rm/loss", loss, prog_bar=True, batch_size=len(batch.p_a))
        self.log("rm/train_accuracy", metrics["accuracy"], batch_size=len(batch.p_a))
        return loss

    def validation_step(self, batch: PreferenceBatch, batch_index: int) -> None:
        loss, metrics = self._loss(batch)
        self.log("rm/val_loss", loss, batch_size=len(batch.p_a), on_epoch=True, prog_bar=True)
        self.log(
            "rm/val_accuracy", metrics["accuracy"], batch_size=len(batch.p_a), on_epoch=True, prog_bar=True
        )

    def on_validation_epoch_end(self) -> None:
        loss = float(self.trainer.callback_metrics["rm/val_loss"])
        if loss < self.best_loss and not self.trainer.sanity_checking:
            self.best_loss = loss
            self.best_state = {k: v.detach().clone() for k, v in self.state_dict().items()}

    def on_fit_end(self) -> None:
        if self.best_state:
            self.load_state_dict(self.best_state)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["best"] = {"loss": self.best_loss, "state": self.best_state}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.best_loss, self.best_state = checkpoint["best"]["loss"], checkpoint["best"]["state"]

    def configure_optimizers(self) -> dict[str, Any]:
        return build_optimizer(
            [(self.top.parameters(), 1.0), (self.head.parameters(), self._head_factor)], self._optim
        )

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        clip_each_group(optimizer, gradient_clip_val)
