"""The rows of the table of sites: splits and omissions of a skeleton, merges of all of them.

What the columns hold is said at `pipeline.arrays.error_sites.Sites`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.closest_neurons import Numbers, spanning_pairs
from pipeline.arrays.error_site_kernels import (
    MERGE_SITE,
    OMISSION_SITE,
    SPLIT_SITE,
    background_stretches,
    find_ascending,
    nearest_labelled,
    path_middles,
    take_found,
)
from pipeline.arrays.exact_sums import sum_groups
from pipeline.arrays.metrics import MERGED, Scores
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import LENGTH_QUANTUM_NM, Floats, Forest, Integers, Labels
from pipeline.threads import map_threads

VoxelSize = tuple[float, float, float]
Columns = dict[str, NDArray]


def name_ranks(names: Sequence[str]) -> Integers:
    """(S,) the place of each name among all; names are distinct."""
    ranks = np.empty(len(names), np.int64)
    ranks[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return ranks


@dataclass(frozen=True, eq=False)
class Walk:
    """A skeleton with errors, by position of its forest.

    Attributes:
        number: of the skeleton, as given.
        forest: of the skeleton.
        nodes: (N, 3) z, y, x in voxels.
        labels: (N,) after repair.
        length: (N,) of the edge to the parent, multiples of the quantum.
        piece: (N,) component, -1 on background.
        piece_nm: per component its length.
    """

    number: int
    forest: Forest
    nodes: Floats
    labels: Labels
    length: Floats
    piece: Integers
    piece_nm: Floats


def walk_of(number: int, skeleton: Skeleton, forest: Forest, scores: Scores) -> Walk:
    """Bring what the scores say of a skeleton into the order of its forest."""
    labels = scores.node_labels[number][forest.order]
    piece = scores.components[number][forest.order]
    count = int(piece.max(initial=-1)) + 1
    inside = np.flatnonzero((forest.up >= 0) & (piece >= 0))
    inside = inside[piece[inside] == piece[forest.up[inside]]]
    return Walk(
        number,
        forest,
        np.ascontiguousarray(skeleton.nodes[forest.order]),
        labels,
        np.rint(forest.length_nm / LENGTH_QUANTUM_NM) * LENGTH_QUANTUM_NM,
        piece,
        sum_groups(forest.length_nm[inside], piece[inside], count),
    )


def _comes_after(
    labels_a: Labels, nodes_a: Floats, labels_b: Labels, nodes_b: Floats
) -> NDArray[np.bool_]:
    """Row by row, whether a comes after b: by label, then z, y, x."""
    after = np.zeros(len(labels_a), np.bool_)
    equal = np.ones(len(labels_a), np.bool_)
    for a, b in ((labels_a, labels_b), *zip(nodes_a.T, nodes_b.T, strict=True)):
        after |= equal & (a > b)
        equal &= a == b
    return after


def split_rows(walk: Walk) -> Columns:
    """An edge between the cells of two labelled nodes is a split, unless it lies in a component."""
    up, labels, nodes = walk.forest.up, walk.labels, walk.nodes
    source, distance, toward, between = nearest_labelled(labels, nodes, up, walk.length)
    child = np.flatnonzero((up >= 0) & (source >= 0))
    parent = up[child]
    # Both are labelled, of one component, or two cells meet.
    apart = (source[child] != source[parent]) & (
        (walk.piece[child] < 0) | (walk.piece[child] != walk.piece[parent])
    )
    child, parent = child[apart], parent[apart]
    gap = distance[child] + walk.length[child] + distance[parent]
    ends = source[child], source[parent]
    turned = _comes_after(labels[ends[0]], nodes[ends[0]], labels[ends[1]], nodes[ends[1]])
    first, second = np.where(turned, parent, child), np.where(turned, child, parent)
    a, b = source[first], source[second]
    before, after, share = path_middles(first, second, gap, distance, toward)
    share = share[:, None]
    direct = (labels[child] != 0) & (labels[parent] != 0)
    cable_a, cable_b = walk.piece_nm[walk.piece[a]], walk.piece_nm[walk.piece[b]]
    return _with_ends(walk, a, b) | {
        "kind": np.full(len(a), SPLIT_SITE, np.uint8),
        "node": np.full(len(a), -1, np.int64),
        "edge": np.where(direct, walk.forest.edge[child], -1),
        "position_vox": (1 - share) * nodes[before] + share * nodes[after],
        "gap_nm": np.where(direct, walk.forest.length_nm[child], gap),
        "background_nodes": between[first] + between[second],
        "labelled_ends": np.full(len(a), 2, np.int64),
        "cable_nm": np.minimum(cable_a, cable_b),
    }


def _with_ends(walk: Walk, a: Integers, b: Integers) -> Columns:
    """The columns that follow from the positions of the ends; -1 where there is none."""
    columns: Columns = {name: np.full(len(a), walk.number) for name in ("neuron_a", "neuron_b")}
    for name, end in (("a", a), ("b", b)):
        none = end < 0
        at = np.maximum(end, 0)
        columns[f"label_{name}"] = np.where(none, np.uint64(0), walk.labels[at])
        columns[f"node_{name}"] = np.where(none, -1, walk.forest.order[at])
        columns[f"end_{name}_vox"] = walk.nodes[at]
        columns[f"cable_{name}_nm"] = np.zeros(len(a))
        columns[f"cable_{name}_nm"][~none] = walk.piece_nm[walk.piece[end[~none]]]
    return columns


def omission_rows(walk: Walk) -> Columns:
    """A row for each stretch of background, with the length of the edges that have an end in it."""
    up, labels, nodes = walk.forest.up, walk.labels, walk.nodes
    stretch, middle = background_stretches(labels, nodes, up, walk.length)
    count = len(middle)
    child = np.flatnonzero(up >= 0)
    child = child[(stretch[child] >= 0) | (stretch[up[child]] >= 0)]
    # An edge with an end in a stretch has the other in the same one, or on a label.
    of_edge = np.maximum(stretch[child], stretch[up[child]])
    border = (stretch[child] < 0) | (stretch[up[child]] < 0)
    beside = np.where(stretch[child] < 0, child, up[child])[border]
    a, b, ends = _two_ends(walk, of_edge[border], beside, count)
    columns = _with_ends(walk, a, b)
    for name, end in (("end_a_vox", a), ("end_b_vox", b)):
        columns[name] = np.where((end < 0)[:, None], nodes[middle], columns[name])
    return columns | {
        "kind": np.full(count, OMISSION_SITE, np.uint8),
        "node": walk.forest.order[middle],
        "edge": np.full(count, -1, np.int64),
        "position_vox": nodes[middle],
        "gap_nm": np.zeros(count),
        "background_nodes": np.bincount(stretch[stretch >= 0], minlength=count),
        "labelled_ends": ends,
        "cable_nm": sum_groups(walk.forest.length_nm[child], of_edge, count),
    }


def _two_ends(
    walk: Walk, stretch: Integers, beside: Integers, count: int
) -> tuple[Integers, Integers, Integers]:
    """Of the labelled positions beside each stretch those of the longest components, -1 for none.

    Args:
        walk: the skeleton.
        stretch: per labelled end.
        beside: its position.
        count: number of stretches.

    Returns:
        Per stretch its ends a and b, and how many labelled ends it has.
    """
    z, y, x = walk.nodes[beside].T
    long_first = -walk.piece_nm[walk.piece[beside]]
    order = np.lexsort((x, y, z, walk.labels[beside], long_first, stretch))
    beside = np.append(beside[order], [-1, -1])
    ends = np.bincount(stretch, minlength=count)
    start = np.cumsum(ends) - ends
    a = np.where(ends > 0, beside[start], -1)
    b = np.where(ends > 1, beside[start + 1], -1)
    turned = (b >= 0) & _comes_after(walk.labels[a], walk.nodes[a], walk.labels[b], walk.nodes[b])
    return np.where(turned, b, a), np.where(turned, a, b), ends


def merge_rows(
    skeletons: Sequence[Skeleton],
    forests: Sequence[Forest],
    scores: Scores,
    voxel_size_nm: VoxelSize,
) -> Columns:
    """A row for each two neurons that are neighbours in a minimum spanning tree of a label."""
    merges = scores.merges
    found = _merged_nodes(skeletons, forests, scores, voxel_size_nm)
    row, node, neuron = found.row, found.node, found.neuron
    ranks = name_ranks([s.name for s in skeletons])
    label = merges.label_index.astype(np.int32)[row]
    a, b = spanning_pairs(found.points_nm, neuron, label, ranks, len(merges.labels))
    turned = ranks[neuron[a]] > ranks[neuron[b]]
    a, b = np.where(turned, b, a), np.where(turned, a, b)
    gap_nm = np.sqrt(((found.points_nm[a] - found.points_nm[b]) ** 2).sum(axis=1))
    end_a, end_b = (_places(skeletons, neuron[end], node[end]) for end in (a, b))
    return {
        "kind": np.full(len(a), MERGE_SITE, np.uint8),
        "neuron_a": neuron[a].astype(np.int64),
        "neuron_b": neuron[b].astype(np.int64),
        "label_a": merges.labels[label[a]],
        "label_b": merges.labels[label[a]],
        "node_a": node[a].astype(np.int64),
        "node_b": node[b].astype(np.int64),
        "node": np.full(len(a), -1, np.int64),
        "edge": np.full(len(a), -1, np.int64),
        "position_vox": (end_a + end_b) / 2,
        "end_a_vox": end_a,
        "end_b_vox": end_b,
        "gap_nm": gap_nm,
        "background_nodes": np.zeros(len(a), np.int64),
        "labelled_ends": np.full(len(a), 2, np.int64),
        "cable_a_nm": found.cable_nm[row[a]],
        "cable_b_nm": found.cable_nm[row[b]],
        "cable_nm": found.cable_nm[row[a]] + found.cable_nm[row[b]],
    }


def _places(skeletons: Sequence[Skeleton], neuron: Numbers, node: Numbers) -> Floats:
    """(n, 3) coordinates of nodes of several skeletons."""
    order = np.argsort(neuron, kind="stable")
    places = np.empty((len(neuron), 3))
    begin = 0
    for number, size in enumerate(np.bincount(neuron, minlength=len(skeletons)).tolist()):
        chosen = order[begin : begin + size]
        if size:
            places[chosen] = skeletons[number].nodes[node[chosen]]
        begin += size
    return places


@dataclass(frozen=True, eq=False)
class _MergedNodes:
    """The nodes that carry a label which is on their neuron and on another, by skeleton.

    Attributes:
        row: (N,) int32, of each the row in `Merges`.
        node: (N,) int32, its index in the skeleton.
        neuron: (N,) int32, the skeleton.
        points_nm: (N, 3) where it is.
        cable_nm: per row of `Merges`, the length of the edges with the label at both ends.
    """

    row: Numbers
    node: Numbers
    neuron: Numbers
    points_nm: Floats
    cable_nm: Floats


def _merged_nodes(
    skeletons: Sequence[Skeleton],
    forests: Sequence[Forest],
    scores: Scores,
    voxel_size_nm: VoxelSize,
) -> _MergedNodes:
    merges = scores.merges
    size = np.asarray(voxel_size_nm, np.float64)
    by_skeleton = np.argsort(merges.skeleton_index, kind="stable")
    ends = np.cumsum(np.bincount(merges.skeleton_index, minlength=len(skeletons)))
    groups = np.split(by_skeleton, ends[:-1])
    at = map_threads(
        lambda number: find_ascending(
            scores.node_labels[number], merges.labels[merges.label_index[groups[number]]]
        ),
        range(len(skeletons)),
    )
    starts = np.cumsum([0, *(count for _, count in at)])
    row, node, neuron = (np.empty(starts[-1], np.int32) for _ in range(3))
    found = _MergedNodes(
        row, node, neuron, np.empty((starts[-1], 3)), np.zeros(len(merges.label_index))
    )

    def fill(number: int) -> None:
        rows, on = groups[number], at[number][0]
        if not len(rows):
            return
        part = slice(starts[number], starts[number + 1])
        found.neuron[part] = number
        take_found(
            on, rows, skeletons[number].nodes, size,
            found.row[part], found.node[part], found.points_nm[part],
        )  # fmt: skip
        begin = on[skeletons[number].edges[:, 0]]
        merged = np.flatnonzero((scores.edge_classes[number] == MERGED) & (begin >= 0))
        length_nm = _length_by_edge(forests[number])[merged]
        found.cable_nm[rows] = sum_groups(length_nm, begin[merged], len(rows))

    map_threads(fill, range(len(skeletons)))
    return found


def _length_by_edge(forest: Forest) -> Floats:
    below = np.flatnonzero(forest.edge >= 0)
    length_nm = np.empty(len(below))
    length_nm[forest.edge[below]] = forest.length_nm[below]
    return length_nm
