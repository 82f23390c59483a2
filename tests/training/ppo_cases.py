"""What the tests of PPO and its relatives share: options, a module on the tiny model, runs and comparisons."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from hydra import compose, initialize_config_dir

from rlaif.data.datamodule import PromptCursor
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.rollouts import Rollout, RolloutCollector
from rlaif.models.split import ScalarHead
from rlaif.records import Prompt
from rlaif.stages.common.training.optim import OptimOptions
from rlaif.stages.common.training.trainer import fit, make_trainer
from rlaif.stages.rl.online.module import PPOModule, PPOOptions

OPTIONS = PPOOptions(
    advantage="gae",
    loss="clip",
    loss_mean="token",
    max_response_tokens=8,
    samples_per_prompt=8,
    temperature=1.0,
    beta=0.02,
    kl="reward",
    kl_estimator="k1",
    kl_controller="fixed",
    kl_target=6.0,
    kl_horizon=10000.0,
    convex_kl=False,
    gamma=1.0,
    lam=0.95,
    clip=0.2,
    value_clip=0.2,
    value_coefficient=0.1,
    ppo_epochs=4,
    minibatch_rollouts=32,
    whiten_rewards=False,
    whiten_advantages=True,
    missing_eos_penalty=0.0,
    missing_eos_score=None,
    length_penalty=0.0,
    value_lr_factor=1.0,
    max_kl=None,
    seed=0,
)
# What each algorithm changes, and its critic: (options, critic).
_ONE_PASS = {"ppo_epochs": 1, "loss": "reinforce"}
_PLAIN = {"whiten_advantages": False, **_ONE_PASS}
_CRITIC = {"value_lr_factor": 0.03}  # a step of AdamW moves a value of the tiny model by much
ALGORITHMS = {
    "ppo": (replace(OPTIONS, clip=0.5, ppo_epochs=2, **_CRITIC), "separate"),
    "reinforce": (replace(OPTIONS, advantage="return", **_ONE_PASS), "none"),
    "reinforce_lee2023": (
        replace(
            OPTIONS,
            advantage="return",
            kl="loss",
            kl_estimator="k2",
            convex_kl=True,
            temperature=0.9,
            value_clip=0.0,
            value_coefficient=1.0,
            **_CRITIC,
            **_PLAIN,
        ),
        "separate",
    ),
    "rloo": (replace(OPTIONS, advantage="rloo", **_PLAIN), "none"),
    "grpo": (
        replace(
            OPTIONS,
            advantage="grpo",
            loss_mean="sequence",
            kl="loss",
            kl_estimator="k3",
            **{**_PLAIN, "loss": "clip"},
        ),
        "none",
    ),
    "drgrpo": (
        replace(
            OPTIONS,
            advantage="drgrpo",
            loss_mean="constant",
            kl="loss",
            kl_estimator="k3",
            **{**_PLAIN, "loss": "clip"},
        ),
        "none",
    ),
    "raft": (
        replace(OPTIONS, advantage="raft", whiten_advantages=False, ppo_epochs=2, loss="nll", beta=0.0),
        "none",
    ),
}
# The one setting in which every preset of conf/rl must climb the easy reward, the share of letters (a fifth by chance):
# seconds each, and the same changes for all.
EASY = {"missing_eos_penalty": 0.0, "missing_eos_score": None, "minibatch_rollouts": 32}
EASY_LR, EASY_ITERATIONS = 2e-3, 24
EASY_SCALE = 7.0  # the share's standard deviation is a seventh: rewards are on the scale of references
CONF = Path(__file__).resolve().parents[2] / "conf"
OTHERS = (
    "best_of_n",
    "dpo",
    "online_dpo",
    "sft_preferred",
    "sft_revisions",
)  # they have modules of their own, or none
PRESETS = sorted(file.stem for file in (CONF / "rl").glob("[!_]*.yaml") if file.stem not in OTHERS)
PROMPTS = [Prompt(f"p{i}", "ask" * (1 + i % 4) + str(i)) for i in range(16)]
NEW_TOKENS = 8


def policy_top(model):
    top = model.trunk.new_top()
    with torch.no_grad():
        top.norm.weight.fill_(10)  # the frozen tied head of the tiny model gives flat logits otherwise
    return top


def letters(model):
    """(V,) True for the bytes a-z and A-Z."""
    tokens = [model.tokenizer.encode(chr(c))[0] for c in (*range(65, 91), *range(97, 123))]
    return torch.zeros(len(model.tokenizer), dtype=torch.bool).index_fill(0, torch.tensor(tokens), True)


def letter_share(model):
    chosen = letters(model)
    return lambda rollout: (chosen[rollout.ids] & rollout.response_mask).sum(1) / rollout.lengths()


def preset(name, **changes):
    """A preset of conf/rl in the easy setting, with further changes: (options, critic)."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose("config", overrides=[f"rl={name}"]).rl
    own = {field.name for field in fields(PPOOptions)} - {"seed", "max_response_tokens"}
    options = PPOOptions(**{name: node[name] for name in own}, max_response_tokens=NEW_TOKENS, seed=0)
    return replace(options, **{**EASY, **changes}), node.value


def make_module(
    model,
    *,
    iterations,
    reward=None,
    critic="shared",
    rollouts=64,
    options=OPTIONS,
    lr=1e-3,
    watch=None,
    tracker=None,
    eos_ids=None,
    new_tokens=NEW_TOKENS,
):
    options = replace(options, samples_per_prompt=rollouts // 8)
    policy = policy_top(model)
    collector = RolloutCollector(
        PROMPTS,
        [model.tokenizer.encode(p.prompt) for p in PROMPTS],
        model.tokenizer.decode,
        Decoding(new_tokens, options.temperature),
        eos_ids=eos_ids or model.eos_ids,
        samples_per_prompt=options.samples_per_prompt,
        max_rows=64,
        seed=options.seed,
    )
    cursor = PromptCursor(len(PROMPTS), 8, options.seed)
    steps = iterations * options.ppo_epochs * rollouts // options.minibatch_rollouts
    return PPOModule(
        policy,
        None if critic == "none" else ScalarHead(32),
        policy_top(model) if critic == "separate" else None,
        policy.frozen_copy(),
        collect=lambda i: collector.collect(policy.frozen_copy(), cursor.indices(i), i),
        reward=reward or letter_share(model),
        diagnose=lambda rollout: {"rl/seen": float(len(rollout))},
        watch=watch or (lambda history: None),
        tracker=tracker(policy) if tracker else None,
        rollouts_per_iteration=rollouts,
        options=options,
        optim=OptimOptions(lr, 0.0, 1e-5, "linear", 0.0, steps, gradient_clip=1.0),
    )


def make_ppo_trainer(folder, max_epochs):
    ctx = SimpleNamespace(
        progress=SimpleNamespace(bars=False), model_spec=SimpleNamespace(device="cpu"), run=None
    )
    return make_trainer(ctx, folder, max_epochs=max_epochs, log_every=1, limit_val=False)


def train(module, folder, iterations):
    trainer = make_ppo_trainer(folder, iterations)
    fit(trainer, module, folder)
    return trainer


def end(module, name, last=3):
    return sum(row[name] for row in module.history[-last:]) / last


def random_rollout(model, seed=0, sizes=((3, 5), (1, 1), (6, 4), (2, 8), (4, 2), (9, 3))):
    """Random rollouts; every second one ends with EOS."""
    generator = torch.Generator().manual_seed(seed)
    width = max(p + r for p, r in sizes)
    ids = torch.zeros(len(sizes), width, dtype=torch.long)
    mask = torch.zeros(len(sizes), width, dtype=torch.bool)
    finished = torch.arange(len(sizes)) % 2 == 0
    for row, (prompt, response) in enumerate(sizes):
        ids[row, : prompt + response] = torch.randint(3, 250, (prompt + response,), generator=generator)
        mask[row, prompt : prompt + response] = True
        if finished[row]:
            ids[row, prompt + response - 1] = model.eos_id
    last = torch.tensor([p + r - 1 for p, r in sizes])
    prompts, responses = tuple(PROMPTS[: len(sizes)]), ("",) * len(sizes)
    seeds = tuple(range(len(sizes)))
    return Rollout(ids, model.trunk(ids), mask, last, finished, prompts, responses, seeds)


TIMES = (
    *(f"rl/seconds_{part}" for part in ("rollout", "prepare", "reward", "update", "track")),
    "rl/samples_per_s",
)


def untimed(history):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in history]


def equal(a, b):
    """Nested containers are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b
