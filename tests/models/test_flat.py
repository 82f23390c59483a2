"""Rows behind each other without padding against rows beside each other, and what each may cost."""

from __future__ import annotations

import pytest
import torch

from rlaif.models import flat
from rlaif.models.pairs import PairCausal

LENGTHS = [13, 4, 17, 9]


@pytest.fixture
def batch():
    """Ids (4, 20) of ragged rows, and the positions of each that are read: some many, some one."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 250, (4, 20), generator=generator)
    reads = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (length, count) in enumerate(zip(LENGTHS, [5, 1, 9, 2], strict=True)):
        reads[row, length - count : length] = True
    return ids, reads


def each_alone(top, model, ids, reads):
    rows = [
        model.trunk(ids[row : row + 1, : int(read.nonzero().max()) + 1]) for row, read in enumerate(reads)
    ]
    return torch.cat(
        [top(features)[0][read[: features.shape[1]]] for features, read in zip(rows, reads, strict=True)]
    )


@pytest.mark.parametrize("trainable", ["full", "top:1", "top:2", "lora:2"])
@pytest.mark.parametrize("way", [flat._flat, flat._padded])
def test_each_row_is_read_as_if_alone(tiny_model, batch, trainable, way) -> None:
    model, (ids, reads) = tiny_model(trainable), batch
    top = model.trunk.new_top()
    got, alone = way(top, model.trunk(ids), reads), each_alone(top, model, ids, reads)
    torch.testing.assert_close(got, alone, rtol=0, atol=1e-5)
    gradients = []
    for output in (got, alone):
        top.zero_grad()
        output.square().sum().backward()
        gradients.append([p.grad for p in top.parameters() if p.grad is not None])
    assert max(float(grad.abs().max()) for grad in gradients[1]) > 0.1, "gradients far above the tolerance"
    for one, other in zip(*gradients, strict=True):
        # Of its own size: a small gradient must be as right as a large one.
        assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max()) + 1e-7


def test_a_row_that_saw_its_neighbour_would_be_noticed(tiny_model, batch, monkeypatch) -> None:
    model, (ids, reads) = tiny_model("top:2"), batch
    top = model.trunk.new_top()
    monkeypatch.setattr(
        flat, "PairCausal", lambda spans: PairCausal([(0, spans[-1][3], spans[-1][3], spans[-1][3])])
    )
    got, alone = flat._flat(top, model.trunk(ids), reads), each_alone(top, model, ids, reads)
    torch.testing.assert_close(got[:5], alone[:5], rtol=0, atol=1e-5)
    assert not torch.allclose(got[5:], alone[5:], atol=1e-2)


def test_what_stands_behind_the_last_read_position_costs_nothing(tiny_model, batch) -> None:
    model, (ids, reads) = tiny_model("top:2"), batch
    top, seen = model.trunk.new_top(), []
    top.layers[0].register_forward_hook(lambda layer, args, out: seen.append(tuple(out.shape[:2])))
    flat._flat(top, model.trunk(ids), reads)
    flat._padded(top, model.trunk(ids), reads)
    assert seen == [(1, sum(LENGTHS)), (4, 20)]
    other = ids.clone()
    other[1, 4:] = 3
    torch.testing.assert_close(
        flat._flat(top, model.trunk(other), reads), flat._flat(top, model.trunk(ids), reads), rtol=0, atol=0
    )


def test_rows_lie_behind_each_other_where_their_padding_would_cost_more(
    tiny_model, batch, monkeypatch
) -> None:
    model, (ids, reads) = tiny_model("top:2"), batch
    top, features, ways = model.trunk.new_top(), model.trunk(ids), []
    for way in ("_flat", "_padded"):
        monkeypatch.setattr(flat, way, lambda *args, way=way: ways.append(way))
    # 80 positions hold 43 tokens in 4 rows.
    for cost in (36, 38):
        monkeypatch.setattr(flat, "ROW_COST", cost / 4 * model.trunk.config.layer_weights)
        flat.hidden_at(top, features, reads)
    assert ways == ["_flat", "_padded"]
