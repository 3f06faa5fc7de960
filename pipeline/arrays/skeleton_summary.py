"""One row of numbers per skeleton, from the columns of many.

A table of skeletons holds them behind one another: how many nodes and edges each has, and all
nodes, radii and edges, in which an edge counts from the first node of its skeleton.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.exact_sums import MOST_PARTIALS, exact_total
from pipeline.errors import DataError, ShapeError

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

COUNTS = ("nodes", "branch_points", "tips", "components", "loops")
SUMMARY_TYPES: dict[str, Any] = {
    "segment": np.uint64,
    "nodes": np.int64,
    "cable_nm": np.float64,
    "branch_points": np.int64,
    "tips": np.int64,
    "components": np.int64,
    "loops": np.int64,
    **{f"{side}_{axis}_vox": np.int64 for side in ("begin", "end") for axis in "zyx"},
    "largest_radius_nm": np.float64,
}


def summarise_skeletons(
    segment: NDArray[np.uint64],
    node_count: Integers,
    edge_count: Integers,
    nodes: Floats,
    edges: Integers,
    radii_nm: Floats,
    voxel_size_nm: tuple[float, float, float],
) -> dict[str, NDArray[Any]]:
    """Nodes, cable, branch points, tips, components, loops, box and thickness of each segment.

    Args:
        segment: (S,) uint64.
        node_count: (S,) int64.
        edge_count: (S,) int64.
        nodes: (N, 3) float64, z, y, x in voxels, voxel i spanning [i, i + 1).
        edges: (E, 2) int64, from 0 within each skeleton; cycles are allowed.
        radii_nm: (N,) float64; NaN where unknown.
        voxel_size_nm: z, y, x.

    Returns:
        Columns of S rows, in the order given: `segment`; `nodes`; `cable_nm`, the exact sum of the
        lengths of the edges, rounded once, so the order of the edges does not matter;
        `branch_points`, nodes at which three edges or more end; `tips`, at which one does (a node
        without an edge is none); `components`; `loops`, edges - nodes + components, that is how
        many independent ones; `begin_z_vox` to `end_x_vox`, the half-open box of the nodes' voxels
        (zeros without nodes); `largest_radius_nm`, 0 if none is known.

    Raises:
        ShapeError: the columns disagree, or an edge leaves its skeleton.
        DataError: a coordinate is not finite, or beyond 2^62.
    """
    node_count, edge_count = _integers(node_count), _integers(edge_count)
    nodes = np.asarray(nodes, np.float64).reshape(-1, 3)
    edges = _integers(edges).reshape(-1, 2)
    radii_nm = np.ascontiguousarray(radii_nm, np.float64)
    _check(segment, node_count, edge_count, nodes, edges, radii_nm)
    # Written so that NaN fails too.
    if not (np.abs(nodes) < 2.0**62).all():
        raise DataError("skeletons: a coordinate of a node is not finite, or beyond 2^62 voxels")
    count = len(node_count)
    counts = np.zeros((count, len(COUNTS)), np.int64)
    cable, thickest = np.zeros(count), np.zeros(count)
    box = np.zeros((count, 6), np.int64)
    size = np.asarray(voxel_size_nm, np.float64)
    _fill(node_count, edge_count, nodes, edges, radii_nm, size, counts, cable, box, thickest)
    columns: dict[str, NDArray[Any]] = dict(zip(COUNTS, counts.T, strict=True))
    columns |= {"segment": np.asarray(segment, np.uint64), "cable_nm": cable}
    columns |= {name: box[:, i] for i, name in enumerate(n for n in SUMMARY_TYPES if "_vox" in n)}
    columns["largest_radius_nm"] = thickest
    return {name: np.ascontiguousarray(columns[name]) for name in SUMMARY_TYPES}


def _integers(values: NDArray[Any]) -> Integers:
    return np.ascontiguousarray(values, np.int64)


def _check(
    segment: NDArray[np.uint64],
    node_count: Integers,
    edge_count: Integers,
    nodes: Floats,
    edges: Integers,
    radii_nm: Floats,
) -> None:
    if not len(segment) == len(node_count) == len(edge_count):
        raise ShapeError(
            f"skeletons: {len(segment)} segments, but {len(node_count)} counts of nodes and "
            f"{len(edge_count)} of edges"
        )
    if min(node_count.min(initial=0), edge_count.min(initial=0)) < 0:
        raise ShapeError("skeletons: a count of nodes or edges is negative")
    if not node_count.sum() == len(nodes) == len(radii_nm) or edge_count.sum() != len(edges):
        raise ShapeError(
            f"skeletons: the counts say {node_count.sum()} nodes and {edge_count.sum()} edges, but "
            f"there are {len(nodes)} nodes, {len(radii_nm)} radii and {len(edges)} edges"
        )
    limit = np.repeat(node_count, edge_count)
    wrong = (edges < 0) | (edges >= limit[:, None])
    if wrong.any():
        row = int(np.argmax(wrong.any(axis=1)))
        raise ShapeError(
            f"skeletons: edge {row}, {edges[row].tolist()}, leaves its skeleton of {limit[row]} "
            f"nodes; edges count from the first node of their skeleton"
        )


@njit(cache=True, nogil=True)
def _fill(
    node_count: Integers,
    edge_count: Integers,
    nodes: Floats,
    edges: Integers,
    radii_nm: Floats,
    size: Floats,
    counts: Integers,
    cable: Floats,
    box: Integers,
    thickest: Floats,
) -> None:
    """Fill the rows of `counts` (in the order of COUNTS), `cable`, `box` and `thickest`."""
    first_node, first_edge = 0, 0
    for row in range(len(node_count)):
        last_node, last_edge = first_node + node_count[row], first_edge + edge_count[row]
        place, links = nodes[first_node:last_node], edges[first_edge:last_edge]
        if len(place) > 0:
            degree = np.zeros(len(place), np.int64)
            for end in links.reshape(-1):
                degree[end] += 1
            trees = _component_count(len(place), links)
            counts[row, 0] = len(place)
            counts[row, 1] = np.sum(degree > 2)
            counts[row, 2] = np.sum(degree == 1)
            counts[row, 3] = trees
            counts[row, 4] = len(links) - len(place) + trees
            cable[row] = _cable(place, links, size)
            for axis in range(3):
                box[row, axis] = np.floor(place[:, axis].min())
                box[row, 3 + axis] = np.floor(place[:, axis].max()) + 1
            for radius in radii_nm[first_node:last_node]:
                if radius > thickest[row]:
                    thickest[row] = radius
        first_node, first_edge = last_node, last_edge


@njit(cache=True, nogil=True)
def _component_count(count: int, edges: Integers) -> int:
    group = np.arange(count)
    for e in range(len(edges)):
        first, second = edges[e, 0], edges[e, 1]
        while group[first] != first:
            group[first] = group[group[first]]
            first = group[first]
        while group[second] != second:
            group[second] = group[group[second]]
            second = group[second]
        if first != second:
            group[max(first, second)] = min(first, second)
            count -= 1
    return count


@njit(cache=True, nogil=True)
def _cable(place: Floats, edges: Integers, size: Floats) -> float:
    lengths = np.empty(len(edges))
    for e in range(len(edges)):
        squares = 0.0
        for axis in range(3):
            step = place[edges[e, 0], axis] * size[axis] - place[edges[e, 1], axis] * size[axis]
            squares += step * step
        lengths[e] = np.sqrt(squares)
    return exact_total(lengths, np.empty(MOST_PARTIALS))
