"""Cross entropy: the voxelwise base of every other loss.

    affinities, foreground   -t log p - (1 - t) log(1 - p), p = sigmoid(logit), per valid element
    classes                  -log softmax(logits)[class], per valid voxel

computed from logits, never from log(p + eps). In the first form the classes are balanced within a
bound, sample by sample; the sum is divided by the number of valid elements, not of weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.learning.batch import LossBatch, LossValue, bounded_logits, sample_means
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
    logits = bounded_logits(batch)
    if batch.form == "classes":
        picked = torch.log_softmax(logits, 1) * batch.targets.to(logits.dtype)
        counted = batch.mask[:, :1]
        return torch.where(counted, -picked.sum(1, keepdim=True), 0.0), counted
    loss = F.binary_cross_entropy_with_logits(
        logits, batch.targets.to(logits.dtype), reduction="none"
    )
    return loss * class_weights(batch.targets, batch.mask, balance_bound), batch.mask


def class_weights(targets: Tensor, mask: Tensor, bound: float) -> Tensor:
    """Weights that give both classes of each sample the same sum, within 1/bound and bound.

    A class that does not occur in a sample leaves the other at weight 1. Outside the mask 0.

    Args:
        targets: (B, ...) floating, 0 or 1.
        mask: (B, ...) bool.
        bound: at least 1; 1 gives every element of the mask weight 1.
    """
    inside = mask.to(targets.dtype)
    if bound == 1.0:
        return inside
    count = inside.flatten(1).sum(1)
    positive = (targets * inside).flatten(1).sum(1)
    negative = count - positive
    both = (positive > 0) & (negative > 0)
    each = (-1, *(1,) * (targets.ndim - 1))
    heavy, light = (
        torch.where(both, (0.5 * count / n.clamp(min=1)).clamp(1.0 / bound, bound), 1.0).view(each)
        for n in (positive, negative)
    )
    return torch.lerp(light, heavy, targets).mul_(inside)
