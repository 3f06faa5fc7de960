"""The share of one block in its objects: neurites are cut across, never along.

A plane between two blocks cuts a neurite that runs along it lengthwise, and neither half holds the
centre line. So a block reads some voxels of context, and objects are divided by their inside:

1. Depth: distance to the surface, up to a limit, summed over the voxels around, and once more. It
   is largest on the centre line, also of a neurite with a flat or oblong section.
2. From each voxel, climb to the deepest voxel in sight (`CLIMB` voxels along each axis). The block
   in which the climb ends owns the voxel. So a section of a neurite goes to one block as a whole.
3. A block holds what it owns, and of each later block what touches that: the voxels on which the
   two meet, their seam. Each patch of a seam (26 neighbours) has one central voxel, the deepest.

All of this depends on labels nearby alone, so that two blocks find the same seam and the same
centres, and two voxels of an object that touch lie together in at least one block.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton_block_runs import (
    Components,
    copy_voxels,
    distance_inside,
    find_components,
)
from pipeline.arrays.skeleton_settings import VoxelSize
from pipeline.errors import ShapeError
from pipeline.geometry import Roi, Triple

CLIMB = 4
"""How far from a voxel its climb may end, voxels along each axis."""
_DEEP = 4.0  # the limit of depth, in shortest voxel edges
_UNITS = 64  # to a shortest voxel edge, of depth
_ROUNDS = 2  # of summing depth over the voxels around
_HERE = 14  # the name of the block itself among the 27 around it, numbered from 1 in C order
_STEPS = np.array([s for s in product((-1, 0, 1), repeat=3) if any(s)], np.int64)


@dataclass(frozen=True, eq=False)
class Share:
    """What a block holds of its objects.

    Attributes:
        labels: (Z, Y, X) uint64, a box of the block and a few voxels more; 0 is what others hold.
        roi: that box, relative to the labels that were given.
        distance_nm: (Z, Y, X) float32, to the nearest voxel of another label; 0 on background.
        seam: (S, 3) int64, voxels of the box on which the block meets another; C order.
        centres: (P, 3) int64, the central voxels of their patches; distinct.
        outer: (3, 2) bool, whether the block ends where the given labels do: before, behind.
    """

    labels: NDArray[np.uint64]
    roi: Roi
    distance_nm: NDArray[np.float32]
    seam: NDArray[np.int64]
    centres: NDArray[np.int64]
    outer: NDArray[np.bool_]


def context_vox(voxel_size_nm: VoxelSize) -> Triple:
    """The voxels that a block must see beyond itself, along each axis."""
    sight = 2 * CLIMB + 1 + _ROUNDS
    z, y, x = (sight + int(np.ceil(_DEEP * min(voxel_size_nm) / edge)) for edge in voxel_size_nm)
    return z, y, x


def smallest_block() -> int:
    """The least edge of a block, voxels: no climb leads beyond a neighbour."""
    return 2 * CLIMB + 2


def share_of(labels: NDArray[np.uint64], block: Roi, voxel_size_nm: VoxelSize) -> Share:
    """Divide the objects of a block with its neighbours.

    Args:
        labels: (Z, Y, X) uint64, the block and `context_vox` around it, less where the volume ends.
        block: the block, relative to `labels`.
        voxel_size_nm: z, y, x.

    Raises:
        ShapeError: the block leaves the labels.
    """
    whole = Roi((0, 0, 0), labels.shape)
    if not whole.contains(block):
        raise ShapeError(f"skeletonize: block {block} leaves the labels of shape {labels.shape}")
    near = block.grow((CLIMB + 1,) * 3).intersect(whole)
    climbed = near.grow((CLIMB,) * 3).intersect(whole)
    components = find_components(labels)
    runs = components.runs
    distance = _distances(components, climbed.grow((_ROUNDS,) * 3), voxel_size_nm)
    depth = _depths(runs, distance, _UNITS / min(voxel_size_nm), int(_UNITS * _DEEP))
    for left in reversed(range(_ROUNDS)):
        outer, hole = climbed.grow((left,) * 3), _shrunk(block, whole, 2 * CLIMB + left)
        depth = _sum_around(runs, labels, depth, _ends(outer), hole)
    owner = np.zeros(labels.shape, np.uint8)
    still = _shrunk(block, whole, CLIMB)
    _name_owners(runs, labels, depth, _ends(block), _ends(near), still, CLIMB, owner)
    held, rows = _hold(runs, labels, owner, _ends(near))
    seam = np.stack(np.unravel_index(rows[:, 1], held.shape), axis=1).astype(np.int64)
    return Share(
        labels=held,
        roi=near,
        distance_nm=distance[near.slices],
        seam=np.unique(seam, axis=0).reshape(-1, 3),
        centres=_centres(rows, seam, held, depth[near.slices]),
        outer=np.array([np.equal(block.offset, 0), np.equal(block.end, labels.shape)]).T,
    )


def _ends(roi: Roi) -> NDArray[np.int64]:
    """(2, 3) where a box begins and ends."""
    return np.array([roi.offset, roi.end], np.int64)


def _shrunk(block: Roi, whole: Roi, by: int) -> NDArray[np.int64]:
    """(2, 3) the voxels of a block further than `by` from its neighbours; may be less than none."""
    begin = [low + by * (low > 0) for low in block.offset]
    end = [high - by * (high < n) for high, n in zip(block.end, whole.shape, strict=True)]
    return np.array([begin, end], np.int64)


def _distances(components: Components, seen: Roi, size: VoxelSize) -> NDArray[np.float32]:
    """Nanometres to the nearest voxel of another label; 0 for components out of sight."""
    distance = np.zeros(components.shape, np.float32)
    for part in components.by_segment():
        if (part.high < seen.offset).any() or (part.low >= seen.end).any():
            continue
        inside = distance_inside(part, components.shape, size)
        copy_voxels(part, inside, part.low, distance, np.zeros(3, np.int64))
    return distance


@njit(cache=True, nogil=True)
def _depths(runs: np.ndarray, distance: np.ndarray, scale: float, limit: int) -> np.ndarray:
    """Distances in whole units, so that what is symmetric is a tie; none above the limit."""
    depth = np.zeros(distance.shape, np.int32)
    for run in range(len(runs)):
        z, y = runs[run, 0], runs[run, 1]
        for x in range(runs[run, 2], runs[run, 3] + 1):
            depth[z, y, x] = np.int32(min(distance[z, y, x] * scale, float(limit)))
    return depth


@njit(cache=True, nogil=True)
def _inside(z: int, y: int, x: int, ends: np.ndarray) -> bool:
    deep = ends[0, 0] <= z < ends[1, 0]
    return bool(deep and ends[0, 1] <= y < ends[1, 1] and ends[0, 2] <= x < ends[1, 2])


@njit(cache=True, nogil=True)
def _sum_around(
    runs: np.ndarray, labels: np.ndarray, values: np.ndarray, outer: np.ndarray, hole: np.ndarray
) -> np.ndarray:
    """The sum over its own label in the 27 voxels around, of each voxel between two boxes."""
    depth, height, width = labels.shape
    sums = np.zeros(labels.shape, np.int32)
    for run in range(len(runs)):
        z, y = runs[run, 0], runs[run, 1]
        label = labels[z, y, runs[run, 2]]
        for x in range(runs[run, 2], runs[run, 3] + 1):
            if not _inside(z, y, x, outer) or _inside(z, y, x, hole):
                continue
            total = np.int32(0)
            for a in range(max(z - 1, 0), min(z + 2, depth)):
                for b in range(max(y - 1, 0), min(y + 2, height)):
                    for c in range(max(x - 1, 0), min(x + 2, width)):
                        if labels[a, b, c] == label:
                            total += values[a, b, c]
            sums[z, y, x] = total
    return sums


@njit(cache=True, nogil=True)
def _side(at: int, begin: int, end: int) -> int:
    return 0 if at < begin else (2 if at >= end else 1)


@njit(cache=True, nogil=True)
def _name_owners(
    runs: np.ndarray,
    labels: np.ndarray,
    depth: np.ndarray,
    block: np.ndarray,
    near: np.ndarray,
    still: np.ndarray,
    climb: int,
    owner: np.ndarray,
) -> None:
    """Write the block that owns each voxel of an object in the box `near`, 1 .. 27.

    No climb from a voxel of the box `still` leaves the block.
    """
    at = np.empty(3, np.int64)
    for run in range(len(runs)):
        z, y = runs[run, 0], runs[run, 1]
        for x in range(runs[run, 2], runs[run, 3] + 1):
            if not _inside(z, y, x, near):
                continue
            at[0], at[1], at[2] = z, y, x
            if not _inside(z, y, x, still):
                _climb(at, labels, depth, climb)
            name = 1
            for axis in range(3):
                name += _side(at[axis], block[0, axis], block[1, axis]) * 3 ** (2 - axis)
            owner[z, y, x] = name


@njit(cache=True, nogil=True)
def _climb(at: np.ndarray, labels: np.ndarray, depth: np.ndarray, climb: int) -> None:
    """Move a place to deeper and deeper neighbours, at most `climb` along each axis.

    Of equally deep neighbours, the last in C order; at the top, one more step to the last one that
    is as deep: the centre line of a neurite of even width lies between two rows of voxels.
    """
    z0, y0, x0 = at[0], at[1], at[2]
    label = labels[z0, y0, x0]
    even = False
    while True:
        z, y, x = at[0], at[1], at[2]
        best = depth[z, y, x]
        for a in range(max(z - 1, z0 - climb, 0), min(z + 2, z0 + climb + 1, labels.shape[0])):
            for b in range(max(y - 1, y0 - climb, 0), min(y + 2, y0 + climb + 1, labels.shape[1])):
                for c in range(
                    max(x - 1, x0 - climb, 0), min(x + 2, x0 + climb + 1, labels.shape[2])
                ):
                    if labels[a, b, c] == label and depth[a, b, c] >= best:
                        best = depth[a, b, c]
                        at[0], at[1], at[2] = a, b, c
        if best == depth[z, y, x]:
            # The last of the equally deep is no top of its own if it is reached twice.
            if even or (at[0] == z and at[1] == y and at[2] == x):
                at[0], at[1], at[2] = z, y, x
                return
            even = True


@njit(cache=True, nogil=True)
def _hold(
    runs: np.ndarray, labels: np.ndarray, owner: np.ndarray, near: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The labels that the block holds, and its seams: (S, 2) name of the other block, place."""
    depth, height, width = near[1] - near[0]
    held = np.zeros((depth, height, width), np.uint64)
    rows = np.empty((256, 2), np.int64)
    count = 0
    pairs = np.zeros(28, np.bool_)
    for run in range(len(runs)):
        z, y = runs[run, 0], runs[run, 1]
        label = labels[z, y, runs[run, 2]]
        for x in range(runs[run, 2], runs[run, 3] + 1):
            name = owner[z, y, x]
            if name == 0:
                continue
            place = ((z - near[0, 0]) * height + y - near[0, 1]) * width + x - near[0, 2]
            if name == _HERE:
                held[z - near[0, 0], y - near[0, 1], x - near[0, 2]] = label
            if not _meets(z, y, x, labels, owner, pairs):
                continue
            held[z - near[0, 0], y - near[0, 1], x - near[0, 2]] = label
            for pair in range(28):
                if pairs[pair]:
                    if count == len(rows):
                        rows = np.concatenate((rows, np.empty_like(rows)))
                    rows[count, 0], rows[count, 1] = pair, place
                    count += 1
    return held, rows[:count].copy()


@njit(cache=True, nogil=True)
def _meets(
    z: int, y: int, x: int, labels: np.ndarray, owner: np.ndarray, pairs: np.ndarray
) -> bool:
    """Whether a voxel is of a seam of the block, and the other blocks of its seams.

    The later of two blocks gives the seam, the earlier one holds it too.
    """
    depth, height, width = labels.shape
    name, label = owner[z, y, x], labels[z, y, x]
    pairs[:] = False
    found = False
    for a in range(max(z - 1, 0), min(z + 2, depth)):
        for b in range(max(y - 1, 0), min(y + 2, height)):
            for c in range(max(x - 1, 0), min(x + 2, width)):
                other = owner[a, b, c]
                if other == name or labels[a, b, c] != label:
                    continue
                if name == _HERE and 0 < other < _HERE:
                    pairs[other] = found = True
                elif name > _HERE and other == _HERE:
                    pairs[name] = found = True
    return found


def _centres(
    rows: NDArray[np.int64],
    seam: NDArray[np.int64],
    held: NDArray[np.uint64],
    depth: NDArray[np.int32],
) -> NDArray[np.int64]:
    """(P, 3) of each patch the deepest voxel; of several, the nearest to their mean, the first."""
    if not len(rows):
        return np.zeros((0, 3), np.int64)
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    rows, seam = rows[order], seam[order]
    label = held[tuple(seam.T)]
    strides = (held.shape[1] * held.shape[2], held.shape[2], 1)
    _, patch = np.unique(_patches(rows, seam, label, strides), return_inverse=True)
    deep = depth[tuple(seam.T)]
    deepest = np.zeros(patch.max() + 1, np.int32)
    np.maximum.at(deepest, patch, deep)
    inner = deep == deepest[patch]
    patch, seam = patch[inner], seam[inner]
    # In whole numbers: two blocks count from different voxels and must agree.
    count = np.bincount(patch)
    total = np.stack([np.bincount(patch, seam[:, k]).astype(np.int64) for k in range(3)], axis=1)
    away = ((seam * count[patch, None] - total[patch]) ** 2).sum(axis=1)
    order = np.lexsort((np.arange(len(patch)), away, patch))
    first = order[np.append(True, np.diff(patch[order]) != 0)]
    return np.unique(seam[first], axis=0)


@njit(cache=True, nogil=True)
def _patches(rows: np.ndarray, seam: np.ndarray, label: np.ndarray, strides: Triple) -> np.ndarray:
    """(S,) the patch of each row: the smallest row of its group. Rows ascend by block, place."""
    group = np.arange(len(rows))
    for row in range(len(rows)):
        for dz, dy in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0)):
            place = rows[row, 1] + dz * strides[0] + dy * strides[1] - 1
            before = _first_row(rows, row, rows[row, 0], place)
            while before < row and rows[before, 0] == rows[row, 0]:
                if rows[before, 1] > place + 2:
                    break
                apart = 0
                for axis in range(3):
                    apart = max(apart, abs(seam[row, axis] - seam[before, axis]))
                if apart <= 1 and label[row] == label[before]:
                    one, two = _leader(group, row), _leader(group, before)
                    group[max(one, two)] = min(one, two)
                before += 1
    for row in range(len(rows)):
        group[row] = _leader(group, row)
    return group


@njit(cache=True, nogil=True)
def _first_row(rows: np.ndarray, end: int, block: int, place: int) -> int:
    """The first of the rows before `end` that is not below a block and a place."""
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        if rows[middle, 0] < block or (rows[middle, 0] == block and rows[middle, 1] < place):
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def _leader(group: np.ndarray, row: int) -> int:
    while group[row] != row:
        group[row] = group[group[row]]
        row = group[row]
    return row
