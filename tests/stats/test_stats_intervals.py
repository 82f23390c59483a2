"""Wilson's interval."""

import math

import pytest
from scipy.stats import binomtest

from rlaif.stats import wilson_interval


def test_wilson_by_hand() -> None:
    # 8 of 10, z = 1.959964: centre (0.8 + z^2/20) / (1 + z^2/10) = 0.992073 / 1.384146 = 0.716740
    # half width z sqrt(0.16/10 + z^2/400) / 1.384146 = 1.959964 * 0.160025 / 1.384146 = 0.226578
    interval = wilson_interval(8, 10)
    assert (interval.estimate, interval.n) == (0.8, 10)
    assert interval.low == pytest.approx(0.716740 - 0.226578, abs=2e-5)
    assert interval.high == pytest.approx(0.716740 + 0.226578, abs=2e-5)
    # mutation: the plain normal interval, 0.8 +- 0.248, fails
    assert interval.high != pytest.approx(0.8 + 1.96 * math.sqrt(0.016), abs=1e-2)


@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (3, 11), (500, 1000)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_against_scipy(k: int, n: int, level: float) -> None:
    other = binomtest(k, n).proportion_ci(level, method="wilson")
    interval = wilson_interval(k, n, level)
    assert (interval.low, interval.high) == pytest.approx((other.low, other.high), abs=1e-12)
    mirrored = wilson_interval(n - k, n, level)
    assert mirrored.low == pytest.approx(1 - interval.high, abs=1e-12)


def test_wilson_edges() -> None:
    for interval in (wilson_interval(0, 0), wilson_interval(math.nan, 5)):
        assert math.isnan(interval.estimate) and (interval.low, interval.high) == (0.0, 1.0)
    low, high = wilson_interval(4, 10), wilson_interval(5, 10)
    assert low.low < wilson_interval(4.5, 10).low < high.low
    assert wilson_interval(7, 7).high == 1.0 and wilson_interval(0, 7).low == 0.0
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(11, 10)
