"""How bright the surroundings of single voxels are."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, ShapeError


def neighbourhood_means(image: NDArray[Any], voxels: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of each voxel and its 26 neighbours, as far as they lie in the array.

    Args:
        image: (Z, Y, X), any numeric type.
        voxels: (M, 3), z, y, x, inside the array.

    Returns:
        (M,) float64.

    Raises:
        ShapeError: the image does not have three axes.
        InputError: a voxel lies outside the array.
    """
    if image.ndim != 3:
        raise ShapeError(f"expected an image (Z, Y, X), got {image.shape}")
    if ((voxels < 0) | (voxels >= image.shape)).any():
        raise InputError(f"a voxel lies outside the image of {image.shape}")
    total, count = np.zeros(len(voxels)), np.zeros(len(voxels))
    for step in product((-1, 0, 1), repeat=3):
        places = voxels + np.array(step)
        inside = ((places >= 0) & (places < image.shape)).all(axis=1)
        total[inside] += image[tuple(places[inside].T)]
        count[inside] += 1
    return total / count
