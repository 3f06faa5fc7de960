"""Which voxels lie nearer to one set of voxels than to another, exactly and in linear time.

Two distance transforms in one. The squared distance to the nearest voxel of either set is made
axis by axis: along x by two scans of each row, along y and z as the lower envelope of parabolas.
Which set the nearest voxel belongs to is carried along. Where both are equally far, the second set
wins: its voxels start at 0, those of the first at a hair more.

Only what is asked for is computed: rows and planes without a voxel of either set add no parabola,
and lines through the image without a wanted voxel are left out.

Source: Felzenszwalb & Huttenlocher 2012, doi:10.4086/toc.2012.v008a019.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.errors import InputError, ShapeError

Mask = NDArray[np.bool_]

# Squared distances in units of the smallest extent of a voxel that differ by less count as equal.
_HAIR = 1e-6


def nearer_to_first(first: Mask, second: Mask, within: Mask, voxel_size: tuple[float, ...]) -> Mask:
    """The voxels of `within` that are strictly nearer to `first` than to `second`.

    Distances are straight lines between voxel centres, through whatever lies between. Nothing is
    near an empty `first`; all is nearer to `first` where only `second` is empty.

    Args:
        first, second, within: (Y, X) or (Z, Y, X) bool; the sets have no voxel in common.
        voxel_size: extent of a voxel along each axis, positive, in any one unit.

    Raises:
        ShapeError: shapes differ, or have neither two nor three axes.
        InputError: the voxel size does not suit.
    """
    if first.ndim not in (2, 3) or not first.shape == second.shape == within.shape:
        raise ShapeError(
            "expected three masks of one shape (Y, X) or (Z, Y, X), got "
            f"{first.shape}, {second.shape}, {within.shape}"
        )
    if len(voxel_size) != first.ndim or not all(0 < size < np.inf for size in voxel_size):
        raise InputError(f"voxel size {voxel_size}: expected {first.ndim} positive numbers")
    if not first.any():
        return np.zeros(first.shape, np.bool_)
    if not second.any():
        return within.copy()
    extent = np.array((1.0,) * (3 - first.ndim) + voxel_size)
    space = (1,) * (3 - first.ndim) + first.shape
    weights = (extent / extent[-first.ndim :].min()) ** 2
    one, other, where = (mask.reshape(space) for mask in (first, second, within))
    found: Mask = _nearer(one, other, where, weights)
    return found.reshape(first.shape)


@njit(cache=True, nogil=True)
def _nearer(
    first: np.ndarray, second: np.ndarray, within: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    depth, height, width = first.shape
    # Planes a power of two apart would share the same few places in the cache.
    square = np.empty((depth, height * width + 8), np.float64)
    is_first = np.empty((depth, height * width + 8), np.bool_)
    wanted = np.zeros((height, width), np.bool_)
    for z in range(depth):
        wanted |= within[z]
    planes = np.empty(depth, np.int64)
    found = 0
    for z in range(depth):
        rows = _along_x(first[z], second[z], weights[2], square[z], is_first[z])
        if rows.size:
            _along_y(rows, wanted, weights[1], square[z], is_first[z])
            planes[found] = z
            found += 1
    return _along_z(planes[:found], within, wanted, weights[0], square, is_first)


@njit(cache=True, nogil=True)
def _along_x(
    first: np.ndarray, second: np.ndarray, weight: float, square: np.ndarray, kind: np.ndarray
) -> np.ndarray:
    """Fill the rows that hold a voxel of either set; returns their numbers."""
    height, width = first.shape
    rows = np.empty(height, np.int64)
    found = 0
    for y in range(height):
        last = -1
        for x in range(width):
            if first[y, x] or second[y, x]:
                last = x
            at = y * width + x
            square[at] = np.inf
            if last >= 0:
                kind[at] = first[y, last]
                square[at] = weight * (x - last) ** 2 + (_HAIR if kind[at] else 0.0)
        if last < 0:
            continue
        rows[found] = y
        found += 1
        for x in range(last, -1, -1):
            if first[y, x] or second[y, x]:
                last = x
            at = y * width + x
            value = weight * (x - last) ** 2 + (_HAIR if first[y, last] else 0.0)
            if value < square[at]:
                square[at], kind[at] = value, first[y, last]
    return rows[:found]


@njit(cache=True, nogil=True)
def _along_y(
    rows: np.ndarray, wanted: np.ndarray, weight: float, square: np.ndarray, kind: np.ndarray
) -> None:
    height, width = wanted.shape
    value, owner, edge = np.empty(rows.size), np.empty(rows.size, np.int64), np.empty(rows.size)
    kinds = np.empty(rows.size, np.bool_)
    for x in range(width):
        for i in range(rows.size):
            value[i], kinds[i] = square[rows[i] * width + x], kind[rows[i] * width + x]
        last = _envelope(rows, value, weight, owner, edge)
        k = 0
        for y in range(height):
            if wanted[y, x]:
                while k < last and edge[k + 1] < y:
                    k += 1
                i = owner[k]
                square[y * width + x] = value[i] + weight * (y - rows[i]) ** 2
                kind[y * width + x] = kinds[i]


@njit(cache=True, nogil=True)
def _along_z(
    planes: np.ndarray,
    within: np.ndarray,
    wanted: np.ndarray,
    weight: float,
    square: np.ndarray,
    kind: np.ndarray,
) -> np.ndarray:
    """Whether the nearest voxel is of the first set; nothing else is needed of the last axis."""
    depth, height, width = within.shape
    found = np.zeros(within.shape, np.bool_)
    value, owner = np.empty(planes.size), np.empty(planes.size, np.int64)
    edge = np.empty(planes.size)
    for y in range(height):
        for x in range(width):
            if not wanted[y, x]:
                continue
            at = y * width + x
            for i in range(planes.size):
                value[i] = square[planes[i], at]
            last = _envelope(planes, value, weight, owner, edge)
            k = 0
            for z in range(depth):
                if within[z, y, x]:
                    while k < last and edge[k + 1] < z:
                        k += 1
                    found[z, y, x] = kind[planes[owner[k]], at]
    return found


@njit(cache=True, nogil=True)
def _envelope(
    places: np.ndarray, value: np.ndarray, weight: float, owner: np.ndarray, edge: np.ndarray
) -> int:
    """The lower envelope of the parabolas value + weight * (t - place)^2.

    Parabola `owner[k]` is lowest from `edge[k]` to `edge[k + 1]`. Returns the last k.
    """
    k = 0
    owner[0], edge[0] = 0, -np.inf
    for i in range(1, places.size):
        while True:
            j = owner[k]
            apart = places[i] - places[j]
            rise = (value[i] - value[j]) / (weight * apart)
            cross = 0.5 * (rise + places[i] + places[j])
            if cross > edge[k]:
                break
            k -= 1
        k += 1
        owner[k], edge[k] = i, cross
    return k
