import numpy as np
import pytest

from pipeline.arrays.pyramid import downsample_mean, level_factors


def test_the_finest_axes_are_halved_first():
    factors = level_factors(3, (1000, 250, 250), (512, 512, 512))
    assert factors == [(1, 2, 2), (1, 4, 4), (2, 8, 8)]


def test_isotropic_voxels_are_halved_on_all_axes():
    assert level_factors(2, (1, 1, 1), (64, 64, 64)) == [(2, 2, 2), (4, 4, 4)]


def test_levels_end_before_an_axis_is_a_single_voxel():
    assert level_factors(4, (1, 1, 1), (4, 64, 64)) == [(2, 2, 2)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_means_equal_the_plain_loop(dtype):
    image = (np.random.default_rng(0).random((5, 7, 9)) * 200).astype(dtype)
    factor = (2, 3, 4)
    coarse = downsample_mean(image, factor)
    assert coarse.shape == (3, 3, 3)
    assert coarse.dtype == dtype
    for index in np.ndindex(*coarse.shape):
        cell = image[tuple(slice(i * f, i * f + f) for i, f in zip(index, factor, strict=True))]
        mean = cell.astype(float).mean()
        expected = np.floor(mean + 0.5) if np.issubdtype(dtype, np.integer) else mean
        assert np.isclose(coarse[index], expected, rtol=1e-6)
