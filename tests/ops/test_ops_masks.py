"""Masked reducers against plain loops and hand-worked numbers."""

import ast
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rlaif.ops
from rlaif.ops import last_index, masked_mean, masked_sum, masked_var, whiten, zero_masked


def random_case(seed: int, rows: int = 5, columns: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 3 + 1
    mask = torch.rand(rows, columns, generator=generator) < 0.6
    mask[0, 0] = mask[1, 2] = True
    return x, mask


def counted(x: torch.Tensor, mask: torch.Tensor) -> list[float]:
    return [v for v, m in zip(x.flatten().tolist(), mask.flatten().tolist(), strict=True) if m]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_reducers_equal_plain_loops(seed: int) -> None:
    x, mask = random_case(seed)
    values = counted(x, mask)
    mean = sum(values) / len(values)
    var = sum((v - mean) ** 2 for v in values) / len(values)
    assert masked_sum(x, mask).item() == pytest.approx(sum(values), abs=1e-10)
    assert masked_mean(x, mask).item() == pytest.approx(mean, abs=1e-10)
    assert masked_var(x, mask).item() == pytest.approx(var, abs=1e-10)
    for row in range(len(x)):
        kept = counted(x[row], mask[row])
        assert masked_sum(x, mask, dim=1)[row].item() == pytest.approx(sum(kept), abs=1e-10)
        if kept:
            assert masked_mean(x, mask, dim=1)[row].item() == pytest.approx(sum(kept) / len(kept), abs=1e-10)


def test_variance_is_the_population_variance() -> None:
    # values 1, 3 (100 is masked): mean 2, deviations 1 and 1, population variance (1 + 1) / 2 = 1
    x = torch.tensor([[1.0, 3.0, 100.0]])
    mask = torch.tensor([[True, True, False]])
    assert masked_var(x, mask).item() == 1.0
    # mutation: Bessel's correction gives 2 and fails this assertion
    assert x[mask].var(unbiased=True).item() == 2.0


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -1e30])
def test_garbage_under_the_mask_changes_nothing(garbage: float) -> None:
    x, mask = random_case(3)
    dirty = torch.where(mask, x, torch.tensor(garbage, dtype=x.dtype))
    for f in (masked_sum, masked_mean, masked_var):
        assert torch.equal(f(dirty, mask), f(x, mask))
    for center in (True, False):
        assert torch.equal(whiten(dirty, mask, center=center), whiten(x, mask, center=center))


def test_gradient_stays_finite_under_nan() -> None:
    x = torch.tensor([[2.0, math.nan]], requires_grad=True)
    masked_sum(x**2, torch.tensor([[True, False]])).backward()
    assert x.grad is not None
    # d(x^2)/dx = 4 at the counted entry; x**2 at NaN has gradient 0 * 2 NaN
    assert x.grad[0, 0].item() == 4.0


@pytest.mark.parametrize("seed", range(5))
def test_whiten(seed: int) -> None:
    x, mask = random_case(seed)
    values = torch.tensor(counted(x, mask), dtype=torch.float64)
    centred, kept = whiten(x, mask, center=True), whiten(x, mask, center=False)
    assert masked_mean(centred, mask).item() == pytest.approx(0.0, abs=1e-12)
    assert masked_mean(kept, mask).item() == pytest.approx(values.mean().item(), abs=1e-12)
    expected = values.var(unbiased=False) / (values.var(unbiased=False) + 1e-8)
    for result in (centred, kept):
        assert masked_var(result, mask).item() == pytest.approx(expected.item(), abs=1e-12)
        assert torch.equal(result[~mask], torch.zeros_like(result[~mask]))
    # mutation: a reversed `center` is caught by the mean
    assert abs(masked_mean(kept, mask).item()) > 1e-3


def test_whiten_of_constants_is_finite() -> None:
    x, mask = torch.full((2, 3), 4.0), torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(whiten(x, mask, center=True), torch.zeros(2, 3))
    assert torch.equal(whiten(x, mask, center=False), x)


def test_last_index() -> None:
    mask = torch.tensor([[True, True, False], [False, True, True], [True, False, False], [True, False, True]])
    assert last_index(mask).tolist() == [1, 2, 0, 2]
    # mutation: "count - 1" is wrong for rows that do not start at 0 or have a hole
    assert (mask.sum(1) - 1).tolist() == [1, 1, 0, 1]


def test_last_index_names_the_empty_row() -> None:
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        last_index(torch.tensor([[True, False], [False, False]]))


@pytest.mark.parametrize("mask", [torch.ones(2, 2, dtype=torch.int64), torch.ones(2, dtype=torch.bool)])
def test_last_index_takes_boolean_rows_only(mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected a boolean"):
        last_index(mask)


def test_masks_must_be_boolean_and_of_one_shape() -> None:
    with pytest.raises(ValueError, match="boolean"):
        zero_masked(torch.ones(2, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="one shape"):
        zero_masked(torch.ones(2, 2), torch.ones(2, 3, dtype=torch.bool))


def test_ops_import_torch_alone() -> None:
    allowed = {"torch", "rlaif.ops", "__future__", "collections", "dataclasses", "typing"}
    for path in Path(rlaif.ops.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.startswith("rlaif.ops") or name.split(".")[0] in allowed, f"{path.name}: {name}"
