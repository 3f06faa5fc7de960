"""All voxel and topology scores of a mask, and all voxel scores of labels, under short names.

The names are stable: reports, tables and trackers use them as they are. `BETTER` says which way
each is read. A score that does not exist for an input (a ratio of nothing) is None.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from pipeline.arrays.betti import betti_errors
from pipeline.arrays.cldice import overlap_skeletons
from pipeline.arrays.contingency import count_contingency, score_contingency
from pipeline.arrays.labels import IGNORE, Labels
from pipeline.arrays.masks import as_mask
from pipeline.arrays.voxel_metrics import count_confusion, score_confusion
from pipeline.errors import DataError, DtypeError, ShapeError

BETTER: dict[str, Literal["low", "high"]] = {
    "accuracy": "high",
    "dice": "high",
    "jaccard": "high",
    "fnr": "low",
    "fpr": "low",
    "precision": "high",
    "recall": "high",
    "cldice": "high",
    "cldice_precision": "high",
    "cldice_sensitivity": "high",
    "betti_e0": "low",
    "betti_e1": "low",
    "betti_e2": "low",
    "betti_e": "low",
    "e0_gt": "low",
    "ags": "high",
    "voi_split": "low",
    "voi_merge": "low",
    "voi": "low",
    "ari": "high",
    "adapted_rand_precision": "high",
    "adapted_rand_recall": "high",
    "adapted_rand_error": "low",
}
"""Which end of each score is the good one."""

_OF_LABELS = tuple(name for name in BETTER if name.startswith(("voi", "ari", "adapted")))


def segmentation_metrics(
    prediction_mask: ArrayLike,
    target_mask: ArrayLike,
    *,
    ignore: ArrayLike | None = None,
    patch: int | tuple[int, ...] | None = None,
    connectivity: int | None = None,
) -> dict[str, float | None]:
    """Scores of a foreground mask against the true one.

    Args:
        prediction_mask, target_mask: (Y, X) or (Z, Y, X), bool or integers (all but 0 is
            foreground).
        ignore: bool, the same shape: voxels that are left out, and background for topology.
        patch: extent of the windows over which Betti errors and `e0_gt` are means, of each axis
            or of all; None is the whole image.
        connectivity: of the foreground, for Betti errors and `e0_gt`: 8 (default) or 4 in the
            plane; 26 (default), 18 or 6 in space.

    Returns:
        accuracy, dice, jaccard, fnr, fpr, precision, recall: see `score_confusion`.
        cldice, cldice_precision, cldice_sensitivity, ags: over the image, see `SkeletonOverlap`;
            `ags` is a percentage, all others are shares from 0 to 1.
        betti_e0, betti_e1, betti_e2, betti_e, e0_gt: numbers per window, see `BettiErrors`.

    Raises:
        DtypeError: one is neither boolean nor integer.
        ShapeError: the shapes differ, or have neither two nor three axes.
        InputError: no such connectivity in so many axes; a patch of no extent.
    """
    topology = betti_errors(
        prediction_mask, target_mask, patch=patch, connectivity=connectivity, ignore=ignore
    )
    overlap = overlap_skeletons(prediction_mask, target_mask, ignore=ignore)
    return {
        **score_confusion(count_confusion(prediction_mask, target_mask, ignore=ignore)),
        "cldice": overlap.cldice,
        "cldice_precision": overlap.precision,
        "cldice_sensitivity": overlap.sensitivity,
        "betti_e0": topology.e0,
        "betti_e1": topology.e1,
        "betti_e2": topology.e2,
        "betti_e": topology.e,
        "e0_gt": topology.e0_gt,
        "ags": overlap.ags,
    }


def instance_metrics(
    labels_pred: ArrayLike, labels_true: ArrayLike, *, ignore: ArrayLike | None = None
) -> dict[str, float | int | None]:
    """Scores of labels against true labels; for volumes in chunks, add contingency tables instead.

    Args:
        labels_pred, labels_true: integers of any width, at least 0, the same shape. 0 is
            background: voxels of true background are left out, predicted background on a true
            object is a segment like any other. A true label of 2^64 - 1 is left out as well.
        ignore: bool, the same shape: voxels that are left out.

    Returns:
        voxels, omitted_voxels, voi_split, voi_merge, voi (bits), ari (adjusted Rand index),
        adapted_rand_precision, adapted_rand_recall, adapted_rand_error: see `score_contingency`.
        Without a voxel to score the two counts are 0 and all scores None.

    Raises:
        DtypeError: labels are not integers.
        DataError: a label below 0.
        ShapeError: the shapes differ.
    """
    found, truth = _as_labels(labels_pred, "labels_pred"), _as_labels(labels_true, "labels_true")
    if ignore is not None:
        left_out = as_mask(ignore, "ignore")
        if left_out.shape != truth.shape:
            raise ShapeError(f"ignore of shape {left_out.shape}, labels of shape {truth.shape}")
        truth = np.where(left_out, IGNORE, truth)
    table = count_contingency(found, truth)
    if not len(table):
        return {"voxels": 0, "omitted_voxels": 0, **dict.fromkeys(_OF_LABELS)}
    return {**score_contingency(table)}


def _as_labels(values: ArrayLike, name: str) -> Labels:
    """Integers as uint64; no id changes."""
    labels = np.asarray(values)
    if labels.dtype.kind not in "bui":
        raise DtypeError(f"{name}: expected integer labels, got {labels.dtype}")
    if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
        raise DataError(
            f"{name}: label {labels.min()}; labels are at least 0, and voxels without a known "
            "label are given by `ignore`"
        )
    return labels.astype(np.uint64, copy=False)


def describe_mask_conventions() -> dict[str, str]:
    """The conventions of the mask scores in words, by topic."""
    return {
        "voxels": "a ratio of nothing is null; voxels under `ignore` are not counted",
        "cldice": (
            "skeletons by thinning that keeps components and loops, Zhang & Suen in the plane, "
            "after Lee et al. in space; 0 if one mask is empty, null if both are"
        ),
        "betti": (
            "errors |b(prediction) - b(target)|, means over windows that do not overlap, those cut "
            "by the far border included; betti_e = betti_e0 + betti_e1; the background has the "
            "neighbourhood dual to the foreground's (8/4, 4/8, 26/6, 18/6, 6/26); outside the "
            "window and under `ignore` is background"
        ),
        "e0_gt": "|b0(prediction and target) - b0(target)|, over the same windows",
        "ags": "percentage of the target's skeleton inside the prediction",
    }
