"""Numbers of many skeletons at once, against the plain way one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_summary import SUMMARY_TYPES, summarise_skeletons
from pipeline.errors import DataError, ShapeError

SIZE = (40.0, 8.5, 4.3)


def columns(skeletons: dict[int, Skeleton]) -> dict[str, Any]:
    parts = list(skeletons.values())
    return {
        "segment": np.array(list(skeletons), np.uint64),
        "node_count": np.array([len(s.nodes) for s in parts], np.int64),
        "edge_count": np.array([len(s.edges) for s in parts], np.int64),
        "nodes": np.concatenate([np.zeros((0, 3)), *(s.nodes for s in parts)]),
        "edges": np.concatenate([np.zeros((0, 2), np.int64), *(s.edges for s in parts)]),
        "radii_nm": np.concatenate([np.zeros(0), *(s.radii_nm for s in parts)]),
    }


def reference(segment: int, skeleton: Skeleton) -> dict[str, Any]:
    count = len(skeleton.nodes)
    groups = [{node} for node in range(count)]
    for a, b in skeleton.edges.tolist():
        first, second = (next(g for g in groups if end in g) for end in (a, b))
        if first is not second:
            groups = [g for g in groups if g is not first and g is not second] + [first | second]
    degree = [int((skeleton.edges == node).sum()) for node in range(count)]
    voxels = np.floor(skeleton.nodes).astype(int)
    begin, end = (voxels.min(axis=0), voxels.max(axis=0) + 1) if count else (np.zeros(3, int),) * 2
    return {
        "segment": segment,
        "nodes": count,
        "cable_nm": math.fsum(skeleton.edge_lengths_nm(SIZE).tolist()),
        "branch_points": sum(d > 2 for d in degree),
        "tips": sum(d == 1 for d in degree),
        "components": len(groups),
        "loops": len(skeleton.edges) - count + len(groups),
        **{f"begin_{a}_vox": begin[i] for i, a in enumerate("zyx")},
        **{f"end_{a}_vox": end[i] for i, a in enumerate("zyx")},
        "largest_radius_nm": np.fmax.reduce(skeleton.radii_nm, initial=0.0),
    }


def test_by_hand() -> None:
    """A ring of four with a tail, and a node apart; then one node alone."""
    nodes = [[1.5, 2.5, 3.5], [1.5, 2.5, 4.5], [1.5, 3.5, 4.5], [1.5, 3.5, 3.5], [3.5, 2.5, 3.5]]
    ring = Skeleton(
        "9",
        np.array([*nodes, [-0.5, 9.0, 0.0]]),
        np.array([[0, 1], [1, 2], [2, 3], [3, 0], [4, 0]]),
        np.array([1.0, np.nan, 7.0, 2.0, 0.0, 3.0]),
    )
    alone = Skeleton("2", np.array([[5.0, 6.0, 7.0]]), np.zeros((0, 2)), np.array([np.nan]))
    found = summarise_skeletons(**columns({2**64 - 1: ring, 2: alone}), voxel_size_nm=(10, 1, 2))
    assert list(found) == list(SUMMARY_TYPES)
    assert {name: values.tolist() for name, values in found.items()} == {
        "segment": [2**64 - 1, 2],
        "nodes": [6, 1],
        "cable_nm": [26.0, 0.0],
        "branch_points": [1, 0],
        "tips": [1, 0],
        "components": [2, 1],
        "loops": [1, 0],
        "begin_z_vox": [-1, 5],
        "begin_y_vox": [2, 6],
        "begin_x_vox": [0, 7],
        "end_z_vox": [4, 6],
        "end_y_vox": [10, 7],
        "end_x_vox": [5, 8],
        "largest_radius_nm": [7.0, 0.0],
    }
    for name, values in found.items():
        assert values.dtype == SUMMARY_TYPES[name]


def test_no_skeletons() -> None:
    found = summarise_skeletons(**columns({}), voxel_size_nm=SIZE)
    assert all(len(values) == 0 for values in found.values())


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(0, 2**16))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_as_the_plain_way(counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    skeletons = {}
    for number, count in enumerate(counts):
        edges = rng.integers(0, max(count, 1), (rng.integers(0, 12) if count else 0, 2))
        radii = np.where(rng.random(count) < 0.2, np.nan, rng.random(count))
        nodes = rng.normal(0, 50, (count, 3))
        skeletons[2**63 + number] = Skeleton("s", nodes, edges, radii)
    given_ = columns(skeletons)
    found = summarise_skeletons(**given_, voxel_size_nm=SIZE)
    for row, (segment, skeleton) in enumerate(skeletons.items()):
        assert {n: v[row] for n, v in found.items()} == reference(segment, skeleton)
    # Not contiguous, and of other types.
    given_["nodes"] = np.asfortranarray(given_["nodes"])
    given_["edges"] = np.repeat(given_["edges"], 2, axis=0)[::2].astype(np.int32)
    given_["radii_nm"] = np.repeat(given_["radii_nm"], 2)[::2]
    given_["node_count"] = given_["node_count"].astype(np.uint32)
    again = summarise_skeletons(**given_, voxel_size_nm=SIZE)
    assert all((again[name] == found[name]).all() for name in found)


def test_refusals() -> None:
    skeleton = Skeleton("s", np.zeros((3, 3)), np.array([[0, 1]]))
    good = columns({1: skeleton, 2: skeleton})
    for change, message in (
        ({"segment": good["segment"][:1]}, "1 segments, but 2 counts of nodes and 2 of edges"),
        ({"node_count": np.array([3, 2])}, "5 nodes and 2 edges, but there are 6 nodes"),
        ({"radii_nm": np.zeros(5)}, "5 radii"),
        ({"node_count": np.array([7, -1])}, "negative"),
        ({"edges": np.array([[0, 1], [4, 3]])}, r"edge 1, \[4, 3\], leaves its skeleton of 3"),
        ({"edges": np.array([[0, -1], [0, 1]])}, r"edge 0, \[0, -1\]"),
    ):
        with pytest.raises(ShapeError, match=message):
            summarise_skeletons(**{**good, **change}, voxel_size_nm=SIZE)
    nodes = good["nodes"].copy()
    nodes[4, 1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        summarise_skeletons(**{**good, "nodes": nodes}, voxel_size_nm=SIZE)
