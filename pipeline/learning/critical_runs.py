"""The objects of a label image as runs along x, and which runs are neighbours.

A run is as long as label and correctness stay the same along x: it is mistaken or right throughout.
Runs are numbered in C order. An image has far fewer runs than voxels, and two rows of runs are
compared in one walk along both: so the cost hardly depends on the connectivity.

The union of neighbouring runs of one label and one correctness gives the *parts*: mistake
components, and components of what remains of the objects. Neighbouring runs of one label of which
one is mistaken are *meetings*: they tell which mistake component touches which remaining component.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.learning.disjoint import apart, flatten, union

Labels3 = NDArray[np.uint64]
"""(Z, Y, X), C order, 0 outside objects."""


class Runs(NamedTuple):
    """Runs in C order.

    Attributes:
        row_start: (Z * Y + 1,) int32; row r holds the runs from row_start[r] to row_start[r + 1].
        begin, end: (n,) int32, half-open interval along x.
        label: (n,) uint64, not 0.
        mistaken: (n,) bool.
    """

    row_start: NDArray[np.int32]
    begin: NDArray[np.int32]
    end: NDArray[np.int32]
    label: NDArray[np.uint64]
    mistaken: NDArray[np.bool_]


class Parts(NamedTuple):
    """What runs form together.

    Attributes:
        of_run: (n,) int32, the first run of the part that a run belongs to.
        mistake, right: (m,) int32, the runs of each meeting; some pairs of parts meet often.
    """

    of_run: NDArray[np.int32]
    mistake: NDArray[np.int32]
    right: NDArray[np.int32]


def cut_runs(objects: Labels3, other: Labels3) -> Runs:
    """The runs of `objects`; a voxel is mistaken where `other` is 0. Same shape."""
    rows = objects.shape[0] * objects.shape[1]
    nx = objects.shape[2]
    flat, lacking = objects.reshape(rows, nx), other.reshape(rows, nx)
    # As large as can be needed: memory that is not written is not taken.
    begin, end = np.empty(flat.size, np.int32), np.empty(flat.size, np.int32)
    label, mistaken = np.empty(flat.size, np.uint64), np.empty(flat.size, np.bool_)
    row_start = np.empty(rows + 1, np.int32)
    _cut(flat, lacking, row_start, begin, end, label, mistaken)
    n = int(row_start[-1])
    return Runs(row_start, begin[:n], end[:n], label[:n], mistaken[:n])


@njit(cache=True, nogil=True)
def _cut(
    objects: Labels3,
    other: Labels3,
    row_start: NDArray[np.int32],
    begin: NDArray[np.int32],
    end: NDArray[np.int32],
    label: NDArray[np.uint64],
    mistaken: NDArray[np.bool_],
) -> None:
    rows, nx = objects.shape
    n = 0
    row_start[0] = 0
    for r in range(rows):
        row, lacking = objects[r], other[r]
        x = 0
        while x < nx:
            here = row[x]
            if here != 0:
                missed = lacking[x] == 0
                begin[n], label[n], mistaken[n] = x, here, missed
                x += 1
                while x < nx and row[x] == here and (lacking[x] == 0) == missed:
                    x += 1
                end[n] = x
                n += 1
            else:
                x += 1
        row_start[r + 1] = n


@njit(cache=True, nogil=True)
def join_runs(runs: Runs, ny: int, rows: NDArray[np.int64]) -> Parts:
    """Parts and meetings.

    Args:
        runs: of an image with `ny` rows a plane.
        rows: (k, 3) int64, the rows before a row in which it has neighbours: steps along z and y,
            and 1 if x may differ by one between neighbours, else 0.
    """
    parent = apart(runs.begin.size)
    meetings = np.empty((1024, 2), np.int32)
    count = 0
    for r in range(runs.row_start.size - 1):
        here = runs.row_start[r + 1] - runs.row_start[r]
        if here == 0:
            continue
        meetings = with_room(meetings, count + here)
        count = _meet_in_row(runs, r, meetings, count)
        for k in range(len(rows)):
            w, v = r // ny + rows[k, 0], r % ny + rows[k, 1]
            if w >= 0 and 0 <= v < ny:
                q = w * ny + v
                there = runs.row_start[q + 1] - runs.row_start[q]
                meetings = with_room(meetings, count + 2 * (here + there))
                count = _meet_rows(runs, parent, r, q, rows[k, 2], meetings, count)
    flatten(parent)
    return Parts(parent, meetings[:count, 0], meetings[:count, 1])


@njit(cache=True, nogil=True)
def with_room(pairs: NDArray[np.int32], needed: int) -> NDArray[np.int32]:
    """The same pairs, (n, 2), with place for `needed` in all."""
    if needed <= len(pairs):
        return pairs
    larger = np.empty((2 * needed, 2), np.int32)
    larger[: len(pairs)] = pairs
    return larger


@njit(cache=True, nogil=True)
def _meet_in_row(runs: Runs, r: int, meetings: NDArray[np.int32], count: int) -> int:
    """Meetings of a row's runs that follow each other without a gap; gives the new count."""
    for a in range(runs.row_start[r] + 1, runs.row_start[r + 1]):
        if runs.begin[a] == runs.end[a - 1] and runs.label[a] == runs.label[a - 1]:
            count = _note(runs, a, a - 1, meetings, count)
    return count


@njit(cache=True, nogil=True)
def _meet_rows(
    runs: Runs,
    parent: NDArray[np.int32],
    r: int,
    q: int,
    reach: int,
    meetings: NDArray[np.int32],
    count: int,
) -> int:
    """Join or note all pairs of neighbouring runs of two rows; gives the new count."""
    a, b = runs.row_start[r], runs.row_start[q]
    a_stop, b_stop = runs.row_start[r + 1], runs.row_start[q + 1]
    while a < a_stop and b < b_stop:
        if runs.begin[a] < runs.end[b] + reach and runs.begin[b] < runs.end[a] + reach:
            count = _meet(runs, parent, a, b, meetings, count)
        if runs.end[a] < runs.end[b]:
            a += 1
            continue
        # Runs that end together: each may touch, over the corner, the one after the other.
        corner = runs.end[a] == runs.end[b] and a + 1 < a_stop
        if corner and runs.begin[a + 1] < runs.end[b] + reach:
            count = _meet(runs, parent, a + 1, b, meetings, count)
        b += 1
    return count


@njit(cache=True, nogil=True)
def _meet(
    runs: Runs, parent: NDArray[np.int32], a: int, b: int, meetings: NDArray[np.int32], count: int
) -> int:
    if runs.label[a] != runs.label[b]:
        return count
    if runs.mistaken[a] != runs.mistaken[b]:
        return _note(runs, a, b, meetings, count)
    union(parent, a, b)
    return count


@njit(cache=True, nogil=True)
def _note(runs: Runs, a: int, b: int, meetings: NDArray[np.int32], count: int) -> int:
    """Write down a meeting; gives the new count."""
    if runs.mistaken[b]:
        a, b = b, a
    meetings[count, 0], meetings[count, 1] = a, b
    return count + 1


@njit(cache=True, nogil=True)
def number_runs(parts: Parts, critical: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Consecutive numbers, from 1, of the critical parts, at each of their runs; else 0."""
    numbers = np.zeros(critical.size, np.int32)
    count = 0
    for i in range(numbers.size):
        first = parts.of_run[i]
        if critical[first]:
            if first == i:
                count += 1
                numbers[i] = count
            else:
                numbers[i] = numbers[first]
    return numbers


@njit(cache=True, nogil=True)
def paint_runs(runs: Runs, numbers: NDArray[np.int32], out: NDArray[np.int32]) -> None:
    """Write the numbers of runs, where not 0, into `out` (rows, X)."""
    for r in range(runs.row_start.size - 1):
        for i in range(runs.row_start[r], runs.row_start[r + 1]):
            if numbers[i] > 0:
                out[r, runs.begin[i] : runs.end[i]] = numbers[i]
