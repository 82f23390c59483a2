"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) and its relatives, on soft labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from rlaif.data.policy_pairs import PolicyPairBatch
from rlaif.models.split import Top
from rlaif.ops import PreferenceKnobs
from rlaif.stages.common.training.optim import OptimOptions, build_optimizer, require_finite
from rlaif.stages.rl.pair_step import SUMS, TRAINING, PairStep, step_means

VALIDATION = (
    "rl/val_loss",
    "rl/val_accuracy",
    "rl/val_margin",
    "rl/val_preferred_log_ratio",
    "rl/val_other_log_ratio",
)
"""What `TRAINING` is called on validation pairs."""


class PreferenceModule(pl.LightningModule):
    """Trains a policy's top on pairs whose log-probabilities under the reference policy are known.

    Args:
        policy: the top to train.
        loss: a name in `PREFERENCE_LOSSES`.
    """

    def __init__(self, policy: Top, loss: str, knobs: PreferenceKnobs, optim: OptimOptions) -> None:
        super().__init__()
        self.automatic_optimization = False  # gradients are computed part by part within a step
        self.policy, self._optim = policy, optim
        self._step = PairStep(policy, loss, knobs)
        self.history: list[dict[str, float]] = []  # one row per step; an epoch's last has its validation too

    # Training.

    def training_step(self, step: Sequence[PolicyPairBatch], step_index: int) -> None:
        rate = self.optimizers().param_groups[0]["lr"]
        metrics = step_means(TRAINING, self._step.take(self, step, self._optim.gradient_clip))
        self.log_dict(metrics, batch_size=1)
        self.history.append({**metrics, "rl/lr": rate})

    def on_validation_epoch_start(self) -> None:
        self._validation = torch.zeros(SUMS, device=self.device)

    def validation_step(self, batch: PolicyPairBatch, batch_index: int) -> None:
        weights = batch.pairs.weight.sum()
        mismatch = self._step.mismatch([batch])
        self._validation += self._step.counts(batch, mismatch, weights.where(weights > 0, 1.0))[1]

    def on_validation_epoch_end(self) -> None:
        metrics = step_means(VALIDATION, self._validation)
        place = f"rl after epoch {self.current_epoch + 1}"
        require_finite(torch.tensor(metrics.get("rl/val_loss", math.nan)), "validation loss", place)
        self.log_dict(metrics, batch_size=1)
        self.history[-1] |= metrics

    # Optimisation and checkpoints.

    def configure_optimizers(self) -> dict[str, Any]:
        return build_optimizer([(self.policy.parameters(), 1.0)], self._optim)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["preference_history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint["preference_history"])
