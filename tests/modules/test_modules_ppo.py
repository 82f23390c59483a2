"""PPO: its maths against a plain loop, its invariants, that it learns, and that it resumes to the last bit."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rlaif.data.datamodule import PromptCursor
from rlaif.inference.sampler import Decoding
from rlaif.models.split import ScalarHead
from rlaif.modules import PPOModule, PPOOptions
from rlaif.modules.optim import OptimOptions
from rlaif.records import Prompt
from rlaif.rollout import Rollout, RolloutCollector
from rlaif.stages.training import CHECKPOINT, fit, make_trainer

OPTIONS = PPOOptions(
    temperature=1.0,
    beta=0.02,
    gamma=1.0,
    lam=0.95,
    clip=0.2,
    value_clip=0.2,
    value_coefficient=0.1,
    ppo_epochs=4,
    minibatch_rollouts=32,
    whiten_advantages=True,
    missing_eos_penalty=0.0,
    value_lr_factor=1.0,
    max_kl=None,
    seed=0,
)
PROMPTS = [Prompt(f"p{i}", "ask" * (1 + i % 4) + str(i)) for i in range(16)]
NEW_TOKENS = 8


def _policy(model):
    top = model.trunk.new_top()
    with torch.no_grad():
        top.norm.weight.mul_(10)  # the frozen tied head of the tiny model gives flat logits otherwise
    return top


def _letters(model):
    """(V,) True for the bytes a-z and A-Z."""
    tokens = [model.tokenizer.encode(chr(c))[0] for c in (*range(65, 91), *range(97, 123))]
    return torch.zeros(len(model.tokenizer), dtype=torch.bool).index_fill(0, torch.tensor(tokens), True)


def _letter_share(model):
    letters = _letters(model)
    return lambda rollout: (letters[rollout.ids] & rollout.response_mask).sum(1) / rollout.lengths()


def _module(model, *, iterations, reward=None, separate=False, rollouts=64, options=OPTIONS, lr=1e-3):
    policy = _policy(model)
    collector = RolloutCollector(
        PROMPTS,
        [model.tokenizer.encode(p.prompt) for p in PROMPTS],
        model.tokenizer.decode,
        Decoding(NEW_TOKENS, options.temperature),
        eos_id=model.eos_id,
        samples_per_prompt=rollouts // 8,
        max_rows=64,
        seed=options.seed,
    )
    cursor = PromptCursor(len(PROMPTS), 8, options.seed)
    steps = iterations * options.ppo_epochs * rollouts // options.minibatch_rollouts
    return PPOModule(
        policy,
        ScalarHead(32),
        _policy(model) if separate else None,
        policy.frozen_copy(),
        collect=lambda i: collector.collect(policy.frozen_copy(), cursor.indices(i), i),
        reward=reward or _letter_share(model),
        diagnose=lambda rollout: {"ppo/seen": float(len(rollout))},
        rollouts_per_iteration=rollouts,
        options=options,
        optim=OptimOptions(lr, 0.0, 1e-5, "linear", 0.0, steps, gradient_clip=1.0),
    )


def _trainer(folder, max_epochs):
    ctx = SimpleNamespace(
        progress=SimpleNamespace(bars=False), model_spec=SimpleNamespace(device="cpu"), run=None
    )
    return make_trainer(ctx, folder, max_epochs=max_epochs, log_every=1, limit_val=False)


def _train(module, folder, iterations):
    trainer = _trainer(folder, iterations)
    fit(trainer, module, folder)
    return trainer


def _end(module, name, last=3):
    return sum(row[name] for row in module.history[-last:]) / last


# The maths.


def _rollout(model, seed=0, sizes=((3, 5), (1, 1), (6, 4), (2, 8), (4, 2), (9, 3))):
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
    return Rollout(ids, model.trunk(ids), mask, last, finished, prompts, responses)


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


@pytest.mark.parametrize("trainable", ["full", "top:1"])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("whitening", [False, True])
def test_experience_equals_a_loop_over_unpadded_rows(tiny_model, trainable, separate, whitening):
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
    module = _module(model, iterations=1, reward=lambda _: scores, separate=separate, options=options)
    _nudge(module)
    rollout = _rollout(model)
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
    assert metrics["ppo/kl"] == pytest.approx(sum(kl) / 6, abs=1e-4)
    assert abs(metrics["ppo/kl"]) > 1e-2
    assert metrics["ppo/reward"] == pytest.approx(1.5 / 6, abs=1e-6)
    assert metrics["ppo/score"] == pytest.approx((1.5 - 4.5) / 6, abs=1e-6)
    assert metrics["ppo/objective"] == pytest.approx(-0.5 - 0.3 * sum(kl) / 6, abs=1e-4)
    assert metrics["ppo/eos_rate"] == 0.5
    assert metrics["ppo/response_length"] == pytest.approx(23 / 6, abs=1e-6)


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
    module = _module(model, iterations=1, reward=lambda _: scores, options=right)
    _nudge(module)
    rollout = _rollout(model)

    def advantages(options):
        module._options = options
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
    module = _module(model, iterations=1, reward=lambda r: torch.ones(len(r)))
    experience, _ = module._prepare(_rollout(model), [torch.arange(6)])
    part = experience.rows(torch.tensor([1, 4]))  # 2 and 6 tokens long
    assert part.ids.shape == part.mask.shape == part.advantages.shape == (2, 6)
    assert torch.equal(part.ids, experience.ids[[1, 4], :6])


# The invariant of the first minibatch.


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_the_first_ratio_is_one(tiny_model, tmp_path, dtype, bound, separate):
    model = tiny_model("top:1", dtype)
    module = _module(model, iterations=3, separate=separate, rollouts=32)
    _train(module, tmp_path, 3)
    assert len(module.history) == 3
    for row in module.history:
        assert abs(row["ppo/ratio_first"] - 1) <= bound
        assert row["ppo/ratio_mean"] != 1.0, "later minibatches do move"
        assert row["ppo/seen"] == 32.0
    assert all(math.isfinite(value) for row in module.history for value in row.values())


def test_another_temperature_in_the_update_is_refused(tiny_model, tmp_path):
    """The reward is asked for after the old log-probabilities: from there on the module divides by 1.3."""
    model = tiny_model("top:1")

    def reward(rollout):
        module._options = replace(OPTIONS, temperature=1.3)
        return torch.zeros(len(rollout))

    module = _module(model, iterations=1, reward=reward)
    with pytest.raises(RuntimeError, match="first-minibatch ratio"):
        _train(module, tmp_path, 1)


@pytest.mark.parametrize(("dtype", "change"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_wrong_old_logprobs_are_refused(tiny_model, tmp_path, monkeypatch, dtype, change):
    model = tiny_model("top:1", dtype)
    module = _module(model, iterations=1)
    prepare = module._prepare

    def perturbed(*arguments):
        experience, metrics = prepare(*arguments)
        return replace(experience, old_logprobs=experience.old_logprobs + change), metrics

    monkeypatch.setattr(module, "_prepare", perturbed)
    with pytest.raises(RuntimeError, match="first-minibatch ratio"):
        _train(module, tmp_path, 1)


# Learning.


@pytest.mark.parametrize(
    ("seed", "separate", "dtype"), [(0, False, "float32"), (1, True, "float32"), (2, False, "bfloat16")]
)
def test_ppo_raises_a_programmatic_reward_within_a_kl_bound(tiny_model, tmp_path, seed, separate, dtype):
    """About 52 / 259 of random tokens are letters; the policy learns to write letters."""
    model = tiny_model("top:1", dtype)
    module = _module(model, iterations=12, separate=separate, options=replace(OPTIONS, seed=seed))
    frozen = {
        k: v.clone() for k, v in (*model.trunk.state_dict().items(), *module.reference.state_dict().items())
    }
    _train(module, tmp_path, 12)
    assert module.history[0]["ppo/reward"] == pytest.approx(52 / 259, abs=0.08)
    assert _end(module, "ppo/reward") > 0.35
    assert module.history[0]["ppo/kl"] == pytest.approx(0.0, abs=1e-3 if dtype == "float32" else 0.2)
    assert 0.5 < _end(module, "ppo/kl") < 9.0, "nats a response of eight tokens"
    now = {**model.trunk.state_dict(), **module.reference.state_dict()}
    assert all(torch.equal(value, now[name]) for name, value in frozen.items()), (
        "trunk and reference never move"
    )
    assert not any("reference" in name or "trunk" in name for name in module.state_dict())


def test_the_opposite_reward_teaches_the_opposite(tiny_model, tmp_path):
    model = tiny_model("top:1")
    share = _letter_share(model)
    module = _module(model, iterations=8, reward=lambda rollout: -share(rollout))
    _train(module, tmp_path, 8)
    assert -_end(module, "ppo/reward") < 0.13


def test_a_penalty_for_missing_eos_teaches_to_stop(tiny_model, tmp_path):
    model = tiny_model("full")
    options = replace(OPTIONS, missing_eos_penalty=1.0, beta=0.0)
    module = _module(model, iterations=8, reward=lambda r: torch.zeros(len(r)), options=options)
    with torch.no_grad():  # raise EOS's logit by about 3, so that some responses end by chance
        ids = torch.tensor([model.tokenizer.encode(PROMPTS[3].prompt)])
        typical = module.policy(ids)[0].mean(dim=0)
        module.policy.embedding[model.eos_id] += 3 * typical / typical.dot(typical)
    _train(module, tmp_path, 8)
    first, last = module.history[0], module.history[-1]
    assert 0.1 < first["ppo/eos_rate"] < 0.6
    assert last["ppo/eos_rate"] > 0.9
    assert last["ppo/response_length"] < first["ppo/response_length"] - 2
    for row in module.history:
        assert row["ppo/score"] == pytest.approx(row["ppo/eos_rate"] - 1, abs=1e-6)


def test_the_value_head_learns_at_its_own_rate(tiny_model, tmp_path):
    """With a factor of zero the critic stands still while the policy moves."""
    model = tiny_model("top:1")
    module = _module(model, iterations=1, separate=True, options=replace(OPTIONS, value_lr_factor=0.0))
    policy, value = (
        {k: v.clone() for k, v in m.state_dict().items()} for m in (module.policy, module.value_top)
    )
    _train(module, tmp_path, 1)
    assert all(torch.equal(v, value[k]) for k, v in module.value_top.state_dict().items())
    assert not module.value_head.weight.any()
    assert not all(torch.equal(v, policy[k]) for k, v in module.policy.state_dict().items())


def test_max_kl_stops_the_run(tiny_model, tmp_path):
    model = tiny_model("top:1")
    free = _module(model, iterations=8)
    _train(free, tmp_path / "free", 5)
    kls = [row["ppo/kl"] for row in free.history]
    limit = 0.5
    stop = next(i for i, kl in enumerate(kls) if kl > limit)
    assert 0 < stop < 4
    states = {}
    for folder, epochs in (("before", stop), ("stopped", 8)):
        module = _module(model, iterations=8, options=replace(OPTIONS, max_kl=limit))
        _train(module, tmp_path / folder, epochs)
        states[folder] = dict(module.state_dict())
    assert [row["ppo/kl"] for row in module.history] == kls[: stop + 1]
    assert _equal(states["stopped"], states["before"]), "the iteration that is too far away updates nothing"
    assert "ppo/ratio_first" not in module.history[-1]
    assert all("ppo/ratio_first" in row for row in module.history[:-1])
    again = _module(model, iterations=8, options=replace(OPTIONS, max_kl=limit))
    _train(again, tmp_path / "stopped", 8)
    assert _untimed(again.history) == _untimed(module.history), "the same command stops at the same place"
    assert _equal(dict(again.state_dict()), states["stopped"])


# Resuming.

TIMES = ("ppo/seconds_rollout", "ppo/seconds_prepare", "ppo/seconds_update", "ppo/samples_per_s")


def _untimed(history):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in history]


def _equal(a, b):
    """Nested containers are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


SHORT = replace(OPTIONS, ppo_epochs=2, minibatch_rollouts=16)


def _short(tiny_model, *, iterations=3, separate=False, options=SHORT):
    return _module(
        tiny_model("top:1"), iterations=iterations, separate=separate, rollouts=32, options=options
    )


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_run_is_bit_identical(tiny_model, tmp_path, separate, after):
    def run(folder, parts):
        for epochs in parts:
            module = _short(tiny_model, separate=separate)
            trainer = _train(module, tmp_path / folder, epochs)
        return module, trainer

    whole, whole_trainer = run("whole", [3])
    resumed, resumed_trainer = run("resumed", [after, 3])
    assert len(whole.history) == 3
    assert _untimed(resumed.history) == _untimed(whole.history)
    assert _equal(dict(resumed.state_dict()), dict(whole.state_dict()))
    states = [t.optimizers[0].state_dict() for t in (whole_trainer, resumed_trainer)]
    assert states[0]["state"], "AdamW's moments are compared"
    assert _equal(*states)
    assert resumed_trainer.global_step == whole_trainer.global_step == 3 * 2 * 2


def test_the_comparison_of_resumed_runs_can_fail(tiny_model, tmp_path):
    """A schedule over the first part's length, and other noise, are both seen."""
    whole = _short(tiny_model)
    _train(whole, tmp_path / "whole", 3)
    _train(_short(tiny_model, iterations=2), tmp_path / "resumed", 2)
    resumed = _short(tiny_model)
    _train(resumed, tmp_path / "resumed", 3)
    assert not _equal(dict(resumed.state_dict()), dict(whole.state_dict()))
    other = _short(tiny_model, options=replace(SHORT, seed=1))
    _train(other, tmp_path / "other", 3)
    assert _untimed(other.history) != _untimed(whole.history)


def test_a_finished_run_resumes_to_itself(tiny_model, tmp_path):
    """Killed after the last checkpoint: nothing is trained again, and the history is whole."""
    first, again = _short(tiny_model), _short(tiny_model)
    _train(first, tmp_path, 3)
    _train(again, tmp_path, 3)
    assert again.history == first.history
    assert _equal(dict(again.state_dict()), dict(first.state_dict()))


def test_a_damaged_checkpoint_costs_one_iteration_and_no_bit(tiny_model, tmp_path):
    whole = _short(tiny_model)
    _train(whole, tmp_path / "whole", 3)
    _train(_short(tiny_model), tmp_path / "resumed", 2)
    newest = tmp_path / "resumed" / "checkpoints" / CHECKPOINT
    newest.write_bytes(newest.read_bytes()[:-1000])
    resumed = _short(tiny_model)
    _train(resumed, tmp_path / "resumed", 3)
    assert _untimed(resumed.history) == _untimed(whole.history)
    assert _equal(dict(resumed.state_dict()), dict(whole.state_dict()))
