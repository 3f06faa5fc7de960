"""Tubed skeletons: the skeleton of a mask, made thicker but no thicker than the mask."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.thinning import thin
from pipeline.errors import InputError

Mask = NDArray[np.bool_]


def tube_skeleton(mask: Mask, radius: int) -> Mask:
    """The voxels of a mask at most `radius` steps along the axes from its skeleton.

    The dilation is a diamond: `radius` dilations by the neighbours along the axes. Steps go
    straight, also where they leave the mask on the way. A mask that is not empty has a tube.

    Args:
        mask: (Y, X) or (Z, Y, X) bool.
        radius: voxels, 0 or more; 0 is the skeleton.

    Raises:
        ShapeError: not two or three axes.
        InputError: the radius is negative.
    """
    if radius < 0:
        raise InputError(f"a skeleton is dilated by 0 voxels or more, got {radius}")
    skeleton = thin(mask)
    if radius == 0:
        return skeleton
    space = (1,) * (3 - mask.ndim) + mask.shape
    tube: Mask = _dilate(skeleton.reshape(space), mask.reshape(space), radius)
    return tube.reshape(mask.shape)


@njit(cache=True, nogil=True)
def _dilate(skeleton: np.ndarray, mask: np.ndarray, radius: int) -> np.ndarray:
    depth, height, width = mask.shape
    tube = np.zeros(mask.shape, np.bool_)
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                if not skeleton[z, y, x]:
                    continue
                for k in range(max(z - radius, 0), min(z + radius + 1, depth)):
                    rest = radius - abs(k - z)
                    for j in range(max(y - rest, 0), min(y + rest + 1, height)):
                        side = rest - abs(j - y)
                        for i in range(max(x - side, 0), min(x + side + 1, width)):
                            tube[k, j, i] |= mask[k, j, i]
    return tube
