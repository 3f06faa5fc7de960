"""Confusion tables against set arithmetic, and the scores of masks and labels by name."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.betti import betti_errors
from pipeline.arrays.cldice import overlap_skeletons
from pipeline.arrays.labels import IGNORE
from pipeline.arrays.segmentation_metrics import (
    BETTER,
    describe_mask_conventions,
    instance_metrics,
    segmentation_metrics,
)
from pipeline.arrays.voxel_metrics import Confusion, count_confusion, score_confusion
from pipeline.errors import DataError, DtypeError, InputError, ShapeError

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)
COUNTS = {"voxels", "omitted_voxels"}


def random_masks(seed, axes=3, most=9):
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, most + 1, axes)
    return (rng.random((3, *shape)) < rng.choice([0.1, 0.5, 0.9], (3, *(1,) * axes))).astype(bool)


def voxel_sets(*masks):
    return [set(map(tuple, np.argwhere(mask).tolist())) for mask in masks]


# --- confusion


def test_a_table_by_hand():
    prediction = np.array([[1, 1, 1, 0], [0, 0, 1, 0]], bool)
    target = np.array([[1, 1, 0, 0], [1, 0, 1, 0]], bool)
    table = count_confusion(prediction, target)
    assert table == Confusion(tp=3, fp=1, fn=1, tn=3)
    assert table.voxels == 8
    assert score_confusion(table) == {
        "accuracy": 6 / 8,
        "dice": 6 / 8,
        "jaccard": 3 / 5,
        "fnr": 1 / 4,
        "fpr": 1 / 4,
        "precision": 3 / 4,
        "recall": 3 / 4,
    }
    ignore = np.array([[0, 0, 1, 0], [0, 0, 0, 1]], bool)
    assert count_confusion(prediction, target, ignore=ignore) == Confusion(3, 0, 1, 2)


@PROPERTY
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_tables_and_scores_equal_set_arithmetic(seed, axes):
    prediction, target, ignore = random_masks(seed, axes)
    p, t, left_out, everything = voxel_sets(prediction, target, ignore, np.ones_like(target))
    known = everything - left_out
    p, t = p & known, t & known
    table = count_confusion(prediction, target, ignore=ignore)
    assert table == Confusion(len(p & t), len(p - t), len(t - p), len(known - p - t))
    assert all(type(n) is int for n in (table.tp, table.fp, table.fn, table.tn))

    def share(part, whole):
        return len(part) / len(whole) if whole else None

    assert score_confusion(table) == {
        "accuracy": share(known - (p ^ t), known),
        "dice": 2 * len(p & t) / (len(p) + len(t)) if p or t else None,
        "jaccard": share(p & t, p | t),
        "fnr": share(t - p, t),
        "fpr": share(p - t, known - t),
        "precision": share(p & t, p),
        "recall": share(p & t, t),
    }


@PROPERTY
@given(st.integers(0, 2**32 - 1))
def test_tables_of_chunks_add(seed):
    prediction, target, ignore = random_masks(seed)
    rng = np.random.default_rng(seed)
    cuts = [sorted({0, n, *rng.integers(0, n + 1, 2).tolist()}) for n in target.shape]
    boxes = itertools.product(*([slice(a, b) for a, b in itertools.pairwise(c)] for c in cuts))
    tables = [count_confusion(prediction[b], target[b], ignore=ignore[b]) for b in boxes]
    assert sum(tables, Confusion()) == count_confusion(prediction, target, ignore=ignore)


def test_large_counts_do_not_overflow():
    table = Confusion(2**63, 2**62, 2**61, 2**63)
    total = table + table
    assert total.voxels == 2 * (2**64 + 2**62 + 2**61)
    assert score_confusion(total) == score_confusion(table)


EMPTY = {
    "no voxel": (Confusion(), {}),
    "both empty": (Confusion(tn=4), {"accuracy": 1.0, "fpr": 0.0}),
    "target empty": (
        Confusion(fp=1, tn=3),
        {"accuracy": 0.75, "dice": 0.0, "jaccard": 0.0, "fpr": 0.25, "precision": 0.0},
    ),
    "prediction empty": (
        Confusion(fn=1, tn=3),
        {"accuracy": 0.75, "dice": 0.0, "jaccard": 0.0, "fnr": 1.0, "fpr": 0.0, "recall": 0.0},
    ),
    "both full": (
        Confusion(tp=4),
        {"accuracy": 1.0, "dice": 1.0, "jaccard": 1.0, "fnr": 0.0, "precision": 1.0, "recall": 1.0},
    ),
}


@pytest.mark.parametrize("case", EMPTY)
def test_a_ratio_of_nothing_is_none(case):
    table, expected = EMPTY[case]
    found = score_confusion(table)
    assert {name: value for name, value in found.items() if value is not None} == expected
    assert set(found) == {"accuracy", "dice", "jaccard", "fnr", "fpr", "precision", "recall"}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint64, np.int64])
def test_integers_of_any_width_are_masks(dtype):
    prediction, target, ignore = random_masks(3)
    expected = count_confusion(prediction, target, ignore=ignore)
    most = np.iinfo(dtype).max
    found = count_confusion(
        prediction.astype(dtype) * most, target.astype(dtype), ignore=ignore.astype(dtype)
    )
    assert found == expected


def test_any_memory_layout_and_no_change():
    prediction, target, ignore = np.random.default_rng(4).random((3, 12, 14, 16)) < 0.5
    box = (slice(None, None, 2), slice(1, None, 3), slice(None, None, -1))
    copies = [m.copy() for m in (prediction, target, ignore)]
    parts = [np.ascontiguousarray(m[box]) for m in copies]
    expected = count_confusion(parts[0], parts[1], ignore=parts[2])
    for m in (prediction, target, ignore):
        m.flags.writeable = False
    assert count_confusion(prediction[box], target[box], ignore=ignore[box]) == expected
    fortran = [np.asfortranarray(m) for m in parts]
    assert count_confusion(fortran[0], fortran[1], ignore=fortran[2]) == expected


def test_what_is_refused():
    mask = np.ones((2, 3), bool)
    with pytest.raises(DtypeError, match=r"prediction: .*float64.*threshold"):
        count_confusion(mask * 0.5, mask)
    with pytest.raises(DtypeError, match="target"):
        count_confusion(mask, mask.astype(object))
    with pytest.raises(DtypeError, match="ignore"):
        count_confusion(mask, mask, ignore=mask * 1.0)
    with pytest.raises(ShapeError, match=r"prediction of shape \(2, 3\), target of shape \(3, 2\)"):
        count_confusion(mask, mask.T)
    with pytest.raises(ShapeError, match=r"ignore of shape \(1, 3\)"):
        count_confusion(mask, mask, ignore=mask[:1])
    with pytest.raises(ShapeError, match=r"ignore of shape \(\)"):
        count_confusion(mask, mask, ignore=255)


# --- all scores of a mask


@pytest.mark.parametrize(("axes", "connectivity"), [(2, None), (2, 4), (3, None), (3, 6)])
def test_all_scores_of_a_mask(axes, connectivity):
    rng = np.random.default_rng(5)
    target, ignore = rng.random((2, *(12, 13, 14)[:axes])) < 0.4
    prediction = target ^ (rng.random(target.shape) < 0.1)
    found = segmentation_metrics(
        prediction, target, ignore=ignore, patch=5, connectivity=connectivity
    )
    errors = betti_errors(prediction, target, ignore=ignore, patch=5, connectivity=connectivity)
    overlap = overlap_skeletons(prediction, target, ignore=ignore)
    assert found == {
        **score_confusion(count_confusion(prediction, target, ignore=ignore)),
        "cldice": overlap.cldice,
        "cldice_precision": overlap.precision,
        "cldice_sensitivity": overlap.sensitivity,
        "ags": overlap.ags,
        "betti_e0": errors.e0,
        "betti_e1": errors.e1,
        "betti_e2": errors.e2,
        "betti_e": errors.e,
        "e0_gt": errors.e0_gt,
    }
    assert found["betti_e"] == pytest.approx(found["betti_e0"] + found["betti_e1"])
    assert 0 < found["ags"] <= 100


def test_the_target_itself_has_the_best_of_each():
    mask = np.random.default_rng(6).random((9, 10, 11)) < 0.3
    best = {"low": 0.0, "high": 1.0}
    for name, value in segmentation_metrics(mask, mask, patch=4).items():
        assert value == (100.0 if name == "ags" else best[BETTER[name]]), name
    labels = mask * np.arange(1, mask.size + 1).reshape(mask.shape) // 20
    for name, value in instance_metrics(labels, labels).items():
        assert name in COUNTS or value == best[BETTER[name]], name


def test_worse_is_on_the_other_end():
    target = np.zeros((16, 16), bool)
    target[3, 2:14] = target[9:14, 4:9] = True
    prediction = target.copy()
    prediction[3, 7:9] = prediction[11, 6] = False
    prediction[0, ::2] = True
    perfect, worse = segmentation_metrics(target, target), segmentation_metrics(prediction, target)
    for name, value in worse.items():
        if name != "betti_e2":
            assert (value < perfect[name]) == (BETTER[name] == "high"), name
            assert (value > perfect[name]) == (BETTER[name] == "low"), name


def test_every_name_is_in_the_table_and_no_other():
    mask = np.ones((3, 3), bool)
    names = set(segmentation_metrics(mask, mask)) | set(instance_metrics(mask, mask))
    assert names - COUNTS == set(BETTER)
    assert set(BETTER.values()) == {"low", "high"}
    assert set(describe_mask_conventions()) == {"voxels", "cldice", "betti", "e0_gt", "ags"}


@pytest.mark.parametrize("shape", [(0, 3), (4, 4), (3, 4, 5), (1, 1), (1, 1, 1)])
@pytest.mark.parametrize("values", list(itertools.product((False, True), repeat=3)))
def test_no_score_is_ever_nan(shape, values):
    prediction, target, ignore = (np.full(shape, value) for value in values)
    found = segmentation_metrics(prediction, target, ignore=ignore, patch=2)
    assert all(value is None or math.isfinite(value) for value in found.values())
    if values[2] or 0 in shape:
        assert set(found.values()) == {None}


def test_mask_scores_refuse_what_has_no_neighbours():
    line = np.ones(4, bool)
    with pytest.raises(ShapeError, match=r"\(Y, X\) or \(Z, Y, X\)"):
        segmentation_metrics(line, line)
    with pytest.raises(InputError, match="connectivity 26"):
        segmentation_metrics(line[None], line[None], connectivity=26)


# --- all scores of labels


def pairwise(labels_pred, labels_true, ignore):
    """ARI, adapted Rand and entropies from every pair of voxels, O(n^2)."""
    keep = (labels_true != 0) & ~ignore
    s, t = labels_pred[keep].tolist(), labels_true[keep].tolist()
    n = len(s)
    pairs = list(itertools.combinations(range(n), 2))
    same_s, same_t = ({(i, j) for i, j in pairs if of[i] == of[j]} for of in (s, t))
    a, b, c = len(same_s & same_t), len(same_s - same_t), len(same_t - same_s)
    d = len(pairs) - a - b - c
    # Hubert & Arabie in the form of pair counts.
    below = (a + b) * (b + d) + (a + c) * (c + d)

    def entropy(values):
        return -sum(
            values.count(v) / n * math.log2(values.count(v) / n) for v in sorted(set(values))
        )

    joint = entropy(list(zip(s, t, strict=True)))
    return {
        "voxels": n,
        "omitted_voxels": s.count(0),
        "voi_split": joint - entropy(t),
        "voi_merge": joint - entropy(s),
        "voi": 2 * joint - entropy(t) - entropy(s),
        "ari": 2 * (a * d - b * c) / below if below else 1.0,
        "adapted_rand_precision": a / (a + b) if a + b else 1.0,
        "adapted_rand_recall": a / (a + c) if a + c else 1.0,
        "adapted_rand_error": 1 - 2 * a / (2 * a + b + c) if a + b and a + c else None,
    }


@PROPERTY
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 5, 7), (3, 4, 3), (40,), (6, 6)]))
def test_label_scores_equal_those_of_all_pairs(seed, shape):
    rng = np.random.default_rng(seed)
    labels_pred = rng.integers(0, 4, shape).astype(np.uint64) * np.uint64(2**62)
    labels_true = rng.integers(0, 4, shape)
    ignore = rng.random(shape) < 0.2
    labels_true.flat[0], ignore.flat[0] = 1, False
    expected = pairwise(labels_pred, labels_true, ignore)
    found = instance_metrics(labels_pred, labels_true, ignore=ignore)
    assert set(found) == set(expected)
    if expected["adapted_rand_error"] is None:
        del expected["adapted_rand_error"]
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def test_label_scores_equal_those_of_scikit_image():
    """It calls precision what is recall here and in the paper, and the other way round."""
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(7)
    labels_true = rng.integers(0, 5, (20, 21)).repeat(3, 1)
    labels_pred = np.where(rng.random(labels_true.shape) < 0.8, labels_true, 7) + 1
    found = instance_metrics(labels_pred, labels_true)
    split, merge = metrics.variation_of_information(labels_true, labels_pred, ignore_labels=(0,))
    assert (found["voi_split"], found["voi_merge"]) == pytest.approx((split, merge))
    theirs = metrics.adapted_rand_error(labels_true, labels_pred, ignore_labels=(0,))
    names = ("adapted_rand_error", "adapted_rand_recall", "adapted_rand_precision")
    assert [found[name] for name in names] == pytest.approx(theirs)
    assert abs(theirs[1] - theirs[2]) > 0.01


def test_splits_and_merges_are_told_apart():
    whole, halves = np.ones(8, np.uint8), np.repeat([1, 2], 4).astype(np.int32)
    split, merge = instance_metrics(halves, whole), instance_metrics(whole, halves)
    assert (split["voi_split"], split["voi_merge"]) == (1.0, 0.0)
    assert (merge["voi_split"], merge["voi_merge"]) == (0.0, 1.0)
    assert split["adapted_rand_recall"] < split["adapted_rand_precision"] == 1.0
    assert merge["adapted_rand_precision"] < merge["adapted_rand_recall"] == 1.0


def test_no_id_is_rounded():
    """2^53 + 1 is no double."""
    true = np.array([2**63, 2**63 + 1, 2**53, 2**53 + 1], np.uint64)
    assert instance_metrics(np.arange(4), true)["voi"] == 0.0
    assert instance_metrics(np.array([1, 1, 2, 2]), true)["voi_merge"] == 1.0


def test_nothing_to_score_is_none():
    found = instance_metrics(np.ones((2, 2), int), np.zeros((2, 2), int))
    assert (found.pop("voxels"), found.pop("omitted_voxels")) == (0, 0)
    assert set(found.values()) == {None}
    ones = np.ones((2, 2), int)
    ignored = instance_metrics(ones, ones, ignore=ones)
    assert ignored["voi"] is None
    assert ignored["voxels"] == 0
    assert set(ignored) == set(instance_metrics(ones, ones))
    unknown = instance_metrics(ones, np.full((2, 2), IGNORE))
    assert unknown["ari"] is None


def test_what_labels_refuse():
    ones = np.ones((2, 3), int)
    with pytest.raises(DtypeError, match=r"labels_pred: expected integer labels, got float32"):
        instance_metrics(ones.astype(np.float32), ones)
    with pytest.raises(DataError, match=r"labels_true: label -1.*`ignore`"):
        instance_metrics(ones, -ones)
    with pytest.raises(ShapeError, match=r"\(2, 3\).*\(3, 2\)"):
        instance_metrics(ones, ones.T)
    with pytest.raises(ShapeError, match=r"ignore of shape \(2,\)"):
        instance_metrics(ones, ones, ignore=ones[:, 0])
