"""The plain baseline: a mask's connected components, by the exact blockwise kernels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mask_affinities(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Affinities that make the components of a mask (6-connected, of two voxels or more).

    Args:
        mask: (Z, Y, X) bool.

    Returns:
        (3, Z, Y, X) uint8: 255 where a voxel and its predecessor along the axis are both set.
    """
    affinities = np.zeros((3, *mask.shape), np.uint8)
    for axis in range(3):
        after = tuple(slice(1 if d == axis else 0, None) for d in range(3))
        before = tuple(slice(None, -1 if d == axis else None) for d in range(3))
        np.multiply(mask[after] & mask[before], np.uint8(255), out=affinities[axis][after])
    return affinities
