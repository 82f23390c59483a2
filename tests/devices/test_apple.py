"""Which device is chosen where there are Apple's GPUs, and what it is not asked to do. No such GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from jobs import CODE, job_context

from rlaif.app.doctor import _device
from rlaif.errors import UserError
from rlaif.inference.decoding.sampler import cache_bytes
from rlaif.io.cores import cores
from rlaif.models.attention import DenseCausal, causal_attention, is_plain
from rlaif.models.kernels import devices
from rlaif.models.kernels.devices import resolve_device, resolve_dtype
from rlaif.models.pairs import LONG_PAIR, PairCausal, pair_attention
from rlaif.stages.common.training.ranks import check_devices

APPLE = torch.device("mps")


@pytest.fixture
def machine(monkeypatch):
    """`machine("cuda", "mps")`: what torch says that there is."""

    def make(*gpus: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in gpus)

    return make


@pytest.mark.parametrize(
    ("gpus", "chosen"),
    [
        ((), {"auto": "cpu", "cpu": "cpu"}),
        (("cuda",), {"auto": "cuda", "gpu": "cuda", "cpu": "cpu"}),
        (("mps",), {"auto": "mps", "gpu": "mps", "mps": "mps", "cpu": "cpu"}),
        (("cuda", "mps"), {"auto": "cuda", "gpu": "cuda", "mps": "mps", "cpu": "cpu"}),
    ],
)
def test_the_device_of_each_accelerator(machine, gpus, chosen) -> None:
    machine(*gpus)
    for accelerator, device in chosen.items():
        assert resolve_device(accelerator) == device
    for accelerator in {"gpu", "mps"} - set(chosen):
        with pytest.raises(UserError, match=rf"trainer\.accelerator={accelerator}, .*Apple.*accelerator=cpu"):
            resolve_device(accelerator)


def test_the_option_trainer_mps(machine) -> None:
    machine("mps")
    assert job_context(["profile=smoke", "trainer=mps"]).model_spec.device == "mps"


def test_bfloat16_where_apple_has_it(monkeypatch) -> None:
    devices._apple_multiplies_bf16.cache_clear()
    if not torch.backends.mps.is_available():
        assert not devices._apple_multiplies_bf16(), "where there is no such GPU, trying finds none"
    monkeypatch.setattr(devices, "_apple_multiplies_bf16", lambda: True)
    assert [resolve_dtype(name, "mps") for name in ("auto", "bf16", "fp32")] == [
        "bfloat16",
        "bfloat16",
        "float32",
    ]
    monkeypatch.setattr(devices, "_apple_multiplies_bf16", lambda: False)
    assert [resolve_dtype(name, "mps") for name in ("auto", "fp32")] == ["float32", "float32"]
    with pytest.raises(UserError, match="backend.dtype=bf16.*macOS 14; write float32"):
        resolve_dtype("bf16", "mps", "backend.dtype")


def test_several_processes_are_refused(machine) -> None:
    machine("mps")
    ctx = job_context(["profile=smoke", "trainer=mps", "trainer.devices=2"])
    with pytest.raises(
        UserError, match=r"trainer\.devices=2, but an Apple GPU is one device.*trainer\.devices=1"
    ):
        check_devices(ctx, "sft.batch_size", 8)
    check_devices(job_context(["profile=smoke", "trainer=mps"]), "sft.batch_size", 8)


def test_models_use_products_that_round_alike_with_and_without_gradients() -> None:
    short, long = ((0, 2, 4, 7),), ((0, 2, 4, LONG_PAIR + 1),)
    assert isinstance(causal_attention(APPLE), DenseCausal)
    assert isinstance(pair_attention(short, APPLE), PairCausal) and isinstance(
        pair_attention(long, APPLE), PairCausal
    )
    assert is_plain(APPLE) and not is_plain(torch.device("cuda"))


def test_its_memory_bounds_the_rows_decoded_at_once(monkeypatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 16 * 2**30)
    assert cache_bytes(APPLE) == 2 * 2**30


def test_the_doctor_names_it(machine, monkeypatch) -> None:
    ctx = job_context(["profile=smoke", "trainer=cpu"])
    machine()
    assert _device(ctx).endswith("GPUs: none")
    machine("mps")
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M9")
    assert _device(ctx).startswith("CPU; ") and _device(ctx).endswith("GPUs: Apple M9 (trainer=mps)")


def test_cores_on_macos(monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == os.cpu_count()


def test_the_command_lets_the_processor_run_what_it_lacks_before_torch_is_there() -> None:
    code = """
import os, sys
from rlaif.app.command.main import main
assert "torch" not in sys.modules
sys.argv = ["rlaif", "--version"]
try:
    main()
except SystemExit:
    pass
print(os.environ["PYTORCH_ENABLE_MPS_FALLBACK"], "torch" in sys.modules)
"""
    own = {key: value for key, value in os.environ.items() if key != "PYTORCH_ENABLE_MPS_FALLBACK"}
    for env, expected in ((own, "1 False"), (own | {"PYTORCH_ENABLE_MPS_FALLBACK": "0"}, "0 False")):
        done = subprocess.run([sys.executable, "-c", code], cwd=CODE, env=env, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == expected, done.stderr
