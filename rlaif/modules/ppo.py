"""PPO in Lightning: one epoch is one iteration (DESIGN 10).

`on_train_epoch_start` collects rollouts into an in-memory buffer, `training_step` is the minibatch loss
alone, checkpoints stand at epoch ends. Prompts, noise and minibatch order are functions of (seed,
iteration), so that a resumed run is bit-identical to an uninterrupted one on CPU.

Notation: N rollouts, T positions. All per-token tensors are (N, T) and aligned with the token they belong
to: `values[:, t]` is the value of the state in which token t was chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rlaif.models.split import ScalarHead, Top
from rlaif.modules.optim import (
    OptimOptions,
    build_optimizer,
    clip_each_group,
    response_hidden,
    scatter_counted,
)
from rlaif.ops import (
    gae,
    kl_estimate,
    kl_shaped_rewards,
    masked_mean,
    masked_sum,
    ppo_policy_loss,
    ppo_value_loss,
    token_entropy,
    whiten,
)
from rlaif.rollout import Rollout

ENTROPY_ROWS = 128  # rows whose logits exist at once
RATIO_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class PPOOptions:
    """Knobs of PPO (paper.md section 7 numbers in brackets)."""

    temperature: float  # sampling temperature, also divides the logits of every log-probability [20]
    beta: float  # weight of the per-token KL penalty [22]
    gamma: float
    lam: float
    clip: float
    value_clip: float
    value_coefficient: float
    ppo_epochs: int
    minibatch_rollouts: int
    whiten_advantages: bool
    missing_eos_penalty: float  # subtracted from the score of a response without EOS [21]
    value_lr_factor: float
    max_kl: float | None  # stop, without more updates, when KL to the reference (nats a response) passes this
    seed: int


@dataclass(frozen=True)
class Experience:
    """A rollout with everything the loss reads: per-token tensors are (N, T), `scores` (N,)."""

    ids: Tensor
    features: Tensor
    mask: Tensor
    old_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor

    def rows(self, index: Tensor) -> Experience:
        """The rows at `index`, cut to their own longest sequence (padding costs nothing then)."""
        width = int(self.mask[index].any(dim=0).nonzero().max()) + 1
        return Experience(*(getattr(self, f.name)[index, :width] for f in fields(self)))


class _Order(Dataset):
    """Row numbers of the minibatches of one iteration; filled anew at each epoch's start."""

    def __init__(self, length: int) -> None:
        self.rows = torch.zeros(length, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


class PPOModule(pl.LightningModule):
    """Trains a policy top (and a value head) against a reward given as a callable.

    Args:
        policy: the top to train. value_top: a top of its own for the value head, or None to share.
        reference: the frozen SFT policy; it is no part of this module's checkpoints.
        collect: iteration -> `Rollout` sampled from the policy as it stands.
        reward: `Rollout` -> scores (N,).
        diagnose: `Rollout` -> further metrics of the responses (copy rate and the like).
    """

    def __init__(
        self,
        policy: Top,
        value_head: ScalarHead,
        value_top: Top | None,
        reference: Top,
        *,
        collect: Callable[[int], Rollout],
        reward: Callable[[Rollout], Tensor],
        diagnose: Callable[[Rollout], dict[str, float]],
        rollouts_per_iteration: int,
        options: PPOOptions,
        optim: OptimOptions,
    ) -> None:
        super().__init__()
        self.policy, self.value_head, self.value_top = policy, value_head, value_top
        object.__setattr__(self, "reference", reference)  # kept out of parameters and checkpoints
        self._collect, self._reward, self._diagnose = collect, reward, diagnose
        self._options, self._optim, self._count = options, optim, rollouts_per_iteration
        self._order = _Order(options.ppo_epochs * rollouts_per_iteration)
        self._experience: Experience | None = None
        self._metrics: dict[str, float] = {}
        self._sums: dict[str, list[Tensor]] = {}
        self.history: list[dict[str, float]] = []

    # Data: the buffer of this iteration.

    def train_dataloader(self) -> DataLoader:
        return DataLoader(
            self._order, batch_size=self._options.minibatch_rollouts, shuffle=False, num_workers=0
        )

    def on_train_epoch_start(self) -> None:
        iteration, options = self.current_epoch, self._options
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + iteration)
        orders = [torch.randperm(self._count, generator=generator) for _ in range(options.ppo_epochs)]
        self._order.rows.copy_(torch.cat(orders))
        started = time.perf_counter()
        rollout = self._collect(iteration)
        rolled = time.perf_counter()
        self._experience, self._metrics = self._prepare(rollout, orders[0].split(options.minibatch_rollouts))
        self._metrics["ppo/seconds_rollout"] = rolled - started
        self._metrics["ppo/seconds_prepare"] = time.perf_counter() - rolled
        self._metrics.update(self._diagnose(rollout))
        self._sums, self._update_started = {}, time.perf_counter()
        if options.max_kl is not None and self._metrics["ppo/kl"] > options.max_kl:
            self.trainer.should_stop = True

    @torch.no_grad()
    def _prepare(self, rollout: Rollout, chunks: Sequence[Tensor]) -> tuple[Experience, dict[str, float]]:
        """Score a rollout; log-probabilities are computed in the first minibatches' own shapes,

        so that the first ratio is one to the last bit and not only nearly so.
        """
        mask, options = rollout.response_mask, self._options
        zeros = torch.zeros(mask.shape, device=mask.device)
        blank = Experience(rollout.ids, rollout.features, mask, zeros, zeros, zeros, zeros)
        logprobs, reference, values, entropy = (zeros.clone() for _ in range(4))
        for index in chunks:
            part = blank.rows(index)
            width = part.ids.shape[1]
            hidden, values[index, :width] = self._forward(part)
            logprobs[index, :width] = self._logprobs(self.policy, hidden, part)
            entropy[index, :width] = scatter_counted(self._entropy(hidden), part.mask)
            hidden = response_hidden(self.reference, part.features, part.mask)
            reference[index, :width] = self._logprobs(self.reference, hidden, part)
        raw = self._reward(rollout).to(zeros)
        scores = raw - options.missing_eos_penalty * (~rollout.finished).to(raw)
        rewards = kl_shaped_rewards(scores, logprobs, reference, mask, beta=options.beta)
        advantages, returns = gae(rewards, values, mask, gamma=options.gamma, lam=options.lam)
        if options.whiten_advantages:
            advantages = whiten(advantages, mask, center=True)
        kl = masked_sum(kl_estimate(logprobs, reference, "k1"), mask, 1).mean()
        metrics = {
            "ppo/reward": raw.mean(),
            "ppo/reward_std": raw.std(correction=0),
            "ppo/score": scores.mean(),
            "ppo/kl": kl,
            "ppo/objective": scores.mean() - options.beta * kl,
            "ppo/entropy": masked_mean(entropy, mask),
            "ppo/response_length": mask.sum(dim=1).float().mean(),
            "ppo/eos_rate": rollout.finished.float().mean(),
        }
        experience = replace(
            blank, old_logprobs=logprobs, old_values=values, advantages=advantages, returns=returns
        )
        return experience, {name: float(value) for name, value in metrics.items()}

    # Maths of one minibatch.

    def _forward(self, part: Experience) -> tuple[Tensor, Tensor]:
        """Policy's hidden states (counted tokens, D) and values (N, T), both before each token."""
        hidden = response_hidden(self.policy, part.features, part.mask)
        before = (
            hidden if self.value_top is None else response_hidden(self.value_top, part.features, part.mask)
        )
        return hidden, scatter_counted(self.value_head(before), part.mask)

    def _logprobs(self, top: Top, hidden: Tensor, part: Experience) -> Tensor:
        """Log-probabilities (N, T) of the response tokens under the sampling temperature."""
        return scatter_counted(
            top.logprobs(hidden, part.ids[part.mask], self._options.temperature), part.mask
        )

    def _entropy(self, hidden: Tensor) -> Tensor:
        chunks = hidden.split(ENTROPY_ROWS)
        return torch.cat([token_entropy(self.policy.logits(h) / self._options.temperature) for h in chunks])

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        assert self._experience is not None
        options, part = self._options, self._experience.rows(batch.to(self.device))
        hidden, values = self._forward(part)
        logprobs = self._logprobs(self.policy, hidden, part)
        policy_loss, metrics = ppo_policy_loss(
            logprobs, part.old_logprobs, part.advantages, part.mask, clip=options.clip
        )
        value_loss, value_metrics = ppo_value_loss(
            values, part.old_values, part.returns, part.mask, clip=options.value_clip
        )
        if batch_index == 0:
            self._check_first_ratio(float(metrics["ratio_max_deviation"]))
        loss = policy_loss + options.value_coefficient * value_loss
        for name, value in {
            **metrics,
            **value_metrics,
            "policy_loss": policy_loss.detach(),
            "loss": loss.detach(),
        }.items():
            self._sums.setdefault(name, []).append(value)
        return loss

    def _check_first_ratio(self, deviation: float) -> None:
        """Before any update the new policy is the old one: anything else is a bug in log-probabilities."""
        self._metrics["ppo/ratio_first"] = 1.0 + deviation
        tolerance = RATIO_TOLERANCE[self.policy.trunk.dtype]
        if not deviation <= tolerance:
            raise RuntimeError(
                f"first-minibatch ratio is off by {deviation:.2e} (allowed {tolerance:.0e}): log-probabilities differ"
            )

    def on_train_epoch_end(self) -> None:
        means = {f"ppo/{name}": float(torch.stack(values).nanmean()) for name, values in self._sums.items()}
        means.pop("ppo/ratio_max_deviation", None)
        self._metrics.update(means)
        self._metrics["ppo/seconds_update"] = time.perf_counter() - self._update_started
        seconds = sum(self._metrics[f"ppo/seconds_{part}"] for part in ("rollout", "prepare", "update"))
        self._metrics["ppo/samples_per_s"] = self._count / seconds
        self.history.append(self._metrics)
        if self.logger:
            self.logger.log_metrics(self._metrics, step=self.current_epoch)
        self._experience = None

    # Optimisation and checkpoints.

    def configure_optimizers(self) -> dict[str, Any]:
        value = list(self.value_head.parameters())
        if self.value_top is not None:
            value += list(self.value_top.parameters())
        return build_optimizer(
            [(self.policy.parameters(), 1.0), (value, self._options.value_lr_factor)], self._optim
        )

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        clip_each_group(optimizer, self._optim.gradient_clip)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ppo_history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint["ppo_history"])
