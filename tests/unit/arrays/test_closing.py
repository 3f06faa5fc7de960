from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.arrays.closing import close_segments
from pipeline.errors import DtypeError, InputError, ShapeError


def slowly(labels: np.ndarray, radius: int) -> np.ndarray:
    """Voxel by voxel: dilate, erode, then join by repeated sweeps."""
    inside = [tuple(v) for v in np.argwhere(labels)]
    every = [tuple(v) for v in np.ndindex(labels.shape)]

    def near(a, b):
        return sum((i - j) ** 2 for i, j in zip(a, b, strict=True)) <= radius**2

    grown = {v for v in every if any(near(v, w) for w in inside)}
    closed = {v for v in every if all(w in grown for w in every if near(v, w))}
    added = [v for v in closed if not labels[v]]
    joined = {v: int(labels[v]) for v in inside} | dict.fromkeys(added)
    parent = {int(i): int(i) for i in np.unique(labels) if i}
    pieces: list[set] = []
    for v in added:
        touching = [
            p
            for p in pieces
            if any(max(abs(a - b) for a, b in zip(v, w, strict=True)) == 1 for w in p)
        ]
        pieces = [p for p in pieces if p not in touching] + [set().union({v}, *touching)]
    for piece in pieces:
        names = {
            parent[int(labels[w])]
            for v in piece
            for w in inside
            if max(abs(a - b) for a, b in zip(v, w, strict=True)) == 1
        }
        for name, root in parent.items():
            if root in names:
                parent[name] = min(names)
        for v in piece:
            joined[v] = min(names)
    result = np.zeros(labels.shape, np.uint64)
    for v, name in joined.items():
        root = name
        while parent[root] != root:
            root = parent[root]
        result[v] = root
    return result


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from([(6, 7), (1, 9), (4, 5, 4)]),
    radius=st.sampled_from([1, 2]),
    share=st.sampled_from([0.1, 0.3, 0.6]),
    seed=st.integers(0, 10**6),
)
def test_equals_the_definition(shape, radius, share, seed) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(1, 5, shape) * (random.random(shape) < share)
    labels = labels.astype(np.uint64)
    before = labels.copy()
    np.testing.assert_array_equal(close_segments(labels, radius), slowly(labels, radius))
    np.testing.assert_array_equal(labels, before)


def test_a_gap_makes_one_segment_of_two() -> None:
    labels = np.zeros((7, 20), np.uint64)
    labels[2:5, :9], labels[2:5, 10:] = 2**63 + 7, 5
    closed = close_segments(labels, 1)
    assert (closed[3] == 5).all()
    assert (closed[[2, 4]] == np.where(np.arange(20) == 9, 0, 5)).all()
    assert not closed[[0, 1, 5, 6]].any()


def test_the_mask_is_that_of_scipy_away_from_the_border() -> None:
    random = np.random.default_rng(0)
    labels = np.zeros((30, 30, 30), np.uint64)
    labels[6:-6, 6:-6, 6:-6] = random.random((18, 18, 18)) < 0.2
    steps = np.indices((5, 5, 5)) - 2
    ball = (steps**2).sum(axis=0) <= 4
    np.testing.assert_array_equal(
        close_segments(labels, 2) > 0, ndimage.binary_closing(labels > 0, ball)
    )


def test_nothing_to_close() -> None:
    empty = np.zeros((3, 4, 5), np.uint64)
    np.testing.assert_array_equal(close_segments(empty, 2), empty)
    full = np.full((3, 4, 5), 9, np.uint64)
    np.testing.assert_array_equal(close_segments(full, 2), full)


def test_what_cannot_be_closed() -> None:
    with pytest.raises(ShapeError, match="labels"):
        close_segments(np.zeros(4, np.uint64), 1)
    with pytest.raises(DtypeError, match="int64"):
        close_segments(np.zeros((4, 4), np.int64), 1)
    with pytest.raises(InputError, match="at least one"):
        close_segments(np.zeros((4, 4), np.uint64), 0)
