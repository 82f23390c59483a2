"""PPO: its maths against a plain loop, its invariants, that it learns, and that it resumes to the last bit."""

import math
from dataclasses import replace

import pytest
import torch
from ppo_cases import (
    ALGORITHMS,
    OPTIONS,
    PROMPTS,
    end,
    equal,
    letter_share,
    make_module,
    random_rollout,
    train,
    untimed,
)

from rlaif.stages.common.training.trainer import CHECKPOINT

# The maths.


def _nudge(module, seed=1):
    """Policy, value top and value head away from where they start."""
    generator = torch.Generator().manual_seed(seed)
    tops = [module.policy, *([module.value_top] if module.value_top is not None else [])]
    with torch.no_grad():
        for top in tops:
            for weight in top.parameters():
                weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
        module.value_head.weight.copy_(torch.randn(1, 32, generator=generator))


def _row_oracle(module, rollout, row, score):
    """Log-probabilities, reference's, values and advantages of one rollout, unpadded, token by token."""
    options, mask = module._options, rollout.response_mask[row]
    length, start = int(rollout.last[row]) + 1, int(mask.int().argmax())
    ids = rollout.ids[row, :length]
    features = module.policy.trunk(ids[None])
    out = {"logprob": [], "reference": [], "value": []}
    for name, top in (("logprob", module.policy), ("reference", module.reference)):
        logits = top.logits(top(features))[0] / options.temperature
        out[name] = [logits[t - 1].log_softmax(-1)[ids[t]].item() for t in range(start, length)]
        if name == "logprob":
            drawn = [torch.distributions.Categorical(logits=logits[t - 1]) for t in range(start, length)]
            out["entropy"] = [one.entropy().item() for one in drawn]
    hidden = (module.policy if module.value_top is None else module.value_top)(features)[0]
    out["value"] = [module.value_head(hidden[t - 1]).item() for t in range(start, length)]
    rewards = [-options.beta * (p - q) for p, q in zip(out["logprob"], out["reference"], strict=True)]
    rewards[-1] += score
    advantage, following, out["advantage"] = 0.0, 0.0, []
    for reward, value in zip(reversed(rewards), reversed(out["value"]), strict=True):
        advantage = reward + options.gamma * following - value + options.gamma * options.lam * advantage
        following = value
        out["advantage"].insert(0, advantage)
    return out


@pytest.mark.parametrize("trainable", ["full", "top:1", "lora:2"])
@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("whitening", [False, True])
def test_experience_equals_a_loop_over_unpadded_rows(tiny_model, trainable, critic, whitening):
    model = tiny_model(trainable)
    scores = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, -1.0])
    options = replace(
        OPTIONS,
        temperature=0.7,
        beta=0.3,
        gamma=0.9,
        missing_eos_penalty=1.5,
        whiten_advantages=whitening,
    )
    module = make_module(model, iterations=1, reward=lambda _: scores, critic=critic, options=options)
    _nudge(module)
    rollout = random_rollout(model)
    chunks = torch.tensor([4, 1, 3, 0, 5, 2]).split(2)
    experience, metrics = module._prepare(rollout, chunks)
    with torch.no_grad():
        penalised = scores - 1.5 * torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
        rows = [_row_oracle(module, rollout, row, penalised[row].item()) for row in range(6)]
    mask = rollout.response_mask

    def flat(name):
        return torch.tensor([value for row in rows for value in row[name]])

    advantages = flat("advantage")
    returns = advantages + flat("value")
    if whitening:
        advantages = (advantages - advantages.mean()) / (advantages.var(correction=0) + 1e-8).sqrt()
    close = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(experience.old_logprobs[mask], flat("logprob"), **close)
    torch.testing.assert_close(experience.old_values[mask], flat("value"), **close)
    torch.testing.assert_close(experience.advantages[mask], advantages, **close)
    torch.testing.assert_close(experience.returns[mask], returns, **close)
    for name in ("old_logprobs", "old_values", "advantages", "returns"):
        assert not getattr(experience, name)[~mask].any(), "zero outside of the response"
    kl = [sum(row["logprob"]) - sum(row["reference"]) for row in rows]
    assert metrics["rl/kl"] == pytest.approx(sum(kl) / 6, abs=1e-4)
    assert abs(metrics["rl/kl"]) > 1e-2
    assert metrics["rl/reward"] == pytest.approx(1.5 / 6, abs=1e-6)
    assert metrics["rl/score"] == pytest.approx((1.5 - 4.5) / 6, abs=1e-6)
    assert metrics["rl/objective"] == pytest.approx(-0.5 - 0.3 * sum(kl) / 6, abs=1e-4)
    assert metrics["rl/entropy"] == pytest.approx(flat("entropy").mean().item(), abs=1e-4)
    assert metrics["rl/eos_rate"] == 0.5
    assert metrics["rl/response_length"] == pytest.approx(23 / 6, abs=1e-6)


def test_the_oracle_sees_wrong_variants(tiny_model):
    """No temperature, another beta, gamma or lambda, a forgotten penalty: each misses the loop by far."""
    model = tiny_model("top:1")
    right = replace(
        OPTIONS,
        temperature=0.7,
        beta=0.3,
        gamma=0.9,
        missing_eos_penalty=1.5,
        whiten_advantages=False,
    )
    scores = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, -1.0])
    module = make_module(model, iterations=1, reward=lambda _: scores, options=right)
    _nudge(module)
    rollout = random_rollout(model)

    def advantages(options):
        module._options, module.beta = options, options.beta
        return module._prepare(rollout, [torch.arange(6)])[0].advantages

    expected = advantages(right)
    for wrong in (
        {"temperature": 1.0},
        {"beta": 0.2},
        {"gamma": 1.0},
        {"lam": 1.0},
        {"missing_eos_penalty": 0.0},
    ):
        assert (advantages(replace(right, **wrong)) - expected).abs().max() > 1e-2, wrong


def test_minibatches_are_cut_to_their_own_length(tiny_model):
    model = tiny_model("top:1")
    module = make_module(model, iterations=1, reward=lambda r: torch.ones(len(r)))
    experience, _ = module._prepare(random_rollout(model), [torch.arange(6)])
    part = experience.rows(torch.tensor([1, 4]))  # 2 and 6 tokens long
    assert part.ids.shape == part.mask.shape == part.advantages.shape == (2, 6)
    assert torch.equal(part.ids, experience.ids[[1, 4], :6])


# The invariant of the first minibatch.


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_the_first_ratio_is_one(tiny_model, tmp_path, dtype, bound, critic):
    model = tiny_model("top:1", dtype)
    module = make_module(model, iterations=3, critic=critic, rollouts=32)
    train(module, tmp_path, 3)
    assert len(module.history) == 3
    for row in module.history:
        assert abs(row["rl/ratio_first"] - 1) <= bound
        assert row["rl/ratio_mean"] != 1.0, "later minibatches do move"
        assert row["rl/seen"] == 32.0
    assert all(math.isfinite(value) for row in module.history for value in row.values())


def test_another_temperature_in_the_update_is_refused(tiny_model, tmp_path):
    """The reward is asked for after the old log-probabilities: from there on the module divides by 1.3."""
    model = tiny_model("top:1")

    def reward(rollout):
        module._options = replace(OPTIONS, temperature=1.3)
        return torch.zeros(len(rollout))

    module = make_module(model, iterations=1, reward=reward)
    with pytest.raises(RuntimeError, match="first-minibatch ratio"):
        train(module, tmp_path, 1)


@pytest.mark.parametrize(("dtype", "change"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_wrong_old_logprobs_are_refused(tiny_model, tmp_path, monkeypatch, dtype, change):
    model = tiny_model("top:1", dtype)
    module = make_module(model, iterations=1)
    prepare = module._prepare

    def perturbed(*arguments):
        experience, metrics = prepare(*arguments)
        return replace(experience, old_logprobs=experience.old_logprobs + change), metrics

    monkeypatch.setattr(module, "_prepare", perturbed)
    with pytest.raises(RuntimeError, match="first-minibatch ratio"):
        train(module, tmp_path, 1)


# Learning.


@pytest.mark.parametrize(
    ("seed", "critic", "dtype"),
    [(0, "shared", "float32"), (1, "separate", "float32"), (2, "shared", "bfloat16")],
)
def test_ppo_raises_a_programmatic_reward_within_a_kl_bound(tiny_model, tmp_path, seed, critic, dtype):
    """About 52 / 259 of random tokens are letters; the policy learns to write letters."""
    model = tiny_model("top:1", dtype)
    module = make_module(model, iterations=12, critic=critic, options=replace(OPTIONS, seed=seed))
    frozen = {
        k: v.clone() for k, v in (*model.trunk.state_dict().items(), *module.reference.state_dict().items())
    }
    train(module, tmp_path, 12)
    assert module.history[0]["rl/reward"] == pytest.approx(52 / 259, abs=0.08)
    assert end(module, "rl/reward") > 0.35
    assert module.history[0]["rl/kl"] == pytest.approx(0.0, abs=1e-3 if dtype == "float32" else 0.2)
    assert 0.5 < end(module, "rl/kl") < 9.0, "nats a response of eight tokens"
    now = {**model.trunk.state_dict(), **module.reference.state_dict()}
    assert all(torch.equal(value, now[name]) for name, value in frozen.items()), (
        "trunk and reference never move"
    )
    assert not any("reference" in name or "trunk" in name for name in module.state_dict())


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("trainable", ["full", "top:2", "lora:4"])
def test_the_reference_and_all_that_is_shared_never_move(tiny_model, tmp_path, trainable, critic):
    """Bit for bit over two iterations, tied embeddings included, while every trained weight does move."""
    model = tiny_model(trainable)
    module = make_module(model, iterations=2, critic=critic, rollouts=32)
    frozen = [*model.trunk.state_dict().values(), *module.reference.state_dict().values()]
    before = [value.clone() for value in frozen]
    start = {name: value.clone() for name, value in module.state_dict().items()}
    text = torch.tensor([model.tokenizer.encode("what is this")])
    said = module.reference.logits(module.reference(model.trunk(text)))
    train(module, tmp_path, 2)
    assert all(torch.equal(now, then) for now, then in zip(frozen, before, strict=True))
    assert torch.equal(module.reference.logits(module.reference(model.trunk(text))), said)
    still = [name for name, value in module.state_dict().items() if torch.equal(value, start[name])]
    assert still == []
    # Policy and reference start as one; where the head is trained too, the two run different kernels.
    assert abs(module.history[0]["rl/kl"]) <= (1e-4 if trainable == "full" else 0.0)
    assert abs(module.history[1]["rl/kl"]) > 1e-3


def test_the_opposite_reward_teaches_the_opposite(tiny_model, tmp_path):
    model = tiny_model("top:1")
    share = letter_share(model)
    module = make_module(model, iterations=8, reward=lambda rollout: -share(rollout))
    train(module, tmp_path, 8)
    assert -end(module, "rl/reward") < 0.13


def test_a_penalty_for_missing_eos_teaches_to_stop(tiny_model, tmp_path):
    model = tiny_model("full")
    options = replace(OPTIONS, missing_eos_penalty=1.0, beta=0.0)
    module = make_module(model, iterations=8, reward=lambda r: torch.zeros(len(r)), options=options)
    with torch.no_grad():  # raise EOS's logit by about 3, so that some responses end by chance
        ids = torch.tensor([model.tokenizer.encode(PROMPTS[3].prompt)])
        typical = module.policy(ids)[0].mean(dim=0)
        module.policy.embedding[model.eos_id] += 3 * typical / typical.dot(typical)
    train(module, tmp_path, 8)
    first, last = module.history[0], module.history[-1]
    assert 0.1 < first["rl/eos_rate"] < 0.6
    assert last["rl/eos_rate"] > 0.9
    assert last["rl/response_length"] < first["rl/response_length"] - 2
    for row in module.history:
        assert row["rl/score"] == pytest.approx(row["rl/eos_rate"] - 1, abs=1e-6)


def test_the_value_head_learns_at_its_own_rate(tiny_model, tmp_path):
    """With a factor of zero the critic stands still while the policy moves."""
    model = tiny_model("top:1")
    module = make_module(
        model, iterations=1, critic="separate", options=replace(OPTIONS, value_lr_factor=0.0)
    )
    policy, value = (
        {k: v.clone() for k, v in m.state_dict().items()} for m in (module.policy, module.value_top)
    )
    train(module, tmp_path, 1)
    assert all(torch.equal(v, value[k]) for k, v in module.value_top.state_dict().items())
    assert not module.value_head.weight.any()
    assert not all(torch.equal(v, policy[k]) for k, v in module.policy.state_dict().items())


def test_max_kl_stops_the_run(tiny_model, tmp_path):
    model = tiny_model("top:1")
    free = make_module(model, iterations=8)
    train(free, tmp_path / "free", 5)
    kls = [row["rl/kl"] for row in free.history]
    limit = 0.5
    stop = next(i for i, kl in enumerate(kls) if kl > limit)
    assert 0 < stop < 4
    states = {}
    for folder, epochs in (("before", stop), ("stopped", 8)):
        module = make_module(model, iterations=8, options=replace(OPTIONS, max_kl=limit))
        train(module, tmp_path / folder, epochs)
        states[folder] = dict(module.state_dict())
    assert [row["rl/kl"] for row in module.history] == kls[: stop + 1]
    assert equal(states["stopped"], states["before"]), "the iteration that is too far away updates nothing"
    assert "rl/ratio_first" not in module.history[-1]
    assert all("rl/ratio_first" in row for row in module.history[:-1])
    again = make_module(model, iterations=8, options=replace(OPTIONS, max_kl=limit))
    train(again, tmp_path / "stopped", 8)
    assert untimed(again.history) == untimed(module.history), "the same command stops at the same place"
    assert equal(dict(again.state_dict()), states["stopped"])


# Resuming.

SHORT = replace(OPTIONS, ppo_epochs=2, minibatch_rollouts=16)


ADAPTIVE = replace(SHORT, kl_controller="adaptive", kl_target=0.05, kl_horizon=100.0)
RESUMED = {
    "shared": (SHORT, "shared"),
    "separate": (SHORT, "separate"),
    "adaptive": (ADAPTIVE, "shared"),
    **{
        name: (replace(options, minibatch_rollouts=16), critic)
        for name, (options, critic) in ALGORITHMS.items()
        if name != "ppo"
    },
}


def _short(tiny_model, *, iterations=3, critic="shared", options=SHORT):
    return make_module(
        tiny_model("top:1"), iterations=iterations, critic=critic, rollouts=32, options=options
    )


@pytest.mark.parametrize(
    ("name", "after"), [(name, 1) for name in RESUMED] + [(n, 2) for n in ("shared", "separate", "adaptive")]
)
def test_a_resumed_run_is_bit_identical(tiny_model, tmp_path, name, after):
    options, critic = RESUMED[name]

    def run(folder, parts):
        for epochs in parts:
            module = _short(tiny_model, critic=critic, options=options)
            trainer = train(module, tmp_path / folder, epochs)
        return module, trainer

    whole, whole_trainer = run("whole", [3])
    resumed, resumed_trainer = run("resumed", [after, 3])
    assert len(whole.history) == 3
    assert untimed(resumed.history) == untimed(whole.history)
    assert equal(dict(resumed.state_dict()), dict(whole.state_dict()))
    assert resumed.beta == whole.beta and (whole.beta != options.beta) == (name == "adaptive")
    states = [t.optimizers[0].state_dict() for t in (whole_trainer, resumed_trainer)]
    assert states[0]["state"], "AdamW's moments are compared"
    assert equal(*states)
    assert resumed_trainer.global_step == whole_trainer.global_step == 3 * options.ppo_epochs * 2


def _tensors(node):
    if isinstance(node, torch.Tensor):
        return [node]
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


@pytest.mark.parametrize("trainable", ["full", "top:1"])
@pytest.mark.parametrize("name", RESUMED)
def test_a_checkpoint_holds_what_is_trained_and_no_more(tiny_model, tmp_path, name, trainable):
    """Weights that are trained, AdamW's two moments of each and its steps; neither reference nor trunk."""
    options, critic = RESUMED[name]
    model = tiny_model(trainable)
    module = make_module(model, iterations=1, critic=critic, rollouts=16, options=options)
    train(module, tmp_path, 1)
    file = tmp_path / "checkpoints" / CHECKPOINT
    checkpoint = torch.load(file, weights_only=True)
    trained = {name for name, weight in module.named_parameters() if weight.requires_grad}
    assert checkpoint["state_dict"].keys() == trained
    assert {name.split(".")[0] for name in trained} <= {"policy", "value_head", "value_top"}
    counts = [weight.numel() for weight in module.parameters()]
    sizes = [
        tensor.numel()
        for name, part in checkpoint.items()
        for tensor in _tensors(part)
        if name != "callbacks"
    ]
    assert sum(sizes) == 3 * sum(counts) + len(counts)
    assert sum(tensor.numel() for tensor in _tensors(checkpoint["callbacks"])) <= 1
    assert file.stat().st_size < 4 * sum(sizes) + 500 * len(sizes) + 10_000, "no storage that nobody reads"


def test_a_forgotten_weight_of_the_kl_would_be_seen(tiny_model, tmp_path):
    whole = _short(tiny_model, options=ADAPTIVE)
    train(whole, tmp_path / "whole", 3)
    train(_short(tiny_model, options=ADAPTIVE), tmp_path / "resumed", 2)
    file = tmp_path / "resumed" / "checkpoints" / CHECKPOINT
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["ppo_beta"] = ADAPTIVE.beta
    torch.save(checkpoint, file)
    resumed = _short(tiny_model, options=ADAPTIVE)
    train(resumed, tmp_path / "resumed", 3)
    assert untimed(resumed.history) != untimed(whole.history)
    assert not equal(dict(resumed.state_dict()), dict(whole.state_dict()))


def test_the_comparison_of_resumed_runs_can_fail(tiny_model, tmp_path):
    """A schedule over the first part's length, and other noise, are both seen."""
    whole = _short(tiny_model)
    train(whole, tmp_path / "whole", 3)
    train(_short(tiny_model, iterations=2), tmp_path / "resumed", 2)
    resumed = _short(tiny_model)
    train(resumed, tmp_path / "resumed", 3)
    assert not equal(dict(resumed.state_dict()), dict(whole.state_dict()))
    other = _short(tiny_model, options=replace(SHORT, seed=1))
    train(other, tmp_path / "other", 3)
    assert untimed(other.history) != untimed(whole.history)


def test_a_finished_run_resumes_to_itself(tiny_model, tmp_path):
    """Killed after the last checkpoint: nothing is trained again, and the history is whole."""
    first, again = _short(tiny_model), _short(tiny_model)
    train(first, tmp_path, 3)
    train(again, tmp_path, 3)
    assert again.history == first.history
    assert equal(dict(again.state_dict()), dict(first.state_dict()))


def test_a_damaged_checkpoint_costs_one_iteration_and_no_bit(tiny_model, tmp_path):
    whole = _short(tiny_model)
    train(whole, tmp_path / "whole", 3)
    train(_short(tiny_model), tmp_path / "resumed", 2)
    newest = tmp_path / "resumed" / "checkpoints" / CHECKPOINT
    newest.write_bytes(newest.read_bytes()[:-1000])
    resumed = _short(tiny_model)
    train(resumed, tmp_path / "resumed", 3)
    assert untimed(resumed.history) == untimed(whole.history)
    assert equal(dict(resumed.state_dict()), dict(whole.state_dict()))
