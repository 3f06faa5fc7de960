"""Is one method better than another on the same cases? A paired permutation test.

If there is no difference, each case's difference could as well have had the other sign. The p-value
is the share of all assignments of signs whose mean difference is at least as far from 0 as the one
found: two-sided, exact for up to 16 cases, else from random assignments. It cannot be smaller than
2 / 2**n, so three cases never give less than 0.25.

Source: Fisher's randomisation test; Holm 1979, "A simple sequentially rejective multiple test
procedure".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import InputError, ShapeError

MOST_EXACT = 16
DRAWS = 100_000
_EQUAL = 1e-12  # of the sum of sizes: sums of the same numbers in another order are equal
_AT_ONCE = 2**22  # signs held in memory


def paired_permutation_test(values: ArrayLike, baseline: ArrayLike, *, seed: int = 0) -> float:
    """The two-sided p-value of the mean difference of pairs.

    Args:
        values, baseline: (n,) figures of the same n >= 1 cases, finite.
        seed: of the random assignments, where there are too many to try all.

    Raises:
        ShapeError: the figures are not two lists of one length, or empty.
        InputError: a figure is not finite.
    """
    first, second = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ShapeError(f"expected pairs of figures, got {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("a permutation test needs finite figures: leave out cases without one")
    differences = first - second
    found = abs(differences.sum()) - _EQUAL * np.abs(differences).sum()
    if first.size <= MOST_EXACT:
        return float((np.abs(_all_sums(differences)) >= found).mean())
    extreme = sum(int((np.abs(sums) >= found).sum()) for sums in _random_sums(differences, seed))
    return (extreme + 1) / (DRAWS + 1)  # the assignment found is one of them


def smallest_p(cases: int) -> float:
    """The smallest p-value that a test of so many cases can give; all differ in one direction."""
    if not cases:
        return 1.0
    return 2.0 / 2**cases if cases <= MOST_EXACT else 1 / (DRAWS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, adjusted for their number (Holm)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _all_sums(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of the differences under each assignment of signs."""
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    return sums


def _random_sums(differences: NDArray[np.float64], seed: int) -> Iterator[NDArray[np.float64]]:
    """The sums under `DRAWS` random assignments, some at a time."""
    random = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // differences.size)
    for begin in range(0, DRAWS, rows):
        shape = min(rows, DRAWS - begin), differences.size
        signs = random.integers(0, 2, shape, dtype=np.int8)
        # Signs are 1 - 2 s: one product without a second array of them.
        yield differences.sum() - 2.0 * (signs @ differences)
