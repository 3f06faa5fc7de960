"""Nodes drawn together inside their voxels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.arrays.skeleton_smooth import smooth_nodes


def slow(nodes: NDArray, edges: NDArray, rounds: int) -> NDArray:
    """Every neighbour by hand."""
    near: list[list[int]] = [[] for _ in nodes]
    for a, b in edges.tolist():
        near[a].append(b)
        near[b].append(a)
    place = nodes.copy()
    for _ in range(rounds):
        moved = place.copy()
        for node, others in enumerate(near):
            if len(others) > 1:
                aim = (place[node] + place[others].mean(axis=0)) / 2
                moved[node] = np.clip(aim, nodes[node] - 0.49, nodes[node] + 0.49)
        place = moved
    return place


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(0, 6))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_as_the_slow_way_and_in_any_order(seed: int, count: int, rounds: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = rng.integers(0, 4, (count, 3)) + 0.5
    edges = rng.integers(0, count, (rng.integers(0, 2 * count), 2))
    edges = np.unique(np.sort(edges[edges[:, 0] != edges[:, 1]], axis=1), axis=0)
    before = nodes.copy()
    found = smooth_nodes(nodes, edges, rounds)
    np.testing.assert_allclose(found, slow(nodes, edges, rounds), atol=1e-12)
    np.testing.assert_array_equal(nodes, before)
    assert (np.floor(found) == np.floor(nodes)).all()
    turned = edges[rng.permutation(len(edges))][:, ::-1]
    np.testing.assert_array_equal(smooth_nodes(nodes, turned, rounds), found)


def test_an_oblique_line_has_nearly_its_length_and_ends_stay() -> None:
    steps = np.arange(101)
    line = np.stack([steps * 0.0, np.floor(steps * 0.45), steps * 1.0], axis=1) + 0.5
    edges = np.stack([steps[:-1], steps[1:]], axis=1)
    true = float(np.linalg.norm(line[-1] - line[0]))

    def length(nodes: NDArray) -> float:
        return float(np.linalg.norm(nodes[1:] - nodes[:-1], axis=1).sum())

    found = smooth_nodes(line, edges, 4)
    assert length(line) > 1.07 * true
    assert length(found) == pytest.approx(true, rel=0.01)
    np.testing.assert_array_equal(found[[0, -1]], line[[0, -1]])


def test_nothing_to_draw() -> None:
    none = np.zeros((0, 2), np.int64)
    assert smooth_nodes(np.zeros((0, 3)), none, 4).shape == (0, 3)
    np.testing.assert_array_equal(smooth_nodes(np.full((1, 3), 2.5), none, 4), [[2.5, 2.5, 2.5]])
