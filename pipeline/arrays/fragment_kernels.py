"""The passes over the voxels of one block; `fragments.py` says what they compute.

1. mark the runs of 32 voxels along x that an affinity >= low touches; the passes below visit no
   other. Such a run is background wholly, so where runs begin cannot show in the result;
2. in scan order: first edge of each voxel, then union-find with the predecessors. An edge to a
   successor is left as a flag there, so each union meets finished parents;
3. in scan order: labels, voxel counts, and sums over the contacts between local fragments.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.arrays.edges import find_pair, grow_pairs, new_pairs
from pipeline.geometry import Triple

_RUN = 32
# Flags of a voxel: bits 0-2, its own edge along d is joined; bits 3-5, its first edge is the one
# that its successor along d stores; bit 6, it has an edge >= low.
_FOREGROUND = 64


@njit(cache=True, nogil=True)
def _reaches(row: np.ndarray, begin: int, end: int, low: int) -> bool:
    hit = False
    for x in range(begin, end):  # no early exit: this loop is vectorised
        hit |= row[x] >= low
    return hit


@njit(cache=True, nogil=True)
def active_runs(affinities: np.ndarray, skip: Triple, shape: Triple, low: int) -> np.ndarray:
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
def join(
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
def finish(
    affinities: np.ndarray,
    active: np.ndarray,
    flags: np.ndarray,
    parent: np.ndarray,
    offset: Triple,
    volume: Triple,
    positions: np.ndarray,
    ids: np.ndarray,
    voxels: np.ndarray,
) -> np.ndarray:
    """Pass 3. Fills positions, ids and voxels; returns the pair table of the contacts.

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
                    positions[z, y, x] = parent[i] + 1
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
