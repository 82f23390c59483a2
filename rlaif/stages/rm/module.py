"""The reward model: Bradley-Terry (1952) with soft labels on AI preferences (Lee et al. 2023, arXiv:2309.00267)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from rlaif.data.datamodule import PreferenceBatch
from rlaif.models.split import ScalarHead, Top
from rlaif.ops import bradley_terry_loss, total
from rlaif.stages.common.scoring import pair_scores
from rlaif.stages.common.training.optim import OptimOptions, build_optimizer, require_finite, take_step


@dataclass(frozen=True)
class PreferenceLossOptions:
    """Knobs of `ops.bradley_terry_loss`."""

    margin: float
    label_smoothing: float
    temperature: float
    centering: float


@dataclass
class Best:
    """What one member keeps: its lowest validation loss, that epoch's weights, and the number of epochs since."""

    loss: float = math.inf
    state: dict[str, Tensor] = field(default_factory=dict)
    waited: int = 0

    def see(self, loss: float, member: nn.Module) -> None:
        """Take in one epoch's validation loss."""
        self.waited += 1
        if loss < self.loss:
            state = {name: value.detach().clone() for name, value in member.state_dict().items()}
            self.loss, self.state, self.waited = loss, state, 0


class RewardModule(pl.LightningModule):
    """Trains the members of an ensemble, each a top and a score head, on the same batches.

    Each member has its own loss, clipping, best epoch and early stop, so it ends bit-identical to one trained alone.
    Its weights are those of the epoch with the lowest validation loss.

    Args:
        members: the tops and heads to train.
        patience: a member stops after this many epochs without a lower validation loss; None never stops.
        choose_from: the first epoch (from 0) that may be kept and that counts for `patience`, after a fit's earlier
            phases.
    """

    def __init__(
        self,
        members: Sequence[tuple[Top, ScalarHead]],
        optim: OptimOptions,
        loss: PreferenceLossOptions,
        *,
        head_lr_factor: float,
        patience: int | None,
        choose_from: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # gradients are computed part by part within a step
        self._members = nn.ModuleList(nn.ModuleDict({"top": top, "score": head}) for top, head in members)
        self._optim, self._loss_options, self._head_factor = optim, loss, head_lr_factor
        self._patience, self._choose_from = patience, choose_from
        self.best = [Best() for _ in members]
        self.epochs = 0  # epochs run

    @property
    def members(self) -> list[tuple[Top, ScalarHead]]:
        """Top and head of each member."""
        return [(member["top"], member["score"]) for member in self._members]  # type: ignore[index]

    def _running(self) -> list[int]:
        """The members that have not stopped yet."""
        patience = math.inf if self._patience is None else self._patience
        return [index for index, best in enumerate(self.best) if best.waited < patience]

    # Loss.

    def _weights(self, batch: PreferenceBatch) -> Tensor:
        """Each pair's weight for each member: (B, M)."""
        return batch.weight.reshape(len(batch.p_a), -1).expand(-1, len(self._members))

    def _loss(self, index: int, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """One member's weighted sum of losses, and counts to sum over batches: (4,) detached.

        These are that sum, the weights, the pairs ranked as labelled, and the pairs whose label ranks them.
        """
        knobs, weight = vars(self._loss_options), self._weights(batch)[:, index]
        scores = pair_scores(*self.members[index], batch)
        loss, metrics = bradley_terry_loss(*scores, batch.p_a, weight=weight, normalizer=1.0, **knobs)
        ranked = (batch.p_a != 0.5).sum()
        right = metrics["accuracy"].nan_to_num() * ranked
        return loss, torch.stack([loss.detach(), weight.sum(), right, ranked])

    def _no_counts(self) -> Tensor:
        return torch.zeros(len(self._members), 4, device=self.device)

    def _log_means(self, loss_name: str, accuracy_name: str, counts: Tensor, pairs: int) -> None:
        """Log the means, over the members, of `counts` (M, 4)."""
        loss, weight, right, ranked = counts.unbind(1)
        self.log(loss_name, (loss / weight).mean(), prog_bar=True, batch_size=pairs)
        self.log(accuracy_name, (right / ranked).mean(), prog_bar=True, batch_size=pairs)

    # Training.

    def training_step(self, step: Sequence[PreferenceBatch], step_index: int) -> None:
        running, counts = self._running(), self._no_counts()
        none = counts.new_zeros(0, len(self._members))  # a process may have no rows in a small step
        weights = total(torch.cat([none, *(self._weights(batch) for batch in step)]).sum(dim=0))
        # A resample may leave a member without a pair in a small step: its loss is then zero, not 0 / 0.
        weights = weights.where(weights > 0, 1.0)

        def losses() -> Iterator[Tensor]:
            for batch in step:
                for index in running:
                    loss, added = self._loss(index, batch)
                    counts[index] += added
                    yield loss / weights[index]

        take_step(self, losses(), self._optim.gradient_clip, "rm")
        pairs = sum(len(batch.p_a) for batch in step)
        self._log_means("rm/loss", "rm/train_accuracy", total(counts)[running], pairs)

    def on_train_start(self) -> None:
        # For a resume from the checkpoint of the epoch that stopped the last member.
        self.trainer.should_stop = not self._running()

    def on_validation_epoch_start(self) -> None:
        self._validation = self._no_counts()

    def validation_step(self, batch: PreferenceBatch, batch_index: int) -> None:
        for index in self._running():
            self._validation[index] += self._loss(index, batch)[1]

    def on_validation_epoch_end(self) -> None:
        running = self._running()
        self.epochs = self.current_epoch + 1
        require_finite(self._validation[running], "validation loss", f"rm after epoch {self.epochs}")
        self._log_means("rm/val_loss", "rm/val_accuracy", self._validation[running], 1)
        if self.current_epoch >= self._choose_from:
            for index in running:
                loss, weight = self._validation[index, :2]
                self.best[index].see(float(loss / weight), self._members[index])
        self.trainer.should_stop = not self._running()

    def on_fit_end(self) -> None:
        for member, best in zip(self._members, self.best, strict=True):
            if best.state:
                member.load_state_dict(best.state)

    # Optimisation and checkpoints.

    def configure_optimizers(self) -> dict[str, Any]:
        groups = [
            group
            for top, head in self.members
            for group in ((top.parameters(), 1.0), (head.parameters(), self._head_factor))
        ]
        return build_optimizer(groups, self._optim)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = [
            # If this epoch is the best, the file stores its weights once, as the module's.
            {**vars(best), "state": member.state_dict() if best.state and not best.waited else best.state}
            for member, best in zip(self._members, self.best, strict=True)
        ]
        checkpoint["reward"] = {"epochs": self.epochs, "best": kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.epochs = checkpoint["reward"]["epochs"]
        self.best = [Best(**best) for best in checkpoint["reward"]["best"]]
