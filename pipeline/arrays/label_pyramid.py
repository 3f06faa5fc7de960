"""Coarser levels of a label volume."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.errors import ShapeError
from pipeline.geometry import Triple


def downsample_labels(labels: NDArray[np.unsignedinteger], factor: Triple) -> NDArray:
    """The commonest label of each cell of `factor` voxels, background left out.

    Neurites are thin: counted with the background they would vanish within a level or two. Equally
    common labels: the smallest. A cell is background only if it holds no label. Cells are anchored
    at the first voxel and the last one may be partial, so regions that begin at a whole cell give
    what the whole volume gives.

    Args:
        labels: (Z, Y, X), any unsigned type; 0 is background.
        factor: voxels per cell along z, y, x.

    Returns:
        ceil(shape / factor), the same type.
    """
    if labels.ndim != 3 or min(factor) < 1:
        raise ShapeError(f"downsample: expected (Z, Y, X), factors >= 1; {labels.shape}, {factor}")
    shape = tuple(-(-n // f) for n, f in zip(labels.shape, factor, strict=True))
    coarse = np.zeros(shape, labels.dtype)
    if labels.any():
        _fill(labels, coarse, factor)
    return coarse


@njit(cache=True, nogil=True)
def _fill(labels: NDArray, coarse: NDArray, factor: Triple) -> None:
    found = np.empty(factor[0] * factor[1] * factor[2], labels.dtype)
    for z, y, x in np.ndindex(coarse.shape):
        count = 0
        for k in range(z * factor[0], min((z + 1) * factor[0], labels.shape[0])):
            for j in range(y * factor[1], min((y + 1) * factor[1], labels.shape[1])):
                for i in range(x * factor[2], min((x + 1) * factor[2], labels.shape[2])):
                    if labels[k, j, i] != 0:
                        found[count] = labels[k, j, i]
                        count += 1
        if count:
            coarse[z, y, x] = _commonest(found[:count])


@njit(cache=True, nogil=True)
def _commonest(values: NDArray) -> int:
    best, votes = values[0], 0
    for value in values:
        if votes and value == best:
            continue
        same = 0
        for other in values:
            if other == value:
                same += 1
        if same > votes or (same == votes and value < best):
            best, votes = value, same
    return best
