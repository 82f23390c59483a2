"""Which kernel attention takes, and that the one for accelerators gives what the others do; here it runs unfused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from rlaif.inference.cache import AfterPrefix, KVCache
from rlaif.models.attention import Attend, Causal, Scoring
from rlaif.models.kernels import choice
from rlaif.models.kernels.choice import LONG, LONG_SCORES, choose_kernel
from rlaif.models.pairs import PaddedPairs, PairCausal
from rlaif.models.parts.shapes import CacheShape

HEADS, GROUPS, SIZE, LENGTH, PREFIX = 4, 2, 16, 15, 3
SPANS = ((0, 3, 5, 9), (9, 10, 14, 15))
SCORINGS = {
    "window": Scoring(window=3),
    "soft cap": Scoring(softcap=0.7),
    "scale": Scoring(scale=0.9, window=2),
    "sinks": Scoring(sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
    "all": Scoring(scale=0.9, window=3, softcap=0.7, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
}


@pytest.mark.parametrize(
    "device, keys, queries, masked, fused, expected",
    [
        ("cuda", 10 * LONG, 10 * LONG, False, True, "flash"),
        ("cuda", 10, 10, False, True, "flash"),
        ("cuda", LONG + 1, LONG + 1, True, True, "flex"),  # a window, or another text
        ("cuda", LONG, LONG, True, True, "masked"),
        ("cuda", LONG + 1, 1, True, True, "masked"),  # decoding
        ("cuda", LONG_SCORES + 1, LONG_SCORES + 1, False, False, "flex"),  # a soft cap
        ("cuda", LONG_SCORES, LONG_SCORES, False, False, "products"),
        ("cuda", LONG + 1, 8, True, False, "products"),
    ],
)
def test_the_kernel_on_cuda(device, keys, queries, masked, fused, expected) -> None:
    assert choose_kernel(device, keys=keys, queries=queries, head=64, masked=masked, fused=fused) == expected


def test_nothing_is_compiled_elsewhere_or_for_tiny_heads() -> None:
    for masked, fused in product((False, True), repeat=2):
        asked = {"keys": 10 * LONG, "queries": 10 * LONG, "masked": masked, "fused": fused}
        found = {choose_kernel(device, head=64, **asked) for device in ("cpu", "mps")}
        assert found == {"products"} if not fused else found == {"masked"} if masked else found == {"flash"}
        assert choose_kernel("cuda", head=8, **asked) != "flex"


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """From its call on, this processor is taken for a device with compiled kernels, and short rows for long ones."""

    def take() -> None:
        monkeypatch.setattr(choice, "COMPILED", ("cpu",))
        monkeypatch.setattr(choice, "LONG", 4)
        monkeypatch.setattr(choice, "LONG_SCORES", 4)
        choice.say.cache_clear()

    yield take
    choice.say.cache_clear()


def _inputs(rows: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, heads, LENGTH, SIZE) for heads in (HEADS, GROUPS, GROUPS)]
    return [3 * torch.randn(*shape, generator=generator) for shape in shapes]


def _several_texts() -> tuple[Tensor, Tensor]:
    """Two rows: prompt | a | b whose b does not read a, and a single text; with what windows count."""
    blocked = torch.zeros(2, LENGTH, LENGTH, dtype=torch.bool)
    blocked[0, 8:, 4:8] = True
    positions = torch.arange(LENGTH).repeat(2, 1)
    positions[0, 8:] -= 4
    return blocked, positions


def _after_prefix() -> AfterPrefix:
    cache = KVCache([CacheShape(GROUPS, SIZE, SIZE)], 1, PREFIX, torch.float32, "cpu")
    generator = torch.Generator().manual_seed(1)
    for part in (cache.keys[0], cache.values[0]):
        part.copy_(torch.randn(part.shape, generator=generator))
    blocked, positions = _several_texts()
    return AfterPrefix(cache, LENGTH, blocked, positions + PREFIX)


PATTERNS: dict[str, tuple[int, Callable[[], Attend]]] = {
    "rows": (2, Causal),
    "several texts": (2, lambda: Causal(*_several_texts())),
    "pairs": (1, lambda: PaddedPairs(SPANS, torch.device("cpu"))),
    "after a prefix": (2, _after_prefix),
}


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_flex_attention_gives_the_same_values(as_on_cuda, caplog, pattern, scoring) -> None:
    """Values alone: on a processor it has no gradients."""
    rows, make = PATTERNS[pattern]
    inputs, asked = _inputs(rows), SCORINGS[scoring]
    expected = make()(0, *inputs, scoring=asked)
    as_on_cuda()
    with caplog.at_level(logging.INFO, "rlaif.models.kernels.choice"):
        attend = make()
        once, again = (attend(0, *inputs, scoring=asked) for _ in range(2))
    assert [r.getMessage().count("flex attention") for r in caplog.records] == [1], "said once"
    assert torch.equal(once, again)
    torch.testing.assert_close(once, expected, rtol=0, atol=5e-5)


def test_pairs_by_flex_attention_are_those_of_a_processor(as_on_cuda) -> None:
    inputs = _inputs(1)
    as_on_cuda()
    for scoring in SCORINGS.values():
        found, expected = (
            attend(0, *inputs, scoring=scoring)
            for attend in (PaddedPairs(SPANS, torch.device("cpu")), PairCausal(SPANS))
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)
