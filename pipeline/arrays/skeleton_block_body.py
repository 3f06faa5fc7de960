"""The voxels of one object laid out in their block, for what walks from neighbour to neighbour.

All objects of a block share one canvas: an object is painted on it, worked on, and wiped off. So
nothing is paid for the box around an object.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton_block_runs import Component
from pipeline.arrays.skeleton_settings import VoxelSize
from pipeline.geometry import Triple

_STEPS = np.array([s for s in product((-1, 0, 1), repeat=3) if any(s)], np.int64)


@dataclass(frozen=True, eq=False)
class Body:
    """The voxels of a component with all that paths through it need.

    Attributes:
        voxels: (N, 3) int64, in the block; C order.
        places: (N,) int64, of each on the canvas.
        voxel_at: the row of `voxels` at each place of the canvas, -1 for none.
        radius_nm: (N,) distance to the nearest voxel that is not of the component.
        extent: of the canvas: the block with a rim of background.
        strides: (3,) int64, places from one plane, row and voxel of the canvas to the next.
        offsets, lengths_nm: (26,) the steps to neighbours, in places and nanometres.
    """

    voxels: NDArray[np.int64]
    places: NDArray[np.int64]
    voxel_at: NDArray[np.int32]
    radius_nm: NDArray[np.float64]
    extent: Triple
    strides: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lengths_nm: NDArray[np.float64]

    def rows(self, voxels: NDArray[np.int64]) -> NDArray[np.int64]:
        """(V,) the row of each voxel of the block; -1 for one that is not of the component."""
        places = np.ravel_multi_index(tuple((voxels + 1).T), self.extent)
        return self.voxel_at[places].astype(np.int64)


class Canvas:
    """Where the components of a block are laid out, one at a time."""

    def __init__(self, shape: Triple, voxel_size_nm: VoxelSize) -> None:
        """An empty canvas for a block of this shape."""
        self._extent = shape[0] + 2, shape[1] + 2, shape[2] + 2
        self._voxel_at = np.full(int(np.prod(self._extent)), -1, np.int32)
        self._strides = np.array([self._extent[1] * self._extent[2], self._extent[2], 1], np.int64)
        self._lengths_nm = np.sqrt(((_STEPS * voxel_size_nm) ** 2).sum(axis=1))

    @contextmanager
    def painted(self, component: Component, radius_nm: NDArray[np.float32]) -> Iterator[Body]:
        """A component's body, until the context ends; `radius_nm`: (N,) of its voxels."""
        voxels = component.voxels()
        places = (voxels + 1) @ self._strides
        self._voxel_at[places] = np.arange(len(voxels), dtype=np.int32)
        yield Body(
            voxels,
            places,
            self._voxel_at,
            radius_nm.astype(np.float64),
            self._extent,
            self._strides,
            _STEPS @ self._strides,
            self._lengths_nm,
        )
        self._voxel_at[places] = -1


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


def euler_of(body: Body) -> int:
    """Components minus tunnels plus cavities (26 neighbours) of a component."""
    return int(_sum_cells(body.places, body.voxel_at, _EARLIER @ body.strides, _CELLS))


@njit(cache=True, nogil=True)
def _sum_cells(
    places: np.ndarray, voxel_at: np.ndarray, earlier: np.ndarray, table: np.ndarray
) -> int:
    total = 0
    for place in places:
        code = 0
        for bit in range(len(earlier)):
            if voxel_at[place + earlier[bit]] >= 0:
                code |= 1 << bit
        total += table[code]
    return total
