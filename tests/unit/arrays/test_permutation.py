from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.permutation import (
    DRAWS,
    holm,
    paired_permutation_test,
    paired_permutation_tests,
    smallest_p,
)
from pipeline.errors import InputError, ShapeError

FIGURES = st.lists(st.integers(-20, 20), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(FIGURES)
def test_equals_trying_every_assignment(differences: list[int]) -> None:
    found = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    expected = sum(s >= found for s in sums) / len(sums)
    base = [0.1 * i for i in range(len(differences))]
    values = [b + d for b, d in zip(base, differences, strict=True)]
    assert paired_permutation_test(values, base) == pytest.approx(expected)


def test_three_cases_never_give_less_than_a_quarter() -> None:
    assert paired_permutation_test([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]) == 0.25
    assert paired_permutation_test([1.0], [0.0]) == 1.0


def test_no_difference() -> None:
    assert paired_permutation_test([0.3] * 5, [0.3] * 5) == 1.0
    assert paired_permutation_test([0.3] * 40, [0.3] * 40) == 1.0


def test_differences_that_cancel_are_none() -> None:
    """Sums that rounding alone tells from 0."""
    for few in ([0.1, 0.2, -0.3], [0.7, 0.1, -0.8], [-1.1, 2.2, -1.1]):
        assert paired_permutation_test(few, [0.0] * 3) == 1.0
        assert paired_permutation_test([*few] * 7, [0.0] * 21) == 1.0


def test_the_smallest_p() -> None:
    for cases in (1, 2, 5, 16):
        every = paired_permutation_test([1.0] * cases, [0.0] * cases)
        assert smallest_p(cases) == every == 2 / 2**cases
    assert smallest_p(60) == paired_permutation_test([1.0] * 60, [0.0] * 60) == 1 / (DRAWS + 1)
    assert smallest_p(0) == 1.0


def test_many_cases_are_drawn_reproducibly() -> None:
    random = np.random.default_rng(0)
    base = random.standard_normal(40)
    better, same = base + 1 + random.standard_normal(40), random.standard_normal(40)
    p = paired_permutation_test(better, base)
    assert p < 0.001
    assert p == paired_permutation_test(better, base)
    assert paired_permutation_test(same, base) > 0.05
    few = paired_permutation_test(better[:16], base[:16])
    more = paired_permutation_test([*better[:16], 0.0], [*base[:16], 0.0])
    assert more == pytest.approx(few, abs=0.02), "a case without difference changes nothing"


def test_pairs_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="pairs"):
        paired_permutation_test([1.0, 2.0], [1.0])
    with pytest.raises(ShapeError, match="pairs"):
        paired_permutation_test([], [])
    with pytest.raises(InputError, match="finite"):
        paired_permutation_test([1.0, float("nan")], [1.0, 2.0])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_many_figures_have_the_p_values_they_have_alone() -> None:
    random = np.random.default_rng(3)
    for cases in (1, 9, 16, 17, 60):
        values = random.normal(size=(4, cases)) + np.array([[0.0], [0.3], [0.8], [0.0]])
        values[3] = 2.5
        base = random.normal(size=(4, cases))
        base[3] = 2.5
        together = paired_permutation_tests(values, base, seed=5)
        alone = [paired_permutation_test(v, b, seed=5) for v, b in zip(values, base, strict=True)]
        assert together == alone
        assert together[3] == 1.0


def test_the_share_of_drawn_assignments_is_counted() -> None:
    """The signs of the test, drawn and added up here one figure at a time."""
    random = np.random.default_rng(8)
    differences = np.rint(random.normal(size=(3, 20)) * 5) + np.array([[0.0], [1.0], [3.0]])
    signs = 1 - 2 * np.random.default_rng(2).integers(0, 2, (DRAWS, 20), dtype=np.int8)
    expected = []
    for row in differences:
        sums = signs.astype(np.int64) @ row.astype(np.int64)
        extreme = int((abs(sums) >= abs(row.sum())).sum())
        expected.append((extreme + 1) / (DRAWS + 1))
    assert paired_permutation_tests(differences, np.zeros((3, 20)), seed=2) == expected
    assert len(set(expected)) == 3


def test_tables_that_do_not_fit() -> None:
    for values, base in (([[1.0]], [[1.0, 2.0]]), ([1.0], [1.0]), ([[]], [[]])):
        with pytest.raises(ShapeError, match="tables"):
            paired_permutation_tests(values, base)
    with pytest.raises(InputError, match="finite"):
        paired_permutation_tests([[1.0, np.inf]], [[1.0, 2.0]])
