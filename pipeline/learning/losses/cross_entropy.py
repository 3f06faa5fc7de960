"""Cross entropy: the voxelwise base of every other loss.

    affinities, foreground   -t log p - (1 - t) log(1 - p), p = sigmoid(logit), per valid element
    classes                  -log softmax(logits)[class], per valid voxel

computed from logits, never from log(p + eps). In the first form the classes are balanced within a
bound, sample by sample; the sum is divided by the number of valid elements, not of weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pipeline.learning.batch import (
    LARGEST_LOGIT,
    LossBatch,
    LossValue,
    bounded_logits,
    masked,
    sample_means,
)
from pipeline.learning.loss_settings import CrossEntropySettings


def cross_entropy(batch: LossBatch, settings: CrossEntropySettings) -> LossValue:
    """Mean over the valid elements of each sample."""
    each, counted = element_cross_entropy(batch, settings.class_balance_bound)
    total = sample_means(each, counted)
    return LossValue(total, {"voxel_loss": total.detach()})


def element_cross_entropy(batch: LossBatch, balance_bound: float = 1.0) -> tuple[Tensor, Tensor]:
    """The cross entropy of each element and the bool mask of those that count.

    Both are (B, C, *space), or (B, 1, *space) for classes; 0 where nothing counts. The classes of
    each sample are weighted as `class_weights` says; several classes are not.
    """
    if batch.form == "classes":
        logits = bounded_logits(batch)
        picked = torch.log_softmax(logits, 1) * batch.targets.to(logits.dtype)
        counted = batch.mask[:, :1]
        return torch.where(counted, -picked.sum(1, keepdim=True), 0.0), counted
    each: Tensor = _Elements.apply(batch.logits, batch.targets, batch.mask, balance_bound)
    return each, batch.mask


class _Elements(torch.autograd.Function):
    """Weighted cross entropy of each element; its derivative is made along with it.

    By autograd the same takes half as long again: its time goes to passes over memory.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, mask: Tensor, bound: float) -> Tensor:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        targets = targets.to(wide.dtype)
        bounded = masked(wide, mask).clamp_(-LARGEST_LOGIT, LARGEST_LOGIT)
        weights = class_weights(targets, mask, bound)
        each = F.binary_cross_entropy_with_logits(bounded, targets, reduction="none").mul_(weights)
        ctx.save_for_backward(bounded.sigmoid_().sub_(targets).mul_(weights))
        ctx.dtype = logits.dtype
        return each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return (gradients[0] * slope).to(ctx.dtype), None, None, None


def class_weights(targets: Tensor, mask: Tensor, bound: float) -> Tensor:
    """Weights that give both classes of each sample the same sum, within 1/bound and bound.

    A class that does not occur in a sample leaves the other at weight 1. Outside the mask 0.

    Args:
        targets: (B, ...) floating, 0 or 1.
        mask: (B, ...) bool.
        bound: at least 1; 1 gives every element of the mask weight 1.
    """
    inside = mask.view(torch.uint8)  # three times as fast as bool, to multiply with
    if bound == 1.0:
        return inside.to(targets.dtype)
    count = mask.flatten(1).sum(1).to(targets.dtype)
    positive = (targets * inside).flatten(1).sum(1)
    negative = count - positive
    both = (positive > 0) & (negative > 0)
    each = (-1, *(1,) * (targets.ndim - 1))
    heavy, light = (
        torch.where(both, (0.5 * count / n.clamp(min=1)).clamp(1.0 / bound, bound), 1.0).view(each)
        for n in (positive, negative)
    )
    return targets.mul(heavy - light).add_(light).mul_(inside)
