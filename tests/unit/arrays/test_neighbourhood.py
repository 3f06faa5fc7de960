"""Means around single voxels."""

import numpy as np
import pytest

from pipeline.arrays.neighbourhood import neighbourhood_means
from pipeline.errors import InputError, ShapeError


def test_means_of_what_lies_in_the_array():
    image = np.random.default_rng(0).integers(0, 255, (4, 5, 6)).astype(np.uint8)
    voxels = np.argwhere(np.ones(image.shape, bool))[::-1]
    found = neighbourhood_means(image[:, :, ::-1], voxels)
    for value, (z, y, x) in zip(found, voxels, strict=True):
        box = image[:, :, ::-1][max(z - 1, 0) : z + 2, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        assert value == pytest.approx(box.mean(dtype=np.float64), rel=1e-12)


def test_no_voxels_and_one_voxel():
    assert neighbourhood_means(np.ones((2, 2, 2)), np.zeros((0, 3), np.int64)).shape == (0,)
    assert neighbourhood_means(np.full((1, 1, 1), 7), np.zeros((1, 3), np.int64)).tolist() == [7.0]


def test_voxels_outside_are_refused():
    for voxel in ([0, 0, -1], [0, 2, 0]):
        with pytest.raises(InputError, match="outside the image"):
            neighbourhood_means(np.ones((2, 2, 2)), np.array([voxel]))
    with pytest.raises(ShapeError, match=r"\(Z, Y, X\)"):
        neighbourhood_means(np.ones((2, 2)), np.zeros((0, 3), np.int64))
