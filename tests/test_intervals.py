import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments import intervals

# Student's t for 95 %, from the tables in textbooks.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 29: 2.045}


@pytest.mark.parametrize(("degrees", "t"), TABLE.items())
def test_quantiles_are_those_of_the_tables(degrees, t):
    assert intervals.quantile(degrees) == pytest.approx(t, abs=5e-4)


def test_estimate_by_hand():
    # Mean 5, squares of deviations 9 + 1 + 1 + 9 = 20, variance 20 / 3, standard error
    # sqrt(20 / 12) = 1.29099, times t = 3.18245.
    found = intervals.estimate([2, 4, 6, 8])
    assert (found.mean, found.n) == (5, 4)
    assert found.half == pytest.approx(4.10852, abs=1e-5)


def test_estimate_of_two_values_by_hand():
    # Standard error |a − b| / 2 = 0.5, times t = 12.70620.
    found = intervals.estimate([90.0, 91.0])
    assert found == (90.5, pytest.approx(6.35310, abs=1e-5), 2)


def test_one_value_has_no_interval_and_none_no_estimate():
    assert intervals.estimate([91.5]) == (91.5, None, 1)
    assert intervals.estimate([]) is None


@given(st.lists(st.floats(0, 100), min_size=2, max_size=9), st.sampled_from([0.9, 0.95, 0.99]))
def test_estimate_is_that_of_scipy(values, confidence):
    found = intervals.estimate(values, confidence)
    low, high = stats.t.interval(
        confidence, len(values) - 1, sum(values) / len(values), max(stats.sem(values), 1e-300)
    )
    assert found.mean - found.half == pytest.approx(low, abs=1e-9)
    assert found.mean + found.half == pytest.approx(high, abs=1e-9)


def test_paired_difference_by_hand():
    # Seeds 0, 1, 2: differences 1, 2, 3; mean 2, standard error 1 / sqrt(3), t = 4.30265.
    a, b = {0: 91.0, 1: 93.0, 2: 92.0}, {2: 89.0, 1: 91.0, 0: 90.0}
    found = intervals.paired(a, b)
    assert found == (2, pytest.approx(2.48414, abs=1e-5), 3)
    assert intervals.paired(b, a).mean == -2


def test_only_common_seeds_are_paired():
    found = intervals.paired({0: 91.0, 1: 93.0, 7: 10.0}, {0: 90.0, 1: 91.0, 2: 50.0})
    assert found.n == 2
    assert found.mean == 1.5
    assert intervals.paired({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1.0, 1.1, 0.9], True),  # 1 ± 0.25
        ([-1.0, -1.1, -0.9], True),
        ([1.0, 2.0, 3.0], False),  # 2 ± 2.48
        ([5.0], False),
        ([], False),
        ([0.0, 0.0, 0.0], False),
        ([0.3, 0.3, 0.3], False),  # no spread to judge by
        ([0.1 + 0.2, 0.3, 0.3], False),  # nor in what rounding made
    ],
)
def test_resolved(differences, expected):
    assert intervals.resolved(intervals.estimate(differences)) is expected


@pytest.mark.parametrize(
    ("costs", "values", "front"),
    [
        ([], [], []),
        ([1], [1], [True]),
        ([1, 2, 3], [1, 2, 3], [True, True, True]),
        ([1, 2, 3], [3, 2, 1], [True, False, False]),
        ([3, 1, 2], [9, 5, 4], [True, True, False]),
        ([1, 1], [5, 5], [True, True]),  # equal in both
        ([1, 1], [5, 6], [False, True]),  # equal cost
        ([1, 2], [5, 5], [True, False]),  # equal value
        ([1, 2, 2, 2], [5, 6, 6, 4], [True, True, True, False]),
    ],
)
def test_front_by_hand(costs, values, front):
    assert intervals.pareto(costs, values) == front


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=12))
def test_front_is_what_nothing_dominates(points):
    def dominates(p, q):
        return p[0] <= q[0] and p[1] >= q[1] and p != q

    expected = [not any(dominates(p, q) for p in points) for q in points]
    assert intervals.pareto([c for c, _ in points], [v for _, v in points]) == expected


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=6), st.floats(-50, 50))
def test_estimate_moves_with_its_values(values, shift):
    one = intervals.estimate(values)
    other = intervals.estimate([value + shift for value in values])
    assert other.mean == pytest.approx(one.mean + shift, abs=1e-9)
    assert other.half == pytest.approx(one.half, abs=1e-9)
    assert math.isfinite(one.half)
