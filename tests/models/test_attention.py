"""Flat rows of pairs: each response attends as if it stood behind its prompt alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.models.attention import Causal, DenseCausal, folded_attention, masked_attention
from rlaif.models.pairs import FlexPairs, PaddedPairs, PairCausal, pair_attention, pair_mask

HEADS, GROUPS, SIZE = 4, 2, 16
SPANS = ((0, 3, 5, 9), (9, 10, 14, 15), (15, 19, 21, 21))


def _inputs(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(1, heads, length, SIZE, generator=generator) for heads in (HEADS, GROUPS, GROUPS)
    )


def _by_loops(spans, query, key, value):
    """One position after the other, from the definition of who sees whom."""
    out = torch.zeros_like(query)
    for start, a, b, end in spans:
        for at in range(start, end):
            seen = [*range(start, min(at, a - 1) + 1)]
            if at >= a:
                seen += range(a, at + 1) if at < b else range(b, at + 1)
            for head in range(HEADS):
                group = head // (HEADS // GROUPS)
                scores = torch.stack([query[0, head, at] @ key[0, group, j] for j in seen]) / math.sqrt(SIZE)
                weights = scores.softmax(0)
                out[0, head, at] = sum(w * value[0, group, j] for w, j in zip(weights, seen, strict=True))
    return out


@st.composite
def some_spans(draw):
    spans, start = [], 0
    for _ in range(draw(st.integers(1, 4))):
        prompt, a, b = draw(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 5)))
        spans.append((start, start + prompt, start + prompt + a, start + prompt + a + b))
        start = spans[-1][3]
    return tuple(spans)


@settings(max_examples=25, deadline=None)
@given(some_spans(), st.integers(0, 9))
def test_pairs_attend_as_the_definition_says(spans, seed):
    query, key, value = _inputs(spans[-1][3], seed)
    expected = _by_loops(spans, query, key, value)
    torch.testing.assert_close(PairCausal(spans)(0, query, key, value), expected, rtol=0, atol=1e-5)


def _padded(spans):
    return PaddedPairs(spans, torch.device("cpu"))


@pytest.mark.parametrize("pattern", [PairCausal, FlexPairs, _padded])
def test_patterns_agree_with_the_definition_everywhere_and_at_chosen_rows(pattern):
    query, key, value = _inputs(SPANS[-1][3])
    expected = _by_loops(SPANS, query, key, value)
    attend = pattern(SPANS)
    torch.testing.assert_close(attend(0, query, key, value), expected, rtol=0, atol=1e-5)
    # Few positions of each pair, and more than one product for all pairs is meant for, with a pair that has none.
    for places in ([4, 8, 13, 14, 20, 9], [0, 2, 4, 5, 8, 15, 16, 20], [*range(9, 15)] * 2):
        rows = torch.tensor([places])
        chosen = attend(0, query[:, :, rows[0]], key, value, rows)
        torch.testing.assert_close(chosen, expected[:, :, rows[0]], rtol=0, atol=1e-5)


def test_the_comparison_sees_a_pattern_in_which_b_reads_a():
    query, key, value = _inputs(SPANS[-1][3])
    expected = _by_loops(SPANS, query, key, value)
    joined = [(start, a, end, end) for start, a, _, end in SPANS]
    assert (PairCausal(joined)(0, query, key, value) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("pattern", [PairCausal, _padded])
def test_gradients_stay_inside_a_pair(pattern):
    query, key, value = (x.requires_grad_() for x in _inputs(SPANS[-1][3]))
    pattern(SPANS)(0, query, key, value)[:, :, 9:15].square().sum().backward()
    for gradient in (query.grad, key.grad, value.grad):
        assert gradient[:, :, :9].abs().max() == 0 and gradient[:, :, 15:].abs().max() == 0
        assert gradient[:, :, 9:15].abs().max() > 1e-3


def test_gradients_of_both_layouts_are_the_same():
    found = []
    for pattern in (PairCausal, _padded):
        inputs = [x.requires_grad_() for x in _inputs(SPANS[-1][3])]
        pattern(SPANS)(0, *inputs).pow(3).sum().backward()
        found.append([x.grad for x in inputs])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * other.abs().max().item())


def test_fused_causal_attention_is_the_dense_one_everywhere_and_at_chosen_rows():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, n, 7, SIZE, generator=generator) for n in (HEADS, GROUPS, GROUPS))
    dense, fused = DenseCausal(), Causal()
    torch.testing.assert_close(fused(0, query, key, value), dense(0, query, key, value), rtol=0, atol=1e-5)
    rows = torch.tensor([[0, 6], [3, 1], [5, 5]])
    some = query.gather(2, rows[:, None, :, None].expand(-1, HEADS, -1, SIZE))
    found, expected = (attend(0, some, key, value, rows) for attend in (fused, dense))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_blocked_places_are_hidden_everywhere_and_at_chosen_rows():
    """A row of prompt | a | b whose b may not read a, beside a row of one text: by the definition of pairs."""
    spans, length = ((0, 3, 5, 9), (0, 3, 9, 9)), 9
    blocked = torch.zeros(2, length, length, dtype=torch.bool)
    blocked[0, 5:, 3:5] = True
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, n, length, SIZE, generator=generator) for n in (HEADS, GROUPS, GROUPS)
    )
    expected = torch.cat(
        [_by_loops([span], *(x[i, None] for x in (query, key, value))) for i, span in enumerate(spans)]
    )
    attend = Causal(blocked)
    torch.testing.assert_close(attend(0, query, key, value), expected, rtol=0, atol=1e-5)
    rows = torch.tensor([[8, 0, 5], [8, 4, 2]])
    index = rows[:, None, :, None].expand(-1, HEADS, -1, SIZE)
    some = attend(0, query.gather(2, index), key, value, rows)
    torch.testing.assert_close(some, expected.gather(2, index), rtol=0, atol=1e-5)
    assert (Causal()(0, query, key, value) - expected)[0, :, 5:].abs().max() > 1e-2, "what is hidden matters"


def test_folded_heads_attend_as_shared_ones():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, n, 5, SIZE, generator=generator) for n in (HEADS, GROUPS, GROUPS))
    seen = (torch.rand(2, 1, 5, 5, generator=generator) > 0.4) | torch.eye(5, dtype=torch.bool)
    found, expected = (attend(query, key, value, seen) for attend in (folded_attention, masked_attention))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_mask_of_chosen_rows_by_hand():
    seen = pair_mask(((0, 1, 2, 4),), torch.tensor([0, 1, 3]), 4)
    assert seen.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, False, True, True],
    ]


def test_processors_use_plain_matrix_products():
    assert isinstance(pair_attention(SPANS, torch.device("cpu")), PairCausal)
