"""The soft skeleton of one volume and its gradient, as compiled loops.

A level is an image with a border of `ABSENT`, which also stands at voxels that do not exist; a
volume one voxel deep has no border along z. Values lie in 0 to 1, and `ABSENT` is above them: so it
is no minimum where there is a value, and is passed over where the maximum is looked for.

Where several neighbours share the minimum or maximum, the gradient goes to the voxel itself if it
is one of them, else to the first in C order.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

ABSENT = 2.0
EMPTY = 1e-6
"""An image without a value above this is taken for empty."""

Volume = NDArray[np.floating]


def first_level(values: Volume, valid: NDArray[np.bool_]) -> Volume:
    """(Z, Y, X) values with their border, `ABSENT` where not valid."""
    deep = int(values.shape[0] > 1)
    level = np.full(
        (values.shape[0] + 2 * deep, values.shape[1] + 2, values.shape[2] + 2),
        ABSENT,
        values.dtype,
    )
    inner = level[1:-1, 1:-1, 1:-1] if deep else level[:, 1:-1, 1:-1]
    np.copyto(inner, values, where=valid)
    return level


@njit(cache=True, nogil=True)
def is_empty(level: np.ndarray) -> bool:
    """Whether no voxel of a level has a value to speak of."""
    for value in level.reshape(-1):  # noqa: SIM110 - numba compiles no generators
        if EMPTY < value < ABSENT:
            return False
    return True


@njit(cache=True, nogil=True)
def erode(level: np.ndarray) -> np.ndarray:
    """The next level: the minimum of each voxel and its neighbours along the axes."""
    depth, height, width = level.shape
    deep = int(depth > 1)
    out = np.empty_like(level)
    absent = level.dtype.type(ABSENT)
    for z in range(depth):
        if deep and (z == 0 or z == depth - 1):
            out[z] = absent
            continue
        out[z, 0] = out[z, height - 1] = absent
        for y in range(1, height - 1):
            row, above, below = level[z, y], level[z, y - 1], level[z, y + 1]
            front, back = level[z - deep, y], level[z + deep, y]
            to = out[z, y]
            to[0] = to[width - 1] = absent
            for x in range(1, width - 1):
                value = row[x]
                lowest = min(min(row[x - 1], value), row[x + 1])
                lowest = min(lowest, min(above[x], below[x]))
                lowest = min(lowest, min(front[x], back[x]))
                to[x] = absent if value == absent else lowest
    return out


@njit(cache=True, nogil=True)
def strip(level: np.ndarray, eroded: np.ndarray, left: np.ndarray) -> None:
    """Multiply `left` (Z, Y, X) by 1 - what opening takes from a level, in place."""
    depth, height, width = left.shape
    deep = int(depth > 1)
    wide = _wide_planes(eroded, depth)
    for z in range(depth):
        if deep and z + 1 < depth:
            _widen(eroded[z + 1 + deep], wide[(z + 1) % 3])
        before, after = max(z - 1, 0) % 3, min(z + 1, depth - 1) % 3
        for y in range(height):
            row, to = level[z + deep, y + 1], left[z, y]
            a, b, c = wide[before, y], wide[z % 3, y], wide[after, y]
            for x in range(width):
                to[x] *= 1 - _taken(row[x + 1], max(max(a[x], b[x]), c[x]))


@njit(cache=True, nogil=True)
def strip_backward(
    level: np.ndarray,
    eroded: np.ndarray,
    left: np.ndarray,
    gradient: np.ndarray,
    to_level: np.ndarray,
    to_eroded: np.ndarray,
) -> None:
    """Add the gradients of a level and of the one after it, from that of the skeleton.

    What is taken at all levels adds up to at most 1. So the product of 1 - taken over the *other*
    levels is 1 where all is taken at this one, else `left` / (1 - taken), `left` being that over
    all.
    """
    depth, height, width = left.shape
    deep = int(depth > 1)
    wide = _wide_planes(eroded, depth)
    highest, taken = np.empty(width, level.dtype), np.empty(width, level.dtype)
    for z in range(depth):
        if deep and z + 1 < depth:
            _widen(eroded[z + 1 + deep], wide[(z + 1) % 3])
        before, after = max(z - 1, 0) % 3, min(z + 1, depth - 1) % 3
        for y in range(height):
            row = level[z + deep, y + 1]
            a, b, c = wide[before, y], wide[z % 3, y], wide[after, y]
            for x in range(width):
                highest[x] = max(max(a[x], b[x]), c[x])
                taken[x] = _taken(row[x + 1], highest[x])
            for x in range(width):
                if taken[x] > 0 and gradient[z, y, x] != 0:
                    others = left[z, y, x] / (1 - taken[x]) if taken[x] < 1 else 1.0
                    share = gradient[z, y, x] * others
                    to_level[z + deep, y + 1, x + 1] += share
                    at = _find(eroded, z + deep, y + 1, x + 1, deep, highest[x])
                    to_eroded[at] -= share


@njit(cache=True, nogil=True)
def erode_backward(
    level: np.ndarray, eroded: np.ndarray, to_eroded: np.ndarray, to_level: np.ndarray
) -> None:
    """Add the gradient of a level, from that of the level after it."""
    depth, height, width = level.shape
    deep = int(depth > 1)
    for z in range(deep, depth - deep):
        for y in range(1, height - 1):
            for x in range(1, width - 1):
                share = to_eroded[z, y, x]
                if share == 0:
                    continue
                lowest = eroded[z, y, x]
                if level[z, y, x] == lowest:
                    to_level[z, y, x] += share
                elif deep and level[z - 1, y, x] == lowest:
                    to_level[z - 1, y, x] += share
                elif level[z, y - 1, x] == lowest:
                    to_level[z, y - 1, x] += share
                elif level[z, y, x - 1] == lowest:
                    to_level[z, y, x - 1] += share
                elif level[z, y, x + 1] == lowest:
                    to_level[z, y, x + 1] += share
                elif level[z, y + 1, x] == lowest:
                    to_level[z, y + 1, x] += share
                else:
                    to_level[z + deep, y, x] += share


@njit(cache=True, nogil=True)
def _taken(value: float, opened: float) -> float:
    """What opening takes from a voxel; nothing where there is none."""
    rest = value - opened
    return rest if rest > 0 and value < ABSENT else value - value


@njit(cache=True, nogil=True)
def _wide_planes(eroded: np.ndarray, depth: int) -> np.ndarray:
    """Room for three planes of `_widen`, the first of them filled."""
    wide = np.empty((3, eroded.shape[1] - 2, eroded.shape[2] - 2), eroded.dtype)
    _widen(eroded[int(depth > 1)], wide[0])
    return wide


@njit(cache=True, nogil=True)
def _widen(plane: np.ndarray, wide: np.ndarray) -> None:
    """The maximum of the 3 x 3 voxels of a plane around each, -1 where there is none."""
    height, width = wide.shape
    rows = np.empty((3, width), plane.dtype)
    none = plane.dtype.type(-1)
    absent = plane.dtype.type(ABSENT)
    rows[0] = none
    for y in range(-1, height):
        row, to = plane[y + 2], rows[(y + 2) % 3]
        for x in range(width):
            a = none if row[x] == absent else row[x]
            b = none if row[x + 1] == absent else row[x + 1]
            c = none if row[x + 2] == absent else row[x + 2]
            to[x] = max(max(a, b), c)
        if y >= 0:
            out = wide[y]
            for x in range(width):
                out[x] = max(max(rows[0, x], rows[1, x]), rows[2, x])


@njit(cache=True, nogil=True)
def _find(
    level: np.ndarray, z: int, y: int, x: int, deep: int, value: float
) -> tuple[int, int, int]:
    """The voxel with that value: this one, else the first of its 26 neighbours in C order."""
    if level[z, y, x] == value:
        return z, y, x
    for k in range(z - deep, z + deep + 1):
        for j in range(y - 1, y + 2):
            for i in range(x - 1, x + 2):
                if level[k, j, i] == value:
                    return k, j, i
    return z, y, x
