"""PPO's relatives as options of one module: maths against plain loops, what has no critic, learning."""

import math
import time
from dataclasses import replace

import pytest
import torch
from ppo_cases import (
    ALGORITHMS,
    EASY_ITERATIONS,
    EASY_LR,
    EASY_SCALE,
    PRESETS,
    end,
    equal,
    letter_share,
    make_module,
    preset,
    random_rollout,
    train,
)

from rlaif.inference.rollouts import Rollout
from rlaif.ops import LOSS_MEANS

SCORES = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, -1.0])
NAMES = list(ALGORITHMS)


def _prepared(model, options, critic="shared"):
    """(module away from its start, experience and metrics of six random responses in groups of three)."""
    module = make_module(model, iterations=1, reward=lambda _: SCORES, critic=critic, options=options)
    module._options = replace(options, samples_per_prompt=3)
    _nudge(module, 1)
    experience, metrics = module._prepare(random_rollout(model), [torch.arange(6)])
    return module, experience, metrics


def _nudge(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))


def _estimate(d, kind):
    return {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[kind]


def _rows(tensor, mask):
    return [[v.item() for v, m in zip(*pair, strict=True) if m] for pair in zip(tensor, mask, strict=True)]


def _advantages(options, experience, finished, beta):
    """Advantages and returns, row by row and token by token, from log-probabilities and values."""
    old, ref, values = (
        _rows(x, experience.mask)
        for x in (experience.old_logprobs, experience.ref_logprobs, experience.old_values)
    )
    rewards = []
    for i, (p, q) in enumerate(zip(old, ref, strict=True)):
        score = SCORES[i].item() - options.length_penalty * len(p)
        if not finished[i]:
            score -= options.missing_eos_penalty
            score = score if options.missing_eos_score is None else options.missing_eos_score
        in_reward = beta if options.kl == "reward" else 0.0
        row = [-in_reward * _estimate(a - b, options.kl_estimator) for a, b in zip(p, q, strict=True)]
        row[-1] += score * ((1 - beta) if options.convex_kl else 1)
        rewards.append(row)
    if options.whiten_rewards:
        flat = [r for row in rewards for r in row]
        mean = sum(flat) / len(flat)
        sd = math.sqrt(sum((r - mean) ** 2 for r in flat) / len(flat) + 1e-8)
        rewards = [[(r - mean) / sd + mean for r in row] for row in rewards]
    lam = options.lam if options.advantage == "gae" else 1.0
    advantages, totals = [], [sum(row) for row in rewards]
    for i, (row, value) in enumerate(zip(rewards, values, strict=True)):
        group = totals[i // 3 * 3 : i // 3 * 3 + 3]
        if options.advantage == "rloo":
            advantages.append([totals[i] - (sum(group) - totals[i]) / 2] * len(row))
        elif options.advantage == "grpo":
            mean = sum(group) / 3
            sd = math.sqrt(sum((x - mean) ** 2 for x in group) / 3)
            advantages.append([(totals[i] - mean) / (sd + 1e-4)] * len(row))
        elif options.advantage == "drgrpo":
            advantages.append([totals[i] - sum(group) / 3] * len(row))
        elif options.advantage == "raft":
            advantages.append([float(group.index(max(group)) == i % 3)] * len(row))
        else:
            value = [*value, 0.0]
            deltas = [r + options.gamma * value[t + 1] - value[t] for t, r in enumerate(row)]
            decay = options.gamma * lam
            advantages.append(
                [sum(decay ** (s - t) * deltas[s] for s in range(t, len(row))) for t in range(len(row))]
            )
    return torch.tensor([a for row in advantages for a in row])


VARIANTS = {
    "ppo": {"gamma": 0.9, "kl_estimator": "k3", "whiten_rewards": True, "length_penalty": 0.2},
    "reinforce": {"gamma": 0.9, "missing_eos_score": -1.0, "kl_estimator": "k2"},
    "reinforce_lee2023": {"missing_eos_penalty": 1.5},
    "rloo": {"length_penalty": 0.1, "missing_eos_penalty": 0.5},
    "grpo": {"kl": "reward", "missing_eos_score": -1.0},
    "drgrpo": {"length_penalty": 0.1},
    "raft": {"missing_eos_penalty": 3.0, "length_penalty": 0.1},
}
WRONG = {
    "ppo": [{"kl_estimator": "k1"}, {"whiten_rewards": False}, {"length_penalty": 0.0}, {"gamma": 1.0}],
    "reinforce": [{"missing_eos_score": None}, {"kl_estimator": "k1"}, {"beta": 0.1}, {"gamma": 1.0}],
    "reinforce_lee2023": [{"convex_kl": False}, {"kl": "reward"}, {"missing_eos_penalty": 0.0}],
    "rloo": [{"advantage": "grpo"}, {"length_penalty": 0.0}, {"kl": "loss"}, {"samples_per_prompt": 2}],
    "grpo": [{"advantage": "rloo"}, {"missing_eos_score": None}, {"kl": "loss"}],
    "drgrpo": [{"advantage": "grpo"}, {"advantage": "rloo"}, {"length_penalty": 0.0}, {"kl": "reward"}],
    "raft": [{"advantage": "drgrpo"}, {"missing_eos_penalty": 0.0}, {"samples_per_prompt": 2}],
}


@pytest.mark.parametrize("name", NAMES)
def test_advantages_equal_a_loop(tiny_model, name):
    options, critic = ALGORITHMS[name]
    options = replace(options, beta=0.3, whiten_advantages=False, **VARIANTS[name])
    module, experience, metrics = _prepared(tiny_model("top:1"), options, critic)
    mask, finished = experience.mask, [True, False] * 3
    expected = _advantages(options, experience, finished, 0.3)
    torch.testing.assert_close(experience.advantages[mask], expected, rtol=0, atol=1e-4)
    assert not experience.advantages[~mask].any() and not experience.returns[~mask].any()
    if critic != "none":
        returns = experience.returns - experience.old_values
        torch.testing.assert_close(returns[mask], expected, rtol=0, atol=1e-4)
        assert experience.old_values[mask].abs().min() > 0
    else:
        assert not experience.old_values.any()
    weight = 0.7 if options.convex_kl else 1.0
    objective = weight * metrics["rl/score"] - 0.3 * metrics["rl/kl"]
    assert metrics["rl/objective"] == pytest.approx(objective, abs=1e-5)
    assert metrics["rl/kl_coefficient"] == 0.3
    for wrong in WRONG[name]:  # mutations: each misses the loop by far
        module._options = replace(options, **{"samples_per_prompt": 3, **wrong})
        module.beta = module._options.beta
        other, _ = module._prepare(random_rollout(tiny_model("top:1")), [torch.arange(6)])
        assert (other.advantages[mask] - expected).abs().max() > 5e-3, wrong


def _loss(options, experience, logprobs, values):
    """The loss of a minibatch, token by token."""
    columns = (logprobs, experience.old_logprobs, experience.ref_logprobs, experience.advantages)
    policy, penalty = [], []
    for p, old, ref, advantage in zip(*(_rows(x, experience.mask) for x in columns), strict=True):
        ratios = [math.exp(a - b) for a, b in zip(p, old, strict=True)]
        clipped = [min(max(r, 1 - options.clip), 1 + options.clip) for r in ratios]
        if options.loss == "clip":
            row = [-min(r * a, c * a) for r, c, a in zip(ratios, clipped, advantage, strict=True)]
        elif options.loss == "nll":
            if not any(advantage):
                continue
            row = [-x for x in p]
        else:
            row = [-a * x for a, x in zip(advantage, p, strict=True)]
        policy.append(row)
        penalty.append([_estimate(a - b, options.kl_estimator) for a, b in zip(p, ref, strict=True)])

    def mean(rows):
        if options.loss_mean == "sequence":
            return sum(sum(row) / len(row) for row in rows) / len(rows)
        if options.loss_mean == "constant":
            return sum(sum(row) / options.max_response_tokens for row in rows) / len(rows)
        return sum(map(sum, rows)) / sum(map(len, rows))

    total = mean(policy) + (options.beta * mean(penalty) if options.kl == "loss" else 0.0)
    if values is not None:
        mask = experience.mask
        v, old, wanted = values[mask], experience.old_values[mask], experience.returns[mask]
        error = (v - wanted) ** 2
        if options.value_clip:
            near = old + (v - old).clamp(-options.value_clip, options.value_clip)
            error = torch.maximum(error, (near - wanted) ** 2)
        total += options.value_coefficient * error.mean().item() / 2
    return total


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_equals_a_loop(tiny_model, name):
    options, critic = ALGORITHMS[name]
    options = replace(options, beta=0.3)
    module, experience, _ = _prepared(tiny_model("top:1"), options, critic)
    _nudge(module, 2)
    module._experience = experience
    with torch.no_grad():
        hidden, values = module._forward(experience)
        logprobs = module._logprobs(module.policy, hidden, experience)
        loss = module.training_step(torch.arange(6), 1).item()
        assert loss == pytest.approx(_loss(options, experience, logprobs, values), abs=1e-4)
        assert ("kl_loss" in module._sums) == (options.kl == "loss")
        assert ("value_loss" in module._sums) == (critic != "none") == (values is not None)
        wrong = [{"loss_mean": mean} for mean in LOSS_MEANS if mean != options.loss_mean]
        wrong += [{"max_response_tokens": 7}] if options.loss_mean == "constant" else []
        wrong += [{"kl_estimator": "k1"}, {"kl": "reward"}] if options.kl == "loss" else [{"kl": "loss"}]
        wrong += [{"loss": "reinforce" if options.loss == "clip" else "clip"}]
        for change in wrong:
            module._options = replace(options, **change)
            assert abs(module.training_step(torch.arange(6), 1).item() - loss) > 1e-3, change


# No critic.


@pytest.mark.parametrize("name", ["reinforce", "rloo", "grpo", "drgrpo", "raft"])
def test_without_a_critic_there_are_no_values(tiny_model, tmp_path, name):
    options, critic = ALGORITHMS[name]
    module = make_module(tiny_model("top:1"), iterations=1, critic=critic, options=options, rollouts=16)
    trainer = train(module, tmp_path, 1)
    assert {key.split(".")[0] for key in module.state_dict()} == {"policy"}
    assert len(trainer.optimizers[0].param_groups) == 1
    row = module.history[0]
    assert "rl/value_loss" not in row and "rl/explained_variance" not in row
    assert abs(row["rl/ratio_first"] - 1) <= 1e-5, "checked for every loss"
    assert all(math.isfinite(value) for value in row.values())


def test_the_groups_are_the_responses_to_one_prompt(tiny_model, tmp_path):
    """A reward that depends on the prompt alone teaches nothing: each response equals the others of its group."""

    def reward(rollout: Rollout):
        return torch.tensor([float(len(prompt.prompt)) for prompt in rollout.prompts])

    for name in ("rloo", "grpo", "drgrpo"):
        options, critic = ALGORITHMS[name]
        options = replace(options, beta=0.0)
        module = make_module(
            tiny_model("top:1"), iterations=1, critic=critic, options=options, reward=reward, rollouts=32
        )
        before = {k: v.clone() for k, v in module.state_dict().items()}
        train(module, tmp_path / name, 1)
        assert module.history[0]["rl/reward_std"] > 1
        assert equal(dict(module.state_dict()), before)


# RAFT: the likelihood of the chosen responses.


def _chosen_cross_entropy(top, rollout, chosen, temperature=1.0):
    """(cross-entropy per token of these rows' response tokens, one row at a time; its gradients)."""
    top.zero_grad()
    losses = []
    for row in chosen:
        places = rollout.response_mask[row].nonzero().flatten()
        hidden = top(rollout.features[row : row + 1, : int(places[-1]) + 1])[0]
        logits = top.logits(hidden[places - 1]) / temperature
        losses.append(torch.nn.functional.cross_entropy(logits, rollout.ids[row, places], reduction="none"))
    mean = torch.cat(losses).mean()
    mean.backward()
    return mean.item(), [p.grad.clone() for p in top.parameters() if p.grad is not None]


@pytest.mark.parametrize("batch_index", [0, 1])
def test_raft_is_cross_entropy_of_the_best_responses(tiny_model, batch_index):
    """Scores (1, -2, 0.5), (3, 0, -1): the first and the fourth response are learnt, in either kind of minibatch."""
    options, critic = ALGORITHMS["raft"]
    module, experience, _ = _prepared(tiny_model("top:1"), options, critic)
    rollout = random_rollout(tiny_model("top:1"))
    assert experience.advantages[experience.mask].unique().tolist() == [0.0, 1.0]
    assert experience.advantages.any(dim=1).nonzero().flatten().tolist() == [0, 3]
    wanted, gradients = _chosen_cross_entropy(module.policy, rollout, [0, 3])
    module.zero_grad()
    module._experience = experience
    loss = module.training_step(torch.arange(6), batch_index)
    loss.backward()
    assert loss.item() == pytest.approx(wanted, abs=1e-5)
    own = [p.grad for p in module.policy.parameters() if p.grad is not None]
    for one, other in zip(own, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    others = _chosen_cross_entropy(module.policy, rollout, range(6))[0], wanted * 13 / 23
    assert all(abs(loss.item() - other) > 1e-2 for other in others), (
        "mutations: all responses, diluted by them"
    )


def test_raft_runs_only_what_it_learns(tiny_model, tmp_path):
    """After the first minibatch, whose ratio is checked; a KL in the loss is over all responses."""
    for kl, wanted in (("reward", [32, *[4] * 3]), ("loss", [32] * 4)):
        options, critic = ALGORITHMS["raft"]
        options = replace(options, kl=kl, kl_estimator="k1" if kl == "reward" else "k3", beta=0.1)
        module = make_module(tiny_model("top:1"), iterations=1, critic=critic, options=options)
        rows, forward = [], module._forward
        module._forward = lambda part, rows=rows, forward=forward: rows.append(len(part.ids)) or forward(part)
        train(module, tmp_path / kl, 1)
        assert rows[2:] == wanted, "eight responses to each of four prompts in a minibatch, one learnt"


# Learning: one setting for all, in which every preset must climb.


def _learn(model, folder, name, seed=0, *, iterations=EASY_ITERATIONS, noise=False, sign=1):
    """(module, share of letters in each iteration) after training; `noise` and `sign` spoil what it learns from."""
    options, critic = preset(name, seed=seed)
    share, shares = letter_share(model), []

    def reward(rollout):
        shares.append(share(rollout).mean().item())
        return EASY_SCALE * (torch.rand(len(rollout)) if noise else share(rollout))

    module = make_module(
        model, iterations=iterations, critic=critic, options=options, reward=reward, lr=EASY_LR
    )
    right = module._credit

    def signed(*arguments):
        advantages, returns = right(*arguments)
        return sign * advantages, returns

    module._credit = signed
    train(module, folder, iterations)
    return module, shares


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_climbs_the_easy_reward(tiny_model, tmp_path, name):
    """From a fifth of letters, the share of chance, to more than 80% of the maximum, which is letters alone."""
    started = time.monotonic()
    module, shares = _learn(tiny_model("top:1"), tmp_path, name)
    assert shares[0] == pytest.approx(52 / 259, abs=0.08)
    assert module.history[0]["rl/kl"] == pytest.approx(0.0, abs=1e-3)
    assert sum(shares[-3:]) / 3 > 0.8
    # To write a letter with probability 0.9 takes at least 8 (0.9 ln 4.5 - 0.1 ln 8), about 9 nats.
    assert end(module, "rl/kl") < 13.0, "nats a response of eight tokens"
    assert [row["rl/reward"] for row in module.history] == pytest.approx([EASY_SCALE * x for x in shares])
    assert time.monotonic() - started < 60


SPOILT = [*((name, {"sign": -1}) for name in PRESETS), ("ppo", {"noise": True}), ("rloo", {"noise": True})]


@pytest.mark.parametrize(("name", "spoilt"), SPOILT)
def test_learning_from_noise_or_against_the_advantage_would_be_seen(tiny_model, tmp_path, name, spoilt):
    _, shares = _learn(tiny_model("top:1"), tmp_path, name, iterations=12, **spoilt)
    assert sum(shares[-3:]) / 3 < 0.4, "and not by a hair"


@pytest.mark.parametrize("seed", [0, 1])
def test_the_critic_of_a_small_run_does_not_overshoot(tiny_model, tmp_path, seed):
    """At a high rate too: with ten times the policy's, its explained variance began at -2."""
    explained = {}
    for factor in (None, 10.0):
        options, critic = preset("ppo", seed=seed, **({} if factor is None else {"value_lr_factor": factor}))
        share = letter_share(tiny_model("top:1"))
        module = make_module(
            tiny_model("top:1"),
            iterations=6,
            critic=critic,
            options=options,
            reward=lambda rollout, share=share: EASY_SCALE * share(rollout),
            lr=1e-2,
        )
        train(module, tmp_path / str(factor), 6)
        explained[factor] = [row["rl/explained_variance"] for row in module.history]
    assert min(explained[None]) > -0.6 and sum(explained[None][-3:]) / 3 > -0.1
    assert min(explained[10.0]) < -1
