"""The loop that moves voxels: one pass for image and labels, so that they cannot part."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.labels import IGNORE


@njit(cache=True, nogil=True)
def _weights(t: float) -> tuple[float, float, float, float]:
    """The four cubic B-spline weights at `t` in [0, 1) of a cell."""
    s = 1.0 - t
    a = s * s * s / 6.0
    b = (3.0 * t * t * t - 6.0 * t * t + 4.0) / 6.0
    c = (3.0 * s * s * s - 6.0 * s * s + 4.0) / 6.0
    return a, b, c, t * t * t / 6.0


@njit(cache=True, nogil=True)
def _cells(extent: int, spacing: float) -> tuple[NDArray, NDArray]:
    """The first control point of each voxel along an axis, and its four weights."""
    first = np.empty(extent, np.int64)
    weights = np.empty((extent, 4), np.float64)
    for i in range(extent):
        t = i / spacing
        first[i] = int(t)
        a, b, c, d = _weights(t - first[i])
        weights[i, 0], weights[i, 1], weights[i, 2], weights[i, 3] = a, b, c, d
    return first, weights


@njit(cache=True, nogil=True)
def _nearest(labels: NDArray[np.uint64], z: float, y: float, x: float) -> np.uint64:
    nz, ny, nx = labels.shape
    i, j, k = int(np.floor(z + 0.5)), int(np.floor(y + 0.5)), int(np.floor(x + 0.5))
    if 0 <= i < nz and 0 <= j < ny and 0 <= k < nx:
        return np.uint64(labels[i, j, k])
    return IGNORE


@njit(cache=True, nogil=True)
def _clamped(s: float, extent: int) -> tuple[int, int, np.float32]:
    """Two neighbours along an axis and the share of the second; beyond the ends the end itself."""
    if s <= 0.0:
        return 0, 0, np.float32(0.0)
    if s >= extent - 1:
        return extent - 1, extent - 1, np.float32(0.0)
    i = int(s)
    return i, i + 1, np.float32(s - i)


@njit(cache=True, nogil=True)
def _interpolated(image: NDArray[np.float32], z: float, y: float, x: float) -> float:
    nz, ny, nx = image.shape
    z0, z1, fz = _clamped(z, nz)
    y0, y1, fy = _clamped(y, ny)
    x0, x1, fx = _clamped(x, nx)
    a = image[z0, y0, x0] + fx * (image[z0, y0, x1] - image[z0, y0, x0])
    b = image[z0, y1, x0] + fx * (image[z0, y1, x1] - image[z0, y1, x0])
    c = image[z1, y0, x0] + fx * (image[z1, y0, x1] - image[z1, y0, x0])
    d = image[z1, y1, x0] + fx * (image[z1, y1, x1] - image[z1, y1, x0])
    a += fy * (b - a)
    c += fy * (d - c)
    return a + fz * (c - a)


@njit(cache=True, nogil=True)
def warp(
    image: NDArray[np.float32],
    labels: NDArray[np.uint64],
    matrix: NDArray[np.float64],
    centre: NDArray[np.float64],
    control: NDArray[np.float64],
    spacing: NDArray[np.float64],
    warped: NDArray[np.float32],
    moved: NDArray[np.uint64],
) -> None:
    """Fill `warped` and `moved` from where each of their voxels comes from.

    Voxel q of the patch comes from `centre + matrix @ (q + d(q) - middle)` of the box that was
    read, where d is the cubic B-spline over `control` and middle the patch's own centre. The image
    is interpolated linearly and continues at its edge; a label is that of the nearest voxel, and
    `IGNORE` beyond the box.

    Args:
        image, labels: (Z, Y, X) of the box, C order.
        matrix, centre: (3, 3), (3,) in voxels.
        control: (Kz, Ky, Kx, 3) displacements in voxels; control point k along an axis lies at
            (k - 1) * spacing; K >= floor((extent - 1) / spacing) + 4.
        spacing: (3,) distance of control points, voxels.
        warped, moved: (z, y, x) of the patch, filled.
    """
    extent_z, extent_y, extent_x = warped.shape
    middle_z, middle_y, middle_x = (extent_z - 1) / 2, (extent_y - 1) / 2, (extent_x - 1) / 2
    first_z, weights_z = _cells(extent_z, spacing[0])
    first_y, weights_y = _cells(extent_y, spacing[1])
    first_x, weights_x = _cells(extent_x, spacing[2])
    line = np.empty((control.shape[2], 3))
    m = matrix
    for z in range(extent_z):
        for y in range(extent_y):
            # The spline along z and y is the same for the whole line.
            line[:] = 0.0
            for i in range(4):
                for j in range(4):
                    w = weights_z[z, i] * weights_y[y, j]
                    part = control[first_z[z] + i, first_y[y] + j]
                    for k in range(line.shape[0]):
                        line[k, 0] += w * part[k, 0]
                        line[k, 1] += w * part[k, 1]
                        line[k, 2] += w * part[k, 2]
            for x in range(extent_x):
                uz, uy, ux = z - middle_z, y - middle_y, x - middle_x
                k = first_x[x]
                for i in range(4):
                    w = weights_x[x, i]
                    uz += w * line[k + i, 0]
                    uy += w * line[k + i, 1]
                    ux += w * line[k + i, 2]
                sz = centre[0] + m[0, 0] * uz + m[0, 1] * uy + m[0, 2] * ux
                sy = centre[1] + m[1, 0] * uz + m[1, 1] * uy + m[1, 2] * ux
                sx = centre[2] + m[2, 0] * uz + m[2, 1] * uy + m[2, 2] * ux
                moved[z, y, x] = _nearest(labels, sz, sy, sx)
                warped[z, y, x] = _interpolated(image, sz, sy, sx)
