"""Is one method better than another on the same cases? A paired permutation test.

If there is no difference, each case's difference could as well have had the other sign. The p-value
is the share of all assignments of signs whose mean difference is at least as far from 0 as the one
found: two-sided, exact for up to 16 cases, else from random assignments. It cannot be smaller than
2 / 2**n, so three cases never give less than 0.25.

Several figures of the same cases are tested under the same assignments, which are drawn once.

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
    return paired_permutation_tests(first[None], second[None], seed=seed)[0]


def paired_permutation_tests(
    values: ArrayLike, baseline: ArrayLike, *, seed: int = 0
) -> list[float]:
    """The p-value of each of several figures, as `paired_permutation_test` gives it.

    Args:
        values, baseline: (k, n), k figures of the same n >= 1 cases, finite.
        seed: of the random assignments, the same for all figures.

    Raises:
        ShapeError: these are not two tables of one shape, or there is no case.
        InputError: a figure is not finite.
    """
    first, second = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    if first.shape != second.shape or first.ndim != 2 or not first.shape[1]:
        raise ShapeError(f"expected tables (k, n) of pairs, got {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("a permutation test needs finite figures: leave out cases without one")
    differences = np.ascontiguousarray(first - second)
    found = np.array([abs(row.sum()) - _EQUAL * np.abs(row).sum() for row in differences])
    if differences.shape[1] <= MOST_EXACT:
        return [
            float((np.abs(_all_sums(row)) >= least).mean())
            for row, least in zip(differences, found, strict=True)
        ]
    extreme = np.zeros(len(found), np.int64)
    for sums in _random_sums(differences, seed):
        extreme += (np.abs(sums) >= found).sum(axis=0)
    # The assignment found is one of them.
    return [(count + 1) / (DRAWS + 1) for count in extreme.tolist()]


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
    """The sums of (k, n) differences under `DRAWS` random assignments, (some, k) at a time.

    How a product of matrices rounds may depend on the machine; what it can change is far below
    `_EQUAL`.
    """
    random = np.random.default_rng(seed)
    cases = differences.shape[1]
    rows = max(1, _AT_ONCE // cases)
    whole = differences.sum(axis=1)
    room = np.empty((rows, cases))
    for begin in range(0, DRAWS, rows):
        signs = room[: DRAWS - begin]
        signs[:] = random.integers(0, 2, signs.shape, dtype=np.int8)
        # Signs are 1 - 2 s: one product without a second array of them.
        yield whole - 2.0 * (signs @ differences.T)
