"""`trainer.devices=N`: N processes train together for the length of a fit.

The command's own process leads. It alone locks, tracks, writes checkpoints and publishes. When all is ready for a
fit, it starts the others; each builds the same module from the leader's configuration and the finished parents
(`rlaif.app.follow`) and ends with the fit. So pipelines, comparisons and multiruns work as they do with one process,
and no other process ever starts them again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import yaml

from rlaif.errors import UserError
from rlaif.io import write_text
from rlaif.options.read import plain
from rlaif.stages.common.context import Context

HOST = "127.0.0.1"
TIMEOUT = timedelta(days=2)  # a labeler's rewards may take long; a process that dies is noticed at once
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Place:
    """A follower's rank, the number of processes, and the port that the leader listens on."""

    rank: int
    size: int
    port: int


_place: Place | None = None


def follow(place: Place) -> None:
    """Make this process a follower: its next fit runs in step with the leader's, and is its last."""
    global _place
    _place = place


def follows() -> bool:
    """Whether this process was started to train along with another."""
    return _place is not None


def check_devices(ctx: Context, key: str, rows: int) -> None:
    """Raises UserError for an impossible number of processes; they share the `rows` (config key `key`) of a step."""
    options = ctx.options.trainer
    if options.devices > rows:
        raise UserError(
            f"trainer.devices={options.devices} would leave processes without a row of {key}={rows}: write "
            f"trainer.devices={rows} or fewer, or a larger {key}"
        )
    if ctx.model_spec.device == "mps" and options.devices > 1:
        raise UserError(
            f"trainer.devices={options.devices}, but an Apple GPU is one device, which processes do not share: write "
            "trainer.devices=1, or trainer.accelerator=cpu"
        )
    if ctx.model_spec.device == "cuda" and options.devices > torch.cuda.device_count():
        raise UserError(
            f"trainer.devices={options.devices}, but visible GPUs: {torch.cuda.device_count()}; write "
            "trainer.devices=1, or trainer.accelerator=cpu"
        )


@contextmanager
def training_together(ctx: Context, kind: str, folder: Path) -> Iterator[None]:
    """Inside, the processes that `trainer.devices` asks for fit the module of stage `kind` in step.

    A follower exits here. Raises RuntimeError if one dies; the others end with it.
    """
    size = ctx.options.trainer.devices
    if _place is not None:
        store = dist.TCPStore(HOST, _place.port, _place.size, is_master=False, timeout=TIMEOUT)
        store.add("ready", 1)
        with _group(store, _place.rank, _place.size):
            yield
        raise SystemExit(0)
    if size == 1:
        yield
        return
    store = dist.TCPStore(HOST, 0, size, is_master=True, timeout=TIMEOUT, wait_for_workers=False)
    with _followers(ctx, kind, folder, store), _group(store, 0, size):
        yield


@contextmanager
def _group(store: dist.Store, rank: int, size: int) -> Iterator[None]:
    """The process group that `rlaif.ops.ranks` uses; its processes share the CPU's threads."""
    threads = torch.get_num_threads()
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    torch.set_num_threads(max(1, threads // size))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        dist.destroy_process_group()


@contextmanager
def _followers(ctx: Context, kind: str, folder: Path, store: dist.TCPStore) -> Iterator[None]:
    """The other processes, from when they are ready until they have ended."""
    work, size = folder / "work", ctx.options.trainer.devices
    work.mkdir(parents=True, exist_ok=True)
    config, started = work / "followers.yaml", dict[Path, subprocess.Popen[bytes]]()
    write_text(config, yaml.safe_dump(plain(ctx.options)))
    try:
        for rank in range(1, size):
            log = work / f"rank{rank}.log"
            words = [str(config), kind, str(folder), str(rank), str(size), str(store.port)]
            started[log] = _start(ctx, rank, words, log)
        while store.add("ready", 0) < size - 1:
            _check_alive(started)
            time.sleep(POLL_SECONDS)
        try:
            yield
        except RuntimeError:
            time.sleep(10 * POLL_SECONDS)  # peers notice a dying process before it has ended
            _check_alive(started)
            raise
        for process in started.values():
            process.wait()
        _check_alive(started)
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def _check_alive(started: Mapping[Path, subprocess.Popen[bytes]]) -> None:
    for log, process in started.items():
        if process.poll():
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
            raise RuntimeError(
                f"a process of trainer.devices has failed ({said[-1]}): its output is in {log}"
            )


def _start(ctx: Context, rank: int, words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    # Not paths.code, which in a wheel is the package itself: its modules `io` and `data` would hide others.
    paths = [str(Path(__file__).resolve().parents[4]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if ctx.model_spec.device == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = names[rank]
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "rlaif.app.follow", *words]
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
