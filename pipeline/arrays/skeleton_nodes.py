"""The nodes of a skeleton against a volume: their voxels, their labels, a part of the nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import Roi, Triple, triple


def node_voxels(skeleton: Skeleton) -> NDArray[np.int64]:
    """(N, 3) int64, z, y, x: the voxel that holds each node (floor; negative outside a volume).

    Raises:
        InputError: a coordinate is not finite, or beyond what an integer holds.
    """
    voxels = np.empty(skeleton.nodes.shape, np.int64)
    if not _floor(np.ascontiguousarray(skeleton.nodes), voxels):
        raise _not_finite(skeleton)
    return voxels


@dataclass(frozen=True)
class NodeSpan:
    """Where the nodes of a skeleton lie.

    Attributes:
        nodes: number of them.
        low: z, y, x: the smallest voxels along each axis; meaningless without nodes.
        high: the largest.
        inside: how many nodes lie in the box that was asked for.
    """

    nodes: int
    low: Triple
    high: Triple
    inside: int


def node_span(skeleton: Skeleton, roi: Roi) -> NodeSpan:
    """What the voxels of the nodes span, and how many lie in a box; in one look at each node.

    Raises:
        InputError: as `node_voxels`.
    """
    nodes, extent = np.ascontiguousarray(skeleton.nodes), np.zeros((2, 3), np.int64)
    inside = _span(nodes, np.array(roi.offset, np.int64), np.array(roi.end, np.int64), extent)
    if inside < 0:
        raise _not_finite(skeleton)
    return NodeSpan(len(nodes), triple(extent[0]), triple(extent[1]), inside)


def nodes_inside(skeleton: Skeleton, roi: Roi) -> NDArray[np.bool_]:
    """(N,) whether the voxel of each node lies in the box.

    Raises:
        InputError: as `node_voxels`.
    """
    return inside_roi(node_voxels(skeleton), roi)


def inside_roi(voxels: NDArray[np.int64], roi: Roi) -> NDArray[np.bool_]:
    """(N,) whether each voxel (N, 3; z, y, x) lies in the box."""
    voxels = np.ascontiguousarray(voxels, np.int64)
    inside = np.empty(len(voxels), np.bool_)
    _mark(voxels, np.array(roi.offset, np.int64), np.array(roi.end, np.int64), inside)
    return inside


def _not_finite(skeleton: Skeleton) -> InputError:
    return InputError(f"skeleton {skeleton.name}: a coordinate is not finite, or beyond 2^62")


@njit(cache=True, nogil=True)
def _floor(nodes: NDArray[np.float64], voxels: NDArray[np.int64]) -> bool:
    for i in range(len(nodes)):
        for axis in range(3):
            # Written so that NaN fails too.
            if not abs(nodes[i, axis]) < 2.0**62:
                return False
            voxels[i, axis] = np.int64(np.floor(nodes[i, axis]))
    return True


@njit(cache=True, nogil=True)
def _span(
    nodes: NDArray[np.float64],
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    extent: NDArray[np.int64],
) -> int:
    """How many nodes lie in the box, -1 if a coordinate has no voxel; fills lowest and highest."""
    count = 0
    for i in range(len(nodes)):
        inside = True
        for axis in range(3):
            if not abs(nodes[i, axis]) < 2.0**62:
                return -1
            voxel = np.int64(np.floor(nodes[i, axis]))
            inside &= begin[axis] <= voxel < end[axis]
            if i == 0 or voxel < extent[0, axis]:
                extent[0, axis] = voxel
            if i == 0 or voxel > extent[1, axis]:
                extent[1, axis] = voxel
        count += inside
    return count


@njit(cache=True, nogil=True)
def _mark(
    voxels: NDArray[np.int64],
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    inside: NDArray[np.bool_],
) -> None:
    for i in range(len(voxels)):
        inside[i] = True
        for axis in range(3):
            inside[i] &= begin[axis] <= voxels[i, axis] < end[axis]


def labels_at_nodes(
    skeleton: Skeleton, labels: NDArray, origin: Triple = (0, 0, 0)
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """The label at each node, read from an array in memory.

    Arrays that tile a volume give disjoint sets of nodes inside, so the labels of a whole volume
    are put together from its parts, each read once.

    Args:
        labels: (Z, Y, X), any integer type; 0 is background.
        origin: the voxel of the volume at labels[0, 0, 0].

    Returns:
        (N,) uint64, 0 at nodes outside the array; (N,) bool, whether the node is inside.

    Raises:
        ShapeError: `labels` does not have three axes.
        DtypeError: `labels` are no integers.
        DataError: a label at a node is negative.
    """
    if labels.ndim != 3:
        raise ShapeError(f"labels: expected (Z, Y, X), got {labels.shape}")
    if labels.dtype.kind not in "iub":
        raise DtypeError(f"labels: expected integers, got {labels.dtype}")
    found = np.zeros(len(skeleton.nodes), np.uint64)
    if not labels.size:
        return found, np.zeros(len(found), np.bool_)
    voxels = node_voxels(skeleton)
    z, y, x = labels.shape
    inside = inside_roi(voxels, Roi(origin, (z, y, x)))
    at = voxels[inside] - np.asarray(origin, np.int64)
    values = labels[at[:, 0], at[:, 1], at[:, 2]]
    if labels.dtype.kind == "i" and len(values) and values.min() < 0:
        raise DataError(f"skeleton {skeleton.name}: negative label {values.min()} at a node")
    found[inside] = values
    return found, inside


def take_labels(
    labels: NDArray[np.uint64],
    origin: Triple,
    voxels: NDArray[np.int64],
    rows: NDArray[np.int64],
    found: NDArray[np.uint64],
) -> None:
    """Put the labels of some voxels where they belong: `found[row]` is that of `voxels[row]`.

    Args:
        labels: (Z, Y, X) uint64.
        origin: the voxel of the volume at labels[0, 0, 0].
        voxels: (N, 3) int64, z, y, x.
        rows: (M,) int64; their voxels lie in the array.
        found: (N,) uint64, written at `rows` alone.

    Raises:
        ShapeError: a voxel lies outside the array.
    """
    fine = _take(np.ascontiguousarray(labels), np.array(origin, np.int64), voxels, rows, found)
    if not fine:
        raise ShapeError(f"a voxel lies outside the labels of shape {labels.shape} at {origin}")


@njit(cache=True, nogil=True)
def _take(
    labels: NDArray[np.uint64],
    origin: NDArray[np.int64],
    voxels: NDArray[np.int64],
    rows: NDArray[np.int64],
    found: NDArray[np.uint64],
) -> bool:
    for row in rows:
        z, y, x = voxels[row, 0] - origin[0], voxels[row, 1] - origin[1], voxels[row, 2] - origin[2]
        inside = 0 <= z < labels.shape[0] and 0 <= y < labels.shape[1] and 0 <= x < labels.shape[2]
        if not inside:
            return False
        found[row] = labels[z, y, x]
    return True


def keep_nodes(skeleton: Skeleton, keep: NDArray[np.bool_]) -> Skeleton | None:
    """The nodes under a mask (N,) and the edges with both ends among them; None if none is left.

    Coordinates stay those of the volume. Pieces that hang together only through nodes left out
    become trees of their own.
    """
    if keep.shape != (len(skeleton.nodes),):
        raise ShapeError(f"mask of {keep.shape} for {len(skeleton.nodes)} nodes")
    if not keep.any():
        return None
    number = np.cumsum(keep) - 1
    edges = skeleton.edges[keep[skeleton.edges].all(axis=1)]
    return Skeleton(
        skeleton.name,
        skeleton.nodes[keep],
        number[edges],
        skeleton.radii_nm[keep],
        skeleton.types[keep],
    )


def crop_skeleton(skeleton: Skeleton, roi: Roi) -> Skeleton | None:
    """The part of a skeleton inside a box: see `keep_nodes`. None if no node lies in it."""
    return keep_nodes(skeleton, nodes_inside(skeleton, roi))
