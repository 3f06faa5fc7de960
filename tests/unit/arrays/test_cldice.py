"""Thinning keeps the Betti numbers and loses no object; clDice by hand and by its formula."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.morphology import skeletonize

from pipeline.arrays.betti import betti_numbers
from pipeline.arrays.cldice import SkeletonOverlap, overlap_skeletons
from pipeline.arrays.thinning import thin
from pipeline.errors import DtypeError, ShapeError

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)


def random_mask(seed, axes=3, most=12):
    """Noise, or smooth shapes."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, most + 1, axes))
    if rng.random() < 0.5:
        return rng.random(shape) < rng.random()
    return ndimage.gaussian_filter(rng.standard_normal(shape), 1) > 0


def box(shape):
    return np.pad(np.ones(shape, bool), 2)


# --- thinning


@pytest.mark.parametrize("axes", [2, 3])
@settings(PROPERTY, max_examples=200)
@given(st.integers(0, 2**32 - 1))
def test_the_skeleton_lies_inside_and_has_the_same_topology(axes, seed):
    mask = random_mask(seed, axes)
    skeleton = thin(mask)
    assert skeleton.dtype == np.bool_
    assert skeleton.shape == mask.shape
    assert not (skeleton & ~mask).any()
    assert betti_numbers(skeleton) == betti_numbers(mask)


@settings(PROPERTY, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_a_skeleton_in_space_cannot_be_thinned_further(seed):
    """Every voxel left is the end of a line, or holds the topology together."""
    skeleton = thin(random_mask(seed, 3, 7))
    np.testing.assert_array_equal(thin(skeleton), skeleton)
    if 1 in skeleton.shape:
        return
    padded = np.pad(skeleton, 1)
    whole = betti_numbers(padded)
    for at in np.argwhere(padded):
        near = padded[tuple(slice(i - 1, i + 2) for i in at)]
        if near.sum() != 2:
            without = padded.copy()
            without[tuple(at)] = False
            assert betti_numbers(without) != whole


@pytest.mark.parametrize("width", list(itertools.product(range(1, 7), repeat=2)), ids=str)
def test_bars_of_every_width_keep_a_line_along_them(width):
    """Even widths along two axes are what scikit-image's own thinning of space makes vanish."""
    for axis in range(3):
        skeleton = thin(np.moveaxis(box((30, *width)), 0, axis))
        along = np.count_nonzero(skeleton.any(tuple(a for a in range(3) if a != axis)))
        assert 30 - 2 * max(3, *width) <= along <= skeleton.sum() <= along + 2


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8, 16])
def test_compact_objects_keep_at_least_a_voxel(side):
    assert thin(box((side,) * 3)).sum() >= 1
    assert thin(box((side,) * 2)).sum() >= 1


def test_odd_bars_are_thinned_to_their_axis():
    """Up to a radius from both ends, where a bar has corners."""
    found = thin(box((5, 5, 30)))
    axis = np.zeros_like(found)
    axis[4, 4, 2:32] = True
    assert not (found & ~axis).any()
    assert found[4, 4, 4:30].all()


@pytest.mark.parametrize("width", [3, 4, 5, 6, 8, 9])
def test_the_line_runs_in_the_middle(width):
    """One voxel wide, and no more than half a voxel off where there is no middle voxel."""
    for axis in range(3):
        bar = np.moveaxis(box((40, width, width)), 0, axis)
        line = np.moveaxis(thin(bar), axis, 0)[15:29]
        middle = 2 + (width - 1) // 2
        assert (line.sum((1, 2)) == 1).all()
        assert line[:, middle : middle + 2, middle : middle + 2].any((1, 2)).all()


def test_lines_stay_as_they_are():
    line = np.zeros((8, 9, 10), bool)
    for i in range(8):
        line[i, i, min(i, 5)] = True
    np.testing.assert_array_equal(thin(line), line)


def test_the_plane_is_that_of_scikit_image():
    mask = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal((60, 70)), 3) > 0
    expected = skeletonize(mask, method="zhang")
    np.testing.assert_array_equal(thin(mask), expected)
    for axis in range(3):
        thick = np.expand_dims(mask, axis)
        np.testing.assert_array_equal(thin(thick), np.expand_dims(expected, axis))


def test_the_rest_of_the_image_does_not_matter():
    """Shifts by two voxels change nothing; nor does background around."""
    mask = (
        ndimage.gaussian_filter(np.random.default_rng(2).standard_normal((14, 15, 16)), 1.5) > 0.05
    )
    wider = np.pad(mask, ((2, 1), (4, 3), (6, 0)))
    np.testing.assert_array_equal(thin(wider)[2:-1, 4:-3, 6:], thin(mask))


@pytest.mark.parametrize("axes", [2, 3])
def test_any_memory_layout_and_data_type_and_no_change(axes):
    rng = np.random.default_rng(3)
    wide = rng.random((20, 21, 22)[:axes]) < 0.6
    part = wide[tuple([slice(None, None, 2)] * (axes - 1) + [slice(None, None, -1)])]
    expected = thin(part.copy())
    wide.flags.writeable = False
    np.testing.assert_array_equal(thin(part), expected)
    np.testing.assert_array_equal(thin(np.asfortranarray(part)), expected)
    for dtype in (np.uint8, np.uint64, np.int32):
        labels = part.astype(dtype) * np.iinfo(dtype).max
        np.testing.assert_array_equal(thin(labels), expected)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 3, 3), (3, 4), (2, 3, 4), (1, 1), (1, 1, 1)])
def test_empty_images_have_empty_skeletons(shape):
    skeleton = thin(np.zeros(shape, bool))
    assert skeleton.shape == shape
    assert not skeleton.any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (1, 1, 1), (1, 1, 7), (7, 1, 1), (1, 7, 1)])
def test_lines_that_fill_the_image_stay(shape):
    assert thin(np.ones(shape, bool)).all()


def test_what_is_refused():
    mask = np.ones((3, 3), bool)
    with pytest.raises(ShapeError, match=r"got shape \(3,\)"):
        thin(mask[0])
    with pytest.raises(DtypeError, match="float64"):
        thin(mask * 0.5)
    with pytest.raises(ShapeError, match="target"):
        overlap_skeletons(mask[0], mask[0])
    with pytest.raises(ShapeError, match="prediction of shape"):
        overlap_skeletons(mask, mask[1:])
    with pytest.raises(DtypeError, match="prediction"):
        overlap_skeletons(mask * 0.5, mask)


# --- clDice


def test_by_hand():
    """A line of ten voxels; the prediction lacks four of them and has a line of two besides."""
    target, prediction = np.zeros((2, 9, 14), bool)
    target[4, 2:12] = True
    prediction[4, 2:8] = prediction[7, 3:5] = True
    overlap = overlap_skeletons(prediction, target)
    assert overlap == SkeletonOverlap(8, 6, 10, 6)
    assert (overlap.precision, overlap.sensitivity) == (6 / 8, 6 / 10)
    assert overlap.cldice == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert overlap.ags == pytest.approx(60.0)


def test_widths_do_not_matter_but_centre_lines_do():
    thin_bar, wide_bar = np.zeros((2, 11, 11, 30), bool)
    thin_bar[5, 5, 2:28] = True
    wide_bar[3:8, 3:8, 2:28] = True
    # The skeleton of the wide bar is shorter than the bar, and lies in the line.
    assert overlap_skeletons(wide_bar, thin_bar).cldice == 1.0
    shifted = np.roll(wide_bar, 3, 0)
    assert overlap_skeletons(shifted, thin_bar).cldice == 0.0


@PROPERTY
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3]), st.booleans())
def test_the_formula(seed, axes, ignoring):
    rng = np.random.default_rng(seed)
    target = random_mask(seed, axes)
    prediction = target ^ (rng.random(target.shape) < 0.2)
    ignore = rng.random(target.shape) < 0.3 if ignoring else None
    known = np.ones_like(target) if ignore is None else ~ignore
    p, t = prediction & known, target & known
    of_p, of_t = thin(p), thin(t)
    overlap = overlap_skeletons(prediction, target, ignore=ignore)
    assert overlap == SkeletonOverlap(of_p.sum(), (of_p & t).sum(), of_t.sum(), (of_t & p).sum())
    if p.any() and t.any():
        precision, sensitivity = (of_p & t).sum() / of_p.sum(), (of_t & p).sum() / of_t.sum()
        if precision + sensitivity:
            harmonic = 2 * precision * sensitivity / (precision + sensitivity)
            assert overlap.cldice == pytest.approx(harmonic)
        assert overlap.ags == pytest.approx(100 * sensitivity)


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 5), (1, 1), (2, 1, 1)])
def test_empty_masks(shape):
    none, full = np.zeros(shape, bool), np.ones(shape, bool)

    def scores(prediction, target, ignore=None):
        overlap = overlap_skeletons(prediction, target, ignore=ignore)
        return overlap.precision, overlap.sensitivity, overlap.cldice, overlap.ags

    assert scores(none, none) == (None, None, None, None)
    assert scores(full, none) == (0.0, None, 0.0, None)
    assert scores(none, full) == (None, 0.0, 0.0, 0.0)
    assert scores(full, full) == (1.0, 1.0, 1.0, 100.0)
    assert scores(full, full, full) == (None, None, None, None)


def test_masks_that_never_meet_score_0():
    prediction, target = np.zeros((2, 6, 6), bool)
    prediction[1], target[4] = True, True
    assert overlap_skeletons(prediction, target).cldice == 0.0


def test_what_lies_under_ignore_does_not_matter():
    prediction, target, ignore, noise = np.random.default_rng(4).random((4, 8, 9, 10)) < 0.4
    expected = overlap_skeletons(prediction, target, ignore=ignore)
    again = overlap_skeletons(
        np.where(ignore, noise, prediction), np.where(ignore, ~noise, target), ignore=ignore
    )
    assert again == expected
    assert overlap_skeletons(prediction, target) != expected


def test_counts_of_images_add():
    first, second = SkeletonOverlap(8, 6, 10, 6), SkeletonOverlap(2, 2, 0, 0)
    both = sum([first, second], SkeletonOverlap())
    assert both == SkeletonOverlap(10, 8, 10, 6)
    assert both.precision == 0.8
