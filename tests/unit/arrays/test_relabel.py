from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.arrays.relabel import (
    apply_lookup,
    count_voxels,
    drop_small,
    restrict_lookup,
    sum_counts,
)
from pipeline.errors import DtypeError, InputError, ShapeError

TOP = 2**64 - 1


def array(*values: int) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


def test_missing_ids_and_background_stay() -> None:
    labels = array(0, 5, 5, 7, 0, 9, 9, 5).reshape(2, 2, 2)
    kept = labels.copy()
    out = apply_lookup(labels, array(5, 9), array(50, 0))
    assert out.tolist() == [[[0, 50], [50, 7]], [[0, 0], [0, 50]]]
    np.testing.assert_array_equal(labels, kept)
    assert apply_lookup(labels, array(0, 5), array(3, 1)).ravel()[0] == 0


def test_large_ids_are_exact() -> None:
    # 2^53 + 1 and 2^64 - 1 are not float64: any detour through floating point would show.
    labels = array(2**53, 2**53 + 1, TOP, TOP - 1, 2**63)
    out = apply_lookup(labels, array(2**53 + 1, TOP), array(TOP - 5, 2**53 + 3))
    assert out.tolist() == [2**53, TOP - 5, 2**53 + 3, TOP - 1, 2**63]


@pytest.mark.parametrize("entries", [0, 1, 50, 20_000])
def test_lookup_against_a_dictionary(entries: int) -> None:
    rng = np.random.default_rng(entries)
    pool = np.unique(rng.integers(1, 2**63, 30_000).astype(np.uint64))
    ids = np.sort(rng.choice(pool, entries, replace=False))
    targets = rng.integers(0, 2**63, entries).astype(np.uint64)
    labels = np.repeat(rng.choice(np.append(pool, array(0)), 20_000), rng.integers(1, 4, 20_000))
    table = dict(zip(ids.tolist(), targets.tolist(), strict=True))
    expected = [table.get(label, label) for label in labels.tolist()]
    assert apply_lookup(labels, ids, targets).tolist() == expected
    present = labels[::-1]
    some, to = restrict_lookup(present, ids, targets)
    used = sorted(set(table) & set(labels.tolist()))
    assert some.tolist() == used
    assert to.tolist() == [table[i] for i in used]
    assert apply_lookup(labels, some, to).tolist() == expected


def test_strided_and_empty_labels() -> None:
    labels = np.arange(24, dtype=np.uint64).reshape(2, 3, 4)
    out = apply_lookup(labels.T, array(23), array(1))
    assert out.tolist() == np.where(labels == 23, 1, labels).T.tolist()
    assert apply_lookup(np.zeros((0, 3), np.uint64), array(1), array(2)).shape == (0, 3)


def test_bad_lookups_are_refused() -> None:
    labels = array(1, 2)
    with pytest.raises(InputError, match="increase strictly"):
        apply_lookup(labels, array(2, 1), array(1, 1))
    with pytest.raises(InputError, match="increase strictly"):
        restrict_lookup(labels, array(2, 2), array(1, 1))
    with pytest.raises(ShapeError, match="one target per id"):
        apply_lookup(labels, array(1, 2), array(1))
    with pytest.raises(DtypeError, match="int64"):
        apply_lookup(labels, np.array([1]), array(1))  # type: ignore[arg-type]
    with pytest.raises(DtypeError, match="uint32"):
        apply_lookup(labels.astype(np.uint32), array(1), array(1))  # type: ignore[arg-type]


@pytest.mark.parametrize("distinct", [1, 10, 5_000])
def test_count_voxels_against_a_counter(distinct: int) -> None:
    rng = np.random.default_rng(distinct)
    pool = rng.integers(0, 2**63, distinct).astype(np.uint64) * np.uint64(2)
    pool[0] = 0
    labels = rng.choice(np.append(pool, array(TOP)), (20, 30, 41))
    ids, voxels = count_voxels(labels)
    expected = Counter(labels.ravel().tolist())
    del expected[0]
    assert list(zip(ids.tolist(), voxels.tolist(), strict=True)) == sorted(expected.items())
    assert count_voxels(np.zeros((2, 2, 2), np.uint64))[0].size == 0
    with pytest.raises(DtypeError, match="int64"):
        count_voxels(labels.astype(np.int64))  # type: ignore[arg-type]


def test_sum_counts_adds_blocks() -> None:
    ids, totals = sum_counts(array(7, TOP, 7, 3), array(1, 2, 2**60, 4))
    assert (ids.tolist(), totals.tolist()) == ([3, 7, TOP], [4, 2**60 + 1, 2])
    ids, totals = sum_counts(array(), array())
    assert (ids.size, totals.size, ids.dtype, totals.dtype) == (0, 0, np.uint64, np.uint64)
    with pytest.raises(ShapeError, match="per id"):
        sum_counts(array(1), array(1, 2))


def test_drop_small_judges_by_totals() -> None:
    segments, voxels = array(9, 4, 9, 2, 6), array(3, 4, 2, 5, 1)
    ids, targets = drop_small(segments, voxels, 5)
    assert (ids.tolist(), targets.tolist()) == ([4, 6], [0, 0])  # 9 has 3 + 2 voxels: it stays
    assert apply_lookup(array(9, 4, 2, 0, 6), ids, targets).tolist() == [9, 0, 2, 0, 0]
    assert drop_small(segments, voxels, 0)[0].size == 0
    assert drop_small(array(), array(), 5)[0].size == 0
    with pytest.raises(InputError, match="-1"):
        drop_small(segments, voxels, -1)
