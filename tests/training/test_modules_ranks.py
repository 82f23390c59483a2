"""Two processes that train together end as one process with the whole batch: weights, losses and statistics.

The tolerance is that of sums in another order: 1e-5 on fp32 weights after several steps of AdamW. Batches of
one row more than the processes share are among them.
"""

from __future__ import annotations

from dataclasses import replace

import processes
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from online_pairs_cases import OPTIONS as PAIRS
from online_pairs_cases import make_online
from pair_rows import tensor_row
from ppo_cases import ALGORITHMS, OPTIONS, make_module, untimed
from safetensors.torch import load_file, save_file

from rlaif.data.datamodule import EncodedRow, TextDataModule
from rlaif.io import read_json, write_json
from rlaif.models.load import ModelSpec, load_model
from rlaif.models.split import ScalarHead
from rlaif.ops import by_first, joined, own_share, rank, ranks, total
from rlaif.stages.common.training import likelihood as sft_module
from rlaif.stages.common.training import optim as optim_module
from rlaif.stages.common.training.likelihood import LikelihoodModule
from rlaif.stages.common.training.optim import OptimOptions, sum_gradients
from rlaif.stages.common.training.trainer import quiet_lightning
from rlaif.stages.rl.online import module as ppo_module
from rlaif.stages.rm.module import PreferenceLossOptions, RewardModule

SIZES = {"batch_size": 4, "micro_batch_size": 1, "seed": 0}
OPTIM = OptimOptions(1e-3, 0.01, 1e-5, "linear", 0.0, 12, gradient_clip=0.5)
EPOCHS = 3
TOLERANCE = 1e-5


def _rows(model, count, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 250, (4 + i % 5,), generator=generator) for i in range(count)]
    features = [model.trunk(own[None])[0] for own in ids]
    return [EncodedRow(i, f[:2], f[2:]) for i, f in zip(ids, features, strict=True)]


def _sft(model):
    data = TextDataModule.sft_view(_rows(model, 13, 0), _rows(model, 5, 1), **SIZES)
    return LikelihoodModule(model.trunk.new_top(), OPTIM), data


def _rm(model):
    """An ensemble of two on resamples, of which one member has no row of some steps, and the second one stops."""
    rows = _rows(model, 26, 0)
    weights = [(1.0, 0.0), (1.0, 2.0), (0.0, 1.0)]
    pairs = [
        tensor_row(a.prompt, a.response, b.response, (0.9, 0.2)[i % 2], weights[i % 3])
        for i, (a, b) in enumerate(zip(rows[:13], rows[13:], strict=True))
    ]
    data = TextDataModule.preference_view(
        [pairs], [replace(pair, weight=1.0) for pair in pairs[:5]], epochs_per_phase=EPOCHS, **SIZES
    )
    members = [
        (model.trunk.new_top(), ScalarHead(32).init_normal(torch.Generator().manual_seed(i))) for i in (0, 1)
    ]
    loss = PreferenceLossOptions(0.0, 0.0, 1.0, 0.01)
    return RewardModule(members, OPTIM, loss, head_lr_factor=3.0, patience=None, choose_from=0), data


def _ppo(model, name):
    options, critic = ALGORITHMS.get(name, (OPTIONS, "shared"))
    options = replace(options, minibatch_rollouts=5 if name == "uneven" else 8)
    if name == "adaptive":
        options = replace(options, kl_controller="adaptive", kl_target=0.01, whiten_rewards=True)
    rollouts = 40 if name == "uneven" else 16
    return make_module(
        model, iterations=EPOCHS, rollouts=rollouts, critic=critic, options=options, lr=3e-4
    ), None


def _online_dpo(model):
    """Updates of three and two pairs in micro-batches of one: in a small one a process has a single pair."""
    options = replace(PAIRS, pairs=5, passes=2, batch_size=3, micro_batch_size=1)
    return make_online(model, iterations=EPOCHS, options=options, lr=3e-4, eps=1e-5), None


def _job(kind, folder):
    name, _, trainable = kind.partition("@")
    spec = ModelSpec("tiny", "tiny", None, trainable, "float32", "cpu", False, lora_alpha=4.0)
    model = load_model(spec, folder)
    own = {"sft": _sft, "rm": _rm, "online_dpo": _online_dpo}
    return own[name](model) if name in own else _ppo(model, name)


def _fit(kind, folder):
    """Fit the job and write down what it came to."""
    torch.manual_seed(0)
    quiet_lightning()
    folder.mkdir(parents=True, exist_ok=True)
    module, data = _job(kind, folder)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
    )
    trainer.fit(module, datamodule=data)
    save_file({k: v.clone() for k, v in module.state_dict().items()}, folder / f"{rank()}.safetensors")
    told = {k: float(v) for k, v in trainer.callback_metrics.items()}
    history = untimed(module.history) if hasattr(module, "history") else []
    write_json(folder / f"{rank()}.json", {"told": told, "history": history, "steps": trainer.global_step})


KINDS = [
    "sft@top:1",
    "sft@lora:2",
    "rm@top:2",
    "ppo@top:1",
    "adaptive@full",
    "uneven@lora:2",
    "grpo@top:1",
    "drgrpo@top:1",
    "raft@top:1",
    "online_dpo@top:1",
    "reinforce_lee2023@top:1",
]
APART = ["sft@top:1", "ppo@top:1"]


def _mean_gradients(optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = total(own) / ranks()


def _fit_apart(kind, folder):
    """As `_fit`, but what is whitened and divided by is of each process's own tokens."""
    optim_module.sum_gradients = _mean_gradients if kind.startswith("sft") else sum_gradients
    for module in (sft_module, ppo_module):
        module.total = lambda value: value
    _fit(kind, folder)


def _all_that_two_do(place, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=place, world_size=2)
    _use_all(folder)
    for kind in KINDS:
        _fit(kind, folder / kind)
    for kind in APART:
        _fit_apart(kind, folder / "apart" / kind)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes of one group have written down what they came to."""
    folder = tmp_path_factory.mktemp("two")
    started = [processes.start(_all_that_two_do, place, folder) for place in (0, 1)]
    for process in started:
        process.join(300)
    assert [process.exitcode for process in started] == [0, 0]
    return folder


def _gap(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def _read(folder, place=0):
    return load_file(folder / f"{place}.safetensors"), read_json(folder / f"{place}.json")


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_end_as_one_does(tmp_path, two, kind):
    start = {name: value.clone() for name, value in _job(kind, tmp_path)[0].state_dict().items()}
    _fit(kind, tmp_path)
    (alone, told), (first, also_told), (second, _) = _read(tmp_path), _read(two / kind), _read(two / kind, 1)
    assert _gap(first, second) == 0, "the processes stay in step, to the last bit"
    assert _gap(alone, first) < TOLERANCE < 3e-4 < _gap(alone, start)
    assert told["steps"] == also_told["steps"] >= 2 * EPOCHS
    assert told["told"] == pytest.approx(also_told["told"], abs=1e-4)
    for row, other in zip(told["history"], also_told["history"], strict=True):
        for one in (row, other):  # a minibatch's explained variance is no mean of its parts'
            one.pop("rl/explained_variance", None)
        assert row == pytest.approx(other, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", APART)
def test_statistics_of_each_process_alone_make_another_update(tmp_path, two, kind):
    """Mutation of the above: a mean of means over tokens, advantages whitened apart."""
    _fit(kind, tmp_path)
    assert _gap(_read(tmp_path)[0], _read(two / "apart" / kind)[0]) > 10 * TOLERANCE


# The few functions underneath.


def test_one_process_is_left_alone():
    rows, value = [1, 2, 3], torch.ones(2)
    assert (rank(), ranks()) == (0, 1)
    assert own_share(rows) == joined(rows) == rows and total(value) is value
    assert by_first(lambda: 7) == 7


def _use_all(folder):
    for count in range(6):
        rows = list(range(count))
        own = own_share(rows)
        assert len(own) == (count // 2, -(-count // 2))[rank()]
        assert joined(own) == rows
        assert own_share(torch.arange(count)).tolist() == own
    value = torch.tensor([1.0, 10.0]) * (1 + rank())
    assert total(value).tolist() == [3.0, 30.0] and value.tolist() == [1.0 + rank(), 10.0 + 10 * rank()]
    assert by_first(lambda: f"from {rank()}") == "from 0"
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    optimizer = torch.optim.SGD(weights, lr=1.0)
    weights[0].grad = torch.tensor([1.0, 2.0]) + rank()
    if rank() == 1:
        weights[1].grad = torch.tensor([5.0, 6.0])
    sum_gradients(optimizer)
    assert weights[0].grad.tolist() == [3.0, 5.0] and weights[1].grad.tolist() == [5.0, 6.0]
    assert weights[2].grad is None, "what has no gradient anywhere is left alone by the optimiser"
    (folder / f"{rank()}.done").touch()


def test_two_processes_share_and_add_up(two):
    assert len(list(two.glob("*.done"))) == 2
