"""Coarser levels of labels."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.arrays.label_pyramid import downsample_labels
from pipeline.errors import ShapeError
from pipeline.geometry import Triple


def reference(labels: NDArray[np.uint64], factor: Triple) -> NDArray[np.uint64]:
    shape = [-(-n // f) for n, f in zip(labels.shape, factor, strict=True)]
    coarse = np.zeros(shape, labels.dtype)
    for cell in product(*map(range, shape)):
        box = tuple(slice(c * f, (c + 1) * f) for c, f in zip(cell, factor, strict=True))
        found = [v for v in labels[box].ravel().tolist() if v]
        if found:
            coarse[cell] = min(found, key=lambda v: (-found.count(v), v))
    return coarse


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(1, 7)] * 3),
    st.sampled_from([(1, 1, 1), (1, 2, 2), (2, 2, 2), (3, 1, 4)]),
    st.sampled_from([np.uint8, np.uint64]),
)
@settings(deadline=None, max_examples=60)
def test_agrees_with_counting(seed: int, shape: Triple, factor: Triple, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    labels = np.array([0, 0, 3, top, top - 1], dtype)[rng.integers(0, 5, shape)]
    found = downsample_labels(labels, factor)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, reference(labels, factor))


def test_a_thin_neurite_survives() -> None:
    labels = np.zeros((8, 8, 64), np.uint64)
    labels[3, 5, :] = 2**63 + 1
    for _ in range(3):
        labels = downsample_labels(labels, (2, 2, 2))
    np.testing.assert_array_equal(labels, np.full((1, 1, 8), 2**63 + 1, np.uint64))


def test_refuses_what_is_no_volume() -> None:
    with pytest.raises(ShapeError, match="downsample"):
        downsample_labels(np.ones((4, 4), np.uint64), (2, 2, 2))
    with pytest.raises(ShapeError, match="factors"):
        downsample_labels(np.ones((4, 4, 4), np.uint64), (0, 2, 2))
