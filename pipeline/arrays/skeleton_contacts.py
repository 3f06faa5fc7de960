"""Where touching fragments meet: how large the contact is, and one voxel pair that stands for it.

A contact is a pair of face neighbours with two different labels, neither of them 0, as in the
region graph (`pipeline.arrays.edges`). Blocks that trace skeletons read one plane more on the
successor side, so here the pair (v, v + 1 along an axis) belongs to the block that writes v: all
blocks together count each pair once.

The joint of two fragments is the contact nearest to the mean of all their contacts. Counts and
position sums are integers that add, so the mean is exact over any blocks. The joint is chosen among
what blocks propose: it is a contact in any case, but where a contact patch crosses blocks, another
blocking may propose another pair. A second pass over the blocks with the table of the volume
(`about`) leaves no trace of the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.labels import Labels
from pipeline.errors import DtypeError, InputError, ShapeError
from pipeline.geometry import Triple, triple

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_START = 256  # rows and contacts that a block has room for at first


@dataclass(frozen=True, eq=False)
class Contacts:
    """One row per pair of touching fragments; sorted by (a, b), each pair once.

    Attributes:
        a, b: (n,) uint64, fragment ids, 0 < a < b.
        faces: (n, 3) int64, contacts across z, y and x: with the areas of the faces of a voxel,
            the size of the patch and how it is turned.
        place_sum: (n, 3) int64, sum over all contacts of the voxel in a plus the voxel in b:
            twice the mean place of the contact times `count`.
        place_a, place_b: (n, 3) int64, z, y, x of the two voxels of the joint in the volume.
    """

    a: NDArray[np.uint64]
    b: NDArray[np.uint64]
    faces: NDArray[np.int64]
    place_sum: NDArray[np.int64]
    place_a: NDArray[np.int64]
    place_b: NDArray[np.int64]

    def __post_init__(self) -> None:
        for item in fields(self):
            column = np.asarray(getattr(self, item.name))
            expected = (len(self.a),) if item.name in ("a", "b") else (len(self.a), 3)
            if column.shape != expected:
                raise ShapeError(f"contacts: {item.name} of shape {column.shape}, not {expected}")
            kind = np.uint64 if item.name in ("a", "b") else np.int64
            if column.dtype != kind:
                raise DtypeError(f"contacts: {item.name} holds {column.dtype}, not {kind.__name__}")
        if not (self.a < self.b).all() or not self.a.all():
            raise InputError("a row of contacts joins two different fragments, 0 < a < b")
        if not _ascend(self.a, self.b):
            raise InputError("contacts must be sorted by (a, b), each pair once")

    def __len__(self) -> int:
        return len(self.a)

    @property
    def count(self) -> NDArray[np.int64]:
        """(n,) number of contacts of each pair, at least 1."""
        return self.faces.sum(axis=1)

    def columns(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, for storage; `Contacts(**columns)` gives them back."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def empty(cls) -> Contacts:
        """A table without rows."""
        ids, places = np.zeros(0, np.uint64), np.zeros((0, 3), np.int64)
        return cls(ids, ids, places, places, places, places)


def _ascend(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> bool:
    return bool(((a[1:] > a[:-1]) | ((a[1:] == a[:-1]) & (b[1:] > b[:-1]))).all())


def find_contacts(
    labels: Labels, *, origin: Triple, write_shape: Triple, about: Contacts | None = None
) -> Contacts:
    """The contacts that one block owns.

    Args:
        labels: (Z, Y, X) uint64, the write ROI and at most one plane more on the successor side of
            each axis: where the volume goes on. 0 is background. Not changed.
        origin: the first voxel of `labels` in the volume.
        write_shape: extent of the write ROI.
        about: the combined table of the volume. Joints are then the contacts nearest to the means
            of that table, and combining the tables of all blocks gives the same for any blocking.

    Returns:
        One row per pair that touches in the block. Of contacts equally near to the mean, the joint
        is the one whose predecessor voxel comes first in C order, then the one along z, y, x.

    Temporary memory: 16 bytes per contact.

    Raises:
        ShapeError: `labels` has not three axes, or does not cover the write ROI and one plane.
        DtypeError: it is not uint64.
        InputError: `about` lacks a pair that touches here.
    """
    owned = _check(labels, write_shape)
    rows, code, a, b, faces, sums = _collect(np.ascontiguousarray(labels), np.array(owned))
    order = np.lexsort((b, a))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    a, b, faces, sums = a[order], b[order], faces[order], sums[order]
    begin = np.array(triple(origin, "origin"), np.int64)
    sums = sums + 2 * faces.sum(axis=1)[:, None] * begin
    counts, means = faces.sum(axis=1), sums
    if about is not None:
        at = _rows_of(about, a, b)
        counts, means = about.count[at], about.place_sum[at]
    first, axis = _nearest(rank[rows], code, np.array(owned), begin, counts, means)
    second = first + np.eye(3, dtype=np.int64)[axis]
    flip = _labels_at(labels, first - begin) != a
    place_a, place_b = (
        np.where(flip[:, None], second, first),
        np.where(flip[:, None], first, second),
    )
    return Contacts(a, b, faces, sums, place_a, place_b)


def _labels_at(labels: Labels, voxels: NDArray[np.int64]) -> NDArray[np.uint64]:
    return labels[tuple(voxels.T)]


def _check(labels: Labels, write_shape: Triple) -> Triple:
    if labels.ndim != 3:
        raise ShapeError(f"contacts: expected labels (Z, Y, X), got shape {labels.shape}")
    if labels.dtype != np.uint64:
        raise DtypeError(f"contacts: expected uint64 labels, got {labels.dtype}")
    owned = triple(write_shape, "write_shape")
    beyond = [n - w for n, w in zip(labels.shape, owned, strict=True)]
    if min(owned) < 1 or not all(0 <= more <= 1 for more in beyond):
        raise ShapeError(
            f"contacts: labels of shape {labels.shape} for a write ROI of {owned}; expected the "
            "write ROI and at most one plane more on the successor side"
        )
    return owned


def _rows_of(table: Contacts, a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The row of each pair, pairs sorted."""
    everything_a, everything_b = np.concatenate([table.a, a]), np.concatenate([table.b, b])
    source = np.arange(len(everything_a)) >= len(table)
    order = np.lexsort((source, everything_b, everything_a))
    slot = np.cumsum(~source[order]) - 1
    at = slot[source[order]]
    found = (at >= 0).all() and len(table) > 0 if len(a) else True
    if not found or (table.a[at] != a).any() or (table.b[at] != b).any():
        raise InputError("the table of the volume lacks a pair of this block: other labels?")
    return at


def combine_contacts(tables: Sequence[Contacts]) -> Contacts:
    """The table of all blocks together, in whatever order they come.

    Counts and position sums add, so the mean place of a pair's contacts is exact. The joint is, of
    those that the tables propose, the nearest to that mean; ties as in `find_contacts`. Where a
    contact patch crosses blocks, the proposals and so the joint depend on the blocking; by a second
    pass (`about`) they do not. No tables give an empty one.
    """
    parts = [Contacts.empty(), *tables]
    names = [item.name for item in fields(Contacts)]
    a, b, faces, sums, place_a, place_b = (
        np.concatenate([getattr(part, name) for part in parts]) for name in names
    )
    if not len(a):
        return Contacts.empty()
    pair = np.lexsort((b, a))
    fresh = np.append(True, (np.diff(a[pair]) != 0) | (np.diff(b[pair]) != 0))
    group = np.empty(len(a), np.int64)
    group[pair] = np.cumsum(fresh) - 1
    begins = np.flatnonzero(fresh)
    faces, sums = np.add.reduceat(faces[pair], begins), np.add.reduceat(sums[pair], begins)
    away = faces.sum(axis=1)[group, None] * (place_a + place_b) - sums[group]
    z, y, x = np.where(_precedes(place_a, place_b)[:, None], place_a, place_b).T
    axis = np.abs(place_a - place_b).argmax(axis=1)
    order = np.lexsort((axis, x, y, z, _squares(away), group))
    best = order[np.append(True, np.diff(group[order]) != 0)]
    return Contacts(a[best], b[best], faces, sums, place_a[best], place_b[best])


def _precedes(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether, of face neighbours, the first is the predecessor."""
    return (second - first).sum(axis=1) > 0


def _squares(steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Squared lengths, summed in the order of the kernel: equal input, equal output."""
    z, y, x = steps.astype(np.float64).T
    return z * z + y * y + x * x


@njit(cache=True, nogil=True)
def _home(a: np.uint64, b: np.uint64, mask: int) -> int:
    mixed = (a * _SPREAD + b) * _SPREAD
    return int(np.int64(mixed >> np.uint64(20)) & mask)


@njit(cache=True, nogil=True)
def _find(table: np.ndarray, a: np.ndarray, b: np.ndarray, low: np.uint64, high: np.uint64) -> int:
    """The slot of a pair, or the free slot where it belongs; -1 is free."""
    mask = table.size - 1
    slot = _home(low, high, mask)
    while table[slot] >= 0 and (a[table[slot]] != low or b[table[slot]] != high):
        slot = (slot + 1) & mask
    return slot


@njit(cache=True, nogil=True)
def _wider_table(size: int, a: np.ndarray, b: np.ndarray, used: int) -> np.ndarray:
    table = np.full(size, -1, np.int64)
    for row in range(used):
        table[_find(table, a, b, a[row], b[row])] = row
    return table


@njit(cache=True, nogil=True)
def _longer(column: np.ndarray) -> np.ndarray:
    out = np.zeros(2 * column.size, column.dtype)
    out[: column.size] = column
    return out


@njit(cache=True, nogil=True)
def _longer_rows(columns: np.ndarray) -> np.ndarray:
    out = np.zeros((2 * columns.shape[0], columns.shape[1]), columns.dtype)
    out[: columns.shape[0]] = columns
    return out


@njit(cache=True, nogil=True)
def _collect(
    labels: np.ndarray, owned: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All contacts (row, 3 * index in the write ROI + axis), and the rows: a, b, faces, sums."""
    rows, codes = np.zeros(_START, np.int64), np.zeros(_START, np.int64)
    a, b = np.zeros(_START, np.uint64), np.zeros(_START, np.uint64)
    faces, sums = np.zeros((_START, 3), np.int64), np.zeros((_START, 3), np.int64)
    table = np.full(4 * _START, -1, np.int64)
    found, used, row = 0, 0, 0
    last_a, last_b = np.uint64(0), np.uint64(0)
    for z in range(owned[0]):
        below = min(z + 1, labels.shape[0] - 1)
        for y in range(owned[1]):
            line = labels[z, y]
            line_below = labels[below, y]
            line_next = labels[z, min(y + 1, labels.shape[1] - 1)]
            for x in range(owned[2]):
                here = line[x]
                if here == 0:
                    continue
                beside = line[min(x + 1, line.size - 1)]
                if line_below[x] == here and line_next[x] == here and beside == here:
                    continue  # inside: several times faster than the loop over axes
                for axis in range(3):
                    nz, ny, nx = z + (axis == 0), y + (axis == 1), x + (axis == 2)
                    if nz == labels.shape[0] or ny == labels.shape[1] or nx == labels.shape[2]:
                        continue
                    there = labels[nz, ny, nx]
                    if there == here or there == 0:
                        continue
                    low, high = min(here, there), max(here, there)
                    if low != last_a or high != last_b:
                        last_a, last_b = low, high
                        slot = _find(table, a, b, low, high)
                        row = table[slot]
                        if row < 0:
                            if used == a.size:
                                a, b = _longer(a), _longer(b)
                                faces, sums = _longer_rows(faces), _longer_rows(sums)
                                table = _wider_table(2 * table.size, a, b, used)
                                slot = _find(table, a, b, low, high)
                            row = used
                            table[slot] = row
                            a[row], b[row] = low, high
                            used += 1
                    if found == rows.size:
                        rows, codes = _longer(rows), _longer(codes)
                    rows[found] = row
                    codes[found] = 3 * ((z * owned[1] + y) * owned[2] + x) + axis
                    found += 1
                    faces[row, axis] += 1
                    sums[row, 0] += z + nz
                    sums[row, 1] += y + ny
                    sums[row, 2] += x + nx
    return rows[:found], codes[:found], a[:used], b[:used], faces[:used], sums[:used]


@njit(cache=True, nogil=True)
def _nearest(
    rows: np.ndarray,
    codes: np.ndarray,
    owned: np.ndarray,
    begin: np.ndarray,
    counts: np.ndarray,
    sums: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """For each row the predecessor voxel and the axis of the contact nearest to sums / counts."""
    place = np.zeros((counts.size, 3), np.int64)
    axes = np.zeros(counts.size, np.int64)
    least = np.full(counts.size, np.inf)
    for k in range(rows.size):
        row, axis, index = rows[k], codes[k] % 3, codes[k] // 3
        x = index % owned[2] + begin[2]
        y = index // owned[2] % owned[1] + begin[1]
        z = index // owned[2] // owned[1] + begin[0]
        dz = np.float64(counts[row] * (2 * z + (axis == 0)) - sums[row, 0])
        dy = np.float64(counts[row] * (2 * y + (axis == 1)) - sums[row, 1])
        dx = np.float64(counts[row] * (2 * x + (axis == 2)) - sums[row, 2])
        square = dz * dz + dy * dy + dx * dx
        if square < least[row]:
            least[row] = square
            axes[row] = axis
            place[row, 0], place[row, 1], place[row, 2] = z, y, x
    return place, axes
