"""The objects of a block as runs of voxels: one pass over the labels, then work on the foreground.

A block of thin neurites is background but for a hundredth. A run is a stretch of one label along x;
runs of neighbouring rows that touch (26 neighbours) and bear one label are one component. Any
uint64 is an id, and components are numbered by their first voxel in C order.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton_settings import VoxelSize

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Component:
    """One connected piece of a label.

    Attributes:
        number: 1 .. C, by the first voxel.
        label: its id.
        count: voxels.
        low, high: (3,) int64, its first and its last plane along each axis.
        runs: (R, 4) int64, z, y, first x, last x; ascending.
    """

    number: int
    label: int
    count: int
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    runs: NDArray[np.int64]

    @property
    def box(self) -> tuple[int, int, int]:
        """Extent in voxels."""
        z, y, x = (self.high - self.low + 1).tolist()
        return z, y, x

    def mask(self) -> Mask:
        """(Z + 2, Y + 2, X + 2) bool: its box with a rim of background."""
        z, y, x = self.box
        mask = np.zeros((z + 2, y + 2, x + 2), np.bool_)
        _paint(self.runs, self.low, mask)
        return mask

    def voxels(self) -> NDArray[np.int64]:
        """(N, 3) its voxels in the block, in C order."""
        return _list_voxels(self.runs, self.count)


@dataclass(frozen=True, eq=False)
class Components:
    """All components of a block, as columns; row c is component c + 1.

    Attributes:
        shape: of the block.
        runs: (R, 4) int64, z, y, first x, last x; in C order.
        number: (R,) uint32, the component of each run.
        labels: (C,) uint64.
        counts: (C,) int64, voxels.
        low, high: (C, 3) int64, first and last plane.
    """

    shape: tuple[int, int, int]
    runs: NDArray[np.int64]
    number: NDArray[np.uint32]
    labels: NDArray[np.uint64]
    counts: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]

    def at_faces(self, faces: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(C,) which touch a face of the block, of those named: (3, 2), before and behind."""
        ends = np.asarray(self.shape) - 1
        before, behind = (self.low == 0) & faces[:, 0], (self.high == ends) & faces[:, 1]
        touching: NDArray[np.bool_] = (before | behind).any(axis=1)
        return touching

    def at(self, voxels: NDArray[np.int64]) -> NDArray[np.uint32]:
        """(V,) the component that holds each of (V, 3) voxels, all of them of a component."""
        first = np.ravel_multi_index(tuple(self.runs[:, :3].T), self.shape)
        place = np.ravel_multi_index(tuple(voxels.T), self.shape)
        found: NDArray[np.uint32] = self.number[np.searchsorted(first, place, side="right") - 1]
        return found

    def face(self, axis: int, depth: int) -> NDArray[np.uint32]:
        """The component of each voxel of one plane."""
        plane = np.zeros([1 if k == axis else n for k, n in enumerate(self.shape)], np.uint32)
        origin = np.zeros(3, np.int64)
        origin[axis] = depth
        _paint_plane(self.runs, self.number, origin, plane)
        return plane.reshape(np.delete(self.shape, axis))

    def by_segment(self) -> list[Component]:
        """Each component by itself: labels ascending, then by first voxel."""
        order = np.argsort(self.number, kind="stable")
        cuts = np.searchsorted(self.number[order], np.arange(1, len(self.labels) + 2))
        return [
            Component(
                c + 1,
                int(self.labels[c]),
                int(self.counts[c]),
                self.low[c],
                self.high[c],
                self.runs[order[cuts[c] : cuts[c + 1]]],
            )
            for c in np.argsort(self.labels, kind="stable").tolist()
        ]


def find_components(labels: NDArray[np.uint64]) -> Components:
    """The 26-connected components of each label of (Z, Y, X); 0 is background."""
    rows, runs, ids = _find_runs(np.ascontiguousarray(labels))
    number = _join_runs(rows, runs, ids, labels.shape[1])
    _, first = np.unique(number, return_index=True)
    counts, low, high = _extents(runs, number, len(first))
    z, y, x = labels.shape
    return Components((z, y, x), runs, number, ids[first], counts, low, high)


@njit(cache=True, nogil=True)
def _find_runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first run of each row, the runs, and their labels."""
    depth, height, width = labels.shape
    rows = np.zeros(depth * height + 1, np.int64)
    runs = np.empty((1024, 4), np.int64)
    ids = np.empty(1024, np.uint64)
    count = 0
    nothing = np.uint64(0)
    for z in range(depth):
        for y in range(height):
            row = labels[z, y]
            previous = nothing
            for x in range(width):
                if row[x] == previous:
                    continue
                if previous != nothing:
                    runs[count - 1, 3] = x - 1
                previous = row[x]
                if previous == nothing:
                    continue
                if count == len(runs):
                    runs = np.concatenate((runs, np.empty_like(runs)))
                    ids = np.concatenate((ids, np.empty_like(ids)))
                runs[count, 0], runs[count, 1], runs[count, 2] = z, y, x
                ids[count] = previous
                count += 1
            if previous != nothing:
                runs[count - 1, 3] = width - 1
            rows[z * height + y + 1] = count
    return rows, runs[:count].copy(), ids[:count].copy()


@njit(cache=True, nogil=True)
def _join_runs(rows: np.ndarray, runs: np.ndarray, ids: np.ndarray, height: int) -> np.ndarray:
    """The component of each run, 1 upwards in the order of first runs."""
    parent = np.arange(len(runs))
    for row in range(len(rows) - 1):
        if rows[row] == rows[row + 1]:
            continue
        z, y = row // height, row % height
        for dz, dy in ((-1, -1), (-1, 0), (-1, 1), (0, -1)):
            if z + dz >= 0 and 0 <= y + dy < height:
                _join_rows(rows, runs, ids, parent, row, row + dz * height + dy)
    number = np.empty(len(runs), np.uint32)
    found = 0
    for run in range(len(runs)):
        root = _root(parent, run)
        if root == run:
            found += 1
            number[run] = found
        else:
            number[run] = number[root]
    return number


@njit(cache=True, nogil=True)
def _root(parent: np.ndarray, run: int) -> int:
    while parent[run] != run:
        parent[run] = parent[parent[run]]
        run = parent[run]
    return run


@njit(cache=True, nogil=True)
def _join_rows(
    rows: np.ndarray, runs: np.ndarray, ids: np.ndarray, parent: np.ndarray, here: int, there: int
) -> None:
    """Join the runs of two rows that touch, corners included; the first run is the root."""
    a, b = rows[here], rows[there]
    while a < rows[here + 1] and b < rows[there + 1]:
        _join_touching(runs, ids, parent, a, b)
        step_a, step_b = runs[a, 3] <= runs[b, 3], runs[b, 3] <= runs[a, 3]
        if step_a and step_b:
            # Both end at one voxel: each may touch the next run of the other row at a corner.
            if a + 1 < rows[here + 1]:
                _join_touching(runs, ids, parent, a + 1, b)
            if b + 1 < rows[there + 1]:
                _join_touching(runs, ids, parent, a, b + 1)
        a += step_a
        b += step_b


@njit(cache=True, nogil=True)
def _join_touching(runs: np.ndarray, ids: np.ndarray, parent: np.ndarray, a: int, b: int) -> None:
    if ids[a] == ids[b] and runs[a, 2] <= runs[b, 3] + 1 and runs[b, 2] <= runs[a, 3] + 1:
        first, second = _root(parent, a), _root(parent, b)
        parent[max(first, second)] = min(first, second)


@njit(cache=True, nogil=True)
def _extents(
    runs: np.ndarray, number: np.ndarray, found: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counts = np.zeros(found, np.int64)
    low = np.full((found, 3), np.iinfo(np.int64).max)
    high = np.full((found, 3), -1)
    for run in range(len(runs)):
        c = number[run] - 1
        z, y, first, last = runs[run]
        counts[c] += last - first + 1
        low[c, 0], high[c, 0] = min(low[c, 0], z), max(high[c, 0], z)
        low[c, 1], high[c, 1] = min(low[c, 1], y), max(high[c, 1], y)
        low[c, 2], high[c, 2] = min(low[c, 2], first), max(high[c, 2], last)
    return counts, low, high


@njit(cache=True, nogil=True)
def _paint(runs: np.ndarray, low: np.ndarray, mask: np.ndarray) -> None:
    for run in range(len(runs)):
        z, y = runs[run, 0] - low[0] + 1, runs[run, 1] - low[1] + 1
        mask[z, y, runs[run, 2] - low[2] + 1 : runs[run, 3] - low[2] + 2] = True


@njit(cache=True, nogil=True)
def _paint_plane(
    runs: np.ndarray, number: np.ndarray, origin: np.ndarray, plane: np.ndarray
) -> None:
    depth, height, width = plane.shape
    for run in range(len(runs)):
        z, y = runs[run, 0] - origin[0], runs[run, 1] - origin[1]
        if 0 <= z < depth and 0 <= y < height:
            first, last = runs[run, 2] - origin[2], runs[run, 3] - origin[2]
            for x in range(max(first, 0), min(last + 1, width)):
                plane[z, y, x] = number[run]


def copy_voxels(
    component: Component,
    source: NDArray[np.float32],
    source_low: NDArray[np.int64],
    target: NDArray[np.float32],
    target_low: NDArray[np.int64],
) -> None:
    """Copy the values at its voxels from one box to another; `low` is the first voxel of each."""
    _copy_runs(component.runs, source, source_low, target, target_low)


@njit(cache=True, nogil=True)
def _copy_runs(
    runs: np.ndarray,
    source: np.ndarray,
    source_low: np.ndarray,
    target: np.ndarray,
    target_low: np.ndarray,
) -> None:
    for run in range(len(runs)):
        z, y = runs[run, 0], runs[run, 1]
        from_row = source[z - source_low[0], y - source_low[1]]
        onto_row = target[z - target_low[0], y - target_low[1]]
        for x in range(runs[run, 2], runs[run, 3] + 1):
            onto_row[x - target_low[2]] = from_row[x - source_low[2]]


def distance_inside(
    component: Component, shape: tuple[int, int, int], voxel_size_nm: VoxelSize
) -> NDArray[np.float32]:
    """(Z, Y, X) of the component's box: nanometres to the nearest voxel that is not of it; 0 there.

    The faces of the block of this shape are no boundary, unless the component is all of it.
    """
    z, y, x = component.box
    along_x, in_plane = np.zeros((z + 2, y + 2, x + 2)), np.zeros((z + 2, y + 2, x + 2))
    whole = component.count == np.prod(shape)
    # The first and the last plane of the box with its rim that may hold a boundary.
    first = np.where((component.low == 0) & ~whole, 1, 0)
    last = np.asarray(component.box) + np.where(
        (component.high == np.asarray(shape) - 1) & ~whole, 0, 1
    )
    distance = np.zeros((z, y, x), np.float32)
    size = np.asarray(voxel_size_nm, np.float64)
    _measure(component.runs, component.low, first, last, size, along_x, in_plane, distance)
    return distance


@njit(cache=True, nogil=True)
def _measure(
    runs: np.ndarray,
    low: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    size: np.ndarray,
    along_x: np.ndarray,
    in_plane: np.ndarray,
    distance: np.ndarray,
) -> None:
    """Squares along x, then in the plane, then in space: each voxel looks as far as it must.

    Outside the component, the squares are 0.
    """
    for run in range(len(runs)):
        z, y = runs[run, 0] - low[0] + 1, runs[run, 1] - low[1] + 1
        start, end = runs[run, 2] - low[2] + 1, runs[run, 3] - low[2] + 1
        for x in range(start, end + 1):
            best = np.inf
            if start > first[2]:
                best = float(x - start + 1)
            if end < last[2]:
                best = min(best, float(end - x + 1))
            along_x[z, y, x] = (best * size[2]) ** 2
    for run in range(len(runs)):
        z, y = runs[run, 0] - low[0] + 1, runs[run, 1] - low[1] + 1
        for x in range(runs[run, 2] - low[2] + 1, runs[run, 3] - low[2] + 2):
            in_plane[z, y, x] = _least(along_x[z, :, x], y, first[1], last[1], size[1])
    for run in range(len(runs)):
        z, y = runs[run, 0] - low[0] + 1, runs[run, 1] - low[1] + 1
        for x in range(runs[run, 2] - low[2] + 1, runs[run, 3] - low[2] + 2):
            square = _least(in_plane[:, y, x], z, first[0], last[0], size[0])
            distance[z - 1, y - 1, x - 1] = np.sqrt(square)


@njit(cache=True, nogil=True)
def _least(squares: np.ndarray, here: int, first: int, last: int, step: float) -> float:
    """The least of squares + (way along the axis)^2."""
    best = squares[here]
    for k in range(1, max(here - first, last - here) + 1):
        way = (k * step) ** 2
        if way >= best:
            break
        if here - k >= first:
            best = min(best, squares[here - k] + way)
        if here + k <= last:
            best = min(best, squares[here + k] + way)
    return best


@njit(cache=True, nogil=True)
def _list_voxels(runs: np.ndarray, count: int) -> np.ndarray:
    voxels = np.empty((count, 3), np.int64)
    row = 0
    for run in range(len(runs)):
        for x in range(runs[run, 2], runs[run, 3] + 1):
            voxels[row, 0], voxels[row, 1], voxels[row, 2] = runs[run, 0], runs[run, 1], x
            row += 1
    return voxels


def _earlier_steps() -> list[tuple[int, ...]]:
    """The 13 neighbours of a voxel that come before it in C order."""
    return [step for step in product((-1, 0, 1), repeat=3) if step < (0, 0, 0)]


def _cell_table() -> NDArray[np.int8]:
    """(8192,) what a voxel adds to the Euler characteristic, by which earlier neighbours are there.

    A voxel is a closed cube of 27 cells: 8 vertices, 12 edges, 6 squares, its inside. It counts
    those that no earlier voxel has counted.
    """
    earlier = _earlier_steps()
    codes = np.arange(1 << len(earlier))
    table = np.zeros(len(codes), np.int8)
    for cell in product((-1, 0, 1), repeat=3):
        shared = [
            1 << bit
            for bit, step in enumerate(earlier)
            if all(s in (0, c) for s, c in zip(step, cell, strict=True))
        ]
        sign = 1 if cell.count(0) % 2 == 0 else -1
        table += (sign * ((codes & sum(shared)) == 0)).astype(np.int8)
    return table


_CELLS = _cell_table()
_EARLIER = np.array(_earlier_steps(), np.int64)


def euler_of_component(component: Component, mask: Mask) -> int:
    """Components minus tunnels plus cavities (26 neighbours) of a component and its `mask()`."""
    strides = np.array([mask.shape[1] * mask.shape[2], mask.shape[2], 1], np.int64)
    return int(_sum_cells(component.runs, component.low, mask, _EARLIER @ strides, _CELLS))


@njit(cache=True, nogil=True)
def _sum_cells(
    runs: np.ndarray, low: np.ndarray, mask: np.ndarray, earlier: np.ndarray, table: np.ndarray
) -> int:
    flat = mask.ravel()
    _, height, width = mask.shape
    total = 0
    for run in range(len(runs)):
        row = ((runs[run, 0] - low[0] + 1) * height + runs[run, 1] - low[1] + 1) * width
        for x in range(runs[run, 2] - low[2] + 1, runs[run, 3] - low[2] + 2):
            code = 0
            for bit in range(len(earlier)):
                if flat[row + x + earlier[bit]]:
                    code |= 1 << bit
            total += table[code]
    return total
