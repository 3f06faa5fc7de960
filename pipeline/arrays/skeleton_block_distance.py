"""How deep each voxel of a block's objects lies: the distance to its surface.

A neurite is thin, so each voxel looks around by itself, at the nearest places first, until it meets
one that is not of its label. An object in which a voxel meets none within `_SIGHT` is measured as
a whole, by the exact distance transform along one axis after the other.

Source: the transform by axes, Saito and Toriwaki 1994, doi:10.1016/0031-3203(94)90133-3.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton_block_runs import Component, Components
from pipeline.arrays.skeleton_settings import VoxelSize
from pipeline.geometry import Triple

_SIGHT = 5  # shortest voxel edges: 514 places around an isotropic voxel


def distances_inside(
    labels: NDArray[np.uint64], components: Components, voxel_size_nm: VoxelSize
) -> NDArray[np.float32]:
    """Nanometres from each voxel of a block's objects to the nearest one that is not of its label.

    The faces of the block are no boundary, unless an object is all of it.

    Args:
        labels: (Z, Y, X) of the block.
        components: of the block.
        voxel_size_nm: z, y, x.

    Returns:
        (N,) by row.
    """
    steps, lengths = _places_around(voxel_size_nm)
    distance = np.empty(int(components.counts.sum()), np.float32)
    deep = np.zeros(len(components.labels), np.bool_)
    runs, number = components.runs, components.number
    reach = np.abs(steps).max(axis=0)
    strides = np.array([labels.shape[1] * labels.shape[2], labels.shape[2], 1], np.int64)
    solid = np.ascontiguousarray(labels)
    _look_around(solid, runs, number, steps, steps @ strides, reach, lengths, distance, deep)
    for c in np.flatnonzero(deep).tolist():
        part = components.part(c + 1)
        distance[part.rows()] = _measured(part, components.shape, voxel_size_nm)
    return distance


def _places_around(voxel_size_nm: VoxelSize) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The steps in sight, nearest first, and their lengths."""
    sight = _SIGHT * min(voxel_size_nm)
    z, y, x = (int(sight / edge) for edge in voxel_size_nm)
    around = np.mgrid[-z : z + 1, -y : y + 1, -x : x + 1].reshape(3, -1).T
    squares = (around * np.asarray(voxel_size_nm)) ** 2
    lengths = np.sqrt(squares[:, 2] + squares[:, 1] + squares[:, 0])
    order = np.argsort(lengths, kind="stable")
    order = order[(lengths[order] > 0) & (lengths[order] <= sight)]
    return np.ascontiguousarray(around[order]), lengths[order]


@njit(cache=True, nogil=True)
def _look_around(
    labels: np.ndarray,
    runs: np.ndarray,
    number: np.ndarray,
    steps: np.ndarray,
    offsets: np.ndarray,
    reach: np.ndarray,
    lengths: np.ndarray,
    distance: np.ndarray,
    deep: np.ndarray,
) -> None:
    """The distance of each voxel; what has a voxel that sees no end is marked, and left."""
    depth, height, width = labels.shape
    flat = labels.ravel()
    row = 0
    for run in range(len(runs)):
        z, y, begin, end = runs[run]
        if deep[number[run] - 1]:
            row += end - begin + 1
            continue
        inner = reach[0] <= z < depth - reach[0] and reach[1] <= y < height - reach[1]
        for x in range(begin, end + 1):
            place = (z * height + y) * width + x
            label = flat[place]
            found = -1
            if inner and reach[2] <= x < width - reach[2]:
                for k in range(len(offsets)):
                    if flat[place + offsets[k]] != label:
                        found = k
                        break
            else:
                for k in range(len(offsets)):
                    a, b, c = z + steps[k, 0], y + steps[k, 1], x + steps[k, 2]
                    within = 0 <= a < depth and 0 <= b < height and 0 <= c < width
                    if within and flat[place + offsets[k]] != label:
                        found = k
                        break
            if found < 0:
                deep[number[run] - 1] = True
                row += end - x + 1
                break
            distance[row] = lengths[found]
            row += 1


def _measured(component: Component, shape: Triple, voxel_size_nm: VoxelSize) -> NDArray[np.float32]:
    """(N,) the distance of each voxel of a component, however thick."""
    z, y, x = component.box
    along_x, in_plane = np.zeros((z + 2, y + 2, x + 2)), np.zeros((z + 2, y + 2, x + 2))
    whole = component.count == np.prod(shape)
    # The first and the last plane of the box with its rim that may hold a boundary.
    first = np.where((component.low == 0) & ~whole, 1, 0)
    last = np.asarray(component.box) + np.where(
        (component.high == np.asarray(shape) - 1) & ~whole, 0, 1
    )
    distance = np.zeros(component.count, np.float32)
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
    row = 0
    for run in range(len(runs)):
        z, y = runs[run, 0] - low[0] + 1, runs[run, 1] - low[1] + 1
        for x in range(runs[run, 2] - low[2] + 1, runs[run, 3] - low[2] + 2):
            distance[row] = np.sqrt(_least(in_plane[:, y, x], z, first[0], last[0], size[0]))
            row += 1


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
