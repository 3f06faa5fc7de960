"""The clean-up after fine-tuning: keep what pretraining saw too.

Fine-tuning with a topology loss closes gaps, and leaves small separate pieces that the pretrained
network does not have. A component of the fine-tuned mask stays, whole, if it shares a voxel with
the pretrained mask; other components go.

Source: Schacht et al.: "ContextLoss: context information for topology-preserving segmentation",
Algorithm 2 (8 neighbours in the plane, 26 in space).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from pipeline.arrays.masks import Mask, as_image, label_components
from pipeline.errors import InputError, ShapeError

Connectivity = Literal[4, 8, 6, 18, 26]


def keep_connected(
    finetuned_mask: ArrayLike,
    pretrained_mask: ArrayLike,
    *,
    connectivity: Connectivity | None = None,
) -> Mask:
    """The components of the fine-tuned mask that share a voxel with the pretrained mask.

    Args:
        finetuned_mask, pretrained_mask: (Y, X) or (Z, Y, X), bool or integers of which all but 0
            are foreground, such as predictions above a threshold.
        connectivity: neighbours of a voxel: 4 or 8 in the plane, 6, 18 or 26 in space; none: 8
            or 26.

    Returns:
        bool, a new array of the same shape.

    Raises:
        DtypeError: a mask is neither boolean nor integer.
        ShapeError: the shapes differ, or have neither two nor three axes.
        InputError: the connectivity does not suit the number of axes.
    """
    finetuned = as_image(finetuned_mask, "finetuned_mask")
    pretrained = as_image(pretrained_mask, "pretrained_mask")
    if finetuned.shape != pretrained.shape:
        raise ShapeError(
            f"the fine-tuned mask has shape {finetuned.shape}, the pretrained one "
            f"{pretrained.shape}: give both for the same region"
        )
    known = (4, 8) if finetuned.ndim == 2 else (6, 18, 26)
    neighbours = known[-1] if connectivity is None else connectivity
    if neighbours not in known:
        raise InputError(
            f"connectivity {connectivity} of {finetuned.ndim}-D masks: expected one of {known}"
        )
    if finetuned.size == 0:
        return np.zeros(finetuned.shape, np.bool_)
    components, count = label_components(np.ascontiguousarray(finetuned), neighbours)
    kept = np.zeros(count + 1, np.bool_)
    kept[components[pretrained]] = True
    kept[0] = False
    found: Mask = kept[components]
    return found
