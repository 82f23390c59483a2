"""Online DPO (Guo et al. 2024, arXiv:2402.04792) and its relatives in Lightning: one epoch is one iteration.

`on_train_epoch_start` draws two responses to each prompt, has the pairs labelled and reads their log-probabilities;
`training_step` is an update on some of the pairs, by the losses of `rl=dpo`; checkpoints are written at epoch ends.
Prompts, noise and order are functions of (seed, iteration), so that a resumed run is bit-identical to an uninterrupted
one on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rlaif.data.datamodule import PreferenceRow
from rlaif.data.policy_pairs import PolicyPair, PolicyPairBatch, collate_policy_pairs
from rlaif.inference.rollouts import Rollout
from rlaif.models.split import Top
from rlaif.ops import PreferenceKnobs, by_first, own_share
from rlaif.stages.common.preferences.labels import TrainingRows
from rlaif.stages.common.training.logprobs import by_response, entropies, of_pairs, pair_hidden, pair_logprobs
from rlaif.stages.common.training.optim import OptimOptions, build_optimizer, require_finite
from rlaif.stages.rl.online.tracker import Tracker
from rlaif.stages.rl.online_pairs.labels import Label
from rlaif.stages.rl.online_pairs.pairs import is_equal, rollout_pairs
from rlaif.stages.rl.pair_step import SUMS, TRAINING, PairStep, step_means

TRAINED = "rl/train_pairs"
"""A metric of iterations with updates alone."""


@dataclass(frozen=True)
class OnlinePairsOptions:
    """The loss and its settings; `pairs` are drawn per iteration and passed over `passes` times.

    `temperature` is of sampling, and divides the logits of every log-probability. Above `max_kl` (nats per response;
    None: never) the run stops.
    """

    loss: str
    knobs: PreferenceKnobs
    temperature: float
    pairs: int
    passes: int
    batch_size: int
    micro_batch_size: int
    max_kl: float | None
    seed: int

    @property
    def updates(self) -> int:
        """Updates per iteration."""
        return self.passes * -(-self.pairs // self.batch_size)


class OnlinePairsModule(pl.LightningModule):
    """Trains a policy's top on pairs of its own responses.

    Args:
        policy: the top to train.
        reference: the frozen SFT policy; it is not part of this module's checkpoints.
        collect: iteration -> `Rollout` of the current policy, with the two responses to a prompt adjacent.
        label: gives the pairs of a rollout their labels.
        prepare: rows with labels -> rows as the loss sees them, without those that are too unsure.
        diagnose: `Rollout` -> further metrics of the responses (copy rate and the like).
        watch: called with the history, including the new row, at each iteration's end.
        tracker: measures the policy on fixed prompts and may stop the run, or None.
    """

    def __init__(
        self,
        policy: Top,
        reference: Top,
        *,
        collect: Callable[[int], Rollout],
        label: Label,
        prepare: Callable[[Sequence[PreferenceRow]], TrainingRows],
        diagnose: Callable[[Rollout], dict[str, float]],
        watch: Callable[[Sequence[dict[str, float]]], object],
        tracker: Tracker | None,
        options: OnlinePairsOptions,
        optim: OptimOptions,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # gradients are computed part by part within a step
        self.policy = policy
        object.__setattr__(self, "reference", reference)  # kept out of parameters and checkpoints
        self._collect, self._label, self._prepare = collect, label, prepare
        self._diagnose, self._watch, self._tracker = diagnose, watch, tracker
        self._options, self._optim = options, optim
        self._step = PairStep(policy, options.loss, options.knobs, options.temperature)
        self._parts: list[list[PolicyPair]] = []  # the pairs of each update of this iteration
        self._metrics: dict[str, float] = {}
        self._sums = torch.zeros(SUMS)
        self.history: list[dict[str, float]] = []

    # Data: the pairs of this iteration.

    def train_dataloader(self) -> DataLoader:
        numbers: Any = range(self._options.updates)  # as many whatever was dropped, as the schedule expects
        return DataLoader(numbers, batch_size=None, shuffle=False, num_workers=0)

    def on_train_epoch_start(self) -> None:
        iteration, started = self.current_epoch, time.perf_counter()
        tracked = self._tracker.at(iteration) if self._tracker is not None else {}
        if tracked and self._tracker is not None:
            tracked["rl/seconds_track"] = time.perf_counter() - started
            self.trainer.should_stop |= self._tracker.should_stop
        started = time.perf_counter()
        rollout = self._collect(iteration)
        rolled = time.perf_counter()
        pairs = rollout_pairs(rollout, iteration)
        reference, self._metrics = self._read(rollout, pairs)
        if self._options.max_kl is not None and self._metrics["rl/kl"] > self._options.max_kl:
            self.trainer.should_stop = True
        if not self.trainer.should_stop:  # no label is paid for that nothing would learn from
            self._parts = self._ordered(self._labelled(rollout, pairs, reference), iteration)
        self._metrics["rl/seconds_rollout"] = rolled - started
        self._metrics["rl/seconds_prepare"] = time.perf_counter() - rolled
        self._metrics["rl/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._metrics.update(self._diagnose(rollout) | tracked)
        self._sums, self._update_started = torch.zeros(SUMS, device=self.device), time.perf_counter()

    def _read(self, rollout: Rollout, pairs: Sequence[PolicyPair]) -> tuple[Tensor, dict[str, float]]:
        """Log-probabilities (N, 2) of the pairs under the reference, and the iteration's metrics so far.

        The KL to the reference is the mean log-ratio over all responses, those of dropped pairs among them.
        """
        place, temperature = f"rl at iteration {self.current_epoch + 1}", self._options.temperature

        def of_policy(batch: PolicyPairBatch) -> Tensor:
            hidden = pair_hidden(self.policy, batch)
            logprobs = self.policy.logprobs(hidden, batch.ids, temperature)
            both = logprobs, entropies(self.policy, hidden, temperature)
            return torch.stack([by_response(values.float(), batch) for values in both], dim=2)

        device = str(self.device)
        logprobs, entropy = of_pairs(of_policy, pairs, device).unbind(dim=2)
        reference = of_pairs(lambda batch: pair_logprobs(self.reference, batch, temperature), pairs, device)
        require_finite(logprobs, "policy's log-probability", place)
        require_finite(reference, "reference policy's log-probability", place)
        lengths = rollout.lengths().float()
        return reference, {
            "rl/kl": float((logprobs - reference).mean()),
            "rl/entropy": float(entropy.sum() / lengths.sum()),
            "rl/response_length": float(lengths.mean()),
            "rl/eos_rate": float(rollout.finished.float().mean()),
        }

    def _labelled(self, rollout: Rollout, pairs: Sequence[PolicyPair], reference: Tensor) -> list[PolicyPair]:
        """The pairs to learn from; what is left out is counted, and no label is made up."""
        started = time.perf_counter()
        asked = {n: pair.row.pair for n, pair in enumerate(pairs) if not is_equal(pair.row.pair)}
        labels, told = by_first(lambda: self._label(rollout, asked))
        self._metrics |= told | {"rl/seconds_reward": time.perf_counter() - started}
        rows = [replace(pairs[n].row, p_a=p_a) for n, p_a in labels.items()]
        ready = self._prepare(rows)
        numbers = {pairs[n].row.pair.id: n for n in labels}
        kept = [_known(row, pairs, reference, numbers) for phase in ready.phases for row in phase]
        self._metrics |= {
            TRAINED: len(kept),
            "rl/equal_dropped": len(pairs) - len(asked),
            "rl/unread_dropped": len(asked) - len(labels),
            "rl/dropped_pairs": ready.dropped,
            "rl/flipped_pairs": ready.flipped,
        }
        return kept

    def _ordered(self, kept: Sequence[PolicyPair], iteration: int) -> list[list[PolicyPair]]:
        """The pairs of each update: of every pass equally many per update, in an order of its own."""
        options = self._options
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + iteration)
        parts = []
        for _ in range(options.passes):
            order = torch.randperm(len(kept), generator=generator)
            split = order.tensor_split(options.updates // options.passes)
            parts += [[kept[i] for i in part.tolist()] for part in split]
        return parts

    # Updates.

    def training_step(self, number: int, batch_index: int) -> None:
        rows, size = own_share(self._parts[int(number)]), self._options.micro_batch_size
        batches = [
            collate_policy_pairs(rows[i : i + size]).to(self.device) for i in range(0, len(rows), size)
        ]
        self._sums += self._step.take(self, batches, self._optim.gradient_clip)

    def on_train_epoch_end(self) -> None:
        self._metrics |= step_means(TRAINING, self._sums)
        self._metrics["rl/seconds_update"] = time.perf_counter() - self._update_started
        seconds = sum(self._metrics[f"rl/seconds_{part}"] for part in ("rollout", "prepare", "update"))
        self._metrics["rl/samples_per_s"] = 2 * self._options.pairs / seconds
        self.history.append(self._metrics)
        if self.logger:
            self.logger.log_metrics(self._metrics, step=self.current_epoch)
        self._watch(self.history)
        self._parts = []

    # Optimisation and checkpoints.

    def configure_optimizers(self) -> dict[str, Any]:
        return build_optimizer([(self.policy.parameters(), 1.0)], self._optim)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["pairs_history"] = self.history
        if self._tracker is not None:
            checkpoint["pairs_tracker"] = self._tracker.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint["pairs_history"])
        if self._tracker is not None:
            self._tracker.load_state_dict(checkpoint["pairs_tracker"])


def _known(
    row: PreferenceRow, pairs: Sequence[PolicyPair], reference: Tensor, numbers: Mapping[str, int]
) -> PolicyPair:
    """The pair of a labelled row, with its log-probabilities under the reference."""
    number = numbers[row.pair.id]
    a, b = reference[number].tolist()
    return replace(pairs[number], row=row, reference=(a, b))
