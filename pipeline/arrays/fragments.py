"""Watershed fragments of one block, such that blocks do not show after stitching.

An edge is a pair of face-adjacent voxels; the voxel on the successor side stores its affinity in
the channel of the axis. Edges have one strict order over the whole volume: larger affinity first,
then smaller edge id = 3 * (linear index of the storing voxel) + channel. Joined are

1. every edge with affinity >= high (plateaus inside neurites);
2. for every voxel its first edge in the order, if that has affinity >= low.

The components are the fragments; a voxel without an edge >= low is background. Whether an edge is
joined depends on the six affinities of its two ends alone, so a block needs one plane of halo on
the successor side. What it cannot decide, the edges that cross its faces, goes into face records.

Passes over the block:

1. mark the runs of 32 voxels along x that an affinity >= low touches; the passes below visit no
   other. Such a run is background wholly, so where runs begin cannot show in the result;
2. in scan order: first edge of each voxel, then union-find with the predecessors. An edge to a
   successor is left as a flag there, so each union meets finished parents;
3. in scan order: labels, voxel counts, and sums over the contacts between local fragments.

Source: steepest ascent as in Cousty et al. 2009 (drop-of-water watershed cuts) and Zlateski & Seung
2015, arXiv:1505.00249; here ties are decided by geometry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.edges import EdgeTable, find_pair, grow_pairs, new_pairs, table_of_pairs
from pipeline.arrays.labels import Affinities, Labels, affinity_scale
from pipeline.errors import InputError, ShapeError
from pipeline.geometry import Roi, Triple, check_indexable, triple

LOWER, UPPER = 0, 1
"""Sides of a block along an axis: towards the predecessor, towards the successor."""

_RUN = 32
# Flags of a voxel: bits 0-2, its own edge along d is joined; bits 3-5, its first edge is the one
# that its successor along d stores; bit 6, it has an edge >= low.
_FOREGROUND = 64


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
        labels: (z, y, x) uint64 over the write ROI: 1 + the smallest linear index in the volume
            of the local component; 0 background.
        ids: (n,) uint64, the local labels, increasing.
        voxels: (n,) uint64, how many voxels each has.
        edges: contacts between different local fragments inside the write ROI.
        faces: (axis, side) -> record, side 0 lower and 1 upper; None on the volume's border.
    """

    labels: Labels
    ids: NDArray[np.uint64]
    voxels: NDArray[np.uint64]
    edges: EdgeTable
    faces: dict[tuple[int, int], FaceRecord | None]


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

    Temporary memory: 5 bytes per voxel beside the 8 of the labels, and 24 to 48 per pair of
    touching local fragments.

    Raises:
        DtypeError: affinities are neither uint8 nor uint16.
        ShapeError: shapes disagree, the block leaves the volume, or has 2^31 voxels or more.
        InputError: thresholds are not 1 <= low <= high <= the largest affinity.
    """
    offset = _check(affinities, origin, write_shape, volume_shape, low, high)
    used = np.ascontiguousarray(affinities[:3])
    kind = used.dtype.type
    # Channel d of the first plane along d is read only where a predecessor exists.
    skip = triple(tuple(int(o == 0) for o in offset), "origin")
    shape = triple(write_shape, "write_shape")
    active = _active_runs(used, skip, shape, kind(low))
    flags = np.zeros(shape, np.uint8)
    labels = np.zeros(shape, np.uint64)
    ids, voxels, edges = np.zeros(0, np.uint64), np.zeros(0, np.uint64), EdgeTable.empty()
    if active.any():
        parent = np.empty(labels.size, np.int32)
        count = _join(used, active, skip, kind(low), kind(high), flags, parent)
        ids, voxels = np.empty(count, np.uint64), np.zeros(count, np.uint64)
        whole = triple(volume_shape, "volume_shape")
        pairs = _finish(used, active, flags, parent, offset, whole, labels, ids, voxels)
        edges = table_of_pairs(pairs, ids)
    faces = _face_records(used, labels, flags, offset, volume_shape)
    return BlockFragments(labels, ids, voxels, edges, faces)


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


@njit(cache=True, nogil=True)
def _reaches(row: np.ndarray, begin: int, end: int, low: int) -> bool:
    hit = False
    for x in range(begin, end):  # no early exit: this loop is vectorised
        hit |= row[x] >= low
    return hit


@njit(cache=True, nogil=True)
def _active_runs(affinities: np.ndarray, skip: Triple, shape: Triple, low: int) -> np.ndarray:
    """(z, y, runs) bool: an affinity >= low touches a voxel of the run."""
    nz, ny, nx = shape
    _, ez, ey, ex = affinities.shape
    runs = (nx + _RUN - 1) // _RUN
    active = np.zeros((nz, ny, runs), np.bool_)
    for z in range(ez):
        for y in range(ey):
            for r in range(runs):
                begin = r * _RUN
                end = min(begin + _RUN, nx)
                if y < ny and z >= skip[0] and _reaches(affinities[0, z, y], begin, end, low):
                    active[min(z, nz - 1), y, r] = True
                    active[max(z - 1, 0), y, r] = True
                if z < nz and y >= skip[1] and _reaches(affinities[1, z, y], begin, end, low):
                    active[z, min(y, ny - 1), r] = True
                    active[z, max(y - 1, 0), r] = True
                if z < nz and y < ny:
                    first = max(begin, skip[2])
                    last = min(begin + _RUN + 1, ex)
                    if _reaches(affinities[2, z, y], first, last, low):
                        active[z, y, r] = True
    return active


@njit(cache=True, nogil=True)
def _point_run(
    affinities: np.ndarray,
    place: tuple[int, int, int, int],
    skip: Triple,
    low: int,
    high: int,
    nothing: np.ndarray,
    flags: np.ndarray,
) -> None:
    """Set the flags of a run of a row, and of the successors that its first edges lead to.

    The ways of a voxel are ranked: own edges along z, y, x (5, 4, 3), then those that its
    successors along x, y, z store (2, 1, 0). That is the order of the edge ids, so the largest
    affinity * 8 + rank is the first edge. Written without branches: the loops are vectorised.
    """
    z, y, begin, end = place
    _, ez, ey, ex = affinities.shape
    nz, ny, nx = flags.shape
    own_z = affinities[0, z, y] if z >= skip[0] else nothing
    own_y = affinities[1, z, y] if y >= skip[1] else nothing
    row_x = affinities[2, z, y]
    next_y = affinities[1, z, y + 1] if y + 1 < ey else nothing
    next_z = affinities[0, z + 1, y] if z + 1 < ez else nothing
    own = np.zeros(_RUN + 1, np.uint8)
    for k in range(end - begin):
        x = begin + k
        az, ay = np.int32(own_z[x]), np.int32(own_y[x])
        ax = np.int32(row_x[x]) if x >= skip[2] else np.int32(0)
        bx = np.int32(row_x[x + 1]) if x + 1 < ex else np.int32(0)
        by, bz = np.int32(next_y[x]), np.int32(next_z[x])
        first = max(max(az * 8 + 5, ay * 8 + 4), max(ax * 8 + 3, bx * 8 + 2))
        first = max(first, max(by * 8 + 1, bz * 8))
        rank = first & 7
        bits = np.int32(_FOREGROUND)
        bits |= np.int32(az >= high or rank == 5)
        bits |= np.int32(ay >= high or rank == 4) << 1
        bits |= np.int32(ax >= high or rank == 3) << 2
        bits |= np.int32(rank == 0) << 3
        bits |= np.int32(rank == 1) << 4
        bits |= np.int32(rank == 2) << 5
        own[k] = np.uint8(bits if first >= low * 8 else 0)
    row = flags[z, y]
    for k in range(end - begin):
        row[begin + k] |= own[k]
    for k in range(min(end + 1, nx) - begin - 1):
        row[begin + k + 1] |= (own[k] >> 5 & 1) << 2
    if y + 1 < ny:
        row = flags[z, y + 1]
        for k in range(end - begin):
            row[begin + k] |= (own[k] >> 4 & 1) << 1
    if z + 1 < nz:
        row = flags[z + 1, y]
        for k in range(end - begin):
            row[begin + k] |= own[k] >> 3 & 1


@njit(cache=True, nogil=True)
def _link(parent: np.ndarray, root: int, other: int) -> int:
    """Unite the set of `root` with that of voxel `other`; the smaller root stays, returned."""
    while parent[other] != other:
        parent[other] = parent[parent[other]]
        other = parent[other]
    if other < root:
        parent[root] = other
        return other
    parent[other] = root
    return root


@njit(cache=True, nogil=True)
def _join(
    affinities: np.ndarray,
    active: np.ndarray,
    skip: Triple,
    low: int,
    high: int,
    flags: np.ndarray,
    parent: np.ndarray,
) -> int:
    """Pass 2. Fills flags, and parent for foreground only; returns the number of components."""
    nz, ny, nx = flags.shape
    nothing = np.zeros(affinities.shape[3], affinities.dtype)
    components = 0
    for z in range(nz):
        for y in range(ny):
            for r in range(active.shape[2]):
                if not active[z, y, r]:
                    continue
                begin, end = r * _RUN, min(r * _RUN + _RUN, nx)
                _point_run(affinities, (z, y, begin, end), skip, low, high, nothing, flags)
                row = flags[z, y]
                for x in range(begin, end):
                    own = row[x]
                    if own == 0:
                        continue
                    i = (z * ny + y) * nx + x
                    parent[i] = i
                    root = i
                    if own & 4 and x > 0:
                        root = _link(parent, root, i - 1)
                    if own & 2 and y > 0 and parent[i - nx] != root:
                        root = _link(parent, root, i - nx)
                    if own & 1 and z > 0 and parent[i - ny * nx] != root:
                        root = _link(parent, root, i - ny * nx)
    for z in range(nz):
        for y in range(ny):
            for r in range(active.shape[2]):
                if active[z, y, r]:
                    for x in range(r * _RUN, min(r * _RUN + _RUN, nx)):
                        i = (z * ny + y) * nx + x
                        components += flags[z, y, x] != 0 and parent[i] == i
    return components


@njit(cache=True, nogil=True)
def _finish(
    affinities: np.ndarray,
    active: np.ndarray,
    flags: np.ndarray,
    parent: np.ndarray,
    offset: Triple,
    volume: Triple,
    labels: np.ndarray,
    ids: np.ndarray,
    voxels: np.ndarray,
) -> np.ndarray:
    """Pass 3. Fills labels, ids and voxels; returns the pair table of the contacts.

    Roots are the minima of their sets, so in scan order a voxel's parent is finished before it:
    `parent` turns into the component's position in `ids` behind the scan.
    """
    nz, ny, nx = flags.shape
    table = new_pairs(1024)
    used = 0
    seen = 0
    for z in range(nz):
        for y in range(ny):
            first_id = ((z + offset[0]) * volume[1] + y + offset[1]) * volume[2] + offset[2] + 1
            for r in range(active.shape[2]):
                if not active[z, y, r]:
                    continue
                begin, end = r * _RUN, min(r * _RUN + _RUN, nx)
                row = flags[z, y]
                for x in range(begin, end):
                    if row[x] == 0:
                        continue
                    i = (z * ny + y) * nx + x
                    if parent[i] == i:
                        ids[seen] = np.uint64(first_id + x)
                        parent[i] = seen
                        seen += 1
                    else:
                        parent[i] = parent[parent[i]]
                    labels[z, y, x] = ids[parent[i]]
                    voxels[parent[i]] += np.uint64(1)
                # Room for all contacts of the run, so that no check is needed between them.
                if 2 * (used + 3 * _RUN) > table.shape[0]:
                    table = grow_pairs(table)
                if z > 0:
                    place, back = (z, y, begin, end), (z - 1, y, 0)
                    used += _add_contacts(affinities[0], flags, parent, place, back, table)
                if y > 0:
                    place, back = (z, y, begin, end), (z, y - 1, 0)
                    used += _add_contacts(affinities[1], flags, parent, place, back, table)
                place, back = (z, y, max(begin, 1), end), (z, y, 1)
                used += _add_contacts(affinities[2], flags, parent, place, back, table)
    return table


@njit(cache=True, nogil=True)
def _add_contacts(
    channel: np.ndarray,
    flags: np.ndarray,
    parent: np.ndarray,
    place: tuple[int, int, int, int],
    back: Triple,
    table: np.ndarray,
) -> int:
    """Add the contacts of a run with its predecessors; returns how many pairs are new.

    `back` is the row of the predecessors and by how much they are shifted along x.
    """
    _, ny, nx = flags.shape
    z, y, begin, end = place
    row, other, values = flags[z, y], flags[back[0], back[1]], channel[z, y]
    i = (z * ny + y) * nx
    j = (back[0] * ny + back[1]) * nx - back[2]
    last, slot, new = np.uint64(0), 0, 0
    for x in range(begin, end):
        if row[x] == 0 or other[x - back[2]] == 0:
            continue
        here, there = parent[i + x], parent[j + x]
        if here == there:
            continue
        key = np.uint64(min(here, there)) << np.uint64(32) | np.uint64(max(here, there))
        if key != last:
            slot = find_pair(table, key)
            last = key
            if table[slot, 0] == 0:
                table[slot, 0] = key
                new += 1
        table[slot, 1] += np.uint64(values[x])
        table[slot, 2] += np.uint64(1)
    return new


def _face_records(
    affinities: Affinities,
    labels: Labels,
    flags: NDArray[np.uint8],
    offset: Triple,
    volume: Triple,
) -> dict[tuple[int, int], FaceRecord | None]:
    faces: dict[tuple[int, int], FaceRecord | None] = {}
    for axis in range(3):
        inside = labels.shape[axis]
        faces[axis, LOWER] = faces[axis, UPPER] = None
        if offset[axis] > 0:
            plane = tuple(slice(0, n) for n in np.delete(labels.shape, axis))
            crossing = affinities[axis].take(0, axis=axis)[plane]
            joins = (flags.take(0, axis=axis) >> axis & 1).astype(bool)
            faces[axis, LOWER] = FaceRecord(labels.take(0, axis=axis), joins, crossing.copy())
        if offset[axis] + inside < volume[axis]:
            joins = (flags.take(-1, axis=axis) >> (3 + axis) & 1).astype(bool)
            faces[axis, UPPER] = FaceRecord(labels.take(-1, axis=axis), joins, None)
    return faces
