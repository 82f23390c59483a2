"""Planning: variance components against statsmodels' and simulated truth, and the power of planned sizes."""

import math

import numpy as np
import pytest

from rlaif.stats import paired_difference
from rlaif.stats.effects.power import Components, components, detectable, items_needed, pooled


def _drawn(
    rng: np.random.Generator, parts: Components, items: int, seeds: int, effect: float = 0.0
) -> np.ndarray:
    """Differences (S, n) of the model behind `Components`."""
    a = rng.normal(0, math.sqrt(parts.seeds), (seeds, 1)) if seeds > 1 else 0.0
    b, e = (
        rng.normal(0, math.sqrt(v), shape)
        for v, shape in ((parts.items, (1, items)), (parts.cells, (seeds, items)))
    )
    return effect + a + b + e


TRUE = Components(0.02, 0.5, 0.3, 0.0, 0.0)


def test_components_by_hand() -> None:
    """Differences 1 0 2 and 3 0 0: row means 1 and 1, column means 2 0 1; rests +-1, 0, +-1."""
    found = components([[1, 0, 2], [3, 0, 0]], ["p", "q", "r"])
    assert found is not None
    # cells: squares of 4 over (2 - 1)(3 - 1); items: variance 1 of column means, less cells / 2; seeds: 0 - cells / 3.
    assert (found.cells, found.items, found.seeds) == pytest.approx((2.0, 0.0, -2 / 3))
    assert (found.seed_freedom, found.item_freedom) == (1.0, 2.0)


def test_items_of_a_cluster_are_one() -> None:
    x = np.array([[1.0, 3.0, 5.0, 0.0]])
    found = components(x, ["p", "p", "q", "r"])
    assert found is not None and found.items == pytest.approx(np.var([2.0, 5.0, 0.0], ddof=1))
    assert math.isnan(found.seeds) and found.seed_freedom == 0
    assert components(x, ["p", "p", "q", "q"]) is None


def test_components_find_what_was_drawn() -> None:
    rng = np.random.default_rng(0)
    drawn = [_drawn(rng, TRUE, 60, 4) for _ in range(300)]
    found = pooled([one for table in drawn if (one := components(table, range(60)))])
    assert (found.seeds, found.items, found.cells) == pytest.approx(
        (TRUE.seeds, TRUE.items, TRUE.cells), rel=0.1
    )
    assert (found.seed_freedom, found.item_freedom) == (900.0, 300 * 59.0)


def test_repeated_runs_alone_tell_seeds_and_items_apart() -> None:
    single, repeated = Components(math.nan, 9.0, 0.0, 0.0, 50.0), Components(0.1, 1.0, 2.0, 2.0, 50.0)
    assert pooled([single, repeated]) == repeated
    assert math.isnan(pooled([single]).seeds) and pooled([single]).items == 9.0
    both = pooled([repeated, Components(-0.3, 3.0, 2.0, 2.0, 50.0)])
    assert both.seeds == 0.0 and both.items == pytest.approx(2.0)  # a mean below 0 is no variance
    with pytest.raises(ValueError):
        pooled([])


@pytest.mark.parametrize("seeds", [1, 3, 8])
def test_planned_sizes_have_the_power(seeds: int) -> None:
    effect = 0.3 if seeds != 3 else 0.6
    items = items_needed(TRUE, effect, seeds)
    assert items is not None
    assert detectable(TRUE, items, seeds) <= effect < detectable(TRUE, items - 1, seeds)
    rng, runs = np.random.default_rng(seeds), 600
    tables = (_drawn(rng, TRUE, items, seeds, effect) for _ in range(runs))
    found = sum(
        paired_difference(table, np.zeros_like(table), range(items), outcomes=False)[0].low > 0
        for table in tables
    )
    # Few seeds have wide intervals, whose power is a little more than asked for.
    assert 0.76 < found / runs < 0.92


def test_no_number_of_items_makes_up_for_seeds() -> None:
    assert items_needed(Components(0.02, 0.5, 0.3, 4, 100), 0.05, 2) is None
    assert items_needed(Components(0.0, 0.5, 0.3, 4, 100), 0.05, 2) is not None
    assert items_needed(TRUE, 0.05, 1) == items_needed(Components(9.0, 0.5, 0.3, 4, 100), 0.05, 1)
