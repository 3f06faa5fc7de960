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

from dataclasses import dataclass, fields
from itertools import product
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton_block_distance import distances_inside
from pipeline.arrays.skeleton_block_runs import Components, find_components, keep_voxels
from pipeline.arrays.skeleton_settings import VoxelSize
from pipeline.errors import ShapeError
from pipeline.geometry import Roi, Triple

CLIMB = 4
"""How far from a voxel its climb may end, voxels along each axis."""
_DEEP = 4.0  # the limit of depth, in shortest voxel edges
_UNITS = 64  # to a shortest voxel edge, of depth
_ROUNDS = 2  # of summing depth over the voxels around
_HERE = 14  # the name of the block itself among the 27 around it, numbered from 1 in C order
_AROUND = np.array(list(product((-1, 0, 1), repeat=3)), np.int64)


@dataclass(frozen=True, eq=False)
class Share:
    """What a block holds of its objects.

    Attributes:
        components: of what it holds, in a box of the block and a few voxels more.
        roi: that box, relative to the labels that were given.
        distance_nm: (N,) float32, of each voxel to the nearest one of another label, by row.
        seam: (S, 3) int64, voxels of the box on which the block meets another; C order.
        centres: (P, 3) int64, the central voxels of their patches; distinct.
        outer: (3, 2) bool, whether the block ends where the given labels do: before, behind.
    """

    components: Components
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
    distance = distances_inside(labels, components, voxel_size_nm)
    grid = _lay_out(components)
    deepest = int(_UNITS * _DEEP)
    # In whole units, so that what is symmetric is a tie.
    units = distance.astype(np.float64) * (_UNITS / min(voxel_size_nm))
    depth = np.minimum(units, deepest).astype(np.int32)
    for left in reversed(range(_ROUNDS)):
        outer, hole = climbed.grow((left,) * 3), _shrunk(block, whole, 2 * CLIMB + left)
        depth = _sum_around(grid, depth, _ends(outer), hole)
    still = _shrunk(block, whole, CLIMB)
    owner = _name_owners(grid, depth, _ends(block), _ends(near), still, CLIMB)
    held, rows = _hold(grid, owner, _ends(near))
    voxels = grid.voxels[rows[:, 2]] - near.offset
    seam = _Seam(rows[:, 0], rows[:, 1], voxels, grid.piece[rows[:, 2]], depth[rows[:, 2]])
    return Share(
        components=keep_voxels(components, held, near.relative_to(whole)),
        roi=near,
        distance_nm=distance[held],
        seam=np.unique(voxels, axis=0).reshape(-1, 3),
        centres=_centres(seam, near.shape),
        outer=np.array([np.equal(block.offset, 0), np.equal(block.end, labels.shape)]).T,
    )


class _Grid(NamedTuple):
    """The voxels of all objects of a block, laid out in its box with a rim of background.

    Attributes:
        voxels: (N, 3) int64, in the block.
        places: (N,) int64, of each in the box.
        row_at: int32, the row of `voxels` at each place, -1 for none.
        piece: (N,) uint32, the component of each voxel.
        around: (27,) int64, the steps to neighbours and to itself, in places, C order.
    """

    voxels: NDArray[np.int64]
    places: NDArray[np.int64]
    row_at: NDArray[np.int32]
    piece: NDArray[np.uint32]
    around: NDArray[np.int64]


def _lay_out(components: Components) -> _Grid:
    voxels = components.voxels()
    extent = np.asarray(components.shape) + 2
    strides = np.array([extent[1] * extent[2], extent[2], 1], np.int64)
    places = (voxels + 1) @ strides
    row_at = np.full(int(extent.prod()), -1, np.int32)
    row_at[places] = np.arange(len(voxels), dtype=np.int32)
    return _Grid(voxels, places, row_at, components.number_of_voxels(), _AROUND @ strides)


def _ends(roi: Roi) -> NDArray[np.int64]:
    """(2, 3) where a box begins and ends."""
    return np.array([roi.offset, roi.end], np.int64)


def _shrunk(block: Roi, whole: Roi, by: int) -> NDArray[np.int64]:
    """(2, 3) the voxels of a block further than `by` from its neighbours; may be less than none."""
    begin = [low + by * (low > 0) for low in block.offset]
    end = [high - by * (high < n) for high, n in zip(block.end, whole.shape, strict=True)]
    return np.array([begin, end], np.int64)


@njit(cache=True, nogil=True)
def _inside(voxel: np.ndarray, ends: np.ndarray) -> bool:
    z, y, x = voxel
    deep = ends[0, 0] <= z < ends[1, 0]
    return bool(deep and ends[0, 1] <= y < ends[1, 1] and ends[0, 2] <= x < ends[1, 2])


@njit(cache=True, nogil=True)
def _sum_around(grid: _Grid, values: np.ndarray, outer: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The sum over its own piece in the 27 voxels around, of each voxel between two boxes."""
    sums = np.zeros(len(grid.voxels), np.int32)
    for row in range(len(grid.voxels)):
        if not _inside(grid.voxels[row], outer) or _inside(grid.voxels[row], hole):
            continue
        total = np.int32(0)
        for k in range(27):
            other = grid.row_at[grid.places[row] + grid.around[k]]
            if other >= 0 and grid.piece[other] == grid.piece[row]:
                total += values[other]
        sums[row] = total
    return sums


@njit(cache=True, nogil=True)
def _side(at: int, begin: int, end: int) -> int:
    return 0 if at < begin else (2 if at >= end else 1)


@njit(cache=True, nogil=True)
def _name_owners(
    grid: _Grid,
    depth: np.ndarray,
    block: np.ndarray,
    near: np.ndarray,
    still: np.ndarray,
    climb: int,
) -> np.ndarray:
    """The block that owns each voxel in the box `near`, 1 .. 27; 0 for the others.

    No climb from a voxel of the box `still` leaves the block.
    """
    owner = np.zeros(len(grid.voxels), np.uint8)
    for row in range(len(grid.voxels)):
        if not _inside(grid.voxels[row], near):
            continue
        top = row
        if not _inside(grid.voxels[row], still):
            top = _climb(row, grid, depth, climb)
        name = 1
        for axis in range(3):
            name += _side(grid.voxels[top, axis], block[0, axis], block[1, axis]) * 3 ** (2 - axis)
        owner[row] = name
    return owner


@njit(cache=True, nogil=True)
def _climb(start: int, grid: _Grid, depth: np.ndarray, climb: int) -> int:
    """Where one ends that moves to deeper and deeper neighbours, at most `climb` along each axis.

    Of equally deep neighbours, the last in C order; at the top, one more step to the last one that
    is as deep: the centre line of a neurite of even width lies between two rows of voxels.
    """
    even = False
    here = start
    while True:
        best, to = depth[here], here
        for k in range(27):
            other = grid.row_at[grid.places[here] + grid.around[k]]
            if other < 0 or grid.piece[other] != grid.piece[start] or depth[other] < best:
                continue
            if _apart(grid.voxels[other], grid.voxels[start]) <= climb:
                best, to = depth[other], other
        if best == depth[here]:
            # The last of the equally deep is no top of its own if it is reached twice.
            if even or to == here:
                return here
            even = True
        here = to


@njit(cache=True, nogil=True)
def _apart(one: np.ndarray, other: np.ndarray) -> int:
    """The steps between two voxels, diagonal ones included."""
    return max(abs(one[0] - other[0]), abs(one[1] - other[1]), abs(one[2] - other[2]))


@njit(cache=True, nogil=True)
def _hold(grid: _Grid, owner: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The voxels that the block holds, and its seams.

    Returns:
        (N,) bool; (S, 3) name of the other block, place in the box `near`, row.
    """
    _, height, width = near[1] - near[0]
    held = np.zeros(len(grid.voxels), np.bool_)
    rows = np.empty((256, 3), np.int64)
    count = 0
    pairs = np.zeros(28, np.bool_)
    for row in range(len(grid.voxels)):
        if owner[row] == 0:
            continue
        met = _meets(row, grid, owner, pairs)
        held[row] = met or owner[row] == _HERE
        if not met:
            continue
        z, y, x = grid.voxels[row] - near[0]
        for pair in range(28):
            if pairs[pair]:
                if count == len(rows):
                    rows = np.concatenate((rows, np.empty_like(rows)))
                rows[count, 0], rows[count, 2] = pair, row
                rows[count, 1] = (z * height + y) * width + x
                count += 1
    return held, rows[:count].copy()


@njit(cache=True, nogil=True)
def _meets(row: int, grid: _Grid, owner: np.ndarray, pairs: np.ndarray) -> bool:
    """Whether a voxel is of a seam of the block, and the other blocks of its seams.

    The later of two blocks gives the seam, the earlier one holds it too.
    """
    name = owner[row]
    found = False
    for k in range(27):
        other = grid.row_at[grid.places[row] + grid.around[k]]
        if other < 0 or owner[other] == name or grid.piece[other] != grid.piece[row]:
            continue
        if (name == _HERE and 0 < owner[other] < _HERE) or (name > _HERE and owner[other] == _HERE):
            if not found:
                pairs[:] = False
            pairs[owner[other] if name == _HERE else name] = found = True
    return found


@dataclass(frozen=True, eq=False)
class _Seam:
    """The voxels on which a block meets others; one that meets two is there twice.

    Attributes:
        block: (S,) the name of the other block.
        place: (S,) in the box of the share.
        voxels: (S, 3) in that box.
        piece: (S,) the component.
        depth: (S,) how deep it lies.
    """

    block: NDArray[np.int64]
    place: NDArray[np.int64]
    voxels: NDArray[np.int64]
    piece: NDArray[np.uint32]
    depth: NDArray[np.int32]

    def sorted(self) -> _Seam:
        """By block, then by place."""
        order = np.lexsort((self.place, self.block))
        return _Seam(*(getattr(self, field.name)[order] for field in fields(self)))


def _centres(seam: _Seam, shape: Triple) -> NDArray[np.int64]:
    """(P, 3) of each patch the deepest voxel; of several, the nearest to their mean, the first."""
    if not len(seam.block):
        return np.zeros((0, 3), np.int64)
    seam = seam.sorted()
    strides = (shape[1] * shape[2], shape[2], 1)
    rows = np.column_stack([seam.block, seam.place])
    _, patch = np.unique(_patches(rows, seam.voxels, seam.piece, strides), return_inverse=True)
    deepest = np.zeros(patch.max() + 1, np.int32)
    np.maximum.at(deepest, patch, seam.depth)
    inner = seam.depth == deepest[patch]
    patch, voxels = patch[inner], seam.voxels[inner]
    # In whole numbers: two blocks count from different voxels and must agree.
    count = np.bincount(patch)
    total = np.stack([np.bincount(patch, voxels[:, k]).astype(np.int64) for k in range(3)], axis=1)
    away = ((voxels * count[patch, None] - total[patch]) ** 2).sum(axis=1)
    order = np.lexsort((np.arange(len(patch)), away, patch))
    first = order[np.append(True, np.diff(patch[order]) != 0)]
    return np.unique(voxels[first], axis=0)


@njit(cache=True, nogil=True)
def _patches(rows: np.ndarray, seam: np.ndarray, piece: np.ndarray, strides: Triple) -> np.ndarray:
    """(S,) the patch of each row: the smallest row of its group. Rows ascend by block, place."""
    group = np.arange(len(rows))
    for row in range(len(rows)):
        for dz, dy in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0)):
            place = rows[row, 1] + dz * strides[0] + dy * strides[1] - 1
            before = _first_row(rows, row, rows[row, 0], place)
            while before < row and rows[before, 0] == rows[row, 0]:
                if rows[before, 1] > place + 2:
                    break
                if _apart(seam[row], seam[before]) <= 1 and piece[row] == piece[before]:
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
