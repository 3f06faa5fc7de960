"""Coarser levels of an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Triple
from pipeline.settings import NmTriple


def level_factors(levels: int, voxel_size_nm: NmTriple, shape: Triple) -> list[Triple]:
    """Total downsampling of each coarser level: the finest axes are halved first.

    An axis whose voxels are less than 1.5 times the finest is halved, so that anisotropic voxels
    become isotropic on the way. Levels end when an axis would have a single voxel.
    """
    factors: list[Triple] = []
    factor = (1, 1, 1)
    for _ in range(levels):
        size = [s * f for s, f in zip(voxel_size_nm, factor, strict=True)]
        z, y, x = (f * 2 if s < 1.5 * min(size) else f for s, f in zip(size, factor, strict=True))
        factor = (z, y, x)
        if any(n <= f for n, f in zip(shape, factor, strict=True)):
            break
        factors.append(factor)
    return factors


def downsample_mean(image: NDArray[Any], factor: Triple) -> NDArray[Any]:
    """The mean of each cell of `factor` voxels, in the image's type; partial cells at the end.

    Cells are anchored at the array's first voxel. Integers are rounded half up.
    """
    sums = image.astype(np.float64)
    counts = np.ones(image.shape, np.float64)
    for axis, step in enumerate(factor):
        index = np.arange(0, image.shape[axis], step)
        sums = np.add.reduceat(sums, index, axis=axis)
        counts = np.add.reduceat(counts, index, axis=axis)
    means = sums / counts
    if np.issubdtype(image.dtype, np.integer):
        means = np.floor(means + 0.5)
    return means.astype(image.dtype)
