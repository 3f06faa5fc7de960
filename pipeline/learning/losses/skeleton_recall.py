"""Skeleton recall: the share of each class's tubed skeleton that is predicted, added to a loss.

    L     = L_of + weight * L_SRL
    L_SRL = -1/|K| sum_{k in K} (sum_i s_ik t_ik) / (sum_i t_ik)

Logits are (B, C, *space). s is the probability of channel k at voxel i. t is 1 on the skeleton of
channel k's binary target (`pipeline.learning.label_skeletons`), dilated by `dilation` voxels along
the axes (2 by default) and cut to the target, so that a perfect prediction has recall 1. K are the
channels that have a skeleton, without class 0 of classes. Samples are averaged; one without any
skeleton counts 0. `of` is cross entropy + Dice by default, weight 1.

The gradient with respect to the probabilities is -t / (|K| sum t): it does not depend on what is
predicted. Only the voxels of the tubes have an influence.

A class that does not occur is left out; the published code counts it as recalled in full. Each
channel is thinned by itself. Ignored voxels are in no tube. Voxel size has no influence: skeletons
and dilation count voxels.

Source: Kirchhoff et al. 2024, "Skeleton recall loss for connectivity conserving and resource
efficient segmentation of thin tubular structures", arXiv:2404.03010; the formula as in "Reassessing
utility of topology based losses for image segmentation", equation 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.arrays.skeleton_mask import tube_skeleton
from pipeline.learning.batch import LossBatch, LossValue, masked, probabilities
from pipeline.learning.label_skeletons import Mask, label_skeletons, skeleton_channels
from pipeline.learning.loss_settings import LossSettings, SkeletonRecallSettings
from pipeline.learning.settings import Form


def skeleton_recall(
    batch: LossBatch,
    settings: SkeletonRecallSettings,
    *,
    inner: Callable[[LossBatch, LossSettings], LossValue],
) -> LossValue:
    """The loss above; its own part is "skeleton_recall_loss", in -1 to 0."""
    base = inner(batch, settings.of)
    own = recall_loss(batch, settings.dilation)
    total = base.total + settings.weight * own
    return LossValue(total, base.parts | {"skeleton_recall_loss": own.detach()})


def prepare_skeleton_recall(
    labels: NDArray[np.uint64], form: Form, settings: SkeletonRecallSettings
) -> dict[str, NDArray]:
    """The tubed skeletons of one sample's labels."""
    tubes = label_skeletons(labels, form, _thinning(settings.dilation))
    return {_key(settings.dilation): tubes}


def recall_loss(batch: LossBatch, dilation: int) -> Tensor:
    """L_SRL alone."""
    tubes = skeleton_channels(batch, _key(dilation), _thinning(dilation))
    sizes = tubes.flatten(2).sum(2)
    find = _found_of_classes if batch.form == "classes" else _found
    recalls = find(batch, tubes) / sizes.clamp(min=1)
    return -(recalls.sum(1) / (sizes > 0).sum(1).clamp(min=1)).mean()


def _found(batch: LossBatch, tubes: Tensor) -> Tensor:
    """(B, C): the sum of the probabilities in the tubes of each channel."""
    found: Tensor = _Found.apply(batch.logits, tubes)
    return found


class _Found(torch.autograd.Function):
    """The derivative is written by hand: autograd passes over memory twice as often."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tubes: Tensor) -> Tensor:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        inside = masked(torch.sigmoid(wide), tubes)
        ctx.save_for_backward(inside)
        ctx.dtype = logits.dtype
        return inside.flatten(2).sum(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        each = gradients[0].view(*gradients[0].shape, *(1,) * (inside.ndim - 2))
        # p (1 - p), which is 0 outside the tubes.
        return torch.addcmul(inside, inside, inside, value=-1).mul_(each).to(ctx.dtype), None


def _found_of_classes(batch: LossBatch, tubes: Tensor) -> Tensor:
    """The same of classes, whose probabilities are computed at the voxels of the tubes alone."""
    sample, channel, *where = tubes.nonzero(as_tuple=True)
    rows = batch.logits.movedim(1, -1)[(sample, *where)]  # (n, C): each row a sample of one voxel
    every = torch.ones_like(rows, dtype=torch.bool)
    listed = probabilities(replace(batch, logits=rows, mask=every))
    found = listed.gather(1, channel[:, None])[:, 0]
    sums = found.new_zeros(tubes.shape[:2].numel())
    return sums.index_add(0, sample * tubes.shape[1] + channel, found).view(tubes.shape[:2])


def _thinning(dilation: int) -> Callable[[Mask, Mask], Mask]:
    return lambda mask, _: tube_skeleton(mask, dilation)


def _key(dilation: int) -> str:
    return f"tubed_skeleton_{dilation}"
