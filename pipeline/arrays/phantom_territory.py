"""Which synthetic neuron holds which voxels, and walks that stay out of the others' territory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.tube_kernels import axis_position, piece_box, voxel_line
from pipeline.geometry import Triple

Vector = NDArray[np.float64]

TRIES_PER_STEP = 6
CLEAR_OF_PARENT = 5  # steps in which a branch may still lie in its own neuron's territory
_STEERING = 0.35  # weight of the way to a contact against the way ahead
_WIDEST_SHRINK = 0.8  # share of the radius that no other neuron may enter
_TILE = 8


@dataclass(frozen=True)
class Bud:
    """A neurite about to grow from node `parent` of its tree."""

    parent: int
    start: Vector
    direction: Vector
    radius_nm: float
    length_nm: float
    soma_nm: float = 0.0


class Territory:
    """Which neuron holds which voxel: tiles of 8^3, made when something enters them."""

    def __init__(self, shape: Triple, voxel_size_nm: tuple[float, float, float]) -> None:
        self.spacing = np.asarray(voxel_size_nm, np.float64)
        self.extent_nm = np.asarray(shape) * self.spacing
        self.step_nm = 2.5 * float(self.spacing.min())
        self._shape = np.asarray(shape, np.int64)
        tiles = tuple(-(-n // _TILE) for n in shape)
        self._index = np.full(tiles, -1, np.int32)
        self._pool = np.zeros((64, _TILE, _TILE, _TILE), np.int32)
        self._used = 0

    def walk(self, bud: Bud, radii: Vector, turns: Vector, way: Vector, number: int) -> Vector:
        """Nodes of a free walk from `bud.start`, the start itself excluded."""
        clear = CLEAR_OF_PARENT + int(np.ceil(bud.soma_nm / self.step_nm))
        return _walk(
            bud.start,
            bud.direction,
            radii,
            turns,
            way,
            self.step_nm,
            clear if bud.parent >= 0 else 2 * clear,
            number,
            self.spacing,
            self._shape,
            self._index,
            self._pool,
        )

    def is_free(self, point: Vector, radius_nm: float) -> bool:
        """Whether a ball enters nobody's territory."""
        ends, radii = np.stack([point, point]) / self.spacing, np.full(2, radius_nm)
        return bool(
            _is_free(ends, radii, 0, True, self.spacing, self._shape, self._index, self._pool)
        )

    def claim(self, nodes: Vector, radii: Vector, number: int) -> None:
        """Mark the tube along a chain of nodes."""
        for i in range(max(len(nodes) - 1, 1)):
            pair = np.array([i, min(i + 1, len(nodes) - 1)])
            ends = nodes[pair] / self.spacing
            spread = 2 * radii[pair].max() / self.spacing + np.abs(ends[1] - ends[0]) + 4
            room = int(np.prod(spread // _TILE + 2))
            while self._used + room > len(self._pool):
                self._pool = np.concatenate([self._pool, np.zeros_like(self._pool)])
            self._used = _claim(
                ends,
                radii[pair],
                number,
                self.spacing,
                self._shape,
                self._index,
                self._pool,
                self._used,
            )


# ---- kernels ----


@njit(cache=True, nogil=True)
def _walk(  # type: ignore[no-untyped-def]
    start, direction, radii, turns, way, step, clear, number, spacing, shape, index, pool
):
    """Free steps from `start` until the border, a dead end or the last turn.

    The first `clear` steps may lie in the neuron's own territory: that is where it comes from.
    """
    nodes = np.empty((len(turns), 3))
    here, course = start.copy(), direction.copy()
    bend = np.zeros(3)
    passed = 0
    ends = np.empty((2, 3))
    for i in range(len(turns)):
        # A waypoint closer than this is behind us: a short step would turn sharply.
        while passed < len(way) and _norm(way[passed] - here) < 0.4 * step:
            passed += 1
        done = False
        for attempt in range(turns.shape[1]):
            push = 0.5 * bend + turns[i, attempt] * (1.0 + 2.0 * attempt)
            ahead = course + push
            ahead /= _norm(ahead)
            there = here + step * ahead
            if attempt == 0 and passed < len(way):
                gap = _norm(way[passed] - here)
                if gap <= 1.5 * step:
                    there = way[passed].copy()
                else:
                    ahead = ahead + _STEERING * (way[passed] - here) / gap
                    there = here + step * ahead / _norm(ahead)
            ends[0], ends[1] = here / spacing, there / spacing
            if not _is_inside(ends[1], shape):
                if attempt == 0:
                    return nodes[:i]
                continue
            if _is_free(ends, radii[i : i + 2], number, i < clear, spacing, shape, index, pool):
                done = True
                break
            passed = len(way)
        if not done:
            return nodes[:i]
        bend = push
        course = (there - here) / _norm(there - here)
        here = there
        nodes[i] = here
    return nodes


@njit(cache=True, nogil=True)
def _is_inside(point, shape):  # type: ignore[no-untyped-def]
    z, y, x = point
    return 0.0 <= z < shape[0] and 0.0 <= y < shape[1] and 0.0 <= x < shape[2]


@njit(cache=True, nogil=True)
def _norm(vector):  # type: ignore[no-untyped-def]
    return np.sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2])


@njit(cache=True, nogil=True)
def _is_free(ends, radii, number, own_too, spacing, shape, index, pool):  # type: ignore[no-untyped-def]
    """Whether the line and the shrunken tube of an edge hold no voxel of another neuron.

    Voxels of neuron `number` itself count as free if `own_too`.
    """
    line = voxel_line(ends[0], ends[1])
    for n in range(len(line)):
        owner = _owner(line[n, 0], line[n, 1], line[n, 2], index, pool)
        if owner != 0 and not (own_too and owner == number):
            return False
    box = _tube_box(ends, radii, spacing, shape)
    for z in range(box[0, 0], box[0, 1]):
        for y in range(box[1, 0], box[1, 1]):
            for x in range(box[2, 0], box[2, 1]):
                owner = _owner(z, y, x, index, pool)
                if owner == 0 or (own_too and owner == number):
                    continue
                if _is_in_tube(z, y, x, ends, radii, spacing):
                    return False
    return True


@njit(cache=True, nogil=True)
def _claim(ends, radii, number, spacing, shape, index, pool, used):  # type: ignore[no-untyped-def]
    """Mark what `_is_free` looks at; returns the number of tiles in use."""
    line = voxel_line(ends[0], ends[1])
    for n in range(len(line)):
        used = _own(line[n, 0], line[n, 1], line[n, 2], number, index, pool, used)
    box = _tube_box(ends, radii, spacing, shape)
    for z in range(box[0, 0], box[0, 1]):
        for y in range(box[1, 0], box[1, 1]):
            for x in range(box[2, 0], box[2, 1]):
                if _is_in_tube(z, y, x, ends, radii, spacing):
                    used = _own(z, y, x, number, index, pool, used)
    return used


@njit(cache=True, nogil=True)
def _tube_box(ends, radii, spacing, shape):  # type: ignore[no-untyped-def]
    margin = max(radii[0], radii[1]) / spacing
    size = (shape[0], shape[1], shape[2])
    return piece_box(ends, 0, 1, margin, np.zeros(3, np.int64), size)


@njit(cache=True, nogil=True)
def _is_in_tube(z, y, x, ends, radii, spacing):  # type: ignore[no-untyped-def]
    cz, cy, cx = (z + 0.5) * spacing[0], (y + 0.5) * spacing[1], (x + 0.5) * spacing[2]
    distance, t = axis_position(ends, spacing, cz, cy, cx)
    return distance <= _WIDEST_SHRINK * (radii[0] + t * (radii[1] - radii[0]))


@njit(cache=True, nogil=True)
def _owner(z, y, x, index, pool):  # type: ignore[no-untyped-def]
    tile = index[z // _TILE, y // _TILE, x // _TILE]
    return 0 if tile < 0 else pool[tile, z % _TILE, y % _TILE, x % _TILE]


@njit(cache=True, nogil=True)
def _own(z, y, x, number, index, pool, used):  # type: ignore[no-untyped-def]
    tile = index[z // _TILE, y // _TILE, x // _TILE]
    if tile < 0:
        tile = used
        index[z // _TILE, y // _TILE, x // _TILE] = tile
        used += 1
    # A tube may run into the rim of another; what was there first keeps its voxels.
    if pool[tile, z % _TILE, y % _TILE, x % _TILE] == 0:
        pool[tile, z % _TILE, y % _TILE, x % _TILE] = number
    return used
