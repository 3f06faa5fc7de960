"""Which annotations a viewer loads first, and which cells of ever finer grids hold the others.

1. the annotations are put in a random order;
2. a level takes as many of the first that remain as leave no cell of its grid with more than
   `limit` of them: a uniform sample of all;
3. the next level has cells of half the size, for what remains, until nothing does.

Source: google/neuroglancer, src/datasource/precomputed/annotations.md, "Spatial index".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from pipeline.arrays.skeleton_forest import Floats, Integers

_SMALLEST_CELL = 16.0  # voxels along the longest side; what is denser is one level's business
_ROOT_HALF = 2.0**-0.5


@dataclass(frozen=True, eq=False)
class Level:
    """A grid of cells, of which those that hold something are listed.

    Attributes:
        grid: (3,) int64, number of cells along each axis.
        cell_size: (3,) float64, in the unit of the coordinates.
        cells: (C, 3) int64, the cells that hold something, in C order.
        rows: of each cell the annotations that it shows, in random order.
    """

    grid: Integers
    cell_size: Floats
    cells: Integers
    rows: list[Integers]


def spread_over_levels(
    ends: Floats, low: Floats, high: Floats, unit: Floats, limit: int
) -> list[Level]:
    """Levels from one cell to the finest that is needed; together they show each annotation.

    An annotation is on one level, in every cell that it crosses.

    Args:
        ends: (n, 1 or 2, 3) points, or the two ends of lines; from `low` to below `high`.
        low: (3,) lower corner of all grids.
        high: (3,) upper corner.
        unit: (3,) how long a unit of each axis is; cells are halved where they are longest.
        limit: of one cell, except on the finest level.
    """
    remaining = np.random.default_rng(0).permutation(len(ends))
    grid = np.ones(3, np.int64)
    levels: list[Level] = []
    while len(remaining) or not levels:
        size = (high - low) / grid
        at, cell = crossed_cells(ends[remaining], low, size, grid)
        order = np.argsort(cell, kind="stable")
        at, cell = at[order], cell[order]
        numbers, starts, counts = np.unique(cell, return_index=True, return_counts=True)
        full = counts > limit
        split = bool((size > _SMALLEST_CELL).any())
        cut = at[starts[full] + limit].min() if full.any() and split else len(remaining)
        shown = at < cut
        at, cell = at[shown], cell[shown]
        numbers, starts = np.unique(cell, return_index=True)
        cells = np.stack(np.unravel_index(numbers, grid), axis=1)
        rows = np.split(remaining[at], starts[1:]) if len(at) else []
        levels.append(Level(grid.copy(), size, cells, rows))
        remaining = remaining[cut:]
        long = size * unit
        grid = np.where(long > long.max() * _ROOT_HALF, 2 * grid, grid)
    return levels


@njit(cache=True, nogil=True)
def crossed_cells(
    ends: Floats, low: Floats, size: Floats, grid: Integers
) -> tuple[Integers, Integers]:
    """Every pair of an annotation and a cell that it crosses, annotation by annotation.

    Returns:
        The annotations, ascending; the cells, as places in C order.
    """
    count = _cross(ends, low, size, grid, np.empty(0, np.int64), np.empty(0, np.int64))
    annotation, cell = np.empty(count, np.int64), np.empty(count, np.int64)
    _cross(ends, low, size, grid, annotation, cell)
    return annotation, cell


@njit(cache=True, nogil=True)
def _cross(
    ends: Floats,
    low: Floats,
    size: Floats,
    grid: Integers,
    annotation: Integers,
    cell: Integers,
) -> int:
    """Fill in the pairs, if there is room for them; returns how many there are.

    A line is cut at the borders of cells axis by axis: its part between two planes of the first
    axis crosses so many cells of the second, and each part of that so many of the third.
    """
    count = 0
    last = ends.shape[1] - 1
    a, b = np.empty(3), np.empty(3)
    for i in range(len(ends)):
        for axis in range(3):
            a[axis] = (ends[i, 0, axis] - low[axis]) / size[axis]
            b[axis] = (ends[i, last, axis] - low[axis]) / size[axis]
        begin, end = _span(a[0], b[0], 0.0, 1.0, grid[0])
        for x in range(begin, end):
            x0, x1 = _between(a[0], b[0], x, 0.0, 1.0)
            begin_y, end_y = _span(a[1], b[1], x0, x1, grid[1])
            for y in range(begin_y, end_y):
                y0, y1 = _between(a[1], b[1], y, x0, x1)
                begin_z, end_z = _span(a[2], b[2], y0, y1, grid[2])
                for z in range(begin_z, end_z):
                    if len(cell):
                        annotation[count] = i
                        cell[count] = (x * grid[1] + y) * grid[2] + z
                    count += 1
    return count


@njit(cache=True, nogil=True)
def _span(a: float, b: float, start: float, stop: float, cells: int) -> tuple[int, int]:
    """The cells along an axis from one share of the way from a to b to another."""
    one, other = a + (b - a) * start, a + (b - a) * stop
    begin = int(np.floor(max(min(one, other), min(a, b))))
    end = int(np.floor(min(max(one, other), max(a, b))))
    begin = min(max(begin, 0), cells - 1)
    return begin, min(max(end, begin), cells - 1) + 1


@njit(cache=True, nogil=True)
def _between(a: float, b: float, cell: int, start: float, stop: float) -> tuple[float, float]:
    """The part of the way from a to b that lies in a cell along an axis."""
    if a == b:
        return start, stop
    enter, leave = (cell - a) / (b - a), (cell + 1 - a) / (b - a)
    if enter > leave:
        enter, leave = leave, enter
    first = min(max(enter, start), stop)
    return first, max(min(leave, stop), first)
