"""Dice and Tversky loss: one minus the overlap of the prediction with the target.

    Dice       1 - (2 sum(p t) + e) / (sum(p) + sum(t) + e)
    Tversky    1 - (sum(p t) + e) / (sum(p t) + alpha sum(p (1 - t)) + beta sum((1 - p) t) + e)
    ce_dice    (1 - dice_share) * cross entropy + dice_share * Dice

p are the probabilities, e = 1e-5, sums run over the valid elements of one channel of one sample.
Defaults: alpha = 0.3, beta = 0.7, the best of the Tversky paper; dice_share = 0.5, half the sum of
both that the papers call CE + Dice, its cross entropy not balanced.

A sample's loss is the mean over its channels that hold a valid element. Of several classes, class
0 (background) is left out, as nnU-Net does: it would be right almost everywhere, and hide what the
thin classes lack. A channel without foreground counts: its loss is near 1 if anything is predicted
there, and 0 if nothing is, but its gradient is next to nothing unless the prediction is almost
empty. Nor do saturated probabilities have a gradient: add cross entropy for both.

The formulas are MONAI's, which gets masked probabilities: what is ignored is 0 in p and in t, and
so adds to no sum. Its own masking does not fit: `MaskedDiceLoss` takes one mask for all channels
and multiplies by it, so that a NaN spreads; its `ignore_index` is one class of the target.

Source: Milletari et al. 2016, arXiv:1606.04797 (here without squares in the denominator); Salehi
et al. 2017, arXiv:1706.05721; `monai.losses`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.learning.batch import LossBatch, LossValue, probabilities, sample_means
from pipeline.learning.loss_settings import CeDiceSettings, DiceSettings, TverskySettings
from pipeline.learning.losses.cross_entropy import element_cross_entropy


def dice(batch: LossBatch, settings: DiceSettings) -> LossValue:
    """Mean over samples and channels of the Dice loss."""
    total = dice_loss(batch)
    return LossValue(total, {"dice_loss": total.detach()})


def ce_dice(batch: LossBatch, settings: CeDiceSettings) -> LossValue:
    """Cross entropy and Dice loss, weighted; parts are both before that."""
    voxel, overlap = sample_means(*element_cross_entropy(batch)), dice_loss(batch)
    total = (1.0 - settings.dice_share) * voxel + settings.dice_share * overlap
    return LossValue(total, {"voxel_loss": voxel.detach(), "dice_loss": overlap.detach()})


def tversky(batch: LossBatch, settings: TverskySettings) -> LossValue:
    """Mean over samples and channels of the Tversky loss."""
    # Imported where it is used, here and below: MONAI takes two seconds, and few losses want it.
    from monai.losses.tversky import TverskyLoss

    formula = TverskyLoss(
        alpha=settings.false_positives, beta=settings.false_negatives, reduction="none"
    )
    total = _mean_over_channels(batch, formula)
    return LossValue(total, {"tversky_loss": total.detach()})


def dice_loss(batch: LossBatch) -> Tensor:
    """The Dice loss of a batch, a scalar with gradient; for losses that contain it."""
    from monai.losses.dice import DiceLoss

    return _mean_over_channels(batch, DiceLoss(reduction="none"))


def _mean_over_channels(batch: LossBatch, formula: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Mean over the samples of the mean over the channels that hold a valid element.

    `formula` takes probabilities and targets (B, C, *space) and gives one value per channel, 0
    where both are 0 throughout.
    """
    first = 1 if batch.form == "classes" else 0
    mask = batch.mask[:, first:]
    targets = torch.where(mask, batch.targets[:, first:], 0.0)
    each = formula(probabilities(batch)[:, first:], targets)
    return sample_means(each.flatten(1), mask.flatten(2).any(2))
