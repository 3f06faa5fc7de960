"""The ceiling: what scoring gives where each tracing has one label of its own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.metrics import (
    Forest,
    ScoringOptions,
    build_forest,
    perfect_overall,
    score_forests,
)
from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import InputError, ShapeError

VOXEL = (40.0, 16.0, 8.1)


def random_forests(seed: int) -> list[Forest]:
    """One to six skeletons of several trees, some of a single node, some without any node."""
    random = np.random.default_rng(seed)
    forests = []
    for number in range(random.integers(1, 7)):
        count = int(random.choice([0, 1, 2, random.integers(3, 50)]))
        parent = [int(random.integers(max(0, i - 3), i)) for i in range(1, count)]
        edges = np.array(list(enumerate(parent, start=1)), int).reshape(-1, 2)
        edges = edges[random.random(len(edges)) > random.choice([0.0, 0.2, 1.0])]
        nodes = random.random((count, 3)) * 10.0 ** random.integers(-3, 6)
        forests.append(build_forest(Skeleton(f"n{number}", nodes, edges), VOXEL))
    return forests


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.booleans(),
    st.sampled_from([None, 0.0, 90.0]),
    st.integers(1, 60),
    st.sampled_from([0.0, 60.0, 1e6]),
    st.booleans(),
)
def test_equals_scoring_one_own_label_each(seed, repair, gap, nodes, length, counted):
    forests = random_forests(seed)
    outside = list(range(3, 3 + len(forests))) if counted else None
    own = [np.full(len(f.up), i, np.uint64) for i, f in enumerate(forests, start=1)]
    options = ScoringOptions(repair, gap, nodes, length)
    expected = score_forests(forests, own, VOXEL, options, outside).overall
    assert json.dumps(perfect_overall(forests, outside)) == json.dumps(expected)


def test_a_tracing_cut_into_trees_has_a_ceiling_below_one():
    """Trees of 3, 1 and 2 nodes, 8 nm apart: 2 of 3 edges hang together."""
    nodes = np.zeros((6, 3))
    nodes[:, 2] = np.arange(6)
    edges = np.array([[1, 0], [2, 1], [5, 4]])
    found = perfect_overall([build_forest(Skeleton("a", nodes, edges), (1, 1, 8.0))], [2])
    assert (found["edges"], found["correct_edges"], found["splits"]) == (3, 3, 0)
    assert (found["erl"], found["nerl"]) == (5 / 3, 5 / 9)
    assert (found["erl_nm"], found["ffn_nerl_nm"]) == ((16**2 + 8**2) / 24, 1.0)
    assert (found["out_of_bounds_nodes"], found["repaired_nodes"]) == (2, 0)
    assert (found["merges_total"], found["split_rate_nm"], found["merge_rate_nm"]) == (
        0,
        None,
        None,
    )


def test_bad_input_is_refused():
    forest = build_forest(Skeleton("a", np.zeros((1, 3)), np.zeros((0, 2))), VOXEL)
    with pytest.raises(InputError, match="no skeleton"):
        perfect_overall([])
    with pytest.raises(InputError, match="distinct"):
        perfect_overall([forest, forest])
    with pytest.raises(ShapeError, match="counts of nodes out of bounds for 2"):
        perfect_overall([forest], [1, 2])
