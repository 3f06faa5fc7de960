from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.arrays.fragments import FaceRecord
from pipeline.arrays.stitch import join_boxes, joined_pairs, resolve
from pipeline.errors import DataError, InputError, ShapeError


def pairs(*rows: tuple[int, int]) -> NDArray[np.uint64]:
    return np.array(rows, np.uint64).reshape(-1, 2)


def face(labels: list[list[int]], joins: list[list[int]]) -> FaceRecord:
    return FaceRecord(np.array(labels, np.uint64), np.array(joins, bool), None)


def test_either_side_joins_and_rows_are_unique() -> None:
    lower = face([[9, 9, 9, 12], [0, 11, 9, 7]], [[1, 0, 0, 0], [0, 1, 1, 0]])
    upper = face([[2, 2, 4, 4], [5, 30, 2, 5]], [[0, 0, 1, 0], [0, 1, 0, 0]])
    assert joined_pairs(lower, upper).tolist() == [[2, 9], [4, 9], [30, 11]]


def test_nothing_joined() -> None:
    got = joined_pairs(face([[1]], [[0]]), face([[2]], [[0]]))
    assert (got.shape, got.dtype) == ((0, 2), np.uint64)


def test_records_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(DataError, match="1 joined pairs"):
        joined_pairs(face([[1, 2]], [[1, 1]]), face([[3, 0]], [[0, 0]]))
    with pytest.raises(ShapeError, match=r"\(1, 2\).*\(2, 1\)"):
        joined_pairs(face([[1, 2]], [[1, 1]]), face([[3], [4]], [[0], [0]]))


def test_resolve_gives_the_smallest_member() -> None:
    ids, roots = resolve(pairs((9, 4), (4, 7), (20, 30), (30, 2**64 - 1), (7, 9), (50, 50)))
    assert ids.tolist() == [7, 9, 30, 2**64 - 1]
    assert roots.tolist() == [4, 4, 20, 20]


def test_resolve_of_a_long_chain_in_bad_order() -> None:
    n = 3000
    links = [(k, k + 1) for k in range(n, 0, -1)]
    ids, roots = resolve(pairs(*links))
    assert ids.tolist() == list(range(2, n + 2))
    assert set(roots.tolist()) == {1}


def test_resolve_of_nothing() -> None:
    assert [(column.size, column.dtype) for column in resolve(pairs())] == [(0, np.uint64)] * 2
    merged, faces = join_boxes({})
    assert not len(merged[0])
    assert not len(faces.roots)


def test_background_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="background"):
        resolve(pairs((0, 3)))
    with pytest.raises(ShapeError, match=r"\(n, 2\)"):
        resolve(np.zeros(4, np.uint64))
