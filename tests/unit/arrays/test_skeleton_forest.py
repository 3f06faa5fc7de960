"""Rooted skeletons: order, lengths, and that threads change nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import build_forest, build_forests
from pipeline.errors import InputError

VOXEL = (40.0, 9.0, 7.3)


def random_skeleton(seed: int, size: int) -> Skeleton:
    random = np.random.default_rng(seed)
    parents = [-1 if random.random() < 0.1 else int(random.integers(i)) for i in range(1, size)]
    edges = np.array([(i, p) for i, p in enumerate(parents, start=1) if p >= 0], int).reshape(-1, 2)
    edges = random.permutation(random.permuted(edges, axis=1), axis=0)
    return Skeleton(f"n{seed}", random.normal(size=(size, 3)) * 1000, edges)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 60))
def test_a_forest_keeps_every_edge_and_its_length(seed, size):
    skeleton = random_skeleton(seed, size)
    forest = build_forest(skeleton, VOXEL)
    assert sorted(forest.order.tolist()) == list(range(size))
    below = np.flatnonzero(forest.up >= 0)
    assert (forest.up[below] < below).all()
    ends = np.stack([forest.order[below], forest.order[forest.up[below]]], axis=1)
    assert sorted(forest.edge[below].tolist()) == list(range(len(skeleton.edges)))
    edges = skeleton.edges[forest.edge[below]]
    np.testing.assert_array_equal(np.sort(ends, axis=1), np.sort(edges, axis=1))
    lengths = skeleton.edge_lengths_nm(VOXEL)
    assert forest.length_nm[below].tolist() == lengths[forest.edge[below]].tolist()
    assert not forest.length_nm[forest.up < 0].any()
    assert forest.edge_count == len(skeleton.edges)
    assert forest.cable_nm == math.fsum(lengths.tolist())
    assert forest.tree.tolist() == (np.cumsum(forest.up < 0) - 1).tolist()


def test_many_at_once_are_those_one_by_one_in_their_order(monkeypatch):
    skeletons = [random_skeleton(seed, 20 + seed) for seed in range(12)]
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        for skeleton, found in zip(skeletons, build_forests(skeletons, VOXEL), strict=True):
            expected = build_forest(skeleton, VOXEL)
            assert found.name == skeleton.name
            for name in ("order", "up", "edge", "tree", "length_nm"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_the_first_bad_skeleton_is_named():
    bad = [
        Skeleton(name, np.zeros((2, 3)), np.array([[0, 1], [1, 0]])) for name in ("second", "third")
    ]
    with pytest.raises(InputError, match="skeleton second: 2 edges close a cycle"):
        build_forests([random_skeleton(0, 5), *bad], VOXEL)
