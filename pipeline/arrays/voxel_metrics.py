"""Accuracy, Dice and their kin of a foreground mask, from a table that adds over chunks.

The table counts voxels; scores are made of it at the end, never averaged over chunks. Where the
denominator of a score is 0 there is nothing to judge, and the score is None: neither the best nor
the worst value, and never NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pipeline.arrays.masks import pair_masks, ratio


@dataclass(frozen=True)
class Confusion:
    """Voxels by what they are and what they are taken for. `sum(tables, Confusion())` adds.

    Attributes:
        tp, fp, fn, tn: foreground found, false foreground, foreground missed, background kept.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn
        )

    @property
    def voxels(self) -> int:
        """How many are counted."""
        return self.tp + self.fp + self.fn + self.tn


def count_confusion(
    prediction: ArrayLike, target: ArrayLike, *, ignore: ArrayLike | None = None
) -> Confusion:
    """The table of a box.

    Args:
        prediction, target: bool or integers (all but 0 is foreground), any shape, the same.
        ignore: bool, the same shape: voxels that are not counted.

    Raises:
        DtypeError: one is neither boolean nor integer.
        ShapeError: the shapes differ.
    """
    found, truth, known = pair_masks(prediction, target, ignore)
    voxels = found.size if known is None else int(np.count_nonzero(known))
    of_found, of_truth = int(np.count_nonzero(found)), int(np.count_nonzero(truth))
    tp = int(np.count_nonzero(found & truth))
    return Confusion(tp, of_found - tp, of_truth - tp, voxels - of_found - of_truth + tp)


def score_confusion(table: Confusion) -> dict[str, float | None]:
    """The scores of a table, all from 0 to 1; None where the denominator is 0.

    Returns:
        accuracy: (tp + tn) / voxels.
        dice: 2 tp / (2 tp + fp + fn); None if both masks are empty.
        jaccard: tp / (tp + fp + fn); None if both masks are empty.
        fnr: fn / (tp + fn), the share of the foreground that is missed; None without foreground.
        fpr: fp / (fp + tn), the share of the background that is taken for foreground; None
            without background.
        precision: tp / (tp + fp); None if nothing is predicted.
        recall: tp / (tp + fn); None without foreground.
    """
    tp, fp, fn, tn = table.tp, table.fp, table.fn, table.tn
    return {
        "accuracy": ratio(tp + tn, table.voxels),
        "dice": ratio(2 * tp, 2 * tp + fp + fn),
        "jaccard": ratio(tp, tp + fp + fn),
        "fnr": ratio(fn, tp + fn),
        "fpr": ratio(fp, fp + tn),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
    }
