"""The supervoxel loss: cross entropy, with critical mistakes weighted up.

    L = (1 - alpha) L0 + alpha * (split_weight * L0(negatively critical elements)
                                  + merge_weight * L0(positively critical elements))

L0 is the class-balanced cross entropy (`losses.cross_entropy`). Critical elements are constants for
the gradient, found sample by sample at probability 1/2:

    affinities, critical: edges   those of `pipeline.learning.critical_edges` (LINEAR definition)
    affinities, critical: voxels  labels decoded, critical voxels carried to edges
                                  (`pipeline.learning.critical_decoded`), mode as in the settings
    foreground                    critical voxels of instance labels against the predicted mask
                                  (`pipeline.learning.critical`); merges of objects that touch
                                  cannot be seen

The weights are 1 - beta and beta unless the settings name them: beta weights merges, as the paper's
text has it; its published code has the two the other way round.

Normalisation of the two critical terms, which the paper leaves open:

    image       the sum over critical elements, divided by the sample's valid ones, as L0 itself is
    component   the mean over each critical component's elements, added up
    sum         the sum

Logits (B, C, *space); samples are independent. Voxel size has no influence: connectivity counts
neighbours. alpha = beta = 1/2 as in all experiments of the paper; raise both where images are
sparse.

Source: Grim, Chandrashekar, Sumbul: "Efficient connectivity-preserving instance segmentation with
supervoxel-based loss function", Definitions 1 to 4.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.arrays.labels import IGNORE
from pipeline.learning.batch import LossBatch, LossValue
from pipeline.learning.critical import Mode, number_both_signs
from pipeline.learning.critical_decoded import number_critical_decoded
from pipeline.learning.critical_edges import critical_edges, number_critical_edges
from pipeline.learning.loss_settings import SupervoxelSettings
from pipeline.learning.losses.cross_entropy import element_cross_entropy

Pair = tuple[NDArray[Any], NDArray[Any]]


def supervoxel(batch: LossBatch, settings: SupervoxelSettings) -> LossValue:
    """The loss above; parts are its three terms before they are weighted."""
    each, counted = element_cross_entropy(batch, settings.class_balance_bound)
    valid = counted.flatten(1).sum(1).clamp(min=1)
    voxel = (each.flatten(1).sum(1) / valid).mean()
    splits, merges = (
        _term(each, marks, valid, settings.normalisation)
        for marks in critical_elements(batch, settings)
    )
    split_weight, merge_weight = sign_weights(settings)
    topology = split_weight * splits + merge_weight * merges
    total = (1.0 - settings.alpha) * voxel + settings.alpha * topology
    terms = {"voxel_loss": voxel, "split_loss": splits, "merge_loss": merges}
    return LossValue(total, {name: term.detach() for name, term in terms.items()})


def sign_weights(settings: SupervoxelSettings) -> tuple[float, float]:
    """The weights of splits and of merges: those named, else 1 - beta and beta."""
    split, merge = settings.split_weight, settings.merge_weight
    return (
        1.0 - settings.beta if split is None else split,
        settings.beta if merge is None else merge,
    )


def critical_elements(
    batch: LossBatch, settings: SupervoxelSettings
) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """For each sample its split- and its merge-critical elements, (C, *space).

    int32 numbers of components (0 elsewhere), or bool where the normalisation asks for no more.
    """
    positive: NDArray[np.bool_] = (batch.logits.detach() > 0).cpu().numpy()
    found = batch.map_samples(_finder(batch, settings), batch.labels, positive)
    return [split for split, _ in found], [merge for _, merge in found]


def _finder(batch: LossBatch, settings: SupervoxelSettings) -> Any:
    """The function of a sample's labels and positive elements."""
    ways: dict[str, Any] = {"connectivity": settings.connectivity, "mode": settings.mode}
    if batch.form == "foreground":
        return partial(_critical_voxels, **ways)
    if settings.critical == "voxels":
        return partial(number_critical_decoded, **ways)
    return number_critical_edges if settings.normalisation == "component" else critical_edges


def _critical_voxels(
    labels: NDArray[np.uint64],
    positive: NDArray[np.bool_],
    *,
    connectivity: int | None,
    mode: Mode,
) -> Pair:
    ignored = labels == IGNORE
    target = np.where(ignored, np.uint64(0), labels)
    split, merge = number_both_signs(
        target, positive[0], connectivity=connectivity, mode=mode, ignore=ignored
    )
    return split[None], merge[None]


def _term(each: Tensor, marks: list[NDArray[Any]], valid: Tensor, normalisation: str) -> Tensor:
    """The mean over the samples of one critical term."""
    sums = []
    for values, mark in zip(each, marks, strict=True):
        weights = _shares(mark) if normalisation == "component" else mark != 0
        chosen = torch.from_numpy(weights).to(values.device)
        sums.append((values * chosen.to(values.dtype)).sum())
    total = torch.stack(sums)
    return (total / valid).mean() if normalisation == "image" else total.mean()


def _shares(numbers: NDArray[np.int32]) -> NDArray[np.float32]:
    """One over the size of each element's component; 0 outside."""
    sizes = np.bincount(numbers.ravel())
    inverse = (1.0 / np.maximum(sizes, 1)).astype(np.float32)
    inverse[0] = 0.0
    return inverse[numbers]
