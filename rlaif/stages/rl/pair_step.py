"""An update on labelled pairs, and its metrics: what preference optimisation on old and on new pairs shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import pytorch_lightning as pl
import torch
from torch import Tensor

from rlaif.data.policy_pairs import PolicyPairBatch
from rlaif.errors import UserError
from rlaif.models.split import Top
from rlaif.ops import PREFERENCE_LOSSES, PairLogprobs, PointLoss, PreferenceKnobs, preference_loss, total
from rlaif.options.training import RLOptions
from rlaif.stages.common.training.logprobs import pair_logprobs, response_logprobs
from rlaif.stages.common.training.optim import take_step

MEANS = ("accuracy", "margin", "preferred_log_ratio", "other_log_ratio")
"""Metrics of `preference_loss`, means over the pairs whose label prefers a side."""
TRAINING = ("rl/loss", "rl/accuracy", "rl/margin", "rl/preferred_log_ratio", "rl/other_log_ratio")
"""What the loss and `MEANS` are logged as."""
SUMS = 3 + len(MEANS)
"""How many sums `PairStep.counts` gives."""


def pair_knobs(options: RLOptions) -> PreferenceKnobs:
    """The loss's settings: keys of `rl` with the same names."""
    return PreferenceKnobs(**{field.name: getattr(options, field.name) for field in fields(PreferenceKnobs)})


def check_pair_loss(options: RLOptions, algorithm: str) -> None:
    """Raises UserError for a loss that `rl=algorithm` does not know, or whose settings make no sense together."""
    if options.loss not in PREFERENCE_LOSSES:
        *first, last = PREFERENCE_LOSSES
        raise UserError(
            f"rl.loss={options.loss} is not one of rl={algorithm}: write {', '.join(first)} or {last}"
        )
    if options.loss == "robust" and not options.label_smoothing:
        raise UserError(
            "rl.loss=robust corrects for labels that are wrong with probability rl.label_smoothing=0, which is "
            "rl.loss=sigmoid: write how many are, such as rl.label_smoothing=0.1"
        )
    if options.loss == "sft" and not options.nll_weight:
        raise UserError(
            "rl.loss=sft is the likelihood of the preferred responses, so rl.nll_weight=0 leaves nothing: write 1"
        )
    if not options.beta:
        raise UserError(f"rl.beta=0 weighs nothing in rl={algorithm}: write a number above 0, such as 0.1")


@dataclass(frozen=True)
class PairStep:
    """Losses of `policy` on pairs whose log-probabilities under the reference policy are known.

    Args:
        loss: a name in `PREFERENCE_LOSSES`.
        temperature: divides the logits of every log-probability.
    """

    policy: Top
    loss: str
    knobs: PreferenceKnobs
    temperature: float = 1.0

    def counts(
        self, batch: PolicyPairBatch, mismatch: Tensor | None, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The batch's share of a loss over `weights`, and sums to add over batches: (SUMS,) detached.

        These are the weighted losses, the weights, the pairs whose label prefers a side, and `MEANS` over them.
        """
        logprobs = pair_logprobs(self.policy, batch, self.temperature)
        pairs = PairLogprobs(logprobs, batch.reference, batch.tokens, mismatch)
        p_a, weight = batch.pairs.p_a, batch.pairs.weight
        loss, means = preference_loss(self.loss, pairs, p_a, self.knobs, weight=weight, normalizer=weights)
        decided = (p_a != 0.5).sum()
        sums = [means[name].nan_to_num() * decided for name in MEANS]
        added = [loss.detach() * weights, weight.sum(), decided, *sums]
        return loss, torch.stack([each.float() for each in added])

    @torch.no_grad()
    def mismatch(self, batches: Sequence[PolicyPairBatch]) -> Tensor | None:
        """Mean log-ratio () on responses to other prompts, over all processes; None if the loss does not read it."""
        if not isinstance(PREFERENCE_LOSSES[self.loss], PointLoss):
            return None
        added = torch.zeros(2, device=next(self.policy.parameters()).device)
        for batch in batches:
            assert batch.mismatch is not None
            new = response_logprobs(self.policy, batch.mismatch, self.temperature).sum(dim=1)
            ratios = new - batch.mismatch_reference
            added += torch.stack([ratios.sum(), ratios.new_tensor(len(ratios))])
        summed, count = total(added)
        return summed / count

    def take(self, module: pl.LightningModule, batches: Sequence[PolicyPairBatch], max_norm: float) -> Tensor:
        """One step of `module`'s optimiser on the micro-batches; the sums of `counts` over all processes.

        A process may have no batch in a small step. If none has one, nothing is updated.
        """
        counts = torch.zeros(SUMS, device=module.device)
        none = torch.zeros(0, device=module.device)
        weights = total(torch.cat([none, *(batch.pairs.weight for batch in batches)]).sum())
        weights = weights.where(weights > 0, 1.0)
        mismatch = self.mismatch(batches)

        def losses() -> Iterator[Tensor]:
            for batch in batches:
                loss, added = self.counts(batch, mismatch, weights)
                counts.add_(added)
                yield loss

        take_step(module, losses(), max_norm, "rl")
        return total(counts)


def step_means(names: Sequence[str], counts: Tensor) -> dict[str, float]:
    """Metrics `names` from the sums of `counts`; those without a pair are left out."""
    loss, weights, decided, *sums = counts.tolist()
    found = {names[0]: loss / weights} if weights else {}
    return found | {name: value / decided for name, value in zip(names[1:], sums, strict=True) if decided}
