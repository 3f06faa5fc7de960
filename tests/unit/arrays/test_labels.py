from __future__ import annotations

import numpy as np
import pytest

from pipeline.arrays.labels import (
    affinities_from_labels,
    affinity_scale,
    quantise,
    quantised_threshold,
)
from pipeline.errors import DataError, DtypeError, InputError, ShapeError


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("x", [0.0, 1e-9, 0.1, 0.3, 0.5, 0.7, 0.9999, 1.0, 1 / 3, 77 / 255])
def test_threshold_is_the_smallest_passing_value(x: float, dtype: type) -> None:
    scale = int(np.iinfo(dtype).max)
    passing = [q for q in range(scale + 1) if q / scale >= x]
    assert quantised_threshold(x, dtype) == passing[0]


def test_every_stored_value_is_its_own_threshold() -> None:
    assert [quantised_threshold(q / 255, np.uint8) for q in range(256)] == list(range(256))
    above = [quantised_threshold(float(np.nextafter(q / 255, 2)), np.uint8) for q in range(255)]
    assert above == list(range(1, 256))
    assert all(quantised_threshold(q / 65535, np.uint16) == q for q in range(0, 65536, 7))


@pytest.mark.parametrize("x", [-0.1, 1.0000001, float("nan"), float("inf")])
def test_threshold_outside_the_unit_interval_is_refused(x: float) -> None:
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        quantised_threshold(x, np.uint8)


def test_scale_of_other_types_is_refused() -> None:
    assert (affinity_scale(np.uint8), affinity_scale("uint16")) == (255, 65535)
    with pytest.raises(DtypeError, match="float32"):
        affinity_scale(np.float32)


def test_quantise_rounds_in_double_precision_ties_to_even() -> None:
    # In float32, 255 * p of a value just below a tie would round up to the tie.
    below = np.nextafter(np.float32(0.5), np.float32(0))
    p = np.array([[0.0, 1.0, 0.5, below], [0.1, 0.3, 2.5 / 255, 1 / 255]], np.float32)
    expected = [[int(np.rint(255 * float(v))) for v in row] for row in p]
    kept = p.copy()
    assert quantise(p).tolist() == expected
    assert quantise(p.T).tolist() == np.array(expected).T.tolist()
    assert quantise(np.array([0.5, 1.5 / 255])).dtype == np.uint8
    assert quantise(np.array([0.5], np.float32)).tolist() == [128]  # 127.5, to even
    assert quantise(np.array([0.5], np.float16)).tolist() == [128]
    np.testing.assert_array_equal(p, kept)


@pytest.mark.parametrize("bad", [np.nan, -0.01, 1.01, np.inf])
def test_quantise_names_number_and_place_of_bad_values(bad: float) -> None:
    p = np.full((3, 2, 4, 5), 0.5, np.float32)
    p[1, 0, 2, 3] = p[2, 1, 3, 4] = bad
    with pytest.raises(DataError, match=r"2 of 120 .* \(1, 0, 2, 3\)"):
        quantise(p)


def test_quantise_refuses_integers() -> None:
    with pytest.raises(DtypeError, match="uint8"):
        quantise(np.zeros(3, np.uint8))  # type: ignore[arg-type]


def test_affinities_from_labels_against_a_loop() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint64)
    expected = np.zeros((3, 4, 5, 6), np.uint8)
    for z, y, x in np.ndindex(4, 5, 6):
        for d, before in enumerate([(z - 1, y, x), (z, y - 1, x), (z, y, x - 1)]):
            if min(before) >= 0 and labels[z, y, x] == labels[before] != 0:
                expected[d, z, y, x] = 255
    np.testing.assert_array_equal(affinities_from_labels(labels), expected)
    assert 0 < (expected > 0).mean() < 0.5


def test_affinities_from_labels_wants_three_axes() -> None:
    with pytest.raises(ShapeError, match="Z, Y, X"):
        affinities_from_labels(np.zeros((3, 3), np.uint64))
