import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.arrays.context_postprocessing import keep_connected
from pipeline.errors import DtypeError, InputError, ShapeError

RANK = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}


def reference(finetuned, pretrained, connectivity):
    """One component after the other."""
    ball = ndimage.generate_binary_structure(finetuned.ndim, RANK[connectivity])
    components, count = ndimage.label(finetuned, ball)
    kept = np.zeros(finetuned.shape, bool)
    for number in range(1, count + 1):
        if (pretrained & (components == number)).any():
            kept |= components == number
    return kept


@given(st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_against_one_component_after_the_other(data):
    axes = data.draw(st.sampled_from([2, 3]))
    shape = data.draw(st.tuples(*[st.integers(1, 9)] * axes))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    finetuned = random.random(shape) < data.draw(st.sampled_from([0.2, 0.5]))
    pretrained = random.random(shape) < 0.15
    connectivity = data.draw(st.sampled_from([4, 8] if axes == 2 else [6, 18, 26]))
    before = finetuned.copy(), pretrained.copy()
    found = keep_connected(finetuned, pretrained, connectivity=connectivity)
    np.testing.assert_array_equal(found, reference(finetuned, pretrained, connectivity))
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(finetuned, before[0])
    np.testing.assert_array_equal(pretrained, before[1])


def test_by_hand():
    finetuned = np.array([[1, 1, 0, 0, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]], np.uint8)
    pretrained = np.zeros((3, 5), np.int64)
    pretrained[0, 0], pretrained[2, 3] = 7, 1  # the second lies beside a component only
    diagonal = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(keep_connected(finetuned, pretrained), diagonal)
    diagonal[1, 2] = False
    np.testing.assert_array_equal(keep_connected(finetuned, pretrained, connectivity=4), diagonal)


def test_a_gap_that_fine_tuning_closed_stays_closed():
    finetuned, pretrained = np.zeros((2, 5, 5, 9), bool)
    finetuned[2, 2] = pretrained[2, 2] = True
    pretrained[2, 2, 4] = False
    finetuned[0, 0, 0] = True  # a speck
    found = keep_connected(finetuned, pretrained)
    assert found[2, 2].all()
    assert not found[0, 0, 0]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 2)])
def test_nothing_at_all(shape):
    assert keep_connected(np.zeros(shape, bool), np.zeros(shape, bool)).shape == shape


def test_empty_and_strided_masks():
    full, empty = np.ones((4, 5, 6), bool), np.zeros((4, 5, 6), bool)
    assert not keep_connected(full, empty).any()
    assert not keep_connected(empty, full).any()
    random = np.random.default_rng(0).random((8, 9, 10)) < 0.3
    seed = np.random.default_rng(1).random((8, 9, 10)) < 0.1
    expected = keep_connected(random, seed)
    np.testing.assert_array_equal(keep_connected(np.asfortranarray(random), seed), expected)
    np.testing.assert_array_equal(
        keep_connected(random[::-1], seed[::-1]), keep_connected(random[::-1].copy(), seed[::-1])
    )


def test_refusals():
    mask = np.zeros((4, 5), bool)
    with pytest.raises(ShapeError, match=r"\(5, 4\)"):
        keep_connected(mask, mask.T)
    with pytest.raises(ShapeError, match="finetuned_mask"):
        keep_connected(mask[0], mask[0])
    with pytest.raises(DtypeError, match="pretrained_mask"):
        keep_connected(mask, mask.astype(np.float32))
    for connectivity in (6, 26, 5):
        with pytest.raises(InputError, match=r"\(4, 8\)"):
            keep_connected(mask, mask, connectivity=connectivity)
    with pytest.raises(InputError, match=r"\(6, 18, 26\)"):
        keep_connected(mask[None], mask[None], connectivity=8)
