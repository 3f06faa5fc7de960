import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from pipeline.arrays.nearer import nearer_to_first
from pipeline.errors import InputError, ShapeError


def reference(first, second, within, voxel_size):
    """Two distance transforms, compared."""
    if not first.any():
        return np.zeros_like(within)
    if not second.any():
        return within.copy()
    near, far = (distance_transform_edt(~s, voxel_size) for s in (first, second))
    return within & (near < far * (1 - 1e-9))


@given(st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_against_two_distance_transforms(data):
    axes = data.draw(st.sampled_from([2, 3]))
    shape = data.draw(st.tuples(*[st.integers(1, 9)] * axes))
    size = data.draw(st.tuples(*[st.sampled_from([1.0, 2.0, 2.5, 8.0, 40.0, 0.3])] * axes))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    share = data.draw(st.sampled_from([0.02, 0.2, 0.6]))
    kind = random.random(shape)
    first, second = kind < share / 2, (kind >= share / 2) & (kind < share)
    within = random.random(shape) < data.draw(st.sampled_from([0.1, 0.7, 1.1]))
    found = nearer_to_first(first, second, within, size)
    np.testing.assert_array_equal(found, reference(first, second, within, size))


def test_by_hand():
    first, second = np.zeros((1, 7), bool), np.zeros((1, 7), bool)
    first[0, 1] = second[0, 5] = True
    found = nearer_to_first(first, second, np.ones((1, 7), bool), (1.0, 1.0))
    assert found[0].tolist() == [True, True, True, False, False, False, False]  # a tie at 3


def test_extent_decides():
    """The first set is one voxel away along z, the second two along x: z voxels are 5 long."""
    first, second = np.zeros((2, 1, 3), bool), np.zeros((2, 1, 3), bool)
    first[1, 0, 0] = second[0, 0, 2] = True
    within = np.zeros_like(first)
    within[0, 0, 0] = True
    assert nearer_to_first(first, second, within, (1.0, 1.0, 1.0)).any()
    assert not nearer_to_first(first, second, within, (5.0, 1.0, 1.0)).any()


def test_strided_input_stays_as_it_is():
    random = np.random.default_rng(0)
    kind = random.random((6, 7, 8))
    first, second, within = kind < 0.1, kind > 0.9, kind > 0.2
    expected = nearer_to_first(first, second, within, (1.0,) * 3)
    strided = [np.asfortranarray(m) for m in (first, second, within)]
    np.testing.assert_array_equal(nearer_to_first(*strided, (1.0,) * 3), expected)
    np.testing.assert_array_equal(strided[0], kind < 0.1)


def test_refusals():
    mask = np.zeros((3, 4), bool)
    with pytest.raises(ShapeError, match="3, 5"):
        nearer_to_first(mask, mask, np.zeros((3, 5), bool), (1.0, 1.0))
    for size in ((1.0,), (1.0, 0.0), (1.0, float("nan"))):
        with pytest.raises(InputError, match="2 positive"):
            nearer_to_first(mask, mask, mask, size)
