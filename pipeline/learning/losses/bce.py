"""Binary cross entropy of affinities: the voxelwise base of every other loss.

All sums are float32, or float64 for float64 logits. Logits beyond +-1e4 count as +-1e4 and keep
their gradient, so infinite ones give a finite loss that still pushes them back. What a masked edge
holds, NaN included, has no influence at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.learning.targets import LossBatch, LossValue

_LARGEST_LOGIT = 1e4


def bce(batch: LossBatch) -> LossValue:
    """Mean over the valid edges of the batch, the classes balanced within the settings' bound."""
    weights = class_weights(batch.targets, batch.mask, batch.settings.class_balance_bound)
    total = bce_loss(batch.logits, batch.targets, batch.mask, weights)
    return LossValue(total, {"voxel_loss": float(total.detach())})


def bce_loss(
    logits: Tensor, targets: Tensor, mask: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Weighted binary cross entropy per valid edge; 0 (with gradient 0) where no edge is valid.

    Args:
        logits: any shape and floating type.
        targets: same shape, 0 or 1.
        mask: same shape, bool; False leaves an edge out.
        weights: same shape, factors of the edges; none: 1. The sum is divided by the number of
            valid edges, not by the sum of the weights.
    """
    edges = edge_bce(logits, targets, mask, weights)
    return edges.sum() / mask.sum().clamp(min=1)


def edge_bce(
    logits: Tensor, targets: Tensor, mask: Tensor, weights: Tensor | None = None
) -> Tensor:
    """The weighted cross entropy of each edge, 0 where the mask is False; float32 or float64."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    bounded = _Bounded.apply(torch.where(mask, wide, 0.0))
    loss = F.binary_cross_entropy_with_logits(bounded, targets.to(wide.dtype), reduction="none")
    return torch.where(mask, loss if weights is None else loss * weights, 0.0)


def class_weights(targets: Tensor, mask: Tensor, bound: float) -> Tensor:
    """Weights that give both classes of the batch the same sum, within 1/bound and bound.

    A class that does not occur leaves the other at weight 1.
    """
    positive = (targets * mask).sum()
    count = mask.sum()
    negative = count - positive
    if positive == 0 or negative == 0 or bound == 1.0:
        return torch.ones_like(targets)
    heavy = (0.5 * count / positive).clamp(1.0 / bound, bound)
    light = (0.5 * count / negative).clamp(1.0 / bound, bound)
    return torch.where(targets > 0, heavy, light)


class _Bounded(torch.autograd.Function):
    """Clamp whose gradient is 1 everywhere: plain clamp would leave an infinite logit unmoved."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]
