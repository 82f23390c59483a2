"""Checkpoints that survive a kill, and fits that continue to the last bit."""

import logging
import os
import resource
import shutil
import signal
import zipfile
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import pytorch_lightning as pl
import torch
from pair_rows import tensor_row

from rlaif.data.datamodule import EncodedRow, TextDataModule
from rlaif.errors import UserError
from rlaif.models.split import ScalarHead
from rlaif.stages.common.training.likelihood import LikelihoodModule
from rlaif.stages.common.training.optim import OptimOptions
from rlaif.stages.common.training.trainer import (
    CHECKPOINT,
    PREVIOUS,
    Advance,
    AtomicCheckpointIO,
    check_training,
    fit,
    make_trainer,
    optim_options,
)
from rlaif.stages.rm.module import PreferenceLossOptions, RewardModule

EPOCHS = 4


# One checkpoint.


def test_a_checkpoint_is_replaced_whole(tmp_path):
    path, plugin = tmp_path / "deep" / "last.ckpt", AtomicCheckpointIO()
    for value in (1, 2):
        plugin.save_checkpoint({"value": value, "weights": torch.full((3,), float(value))}, path)
        read = torch.load(path, weights_only=True)
        assert read["value"] == value
        assert read["weights"].tolist() == [value] * 3
    assert {file.name for file in path.parent.iterdir()} == {CHECKPOINT, PREVIOUS}
    assert torch.load(path.with_name(PREVIOUS), weights_only=True)["value"] == 1


@pytest.mark.parametrize("broken", ["torch.save", "os.fsync", "os.replace"])
def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path, monkeypatch, caplog, broken):
    path, plugin = tmp_path / "last.ckpt", AtomicCheckpointIO()
    plugin.save_checkpoint({"value": 1}, path)

    def fail(*arguments, **more):
        if broken == "torch.save":
            Path(arguments[1]).write_bytes(b"half of a checkp")
        raise OSError("no space left")

    module, name = broken.split(".")
    monkeypatch.setattr({"torch": torch, "os": os}[module], name, fail)
    if broken == "os.replace":
        with pytest.raises(OSError, match="no space"):
            plugin.save_checkpoint({"value": 2}, path)
    else:
        plugin.save_checkpoint({"value": 2}, path)
        assert f"{path} could not be written (no space left): is the disk full?" in caplog.text
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"value": 1}
    assert (len(list(tmp_path.iterdir())) == 1) == (broken != "os.replace"), (
        "no half checkpoint is in the way"
    )
    plugin.save_checkpoint({"value": 3}, path)
    assert torch.load(path, weights_only=True) == {"value": 3}


@pytest.mark.parametrize("error", [KeyboardInterrupt, AttributeError("cannot be pickled")])
def test_what_no_disk_is_to_blame_for_comes_out_of_a_save(tmp_path, monkeypatch, error):
    def fail(*arguments, **more):
        Path(arguments[1]).write_bytes(b"half of a checkp")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises((KeyboardInterrupt, AttributeError)):
        AtomicCheckpointIO().save_checkpoint({"value": 1}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def _save_and_die(path, moment):
    def die(*arguments, **more):
        if moment == "writing":
            Path(arguments[1]).write_bytes(b"half of a checkp")
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "writing":
        torch.save = die
    else:
        os.replace = die
    AtomicCheckpointIO().save_checkpoint({"value": 2}, path)


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_kill_in_the_middle_of_a_save_leaves_the_previous_checkpoint(tmp_path, moment):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"value": 1}, path)
    process = processes.start(_save_and_die, path, moment)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert torch.load(path, weights_only=True) == {"value": 1}
    assert len(list(tmp_path.iterdir())) == 2, "what was written lies beside it"


# A whole fit.


def _context():
    return SimpleNamespace(
        progress=SimpleNamespace(bars=False), model_spec=SimpleNamespace(device="cpu"), run=None
    )


def _trainer(folder, epochs=EPOCHS, callback=None):
    trainer = make_trainer(_context(), folder, max_epochs=epochs, log_every=1, limit_val=True)
    if callback:
        trainer.callbacks.insert(0, callback)
    return trainer


def _rows(model, count, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        ids = torch.randint(3, 250, (4 + i % 5,), generator=generator)
        features = model.trunk(ids[None])[0]
        rows.append(EncodedRow(ids, features[:2], features[2:]))
    return rows


def _pairs(model, count, seed, p_a, weights=((1.0, 0.0), (1.0, 2.0), (1.0, 1.0))):
    rows = _rows(model, 2 * count, seed)
    return [
        tensor_row(a.prompt, a.response, b.response, p_a, weights[i % len(weights)])
        for i, (a, b) in enumerate(zip(rows[:count], rows[count:], strict=True))
    ]


def _job(kind, tiny_model):
    """(module, data) as a stage makes them, always the same.

    `rm` is an ensemble of two over two phases of different length, in micro-batches; `stopping` is one whose
    members stop, the second one first, before the epochs are over.
    """
    model = tiny_model("top:1")
    optim = OptimOptions(3e-3, 0.01, 1e-8, "cosine", 0.1, EPOCHS * 3, gradient_clip=1.0)
    sizes = {"batch_size": 4, "micro_batch_size": 3, "seed": 0}
    if kind == "sft":
        rows = _rows(model, 12, 0), _rows(model, 8, 1)
        return LikelihoodModule(model.trunk.new_top(), optim), TextDataModule.sft_view(*rows, **sizes)
    stopping = kind == "stopping"
    phases = [_pairs(model, 12, 0, 0.8), _pairs(model, 5, 2, 0.4)]
    if stopping:  # the first member learns what is validated and overshoots, the second one its opposite
        phases = [[*_pairs(model, 6, 0, 0.9, [(1.0, 0.0)]), *_pairs(model, 6, 0, 0.1, [(0.0, 1.0)])]]
    data = TextDataModule.preference_view(
        phases, _pairs(model, 6, 0, 0.6, [1.0]), epochs_per_phase=2, **sizes
    )
    members = [
        (model.trunk.new_top(), ScalarHead(32).init_normal(torch.Generator().manual_seed(seed)))
        for seed in (0, 1)
    ]
    loss = PreferenceLossOptions(0.0, 0.0, 1.0, 0.01)
    module = RewardModule(
        members,
        optim,
        loss,
        head_lr_factor=3.0,
        patience=1 if stopping else None,
        choose_from=0 if stopping else 2,
    )
    return module, data


class _Fail(pl.Callback):
    """Raises `error` in the middle of epoch `epoch`."""

    def __init__(self, epoch, error):
        self.epoch, self.error = epoch, error

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == self.epoch and index == 1:
            raise self.error


def _optimizer(trainer):
    state = trainer.optimizers[0].state_dict()
    assert state["state"]
    return [value for moments in state["state"].values() for value in moments.values()] + [
        torch.tensor(group["lr"]) for group in state["param_groups"]
    ]


def _same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _fitted(kind, tiny_model, folder, callback=None):
    module, data = _job(kind, tiny_model)
    trainer = _trainer(folder, callback=callback)
    fit(trainer, module, folder, data)
    return module, trainer


@pytest.mark.parametrize("kind", ["sft", "rm"])
def test_the_stages_bar_moves_with_each_step_and_ends_at_its_total(kind, tiny_model, tmp_path):
    """Also after a resume, which begins where the killed fit was: the time that is left is then guessed rightly."""
    moves: list[int] = []
    module, data = _job(kind, tiny_model)
    fit(_trainer(tmp_path), module, tmp_path, data, progress=Advance(moves.append, 600))
    steps = [move for move in moves if move]
    assert sum(moves) == 600 and all(move > 0 for move in steps) and len(steps) > EPOCHS
    assert max(steps) <= 2 * min(steps) + 1, "no step stands for many"
    again, data = _job(kind, tiny_model)
    late: list[int] = []
    fit(_trainer(tmp_path), again, tmp_path, data, progress=Advance(late.append, 600))
    assert sum(late) == 600


def _break(kind, tiny_model, folder, epoch):
    """A fit that dies in the middle of `epoch`."""
    with pytest.raises(RuntimeError, match="power cut"):
        _fitted(kind, tiny_model, folder, _Fail(epoch, RuntimeError("power cut")))


def _assert_same_end(one, other):
    (module, trainer), (expected, whole) = one, other
    assert _same(list(module.state_dict().values()), list(expected.state_dict().values()))
    assert _same(_optimizer(trainer), _optimizer(whole))
    assert trainer.global_step == whole.global_step > 0
    if isinstance(module, RewardModule):
        assert module.epochs == expected.epochs
        for best, wanted in zip(module.best, expected.best, strict=True):
            assert (best.loss, best.waited) == (wanted.loss, wanted.waited)
            assert _same(list(best.state.values()), list(wanted.state.values()))


@pytest.mark.parametrize(
    ("kind", "broken_in"),
    [
        *(("sft", i) for i in (0, 2)),
        *(("rm", i) for i in range(EPOCHS)),
        *(("stopping", i) for i in (1, 2)),
    ],
)
def test_an_interrupted_fit_ends_bit_identical(tiny_model, tmp_path, kind, broken_in):
    whole = _fitted(kind, tiny_model, tmp_path / "whole")
    _break(kind, tiny_model, tmp_path / "parts", broken_in)
    assert (tmp_path / "parts" / "checkpoints" / CHECKPOINT).exists() == (broken_in > 0)
    resumed = _fitted(kind, tiny_model, tmp_path / "parts")
    _assert_same_end(resumed, whole)
    assert whole[1].global_step == {"sft": 4 * 3, "rm": 2 * 3 + 2 * 2, "stopping": 3 * 3}[kind]
    loss = "sft/val_loss" if kind == "sft" else "rm/val_loss"
    assert resumed[1].callback_metrics[loss] == whole[1].callback_metrics[loss]
    start, _ = _job(kind, tiny_model)
    assert not _same(list(start.state_dict().values()), list(whole[0].state_dict().values()))


def test_members_stop_one_after_another(tiny_model, tmp_path):
    """What the interrupted fits above are compared with: the second member rests while the first goes on."""
    module, _ = _fitted("stopping", tiny_model, tmp_path)
    assert module.epochs == 3 < EPOCHS
    assert [best.waited for best in module.best] == [1, 1]
    steps = [
        {
            int(state["step"])
            for state in torch.load(file, weights_only=True)["optimizer_states"][0]["state"].values()
        }
        for file in (tmp_path / "checkpoints" / PREVIOUS, tmp_path / "checkpoints" / CHECKPOINT)
    ]
    assert steps == [{6}, {6, 9}]


def test_a_forgotten_counter_would_be_seen(tiny_model, tmp_path):
    whole = _fitted("stopping", tiny_model, tmp_path / "whole")
    _break("stopping", tiny_model, tmp_path / "parts", 2)
    for name, forgotten in (("waited", 0), ("loss", float("inf")), ("state", {})):
        folder = shutil.copytree(tmp_path / "parts", tmp_path / name)
        checkpoint = torch.load(folder / "checkpoints" / CHECKPOINT, weights_only=True)
        for best in checkpoint["reward"]["best"]:
            best[name] = forgotten
        torch.save(checkpoint, folder / "checkpoints" / CHECKPOINT)
        resumed = _fitted("stopping", tiny_model, folder)
        with pytest.raises(AssertionError):
            _assert_same_end(resumed, whole)


@pytest.mark.parametrize("kind", ["sft", "rm", "stopping"])
def test_a_fit_killed_after_its_last_epoch_ends_the_same(tiny_model, tmp_path, kind):
    """Nothing is trained again, and what the stage reports is there: the best epoch, or the last losses."""
    whole, whole_trainer = _fitted(kind, tiny_model, tmp_path)
    module, data = _job(kind, tiny_model)
    trainer = _trainer(tmp_path)
    fit(trainer, module, tmp_path, data)
    assert trainer.global_step == whole_trainer.global_step
    assert _same(list(module.state_dict().values()), list(whole.state_dict().values()))
    if kind == "sft":
        assert module.metrics == whole.metrics
        names = ("sft/loss", "sft/val_loss", "sft/lr")
        assert whole.metrics == {name: float(whole_trainer.callback_metrics[name]) for name in names}
    else:
        assert [best.loss for best in module.best] == [best.loss for best in whole.best]
        assert module.epochs == whole.epochs


def test_the_newest_two_checkpoints_are_kept_without_the_trunk(tiny_model, tmp_path):
    _fitted("rm", tiny_model, tmp_path)
    folder = tmp_path / "checkpoints"
    assert {file.name for file in folder.iterdir()} == {CHECKPOINT, PREVIOUS}
    for name, epoch in ((CHECKPOINT, EPOCHS - 1), (PREVIOUS, EPOCHS - 2)):
        checkpoint = torch.load(folder / name, weights_only=True)
        assert checkpoint["epoch"] == epoch
        assert all(key.split(".")[0] == "_members" for key in checkpoint["state_dict"])
        assert not any("trunk" in key for key in checkpoint["state_dict"])


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
    """One byte in the middle of the largest tensor, where no reader would stumble."""
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[entry.header_offset + 200 + entry.file_size // 2] ^= 1
    path.write_bytes(content)


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("kind", "damage"), [("sft", _truncate), ("rm", _truncate), ("rm", _flip), ("rm", _empty)]
)
def test_a_damaged_checkpoint_costs_one_epoch_and_no_bit(tiny_model, tmp_path, caplog, kind, damage):
    whole = _fitted(kind, tiny_model, tmp_path / "whole")
    _break(kind, tiny_model, tmp_path / "parts", 3)
    damage(tmp_path / "parts" / "checkpoints" / CHECKPOINT)
    started = []

    class Start(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            started.append(trainer.current_epoch)

    with caplog.at_level(logging.INFO, logger="rlaif"):
        resumed = _fitted(kind, tiny_model, tmp_path / "parts", Start())
    assert started == [2, 3], "the epoch whose checkpoint was lost is run again"
    damaged = [record.message for record in caplog.records if "damaged" in record.message]
    assert len(damaged) == 1 and CHECKPOINT in damaged[0]
    _assert_same_end(resumed, whole)


def test_two_damaged_checkpoints_cost_all_epochs_and_no_bit(tiny_model, tmp_path):
    whole = _fitted("rm", tiny_model, tmp_path / "whole")
    _break("rm", tiny_model, tmp_path / "parts", 3)
    for name in (CHECKPOINT, PREVIOUS):
        _truncate(tmp_path / "parts" / "checkpoints" / name)
    _assert_same_end(_fitted("rm", tiny_model, tmp_path / "parts"), whole)


def test_a_kill_between_two_renames_costs_no_epoch(tiny_model, tmp_path):
    """The new checkpoint is not in its place yet, and the one before has left it."""
    whole = _fitted("rm", tiny_model, tmp_path / "whole")
    _break("rm", tiny_model, tmp_path / "parts", 2)
    folder = tmp_path / "parts" / "checkpoints"
    os.replace(folder / CHECKPOINT, folder / PREVIOUS)
    _assert_same_end(_fitted("rm", tiny_model, tmp_path / "parts"), whole)


class _FullDisk(_Fail):
    """No file may grow beyond `room` bytes while epoch 2 ends; the fit dies in the middle of epoch 3."""

    def __init__(self, room):
        super().__init__(3, RuntimeError("power cut"))
        self.room, self.limits = room, resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.room, self.limits[1]))

    def on_train_epoch_start(self, trainer, module):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)


def test_a_disk_that_is_full_costs_no_bit_and_is_told(tmp_path, tiny_model, caplog):
    """Epoch 2 is trained and not kept: the same command goes back to what epoch 1 left."""
    whole = _fitted("sft", tiny_model, tmp_path / "whole")
    folder = tmp_path / "parts" / "checkpoints"
    with pytest.raises(RuntimeError, match="power cut"):
        _fitted("sft", tiny_model, tmp_path / "parts", _FullDisk(20_000))
    assert f"{folder / CHECKPOINT} could not be written" in caplog.text
    assert {file.name for file in folder.iterdir()} == {CHECKPOINT, PREVIOUS}
    assert torch.load(folder / CHECKPOINT, weights_only=True)["epoch"] == 1
    _assert_same_end(_fitted("sft", tiny_model, tmp_path / "parts"), whole)


def test_ctrl_c_comes_out_as_itself_and_can_be_pressed_again(tiny_model, tmp_path):
    module, data = _job("sft", tiny_model)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(_trainer(tmp_path, callback=_Fail(1, KeyboardInterrupt())), module, tmp_path, data)
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "checkpoints" / CHECKPOINT).exists()


def test_a_module_that_exits_is_not_taken_for_ctrl_c(tiny_model, tmp_path):
    module, data = _job("sft", tiny_model)
    with pytest.raises(SystemExit) as stop:
        fit(_trainer(tmp_path, callback=_Fail(0, SystemExit(7))), module, tmp_path, data)
    assert stop.value.code == 7


def test_options_come_from_a_node():
    node = SimpleNamespace(
        lr=0.1,
        weight_decay=0.2,
        eps=1e-6,
        schedule="linear",
        warmup_fraction=0.3,
        gradient_clip=0.5,
        momentum=9,
    )
    assert optim_options(node, 5) == OptimOptions(0.1, 0.2, 1e-6, "linear", 0.3, 5, 0.5)
    assert optim_options(node, 0).total_steps == 1


def test_numbers_that_cannot_be_trained_with_are_refused():
    fine = {"num_epochs": 1, "batch_size": 8, "micro_batch_size": None}
    for good in ({}, {"micro_batch_size": 8}, {"micro_batch_size": 1}):
        check_training("rm", SimpleNamespace(**{**fine, **good}))
    with pytest.raises(UserError, match=r"sft\.micro_batch_size=9 .*: write 1 to 8, or null"):
        check_training("sft", SimpleNamespace(**{**fine, "micro_batch_size": 9}))
