"""Focal loss: cross entropy that turns away from what is already right.

    affinities, foreground   -a (1 - q)^gamma log q per valid element, q = p where t = 1, else 1 - p
    classes                  -a (1 - q)^gamma log q per valid voxel, q = softmax(logits)[class]

a = foreground_weight for foreground (every class but 0), 1 - foreground_weight for background;
without foreground_weight, the default, a = 1. gamma = 2, as in the paper; gamma = 0 is the cross
entropy. A sample's loss is the mean over its valid elements (the paper divides by the number of
foreground anchors, which a voxelwise target does not have).

The first line is MONAI's `sigmoid_focal_loss`. Its class `FocalLoss` is not used: it computes in
float32 even where the logits are float64. Nor is its softmax form: it takes the power of
1 - softmax, whose gradient is NaN for gamma below 1 as soon as the probability rounds to 1. Here
log(1 - q) is the difference of two log-sum-exp, exact however large the logits are.

Source: Lin et al. 2017, arXiv:1708.02002; `monai.losses.focal_loss`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.learning.batch import LossBatch, LossValue, bounded_logits, sample_means
from pipeline.learning.loss_settings import FocalSettings


def focal(batch: LossBatch, settings: FocalSettings) -> LossValue:
    """Mean over the valid elements of each sample."""
    formula = _of_classes if batch.form == "classes" else _of_elements
    counted = batch.mask[:, :1] if batch.form == "classes" else batch.mask
    each = formula(bounded_logits(batch), batch.targets, settings.gamma, settings.foreground_weight)
    total = sample_means(torch.where(counted, each, 0.0), counted)
    return LossValue(total, {"voxel_loss": total.detach()})


def _of_elements(logits: Tensor, targets: Tensor, gamma: float, weight: float | None) -> Tensor:
    """(B, C, *space), each channel by itself."""
    # Imported where it is used: MONAI takes two seconds, and few losses want it.
    from monai.losses.focal_loss import sigmoid_focal_loss

    return sigmoid_focal_loss(logits, targets.to(logits.dtype), gamma, weight)


def _of_classes(logits: Tensor, targets: Tensor, gamma: float, weight: float | None) -> Tensor:
    """(B, 1, *space) from (B, C, *space) with one-hot targets."""
    everything = torch.logsumexp(logits, 1, keepdim=True)
    right = torch.where(targets > 0, logits, 0.0).sum(1, keepdim=True) - everything
    others = logits.masked_fill(targets > 0, float("-inf"))
    wrong = torch.logsumexp(others, 1, keepdim=True) - everything
    each = -torch.exp(gamma * wrong) * right
    if weight is None:
        return each
    return each * torch.where(targets[:, :1] > 0, 1.0 - weight, weight)
