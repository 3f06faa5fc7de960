"""A random share of tiles: by position alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.negatives import SAMPLED_TILE, sampled_tiles
from pipeline.errors import InputError
from pipeline.geometry import BlockGrid, Roi

WHOLE = Roi((0, 0, 0), (50, 70, 90))


def splitmix(value):
    """Source: splitmix64, in Python's integers."""
    mask = 2**64 - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def chosen(voxel, share, seed):
    mixed = splitmix(seed)
    for place in voxel:
        mixed = splitmix(mixed ^ (place // SAMPLED_TILE) % 2**64)
    return (mixed >> 11) / 2**53 < share


def test_splitmix_is_the_published_one():
    """First output for the seed 1234567, as in the public test vectors."""
    assert splitmix(1234567) == 6457827717110365317


@pytest.mark.parametrize("offset", [(0, 0, 0), (3, 17, 31), (-20, 5, 2**40)])
def test_each_voxel_follows_the_hash_of_its_tile(offset):
    roi = Roi(offset, (20, 3, 40))
    found = sampled_tiles(roi, 0.5, 7)
    for place in np.ndindex(roi.shape):
        assert found[place] == chosen(np.add(place, offset).tolist(), 0.5, 7)
    assert 0 < found.mean() < 1


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    blocks=st.tuples(*[st.integers(5, 60)] * 3),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
)
def test_blocks_equal_the_whole(blocks, share, seed):
    whole = sampled_tiles(WHOLE, share, seed)
    for block in BlockGrid.over(WHOLE.shape, blocks):
        part = sampled_tiles(block.write, share, seed)
        np.testing.assert_array_equal(part, whole[block.write.slices])


def test_the_share_is_that_of_all_tiles():
    large = Roi((0, 0, 0), (40 * SAMPLED_TILE, 40 * SAMPLED_TILE, SAMPLED_TILE))
    for share in (0.03, 0.1, 0.5):
        # 1600 tiles: four standard deviations.
        spread = 4 * np.sqrt(share * (1 - share) / 1600)
        assert abs(sampled_tiles(large, share)[::16, ::16, 0].mean() - share) < spread
    assert not sampled_tiles(WHOLE, 0.0).any()
    assert sampled_tiles(WHOLE, 1.0).all()


def test_a_greater_share_keeps_the_tiles_and_another_seed_does_not():
    few, many = sampled_tiles(WHOLE, 0.2, 3), sampled_tiles(WHOLE, 0.6, 3)
    assert few.any()
    assert (many | ~few).all()
    assert (sampled_tiles(WHOLE, 0.6, 4) != many).any()


@pytest.mark.parametrize(("share", "seed"), [(-0.1, 0), (1.01, 0), (np.nan, 0), (0.5, -1)])
def test_senseless_values_are_refused(share, seed):
    with pytest.raises(InputError, match="lies in"):
        sampled_tiles(WHOLE, share, seed)
