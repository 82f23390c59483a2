"""Checkpoints that survive a kill, and fits that continue to the last bit."""

import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from rlaif.data.datamodule import EncodedRow, PreferenceRow, TextDataModule
from rlaif.models.split import ScalarHead
from rlaif.modules import RewardModule, SFTModule
from rlaif.modules.optim import OptimOptions
from rlaif.modules.reward import PreferenceLossOptions
from rlaif.stages.training import CHECKPOINT, AtomicCheckpointIO, fit, make_trainer, optim_options

EPOCHS = 4


# One checkpoint.


def test_a_checkpoint_is_replaced_whole(tmp_path):
    path, plugin = tmp_path / "deep" / "last.ckpt", AtomicCheckpointIO()
    for value in (1, 2):
        plugin.save_checkpoint({"value": value, "weights": torch.full((3,), float(value))}, path)
        read = torch.load(path, weights_only=True)
        assert read["value"] == value
        assert read["weights"].tolist() == [value] * 3
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("broken", ["torch.save", "os.fsync", "os.replace"])
def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path, monkeypatch, broken):
    path, plugin = tmp_path / "last.ckpt", AtomicCheckpointIO()
    plugin.save_checkpoint({"value": 1}, path)

    def fail(*arguments, **more):
        if broken == "torch.save":
            Path(arguments[1]).write_bytes(b"half of a checkp")
        raise OSError("no space left")

    module, name = broken.split(".")
    monkeypatch.setattr({"torch": torch, "os": os}[module], name, fail)
    with pytest.raises(OSError, match="no space"):
        plugin.save_checkpoint({"value": 2}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"value": 1}
    plugin.save_checkpoint({"value": 3}, path)
    assert torch.load(path, weights_only=True) == {"value": 3}


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
    process = multiprocessing.get_context("fork").Process(target=_save_and_die, args=(path, moment))
    process.start()
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
    trainer = make_trainer(
        _context(), folder, max_epochs=epochs, gradient_clip=1.0, log_every=1, limit_val=True
    )
    if callback:
        trainer.callbacks.insert(0, callback)
    return trainer


def _rows(model, count, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        ids = torch.randint(3, 250, (4 + i % 5,), generator=generator)
        rows.append(EncodedRow(ids, model.trunk(ids[None])[0], 2))
    return rows


def _job(kind, tiny_model):
    """(module, data) as its stage makes them, always the same."""
    model = tiny_model("top:1")
    optim = OptimOptions(3e-3, 0.01, 1e-8, "cosine", 0.1, EPOCHS * 3)
    rows = _rows(model, 12, 0), _rows(model, 8, 1)
    if kind == "sft":
        return SFTModule(model.trunk.new_top(), optim), TextDataModule.sft_view(*rows, batch_size=4, seed=0)
    head = ScalarHead(32).init_normal(torch.Generator().manual_seed(0))
    loss = PreferenceLossOptions(0.0, 0.0, 1.0, 0.01)
    pairs = [
        [
            PreferenceRow(a, EncodedRow(torch.cat((a.ids[:2], b.ids[2:])), b.features, 2), 0.8)
            for a, b in zip(part, part[::-1], strict=True)
        ]
        for part in rows
    ]
    module = RewardModule(model.trunk.new_top(), head, optim, loss, head_lr_factor=3.0)
    return module, TextDataModule.preference_view(*pairs, batch_size=4, seed=0)


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


@pytest.mark.parametrize("kind", ["sft", "rm"])
@pytest.mark.parametrize("broken_in", [0, 2])
def test_an_interrupted_fit_ends_bit_identical(tiny_model, tmp_path, kind, broken_in):
    whole, data = _job(kind, tiny_model)
    whole_trainer = _trainer(tmp_path / "whole")
    fit(whole_trainer, whole, tmp_path / "whole", data)
    broken, data = _job(kind, tiny_model)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(
            _trainer(tmp_path / "parts", callback=_Fail(broken_in, RuntimeError("power cut"))),
            broken,
            tmp_path / "parts",
            data,
        )
    assert (tmp_path / "parts" / "checkpoints" / CHECKPOINT).exists() == (broken_in > 0)
    resumed, data = _job(kind, tiny_model)
    trainer = _trainer(tmp_path / "parts")
    fit(trainer, resumed, tmp_path / "parts", data)
    assert _same(list(resumed.state_dict().values()), list(whole.state_dict().values()))
    assert _same(_optimizer(trainer), _optimizer(whole_trainer))
    assert trainer.global_step == whole_trainer.global_step == EPOCHS * 3
    loss = f"{kind}/val_loss"
    assert trainer.callback_metrics[loss] == whole_trainer.callback_metrics[loss]
    if kind == "rm":
        assert resumed.best_loss == whole.best_loss
    assert not _same(list(broken.state_dict().values()), list(whole.state_dict().values()))


def test_a_reward_model_killed_after_its_last_epoch_still_keeps_the_best(tiny_model, tmp_path):
    whole, data = _job("rm", tiny_model)
    fit(_trainer(tmp_path), whole, tmp_path, data)
    again, data = _job("rm", tiny_model)
    fit(_trainer(tmp_path), again, tmp_path, data)
    assert again.best_loss == whole.best_loss
    assert _same(list(again.state_dict().values()), list(whole.state_dict().values()))


def test_an_sft_run_killed_after_its_last_epoch_still_has_its_losses(tiny_model, tmp_path):
    whole, data = _job("sft", tiny_model)
    trainer = _trainer(tmp_path)
    fit(trainer, whole, tmp_path, data)
    assert whole.metrics == {
        name: float(trainer.callback_metrics[name]) for name in ("sft/loss", "sft/val_loss")
    }
    again, data = _job("sft", tiny_model)
    fit(_trainer(tmp_path), again, tmp_path, data)
    assert again.metrics == whole.metrics
    assert _same(list(again.state_dict().values()), list(whole.state_dict().values()))


def test_one_checkpoint_is_kept(tiny_model, tmp_path):
    module, data = _job("sft", tiny_model)
    fit(_trainer(tmp_path), module, tmp_path, data)
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == [CHECKPOINT]
    checkpoint = torch.load(tmp_path / "checkpoints" / CHECKPOINT, weights_only=True)
    assert checkpoint["epoch"] == EPOCHS - 1
    assert not any("trunk" in name for name in checkpoint["state_dict"])


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
        lr=0.1, weight_decay=0.2, eps=1e-6, schedule="linear", warmup_fraction=0.3, momentum=9
    )
    assert optim_options(node, 5) == OptimOptions(0.1, 0.2, 1e-6, "linear", 0.3, 5)
    assert optim_options(node, 0).total_steps == 1
