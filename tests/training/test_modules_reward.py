"""The reward model: separable pairs are separated, the best epoch is kept."""

from dataclasses import replace
from random import Random

import pytest
import pytorch_lightning as pl
import torch

from rlaif.data.datamodule import TextDataModule, collate_preferences
from rlaif.models.split import ScalarHead
from rlaif.stages.common.scoring import pair_scores
from rlaif.stages.common.training.optim import OptimOptions
from rlaif.stages.rm.module import PreferenceLossOptions, RewardModule

PLAIN = PreferenceLossOptions(margin=0.0, label_smoothing=0.0, temperature=1.0, centering=0.0)


def _module(model, optim, head_lr_factor):
    head = ScalarHead(32).init_normal(torch.Generator().manual_seed(3))
    return RewardModule(
        [(model.trunk.new_top(), head)],
        optim,
        PLAIN,
        head_lr_factor=head_lr_factor,
        patience=None,
        choose_from=0,
    )


def _data(train, validation):
    return TextDataModule.preference_view(
        [train], validation, epochs_per_phase=1, batch_size=8, micro_batch_size=8, seed=0
    )


def _separable(model, encode_pair, count, seed=0):
    """Pairs whose better response alone holds an exclamation mark somewhere inside; a and b take turns."""
    random, rows = Random(seed), []
    for i in range(count):
        good, bad = (["".join(random.choices("abcdefgh", k=5)) for _ in "12"] for _ in "12")
        words = ("!".join(good), ".".join(bad))
        a, b = words if i % 2 else words[::-1]
        rows.append(encode_pair(model, f"say {i}", a, b, float(i % 2)))
    return rows


def _accuracy(module, rows):
    with torch.no_grad():
        a, b = pair_scores(*module.members[0], collate_preferences(rows))
    return sum(float((x > y) == (row.p_a > 0.5)) for x, y, row in zip(a, b, rows, strict=True)) / len(rows)


def test_separable_pairs_are_separated(tiny_model, encode_pair, make_bare_trainer):
    model = tiny_model("top:1")
    train, held = _separable(model, encode_pair, 48), _separable(model, encode_pair, 24, seed=1)
    optim = OptimOptions(1e-2, 0.0, 1e-8, "cosine", 0.0, 120, 1.0)
    module = _module(model, optim, head_lr_factor=3.0)
    assert _accuracy(module, train) < 0.8
    trainer = make_bare_trainer(20)
    trainer.fit(module, _data(train, held))
    assert _accuracy(module, train) == 1.0
    assert _accuracy(module, held) == 1.0, "words it has not seen"
    assert float(trainer.callback_metrics["rm/val_accuracy"]) == 1.0
    assert module.best[0].loss < 0.1
    flipped = [replace(row, p_a=1 - row.p_a) for row in held]
    assert _accuracy(module, flipped) == 0.0


class _Remember(pl.Callback):
    def __init__(self):
        self.losses, self.states = [], []

    def on_train_epoch_end(self, trainer, module):
        self.losses.append(float(trainer.callback_metrics["rm/val_loss"]))
        self.states.append({k: v.clone() for k, v in module.state_dict().items()})


def test_the_best_epoch_is_what_stays(tiny_model, encode_pair, make_bare_trainer):
    """Validation pairs with the opposite taste get worse while the training pairs are learnt."""
    model = tiny_model("top:1")
    train = _separable(model, encode_pair, 16)
    against = [replace(row, p_a=1 - row.p_a) for row in _separable(model, encode_pair, 8, seed=1)]
    module = _module(model, OptimOptions(3e-3, 0.0, 1e-8, "constant", 0.0, 40, 0.0), head_lr_factor=1.0)
    seen = _Remember()
    make_bare_trainer(8, callbacks=[seen]).fit(module, _data(train, against))
    best = min(range(8), key=seen.losses.__getitem__)
    assert seen.losses[-1] > seen.losses[best] + 0.1
    assert module.best[0].loss == pytest.approx(seen.losses[best], abs=1e-6)
    for name, value in module.state_dict().items():
        assert torch.equal(value, seen.states[best][name]), name
    top, head = module.members[0]
    assert not torch.equal(head.weight, seen.states[-1]["_members.0.score.weight"])
    with torch.no_grad():
        a, b = pair_scores(top, head, collate_preferences(against))
    p = torch.tensor([row.p_a for row in against])
    loss = -(p * torch.sigmoid(a - b).log() + (1 - p) * torch.sigmoid(b - a).log()).mean()
    assert loss.item() == pytest.approx(seen.losses[best], abs=1e-5)
