"""The nodes of a skeleton against a volume: their voxels, their labels, a part of the nodes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import Roi, Triple


def node_voxels(skeleton: Skeleton) -> NDArray[np.int64]:
    """(N, 3) int64, z, y, x: the voxel that holds each node (floor; negative outside a volume).

    Raises:
        InputError: a coordinate is not finite, or beyond what an integer holds.
    """
    # Written so that NaN fails too.
    if not (np.abs(skeleton.nodes) < 2.0**62).all():
        raise InputError(f"skeleton {skeleton.name}: a coordinate is not finite, or beyond 2^62")
    return np.floor(skeleton.nodes).astype(np.int64)


def inside_roi(voxels: NDArray[np.int64], roi: Roi) -> NDArray[np.bool_]:
    """(N,) whether each voxel (N, 3; z, y, x) lies in the box."""
    inside: NDArray[np.bool_] = np.all((voxels >= roi.offset) & (voxels < roi.end), axis=1)
    return inside


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
    return keep_nodes(skeleton, inside_roi(node_voxels(skeleton), roi))
