"""Online DPO: pairs as they were drawn, updates of DPO on them, and what may not be learnt from."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from online_pairs_cases import OPTIONS, PLAIN, letters_win, make_online
from ppo_cases import (
    PROMPTS,
    equal,
    make_ppo_trainer,
    policy_top,
    random_rollout,
    untimed,
)

from rlaif.data.policy_pairs import collate_policy_pairs, policy_pairs_view
from rlaif.stages.common.training.logprobs import pair_logprobs, response_logprobs
from rlaif.stages.common.training.optim import OptimOptions
from rlaif.stages.common.training.trainer import CHECKPOINT, fit
from rlaif.stages.rl.offline.module import PreferenceModule
from rlaif.stages.rl.online_pairs.pairs import is_equal, rollout_pairs


def _train(module, folder: Path, iterations: int):
    trainer = make_ppo_trainer(folder, iterations)
    fit(trainer, module, folder)
    return trainer


def _weights(module):
    return {name: value.clone() for name, value in module.policy.state_dict().items()}


@pytest.mark.parametrize("trainable", ["full", "top:1", "lora:2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_pairs_are_the_rollouts_rows(tiny_model, trainable, temperature):
    """Packed, their log-probabilities are those of the single rows, under the sampling temperature."""
    model = tiny_model(trainable)
    rollout, top = random_rollout(model), model.trunk.new_top()
    rollout = replace(rollout, prompts=tuple(PROMPTS[i // 2] for i in range(6)), responses=tuple("abcdef"))
    for row in (1, 3, 5):  # both responses answer one prompt
        rollout = _with_prompt_of(model, rollout, row - 1, row)
    pairs = rollout_pairs(rollout, iteration=4)
    assert [pair.row.pair.id for pair in pairs] == ["p0#4.0", "p1#4.1", "p2#4.2"]
    assert [(p.row.pair.response_a, p.row.pair.response_b) for p in pairs] == [
        ("a", "b"),
        ("c", "d"),
        ("e", "f"),
    ]
    assert pairs[1].row.pair.ids_b == tuple(rollout.ids[3][rollout.response_mask[3]].tolist())
    (batch,) = rollout.batches(6)
    with torch.no_grad():
        alone = response_logprobs(top, batch, temperature).sum(1).view(3, 2)
        packed = pair_logprobs(top, collate_policy_pairs(pairs), temperature)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-4)
    assert (pair_logprobs(top, collate_policy_pairs(pairs), 2.0) - alone).abs().max() > 0.1


def _with_prompt_of(model, rollout, source, row):
    """The rollout with `row` answering the prompt of `source`, its response kept."""
    starts = rollout.response_mask.int().argmax(1)
    prompt = rollout.ids[source, : starts[source]]
    response = rollout.ids[row][rollout.response_mask[row]]
    width = max(rollout.ids.shape[1], len(prompt) + len(response))
    grow = width - rollout.ids.shape[1]
    ids = torch.nn.functional.pad(rollout.ids, (0, grow))
    mask = torch.nn.functional.pad(rollout.response_mask, (0, grow))
    last = rollout.last.clone()
    ids[row], mask[row] = 0, False
    ids[row, : len(prompt) + len(response)] = torch.cat([prompt, response])
    mask[row, len(prompt) : len(prompt) + len(response)] = True
    last[row] = len(prompt) + len(response) - 1
    return replace(rollout, ids=ids, response_mask=mask, last=last, features=model.trunk(ids))


def test_it_learns_what_is_preferred(tiny_model, tmp_path):
    """From a fifth of letters, which is chance, to most; labels turned round, or without a preference, do not."""
    model = tiny_model("top:1")
    options = replace(OPTIONS, pairs=32, passes=2, batch_size=16)
    ends = {}
    for name, turn in (("right", lambda p: p), ("wrong", lambda p: 1 - p), ("even", lambda p: 0.5)):
        right = letters_win(model)

        def label(rollout, pairs, right=right, turn=turn):
            labels, metrics = right(rollout, pairs)
            return {number: turn(p) for number, p in labels.items()}, metrics

        module = make_online(model, iterations=9, options=options, label=label)
        _train(module, tmp_path / name, 9)
        shares = [row["rl/reward"] for row in module.history]
        assert shares[0] == pytest.approx(52 / 259, abs=0.08)
        ends[name] = sum(shares[-3:]) / 3
        if name == "right":
            # To write a letter with probability 0.9 takes at least 8 (0.9 ln 4.5 - 0.1 ln 8), about 9 nats.
            assert 0.5 < module.history[-1]["rl/kl"] < 13
            assert module.history[0]["rl/kl"] == pytest.approx(0, abs=1e-4)
    assert ends["right"] > 0.8 and ends["wrong"] < 0.15 and ends["even"] < 0.35


def test_an_iteration_is_dpo_on_its_pairs(tiny_model, tmp_path):
    """One update in micro-batches: weights and metrics are those of rl=dpo on the same pairs and soft labels."""
    model = tiny_model("top:1")
    options = replace(OPTIONS, micro_batch_size=3)
    kept = {}

    def label(rollout, pairs):
        kept["rollout"] = rollout
        return letters_win(model)(rollout, pairs)

    module = make_online(model, iterations=1, options=options, label=label, eps=1e-2)
    start = _weights(module)
    _train(module, tmp_path / "online", 1)
    (row,) = module.history
    assert row["rl/loss"] == pytest.approx(math.log(2), abs=1e-6), "it starts at the reference"
    top = policy_top(model)
    labels, _ = letters_win(model)(kept["rollout"], range(8))
    pairs = [
        replace(pair, row=replace(pair.row, p_a=labels[n]), reference=tuple(_own(top, pair)))
        for n, pair in enumerate(rollout_pairs(kept["rollout"], 0))
    ]
    offline = PreferenceModule(
        top, "sigmoid", options.knobs, OptimOptions(2e-3, 0.0, 1e-2, "constant", 0.0, 1, 1.0)
    )
    data = policy_pairs_view([pairs], [], epochs_per_phase=1, batch_size=8, micro_batch_size=8, seed=0)
    trainer = make_ppo_trainer(tmp_path / "offline", 1)
    fit(trainer, offline, tmp_path / "offline", data)
    ends = module.policy.state_dict(), offline.policy.state_dict()
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-6) for name in ends[0])
    assert any(not torch.allclose(start[name], ends[0][name], atol=1e-4) for name in start)
    for name in ("rl/loss", "rl/accuracy", "rl/margin", "rl/preferred_log_ratio", "rl/lr"):
        assert row[name] == pytest.approx(offline.history[0][name], abs=1e-5)


def _own(top, pair):
    with torch.no_grad():
        return pair_logprobs(top, collate_policy_pairs([pair]))[0].tolist()


def test_kl_and_entropy_are_of_all_responses_before_the_update(tiny_model, tmp_path):
    """Those of dropped pairs too, row by row from the logits."""
    model, wanted = tiny_model("top:1"), []
    options = replace(OPTIONS, temperature=0.8)

    def label(rollout, pairs):
        with torch.no_grad():
            both = [top.logits(top(rollout.features)) for top in (module.policy, module.reference)]
        logs = [(logits / options.temperature).log_softmax(-1)[:, :-1] for logits in both]
        mask = rollout.response_mask[:, 1:]
        new, old = (log.gather(2, rollout.ids[:, 1:, None])[..., 0] for log in logs)
        entropy = -(logs[0].exp() * logs[0]).sum(-1)
        kl = ((new - old) * mask).sum(1).mean()
        wanted.append((float(kl), float(entropy[mask].mean())))
        labels, metrics = letters_win(model)(rollout, pairs)
        return dict(list(labels.items())[:3]), metrics

    module = make_online(model, iterations=4, options=options, label=label, lr=1e-2)
    _train(module, tmp_path, 4)
    assert [row["rl/train_pairs"] for row in module.history] == [3] * 4
    assert [row["rl/kl"] for row in module.history] == pytest.approx([kl for kl, _ in wanted], abs=1e-3)
    assert [row["rl/entropy"] for row in module.history] == pytest.approx([e for _, e in wanted], abs=1e-3)
    assert abs(wanted[-1][0]) > 0.05
    assert module.history[0]["rl/loss"] == pytest.approx(math.log(2), abs=1e-6), "one temperature for all"


def test_pairs_without_a_label_or_a_difference_teach_nothing(tiny_model, tmp_path):
    """They are counted, and the update is that of the others; nothing stands in for a label, not even 0.5."""
    model, ends = tiny_model("top:1"), []
    right = letters_win(model)

    def some(rollout, pairs):
        labels, metrics = right(rollout, pairs)
        return {n: p for n, p in labels.items() if n not in (1, 5)}, metrics

    def even(rollout, pairs):
        labels, metrics = right(rollout, pairs)
        return {n: 0.5 if n in (1, 5) else p for n, p in labels.items()}, metrics

    def reference(rollout, pairs):
        """The update by hand: only those pairs, given alone."""
        return some(rollout, {n: pair for n, pair in pairs.items() if n not in (1, 5)})

    for number, label in enumerate((some, reference, even)):
        module = make_online(model, iterations=1, label=label)
        _train(module, tmp_path / str(number), 1)
        ends.append((_weights(module), module.history[0]))
    assert equal(ends[0][0], ends[1][0]) and not equal(ends[0][0], ends[2][0])
    assert ends[0][1]["rl/unread_dropped"] == 2 and ends[0][1]["rl/train_pairs"] == 6
    assert ends[2][1]["rl/unread_dropped"] == 0 and ends[2][1]["rl/train_pairs"] == 8


def test_equal_responses_are_never_asked_about(tiny_model, tmp_path):
    model, asked = tiny_model("top:1"), []

    def label(rollout, pairs):
        asked.append(pairs)
        return letters_win(model)(rollout, pairs)

    module = make_online(model, iterations=1, label=label)
    right = module._collect

    def collect(iteration):
        rollout = right(iteration)
        texts = list(rollout.responses)
        texts[5] = texts[4]
        return replace(rollout, responses=tuple(texts))

    module._collect = collect
    _train(module, tmp_path, 1)
    assert list(asked[0]) == [0, 1, 3, 4, 5, 6, 7] and not any(map(is_equal, asked[0].values()))
    assert module.history[0]["rl/equal_dropped"] == 1 and module.history[0]["rl/train_pairs"] == 7


def test_an_iteration_without_labels_changes_nothing_and_training_goes_on(tiny_model, tmp_path):
    model = tiny_model("top:1")
    calls = []

    def label(rollout, pairs):
        calls.append(_weights(module))
        labels, metrics = letters_win(model)(rollout, pairs)
        return ({} if len(calls) == 2 else labels), metrics

    module = make_online(model, iterations=4, options=replace(OPTIONS, batch_size=4), label=label)
    trainer = _train(module, tmp_path, 4)
    assert len(module.history) == 4 and trainer.global_step == 8
    assert equal(calls[1], calls[2]) and not equal(calls[0], calls[1]) and not equal(calls[2], calls[3])
    assert "rl/loss" not in module.history[1] and module.history[1]["rl/train_pairs"] == 0
    assert "rl/loss" in module.history[2]


def test_every_update_of_every_pass_has_its_share(tiny_model):
    options = replace(OPTIONS, pairs=10, passes=3, batch_size=4)
    module = make_online(tiny_model("top:1"), iterations=1, options=options)
    parts = module._ordered(list(range(9)), iteration=0)
    assert [len(part) for part in parts] == [3] * 9 and options.updates == 9
    passes = [sum(parts[i : i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(one) == list(range(9)) for one in passes) and len({*map(tuple, passes)}) == 3
    assert module._ordered(list(range(9)), iteration=0) == parts
    assert module._ordered(list(range(9)), iteration=1) != parts


@pytest.mark.parametrize("source", [{"hard": True}, {"noise": 1.0}, {"min_confidence": 0.3}])
def test_labels_are_treated_as_those_of_dpo(tiny_model, tmp_path, source):
    module = make_online(tiny_model("top:1"), iterations=1, source=replace(PLAIN, **source))
    plain = make_online(tiny_model("top:1"), iterations=1)
    for name, one in (("own", module), ("plain", plain)):
        _train(one, tmp_path / name, 1)
    row = module.history[0]
    assert not equal(_weights(module), _weights(plain))
    assert row["rl/flipped_pairs"] == (8 if "noise" in source else 0)
    assert (row["rl/dropped_pairs"] > 0) == ("min_confidence" in source)
    assert row["rl/train_pairs"] + row["rl/dropped_pairs"] == 8


def test_a_run_that_has_moved_too_far_stops_and_pays_for_no_more_labels(tiny_model, tmp_path):
    asked = []
    model = tiny_model("top:1")

    def label(rollout, pairs):
        asked.append(len(pairs))
        return letters_win(model)(rollout, pairs)

    options = replace(OPTIONS, max_kl=0.05)
    module = make_online(model, iterations=8, options=options, label=label, lr=1e-2)
    _train(module, tmp_path, 8)
    assert 1 < len(module.history) < 8 and len(asked) == len(module.history) - 1
    assert module.history[-1]["rl/kl"] > 0.05 and "rl/train_pairs" not in module.history[-1]
    again = make_online(model, iterations=8, options=options, label=label, lr=1e-2)
    _train(again, tmp_path, 8)
    assert untimed(again.history) == untimed(module.history), "resumed, it stops at the same iteration"


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_resumed_it_is_the_same(tiny_model, tmp_path, loss):
    options = replace(OPTIONS, loss=loss, passes=2, batch_size=4, micro_batch_size=2)
    whole = make_online(tiny_model("top:1"), iterations=3, options=options)
    _train(whole, tmp_path / "whole", 3)
    first = make_online(tiny_model("top:1"), iterations=3, options=options)
    fit(make_ppo_trainer(tmp_path / "parts", 2), first, tmp_path / "parts")
    assert (tmp_path / "parts" / "checkpoints" / CHECKPOINT).exists()
    second = make_online(tiny_model("top:1"), iterations=3, options=options)
    _train(second, tmp_path / "parts", 3)
    assert untimed(second.history) == untimed(whole.history) and equal(_weights(second), _weights(whole))
