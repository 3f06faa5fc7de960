"""Loops over edges and voxels, for tubes and phantoms.

Positions are z, y, x. Arguments that the kernels share: `ends` (E, 2, 3) float64 in voxels; `radii`
(E, 2) nm; `ids` (E,) uint64; `spacing` (3,) nm per voxel; `origin` (3,) int64, the global voxel of
an array's first. All arithmetic is on global positions, so a voxel's result is the same in every
array that holds it.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

SHELL, NEAR = 1, 2  # bits that `flag_surroundings` sets
ON_LINE = -1.0  # nearness of a voxel that a line took: no tube comes closer


@njit(cache=True, nogil=True)
def voxel_line(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.int64]:
    """The voxels that the segment from `a` to `b` (voxels) runs through, each a face neighbour of
    the one before: (N, 3) from floor(a) to floor(b). Source: Amanatides & Woo 1987.
    """
    here, left, sign = np.empty(3, np.int64), np.empty(3, np.int64), np.empty(3, np.int64)
    total = 0
    for k in range(3):
        here[k] = int(np.floor(a[k]))
        away = int(np.floor(b[k])) - here[k]
        sign[k] = 1 if away > 0 else -1
        left[k] = abs(away)
        total += left[k]
    line = np.empty((total + 1, 3), np.int64)
    line[0] = here
    for n in range(1, total + 1):
        best, best_t = -1, np.inf
        for k in range(3):
            if left[k] > 0:
                # The face to cross, from the ends alone: nothing adds up along the way.
                face = here[k] + 1 if sign[k] > 0 else here[k]
                t = (face - a[k]) / (b[k] - a[k])
                if best < 0 or t < best_t:
                    best, best_t = k, t
        here[best] += sign[best]
        left[best] -= 1
        line[n] = here
    return line


@njit(cache=True, nogil=True)
def axis_position(
    ends: NDArray[np.float64], spacing: NDArray[np.float64], cz: float, cy: float, cx: float
) -> tuple[float, float]:
    """Where the point (nm) is beside an edge: distance in nm, and the share t of the edge."""
    az, ay, ax = ends[0, 0] * spacing[0], ends[0, 1] * spacing[1], ends[0, 2] * spacing[2]
    dz = ends[1, 0] * spacing[0] - az
    dy = ends[1, 1] * spacing[1] - ay
    dx = ends[1, 2] * spacing[2] - ax
    length2 = dz * dz + dy * dy + dx * dx
    t = 0.0
    if length2 > 0:
        t = ((cz - az) * dz + (cy - ay) * dy + (cx - ax) * dx) / length2
        t = min(max(t, 0.0), 1.0)
    gz, gy, gx = cz - (az + t * dz), cy - (ay + t * dy), cx - (ax + t * dx)
    return np.sqrt(gz * gz + gy * gy + gx * gx), t


@njit(cache=True, nogil=True)
def piece_box(
    ends: NDArray[np.float64],
    piece: int,
    pieces: int,
    margin: NDArray[np.float64],
    origin: NDArray[np.int64],
    shape: tuple[int, int, int],
) -> NDArray[np.int64]:
    """(3, 2) first and last + 1 voxel, relative to `origin` and inside `shape`, that hold all
    voxels within `margin` (voxels) of one of the equal `pieces` of an edge.
    """
    box = np.empty((3, 2), np.int64)
    for k in range(3):
        p = ends[0, k] + (ends[1, k] - ends[0, k]) * (piece / pieces)
        q = ends[0, k] + (ends[1, k] - ends[0, k]) * ((piece + 1) / pieces)
        box[k, 0] = max(int(np.floor(min(p, q) - margin[k])) - 1 - origin[k], 0)
        box[k, 1] = min(int(np.ceil(max(p, q) + margin[k])) + 1 - origin[k], shape[k])
    return box


@njit(cache=True, nogil=True)
def piece_count(ends: NDArray[np.float64], margin: NDArray[np.float64]) -> int:
    """Pieces to cut an edge into, so that the box of a long oblique edge is not mostly empty."""
    pieces = 1
    for k in range(3):
        pieces = max(pieces, int(abs(ends[1, k] - ends[0, k]) / (2.0 * margin[k] + 4.0)) + 1)
    return pieces


@njit(cache=True, nogil=True)
def claim_lines(ends, radii, ids, spacing, origin, nearness, winner):  # type: ignore[no-untyped-def]
    """Give the voxels on each edge's line to the edge: `nearness` is set to distance / radius,
    `winner` to the edge's number; both cover one box.
    """
    for e in range(len(ids)):
        line = voxel_line(ends[e, 0], ends[e, 1])
        for n in range(len(line)):
            z, y, x = line[n, 0], line[n, 1], line[n, 2]
            _claim(e, z, y, x, np.inf, ends, radii, ids, spacing, origin, nearness, winner)


@njit(cache=True, nogil=True)
def claim_tubes(ends, radii, ids, spacing, origin, nearness, winner):  # type: ignore[no-untyped-def]
    """Give the voxels within each edge's radius to the edge, but none that is on a line."""
    for e in range(len(ids)):
        margin = max(radii[e, 0], radii[e, 1]) / spacing
        pieces = piece_count(ends[e], margin)
        for piece in range(pieces):
            box = piece_box(ends[e], piece, pieces, margin, origin, nearness.shape)
            for z in range(box[0, 0] + origin[0], box[0, 1] + origin[0]):
                for y in range(box[1, 0] + origin[1], box[1, 1] + origin[1]):
                    for x in range(box[2, 0] + origin[2], box[2, 1] + origin[2]):
                        _claim(e, z, y, x, 1.0, ends, radii, ids, spacing, origin, nearness, winner)


@njit(cache=True, nogil=True)
def _claim(e, z, y, x, reach, ends, radii, ids, spacing, origin, nearness, winner):  # type: ignore[no-untyped-def]
    """Give global voxel z, y, x to edge `e` if it is within `reach` radii and nearer than others.

    Edges come in the same order in every block, so the first of equals is the same everywhere.
    """
    i, j, k = z - origin[0], y - origin[1], x - origin[2]
    size_z, size_y, size_x = winner.shape
    if not (0 <= i < size_z and 0 <= j < size_y and 0 <= k < size_x):
        return
    cz, cy, cx = (z + 0.5) * spacing[0], (y + 0.5) * spacing[1], (x + 0.5) * spacing[2]
    distance, t = axis_position(ends[e], spacing, cz, cy, cx)
    share = distance / (radii[e, 0] + t * (radii[e, 1] - radii[e, 0]))
    if share > reach or share > nearness[i, j, k]:
        return
    if share == nearness[i, j, k] and ids[e] >= ids[winner[i, j, k]]:
        return
    nearness[i, j, k] = share
    winner[i, j, k] = e


@njit(cache=True, nogil=True)
def keep_attached(ends, ids, spacing, origin, nearness, winner, begin, end):  # type: ignore[no-untyped-def]
    """Which voxels of `winner` keep their label: (Z, Y, X) bool.

    A voxel between `begin` and `end` whose way to its axis stays in its label keeps it, and so do
    the voxels on that way: each of them then has a chain of kept voxels to the line.
    """
    kept = nearness == ON_LINE
    way = np.empty((winner.shape[0] + winner.shape[1] + winner.shape[2], 3), np.int64)
    for i in range(begin[0], end[0]):
        for j in range(begin[1], end[1]):
            for k in range(begin[2], end[2]):
                if winner[i, j, k] < 0 or nearness[i, j, k] == ON_LINE:
                    continue
                steps = _way_to_line(i, j, k, ends, ids, spacing, origin, nearness, winner, way)
                for n in range(steps):
                    kept[way[n, 0], way[n, 1], way[n, 2]] = True
    return kept


@njit(cache=True, nogil=True)
def _way_to_line(i, j, k, ends, ids, spacing, origin, nearness, winner, way):  # type: ignore[no-untyped-def]
    """Put the steps from a voxel to its axis into `way`; 0 if they leave its label, else how many.

    Each step goes along the axis in which the voxel is farthest (in voxels) from the goal.
    """
    e = winner[i, j, k]
    z, y, x = i + origin[0], j + origin[1], k + origin[2]
    cz, cy, cx = (z + 0.5) * spacing[0], (y + 0.5) * spacing[1], (x + 0.5) * spacing[2]
    _, t = axis_position(ends[e], spacing, cz, cy, cx)
    way[0] = i, j, k
    for n in range(len(way) - 1):
        far, axis, ahead = 0.0, -1, 1
        for d in range(3):
            goal = ends[e, 0, d] + t * (ends[e, 1, d] - ends[e, 0, d])
            # Global positions: goal - origin would round differently in another box.
            place = way[n, d] + origin[d]
            gap = goal - (place + 0.5)
            if place != int(np.floor(goal)) and abs(gap) > far:
                far, axis, ahead = abs(gap), d, 1 if gap > 0 else -1
        if axis < 0:
            return n + 1 if _meets_line(way[n], ids[e], ids, nearness, winner) else 0
        way[n + 1] = way[n]
        way[n + 1, axis] += ahead
        if _label_at(way[n + 1], ids, winner) != ids[e]:
            return 0
    return 0


@njit(cache=True, nogil=True)
def _label_at(place, ids, winner):  # type: ignore[no-untyped-def]
    """The label that won a voxel; 0 for none and outside the box."""
    for d in range(3):
        if not 0 <= place[d] < winner.shape[d]:
            return np.uint64(0)
    w = winner[place[0], place[1], place[2]]
    return ids[w] if w >= 0 else np.uint64(0)


@njit(cache=True, nogil=True)
def _meets_line(place, label, ids, nearness, winner):  # type: ignore[no-untyped-def]
    """Whether a voxel or a face neighbour is on a line of `label`.

    An axis that runs through a corner of voxels may have its line on the other side of it.
    """
    there = place.copy()
    for d in range(3):
        for step in (0, -1, 1):
            there[d] = place[d] + step
            if (
                _label_at(there, ids, winner) == label
                and nearness[there[0], there[1], there[2]] == ON_LINE
            ):
                return True
        there[d] = place[d]
    return False


@njit(cache=True, nogil=True)
def flag_surroundings(ends, radii, spacing, origin, shell_nm, around_nm, flags):  # type: ignore[no-untyped-def]
    """Set SHELL on voxels within `shell_nm` of a surface or inside, NEAR on those within
    `around_nm` of an axis.
    """
    for e in range(len(ends)):
        reach = max(max(radii[e, 0], radii[e, 1]) + shell_nm, around_nm)
        margin = reach / spacing
        pieces = piece_count(ends[e], margin)
        for piece in range(pieces):
            box = piece_box(ends[e], piece, pieces, margin, origin, flags.shape)
            for i in range(box[0, 0], box[0, 1]):
                cz = (i + origin[0] + 0.5) * spacing[0]
                for j in range(box[1, 0], box[1, 1]):
                    cy = (j + origin[1] + 0.5) * spacing[1]
                    for k in range(box[2, 0], box[2, 1]):
                        cx = (k + origin[2] + 0.5) * spacing[2]
                        distance, t = axis_position(ends[e], spacing, cz, cy, cx)
                        radius = radii[e, 0] + t * (radii[e, 1] - radii[e, 0])
                        if distance - radius <= shell_nm:
                            flags[i, j, k] |= SHELL
                        if distance <= around_nm:
                            flags[i, j, k] |= NEAR
