"""Ensembles of reward models: each member ends as it would alone; early stops; phases."""

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from pair_rows import tensor_row

from rlaif.data.datamodule import TextDataModule
from rlaif.models.split import ScalarHead
from rlaif.stages.common.training.optim import OptimOptions
from rlaif.stages.rm.bootstrap import bootstrap_counts
from rlaif.stages.rm.module import PreferenceLossOptions, RewardModule

LOSS = PreferenceLossOptions(margin=0.0, label_smoothing=0.0, temperature=1.0, centering=0.01)
MEMBERS, EPOCHS = 3, 8


def _rows(model, encode_row, count, *, seed=0, weight=None):
    """The response with more exclamation marks is better; `weight` maps a row's name to its weight."""
    rows = []
    for i in range(count):
        texts = "!" * (1 + i % 3) + "a" * (i % 5), "?" * (1 + i % 2) + "b" * (seed + i % 4)
        a, b = (encode_row(model, f"say {i % 4}", text) for text in (texts if i % 2 else texts[::-1]))
        own = 1.0 if weight is None else weight(f"{i}")
        rows.append(tensor_row(a.prompt, a.response, b.response, 0.1 + 0.8 * (i % 2), own))
    return rows


def _module(model, heads, *, patience=None, choose_from=0, lr=3e-3, schedule="cosine", steps=EPOCHS * 3):
    members = [
        (model.trunk.new_top(), ScalarHead(32).init_normal(torch.Generator().manual_seed(seed)))
        for seed in heads
    ]
    optim = OptimOptions(lr, 0.01, 1e-8, schedule, 0.1, steps, gradient_clip=0.1)
    return RewardModule(members, optim, LOSS, head_lr_factor=3.0, patience=patience, choose_from=choose_from)


def _fit(trainer, module, phases, validation, epochs_per_phase=EPOCHS):
    trainer.fit(
        module,
        TextDataModule.preference_view(
            phases,
            validation,
            epochs_per_phase=epochs_per_phase,
            batch_size=4,
            micro_batch_size=3,
            seed=0,
        ),
    )
    return module


class _Watch(pl.Callback):
    """Notes the validation loss and the weights of every epoch."""

    def __init__(self):
        self.losses, self.states = [], []

    def on_train_epoch_end(self, trainer, module):
        self.losses.append(float(trainer.callback_metrics["rm/val_loss"]))
        self.states.append({k: v.clone() for k, v in module.state_dict().items()})


def _state(module, index):
    top, head = module.members[index]
    return [*top.state_dict().values(), *head.state_dict().values()]


def _same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("trainable", "patience"), [("top:1", None), ("top:1", 1), ("full", 1)])
def test_each_member_ends_as_it_would_alone(tiny_model, encode_row, make_bare_trainer, trainable, patience):
    model = tiny_model(trainable)

    def draws(name):
        return tuple(float(count) for count in bootstrap_counts(name, members=MEMBERS, seed=0))

    train = _rows(model, encode_row, 10, weight=draws)
    against = [replace(r, p_a=0.8 - 0.5 * r.p_a) for r in _rows(model, encode_row, 7, seed=1)]
    together = _module(model, range(MEMBERS), patience=patience)
    _fit(make_bare_trainer(EPOCHS), together, [train], against)
    for index in range(MEMBERS):
        own = [replace(row, weight=row.weight[index]) for row in train]
        alone = _module(model, [index], patience=patience)
        _fit(make_bare_trainer(EPOCHS), alone, [own], against)
        assert _same(_state(alone, 0), _state(together, index))
        assert alone.best[0].loss == together.best[index].loss
        assert alone.epochs <= together.epochs
    assert not _same(_state(together, 0), _state(together, 1))
    # What sets members apart is seen: the same head on the weights of another member.
    other = _module(model, [1], patience=patience)
    _fit(make_bare_trainer(EPOCHS), other, [[replace(r, weight=1.0) for r in train]], against)
    assert not _same(_state(other, 0), _state(together, 1))


def test_a_step_without_a_pair_for_one_member_leaves_no_nan(tiny_model, encode_row, make_bare_trainer):
    model = tiny_model("top:1")
    rows = _rows(model, encode_row, 6, weight=lambda name: (1.0, 0.0))
    module = _module(model, [0, 1])
    _fit(make_bare_trainer(2), module, [rows], _rows(model, encode_row, 4, seed=1))
    assert all(value.isfinite().all() for index in (0, 1) for value in _state(module, index))


def _against(model, encode_row):
    """Pairs whose better response is the one that training teaches to dislike."""
    return [replace(row, p_a=1 - row.p_a) for row in _rows(model, encode_row, 6, seed=1)]


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_stops_and_keeps_the_best(tiny_model, encode_row, make_bare_trainer, patience):
    model = tiny_model("top:1")
    train, against = _rows(model, encode_row, 12), _against(model, encode_row)

    def fitted(patience, watch):
        module = _module(model, [0], patience=patience, schedule="constant", lr=3e-4)
        return _fit(make_bare_trainer(EPOCHS, callbacks=[watch]), module, [train], against)

    seen, stopped_at = _Watch(), _Watch()
    free, stopped = fitted(None, seen), fitted(patience, stopped_at)
    best = min(range(EPOCHS), key=seen.losses.__getitem__)
    assert best + 1 + patience < EPOCHS, "there is something to save"
    assert stopped.epochs == len(stopped_at.losses) == best + 1 + patience
    assert free.epochs == EPOCHS
    assert stopped_at.losses == seen.losses[: stopped.epochs]
    assert _same(list(stopped.state_dict().values()), list(seen.states[best].values()))
    assert _same(_state(stopped, 0), _state(free, 0))
    assert not _same(list(stopped.state_dict().values()), list(stopped_at.states[-1].values()))


def test_a_stopped_member_waits_for_the_others(tiny_model, encode_row, make_bare_trainer):
    """The second member learns from flipped labels alone: it gets worse, and stops after its second epoch."""
    model = tiny_model("top:1")
    right = _rows(model, encode_row, 12, weight=lambda name: (1.0, 0.0))
    wrong = [replace(row, p_a=1 - row.p_a, weight=(0.0, 1.0)) for row in right]
    watch = _Watch()
    module = _module(model, [0, 1], patience=1, schedule="constant", lr=3e-4)
    validation = [replace(row, weight=1.0) for row in right]
    _fit(make_bare_trainer(EPOCHS, callbacks=[watch]), module, [[*right, *wrong]], validation)
    second = [[v for k, v in state.items() if k.startswith("_members.1.")] for state in watch.states]
    assert module.epochs > 3 and module.best[1].waited == 1
    assert not _same(second[0], second[1])
    assert all(_same(one, second[1]) for one in second[1:]), "neither gradients nor weight decay"
    assert _same(_state(module, 1), second[0])


def test_weights_come_from_the_last_phase(tiny_model, encode_row, make_bare_trainer):
    """Three epochs of 12 pairs, then three of 5 pairs; the earlier ones would be better."""
    model = tiny_model("top:1")
    phases = [_rows(model, encode_row, 12), _rows(model, encode_row, 5, seed=2)]
    against, watch = _against(model, encode_row), _Watch()
    module = _module(model, [0], choose_from=3, schedule="constant", lr=3e-4)
    trainer = make_bare_trainer(6, callbacks=[watch], reload_dataloaders_every_n_epochs=1)
    _fit(trainer, module, phases, against, epochs_per_phase=3)
    assert trainer.global_step == 3 * 3 + 3 * 2
    best = min(range(3, 6), key=watch.losses.__getitem__)
    assert min(watch.losses[:3]) < watch.losses[best]
    assert _same(list(module.state_dict().values()), list(watch.states[best].values()))
    assert module.best[0].loss == pytest.approx(watch.losses[best], abs=1e-6)


def test_each_phase_trains_its_own_rows(tiny_model, encode_row, make_bare_trainer):
    model = tiny_model("top:1")
    phases = [
        [replace(row, weight=float(phase + 1)) for row in _rows(model, encode_row, count)]
        for phase, count in enumerate((9, 5))
    ]
    seen = []

    class Note(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            seen.extend((trainer.current_epoch, weight) for part in batch for weight in part.weight.tolist())

    trainer = make_bare_trainer(4, callbacks=[Note()], reload_dataloaders_every_n_epochs=1)
    _fit(trainer, _module(model, [0]), phases, phases[1], epochs_per_phase=2)
    expected = [(epoch, phase + 1.0) for epoch, phase in enumerate((0, 0, 1, 1)) for _ in phases[phase]]
    assert seen == expected
