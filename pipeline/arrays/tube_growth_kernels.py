"""Loops over voxels for tubes that grow; shared arguments are those of `tube_kernels`."""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.tube_kernels import axis_position, piece_box, piece_count

FAR = np.iinfo(np.int64).max


@njit(cache=True, nogil=True)
def local_medians(
    voxels: NDArray[np.int64],
    ids: NDArray[np.uint64],
    values: NDArray[np.float64],
    window: NDArray[np.int64],
) -> NDArray[np.float64]:
    """For each axis voxel, the median value of those of its label that are not NaN and lie within
    `window` voxels of it along each axis: (N,) float64, NaN if there is none. `voxels` (N, 3) rise
    along z.
    """
    medians = np.empty(len(ids), np.float64)
    found = np.empty(len(ids), np.float64)
    first = 0
    for n in range(len(ids)):
        while voxels[first, 0] < voxels[n, 0] - window[0]:
            first += 1
        count = 0
        for m in range(first, len(ids)):
            if voxels[m, 0] > voxels[n, 0] + window[0]:
                break
            if (
                ids[m] == ids[n]
                and abs(voxels[m, 1] - voxels[n, 1]) <= window[1]
                and abs(voxels[m, 2] - voxels[n, 2]) <= window[2]
                and not np.isnan(values[m])
            ):
                found[count] = values[m]
                count += 1
        medians[n] = np.median(found[:count]) if count else np.nan
    return medians


@njit(cache=True, nogil=True)
def mark_reach(ends, radii, spacing, origin, reach_nm, starts, samples, gap, level):  # type: ignore[no-untyped-def]
    """For voxels within `reach_nm` of a tube's surface: `gap`, the smallest distance to a surface
    (negative inside), and `level`, the axis's sample beside the voxel, of the first edge that is
    as near. Samples of edge e are `samples[starts[e] : starts[e + 1]]`, evenly along it.
    """
    for e in range(len(ends)):
        count = starts[e + 1] - starts[e]
        margin = (max(radii[e, 0], radii[e, 1]) + reach_nm) / spacing
        pieces = piece_count(ends[e], margin)
        for piece in range(pieces):
            box = piece_box(ends[e], piece, pieces, margin, origin, gap.shape)
            for i in range(box[0, 0], box[0, 1]):
                cz = (i + origin[0] + 0.5) * spacing[0]
                for j in range(box[1, 0], box[1, 1]):
                    cy = (j + origin[1] + 0.5) * spacing[1]
                    for k in range(box[2, 0], box[2, 1]):
                        cx = (k + origin[2] + 0.5) * spacing[2]
                        distance, t = axis_position(ends[e], spacing, cz, cy, cx)
                        away = distance - (radii[e, 0] + t * (radii[e, 1] - radii[e, 0]))
                        if away <= reach_nm and away < gap[i, j, k]:
                            gap[i, j, k] = away
                            level[i, j, k] = samples[starts[e] + int(t * (count - 1) + 0.5)]


@njit(cache=True, nogil=True)
def flood(labels, bright, steps, limit, ignore):  # type: ignore[no-untyped-def]
    """Grow `labels` in place into bright voxels without one, over face neighbours.

    A voxel takes the label from which the shortest chain of bright voxels leads to it, `ignore`
    where chains of two labels are equally short. The lengths of the steps along the axes (`steps`)
    and of the longest chain (`limit`) are integers: sums do not depend on their order.
    """
    shape = labels.shape
    distance = np.full(shape, FAR, np.int64)
    heap = [(np.int64(0), np.int64(0), np.int64(0), np.int64(0))]
    heap.pop()
    for i in range(shape[0]):
        for j in range(shape[1]):
            for k in range(shape[2]):
                if labels[i, j, k] != 0:
                    distance[i, j, k] = 0
                    if _has_room(i, j, k, labels, bright):
                        heappush(heap, (np.int64(0), np.int64(i), np.int64(j), np.int64(k)))
    there = np.empty(3, np.int64)
    while len(heap) > 0:
        length, z, y, x = heappop(heap)
        if length > distance[z, y, x]:
            continue
        for axis in range(3):
            longer = length + steps[axis]
            if longer > limit:
                continue
            for side in (-1, 1):
                there[0], there[1], there[2] = z, y, x
                there[axis] += side
                if there[axis] < 0 or there[axis] >= shape[axis]:
                    continue
                a, b, c = there[0], there[1], there[2]
                if not bright[a, b, c] or longer > distance[a, b, c]:
                    continue
                if longer < distance[a, b, c]:
                    distance[a, b, c] = longer
                    labels[a, b, c] = labels[z, y, x]
                    heappush(heap, (longer, a, b, c))
                elif labels[a, b, c] != labels[z, y, x]:
                    labels[a, b, c] = ignore


@njit(cache=True, nogil=True)
def _has_room(i, j, k, labels, bright):  # type: ignore[no-untyped-def]
    """Whether a face neighbour is bright and has no label."""
    place = (i, j, k)
    for axis in range(3):
        for side in (-1, 1):
            a = i + side if axis == 0 else i
            b = j + side if axis == 1 else j
            c = k + side if axis == 2 else k
            at = place[axis] + side
            if at >= 0 and at < labels.shape[axis] and bright[a, b, c] and labels[a, b, c] == 0:
                return True
    return False


@njit(cache=True, nogil=True)
def flag_around(grown, offsets, begin, flags):  # type: ignore[no-untyped-def]
    """Set `flags` at every offset (N, 3) from a voxel of `grown`; `flags` begins at voxel `begin`
    of `grown`.
    """
    for i in range(grown.shape[0]):
        for j in range(grown.shape[1]):
            for k in range(grown.shape[2]):
                if not grown[i, j, k]:
                    continue
                for n in range(len(offsets)):
                    a = i + offsets[n, 0] - begin[0]
                    b = j + offsets[n, 1] - begin[1]
                    c = k + offsets[n, 2] - begin[2]
                    if (
                        0 <= a < flags.shape[0]
                        and 0 <= b < flags.shape[1]
                        and 0 <= c < flags.shape[2]
                    ):
                        flags[a, b, c] = True
