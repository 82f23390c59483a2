"""Preference optimisation: packed log-probabilities are transformers' own, and the policy learns what is preferred."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM

from rlaif.data.datamodule import EncodedRow
from rlaif.data.policy_pairs import PolicyPair, collate_policy_pairs, policy_pairs_view
from rlaif.models.export.whole import export_policy
from rlaif.ops import PREFERENCE_LOSSES, PreferenceKnobs
from rlaif.stages.common.training.logprobs import pair_logprobs
from rlaif.stages.common.training.optim import OptimOptions
from rlaif.stages.rl.offline.module import PreferenceModule

NAMES = list(PREFERENCE_LOSSES)
KNOBS = {
    name: PreferenceKnobs(beta=2.0 if name == "simpo" else 0.3, nll_weight=float(name in ("orpo", "sft")))
    for name in NAMES
}


@pytest.fixture
def policy_pair(encode_pair, encode_row):
    """`policy_pair(model, prompt, a, b, p_a, weight=1.0)`, with a mismatched response for the losses that read one."""

    def encode(model, prompt, a, b, p_a, weight=1.0):
        row = encode_pair(model, prompt, a, b, p_a, weight)
        ids = [torch.tensor([*model.tokenizer.encode(text), model.eos_id]) for text in (a, b)]
        return PolicyPair(row, *ids, mismatch=encode_row(model, prompt, b[::-1] + "?"))

    return encode


def _pairs(model, policy_pair, count, seed=0):
    """Pairs whose better response alone has an exclamation mark; a and b take turns."""
    random, rows = Random(seed), []
    for i in range(count):
        word = "".join(random.choices("abcdefgh", k=4))
        a, b = (f"{word}!", f"{word}.")[:: 1 if i % 2 else -1]
        rows.append(policy_pair(model, f"say {i % 7}", a, b, float(i % 2)))
    return rows


def _known(top, rows):
    """The rows with the reference's log-probabilities, one pair at a time."""
    with torch.no_grad():
        found = [pair_logprobs(top, collate_policy_pairs([row]))[0].tolist() for row in rows]
    return [replace(row, reference=tuple(each)) for row, each in zip(rows, found, strict=True)]


def _module(top, name, steps, eps=1e-8):
    optim = OptimOptions(3e-3, 0.0, eps, "constant", 0.0, steps, 1.0)
    return PreferenceModule(top, name, KNOBS[name], optim)


def _data(rows, validation, batch=8, micro=8):
    return policy_pairs_view(
        [rows], validation, epochs_per_phase=1, batch_size=batch, micro_batch_size=micro, seed=0
    )


@pytest.mark.parametrize("trainable", ["full", "top:1", "lora:2"])
def test_packed_log_probabilities_are_those_of_transformers(trainable, tiny_model, policy_pair, tmp_path):
    model = tiny_model(trainable)
    top = model.trunk.new_top()
    texts = [
        ("say", "yes", "no never"),
        ("a longer prompt", "b", "c"),
        ("x", "a much longer response", "d e"),
    ]
    batch = collate_policy_pairs([policy_pair(model, *text, 1.0) for text in texts])
    own = pair_logprobs(top, batch)
    export_policy(tmp_path / "whole", model, top)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    for index, (prompt, *responses) in enumerate(texts):
        start = model.tokenizer.encode(prompt)
        for side, response in enumerate(responses):
            ids = [*start, *model.tokenizer.encode(response), model.eos_id]
            with torch.no_grad():
                logp = log_softmax(theirs(torch.tensor([ids])).logits[0].double(), dim=-1)
            wanted = sum(float(logp[i - 1, ids[i]]) for i in range(len(start), len(ids)))
            assert own[index, side].item() == pytest.approx(wanted, abs=1e-4)
            assert int(batch.tokens[index, side]) == len(ids) - len(start)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_preferred_is_learnt(name, tiny_model, policy_pair, make_bare_trainer):
    model = tiny_model("top:1")
    top = model.trunk.new_top()
    reference = top.frozen_copy()
    train = _known(reference, _pairs(model, policy_pair, 32))
    held = _known(reference, _pairs(model, policy_pair, 16, seed=1))
    module = _module(top, name, 80)
    make_bare_trainer(20).fit(module, _data(train, held))
    first, last = module.history[0], module.history[-1]
    assert len(module.history) == 80 and last["rl/loss"] < first["rl/loss"]
    assert last["rl/accuracy"] == 1.0 and last["rl/val_accuracy"] == 1.0, "words that it has not seen"
    with torch.no_grad():
        batch = collate_policy_pairs(held)
        ratios = pair_logprobs(module.policy, batch) - batch.reference
    preferred = batch.pairs.p_a > 0.5
    ahead = torch.where(preferred, ratios[:, 0] - ratios[:, 1], ratios[:, 1] - ratios[:, 0])
    least = 0.5 if name == "sft" else 1  # which pushes no response down
    assert bool((ahead > least).all()), "the policy itself, not only its scores, has learnt it"


def test_a_policy_at_its_reference_knows_nothing_yet(tiny_model, policy_pair, make_bare_trainer):
    """Before the first update all log-ratios are 0, so the loss is log 2 whatever the labels."""
    model = tiny_model("top:1")
    top = model.trunk.new_top()
    rows = _known(top.frozen_copy(), _pairs(model, policy_pair, 8))
    module = _module(top, "sigmoid", 1)
    make_bare_trainer(1).fit(module, _data(rows, rows))
    (first,) = module.history
    assert first["rl/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rl/preferred_log_ratio"] == pytest.approx(0, abs=1e-4) and first["rl/lr"] == 3e-3
    assert first["rl/val_loss"] < math.log(2) - 1e-3, "validation follows the update"


@pytest.mark.parametrize("name", ["sigmoid", "kto"])
def test_micro_batches_are_the_batch(name, tiny_model, policy_pair, make_bare_trainer):
    """Weights and soft labels included: the same weights after a step, in one pass or in uneven ones."""
    model = tiny_model("top:1")
    start = model.trunk.new_top()
    rows = _known(start.frozen_copy(), _pairs(model, policy_pair, 8))
    rows = [
        replace(row, row=replace(row.row, weight=0.2 + i / 4, p_a=0.1 + i / 10)) for i, row in enumerate(rows)
    ]
    ends, losses = [], []
    for micro in (8, 3):
        top = model.trunk.new_top()
        module = _module(top, name, 2, eps=1e-2)  # a tiny one makes whole steps of rounding errors
        make_bare_trainer(2).fit(module, _data(rows, rows, micro=micro))
        ends.append(torch.cat([p.detach().flatten() for p in top.parameters()]))
        losses.append([row["rl/loss"] for row in module.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert torch.allclose(ends[0], ends[1], atol=1e-6)
    moved = torch.cat([p.detach().flatten() for p in start.parameters()])
    assert not torch.allclose(ends[0], moved, atol=1e-4)


def test_a_pair_that_weighs_nothing_teaches_nothing(tiny_model, policy_pair, make_bare_trainer):
    """Pairs of weight 0, with the opposite label, change no update."""
    model = tiny_model("top:1")
    rows = _known(model.trunk.new_top(), _pairs(model, policy_pair, 4))
    against = [
        replace(row, row=replace(row.row, weight=0.0, p_a=1 - row.row.p_a))
        for row in _pairs(model, policy_pair, 4)
    ]
    ends = []
    for chosen in (rows, rows + _known(model.trunk.new_top(), against)):
        top = model.trunk.new_top()
        make_bare_trainer(1).fit(_module(top, "sigmoid", 1), _data(chosen, rows))
        ends.append(torch.cat([p.detach().flatten() for p in top.parameters()]))
    assert torch.allclose(ends[0], ends[1], atol=1e-6)


def test_pairs_need_a_prompt_and_two_responses():
    pair = PolicyPair(
        replace(_empty_row(), a=torch.zeros(0, 4)), torch.zeros(0, dtype=torch.long), torch.tensor([3])
    )
    with pytest.raises(ValueError, match="at least one token"):
        collate_policy_pairs([pair])


def _empty_row():
    from pair_rows import tensor_row

    return tensor_row(torch.zeros(2, 4), torch.zeros(1, 4), torch.zeros(1, 4))


def test_mismatched_texts_travel_with_their_pairs(tiny_model, policy_pair):
    model = tiny_model("full")
    rows = [replace(row, mismatch_reference=-float(i)) for i, row in enumerate(_pairs(model, policy_pair, 3))]
    batch = collate_policy_pairs(rows).to("cpu")
    assert batch.mismatch is not None and batch.mismatch_reference.tolist() == [0.0, -1.0, -2.0]
    assert [
        ids[mask].tolist() for ids, mask in zip(batch.mismatch.ids, batch.mismatch.response_mask, strict=True)
    ] == [
        row.mismatch.ids[row.mismatch.prompt_length :].tolist()
        for row in rows
        if isinstance(row.mismatch, EncodedRow)
    ]
    assert collate_policy_pairs([replace(row, mismatch=None) for row in rows]).mismatch is None


def test_the_reference_point_is_the_whole_steps(tiny_model, policy_pair):
    """KTO's is the mean over all mismatched responses of a step, however it is cut into micro-batches."""
    model = tiny_model("top:1")
    top, rows = model.trunk.new_top(), _pairs(model, policy_pair, 4)
    rows = [replace(row, mismatch_reference=-10.0 * i) for i, row in enumerate(rows)]
    ratios = []
    for row in rows:
        text = row.mismatch
        with torch.no_grad():
            logp = log_softmax(top.logits(top(torch.cat([text.prompt, text.response])[None]))[0].double(), -1)
        start = text.prompt_length
        ratios.append(
            sum(float(logp[i - 1, text.ids[i]]) for i in range(start, len(text.ids))) - row.mismatch_reference
        )
    batches = [collate_policy_pairs(rows[:3]), collate_policy_pairs(rows[3:])]
    assert _module(top, "kto", 1)._step.mismatch(batches).item() == pytest.approx(sum(ratios) / 4, abs=1e-4)
    assert _module(top, "sigmoid", 1)._step.mismatch(batches) is None
