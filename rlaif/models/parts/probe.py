"""What holds for a loaded model, found by running a few tokens: no list of architectures, and no flag of theirs.

The model's own eager attention on whole rows is the reference. Windows are made small for the check, since rows as
long as a real one would cost too much.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlaif.models.attention import CAUSAL, USUAL, Scoring, masked_attention, near
from rlaif.models.pairs import PairCausal
from rlaif.models.parts.casting import Casting
from rlaif.models.parts.decoder import Decoder, View, generate, run_stack
from rlaif.models.parts.interface import NAME, set_implementation
from rlaif.models.parts.rows import RowsKind
from rlaif.models.parts.shapes import CacheShape

VERSION = 2
# A row of prompt | a | b; windows of 6 hide part of each text.
PROMPT, FIRST, SECOND = 10, 6, 8
LENGTH = PROMPT + FIRST + SECOND
WINDOW = 6
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
# Largest difference of logits in units of their spread: rounding is a hundred times less, a lost window far more.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Verdict:
    """What a model's parts can do. `why` says what failed first, for people.

    Args:
        split: lower and upper layers can run one after the other (`top:K`).
        patterns: attention runs under our patterns (packed rows, shared prefixes, our KV cache).
        rows: how the last layer runs at chosen positions; None if it cannot.
        shapes: of the keys and values of each layer; empty without `patterns`.
        bf16: why it cannot compute in bfloat16; empty if it can.
        wrong: without `patterns`, why whole rows do not give what a causal model has to; empty if they do.
        cached: without `patterns`, whether transformers' own cache gives what whole rows give.
    """

    split: bool
    patterns: bool
    rows: RowsKind | None
    shapes: tuple[CacheShape, ...]
    why: str
    bf16: str = ""
    wrong: str = ""
    cached: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Verdict:
        rows = RowsKind(**found["rows"]) if found["rows"] else None
        shapes = tuple(CacheShape(**each) for each in found["shapes"])
        return cls(
            found["split"],
            found["patterns"],
            rows,
            shapes,
            found["why"],
            found["bf16"],
            found["wrong"],
            found["cached"],
        )


@torch.no_grad()
def examine(lm: nn.Module, decoder: Decoder) -> Verdict:
    """Check `lm` (float32), whose attention is its own before and after."""
    with _small_windows(lm):
        return _Check(lm, decoder).verdict()


class _Check:
    def __init__(self, lm: nn.Module, decoder: Decoder) -> None:
        self._lm, self._decoder = lm, decoder
        vocabulary = lm.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        drawn = torch.randint(0, vocabulary, (2, LENGTH), generator=torch.Generator().manual_seed(0))
        self._ids = drawn.to(next(lm.parameters()).device)
        with _attention(lm, "eager"):
            self._want = self._whole(self._ids)
            first = self._ids[:1]
            self._pair = (
                self._whole(first[:, : PROMPT + FIRST]),
                self._whole(torch.cat((first[:, :PROMPT], first[:, PROMPT + FIRST :]), dim=1)),
            )
        self._spread = float(self._want.std())

    def verdict(self) -> Verdict:
        split = self._failed("split", self._split)
        with _attention(self._lm, NAME):
            broken = self._failed("attention", self._causal)
            broken = broken or self._failed("packed pairs", self._packed)
            broken = broken or self._failed("a KV cache", self._cached)
            shapes = () if broken else self._shapes()
            rows = None if broken else self._rows()
        bf16 = self._failed("its forward", self._half)
        wrong = self._failed("whole rows", self._rows_alone) if broken else ""
        cached = not broken or not self._failed("its own cache", self._generated)
        return Verdict(not split, not broken, rows, shapes, split or broken, bf16, wrong, cached)

    def _failed(self, what: str, run: Any) -> str:
        """What is wrong, in a few words; empty if nothing is."""
        try:
            off = run() / self._spread
        except Exception as error:
            return f"{what}: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
        return "" if off <= TOLERANCE else f"{what}: logits differ by {off:.2g} of their spread"

    def _half(self) -> float:
        """Nothing but whether it runs: some architectures mix the compute dtype with float32 of their own."""
        casting = Casting({"": self._lm}, torch.bfloat16, self._decoder.head)
        stack = casting.twins[""].get_submodule(self._decoder.path.stack)
        buffers = [(module._buffers, dict(module._buffers)) for module in self._lm.modules()]
        try:
            with casting.filled():
                hidden = run_stack(stack, None, False, ids=self._ids)
        finally:
            for own, before in buffers:  # some forwards cast them for good
                own.update(before)
        return 0.0 if bool(hidden.isfinite().all()) else float("inf")

    def _rows_alone(self) -> float:
        """By the attention it is loaded with, of each length: no token may see what follows it."""
        return max(
            _gap(self._whole(self._ids[:, :n]), self._want[:, :n]) for n in (1, PROMPT, LENGTH - 1, LENGTH)
        )

    def _generated(self) -> float:
        """Texts fed token by token into transformers' own cache."""
        seen: list[Tensor] = []

        def feed(ids: Tensor, logits: Tensor) -> Tensor:
            seen.append(logits)
            return torch.zeros_like(logits).scatter(1, self._ids[:, ids.shape[1], None], 1.0)

        generate(self._lm, self._ids[:, :PROMPT], SECOND, feed, use_cache=True)
        return _gap(torch.stack(seen, dim=1), self._want[:, PROMPT - 1 : PROMPT + SECOND - 1])

    def _whole(self, ids: Tensor) -> Tensor:
        return self._lm(input_ids=ids, use_cache=False).logits

    def _logits(self, hidden: Tensor) -> Tensor:
        head = self._lm.get_submodule(self._decoder.head)
        return self._decoder.after_head(head(hidden))

    def _split(self) -> float:
        """Largest difference of logits between the whole model and its halves, by its own attention."""
        count = self._decoder.num_layers
        if count < 2:
            return 0.0
        cut = count // 2
        with _attention(self._lm, "eager"):
            features = self._view(0, cut)(self._ids, None, None, None)
            hidden = self._view(cut, count)(features, None, None, None)
        return _gap(self._logits(hidden), self._want)

    def _view(self, first: int, end: int, rows: RowsKind | None = None) -> View:
        return View(self._decoder, self._lm, first, end, rows)

    def _all(self) -> View:
        return self._view(0, self._decoder.num_layers)

    def _causal(self) -> float:
        if not self._decoder.takes_positions:
            raise ValueError("its layers take no positions")
        called: list[int] = []
        hidden = self._all()(self._ids, CAUSAL, None, None, watch=lambda m, *_: called.append(m.layer_idx))
        if called != list(range(self._decoder.num_layers)):
            raise ValueError(f"attention was called by layers {called}")
        return _gap(self._logits(hidden), self._want)

    def _packed(self) -> float:
        spans = [(0, PROMPT, PROMPT + FIRST, LENGTH)]
        positions = torch.cat((torch.arange(PROMPT + FIRST), torch.arange(PROMPT, PROMPT + SECOND)))[None]
        hidden = self._all()(
            self._ids[:1], PairCausal(spans), positions.to(self._ids.device), PROMPT + SECOND
        )
        logits, (first, second) = self._logits(hidden), self._pair
        in_first = _gap(logits[:, : PROMPT + FIRST], first)
        return max(in_first, _gap(logits[:, PROMPT + FIRST :], second[:, PROMPT:]))

    def _cached(self) -> float:
        """Ragged rows, prefilled and then fed token by token."""
        cache, run = _Slots(), self._all()
        at = torch.tensor([PROMPT, PROMPT + FIRST], device=self._ids.device)
        width = int(at.max())
        places = torch.arange(width, device=at.device).expand(2, -1)
        run(self._ids[:, :width], cache.at(places), places, width)
        worst, rows = 0.0, torch.arange(2, device=at.device)
        for _ in range(SECOND):
            hidden = run(self._ids[rows, at][:, None], cache.at(at[:, None]), at[:, None], LENGTH)
            worst = max(worst, _gap(self._logits(hidden)[:, 0], self._want[rows, at]))
            at = at + 1
        return worst

    def _shapes(self) -> tuple[CacheShape, ...]:
        shapes: list[CacheShape] = []

        def record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> None:
            shapes.append(CacheShape(key.shape[1], key.shape[3], value.shape[3]))

        self._all()(self._ids[:, :2], CAUSAL, None, None, watch=record)
        return tuple(shapes)

    def _rows(self) -> RowsKind | None:
        """How the last layer runs at chosen positions, checked against all of them."""
        count = self._decoder.num_layers
        attention: list[nn.Module] = []
        run = self._all()
        run(self._ids[:, :2], CAUSAL, None, None, watch=lambda m, *_: attention.append(m))
        layer = self._lm.get_submodule(self._decoder.layer_paths(0, count)[-1])
        kind = RowsKind.find(layer, attention[-1], lambda: run(self._ids, CAUSAL, None, None))
        if kind is None:
            return None
        rows = torch.tensor([[3, LENGTH - 1], [0, 7]], device=self._ids.device)
        view = self._view(0, count, kind)
        wanted = self._want.take_along_dim(rows[:, :, None], dim=1)
        failed = self._failed(
            "rows", lambda: _gap(self._logits(view(self._ids, CAUSAL, None, None, rows=rows)), wanted)
        )
        return None if failed else kind


class _Slots:
    """A KV cache for the check: every token in the slot of its position, seeing all slots up to it."""

    def __init__(self) -> None:
        self._stored: dict[int, tuple[Tensor, Tensor]] = {}

    def at(self, positions: Tensor) -> _Slots:
        """The positions (B, T) of the tokens that come next."""
        self._positions = positions
        return self

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scoring: Scoring = USUAL
    ) -> Tensor:
        if layer not in self._stored:
            made = [x.new_zeros(len(x), x.shape[1], LENGTH, x.shape[3]) for x in (key, value)]
            self._stored[layer] = (made[0], made[1])
        keys, values = self._stored[layer]
        rows = torch.arange(len(key), device=key.device)[:, None]
        keys[rows, :, self._positions] = key.transpose(1, 2)
        values[rows, :, self._positions] = value.transpose(1, 2)
        slots = torch.arange(LENGTH, device=key.device)
        seen = slots <= self._positions[:, :, None]
        if scoring.window is not None:
            seen = seen & near(self._positions, slots, scoring.window)
        return masked_attention(query, keys, values, seen[:, None], scoring)


def _gap(found: Tensor, wanted: Tensor) -> float:
    gap = float((found - wanted).abs().max())
    return gap if gap == gap else float("inf")


@contextmanager
def _attention(lm: nn.Module, name: str) -> Iterator[None]:
    before = set_implementation(lm, name)
    try:
        yield
    finally:
        set_implementation(lm, before)


@contextmanager
def _small_windows(lm: nn.Module) -> Iterator[None]:
    """Every window of `lm`, wherever it is kept, is a few positions inside."""
    owners = {id(o): o for m in lm.modules() for o in (m, getattr(m, "config", None)) if o is not None}
    text = lm.config.get_text_config()  # type: ignore[union-attr, operator]
    owners[id(text)] = text
    with ExitStack() as stack:
        for owner in owners.values():
            for name in WINDOWS:
                value = getattr(owner, name, None)
                if isinstance(value, int) and not isinstance(value, bool) and value > WINDOW:
                    setattr(owner, name, WINDOW)
                    stack.callback(setattr, owner, name, value)
        yield
