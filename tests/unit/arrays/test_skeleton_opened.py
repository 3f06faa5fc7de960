"""Loops opened: a forest with the same nodes, branches whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, dijkstra

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_graph import neighbours_of
from pipeline.arrays.skeleton_opened import open_loops
from pipeline.errors import InputError
from pipeline.storage.swc import SwcOptions, read_skeletons, write_swc

SIZE = (4.0, 2.0, 1.0)


def skeleton(nodes: list, edges: list, radii: list | None = None) -> Skeleton:
    return Skeleton("s", np.array(nodes, float), np.array(edges, np.int64), np.array(radii or []))


def undirected(edges: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(sorted(edge)) for edge in edges.tolist()}


def test_neighbours_by_hand() -> None:
    edges = np.array([[2, 0], [0, 1], [1, 0], [3, 3], [0, 2], [1, 2]])
    starts, neighbours = neighbours_of(5, edges)
    assert starts.tolist() == [0, 2, 4, 6, 6, 6]
    assert neighbours.tolist() == [1, 2, 0, 2, 0, 1]


def test_a_tree_is_only_rooted_anew() -> None:
    given_ = skeleton([[0, 0, i] for i in range(4)], [[1, 0], [2, 1], [3, 2]], [1, 1, 5, 5])
    found, dropped = open_loops(given_, SIZE)
    assert dropped == 0
    assert found.edges.tolist() == [[0, 1], [1, 2], [3, 2]]
    assert found.nodes.tolist() == given_.nodes.tolist()
    assert found.radii_nm.tolist() == [1, 1, 5, 5]


def test_the_loop_stays_one_branch_beside_the_other_way() -> None:
    """From node 0 two ways to node 5: over 1, 2 (short) and over 3, 4; 6 lies behind it.

    The two fronts meet between 4 and 5, and 5 is the end further from the root.
    """
    nodes = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 2, 1], [0, 2, 2], [0, 0, 3], [0, 0, 4]]
    edges = [[0, 1], [1, 2], [2, 5], [0, 3], [3, 4], [4, 5], [5, 6]]
    radii = [9, 1, 1, 1, 1, 1, 1]
    found, dropped = open_loops(skeleton(nodes, edges, radii), (1, 1, 1))
    assert dropped == 1
    assert found.edges.tolist() == [[1, 0], [2, 1], [3, 0], [4, 3], [5, 2], [6, 5]]


def test_the_stretch_is_cut_at_its_far_end_not_where_the_fronts_meet() -> None:
    """A long detour of six nodes between 0 and 1: the fronts meet in its middle."""
    nodes = [[0, 0, 0], [0, 0, 1], *([0, 10, i] for i in range(6)), [0, 0, -1], [0, 0, 2]]
    detour = [[0, 2], [2, 3], [3, 4], [4, 5], [5, 6], [6, 7], [7, 1]]
    edges = [[0, 1], *detour, [8, 0], [1, 9]]
    found, dropped = open_loops(skeleton(nodes, edges, [9, *[1] * 9]), (1, 1, 1))
    assert dropped == 1
    assert undirected(np.array(edges)) - undirected(found.edges) == {(1, 7)}


def test_a_ring_and_a_loop_on_a_stalk() -> None:
    ring = [[0, 1], [1, 2], [2, 3], [3, 0]]
    square = [[0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 1, 0]]
    found, dropped = open_loops(skeleton(square, ring, [2, 2, 2, 3]), (1, 1, 1))
    assert (dropped, undirected(np.array(ring)) - undirected(found.edges)) == (1, {(2, 3)})
    assert (np.setdiff1d(np.arange(4), found.edges[:, 0])).tolist() == [3]
    stalk = skeleton([*square, [0, 0, -5]], [*ring, [0, 4]], [1, 1, 1, 1, 7])
    found, dropped = open_loops(stalk, (1, 1, 1))
    assert dropped == 1
    assert found.edges.tolist() == [[0, 4], [1, 0], [2, 1], [3, 2]]


def test_repeated_edges_and_nodes_on_one_place() -> None:
    found, dropped = open_loops(skeleton([[0, 0, 0]] * 3, [[0, 1], [1, 0], [1, 1], [1, 2]]), SIZE)
    assert (dropped, found.edges.tolist()) == (2, [[1, 0], [2, 1]])
    triangle = skeleton([[0, 0, 0]] * 3, [[0, 1], [1, 2], [2, 0]], [np.nan, 0, 1])
    found, dropped = open_loops(triangle, SIZE)
    assert dropped == 1
    assert len(found.edges) == 2
    assert 2 not in found.edges[:, 0]


def test_without_nodes_and_not_finite() -> None:
    found, dropped = open_loops(skeleton([], []), SIZE)
    assert (len(found.nodes), len(found.edges), dropped) == (0, 0, 0)
    with pytest.raises(InputError, match="not finite"):
        open_loops(skeleton([[0, np.nan, 0]], []), SIZE)


graphs = st.integers(1, 14).flatmap(
    lambda count: st.tuples(
        st.just(count),
        st.lists(st.tuples(*[st.integers(0, count - 1)] * 2), max_size=24),
        st.integers(0, 2**16),
    )
)


@given(graphs)
@settings(deadline=None, derandomize=True, max_examples=150)
def test_a_spanning_forest_of_shortest_ways(drawn: tuple) -> None:
    count, edges, seed = drawn
    rng = np.random.default_rng(seed)
    given_ = skeleton(
        rng.integers(0, 6, (count, 3)).tolist(), edges, rng.integers(0, 4, count).tolist()
    )
    found, dropped = open_loops(given_, SIZE)
    ones = np.ones(len(given_.edges))
    graph = coo_array((ones, tuple(given_.edges.T)), (count, count)).tocsr()
    trees, part = connected_components(graph, directed=False)
    assert len(found.edges) == count - trees
    assert dropped == len(edges) - count + trees
    assert undirected(found.edges) <= undirected(given_.edges)
    assert len(np.unique(found.edges[:, 0])) == len(found.edges)
    assert (np.diff(found.edges[:, 0]) > 0).all()
    opened = coo_array((np.ones(len(found.edges)), tuple(found.edges.T)), (count, count)).tocsr()
    assert connected_components(opened, directed=False)[0] == trees
    for root in np.setdiff1d(np.arange(count), found.edges[:, 0]):
        inside = np.flatnonzero(part == part[root])
        assert root == inside[np.argmax(given_.radii_nm[inside])]
    # The order of the edges, and which end comes first, do not matter.
    shuffled = given_.edges[rng.permutation(len(edges))]
    turned = np.where(rng.random(len(edges))[:, None] < 0.5, shuffled, shuffled[:, ::-1])
    again, _ = open_loops(Skeleton("s", given_.nodes, turned, given_.radii_nm), SIZE)
    assert again.edges.tolist() == found.edges.tolist()


@given(graphs)
@settings(deadline=None, derandomize=True, max_examples=150)
def test_nodes_at_which_edges_meet_keep_their_shortest_way(drawn: tuple) -> None:
    count, edges, seed = drawn
    place = np.random.default_rng(seed).random((count, 3)) * 10
    edges = sorted({tuple(sorted(e)) for e in edges if e[0] != e[1]})
    given_ = skeleton(place.tolist(), [list(e) for e in edges])
    found, _ = open_loops(given_, SIZE)

    def ways(pairs: np.ndarray) -> np.ndarray:
        lengths = Skeleton("s", place, pairs).edge_lengths_nm(SIZE)
        graph = coo_array((lengths, tuple(pairs.T)), (count, count)).tocsr()
        return np.asarray(dijkstra(graph, directed=False))

    roots = np.setdiff1d(np.arange(count), found.edges[:, 0])
    meeting = np.bincount(given_.edges.reshape(-1), minlength=count) != 2
    before, after = ways(given_.edges)[roots][:, meeting], ways(found.edges)[roots][:, meeting]
    np.testing.assert_allclose(after, before, rtol=1e-12)


def test_what_an_swc_then_holds(tmp_path: Path) -> None:
    nodes = [[0, 0, 0], [0, 0, 4], [0, 4, 4], [0, 4, 0], [8, 8, 8]]
    given_ = skeleton(nodes, [[0, 1], [1, 2], [2, 3], [3, 0]], [1, 1, 1, 2, 1])
    with pytest.raises(InputError, match="cycle"):
        write_swc(tmp_path / "7.swc", given_, voxel_size_nm=SIZE, unit="nm")
    opened, dropped = open_loops(given_, SIZE)
    header = (f"loops opened: {dropped}",)
    write_swc(tmp_path / "7.swc", opened, voxel_size_nm=SIZE, unit="nm", header=header)
    assert "# loops opened: 1\n" in (tmp_path / "7.swc").read_text()
    (found,) = read_skeletons(tmp_path / "7.swc", SwcOptions(voxel_size_nm=SIZE, unit="nm"))
    assert (len(found.nodes), len(found.edges)) == (5, 3)
