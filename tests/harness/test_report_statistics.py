import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from harness.report.statistics import Difference, Spread


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_difference_is_that_of_scipys_paired_t_test(count):
    random = np.random.default_rng(count)
    own, other = random.normal(50, 3, (2, count))
    found = Difference.of(dict(enumerate(own.tolist())), dict(enumerate(other.tolist())))
    assert found.pairs == count
    assert found.mean == pytest.approx((own - other).mean())
    for test in (ttest_1samp(own - other, 0), ttest_rel(own, other)):
        assert found.interval == pytest.approx((*test.confidence_interval(0.95),))


@pytest.mark.parametrize("count", [2, 600])
def test_episodes_are_compared_as_scipys_paired_t_test_does(count):
    own, other = np.random.default_rng(count).binomial(75, 0.5, (2, count)) / 0.75
    found = Difference.of_episodes(own, other)
    assert found.pairs == count
    assert found.mean == pytest.approx((own - other).mean())
    expected = ttest_rel(own, other).confidence_interval(0.95)
    assert found.interval == pytest.approx((*expected,))
    assert Difference.of_episodes(own[:1], other[:1]).interval is None


def test_only_seeds_that_both_have_are_compared():
    found = Difference.of({0: 1.0, 2: 5.0, 3: 9.0}, {3: 5.0, 0: 0.0, 1: 100.0})
    assert (found.mean, found.pairs) == (2.5, 2)
    assert Difference.of({0: 1.0}, {1: 1.0}) is None


def test_one_seed_has_no_interval_and_equal_runs_an_empty_one():
    assert Difference.of({5: 1.5}, {5: 1.0}) == Difference(0.5, None, 1)
    same = {0: 3.0, 1: 4.0}
    assert Difference.of(same, same).text() == "+0.00 (+0.00 to +0.00)"


def test_spread_is_the_samples():
    values = [3.0, 5.5, 9.25, 1.0]
    found = Spread.of(values)
    assert (found.mean, found.deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert found.scaled(0.5).text(1) == "2.3 ± 1.8"
    assert Spread.of([2.0]) == Spread(2.0, None)
    assert Spread.of([]) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_run_that_diverged_makes_no_mean(value):
    assert Spread.of([1.0, value]).text() == "nan"
    assert "nan" in Difference.of({0: 1.0, 1: value}, {0: 0.0, 1: 0.0}).text()
