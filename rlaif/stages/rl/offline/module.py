"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) and its relatives, on soft labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from rlaif.data.policy_pairs import PolicyPairBatch
from rlaif.models.split import Top
from rlaif.ops import PREFERENCE_LOSSES, PairLogprobs, PointLoss, PreferenceKnobs, preference_loss, total
from rlaif.stages.common.training.logprobs import pair_logprobs, response_logprobs
from rlaif.stages.common.training.optim import OptimOptions, build_optimizer, require_finite, take_step

MEANS = ("accuracy", "margin", "preferred_log_ratio", "other_log_ratio")
"""Metrics of `preference_loss`, means over the pairs whose label prefers a side."""
TRAINING = ("rl/loss", "rl/accuracy", "rl/margin", "rl/preferred_log_ratio", "rl/other_log_ratio")
VALIDATION = (
    "rl/val_loss",
    "rl/val_accuracy",
    "rl/val_margin",
    "rl/val_preferred_log_ratio",
    "rl/val_other_log_ratio",
)
"""What the loss and `MEANS` are logged as."""


class PreferenceModule(pl.LightningModule):
    """Trains a policy's top on pairs whose log-probabilities under the reference policy are known.

    Args:
        policy: the top to train.
        loss: a name in `PREFERENCE_LOSSES`.
    """

    def __init__(self, policy: Top, loss: str, knobs: PreferenceKnobs, optim: OptimOptions) -> None:
        super().__init__()
        self.automatic_optimization = False  # gradients are computed part by part within a step
        self.policy, self._loss_name, self._knobs, self._optim = policy, loss, knobs, optim
        self.history: list[dict[str, float]] = []  # one row per step; an epoch's last has its validation too

    def _counts(
        self, batch: PolicyPairBatch, mismatch: Tensor | None, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The batch's share of a loss over `weights`, and sums to add over batches: (3 + len(MEANS),) detached.

        These are the weighted losses, the weights, the pairs whose label prefers a side, and `MEANS` over them.
        """
        logprobs = pair_logprobs(self.policy, batch)
        pairs = PairLogprobs(logprobs, batch.reference, batch.tokens, mismatch)
        p_a, weight = batch.pairs.p_a, batch.pairs.weight
        loss, means = preference_loss(
            self._loss_name, pairs, p_a, self._knobs, weight=weight, normalizer=weights
        )
        decided = (p_a != 0.5).sum()
        sums = [means[name].nan_to_num() * decided for name in MEANS]
        added = [loss.detach() * weights, weight.sum(), decided, *sums]
        return loss, torch.stack([each.float() for each in added])

    @torch.no_grad()
    def _mismatch(self, batches: Sequence[PolicyPairBatch]) -> Tensor | None:
        """Mean log-ratio () on responses to other prompts, over all processes; None if the loss does not read it."""
        if not isinstance(PREFERENCE_LOSSES[self._loss_name], PointLoss):
            return None
        added = torch.zeros(2, device=self.device)
        for batch in batches:
            assert batch.mismatch is not None
            ratios = response_logprobs(self.policy, batch.mismatch).sum(dim=1) - batch.mismatch_reference
            added += torch.stack([ratios.sum(), ratios.new_tensor(len(ratios))])
        summed, count = total(added)
        return summed / count

    @staticmethod
    def _means(names: Sequence[str], counts: Tensor) -> dict[str, float]:
        """Metrics `names` from the sums of `_counts`; those without a pair are left out."""
        loss, weights, decided, *sums = counts.tolist()
        found = {names[0]: loss / weights} if weights else {}
        return found | {name: value / decided for name, value in zip(names[1:], sums, strict=True) if decided}

    # Training.

    def training_step(self, step: Sequence[PolicyPairBatch], step_index: int) -> None:
        counts = torch.zeros(3 + len(MEANS), device=self.device)
        none = torch.zeros(0, device=self.device)  # a process may have no rows in a small step
        weights = total(torch.cat([none, *(batch.pairs.weight for batch in step)]).sum())
        weights = weights.where(weights > 0, 1.0)
        mismatch = self._mismatch(step)

        def losses() -> Iterator[Tensor]:
            for batch in step:
                loss, added = self._counts(batch, mismatch, weights)
                counts.add_(added)
                yield loss

        rate = self.optimizers().param_groups[0]["lr"]
        take_step(self, losses(), self._optim.gradient_clip, "rl")
        metrics = self._means(TRAINING, total(counts))
        self.log_dict(metrics, batch_size=1)
        self.history.append({**metrics, "rl/lr": rate})

    def on_validation_epoch_start(self) -> None:
        self._validation = torch.zeros(3 + len(MEANS), device=self.device)

    def validation_step(self, batch: PolicyPairBatch, batch_index: int) -> None:
        weights = batch.pairs.weight.sum()
        self._validation += self._counts(batch, self._mismatch([batch]), weights.where(weights > 0, 1.0))[1]

    def on_validation_epoch_end(self) -> None:
        metrics = self._means(VALIDATION, self._validation)
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
