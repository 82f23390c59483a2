"""PPO (Schulman et al. 2017, arXiv:1707.06347) and its relatives in Lightning: one epoch is one iteration.

REINFORCE, RLOO, GRPO, Dr. GRPO and RAFT are this module with other options: which advantages, which loss, where the KL
enters, and whether there is a value head at all.

`on_train_epoch_start` collects rollouts into an in-memory buffer, `training_step` is only the minibatch loss, and
checkpoints are written at epoch ends. Prompts, noise and minibatch order are functions of (seed, iteration), so that
a resumed run is bit-identical to an uninterrupted one on a CPU.

Notation: N rollouts, T positions. All per-token tensors are (N, T) and aligned with the token they belong to:
`values[:, t]` is the value of the state in which token t was chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rlaif.inference.rollouts import Rollout
from rlaif.models.split import ScalarHead, Top
from rlaif.ops import (
    LOSS_MEANS,
    POLICY_LOSSES,
    Horizon,
    KLKind,
    adapted_beta,
    by_advantage,
    by_first,
    kl_estimate,
    kl_loss,
    kl_shaped_rewards,
    learnt_mask,
    masked_mean,
    masked_sum,
    own_share,
    penalised_scores,
    ppo_value_loss,
    ranks,
    total,
    whiten,
)
from rlaif.stages.common.training.logprobs import entropies, response_hidden, scatter_counted
from rlaif.stages.common.training.optim import (
    OptimOptions,
    build_optimizer,
    clip_each_group,
    require_finite,
    sum_gradients,
)
from rlaif.stages.rl.online.tracker import Tracker

RATIO_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class PPOOptions:
    """The algorithm and its knobs.

    Sources: Huang et al. 2024 (arXiv:2403.17031) for the temperature of log-probabilities, the per-token KL reward,
    whitening and `missing_eos_score`; Schulman 2020 ("Approximating KL divergence") for `kl_estimator`; Ziegler et
    al. 2019 for the adaptive `kl_controller`; Lee et al. 2023 (arXiv:2309.00267) for `convex_kl`.
    """

    advantage: str  # of an entry in `ALGORITHMS`; some compare the `samples_per_prompt` responses to a prompt
    loss: str  # of `POLICY_LOSSES`
    loss_mean: str  # of `LOSS_MEANS`
    max_response_tokens: int  # what the loss mean `constant` divides by
    samples_per_prompt: int
    temperature: float  # sampling temperature; also divides the logits of every log-probability
    beta: float  # weight of the KL penalty; where an adaptive controller starts
    kl: Literal["reward", "loss"]
    kl_estimator: KLKind
    kl_controller: Literal["fixed", "adaptive"]
    kl_target: float
    kl_horizon: float
    convex_kl: bool  # maximise (1 - beta) score - beta KL instead of score - beta KL
    gamma: float
    lam: float
    clip: float
    value_clip: float
    value_coefficient: float
    ppo_epochs: int
    minibatch_rollouts: int
    whiten_rewards: bool  # keeps their mean
    whiten_advantages: bool
    missing_eos_penalty: float  # subtracted from the score of a response without EOS
    missing_eos_score: float | None  # or replaces its whole score
    length_penalty: float  # subtracted from the score per token
    value_lr_factor: float
    max_kl: float | None  # stop, without more updates, above this KL to the reference (nats per response)
    seed: int


@dataclass(frozen=True)
class Experience:
    """A rollout with everything that the loss reads: ids (N, T), trunk features, and per-token tensors (N, T)."""

    ids: Tensor
    features: Tensor
    mask: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor

    def rows(self, index: Tensor) -> Experience:
        """The rows at `index`, cut to their longest sequence, so that padding costs nothing."""
        width = int(self.mask[index].any(dim=0).nonzero().max()) + 1
        return Experience(*(getattr(self, f.name)[index, :width] for f in fields(self)))


class PPOModule(pl.LightningModule):
    """Trains a policy top (and a value head, if there is one) on a reward given as a callable.

    Args:
        policy: the top to train.
        value_head: the critic's head, or None for an algorithm without a critic.
        value_top: a separate top for the value head, or None to share the policy's.
        reference: the frozen SFT policy; it is not part of this module's checkpoints.
        collect: iteration -> `Rollout` sampled from the current policy.
        reward: `Rollout` -> scores (N,).
        diagnose: `Rollout` -> further metrics of the responses (copy rate and the like).
        watch: called with the history, including the new row, at each iteration's end.
        tracker: measures the policy on fixed prompts and may stop the run, or None.
    """

    def __init__(
        self,
        policy: Top,
        value_head: ScalarHead | None,
        value_top: Top | None,
        reference: Top,
        *,
        collect: Callable[[int], Rollout],
        reward: Callable[[Rollout], Tensor],
        diagnose: Callable[[Rollout], dict[str, float]],
        watch: Callable[[Sequence[dict[str, float]]], object],
        tracker: Tracker | None,
        rollouts_per_iteration: int,
        options: PPOOptions,
        optim: OptimOptions,
    ) -> None:
        super().__init__()
        self.policy, self.value_head, self.value_top = policy, value_head, value_top
        object.__setattr__(self, "reference", reference)  # kept out of parameters and checkpoints
        self._collect, self._reward, self._diagnose, self._watch = collect, reward, diagnose, watch
        self._tracker = tracker
        self._options, self._optim, self._count = options, optim, rollouts_per_iteration
        # Row numbers of the minibatches of one iteration; refilled at each epoch's start.
        self._order = torch.zeros(options.ppo_epochs * rollouts_per_iteration, dtype=torch.long)
        self.beta = options.beta
        self._experience: Experience | None = None
        self._metrics: dict[str, float] = {}
        self._sums: dict[str, list[Tensor]] = {}
        self.history: list[dict[str, float]] = []

    # Data: the buffer of this iteration.

    def train_dataloader(self) -> DataLoader:
        rows: Any = self._order  # a tensor has all that a map-style dataset needs
        return DataLoader(rows, batch_size=self._options.minibatch_rollouts, shuffle=False, num_workers=0)

    def on_train_start(self) -> None:
        # Resumed after it had stopped by itself (a last row without updates): there is nothing left to do.
        if self.history and "rl/ratio_first" not in self.history[-1]:
            self.trainer.should_stop = True

    def on_train_epoch_start(self) -> None:
        iteration, options = self.current_epoch, self._options
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + iteration)
        orders = [self._permuted(generator) for _ in range(options.ppo_epochs)]
        self._order.copy_(torch.cat(orders))
        tracked = self._track(iteration)
        started = time.perf_counter()
        rollout = self._collect(iteration)
        rolled = time.perf_counter()
        self._experience, self._metrics = self._prepare(rollout, orders[0].split(options.minibatch_rollouts))
        self._metrics["rl/seconds_rollout"] = rolled - started
        self._metrics["rl/seconds_prepare"] = time.perf_counter() - rolled
        self._metrics["rl/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._metrics.update(self._diagnose(rollout) | tracked)
        self._sums, self._update_started = {}, time.perf_counter()
        if options.max_kl is not None and self._metrics["rl/kl"] > options.max_kl:
            self.trainer.should_stop = True

    def _permuted(self, generator: torch.Generator) -> Tensor:
        """The rows in a random order; where one of each group is learnt, groups stay whole.

        So every minibatch has equally many to learn from.
        """
        group = self._options.samples_per_prompt if by_advantage(self._options.advantage).chooses else 1
        order = torch.randperm(self._count // group, generator=generator)
        return (order[:, None] * group + torch.arange(group)).flatten()

    def _track(self, iteration: int) -> dict[str, float]:
        """The tracker's metrics, if it measures before this iteration; it may stop the run."""
        if self._tracker is None:
            return {}
        started = time.perf_counter()
        tracked = self._tracker.at(iteration)
        if tracked:
            tracked["rl/seconds_track"] = time.perf_counter() - started
            self.trainer.should_stop |= self._tracker.should_stop
        return tracked

    @torch.no_grad()
    def _prepare(self, rollout: Rollout, chunks: Sequence[Tensor]) -> tuple[Experience, dict[str, float]]:
        """Score a rollout: what the updates read, and the iteration's metrics."""
        place = f"rl at iteration {self.current_epoch + 1}"
        experience, entropy = self._read(rollout, chunks)
        for what, values in (
            ("policy's log-probability", experience.old_logprobs),
            ("reference policy's log-probability", experience.ref_logprobs),
            ("value", experience.old_values),
        ):
            require_finite(values, what, place)
        mask, options = experience.mask, self._options
        started = time.perf_counter()
        raw = by_first(lambda: self._reward(rollout)).to(entropy)
        seconds = time.perf_counter() - started
        require_finite(raw, "reward", place)
        scores = penalised_scores(
            raw,
            rollout.finished,
            rollout.lengths(),
            missing_eos_penalty=options.missing_eos_penalty,
            missing_eos_score=options.missing_eos_score,
            length_penalty=options.length_penalty,
        )
        advantages, returns = self._credit(scores, experience)
        logprobs, reference = experience.old_logprobs, experience.ref_logprobs
        kl = masked_sum(kl_estimate(logprobs, reference, "k1"), mask, 1).mean()
        metrics: dict[str, Tensor | float] = {
            "rl/reward": raw.mean(),
            "rl/reward_std": raw.std(correction=0),
            "rl/score": scores.mean(),
            "rl/kl": kl,
            "rl/kl_coefficient": self.beta,
            "rl/objective": self._score_weight * scores.mean() - self.beta * kl,
            "rl/entropy": masked_mean(entropy, mask),
            "rl/response_length": mask.sum(dim=1).float().mean(),
            "rl/eos_rate": rollout.finished.float().mean(),
            "rl/seconds_reward": seconds,
        }
        experience = replace(experience, advantages=advantages, returns=returns)
        return experience, {name: float(value) for name, value in metrics.items()}

    def _read(self, rollout: Rollout, chunks: Sequence[Tensor]) -> tuple[Experience, Tensor]:
        """Log-probabilities and values of a rollout, and the policy's entropy (N, T).

        Computed in the shapes of the first minibatches, and by the process that trains on these rows then, so that
        the first ratio is exactly one, not just nearly.
        """
        mask = rollout.response_mask
        zeros = torch.zeros(mask.shape, device=mask.device)
        blank = Experience(rollout.ids, rollout.features, mask, zeros, zeros, zeros, zeros, zeros)
        logprobs, reference, values, entropy = (zeros.clone() for _ in range(4))
        for index in map(own_share, chunks):
            part = blank.rows(index)
            width = part.ids.shape[1]
            hidden, value = self._forward(part)
            if value is not None:
                values[index, :width] = value
            logprobs[index, :width] = self._logprobs(self.policy, hidden, part)
            entropy[index, :width] = scatter_counted(
                entropies(self.policy, hidden, self._options.temperature), part.mask
            )
            hidden = response_hidden(self.reference, part.features, part.mask)
            reference[index, :width] = self._logprobs(self.reference, hidden, part)
        logprobs, reference, values, entropy = map(total, (logprobs, reference, values, entropy))
        read = replace(blank, old_logprobs=logprobs, ref_logprobs=reference, old_values=values)
        return read, entropy

    @property
    def _score_weight(self) -> float:
        return 1.0 - self.beta if self._options.convex_kl else 1.0

    def _credit(self, scores: Tensor, experience: Experience) -> tuple[Tensor, Tensor]:
        """Advantages and returns (N, T) for scores (N,), and for the KL if it is part of the reward."""
        options, mask = self._options, experience.mask
        rewards = kl_shaped_rewards(
            self._score_weight * scores,
            experience.old_logprobs,
            experience.ref_logprobs,
            mask,
            beta=self.beta if options.kl == "reward" else 0.0,
            kind=options.kl_estimator,
        )
        if options.whiten_rewards:
            rewards = whiten(rewards, mask, center=False)
        horizon = Horizon(options.gamma, options.lam, options.samples_per_prompt)
        estimate = by_advantage(options.advantage).estimate
        advantages, returns = estimate(rewards, experience.old_values, mask, horizon)
        if options.whiten_advantages:
            advantages = whiten(advantages, mask, center=True)
        return advantages, returns

    # Maths of one minibatch.

    def _forward(self, part: Experience) -> tuple[Tensor, Tensor | None]:
        """The policy's hidden states (counted tokens, D) and the values (N, T), both before each token."""
        hidden = before = response_hidden(self.policy, part.features, part.mask)
        if self.value_head is None:
            return hidden, None
        if self.value_top is not None:
            before = response_hidden(self.value_top, part.features, part.mask)
        return hidden, scatter_counted(self.value_head(before), part.mask)

    def _logprobs(self, top: Top, hidden: Tensor, part: Experience) -> Tensor:
        """Log-probabilities (N, T) of the response tokens under the sampling temperature."""
        logprobs = top.logprobs(hidden, part.ids[part.mask], self._options.temperature)
        return scatter_counted(logprobs, part.mask)

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        """This process's share of the minibatch's loss, normalised by the counts of the whole minibatch."""
        assert self._experience is not None
        batch = self._read_rows(batch.to(self.device), batch_index)
        part, mask = self._experience.rows(own_share(batch)), self._experience.mask[batch]
        hidden, values = self._forward(part)
        counted = self._counted(self._experience.advantages[batch], mask)
        losses, means = self._losses(self._logprobs(self.policy, hidden, part), values, part, mask, counted)
        deviation = means.pop("ratio_max_deviation")
        if batch_index == 0:
            self._check_first_ratio(float(deviation))
        weights = {"policy_loss": 1.0, "value_loss": self._options.value_coefficient, "kl_loss": self.beta}
        zero, share = torch.zeros((), device=self.device), part.mask.sum() / mask.sum()
        loss = sum((weights[name] * value for name, value in losses.items()), zero)
        own = {name: share * value for name, value in means.items()}
        for name, value in {**own, **losses, "loss": loss}.items():
            self._sums.setdefault(name, []).append(value.detach())
        return loss

    def _read_rows(self, batch: Tensor, batch_index: int) -> Tensor:
        """The rows of a minibatch that add to its loss, and at least one for each process.

        All of them where the KL is a term of the loss, and in the first minibatch, whose ratio is checked.
        """
        assert self._experience is not None
        if not POLICY_LOSSES[self._options.loss].likelihood or self._options.kl == "loss" or batch_index == 0:
            return batch
        learnt = batch[self._experience.advantages[batch].any(dim=1)]
        return learnt if len(learnt) >= ranks() else batch

    def _counted(self, advantages: Tensor, mask: Tensor) -> Tensor:
        """The tokens that the policy loss is a mean over."""
        return learnt_mask(advantages, mask) if POLICY_LOSSES[self._options.loss].likelihood else mask

    def _losses(
        self, logprobs: Tensor, values: Tensor | None, part: Experience, whole: Tensor, counted: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The loss's terms, to be summed over processes, and means over this process's own tokens.

        `whole` is the mask of the whole minibatch, of which `part` is this process's share, and `counted` its part
        that the policy loss is a mean over.
        """
        options, mean = self._options, LOSS_MEANS[self._options.loss_mean]
        policy_loss, means = POLICY_LOSSES[options.loss].compute(
            logprobs,
            part.old_logprobs,
            part.advantages,
            part.mask,
            clip=options.clip,
            mean=options.loss_mean,
            normalizer=mean.count(counted, options.max_response_tokens),
        )
        losses = {"policy_loss": policy_loss}
        if values is not None:
            old, returns, clip = part.old_values, part.returns, options.value_clip
            losses["value_loss"], critic = ppo_value_loss(
                values, old, returns, part.mask, clip=clip, normalizer=whole.sum()
            )
            means["explained_variance"] = critic["explained_variance"]
        if options.kl == "loss":
            losses["kl_loss"] = kl_loss(
                logprobs,
                part.ref_logprobs,
                part.mask,
                kind=options.kl_estimator,
                mean=options.loss_mean,
                normalizer=mean.count(whole, options.max_response_tokens),
            )
        return losses, means

    def _check_first_ratio(self, deviation: float) -> None:
        """Before any update the new policy is the old one: any other ratio is a bug in the log-probabilities."""
        self._metrics["rl/ratio_first"] = 1.0 + deviation
        tolerance = RATIO_TOLERANCE[self.policy.trunk.dtype]
        if not deviation <= tolerance:
            raise RuntimeError(
                f"first-minibatch ratio is off by {deviation:.2e} (allowed {tolerance:.0e}): log-probabilities differ"
            )

    def on_train_epoch_end(self) -> None:
        sums = {name: total(torch.stack(values)) for name, values in self._sums.items()}
        self._metrics.update({f"rl/{name}": float(values.nanmean()) for name, values in sums.items()})
        self._metrics["rl/seconds_update"] = time.perf_counter() - self._update_started
        seconds = sum(self._metrics[f"rl/seconds_{part}"] for part in ("rollout", "prepare", "update"))
        self._metrics["rl/samples_per_s"] = self._count / seconds
        self.history.append(self._metrics)
        if self._options.kl_controller == "adaptive":
            self.beta = adapted_beta(
                self.beta,
                self._metrics["rl/kl"],
                target=self._options.kl_target,
                horizon=self._options.kl_horizon,
                samples=self._count,
            )
        if self.logger:
            self.logger.log_metrics(self._metrics, step=self.current_epoch)
        self._watch(self.history)
        self._experience = None

    # Optimisation and checkpoints.

    def configure_optimizers(self) -> dict[str, Any]:
        groups = [(list(self.policy.parameters()), 1.0)]
        critic = [part for part in (self.value_head, self.value_top) if part is not None]
        if critic:
            parameters = [parameter for part in critic for parameter in part.parameters()]
            groups.append((parameters, self._options.value_lr_factor))
        return build_optimizer(groups, self._optim)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        sum_gradients(optimizer)
        norm = clip_each_group(optimizer, self._optim.gradient_clip)
        require_finite(norm, "gradient", f"rl at iteration {self.current_epoch + 1}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ppo_history"], checkpoint["ppo_beta"] = self.history, self.beta
        if self._tracker is not None:
            checkpoint["ppo_tracker"] = self._tracker.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history, self.beta = list(checkpoint["ppo_history"]), checkpoint["ppo_beta"]
        if self._tracker is not None:
            self._tracker.load_state_dict(checkpoint["ppo_tracker"])
