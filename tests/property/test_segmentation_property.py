"""Blocks do not show: fragments, edges and agglomeration against slow whole-volume references."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from references import Rows, reference_edges, reference_fragments, reference_merges
from strategies import affinity_volumes, block_shapes, edge_tables, thresholds

from pipeline.arrays.agglomerate import agglomerate, fragment_to_segment
from pipeline.arrays.edges import EdgeTable, cross_face_edges, map_edges, sum_edges
from pipeline.arrays.fragments import BlockFragments, extract_fragments
from pipeline.arrays.relabel import apply_lookup, restrict_lookup, sum_counts
from pipeline.arrays.stitch import OpenFaces, join_boxes, joined_pairs, resolve
from pipeline.geometry import BlockGrid, Roi, Triple

QUICK = settings(deadline=None, max_examples=100, derandomize=True)


# --- The blockwise way


def rows_of(table: EdgeTable) -> Rows:
    columns = (table.u, table.v, table.affinity_sum, table.face_count)
    return {(int(u), int(v)): (int(s), int(c)) for u, v, s, c in zip(*columns, strict=True)}


def cut(affinities: NDArray, roi: Roi) -> NDArray:
    volume = affinities.shape[1:]
    ends = (min(e + 1, n) for e, n in zip(roi.end, volume, strict=True))
    slices = tuple(slice(o, e) for o, e in zip(roi.offset, ends, strict=True))
    return affinities[(slice(None), *slices)]


def extract(affinities: NDArray, roi: Roi, low: int, high: int) -> BlockFragments:
    volume = tuple(affinities.shape[1:])
    return extract_fragments(
        cut(affinities, roi),
        origin=roi.offset,
        write_shape=roi.shape,
        volume_shape=volume,
        low=low,
        high=high,
    )


def blockwise(
    affinities: NDArray, block_shape: Triple, low: int, high: int
) -> tuple[NDArray[np.uint64], EdgeTable, Counter]:
    volume = affinities.shape[1:]
    grid = BlockGrid.over(volume, block_shape)
    blocks = {block.position: extract(affinities, block.write, low, high) for block in grid}
    crossings = []
    for position, block in blocks.items():
        for axis in range(3):
            after = tuple(p + (d == axis) for d, p in enumerate(position))
            assert (block.faces[axis, 1] is None) == (after not in blocks)
            assert (block.faces[axis, 0] is None) == (position[axis] == 0)
            if after in blocks:
                crossings.append((blocks[after].faces[axis, 0], block.faces[axis, 1]))
    pairs = [joined_pairs(lower, upper) for lower, upper in crossings]
    ids, roots = resolve(np.concatenate([np.zeros((0, 2), np.uint64), *pairs]))
    labels = np.zeros(volume, np.uint64)
    tables, counted = [], []
    for block in grid:
        found = blocks[block.position]
        some = restrict_lookup(found.ids, ids, roots)
        labels[block.write.slices] = apply_lookup(found.labels, *some)
        tables.append(map_edges(found.edges, *some))
        counted.append((apply_lookup(found.ids, *some), found.voxels))
    tables += [map_edges(cross_face_edges(*crossing), ids, roots) for crossing in crossings]
    totals = sum_counts(*(np.concatenate(column) for column in zip(*counted, strict=True)))
    sizes = Counter(dict(zip(*(column.tolist() for column in totals), strict=True)))
    return labels, sum_edges(tables), sizes


# --- Properties


@QUICK
@given(st.data())
def test_whole_volume_equals_the_reference(data: st.DataObject) -> None:
    affinities = data.draw(affinity_volumes(max_side=6))
    low, high = data.draw(thresholds(affinities))
    whole = extract(affinities, Roi((0, 0, 0), affinities.shape[1:]), low, high)
    expected = reference_fragments(affinities, low, high)
    np.testing.assert_array_equal(whole.labels, expected)
    assert rows_of(whole.edges) == reference_edges(affinities, expected)
    assert all(record is None for record in whole.faces.values())
    ids, voxels = np.unique(expected[expected > 0], return_counts=True)
    np.testing.assert_array_equal(whole.ids, ids)
    np.testing.assert_array_equal(whole.voxels, voxels)


@QUICK
@given(st.data())
def test_blocks_do_not_show(data: st.DataObject) -> None:
    affinities = data.draw(affinity_volumes(max_side=6))
    low, high = data.draw(thresholds(affinities))
    shape = affinities.shape[1:]
    labels, table, sizes = blockwise(affinities, data.draw(block_shapes(shape)), low, high)
    whole = extract(affinities, Roi((0, 0, 0), shape), low, high)
    np.testing.assert_array_equal(labels, reference_fragments(affinities, low, high))
    np.testing.assert_array_equal(labels, whole.labels)
    for column in ("u", "v", "affinity_sum", "face_count"):
        np.testing.assert_array_equal(getattr(table, column), getattr(whole.edges, column))
    assert sizes == Counter(labels[labels > 0].tolist())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("block", [(9, 40, 70), (3, 20, 35), (4, 17, 33), (1, 1, 70), (9, 40, 1)])
def test_blocks_do_not_show_where_rows_are_longer_than_a_run(dtype: type, block: Triple) -> None:
    """Rows of 70 voxels cross the runs that sparse blocks are skipped by."""
    rng = np.random.default_rng(3)
    affinities = rng.integers(0, 60, (3, 9, 40, 70)).astype(dtype)
    bright = rng.random(affinities.shape) < 0.02
    affinities[bright] = rng.integers(60, 256, int(bright.sum()))
    labels, table, _ = blockwise(affinities, block, low=100, high=200)
    expected = reference_fragments(affinities, 100, 200)
    np.testing.assert_array_equal(labels, expected)
    assert rows_of(table) == reference_edges(affinities, expected)
    assert 0 < (labels > 0).mean() < 0.2


def together(maps):
    """One map from several: each is a set of pairs itself."""
    return resolve(np.concatenate([np.stack(part, axis=1) for part in maps]))


@QUICK
@given(st.data())
def test_partial_stitching_equals_stitching_at_once(data: st.DataObject) -> None:
    ids = st.sampled_from([1, 2, 3, 5, 8, 13, 2**40, 2**63, 2**64 - 1])
    pairs = np.array(data.draw(st.lists(st.tuples(ids, ids), max_size=15)), np.uint64).reshape(
        -1, 2
    )
    at = sorted(data.draw(st.lists(st.integers(0, len(pairs)), max_size=3)))
    partial = [resolve(part) for part in np.split(pairs, at)]
    for got, expected in zip(together(partial), resolve(pairs), strict=True):
        np.testing.assert_array_equal(got, expected)


def merges_of(history) -> list[tuple[int, ...]]:
    columns = ("affinity_sum", "face_count", "key_u", "key_v", "kept", "absorbed")
    return list(zip(*(getattr(history, name).tolist() for name in columns), strict=True))


@QUICK
@given(edge_tables(), st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]))
def test_agglomeration_equals_the_reference(table: EdgeTable, threshold: float) -> None:
    history = agglomerate(table, threshold)
    assert merges_of(history) == reference_merges(rows_of(table), threshold, 255)


@QUICK
@given(edge_tables(scale=65535), st.integers(0, 2**32 - 1))
def test_the_order_of_rows_does_not_matter(table: EdgeTable, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(table))
    shuffled = EdgeTable(
        table.u[order], table.v[order], table.affinity_sum[order], table.face_count[order]
    )
    first, second = agglomerate(table, 0.3, 65535), agglomerate(shuffled, 0.3, 65535)
    assert merges_of(first) == merges_of(second)
    assert merges_of(first) == reference_merges(rows_of(table), 0.3, 65535)


@QUICK
@given(edge_tables(), st.lists(st.floats(0.1, 1.0), min_size=1, max_size=4))
def test_one_history_serves_every_threshold(table: EdgeTable, levels: list[float]) -> None:
    history = agglomerate(table, 0.1)
    exact = (table.affinity_sum / table.face_count / 255).tolist()  # thresholds that just pass
    for threshold in [0.1, *levels, *(score for score in exact[:3] if score >= 0.1)]:
        again = agglomerate(table, threshold)
        assert merges_of(again) == merges_of(history)[: len(again)]
        segment: dict[int, int] = {}
        for *_, kept, absorbed in merges_of(again):
            segment = {f: kept if s == absorbed else s for f, s in segment.items()}
            segment[absorbed] = kept
        ids, segments = fragment_to_segment(history, threshold)
        assert ids.tolist() == sorted(segment)
        assert dict(zip(ids.tolist(), segments.tolist(), strict=True)) == segment


@QUICK
@given(st.lists(edge_tables(max_nodes=5), max_size=4))
def test_edge_tables_add_in_any_grouping(tables: list[EdgeTable]) -> None:
    expected: dict[tuple[int, int], tuple[int, int]] = {}
    for table in tables:
        for pair, (total, count) in rows_of(table).items():
            before = expected.get(pair, (0, 0))
            expected[pair] = (before[0] + total, before[1] + count)
    together = sum_edges(tables)
    assert list(rows_of(together).items()) == sorted(expected.items())
    halves = sum_edges([sum_edges(tables[1:]), sum_edges(tables[:1])])
    assert list(rows_of(halves).items()) == sorted(expected.items())


def open_faces(blocks: dict[Triple, BlockFragments], position: Triple) -> OpenFaces:
    """The open faces of one block, from its faces and those that meet them."""
    pairs, uppers = [], []
    for axis in range(3):
        before = blocks.get(tuple(p - (d == axis) for d, p in enumerate(position)))
        lower, upper = blocks[position].faces[axis, 0], blocks[position].faces[axis, 1]
        known = before is not None and lower is not None
        pairs.append(
            joined_pairs(lower, before.faces[axis, 1]) if known else np.zeros((0, 2), np.uint64)
        )
        labels = np.unique(upper.labels) if upper is not None else np.zeros(0, np.uint64)
        labels = labels[labels > 0]
        uppers.append(np.stack([labels, labels], axis=1))
    return OpenFaces(tuple(pairs), tuple(uppers))


@QUICK
@given(st.data())
def test_stitching_as_a_tree_equals_stitching_at_once(data: st.DataObject) -> None:
    affinities = data.draw(affinity_volumes(max_side=6))
    low, high = data.draw(thresholds(affinities))
    grid = BlockGrid.over(affinities.shape[1:], data.draw(block_shapes(affinities.shape[1:])))
    fan = data.draw(st.integers(2, 3))
    blocks = {block.position: extract(affinities, block.write, low, high) for block in grid}
    level = {position: open_faces(blocks, position) for position in blocks}
    at_once = resolve(np.concatenate([pairs for box in level.values() for pairs in box.pairs]))
    merged = []
    while True:
        groups: dict[Triple, dict[Triple, OpenFaces]] = defaultdict(dict)
        for position, box in level.items():
            groups[tuple(p // fan for p in position)][position] = box
        joined = {position: join_boxes(boxes) for position, boxes in groups.items()}
        merged += [own for own, _ in joined.values()]
        level = {position: rest for position, (_, rest) in joined.items()}
        if len(level) == 1:
            break
    for got, expected in zip(together(merged), at_once, strict=True):
        np.testing.assert_array_equal(got, expected)
    (root,) = level.values()
    assert not len(root.roots), "nothing is open at the border of the volume"
