import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.intensity import (
    IntensityStatistics,
    bin_values,
    histogram,
    intensity_bins,
    require_supported,
    tile_peaks,
    tiles_to_voxels,
    tissue_mask,
)
from pipeline.errors import DataError, DtypeError


def statistics(image, low=1.0, high=99.0):
    return IntensityStatistics.from_histogram(histogram(image), image.dtype, low, high)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2))
def test_float_bins_keep_the_order(values):
    image = np.sort(np.array(values, np.float32))
    bins = intensity_bins(image)
    assert (np.diff(bins) >= 0).all()
    floor = bin_values(np.dtype(np.float32))[bins]
    assert (np.abs(floor - image) <= np.abs(image) / 64 + 1e-30).all()


def test_integers_are_their_own_bin():
    image = np.array([0, 7, 65535], np.uint16)
    assert intensity_bins(image).tolist() == [0, 7, 65535]
    assert bin_values(image.dtype)[intensity_bins(image)].tolist() == [0, 7, 65535]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 300), min_size=2, max_size=60), st.floats(1, 49))
def test_statistics_equal_those_of_the_sorted_values(values, low):
    if len(set(values)) < 2:
        return
    image = np.array(values, np.uint16)
    found = statistics(image, low, 100 - low)
    ranked = sorted(values)

    def at(share):  # the smallest value that covers this share of the voxels
        return ranked[max(int(np.ceil(share * len(ranked))), 1) - 1]

    assert found.minimum == ranked[0]
    assert found.maximum == ranked[-1]
    assert found.median == at(0.5)
    assert found.low == at(low / 100)
    if at(1 - low / 100) > found.low:
        assert found.high == at(1 - low / 100)


def test_otsu_parts_two_populations():
    image = np.concatenate([np.full(900, 10), np.full(100, 200)]).astype(np.uint8)
    assert 10 < statistics(image).otsu <= 200


def test_a_constant_image_is_refused():
    with pytest.raises(DataError, match="has the value 7"):
        statistics(np.full((4, 4, 4), 7, np.uint8))


def test_normalising_maps_the_percentiles_and_clips():
    found = IntensityStatistics(0, 1000, 20, 5, 10, 110, 60)
    result = found.normalise(np.array([10, 110, 60, 65535, 0], np.uint16))
    assert np.allclose(result, [0, 1, 0.5, 4.0, -0.1])
    assert result.dtype == np.float32


def test_nan_is_named():
    image = np.zeros((2, 3, 4), np.float32)
    image[1, 2, 3] = np.nan
    with pytest.raises(DataError, match=r"\(1, 2, 3\)"):
        histogram(image)


def test_unsupported_types_are_named():
    with pytest.raises(DtypeError, match="complex64"):
        require_supported(np.dtype(np.complex64), "x.tif")


def reference_peaks(image):
    tiles = [-(-n // 32) for n in image.shape]
    out = np.zeros(tiles)
    for tz, ty, tx in np.ndindex(*tiles):
        tile = image[tz * 32 : tz * 32 + 32, ty * 32 : ty * 32 + 32, tx * 32 : tx * 32 + 32]
        cells = [
            tile[z : z + 4, y : y + 4, x : x + 4].mean()
            for z in range(0, tile.shape[0], 4)
            for y in range(0, tile.shape[1], 4)
            for x in range(0, tile.shape[2], 4)
        ]
        out[tz, ty, tx] = max(cells)
    return out


@pytest.mark.parametrize("shape", [(32, 32, 32), (35, 64, 7), (1, 1, 1), (70, 3, 33)])
def test_tile_peaks_equal_the_plain_loop(shape):
    image = np.random.default_rng(0).integers(0, 1000, shape).astype(np.uint16)
    assert np.allclose(tile_peaks(image), reference_peaks(image))


def test_tissue_mask_grows_by_whole_tiles():
    peaks = np.zeros((5, 5, 5))
    peaks[2, 2, 2] = 10
    assert tissue_mask(peaks, 5, 0).sum() == 1
    assert tissue_mask(peaks, 5, 1).sum() == 27
    assert tissue_mask(peaks, 10, 1).sum() == 0


def test_tiles_to_voxels():
    tiles = np.arange(8).reshape(2, 2, 2)
    voxels = tiles_to_voxels(tiles, (3, 2, 40), (31, 0, 10))
    for z, y, x in np.ndindex(*voxels.shape):
        assert voxels[z, y, x] == tiles[(z + 31) // 32, y // 32, (x + 10) // 32]
