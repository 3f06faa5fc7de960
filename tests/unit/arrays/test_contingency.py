"""Contingency tables and the scores from them, against dense and pairwise references."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays import contingency
from pipeline.arrays.contingency import (
    Contingency,
    count_contingency,
    describe_voxel_conventions,
    rename_fragments,
    score_contingency,
    sum_contingency,
)
from pipeline.arrays.labels import IGNORE
from pipeline.arrays.relabel import apply_lookup
from pipeline.errors import DataError, DtypeError, InputError, ShapeError

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)
LARGE = 2**63


def u64(values):
    return np.array(values, np.uint64)


def rows(table):
    columns = (table.fragment, table.truth, table.voxels)
    return [tuple(map(int, row)) for row in zip(*columns, strict=True)]


def reference_table(fragments, truth):
    """One voxel at a time."""
    counts = {}
    for a, b in zip(fragments.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if b not in (0, int(IGNORE)):
            counts[a, b] = counts.get((a, b), 0) + 1
    return [(*pair, n) for pair, n in sorted(counts.items())]


def random_labels(seed, shape, spread=1):
    """Few ids, background among them, in runs along x; truth has ignored voxels too."""
    rng = np.random.default_rng(seed)
    fragments = rng.integers(0, 6, shape) * spread
    truth = rng.integers(0, 5, shape) * spread
    truth = truth.astype(np.uint64).repeat(2, -1)[..., : shape[-1]]
    truth[rng.random(shape) < 0.1] = IGNORE
    return fragments.astype(np.uint64), truth


# --- tables


def test_a_table_by_hand():
    fragments = u64([[[0, 7, 7], [7, 7, 9]], [[9, 9, 9], [0, 0, 3]]])
    truth = u64([[[1, 1, 1], [0, 2, 2]], [[2, IGNORE, 0], [1, 1, 0]]])
    assert rows(count_contingency(fragments, truth)) == [
        (0, 1, 3), (7, 1, 2), (7, 2, 1), (9, 2, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(6, 9, 12), (1, 1, 1), (40, 3, 8), (0, 4, 4)])
@pytest.mark.parametrize("spread", [1, LARGE // 8, 2**31 + 1])
def test_a_table_equals_the_slow_one(shape, spread):
    fragments, truth = random_labels(3, shape, spread)
    before = fragments.copy(), truth.copy()
    assert rows(count_contingency(fragments, truth)) == reference_table(fragments, truth)
    np.testing.assert_array_equal(fragments, before[0])
    np.testing.assert_array_equal(truth, before[1])


def test_ids_that_a_float_cannot_hold_stay_apart():
    """Neighbours above 2^53, and pairs whose ids are swapped."""
    a, b = 2**60 + 1, 2**60 + 2
    table = count_contingency(u64([a, b, a, b, b]), u64([b, a, a, b, b]))
    assert rows(table) == [(a, a, 1), (a, b, 1), (b, a, 1), (b, b, 2)]


def test_many_pairs():
    """More than the first hash table holds, each in one place only."""
    rng = np.random.default_rng(0)
    fragments = rng.integers(0, 2**62, 40_000).astype(np.uint64)
    truth = rng.integers(1, 2**62, 40_000).astype(np.uint64)
    twice = np.concatenate([fragments, fragments[::-1]]), np.concatenate([truth, truth[::-1]])
    table = count_contingency(*twice)
    assert len(table) == 40_000
    assert (table.voxels == 2).all()
    assert rows(table) == reference_table(*twice)


def test_views_of_larger_arrays_are_taken():
    fragments, truth = random_labels(1, (6, 8, 10))
    part = (slice(1, 5), slice(None, None, 2), slice(8, 1, -1))
    assert rows(count_contingency(fragments[part], truth[part])) == reference_table(
        fragments[part], truth[part]
    )


@PROPERTY
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*(st.integers(1, 6) for _ in range(3))),
    st.integers(0, 5),
    st.integers(0, 30),
)
def test_tables_of_blocks_add_up(seed, shape, cut, most):
    fragments, truth = random_labels(seed, shape)
    whole = count_contingency(fragments, truth)
    parts = []
    for half in (slice(None, cut), slice(cut, None)):
        for other in (slice(None, cut // 2), slice(cut // 2, None)):
            box = (half, other)
            parts.append(count_contingency(fragments[box], truth[box]))
    order = np.random.default_rng(seed).permutation(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contingency, "_PENDING_ROWS", most)
        total = sum_contingency(parts[i] for i in order)
    assert rows(total) == rows(whole)


def test_no_tables_give_an_empty_one():
    assert rows(sum_contingency([])) == []
    assert rows(sum_contingency([Contingency.empty(), Contingency.empty()])) == []


@PROPERTY
@given(st.integers(0, 2**32 - 1))
def test_a_renamed_table_is_that_of_the_renamed_labels(seed):
    fragments, truth = random_labels(seed, (3, 5, 7))
    rng = np.random.default_rng(seed)
    ids = np.unique(rng.integers(1, 8, 4)).astype(np.uint64)
    targets = rng.integers(0, 4, len(ids)).astype(np.uint64)
    table = count_contingency(fragments, truth)
    before = rows(table)
    renamed = rename_fragments(table, ids, targets)
    assert rows(renamed) == rows(count_contingency(apply_lookup(fragments, ids, targets), truth))
    assert rows(table) == before


# --- scores


def test_scores_by_hand():
    """Object 1 of four voxels in two halves; objects 2 and 3 of two voxels each in one segment."""
    table = count_contingency(u64([5, 5, 6, 6, 7, 7, 7, 7]), u64([1, 1, 1, 1, 2, 2, 3, 3]))
    scores = score_contingency(table)
    assert scores["voxels"] == 8
    assert scores["omitted_voxels"] == 0
    # Half of the voxels lie in object 1, whose segment takes one bit to say; the other half in
    # segment 7, whose object does.
    assert scores["voi_split"] == pytest.approx(0.5)
    assert scores["voi_merge"] == pytest.approx(0.5)
    assert scores["voi"] == pytest.approx(1.0)
    # Pairs: 4 in both, 1 + 1 + 6 in a segment, 6 + 1 + 1 in an object, 28 in all.
    assert scores["adapted_rand_precision"] == pytest.approx(4 / 8)
    assert scores["adapted_rand_recall"] == pytest.approx(4 / 8)
    assert scores["adapted_rand_error"] == pytest.approx(0.5)
    assert scores["ari"] == pytest.approx((4 - 64 / 28) / (8 - 64 / 28))


def test_splits_and_merges_are_told_apart():
    whole, halves = u64([1] * 4), u64([1, 1, 2, 2])
    split = score_contingency(count_contingency(halves, whole))
    assert (split["voi_split"], split["voi_merge"]) == (1.0, 0.0)
    assert (split["adapted_rand_precision"], split["adapted_rand_recall"]) == (1.0, 2 / 6)
    merge = score_contingency(count_contingency(whole, halves))
    assert (merge["voi_split"], merge["voi_merge"]) == (0.0, 1.0)
    assert (merge["adapted_rand_precision"], merge["adapted_rand_recall"]) == (2 / 6, 1.0)


def test_the_truth_itself_is_perfect_to_the_last_bit():
    _, truth = random_labels(5, (7, 8, 9), 2**40 + 1)
    scores = score_contingency(count_contingency(truth, truth))
    names = ("voi_split", "voi_merge", "voi", "adapted_rand_error")
    assert [scores[name] for name in names] == [0.0] * 4
    assert (scores["ari"], scores["adapted_rand_precision"], scores["adapted_rand_recall"]) == (
        1.0, 1.0, 1.0,
    )  # fmt: skip


def test_background_is_a_segment_where_there_is_truth_and_nothing_elsewhere():
    fragments, truth = u64([0, 0, 4, 4, 0, 9]), u64([1, 2, 1, 2, 0, 0])
    scores = score_contingency(count_contingency(fragments, truth))
    named = score_contingency(count_contingency(u64([8, 8, 4, 4]), truth[:4]))
    assert (scores["voxels"], scores["omitted_voxels"]) == (4, 2)
    assert named["omitted_voxels"] == 0
    for name in scores:
        assert name == "omitted_voxels" or scores[name] == named[name], name


DEGENERATE = {
    "one voxel": ([7], [1], 1.0, 0.0),
    "all apart in both": ([1, 2, 3], [4, 5, 6], 1.0, 0.0),
    "all one in both": ([1, 1, 1], [2, 2, 2], 1.0, 0.0),
    "all one, truth apart": ([1, 1, 1], [4, 5, 6], 0.0, 1.0),
    "all apart, truth one": ([1, 2, 3], [4, 4, 4], 0.0, 1.0),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_partitions(case):
    fragments, truth, ari, error = DEGENERATE[case]
    scores = score_contingency(count_contingency(u64(fragments), u64(truth)))
    assert (scores["ari"], scores["adapted_rand_error"]) == (ari, error)
    assert all(math.isfinite(value) for value in scores.values())


def reference_scores(fragments, truth):
    """Every pair of voxels, and entropies straight from their definition."""
    keep = (truth != 0) & (truth != IGNORE)
    s, t = fragments[keep].tolist(), truth[keep].tolist()
    n = len(s)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    same_s = [s[i] == s[j] for i, j in pairs]
    same_t = [t[i] == t[j] for i, j in pairs]
    both = sum(a and b for a, b in zip(same_s, same_t, strict=True))
    in_s, in_t = sum(same_s), sum(same_t)

    def conditional(x, given):
        """H(x | given) in bits."""
        total = 0.0
        for value in set(zip(x, given, strict=True)):
            joint = sum(p == value for p in zip(x, given, strict=True)) / n
            total -= joint * math.log2(joint / (given.count(value[1]) / n))
        return total

    # Agreements of pairs against those expected of random partitions of the same sizes.
    expected = in_s * in_t / len(pairs) if pairs else 0.0
    best = (in_s + in_t) / 2
    precision = both / in_s if in_s else 1.0
    recall = both / in_t if in_t else 1.0
    f = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    split, merge = conditional(s, t), conditional(t, s)
    return {
        "voxels": n,
        "omitted_voxels": s.count(0),
        "voi_split": split,
        "voi_merge": merge,
        "voi": split + merge,
        "ari": 1.0 if best == expected else (both - expected) / (best - expected),
        "adapted_rand_precision": precision,
        "adapted_rand_recall": recall,
        "adapted_rand_error": 1 - f,
    }


@PROPERTY
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([1, 2**59]))
def test_scores_equal_those_of_all_pairs(seed, size, spread):
    fragments, truth = random_labels(seed, (size,), spread)
    truth[0] = spread
    scores = score_contingency(count_contingency(fragments, truth))
    assert scores == pytest.approx(reference_scores(fragments, truth), abs=1e-12)


@PROPERTY
@given(st.integers(0, 2**32 - 1))
def test_names_and_order_do_not_matter(seed):
    """To the last bit: sums are rounded once."""
    fragments, truth = random_labels(seed, (400,))
    truth[0] = 1
    rng = np.random.default_rng(seed)
    order = rng.permutation(400)
    names = rng.permutation(np.arange(1, 1000)).astype(np.uint64) * np.uint64(2**50)
    shuffled = count_contingency(
        np.where(fragments == 0, 0, names[fragments.astype(int)])[order],
        np.where((truth == 0) | (truth == IGNORE), truth, names[truth.astype(int) % 999])[order],
    )
    assert score_contingency(shuffled) == score_contingency(count_contingency(fragments, truth))


def test_large_counts_do_not_overflow():
    """A teravoxel: squares of counts are beyond 64 bits."""
    n = 2**40
    table = Contingency(u64([1, 2, 2]), u64([1, 1, 2]), u64([n, n, n]))
    small = Contingency(u64([1, 2, 2]), u64([1, 1, 2]), u64([2**20] * 3))
    scores, expected = score_contingency(table), score_contingency(small)
    assert scores["voi_split"] == pytest.approx(2 / 3)
    for name in ("ari", "adapted_rand_error", "voi"):
        assert scores[name] == pytest.approx(expected[name], rel=1e-5)


# --- what is refused


def test_other_data_types_are_refused():
    with pytest.raises(DtypeError, match="truth: labels are uint64, got int64"):
        count_contingency(u64([1]), np.array([1]))
    with pytest.raises(DtypeError, match="fragments: labels are uint64, got float64"):
        count_contingency(np.array([1.0]), u64([1]))


def test_other_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"\(2,\).*\(3,\)"):
        count_contingency(u64([1, 2]), u64([1, 2, 3]))
    with pytest.raises(ShapeError, match="voxels"):
        Contingency(u64([1, 2]), u64([1, 2]), u64([1]))


@pytest.mark.parametrize("label", [0, IGNORE])
def test_rows_without_truth_are_refused(label):
    with pytest.raises(InputError, match="IGNORE"):
        Contingency(u64([1]), u64([label]), u64([4]))


def test_nothing_to_score_is_an_error():
    with pytest.raises(DataError, match="no voxel has a true label"):
        score_contingency(count_contingency(u64([1, 2]), u64([0, IGNORE])))


def test_every_score_has_a_convention():
    said = describe_voxel_conventions()
    table = count_contingency(u64([1, 2]), u64([1, 1]))
    for name in score_contingency(table):
        assert any(name.startswith(topic) or topic in name for topic in said), name
