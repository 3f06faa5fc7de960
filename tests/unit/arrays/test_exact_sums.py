"""Sums rounded once: `math.fsum` is the judge, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.arrays.exact_sums import exact_sum, sum_groups

TINY, HUGE = 5e-324, 1.7976931348623157e308
# Powers of two far apart, their neighbours and halves of a unit: cancellation, ties, subnormals.
HARD = [
    s * m * 2.0**e
    for s in (1, -1)
    for m in (1.0, 1 + 2.0**-52, 1 - 2.0**-53, 1.5)
    for e in (-1074, -1022, -106, -54, -53, -52, 0, 1, 53, 54, 600, 1000)
]
NUMBERS = st.one_of(st.sampled_from(HARD), st.floats(allow_nan=False, allow_infinity=False))


def by_python(values: Sequence[float]) -> str:
    """The sum, or the error; as text, which tells 0.0 from -0.0 and NaN from a number."""
    try:
        return repr(math.fsum(values))
    except (OverflowError, ValueError) as error:
        return type(error).__name__


def by_us(values: Sequence[float]) -> str:
    try:
        return repr(exact_sum(np.array(values, np.float64)))
    except (OverflowError, ValueError) as error:
        return type(error).__name__


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(NUMBERS, max_size=60), st.booleans(), st.randoms(use_true_random=False))
@example([], False, None)
@example([-0.0], False, None)
@example([1.0, 2.0**-53], False, None)
@example([1.0, 2.0**-53, TINY], False, None)
@example([1.0, 2.0**-53, -TINY], False, None)
@example([1 + 2.0**-52, 2.0**-53, -TINY], False, None)
@example([1e16, 1.0, 1e-16], False, None)
@example([HUGE, HUGE, -HUGE], False, None)
@example([HUGE, -HUGE, TINY, TINY], False, None)
@example([HUGE, 2.0**970], False, None)
def test_is_the_sum_of_python(values, cancel, random):
    if cancel:
        values = values + [-value for value in values[::2]]
        random.shuffle(values)
    assert by_us(values) == by_python(values)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([1.0, -1.0, 0.0, math.inf, -math.inf, math.nan]), max_size=6))
def test_infinities_and_nan_come_out_as_in_python(values):
    assert by_us(values) == by_python(values)


def test_many_partial_sums_that_do_not_join():
    """Every second bit of all that a float can be: nothing is lost on the way."""
    values = [2.0**e for e in range(-1074, 1023, 2)]
    assert exact_sum(np.array(values + [-v for v in values[1:]])) == TINY
    spread = [2.0**e for e in range(-1074, 1000, 60)]
    assert by_us(spread[::-1] * 3) == by_python(spread[::-1] * 3)


@pytest.mark.parametrize("seed", range(5))
def test_any_order_gives_the_same_bits(seed):
    random = np.random.default_rng(seed)
    values = random.normal(size=300) * 2.0 ** random.integers(-60, 60, 300)
    sums = {exact_sum(random.permutation(values)) for _ in range(10)}
    assert sums == {math.fsum(values.tolist())}
    assert math.fsum(values.tolist()) != sum(values.tolist())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 6))
def test_groups_are_sums_of_their_values(seed, size, count):
    random = np.random.default_rng(seed)
    values = random.normal(size=size) * 2.0 ** random.integers(-80, 80, size)
    groups = random.integers(0, count, size)
    expected = [math.fsum(values[groups == group].tolist()) for group in range(count)]
    assert sum_groups(values, groups, count).tolist() == expected
    strided = np.repeat(values, 2)[::2], np.repeat(groups, 3).astype(np.int32)[::3]
    assert sum_groups(*strided, count).tolist() == expected


def test_groups_without_values():
    found = sum_groups(np.zeros(0), np.zeros(0, np.int64), 3)
    assert (found.tolist(), found.dtype) == ([0.0, 0.0, 0.0], np.float64)
    assert sum_groups(np.zeros(0), np.zeros(0, np.int64), 0).shape == (0,)
    assert sum_groups(np.array([2.0, 3.0]), np.array([2, 2]), 4).tolist() == [0.0, 0.0, 5.0, 0.0]


@pytest.mark.parametrize("group", [-1, 2])
def test_a_group_that_is_none_is_refused(group):
    with pytest.raises(ValueError, match="group that is not counted"):
        sum_groups(np.array([1.0, 2.0]), np.array([0, group]), 2)


def test_a_value_without_group_is_refused():
    with pytest.raises(ValueError, match="groups of 1 values, but there are 2"):
        sum_groups(np.array([1.0, 2.0]), np.array([0]), 2)
    with pytest.raises(OverflowError):
        sum_groups(np.array([HUGE, HUGE]), np.array([0, 0]), 1)
