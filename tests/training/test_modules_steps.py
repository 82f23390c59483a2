"""Optimiser steps: micro-batches equal the batch, and both equal a plain loop over rows."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pair_rows import tensor_row

from rlaif.data.datamodule import EpochBatches, TextDataModule
from rlaif.models.split import ScalarHead
from rlaif.stages.common.training.likelihood import LikelihoodModule
from rlaif.stages.common.training.optim import OptimOptions, schedule_factor
from rlaif.stages.rm.module import PreferenceLossOptions, RewardModule

EPOCHS, BATCH, SEED, ROWS = 3, 4, 7, 11  # the last step of an epoch has three rows
STEPS = EPOCHS * 3
OPTIM = OptimOptions(2e-3, 0.01, 1e-6, "cosine", 0.25, STEPS, gradient_clip=0.5)
CENTERING = 0.02
LOSS = PreferenceLossOptions(margin=0.0, label_smoothing=0.0, temperature=1.0, centering=CENTERING)


def _texts(model, encode_row, count=ROWS):
    return [encode_row(model, "ask" * (1 + i % 3), "ab" * (1 + (5 * i) % 7) + str(i)) for i in range(count)]


def _pairs(model, encode_row):
    """Pairs of unequal lengths, labels and weights (one of them zero)."""
    rows = []
    for i, one in enumerate(_texts(model, encode_row)):
        other = encode_row(model, "ask" * (1 + i % 3), "no" * (1 + (3 * i) % 5))
        rows.append(tensor_row(one.prompt, one.response, other.response, (i % 5) / 4, 0.25 * (i % 4)))
    return rows


def _train(trainer, module, data):
    trainer.fit(module, data)
    assert trainer.global_step == STEPS
    return [value.detach().clone() for value in module.parameters()]


def _by_hand(groups, lengths, summed, size, pooled):
    """The weights after all steps: rows one by one, their losses and weights (`summed`) pooled by `pooled`."""
    optimizer = torch.optim.AdamW(
        [{"params": params, "lr": OPTIM.lr * factor} for params, factor in groups],
        eps=OPTIM.eps,
        weight_decay=OPTIM.weight_decay,
    )
    rates, factor = [group["lr"] for group in optimizer.param_groups], schedule_factor(OPTIM)
    batches, step = EpochBatches(lengths, BATCH, SEED), 0
    for epoch in range(EPOCHS):
        batches.set_epoch(epoch)
        for indices in batches:
            optimizer.zero_grad()
            parts = [
                [summed(i) for i in indices[start : start + size]] for start in range(0, len(indices), size)
            ]
            pooled(parts).backward()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor(step)
                torch.nn.utils.clip_grad_norm_(group["params"], OPTIM.gradient_clip)
            optimizer.step()
            step += 1
    assert step == STEPS
    return [value.detach() for params, _ in groups for value in params]


def _mean_over_the_step(parts):
    rows = [row for part in parts for row in part]
    return sum(loss for loss, _ in rows) / sum(weight for _, weight in rows)


def _mean_of_means(parts):
    return sum(_mean_over_the_step([part]) for part in parts if sum(weight for _, weight in part)) / len(
        parts
    )


def _apart(a, b):
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def test_a_reward_step_is_the_mean_over_its_weights(tiny_model, encode_row, make_bare_trainer):
    model = tiny_model("top:1")
    rows = _pairs(model, encode_row)

    def members():
        head = ScalarHead(32).init_normal(torch.Generator().manual_seed(1))
        return [(model.trunk.new_top(), head)]

    def trained(micro):
        module = RewardModule(members(), OPTIM, LOSS, head_lr_factor=3.0, patience=None, choose_from=EPOCHS)
        data = TextDataModule.preference_view(
            [rows], rows, epochs_per_phase=EPOCHS, batch_size=BATCH, micro_batch_size=micro, seed=SEED
        )
        return _train(make_bare_trainer(EPOCHS), module, data)

    def by_hand(size, pooled):
        top, head = members()[0]

        def summed(i):
            row = rows[i]
            a, b = (head(top(torch.cat((row.prompt, text))[None]))[0, -1] for text in (row.a, row.b))
            loss = -(row.p_a * F.logsigmoid(a - b) + (1 - row.p_a) * F.logsigmoid(b - a))
            return row.weight * (loss + CENTERING * (a + b) ** 2), row.weight

        groups = [(list(top.parameters()), 1.0), (list(head.parameters()), 3.0)]
        return _by_hand(groups, [len(row) for row in rows], summed, size, pooled)

    whole = trained(BATCH)
    for micro in (1, 3):
        assert _apart(trained(micro), whole) < 1e-6, micro
    assert _apart(by_hand(BATCH, _mean_over_the_step), whole) < 2e-6
    assert _apart(by_hand(3, _mean_of_means), whole) > 1e-4, "a mean of micro-batches' means is seen"


def test_an_sft_step_is_the_mean_over_its_tokens(tiny_model, encode_row, make_bare_trainer):
    model = tiny_model("top:1")
    rows = _texts(model, encode_row)

    def new_top():
        top = model.trunk.new_top()
        with torch.no_grad():
            top.norm.weight.mul_(10)  # the tiny model's distributions are nearly uniform otherwise
        return top

    def trained(micro):
        data = TextDataModule.sft_view(rows, rows, batch_size=BATCH, micro_batch_size=micro, seed=SEED)
        return _train(make_bare_trainer(EPOCHS), LikelihoodModule(new_top(), OPTIM), data)

    def by_hand(size, pooled):
        top = new_top()

        def summed(i):
            row = rows[i]
            logits = top.logits(top(torch.cat((row.prompt, row.response))[None]))[
                0, row.prompt_length - 1 : -1
            ]
            targets = row.ids[row.prompt_length :]
            return F.cross_entropy(logits, targets, reduction="sum"), len(targets)

        return _by_hand([(list(top.parameters()), 1.0)], [len(r.ids) for r in rows], summed, size, pooled)

    whole = trained(BATCH)
    for micro in (1, 3):
        assert _apart(trained(micro), whole) < 1e-6, micro
    assert _apart(by_hand(BATCH, _mean_over_the_step), whole) < 2e-6
    assert _apart(by_hand(1, _mean_of_means), whole) > 1e-4, "a mean over rows is seen"


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_a_step_comes_as_its_micro_batches(tiny_model, encode_row, micro):
    rows = [replace(row, weight=float(i)) for i, row in enumerate(_pairs(tiny_model("top:1"), encode_row))]
    data = TextDataModule.preference_view(
        [rows], rows, epochs_per_phase=1, batch_size=5, micro_batch_size=micro, seed=SEED
    )
    steps = [[batch.weight.tolist() for batch in step] for step in data.train_dataloader()]
    assert [len(part) for step in steps for part in step[:-1]] == [micro] * sum(len(s) - 1 for s in steps)
    together = [[int(i) for part in step for i in part] for step in steps]
    assert together == list(EpochBatches([len(row) for row in rows], 5, SEED))
    assert sorted(map(len, together)) == [1, 5, 5]
