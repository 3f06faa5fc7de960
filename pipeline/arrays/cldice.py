"""clDice: how much of each mask's centre line lies in the other mask.

    precision   = |S(prediction) and target| / |S(prediction)|
    sensitivity = |S(target) and prediction| / |S(target)|
    clDice      = 2 precision sensitivity / (precision + sensitivity)

S is the skeleton of `pipeline.arrays.thinning`: Zhang & Suen in the plane, after Lee et al. in
space. The soft skeleton of the loss of the same name is another. The four counts add over images.
Over chunks they do not, as a skeleton ends where its image does.

Nothing is NaN: with one mask empty clDice is 0, with both empty there is nothing to judge and it
is None, as Dice is.

Source: Shit et al. 2021, arXiv:2003.07311.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pipeline.arrays.masks import as_image, pair_masks, ratio
from pipeline.arrays.thinning import thin


@dataclass(frozen=True)
class SkeletonOverlap:
    """Voxels of skeletons and how many lie in the other mask; `sum(them, SkeletonOverlap())` adds.

    Attributes:
        prediction: voxels of the prediction's skeleton.
        prediction_inside: those of them in the target.
        target: voxels of the target's skeleton.
        target_inside: those of them in the prediction.
    """

    prediction: int = 0
    prediction_inside: int = 0
    target: int = 0
    target_inside: int = 0

    def __add__(self, other: SkeletonOverlap) -> SkeletonOverlap:
        return SkeletonOverlap(
            self.prediction + other.prediction,
            self.prediction_inside + other.prediction_inside,
            self.target + other.target,
            self.target_inside + other.target_inside,
        )

    @property
    def precision(self) -> float | None:
        """Topology precision; None if nothing is predicted."""
        return ratio(self.prediction_inside, self.prediction)

    @property
    def sensitivity(self) -> float | None:
        """Topology sensitivity; None if the target is empty."""
        return ratio(self.target_inside, self.target)

    @property
    def cldice(self) -> float | None:
        """The harmonic mean of both; 0 if one mask is empty, None if both are."""
        precision, sensitivity = self.precision, self.sensitivity
        if precision is None and sensitivity is None:
            return None
        if not precision or not sensitivity:
            return 0.0
        return 2 * precision * sensitivity / (precision + sensitivity)

    @property
    def ags(self) -> float | None:
        """Percentage of the target's skeleton inside the prediction; None if the target is empty.

        False foreground does not count against it. The definition is this project's: the paper
        that names AGS tells only that it is a percentage of the ground truth, the higher the
        better, which reacts to missed connections.
        """
        return None if self.sensitivity is None else 100 * self.sensitivity


def overlap_skeletons(
    prediction: ArrayLike, target: ArrayLike, *, ignore: ArrayLike | None = None
) -> SkeletonOverlap:
    """The counts of one image.

    Args:
        prediction, target: (Y, X) or (Z, Y, X), bool or integers (all but 0 is foreground).
        ignore: bool, the same shape: voxels that are background in both masks before they are
            thinned, so that the scores do not depend on what is there.

    Raises:
        DtypeError: one is neither boolean nor integer.
        ShapeError: the shapes differ, or have neither two nor three axes.
    """
    found, truth, _ = pair_masks(prediction, target, ignore)
    as_image(truth, "target")
    of_found, of_truth = thin(found), thin(truth)
    return SkeletonOverlap(
        prediction=int(np.count_nonzero(of_found)),
        prediction_inside=int(np.count_nonzero(of_found & truth)),
        target=int(np.count_nonzero(of_truth)),
        target_inside=int(np.count_nonzero(of_truth & found)),
    )
