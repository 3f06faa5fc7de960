"""Runs of equal label on one skeleton, against sets of nodes in plain Python."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import build_forest
from pipeline.arrays.skeleton_runs import RunTable, find_merges, gather_runs

VOXEL = (40.0, 9.0, 7.3)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(0, 60))
def test_runs_are_connected_sets_with_exact_lengths(seed, size):
    random = np.random.default_rng(seed)
    parents = [-1 if random.random() < 0.1 else int(random.integers(i)) for i in range(1, size)]
    edges = np.array([(i, p) for i, p in enumerate(parents, start=1) if p >= 0], int).reshape(-1, 2)
    scale = 10.0 ** random.integers(-6, 7, (size, 1))
    forest = build_forest(Skeleton("a", random.normal(size=(size, 3)) * scale, edges), VOXEL)
    labels = random.choice(np.array([0, 1, 1, 2**64 - 1], np.uint64), size)
    piece, runs = gather_runs(labels, forest)

    above = [(p, int(forest.up[p])) for p in range(size) if forest.up[p] >= 0]
    inside = [(p, q) for p, q in above if labels[p] == labels[q] != 0]
    sets = {p: {p} for p in range(size) if labels[p]}
    for p, q in inside:
        sets[q] |= sets[p]
        for member in sets[p]:
            sets[member] = sets[q]
    pieces = {id(found): found for found in sets.values()}.values()
    assert len(runs.piece_label) == len(pieces)
    for members in pieces:
        (number,) = {int(piece[p]) for p in members}
        lengths = [forest.length_nm[p] for p, _ in inside if p in members]
        assert runs.piece_label[number] in {labels[p] for p in members}
        assert runs.piece_edges[number] == len(lengths) == len(members) - 1
        assert runs.piece_nm[number] == math.fsum(lengths)
    assert all((piece[p] < 0) == (labels[p] == 0) for p in range(size))
    assert runs.omit == sum(0 in (labels[p], labels[q]) for p, q in above)
    assert runs.split == len(above) - runs.omit - len(inside)
    trees = {int(forest.tree[p]) for p in sets}
    assert runs.splits == len(pieces) - len(trees)

    assert runs.labels.tolist() == sorted({int(labels[p]) for p in sets})
    for label, nodes, length in zip(
        runs.labels, runs.label_nodes, runs.label_nm.tolist(), strict=True
    ):
        assert nodes == (labels == label).sum()
        assert length == math.fsum(runs.piece_nm[runs.piece_label == label].tolist())


def test_a_table_keeps_rows_by_skeleton_and_by_label():
    nodes = np.zeros((3, 3))
    nodes[:, 2] = np.arange(3)
    forests = [
        build_forest(Skeleton(name, nodes, np.array([[1, 0], [2, 1]])), (1.0, 1.0, 8.0))
        for name in "ab"
    ]
    rows = [np.array(values, np.uint64) for values in ([5, 5, 2], [2, 0, 5])]
    table = RunTable.of([gather_runs(r, f)[1] for r, f in zip(rows, forests, strict=True)])
    assert table.piece_skeleton.tolist() == [0, 0, 1, 1]
    assert table.piece_label.tolist() == [5, 2, 2, 5]
    assert table.piece_nm.tolist() == [8.0, 0.0, 0.0, 0.0]
    assert table.labels.tolist() == [2, 2, 5, 5]
    assert table.label_skeleton.tolist() == [0, 1, 0, 1]
    assert table.label_nodes.tolist() == [1, 1, 2, 1]
    assert (table.omit.tolist(), table.split.tolist()) == ([0, 2], [1, 0])
    assert (table.splits.tolist(), table.skeletons) == ([1, 1], 2)
    assert find_merges(table, 1, 0.0).labels.tolist() == [2, 5]
    assert find_merges(table, 2, 0.0).labels.tolist() == []
