from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.arrays.edges import EdgeTable, cross_face_edges, map_edges, sum_edges
from pipeline.arrays.fragments import FaceRecord
from pipeline.errors import InputError, ShapeError

Row = tuple[int, int, int, int]


def table(*rows: Row) -> EdgeTable:
    return EdgeTable(*np.array(rows, np.uint64).reshape(-1, 4).T)


def rows_of(edges: EdgeTable) -> list[Row]:
    columns = (edges.u, edges.v, edges.affinity_sum, edges.face_count)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def face(labels: list[list[int]], affinities: NDArray | None = None) -> FaceRecord:
    own = np.array(labels, np.uint64)
    return FaceRecord(own, np.zeros(own.shape, bool), affinities)


def test_empty_table() -> None:
    assert len(EdgeTable.empty()) == 0
    assert rows_of(sum_edges([])) == rows_of(sum_edges([EdgeTable.empty()] * 3)) == []
    none = np.zeros(0, np.uint64)
    assert rows_of(map_edges(EdgeTable.empty(), none, none)) == []


def test_sum_sorts_and_adds_equal_pairs() -> None:
    one = table((5, 9, 10, 1), (1, 2, 3, 4), (5, 9, 1, 1))
    other = table((5, 9, 100, 7), (5, 6, 0, 2), (2**63, 2**64 - 1, 2**60, 2**50))
    expected = [(1, 2, 3, 4), (5, 6, 0, 2), (5, 9, 111, 9), (2**63, 2**64 - 1, 2**60, 2**50)]
    assert rows_of(sum_edges([one, other])) == rows_of(sum_edges([other, one])) == expected
    assert rows_of(sum_edges([one])) == [(1, 2, 3, 4), (5, 9, 11, 2)]
    assert rows_of(one)[0] == (5, 9, 10, 1)  # input not changed


def test_sum_against_a_dictionary_with_large_groups() -> None:
    rng = np.random.default_rng(1)
    u = rng.integers(1, 6, 3000)  # hundreds of rows for each u
    v = u + rng.integers(1, 200, 3000)
    rows = np.stack([u, v, rng.integers(0, 999, 3000), rng.integers(1, 9, 3000)], axis=1)
    expected: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for a, b, total, count in rows.tolist():
        expected[a, b][0] += total
        expected[a, b][1] += count
    got = rows_of(sum_edges([table(*part.tolist()) for part in np.split(rows, 3)]))
    assert got == [(*pair, *sums) for pair, sums in sorted(expected.items())]


def test_map_renames_reorders_drops_and_adds() -> None:
    edges = table((2, 5, 7, 1), (3, 5, 10, 2), (3, 8, 1, 1), (5, 8, 100, 3))
    # 5 -> 1 and 8 -> 3: (2,5) turns to (1,2); (3,8) vanishes; (3,5) and (5,8) fall together.
    ids, roots = np.array([5, 8], np.uint64), np.array([1, 3], np.uint64)
    assert rows_of(map_edges(edges, ids, roots)) == [(1, 2, 7, 1), (1, 3, 110, 5)]
    with pytest.raises(InputError, match="0 < u < v"):
        map_edges(edges, ids, np.array([0, 3], np.uint64))


def test_cross_face_counts_every_contact_affinity_zero_included() -> None:
    """The mean is over the whole contact, so pairs with affinity 0 count as faces."""
    affinities = np.array([[0, 200, 30], [255, 9, 0]], np.uint8)
    lower = face([[7, 7, 7], [0, 4, 4]], affinities)
    upper = face([[2, 2, 9], [2, 4, 0]])
    # Not counted: background on either side, and equal labels.
    assert rows_of(cross_face_edges(lower, upper)) == [(2, 7, 200, 2), (7, 9, 30, 1)]


def test_cross_face_wants_the_affinities_of_the_lower_face() -> None:
    affinities = np.zeros((1, 2), np.uint16)
    lower, upper = face([[1, 2]], affinities), face([[3, 4]])
    assert rows_of(cross_face_edges(lower, upper)) == [(1, 3, 0, 1), (2, 4, 0, 1)]
    with pytest.raises(InputError, match="lower face first"):
        cross_face_edges(upper, lower)
    with pytest.raises(ShapeError, match=r"\(1, 2\).*\(1, 1\)"):
        cross_face_edges(lower, face([[3]]))


def test_rows_that_are_no_edges_are_refused() -> None:
    for row in [(2, 2, 1, 1), (3, 2, 1, 1), (0, 2, 1, 1)]:
        with pytest.raises(InputError, match="0 < u < v"):
            table(row)
    with pytest.raises(ShapeError, match="face_count"):
        EdgeTable(*(np.ones(1, np.uint64) * k for k in (1, 2, 3)), np.ones(2, np.uint64))
