"""Sums of floats that are rounded once, and so are the same to the last bit in any order.

What `math.fsum` does, compiled: a list of Python floats takes ten times as long to make as its sum.
A running sum is kept as partial sums that do not overlap, smallest first, which together are exact;
rounding happens when they are put together.

Source: Shewchuk 1997, "Adaptive precision floating-point arithmetic and fast robust geometric
predicates", doi:10.1007/PL00009321; ties and special values as `math.fsum` has them.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Partial sums do not overlap, so there are no more of them than bits between 2^-1074 and 2^1024.
MOST_PARTIALS = 2098


def exact_sum(values: Floats) -> float:
    """The sum, rounded once: `math.fsum` of (N,) float64 in any layout.

    Raises:
        OverflowError: finite values add up, or add up on the way, to what no float64 holds.
        ValueError: both infinities are among the values.
    """
    return float(exact_total(np.ascontiguousarray(values, np.float64), np.empty(MOST_PARTIALS)))


def sum_groups(values: Floats, groups: Integers, count: int) -> Floats:
    """(count,) the sum of the values of each group, rounded once; 0 for a group without any.

    Args:
        values: (N,) float64.
        groups: (N,) the group of each value, from 0 to count - 1.
        count: number of groups.

    Raises:
        ValueError: a group is none of these, or both infinities are in one.
        OverflowError: as `exact_sum`.
    """
    numbers = np.ascontiguousarray(groups, np.int64)
    if len(numbers) != len(values):
        raise ValueError(f"groups of {len(numbers)} values, but there are {len(values)}")
    return grouped_totals(np.ascontiguousarray(values, np.float64), numbers, count)


@njit(cache=True, nogil=True)
def grouped_totals(values: Floats, groups: Integers, count: int) -> Floats:
    """`sum_groups` of contiguous arrays, for other kernels too."""
    ends = np.zeros(count + 1, np.int64)
    for group in groups:
        if group < 0 or group >= count:
            raise ValueError("a value is in a group that is not counted")
        ends[group + 1] += 1
    for group in range(count):
        ends[group + 1] += ends[group]
    ordered = np.empty(len(values), np.float64)
    fill = ends[:-1].copy()
    for i in range(len(values)):
        ordered[fill[groups[i]]] = values[i]
        fill[groups[i]] += 1
    partials = np.empty(MOST_PARTIALS, np.float64)
    sums = np.empty(count, np.float64)
    for group in range(count):
        sums[group] = exact_total(ordered[ends[group] : ends[group + 1]], partials)
    return sums


@njit(cache=True, nogil=True)
def exact_total(values: Floats, partials: Floats) -> float:
    """The sum of the values, rounded once; `partials` is scratch of `MOST_PARTIALS`."""
    count = 0
    special = 0.0  # sum of infinities and NaN, which come out as they would from an addition
    infinities = 0.0
    for value in values:
        x = value
        kept = 0
        for i in range(count):
            y = partials[i]
            if abs(x) < abs(y):
                x, y = y, x
            high = x + y
            low = y - (high - x)
            if low != 0.0:
                partials[kept] = low
                kept += 1
            x = high
        count = kept
        if not math.isfinite(x):
            if math.isfinite(value):
                raise OverflowError("a sum of finite numbers overflows")
            if math.isinf(value):
                infinities += value
            special += value
            count = 0
        elif x != 0.0:
            partials[count] = x
            count += 1
    if special != 0.0:
        if math.isnan(infinities):
            raise ValueError("both infinities are in one sum")
        return special
    return _rounded(partials, count)


@njit(cache=True, nogil=True)
def _rounded(partials: Floats, count: int) -> float:
    """The partial sums in one float, ties to even."""
    if count == 0:
        return 0.0
    high = partials[count - 1]
    low = 0.0
    rest = count - 1
    while rest > 0 and low == 0.0:
        rest -= 1
        before = high
        high = before + partials[rest]
        low = partials[rest] - (high - before)
    # If `low` is half a unit of `high`, the addition rounded to even without a look at the partial
    # sums below: where these go the same way it is no tie.
    if rest > 0 and (low < 0.0) == (partials[rest - 1] < 0.0):
        twice = 2.0 * low
        moved = high + twice
        if twice == moved - high:
            return moved
    return high
