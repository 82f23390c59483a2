"""How fast this machine runs the base model: measured for a few seconds with real layers, in the dtype that is used."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from rlaif.data.datamodule import EncodedRow, TokenBatch, collate_sequences
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import sample
from rlaif.inference.packing import SharedPrefix
from rlaif.inference.scorer import sequence_logprobs
from rlaif.io import digest, read_json, write_json
from rlaif.models.load import LanguageModel
from rlaif.models.split import ScalarHead
from rlaif.ops import sft_loss
from rlaif.stages.common.context import Context
from rlaif.stages.common.scoring import sequence_scores
from rlaif.stages.common.stage import Rates
from rlaif.stages.common.training.logprobs import response_logprobs

logger = logging.getLogger(__name__)

_VERSION = 4
_PROMPT, _RESPONSE = 96, 16  # tokens of a typical row
_ROWS = (4, 64)  # decoded at once: a step takes a time of its own, and one for each row
_SHORT = 4  # tokens of a prompt to decode from
_STEPS = (2, 8)  # two lengths, whose difference is decoding alone
_ALONE = 0.6  # share of the processors' time that this process gets if no other wants it
_ENOUGH = 1.0  # seconds: a measurement that took this long is not repeated with more rows


def machine_rates(ctx: Context) -> Rates:
    """Tokens per second of the base model of `ctx`, measured once per machine and model and then remembered.

    They are kept in the root's cache, so that all commands there choose the same sizes; those of a machine that had
    other work meanwhile are not.
    """
    spec = ctx.model_spec
    key = [_VERSION, _machine(), torch.__version__, torch.get_num_threads(), *map(str, asdict(spec).values())]
    file = ctx.cache_dir / "machine" / f"{digest(key, 16)}.json"
    if not file.exists():
        model = ctx.model()
        wall, own = time.perf_counter(), time.process_time()
        with ctx.progress.note("measuring this machine"):
            rates = measure(model)
        share = (time.process_time() - own) / (time.perf_counter() - wall) / torch.get_num_threads()
        if model.device == "cpu" and share < _ALONE:
            logger.warning("the machine is busy with other work, so that estimates of time are too long")
            return rates
        write_json(file, asdict(rates))
    return Rates(**read_json(file))


def _machine() -> list[str | int | None]:
    names = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith(("model name", "flags"))]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return [platform.node(), platform.machine(), device, os.cpu_count(), *sorted(set(names))]


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def measure(model: LanguageModel) -> Rates:
    """Rates of all kinds of work on rows of typical length, after a first run of each that is not counted."""
    top, head = model.trunk.new_top(), ScalarHead(model.trunk.config.hidden_size).to(model.device)
    head.init_normal(torch.Generator().manual_seed(0))
    frozen = top.frozen_copy()
    tokens = torch.Generator().manual_seed(0)

    def texts(rows: int, length: int) -> list[tuple[int, ...]]:
        drawn = torch.randint(0, model.trunk.config.vocab_size, (rows, length), generator=tokens)
        return [tuple(row) for row in drawn.tolist()]

    def forward(rows: int) -> None:
        # As labelers and reward models read a pair: its prompt once, and both responses after it.
        pairs = [(text[: -2 * _RESPONSE], text[-2 * _RESPONSE :]) for text in texts(rows, _PROMPT)]
        groups = [SharedPrefix(p, (both[:_RESPONSE], both[_RESPONSE:])) for p, both in pairs]
        sequence_logprobs(frozen, groups)

    def decode(steps: int) -> Callable[[int], None]:
        def run(rows: int) -> None:
            decoding = Decoding(steps, 1.0, 0)
            sample(frozen, texts(rows, _SHORT), range(rows), decoding, eos_ids=(), max_rows=rows)

        return run

    def score(rows: int) -> None:
        with torch.no_grad():
            response_logprobs(frozen, _batch(model, texts(rows, _PROMPT + _RESPONSE)))

    def train(rows: int) -> None:
        batch = _batch(model, texts(rows, _PROMPT + _RESPONSE))
        loss, _ = sft_loss(response_logprobs(top, batch), batch.response_mask)
        loss.backward()
        top.zero_grad(set_to_none=True)

    def rank(rows: int) -> None:
        batch = _batch(model, texts(rows, _PROMPT + _RESPONSE))
        sequence_scores(top, head, batch.features, batch.last).sum().backward()
        top.zero_grad(set_to_none=True)

    one, many = (_decoding_step(decode, rows, model.device) for rows in _ROWS)
    token = max(many - one, 1e-9) / (_ROWS[1] - _ROWS[0])
    return Rates(
        forward=_PROMPT / _seconds(forward, model.device, (4, 8)),
        decoded=1 / token,
        steps=1 / max(one - _ROWS[0] * token, 1e-9),
        trained=(_PROMPT + _RESPONSE) / _seconds(train, model.device),
        scored=(_PROMPT + _RESPONSE) / _seconds(score, model.device),
        ranked=(_PROMPT + _RESPONSE) / _seconds(rank, model.device),
    )


def _decoding_step(decode: Callable[[int], Callable[[int], None]], rows: int, device: str) -> float:
    """Seconds of one step of decoding `rows` rows."""
    short, long = (rows * _seconds(decode(steps), device, (rows,)) for steps in _STEPS)
    return max(long - short, 1e-9) / (_STEPS[1] - _STEPS[0])


def _batch(model: LanguageModel, texts: list[tuple[int, ...]]) -> TokenBatch:
    """Rows with random features, or ids if the model is trained as a whole."""
    rows: list[EncodedRow] = []
    for text in texts:
        ids = torch.tensor(text)
        shape = (len(text), model.trunk.config.hidden_size)
        # Drawn by a generator of its own: how much is measured depends on the clock, and no stage's draws may.
        own = torch.Generator().manual_seed(len(rows))
        features = ids if model.trunk.full else torch.randn(shape, generator=own).to(model.trunk.dtype)
        rows.append(EncodedRow(ids, features[:_PROMPT], features[_PROMPT:]))
    return collate_sequences(rows).to(model.device)


def _seconds(run: Callable[[int], None], device: str, sizes: tuple[int, ...] = (4, 16)) -> float:
    """Seconds per row at the largest size that was tried: a larger one only while the smaller one is quick."""
    run(1)  # kernels are chosen and memory is taken on first use
    for rows in sizes:
        started = time.perf_counter()
        run(rows)
        if device in ("cuda", "mps"):
            getattr(torch, device).synchronize()
        seconds = time.perf_counter() - started
        if seconds > _ENOUGH:
            break
    return seconds / rows
