"""What the tests of online DPO share: a module on the tiny model that is labelled by its share of letters."""

from __future__ import annotations

from functools import partial

import torch
from ppo_cases import NEW_TOKENS, PROMPTS, letter_share, policy_top

from rlaif.data.datamodule import PromptCursor
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.rollouts import RolloutCollector
from rlaif.ops import PreferenceKnobs
from rlaif.stages.common.preferences.labels import LabelSource, corrupted
from rlaif.stages.common.training.optim import OptimOptions
from rlaif.stages.rl.online_pairs.module import OnlinePairsModule, OnlinePairsOptions

PLAIN = LabelSource("ai", 0.0, None, 0.0, hard=False, confidence_exponent=0.0, seed=0)
OPTIONS = OnlinePairsOptions(
    loss="sigmoid",
    knobs=PreferenceKnobs(beta=0.1),
    temperature=1.0,
    pairs=8,
    passes=1,
    batch_size=8,
    micro_batch_size=8,
    max_kl=None,
    seed=0,
)


def letters_win(model):
    """Labels by Bradley-Terry from the share of letters, ten logits from none to all."""
    share = letter_share(model)

    def label(rollout, pairs):
        shares = share(rollout).view(-1, 2)
        p_a = torch.sigmoid(10 * (shares[:, 0] - shares[:, 1])).tolist()
        return {number: p_a[number] for number in pairs}, {"rl/reward": float(shares.mean())}

    return label


def make_online(model, *, iterations, options=OPTIONS, label=None, source=PLAIN, lr=2e-3, eps=1e-8):
    policy = policy_top(model)
    collector = RolloutCollector(
        PROMPTS,
        [model.tokenizer.encode(p.prompt) for p in PROMPTS],
        model.tokenizer.decode,
        Decoding(NEW_TOKENS, options.temperature),
        eos_ids=model.eos_ids,
        samples_per_prompt=2,
        max_rows=64,
        seed=options.seed,
    )
    cursor = PromptCursor(len(PROMPTS), options.pairs, options.seed)
    return OnlinePairsModule(
        policy,
        policy.frozen_copy(),
        collect=lambda i: collector.collect(policy.frozen_copy(), cursor.indices(i), i),
        label=label or letters_win(model),
        prepare=partial(corrupted, source=source),
        diagnose=lambda rollout: {"rl/seen": float(len(rollout))},
        watch=lambda history: None,
        tracker=None,
        options=options,
        optim=OptimOptions(lr, 0.0, eps, "constant", 0.0, iterations * options.updates, 1.0),
    )
