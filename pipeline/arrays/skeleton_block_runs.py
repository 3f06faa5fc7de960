"""The objects of a block as runs of voxels: one pass over the labels, then work on the foreground.

A block of thin neurites is background but for a hundredth. A run is a stretch of one label along x;
runs of neighbouring rows that touch (26 neighbours) and bear one label are one component. Any
uint64 is an id, and components are numbered by their first voxel in C order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.geometry import Roi, Triple

_AT_ONCE = 16  # voxels of background that are passed in one step


@dataclass(frozen=True, eq=False)
class Component:
    """One connected piece of a label.

    Attributes:
        number: 1 .. C, by the first voxel.
        label: its id.
        count: voxels.
        low, high: (3,) int64, its first and its last plane along each axis.
        runs: (R, 4) int64, z, y, first x, last x; ascending.
        starts: (R,) int64, the row of the first voxel of each run among all voxels of the block.
    """

    number: int
    label: int
    count: int
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    runs: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def box(self) -> tuple[int, int, int]:
        """Extent in voxels."""
        z, y, x = (self.high - self.low + 1).tolist()
        return z, y, x

    def voxels(self) -> NDArray[np.int64]:
        """(N, 3) its voxels in the block, in C order."""
        return _list_voxels(self.runs, self.count)

    def rows(self) -> NDArray[np.int64]:
        """(N,) where its voxels stand among all of the block, ascending."""
        return _list_rows(self.runs, self.starts, self.count)


@dataclass(frozen=True, eq=False)
class Components:
    """All components of a block, as columns; row c is component c + 1.

    The voxels of a block are numbered in C order, background left out: their rows.

    Attributes:
        shape: of the block.
        runs: (R, 4) int64, z, y, first x, last x; in C order.
        starts: (R,) int64, the row of the first voxel of each run.
        number: (R,) uint32, the component of each run.
        labels: (C,) uint64.
        counts: (C,) int64, voxels.
        low, high: (C, 3) int64, first and last plane.
    """

    shape: tuple[int, int, int]
    runs: NDArray[np.int64]
    starts: NDArray[np.int64]
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

    def voxels(self) -> NDArray[np.int64]:
        """(N, 3) all voxels, by row."""
        return _list_voxels(self.runs, int(self.counts.sum()))

    def number_of_voxels(self) -> NDArray[np.uint32]:
        """(N,) the component of each voxel, by row."""
        return np.repeat(self.number, self.runs[:, 3] - self.runs[:, 2] + 1)

    def by_segment(self) -> list[Component]:
        """Each component by itself: labels ascending, then by first voxel."""
        return [self.part(c + 1) for c in np.argsort(self.labels, kind="stable").tolist()]

    def part(self, number: int) -> Component:
        """One component by itself."""
        order, cuts = self._runs_by_number
        mine = order[cuts[number - 1] : cuts[number]]
        c = number - 1
        return Component(
            number,
            int(self.labels[c]),
            int(self.counts[c]),
            self.low[c],
            self.high[c],
            self.runs[mine],
            self.starts[mine],
        )

    @cached_property
    def _runs_by_number(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.number, kind="stable")
        return order, np.searchsorted(self.number[order], np.arange(1, len(self.labels) + 2))


def find_components(labels: NDArray[np.uint64]) -> Components:
    """The 26-connected components of each label of (Z, Y, X); 0 is background."""
    rows, runs, ids = _find_runs(np.ascontiguousarray(labels))
    z, y, x = labels.shape
    return _as_components((z, y, x), rows, runs, ids)


def keep_voxels(components: Components, kept: NDArray[np.bool_], box: Roi) -> Components:
    """What is left of a block: its voxels that are kept, in a box that holds them all.

    Args:
        components: of the block.
        kept: (N,) by row.
        box: relative to the block.

    Returns:
        The components of what is left; its rows are the kept ones, in their order.
    """
    ids = components.labels[components.number - 1]
    low = np.array(box.offset, np.int64)
    rows, runs, ids = _cut_runs(components.runs, ids, kept, low, box.shape[0], box.shape[1])
    return _as_components(box.shape, rows, runs, ids)


def _as_components(
    shape: Triple, rows: NDArray[np.int64], runs: NDArray[np.int64], ids: NDArray[np.uint64]
) -> Components:
    number = _join_runs(rows, runs, ids, shape[1])
    _, first = np.unique(number, return_index=True)
    counts, low, high = _extents(runs, number, len(first))
    lengths = runs[:, 3] - runs[:, 2] + 1
    starts = np.cumsum(lengths) - lengths
    return Components(shape, runs, starts, number, ids[first], counts, low, high)


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
            x = -1
            while x + 1 < width:
                x += 1
                if previous == nothing and x + _AT_ONCE <= width and _all_zero(row, x):
                    x += _AT_ONCE - 1
                    continue
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
def _all_zero(row: np.ndarray, begin: int) -> bool:
    """Whether the next voxels are background; many at once, most of a volume is."""
    found = np.uint64(0)
    for k in range(_AT_ONCE):
        found |= row[begin + k]
    return bool(found == np.uint64(0))


@njit(cache=True, nogil=True)
def _cut_runs(
    runs: np.ndarray, ids: np.ndarray, kept: np.ndarray, low: np.ndarray, depth: int, height: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_find_runs`, of the kept voxels of runs, in a box."""
    rows = np.zeros(depth * height + 1, np.int64)
    cut = np.empty((len(kept), 4), np.int64)
    names = np.empty(len(kept), np.uint64)
    count, voxel = 0, 0
    for run in range(len(runs)):
        z, y = runs[run, 0] - low[0], runs[run, 1] - low[1]
        within = False
        for x in range(runs[run, 2] - low[2], runs[run, 3] - low[2] + 1):
            if kept[voxel]:
                if not within:
                    cut[count, 0], cut[count, 1], cut[count, 2] = z, y, x
                    names[count] = ids[run]
                    count += 1
                    rows[z * height + y + 1] = count
                cut[count - 1, 3] = x
            within = kept[voxel]
            voxel += 1
    for row in range(1, len(rows)):
        rows[row] = max(rows[row], rows[row - 1])
    return rows, cut[:count].copy(), names[:count].copy()


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


@njit(cache=True, nogil=True)
def _list_voxels(runs: np.ndarray, count: int) -> np.ndarray:
    voxels = np.empty((count, 3), np.int64)
    row = 0
    for run in range(len(runs)):
        for x in range(runs[run, 2], runs[run, 3] + 1):
            voxels[row, 0], voxels[row, 1], voxels[row, 2] = runs[run, 0], runs[run, 1], x
            row += 1
    return voxels


@njit(cache=True, nogil=True)
def _list_rows(runs: np.ndarray, starts: np.ndarray, count: int) -> np.ndarray:
    rows = np.empty(count, np.int64)
    at = 0
    for run in range(len(runs)):
        for k in range(runs[run, 3] - runs[run, 2] + 1):
            rows[at] = starts[run] + k
            at += 1
    return rows
