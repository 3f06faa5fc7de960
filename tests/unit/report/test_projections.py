"""Projections against a slow reference, over blockings and orders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.errors import DtypeError, ShapeError
from pipeline.geometry import BlockGrid, Roi
from pipeline.report.projections import (
    AXES,
    LabelProjections,
    MaxProjections,
    ProjectionGrid,
    affinity_strength,
    project_max,
)

BLOCKS = ((99, 99, 99), (4, 5, 6), (3, 4, 5), (1, 20, 2))


def reference_max(volume: NDArray, grid: ProjectionGrid, axis: int) -> NDArray:
    """Every voxel put into its pixel, one after the other."""
    out: dict[tuple[int, ...], float] = {}
    for position in np.ndindex(volume.shape):
        pixel = tuple(position[d] // grid.factors[d] for d in AXES if d != axis)
        out[pixel] = max(out.get(pixel, -np.inf), volume[position])
    picture = np.zeros(grid.picture(axis), volume.dtype)
    for pixel, value in out.items():
        picture[pixel] = value
    return picture


def reference_labels(labels: NDArray, image: NDArray, grid: ProjectionGrid, axis: int) -> NDArray:
    """The largest (intensity, label) of each pixel's labelled voxels."""
    out: dict[tuple[int, ...], tuple[float, int]] = {}
    for position in np.ndindex(labels.shape):
        if labels[position]:
            pixel = tuple(position[d] // grid.factors[d] for d in AXES if d != axis)
            found = (image[position], int(labels[position]))
            out[pixel] = max(out.get(pixel, found), found)
    picture = np.zeros(grid.picture(axis), np.uint64)
    for pixel, (_, label) in out.items():
        picture[pixel] = label
    return picture


def volumes(seed: int, shape: tuple[int, int, int]) -> tuple[NDArray, NDArray]:
    """An image with many ties and sparse labels, some of them of 64 bits."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 5, shape).astype(np.uint16)
    ids = np.array([0, 0, 0, 7, 8, 2**53 + 1, 2**64 - 1], np.uint64)
    return image, ids[rng.integers(0, len(ids), shape)]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(*[st.integers(1, 11)] * 3),
    block=st.sampled_from(BLOCKS),
    max_pixels=st.sampled_from((1, 3, 4, 100)),
    voxel=st.sampled_from(((1.0, 1.0, 1.0), (40.0, 8.0, 8.0), (3.0, 5.0, 7.0))),
)
def test_blocks_and_their_order_do_not_show(seed, shape, block, max_pixels, voxel):
    image, labels = volumes(seed, shape)
    grid = ProjectionGrid(shape, voxel, max_pixels)
    blocks = list(BlockGrid.over(shape, block))
    order = np.random.default_rng(seed).permutation(len(blocks))
    parts = [(MaxProjections(grid, np.uint16), LabelProjections(grid, np.uint16)) for _ in "ab"]
    for turn, index in enumerate(order):
        roi = blocks[index].write
        bright, seen = parts[turn % 2]
        bright.add(roi, image[roi.slices])
        seen.add(roi, labels[roi.slices], image[roi.slices])
    parts[0][0].merge(parts[1][0])
    parts[0][1].merge(parts[1][1])
    for axis in AXES:
        np.testing.assert_array_equal(parts[0][0].along(axis), reference_max(image, grid, axis))
        expected = reference_labels(labels, image, grid, axis)
        np.testing.assert_array_equal(parts[0][1].along(axis), expected)


@settings(deadline=None, max_examples=200)
@given(
    shape=st.tuples(*[st.integers(1, 5000)] * 3),
    voxel=st.tuples(*[st.floats(0.3, 5000)] * 3),
    max_pixels=st.integers(1, 2000),
)
def test_no_side_exceeds_the_limit_and_no_voxel_is_left_out(shape, voxel, max_pixels):
    grid = ProjectionGrid(shape, voxel, max_pixels)
    for pixels, factor, size in zip(grid.pixels, grid.factors, shape, strict=True):
        assert 1 <= pixels <= max_pixels
        assert (pixels - 1) * factor < size <= pixels * factor


def test_anisotropic_voxels_give_nearly_square_pixels():
    grid = ProjectionGrid((500, 4000, 4000), (40.0, 8.0, 8.0), 1000)
    assert grid.factors == (1, 4, 4)
    assert grid.picture(0) == (1000, 1000)
    assert grid.picture(2) == (500, 1000)


def test_a_block_touches_only_its_window():
    grid = ProjectionGrid((4, 10, 10), (1.0, 1.0, 1.0), 5)
    roi = Roi((0, 3, 5), (4, 3, 5))
    assert grid.window(roi, 0) == (slice(1, 3), slice(2, 5))
    piece = project_max(np.arange(60, dtype=np.uint8).reshape(roi.shape), roi, grid, 0)
    # Rows 3 | 4, 5 and columns 5 | 6, 7 | 8, 9 of the last plane, which holds 45 to 59.
    np.testing.assert_array_equal(piece, [[45, 47, 49], [55, 57, 59]])


def test_pixels_without_a_block_take_the_smallest_value():
    grid = ProjectionGrid((2, 2, 4), (1.0, 1.0, 1.0))
    bright = MaxProjections(grid, np.uint16)
    bright.add(Roi((0, 0, 0), (2, 2, 2)), np.array([[[90, 50], [60, 70]]] * 2, np.uint16))
    np.testing.assert_array_equal(bright.along(0), [[90, 50, 50, 50], [60, 70, 50, 50]])
    assert not MaxProjections(grid, np.int16).along(1).any()


def test_zero_is_a_value_like_others():
    grid = ProjectionGrid((1, 1, 3), (1.0, 1.0, 1.0))
    bright = MaxProjections(grid, np.uint8)
    bright.add(Roi((0, 0, 0), (1, 1, 3)), np.array([[[0, 9, 4]]], np.uint8))
    np.testing.assert_array_equal(bright.along(0), [[0, 9, 4]])


def test_nan_loses_and_still_carries_its_label():
    grid = ProjectionGrid((2, 1, 2), (1.0, 1.0, 1.0))
    image = np.array([[[np.nan, np.nan]], [[-3.0, np.nan]]], np.float32)
    labels = np.array([[[9, 5]], [[4, 6]]], np.uint32)
    whole = Roi((0, 0, 0), (2, 1, 2))
    bright, seen = MaxProjections(grid, np.float32), LabelProjections(grid, np.float32)
    bright.add(whole, image)
    seen.add(whole, labels, image)
    np.testing.assert_array_equal(bright.along(0), [[-3.0, -3.0]])
    np.testing.assert_array_equal(seen.along(0), [[4, 6]])


def test_the_label_is_that_of_the_brightest_labelled_voxel():
    image = np.array([200, 10, 30, 30], np.uint8).reshape(4, 1, 1)
    labels = np.array([0, 3, 5, 4], np.uint64).reshape(4, 1, 1)
    seen = LabelProjections(ProjectionGrid((4, 1, 1), (1.0, 1.0, 1.0)), np.uint8)
    seen.add(Roi((0, 0, 0), (4, 1, 1)), labels, image)
    assert seen.along(0).tolist() == [[5]]


def test_input_is_not_changed():
    image, labels = volumes(1, (5, 6, 7))
    kept = image.copy(), labels.copy()
    seen = LabelProjections(ProjectionGrid((5, 6, 7), (1.0, 1.0, 1.0)), np.uint16)
    seen.add(Roi((0, 0, 0), (5, 6, 7)), labels, image)
    np.testing.assert_array_equal(kept[0], image)
    np.testing.assert_array_equal(kept[1], labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_affinity_strength_is_the_mean_of_the_first_three_channels(dtype):
    rng = np.random.default_rng(0)
    affinities = rng.integers(0, np.iinfo(dtype).max + 1, (5, 3, 4, 6)).astype(dtype)
    strength = affinity_strength(affinities)
    expected = affinities[:3].astype(np.int64).sum(axis=0) // 3
    assert strength.dtype == np.uint16
    np.testing.assert_array_equal(strength, expected)


def test_wrong_arrays_are_refused():
    grid = ProjectionGrid((4, 4, 4), (1.0, 1.0, 1.0))
    roi = Roi((0, 0, 2), (4, 4, 2))
    bright, seen = MaxProjections(grid, np.uint8), LabelProjections(grid, np.uint8)
    good = np.zeros(roi.shape, np.uint8)
    with pytest.raises(ShapeError, match="was given for the box"):
        bright.add(roi, np.zeros((4, 2, 4), np.uint8))
    with pytest.raises(ShapeError, match="leaves the volume"):
        bright.add(roi.shift((0, 0, 1)), good)
    with pytest.raises(DtypeError, match="uint8 were given uint16"):
        bright.add(roi, good.astype(np.uint16))
    with pytest.raises(DtypeError, match="unsigned labels"):
        seen.add(roi, good.astype(np.int64), good)
    with pytest.raises(ShapeError, match="different volumes"):
        bright.merge(MaxProjections(ProjectionGrid((4, 4, 5), (1.0, 1.0, 1.0)), np.uint8))
    with pytest.raises(DtypeError, match="integers and floats"):
        MaxProjections(grid, bool)
    with pytest.raises(ShapeError, match="voxel size"):
        ProjectionGrid((4, 4, 4), (1.0, 0.0, 1.0))
    with pytest.raises(ShapeError, match="3 or more"):
        affinity_strength(np.zeros((2, 4, 4, 4), np.uint8))
    with pytest.raises(DtypeError, match="uint8 or uint16"):
        affinity_strength(np.zeros((3, 4, 4, 4), np.float32))
