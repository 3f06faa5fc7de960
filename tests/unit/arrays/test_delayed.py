"""Groups by hand: what merges, what is held back, what leaves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.arrays.agglomerate import agglomerate, fragment_to_segment, merge_histories
from pipeline.arrays.delayed import (
    GroupResult,
    RegionGraph,
    add_graphs,
    agglomerate_group,
    compose_lookup,
)
from pipeline.arrays.edges import EdgeTable
from pipeline.arrays.labels import SparseMap
from pipeline.errors import DtypeError, InputError, ShapeError

COLUMNS = ("u", "v", "affinity_sum", "face_count", "key_u", "key_v")


def table(*rows: tuple[int, int, int, int]) -> EdgeTable:
    return EdgeTable(*np.array(rows, np.uint64).reshape(-1, 4).T)


def graph(*rows: tuple[int, int, int, int, int, int]) -> RegionGraph:
    return RegionGraph(*np.array(rows, np.uint64).reshape(-1, 6).T)


def rows_of(found: RegionGraph) -> list[tuple[int, ...]]:
    """(u, v, sum, count, key_u, key_v)."""
    return list(zip(*(getattr(found, name).tolist() for name in COLUMNS), strict=True))


def group(edges: EdgeTable | RegionGraph, frozen: list[int], threshold: float) -> GroupResult:
    if isinstance(edges, EdgeTable):
        edges = RegionGraph.from_edges(edges)
    return agglomerate_group(edges, np.array(frozen, np.uint64), threshold)


def merged(result: GroupResult) -> list[tuple[int, int]]:
    return list(zip(result.history.kept.tolist(), result.history.absorbed.tolist(), strict=True))


def lookup(*pairs: tuple[int, int]) -> SparseMap:
    ids, targets = np.array(pairs, np.uint64).reshape(-1, 2).T
    return ids.copy(), targets.copy()


# --- One group


def test_a_frozen_end_freezes_the_other() -> None:
    # 2-3 is held back by 3; then 1-2 by 2, although both its rows are known. 4-5 is certain.
    edges = table((1, 2, 150, 1), (2, 3, 200, 1), (4, 5, 140, 1))
    result = group(edges, [3], 0.5)
    assert merged(result) == [(4, 5)]
    assert rows_of(result.residual) == [(1, 2, 150, 1, 1, 2), (2, 3, 200, 1, 2, 3)]


def test_what_comes_before_the_frozen_edge_is_merged() -> None:
    edges = table((1, 2, 201, 1), (2, 3, 200, 1))
    result = group(edges, [3], 0.5)
    assert merged(result) == [(1, 2)]
    assert rows_of(result.residual) == [(1, 3, 200, 1, 2, 3)]  # renamed; the key stays


def test_ties_with_the_frozen_edge_are_decided_by_key() -> None:
    first = group(table((1, 2, 200, 1), (2, 3, 200, 1)), [3], 0.5)
    assert merged(first) == [(1, 2)]
    second = group(table((1, 2, 200, 1), (2, 3, 200, 1)), [1], 0.5)
    assert merged(second) == []


def test_a_region_without_passing_edges_leaves_with_its_rows() -> None:
    # 1 and 2 may have rows elsewhere, 3 has not and does not pass.
    edges = table((1, 2, 10, 1), (1, 3, 20, 1), (2, 3, 30, 1))
    result = group(edges, [1, 2], 0.5)
    assert merged(result) == []
    assert rows_of(result.residual) == [(1, 2, 10, 1, 1, 2)]


def test_rows_between_two_held_components_move_up() -> None:
    # 1-2 and 3-4 pass, each with a frozen end; 2-4 fails but counts if 1 and 3 meet elsewhere.
    edges = table((1, 2, 200, 1), (3, 4, 200, 1), (2, 4, 10, 1), (2, 9, 10, 1))
    result = group(edges, [1, 3], 0.5)
    assert [row[:2] for row in rows_of(result.residual)] == [(1, 2), (2, 4), (3, 4)]


def test_rows_that_become_parallel_are_added_under_the_smallest_key() -> None:
    # 4-5 and 6-7 merge; then all is held back by 1, through the row 1-7 of the score 150.
    edges = table(
        (4, 5, 250, 1), (6, 7, 240, 1), (1, 7, 150, 1), (5, 6, 140, 1), (4, 7, 132, 1), (1, 4, 9, 1)
    )
    result = group(edges, [1], 0.5)
    assert merged(result) == [(4, 5), (6, 7)]
    assert rows_of(result.residual) == [
        (1, 4, 9, 1, 1, 4),
        (1, 6, 150, 1, 1, 7),
        (4, 6, 272, 2, 4, 7),
    ]


def test_keys_need_not_be_nodes_and_decide_ties() -> None:
    # 10-11 and 20-21 tie with 11-20; the keys are of fragments that were absorbed before.
    found = group(graph((10, 11, 200, 1, 50, 90), (11, 20, 200, 1, 30, 95)), [], 0.5)
    assert merged(found) == [(11, 20), (10, 11)]
    assert found.history.key_u.tolist() == [30, 50]
    assert found.history.key_v.tolist() == [95, 90]
    found = group(graph((10, 11, 200, 1, 30, 90), (11, 20, 200, 1, 30, 95)), [], 0.5)
    assert merged(found) == [(10, 11), (10, 20)]


def test_rows_that_fall_together_keep_the_smaller_of_two_foreign_keys() -> None:
    rows = graph((10, 11, 250, 1, 2, 3), (10, 12, 200, 1, 60, 70), (11, 12, 200, 1, 60, 65))
    history = group(rows, [], 0.5).history
    assert (history.key_u.tolist(), history.key_v.tolist()) == ([2, 60], [3, 65])


def test_frozen_ids_without_a_row_do_nothing() -> None:
    result = group(table((2, 4, 200, 1)), [1, 3, 2**64 - 1], 0.5)
    assert merged(result) == [(2, 4)]
    assert len(result.residual) == 0


def test_nothing_frozen_is_plain_agglomeration() -> None:
    edges = table((1, 2, 200, 1), (1, 3, 90, 1), (2, 3, 10, 1), (3, 4, 255, 1))
    result, whole = group(edges, [], 0.1), agglomerate(edges, 0.1)
    for field in dataclasses.fields(whole):
        np.testing.assert_array_equal(
            getattr(result.history, field.name), getattr(whole, field.name)
        )
    assert len(result.residual) == 0


def test_an_empty_group() -> None:
    result = group(EdgeTable.empty(), [5], 0.5)
    assert (len(result.history), len(result.residual)) == (0, 0)


def test_threshold_zero_holds_back_every_row_in_reach() -> None:
    edges = table((1, 2, 0, 1), (2, 3, 0, 1), (4, 5, 0, 1))
    result = group(edges, [1], 0.0)
    assert merged(result) == [(4, 5)]
    assert [row[:2] for row in rows_of(result.residual)] == [(1, 2), (2, 3)]


def test_two_blocks_and_their_parent_make_the_whole() -> None:
    """A contact of 3 and 4 lies in both blocks: 120 + 150 of 2 faces."""
    left = table((1, 2, 250, 1), (2, 3, 180, 1), (3, 4, 120, 1))
    right = table((3, 4, 150, 1), (4, 5, 190, 1), (5, 6, 200, 1))
    below = [group(left, [3, 4], 0.5), group(right, [3, 4], 0.5)]
    assert [merged(result) for result in below] == [[(1, 2)], [(5, 6)]]
    above = group(add_graphs([result.residual for result in below]), [], 0.5)
    assert merged(above) == [(4, 5), (1, 3), (1, 4)]
    assert above.history.affinity_sum.tolist() == [190, 180, 270]
    assert above.history.key_u.tolist() == [4, 2, 3]
    whole = merge_histories([*(result.history for result in below), above.history])
    assert whole.kept.tolist() == [1, 5, 4, 1, 1]
    first = fragment_to_segment(below[1].history, 0.5)
    ids, segments = compose_lookup(first, fragment_to_segment(above.history, 0.5))
    assert (ids.tolist(), segments.tolist()) == ([3, 4, 5, 6], [1, 1, 1, 1])


# --- Graphs


def test_graphs_add() -> None:
    first = graph((1, 2, 10, 1, 5, 6), (1, 3, 7, 2, 1, 3))
    second = graph((1, 2, 30, 2, 4, 9), (2, 3, 1, 1, 2, 3))
    third = graph((1, 2, 1, 1, 4, 8))
    expected = [(1, 2, 41, 4, 4, 8), (1, 3, 7, 2, 1, 3), (2, 3, 1, 1, 2, 3)]
    assert rows_of(add_graphs([first, second, third])) == expected
    assert rows_of(add_graphs(iter([third, second, first]))) == expected
    assert rows_of(add_graphs([add_graphs([third, first]), second])) == expected
    assert rows_of(first) == [(1, 2, 10, 1, 5, 6), (1, 3, 7, 2, 1, 3)]


def test_no_graphs_add_to_an_empty_one() -> None:
    assert len(add_graphs([])) == 0
    only = graph((1, 2, 3, 4, 5, 6))
    assert rows_of(add_graphs([RegionGraph.empty(), only, RegionGraph.empty()])) == rows_of(only)


def test_a_table_in_any_order_makes_a_graph() -> None:
    found = RegionGraph.from_edges(table((3, 4, 9, 1), (1, 2, 5, 1), (3, 4, 2, 1)))
    assert rows_of(found) == [(1, 2, 5, 1, 1, 2), (3, 4, 11, 2, 3, 4)]


def test_columns_that_cannot_be_written_are_taken() -> None:
    found = graph((1, 2, 200, 1, 1, 2), (2, 3, 150, 1, 2, 3))
    for name in COLUMNS:
        getattr(found, name).setflags(write=False)
    frozen = np.array([3], np.uint64)
    frozen.setflags(write=False)
    result = agglomerate_group(found, frozen, 0.5)
    assert rows_of(result.residual) == [(1, 3, 150, 1, 2, 3)]
    assert len(add_graphs([found, result.residual, found])) == 3


def test_graphs_that_are_not_canonical_are_refused() -> None:
    for rows in (
        [(2, 3, 1, 1, 2, 3), (1, 2, 1, 1, 1, 2)],
        [(1, 3, 1, 1, 1, 3), (1, 2, 1, 1, 1, 2)],
        [(1, 2, 1, 1, 1, 2), (1, 2, 1, 1, 1, 2)],
        [(2, 2, 1, 1, 1, 2)],
        [(0, 2, 1, 1, 1, 2)],
    ):
        with pytest.raises(InputError, match="sorted"):
            graph(*rows)
    one = np.ones(1, np.uint64)
    with pytest.raises(ShapeError, match="key_v"):
        RegionGraph(one, one + one, one, one, one, np.ones(2, np.uint64))


def test_bad_input_is_refused() -> None:
    rows = RegionGraph.from_edges(table((1, 2, 200, 1)))
    nobody = np.zeros(0, np.uint64)
    for frozen in ([2, 1], [1, 1]):
        with pytest.raises(InputError, match="increase"):
            agglomerate_group(rows, np.array(frozen, np.uint64), 0.5)
    with pytest.raises(DtypeError, match="int64"):
        agglomerate_group(rows, np.array([1]), 0.5)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        agglomerate_group(rows, nobody, 1.5)
    with pytest.raises(InputError, match="uint16"):
        agglomerate_group(RegionGraph.from_edges(table((1, 2, 300, 1))), nobody, 0.5)


def test_input_is_not_changed() -> None:
    rows = graph((1, 2, 200, 1, 1, 2), (1, 3, 90, 1, 1, 3), (2, 3, 10, 1, 2, 3))
    before = rows_of(rows)
    frozen = np.array([3], np.uint64)
    agglomerate_group(rows, frozen, 0.1)
    add_graphs([rows, rows])
    assert rows_of(rows) == before
    assert frozen.tolist() == [3]


# --- Lookups


def test_lookups_compose() -> None:
    first = lookup((3, 2), (5, 4), (7, 4))
    then = lookup((2, 1), (3, 9), (6, 4))
    # 3 is 2 and then 1; the row of 3 in `then` is of no region that is left.
    ids, targets = compose_lookup(first, then)
    assert (ids.tolist(), targets.tolist()) == ([2, 3, 5, 6, 7], [1, 1, 4, 4, 4])


def test_rows_that_keep_their_id_are_left_out() -> None:
    ids, targets = compose_lookup(lookup((3, 2), (4, 4)), lookup((2, 3), (8, 8), (9, 1)))
    assert (ids.tolist(), targets.tolist()) == ([2, 9], [3, 1])


def test_lookups_compose_with_nothing() -> None:
    some, nothing = lookup((2, 1), (2**64 - 1, 2**63)), lookup()
    for pair in ((some, nothing), (nothing, some)):
        assert [column.tolist() for column in compose_lookup(*pair)] == [
            [2, 2**64 - 1],
            [1, 2**63],
        ]
    assert [column.size for column in compose_lookup(nothing, nothing)] == [0, 0]


def test_dropped_segments_stay_dropped() -> None:
    ids, targets = compose_lookup(lookup((3, 2), (5, 0)), lookup((2, 0)))
    assert (ids.tolist(), targets.tolist()) == ([2, 3, 5], [0, 0, 0])


def test_what_is_no_lookup_is_refused() -> None:
    with pytest.raises(InputError, match="increase"):
        compose_lookup(lookup((3, 2), (1, 1)), lookup())
    with pytest.raises(InputError, match="increase"):
        compose_lookup(lookup(), lookup((3, 2), (1, 1)))
