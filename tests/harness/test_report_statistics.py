import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from harness.figures import plus_minus, spread
from harness.report.tables import Difference, holm


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_difference_has_students_interval_and_p_value(count):
    random = np.random.default_rng(count)
    own, other = random.normal(50, 3, (2, count))
    found = Difference.of(pd.Series(own), pd.Series(other))
    assert found.seeds == [*range(count)]
    assert found.mean == pytest.approx((own - other).mean())
    test = ttest_1samp(own - other, 0)
    assert found.interval == pytest.approx((*test.confidence_interval(0.95),))
    apart = own - other  # by hand: twice the tail beyond mean / (deviation / sqrt(n))
    t = apart.mean() / (apart.std(ddof=1) / math.sqrt(count))
    assert found.p_value == pytest.approx(2 * student.sf(abs(t), count - 1))
    assert found.ranks == (count >= 3)


def test_only_seeds_that_both_have_are_compared():
    own, other = pd.Series({0: 1.0, 2: 5.0, 3: 9.0, 4: None}), {3: 5.0, 0: 0.0, 1: 100.0, 4: 7.0}
    found = Difference.of(own, pd.Series(other))
    assert (found.mean, found.seeds) == (2.5, [0, 3])
    assert Difference.of(pd.Series({0: 1.0}), pd.Series({1: 1.0})) is None


def test_one_seed_and_equal_differences_have_no_interval_and_rank_nothing():
    assert Difference.of(pd.Series({5: 1.5}), pd.Series({5: 1.0})) == Difference(0.5, [5])
    own = {0: 0.1 + 0.2, 1: 8.3, 2: 70.7}
    other = {0: 0.3 - 1.1, 1: 7.2, 2: 69.6}
    assert len({own[seed] - other[seed] for seed in own}) > 1  # as the machine rounds
    found = Difference.of(pd.Series(own), pd.Series(other))
    assert (found.interval, found.ranks, str(found)) == (None, False, "+1.10")


@pytest.mark.parametrize("seed", range(20))
def test_the_correction_is_holms(seed):
    """Holm's procedure as published: reject the least while it is at most level / (those left)."""
    random = np.random.default_rng(seed)
    p_values = random.choice([0.001, 0.01, 0.0125, 0.02, 0.03, 0.04, 0.2, 0.9], size=5).tolist()
    for level in (0.049, 0.051, 0.101, 0.2):
        rejected, left = set(), sorted(range(5), key=lambda i: p_values[i])
        while left and p_values[left[0]] <= level / len(left):
            rejected.add(left.pop(0))
        assert {i for i, p in enumerate(holm(p_values)) if p <= level} == rejected


def test_the_correction_of_one_comparison_is_none_and_none_exceeds_one():
    assert holm([0.03]) == [0.03]
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []
    assert holm([0.02, 0.01, 0.04]) == pytest.approx([0.04, 0.03, 0.04])  # by hand


def test_spread_is_the_samples():
    values = [3.0, 5.5, 9.25, 1.0]
    index = pd.MultiIndex.from_product([["a"], range(4)]).append(
        pd.MultiIndex.from_tuples([("b", 7), ("b", 8), ("c", 0)])
    )
    index.names = ["label", "seed"]
    series = pd.Series([*values, 2.0, None, None], index)
    found = spread(series)
    assert [*found.index] == ["a", "b"]  # without a figure there is no mean
    assert (*found.loc["a"],) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert plus_minus(*found.loc["a"] / 2, 1) == "2.3 ± 1.8"
    assert plus_minus(*found.loc["b"]) == "2.00"
    alone = spread(series, series * 0 + 0.25)
    assert plus_minus(*alone.loc["b"]) == "2.00 ± 0.25"
    assert alone.loc["a"].equals(found.loc["a"])


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_what_is_not_finite_is_a_dash(value):
    assert plus_minus(value, value) == "-"
