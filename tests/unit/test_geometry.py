import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError, ShapeError
from pipeline.geometry import BlockGrid, Roi, check_indexable, middle_part

extents = st.tuples(*[st.integers(1, 12)] * 3)
halos = st.tuples(*[st.integers(0, 3)] * 3)


def test_roi_between_and_slices():
    roi = Roi.between((1, 2, 3), (4, 6, 9))
    assert roi.shape == (3, 4, 6)
    assert roi.size == 72
    assert np.zeros((10, 10, 10))[roi.slices].shape == roi.shape


def test_roi_is_never_empty():
    with pytest.raises(ShapeError, match="at least one voxel"):
        Roi((0, 0, 0), (1, 0, 1))


def test_intersection_of_apart_boxes_is_refused():
    a, b = Roi((0, 0, 0), (2, 2, 2)), Roi((2, 0, 0), (2, 2, 2))
    assert not a.overlaps(b)
    with pytest.raises(ShapeError, match="share no voxel"):
        a.intersect(b)


@settings(deadline=None, max_examples=60)
@given(extents, extents, halos, halos, st.tuples(*[st.integers(-5, 5)] * 3))
def test_write_rois_cover_the_volume_once(shape, block, lower, upper, offset):
    volume = Roi(offset, shape)
    grid = BlockGrid(volume, block, lower, upper)
    seen = np.zeros(shape, int)
    for number, cell in enumerate(grid):
        assert cell == grid[number]
        assert cell == grid.at(cell.position)
        assert cell.read.contains(cell.write)
        assert volume.contains(cell.read)
        seen[cell.write.relative_to(volume).slices] += 1
        grown = cell.write.grow(lower, upper)
        assert cell.read == grown.intersect(volume)
    assert len(grid) == number + 1
    assert (seen == 1).all()


@settings(deadline=None, max_examples=60)
@given(extents, extents, extents, extents)
def test_overlapping_finds_exactly_the_blocks_that_share_a_voxel(shape, block, corner, size):
    grid = BlockGrid.over(shape, block)
    roi = Roi(corner, size)
    expected = [b.index for b in grid if b.write.overlaps(roi)]
    assert [b.index for b in grid.overlapping(roi)] == expected


def test_a_block_larger_than_the_volume_is_clipped():
    grid = BlockGrid.over((5, 6, 7), (100, 3, 100))
    assert grid.block_shape == (5, 3, 7)
    assert len(grid) == 2


def test_misaligned_blocks_are_refused():
    BlockGrid.over((100, 100, 100), (64, 128, 32)).require_alignment((32, 64, 32))
    with pytest.raises(InputError, match="along axis y"):
        BlockGrid.over((100, 100, 100), (64, 96, 64)).require_alignment((64, 64, 64))


def test_one_block_needs_no_alignment():
    BlockGrid.over((50, 50, 50), (50, 50, 50)).require_alignment((64, 64, 64))


def test_a_box_is_cut_to_its_middle():
    part = middle_part(Roi((10, 0, 0), (8, 40, 20)), 8 * 10 * 20)
    assert part == Roi((10, 15, 0), (8, 10, 20))
    assert middle_part(part, part.size) == part
    # Of equal axes the first is cut; an odd extent keeps the larger half.
    assert middle_part(Roi((0, 0, 0), (5, 5, 1)), 24) == Roi((1, 0, 0), (3, 5, 1))
    assert middle_part(Roi((3, 4, 5), (7, 9, 5)), 1).shape == (1, 1, 1)


def test_volume_beyond_63_bits_is_refused():
    check_indexable((2**20, 2**20, 2**20))
    with pytest.raises(InputError, match="63 bits"):
        check_indexable((2**21, 2**21, 2**21))
