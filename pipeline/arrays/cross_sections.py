"""How thick an object is along its skeleton: areas of plane sections across the centre line.

1. `tangents` gives the direction of the centre line at each node, smoothed over some nodes, from
   the joined skeleton: blocks do not show in it.
2. `cross_sections` cuts the object at a node by the plane across that direction, and measures the
   connected patch around the node.

A section that reaches the border of the voxels at hand may go on outside: its area is unknown. So a
block is to be read with a context of at least the radius of the neurites that matter.

Source: the sections are those of xs3d, exact areas of the plane within each voxel.
"""

from __future__ import annotations

import numpy as np
import xs3d
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_graph import neighbours_of
from pipeline.errors import DtypeError, InputError, ShapeError
from pipeline.geometry import Triple

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


def tangents(
    skeleton: Skeleton, voxel_size_nm: tuple[float, float, float], window: int = 5
) -> Floats:
    """The direction of the skeleton at each node.

    Within a branch it is the direction from the node `window` nodes before to the one `window`
    nodes after, or to the ends of the branch where these are nearer: the mean direction of the
    edges in between, weighted by their lengths. At a tip there is one side only. At a branch point,
    of all pairs of branches the one that runs on most straight is taken.

    Args:
        skeleton: cycles are allowed.
        voxel_size_nm: z, y, x.
        window: nodes to each side, at least 1.

    Returns:
        (N, 3) float64, z, y, x in physical space, of length 1, the first component that is not 0
        being positive: the order of edges does not matter. Zeros where there is no direction: at
        a node without neighbours, or if all of them lie on its own place.

    Raises:
        InputError: `window` is below 1.
    """
    if window < 1:
        raise InputError(f"window: expected at least 1 node, got {window}")
    place = skeleton.nodes * np.asarray(voxel_size_nm, np.float64)
    starts, neighbours = neighbours_of(len(place), skeleton.edges)
    found = np.zeros((len(place), 3))
    _fill_tangents(place, starts, neighbours, window, found)
    return found


@njit(cache=True, nogil=True)
def _fill_tangents(
    place: Floats, starts: Integers, neighbours: Integers, window: int, found: Floats
) -> None:
    for node in range(len(place)):
        degree = starts[node + 1] - starts[node]
        if degree == 2:
            before, after = _span(node, starts, neighbours, window)
            direction = place[after] - place[before]
        else:
            direction = _straightest(node, place, starts, neighbours, window)
        length = np.sqrt(np.sum(direction**2))
        if length > 0:
            sign = 1.0
            for axis in range(3):
                if direction[axis] != 0:
                    sign = np.sign(direction[axis])
                    break
            # "+ 0.0": no negative zeros.
            found[node] = sign * direction / length + 0.0


@njit(cache=True, nogil=True)
def _onward(previous: int, node: int, starts: Integers, neighbours: Integers) -> int:
    """The next node of a branch; `node` itself where the branch ends."""
    if starts[node + 1] - starts[node] != 2:
        return node
    first, second = neighbours[starts[node]], neighbours[starts[node] + 1]
    return second if first == previous else first


@njit(cache=True, nogil=True)
def _span(node: int, starts: Integers, neighbours: Integers, window: int) -> tuple[int, int]:
    """The nodes `window` before and after an ordinary one; on a small ring, before they meet."""
    before, after = neighbours[starts[node]], neighbours[starts[node] + 1]
    previous_before, previous_after = node, node
    for _ in range(window - 1):
        next_before = _onward(previous_before, before, starts, neighbours)
        next_after = _onward(previous_after, after, starts, neighbours)
        if next_before in (after, next_after) or next_after == before:
            break
        if next_before != before:
            previous_before, before = before, next_before
        if next_after != after:
            previous_after, after = after, next_after
    return before, after


@njit(cache=True, nogil=True)
def _straightest(
    node: int, place: Floats, starts: Integers, neighbours: Integers, window: int
) -> Floats:
    """The direction at a tip or branch point."""
    degree = starts[node + 1] - starts[node]
    arms = np.zeros((degree, 3))
    for i in range(degree):
        previous, end = node, neighbours[starts[node] + i]
        for _ in range(window - 1):
            following = _onward(previous, end, starts, neighbours)
            if following in (end, node):
                break
            previous, end = end, following
        arm = place[end] - place[node]
        length = np.sqrt(np.sum(arm**2))
        if length > 0:
            arms[i] = arm / length
    if degree == 1:
        return arms[0]
    best = np.zeros(3)
    straightest = np.inf
    for i in range(degree):
        for j in range(i + 1, degree):
            cosine = np.sum(arms[i] * arms[j])
            if cosine < straightest:
                straightest = cosine
                best = arms[i] - arms[j]
    return best


def cross_sections(
    labels: NDArray[np.integer],
    origin: Triple,
    nodes: Floats,
    tangents: Floats,
    segments: NDArray[np.uint64],
    voxel_size_nm: tuple[float, float, float],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The area of each node's segment in the plane through it, across its tangent.

    Of the section, the piece is measured that hangs together around the node; the plane goes
    through the centre of the node's voxel. Costs some 50 us a node, and grows with the section.

    Args:
        labels: (Z, Y, X), any integer type: a block with context. Not changed. In C order, nothing
            is copied.
        origin: the voxel of the volume at labels[0, 0, 0].
        nodes: (N, 3) float64, z, y, x in voxels of the volume.
        tangents: (N, 3) float64, z, y, x in physical space, of any length.
        segments: (N,) uint64, the segment of each node.
        voxel_size_nm: z, y, x.

    Returns:
        (N,) float32, nm^2, NaN where unknown: the section touches the border of `labels`, the
        tangent is zero, or the node's voxel is not of its segment. And (N,) bool, whether the
        section touches the border, so that more context, if there is any, could tell.

    Raises:
        ShapeError: arrays that do not fit, or a node outside `labels`.
        DtypeError: `labels` are no integers.
        InputError: a tangent is not finite, or a voxel size not positive.
    """
    size = np.asarray(voxel_size_nm, np.float64)
    inside = _check(labels, origin, nodes, tangents, segments, size)
    areas = np.full(len(nodes), np.nan, np.float32)
    touches = np.zeros(len(nodes), np.bool_)
    values = labels[tuple(inside.T)]
    known = (values.astype(np.uint64) == segments) & np.asarray(tangents != 0).any(axis=1)
    # xs3d counts x, y, z in Fortran order: a C array transposed, without a copy. Its normal is one
    # of voxel indices: of the plane n . (size * index) = 0 that is n * size, for n in nanometres.
    turned = np.ascontiguousarray(labels, labels.dtype.newbyteorder("=")).T
    normals = (tangents * size)[:, ::-1]
    for row in np.flatnonzero(known).tolist():
        area, contact = xs3d.cross_sectional_area(
            turned,
            inside[row, ::-1],
            normals[row],
            size[::-1],
            return_contact=True,
            segid=int(values[row]),
        )
        touches[row] = contact != 0
        if not touches[row]:
            areas[row] = area
    return areas, touches


def _check(
    labels: NDArray[np.integer],
    origin: Triple,
    nodes: Floats,
    tangents: Floats,
    segments: NDArray[np.uint64],
    size: Floats,
) -> Integers:
    """(N, 3) the index of each node's voxel in `labels`; refuses what does not fit."""
    if labels.ndim != 3:
        raise ShapeError(f"labels: expected (Z, Y, X), got {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise DtypeError(f"labels: expected integers, got {labels.dtype}")
    count = len(segments)
    if nodes.shape != (count, 3) or tangents.shape != (count, 3):
        raise ShapeError(
            f"cross-sections: {nodes.shape} nodes and {tangents.shape} tangents for {count} "
            f"segments; expected ({count}, 3)"
        )
    if not np.isfinite(tangents).all() or not ((size > 0) & np.isfinite(size)).all():
        raise InputError(
            f"cross-sections: expected finite tangents and a positive voxel size, got "
            f"{int((~np.isfinite(tangents)).any(axis=1).sum())} tangents that are not finite and "
            f"{tuple(size.tolist())} nm"
        )
    place = np.floor(nodes) - np.asarray(origin)
    # Written so that NaN fails too.
    outside = ~((place >= 0) & (place < labels.shape)).all(axis=1)
    if outside.any():
        row = int(np.argmax(outside))
        raise ShapeError(
            f"cross-sections: node {row} at {nodes[row].tolist()} lies outside the block of "
            f"{labels.shape} voxels from {tuple(origin)} on"
        )
    return place.astype(np.int64)
