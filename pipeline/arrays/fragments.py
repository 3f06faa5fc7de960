"""Watershed fragments of one block, such that blocks do not show after stitching.

An edge is a pair of face-adjacent voxels; the voxel on the successor side stores its affinity in
the channel of the axis. Edges have one strict order over the whole volume: larger affinity first,
then smaller edge id = 3 * (linear index of the storing voxel) + channel. Joined are

1. every edge with affinity >= high (plateaus inside neurites);
2. for every voxel its first edge in the order, if that has affinity >= low.

The components are the fragments; a voxel without an edge >= low is background. Whether an edge is
joined depends on the six affinities of its two ends alone, so a block needs one plane of halo on
the successor side. What it cannot decide, the edges that cross its faces, goes into face records.

The passes over the voxels are in `fragment_kernels.py`.

Source: steepest ascent as in Cousty et al. 2009 (drop-of-water watershed cuts) and Zlateski & Seung
2015, arXiv:1505.00249; here ties are decided by geometry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.edges import EdgeTable, table_of_pairs
from pipeline.arrays.fragment_kernels import active_runs, finish, join
from pipeline.arrays.labels import Affinities, Labels, affinity_scale
from pipeline.arrays.relabel import name_positions
from pipeline.errors import InputError, ShapeError
from pipeline.geometry import Roi, Triple, check_indexable, triple

LOWER, UPPER = 0, 1
"""Sides of a block along an axis: towards the predecessor, towards the successor."""


@dataclass(frozen=True, eq=False)
class FaceRecord:
    """What stitching needs to know of one face of a block: its own voxels on that face.

    Attributes:
        labels: (a, b) uint64, local labels; a, b are the two other axes in their order.
        joins: (a, b) bool, this block knows that the edge across the face is joined. On a lower
            face: affinity >= high, or it is the first edge of the block's own voxel; on an upper
            face: it is the first edge of the block's own voxel. The edge is joined if either says.
        affinities: (a, b) of the edges across the face, on a lower face; None on an upper face.
    """

    labels: NDArray[np.uint64]
    joins: NDArray[np.bool_]
    affinities: NDArray[np.uint8] | NDArray[np.uint16] | None


@dataclass(frozen=True, eq=False)
class BlockFragments:
    """The fragments of one block before stitching.

    Attributes:
        positions: (z, y, x) uint32 over the write ROI: k stands for the label ids[k - 1], 0 for
            background.
        ids: (n,) uint64, the local labels, increasing: 1 + the smallest linear index in the volume
            of each local component.
        voxels: (n,) uint64, how many voxels each has.
        edges: contacts between different local fragments inside the write ROI.
        faces: (axis, side) -> record, side 0 lower and 1 upper; None on the volume's border.
    """

    positions: NDArray[np.uint32]
    ids: NDArray[np.uint64]
    voxels: NDArray[np.uint64]
    edges: EdgeTable
    faces: dict[tuple[int, int], FaceRecord | None]

    @property
    def labels(self) -> Labels:
        """(z, y, x) uint64, the local label of each voxel; a fresh array."""
        return _labels(self.positions, self.ids)


def _labels(positions: NDArray[np.uint32], ids: NDArray[np.uint64]) -> Labels:
    out = np.zeros(positions.shape, np.uint64)
    name_positions(positions, ids, out)
    return out


def extract_fragments(
    affinities: Affinities,
    *,
    origin: Triple,
    write_shape: Triple,
    volume_shape: Triple,
    low: int,
    high: int,
) -> BlockFragments:
    """The local fragments, their contacts and the face records of one block.

    Args:
        affinities: (C >= 3, ...) uint8 or uint16; covers the write ROI and one more plane on the
            successor side of each axis along which the volume goes on. Channels 0-2 are used.
            Channel d is ignored on the volume's first plane along d.
        origin: first voxel of the write ROI in the volume.
        write_shape: its extent.
        volume_shape: extent of the volume; linear indices are in C order in it.
        low: smallest integer affinity that makes foreground, at least 1.
        high: smallest integer affinity that always joins, at least `low`.

    Temporary memory: 5 bytes per voxel beside the 4 of the positions, and 24 to 48 per pair of
    touching local fragments.

    Raises:
        DtypeError: affinities are neither uint8 nor uint16.
        ShapeError: shapes disagree, the block leaves the volume, or has 2^31 voxels or more.
        InputError: thresholds are not 1 <= low <= high <= the largest affinity.
    """
    offset = _check(affinities, origin, write_shape, volume_shape, low, high)
    used: Any = np.ascontiguousarray(affinities[:3])
    kind = used.dtype.type
    # Channel d of the first plane along d is read only where a predecessor exists.
    skip = triple(tuple(int(o == 0) for o in offset), "origin")
    shape = triple(write_shape, "write_shape")
    active = active_runs(used, skip, shape, kind(low))
    flags = np.zeros(shape, np.uint8)
    positions = np.zeros(shape, np.uint32)
    ids, voxels, edges = np.zeros(0, np.uint64), np.zeros(0, np.uint64), EdgeTable.empty()
    if active.any():
        parent = np.empty(positions.size, np.int32)
        count = join(used, active, skip, kind(low), kind(high), flags, parent)
        ids, voxels = np.empty(count, np.uint64), np.zeros(count, np.uint64)
        whole = triple(volume_shape, "volume_shape")
        pairs = finish(used, active, flags, parent, offset, whole, positions, ids, voxels)
        edges = table_of_pairs(pairs, ids)
    faces = _face_records(used, positions, ids, flags, offset, volume_shape)
    return BlockFragments(positions, ids, voxels, edges, faces)


def _check(
    affinities: Affinities,
    origin: Triple,
    write_shape: Triple,
    volume_shape: Triple,
    low: int,
    high: int,
) -> Triple:
    scale = affinity_scale(affinities.dtype)
    check_indexable(volume_shape)
    block, volume = Roi(origin, write_shape), Roi((0, 0, 0), volume_shape)
    if not volume.contains(block):
        raise ShapeError(f"block {block} leaves the volume {volume}")
    if block.size >= 2**31:
        raise ShapeError(f"a block of {block.shape} has 2^31 voxels or more; use smaller blocks")
    ends = zip(block.shape, block.end, volume.shape, strict=True)
    expected = tuple(n + (end < whole) for n, end, whole in ends)
    found = affinities.shape
    if len(found) != 4 or found[0] < 3 or found[1:] != expected:
        raise ShapeError(
            f"affinities of block {block} in a volume of {volume.shape}: expected shape (3, "
            f"{', '.join(map(str, expected))}), the block and one plane after it where the volume "
            f"goes on, got {found}"
        )
    if not 1 <= low <= high <= scale:
        raise InputError(
            f"thresholds must be 1 <= low <= high <= {scale} as integers, got low {low}, high "
            f"{high}; affinity 0 means that there is no edge"
        )
    return block.offset


def _face_records(
    affinities: Affinities,
    positions: NDArray[np.uint32],
    ids: NDArray[np.uint64],
    flags: NDArray[np.uint8],
    offset: Triple,
    volume: Triple,
) -> dict[tuple[int, int], FaceRecord | None]:
    faces: dict[tuple[int, int], FaceRecord | None] = {}
    for axis in range(3):
        inside = positions.shape[axis]
        faces[axis, LOWER] = faces[axis, UPPER] = None
        if offset[axis] > 0:
            plane = tuple(slice(0, n) for n in np.delete(positions.shape, axis))
            crossing = np.take(affinities[axis], 0, axis=axis)[plane]
            joins = (np.take(flags, 0, axis=axis) >> axis & 1).astype(bool)
            faces[axis, LOWER] = FaceRecord(_plane(positions, ids, axis, 0), joins, crossing.copy())
        if offset[axis] + inside < volume[axis]:
            joins = (np.take(flags, -1, axis=axis) >> (3 + axis) & 1).astype(bool)
            faces[axis, UPPER] = FaceRecord(_plane(positions, ids, axis, -1), joins, None)
    return faces


def _plane(
    positions: NDArray[np.uint32], ids: NDArray[np.uint64], axis: int, index: int
) -> NDArray[np.uint64]:
    plane = np.take(positions, [index], axis=axis)
    return np.squeeze(_labels(plane, ids), axis=axis)
