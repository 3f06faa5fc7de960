"""Skeletons of labels, channel by channel: what losses take from the truth, and loaders prepare.

The skeleton of a channel is that of its binary target: of the foreground, of the edges of one
direction, of one class. Instances of a channel are not told apart, as the prediction of the channel
does not tell them apart either: where two touch, they are one shape. Ignored voxels belong to no
shape. Class 0, the background, has no skeleton.

In what is prepared, classes share one image that holds the class number at the skeletons: the
loader does not know how many classes a network has, and skeletons of classes do not meet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.arrays.labels import IGNORE, distinct
from pipeline.learning.batch import LossBatch
from pipeline.learning.settings import Form
from pipeline.learning.targets import labels_tensor, make_targets

Mask = NDArray[np.bool_]
Thinning = Callable[[Mask, Mask], Mask]
"""From a binary image and its valid voxels to a skeleton inside the image."""


def label_skeletons(labels: NDArray[np.uint64], form: Form, thinning: Thinning) -> NDArray[Any]:
    """The skeletons of one sample.

    Args:
        labels: (*space) uint64.
        form: what the channels mean.
        thinning: makes the skeleton of a channel.

    Returns:
        (C, *space) bool for affinities and foreground; (1, *space) int64 for classes: the number of
        the class at its skeleton, 0 elsewhere.

    Raises:
        ShapeError, DtypeError: as `make_targets`.
    """
    if form == "classes":
        return _class_skeletons(labels, thinning)
    channels = labels.ndim if form == "affinities" else 1
    targets, valid = make_targets(labels_tensor(labels)[None], form, channels)
    pairs = zip((targets[0] > 0).numpy(), valid[0].numpy(), strict=True)
    return np.stack([thinning(mask, exists) for mask, exists in pairs])


def skeleton_channels(batch: LossBatch, key: str, thinning: Thinning) -> Tensor:
    """(B, C, *space) bool: the skeletons that were prepared under `key`, else made now."""
    make = partial(label_skeletons, form=batch.form, thinning=thinning)
    found = batch.prepare(key, lambda: np.stack(batch.map_samples(make, batch.labels)))
    if batch.form != "classes":
        return found
    classes = torch.arange(batch.logits.shape[1], device=found.device)
    numbers = classes.view(1, -1, *(1,) * (found.ndim - 2))
    return (found == numbers) & (numbers > 0)


def _class_skeletons(labels: NDArray[np.uint64], thinning: Thinning) -> NDArray[np.int64]:
    known = labels != IGNORE
    found = np.zeros((1, *labels.shape), np.int64)
    for number in distinct(labels[known & (labels != 0)]):
        found[0][thinning(labels == number, known)] = number.astype(np.int64)
    return found
