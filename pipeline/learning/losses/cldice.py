"""Soft clDice, alone with a voxelwise loss or in compound with cross entropy on the skeletons.

    Tprec  = (sum S_P V_L + smooth) / (sum S_P + smooth)
    Tsens  = (sum S_L V_P + smooth) / (sum S_L + smooth)
    clDice = 2 Tprec Tsens / (Tprec + Tsens)

    cldice            L = (1 - share) L_of + share (1 - clDice)
    compound_cldice   L = (1 - share) L_of + share (dice_share (1 - clDice)
                                                    + (1 - dice_share) clCE)
    clCE = 1/2 sum S_P ce / (sum S_P + smooth) + 1/2 sum S_L ce / (sum S_L + smooth)

Logits are (B, C, *space). V_P are the probabilities and V_L the targets; S_P and S_L their soft
skeletons (`pipeline.learning.soft_skeleton`) after `iterations` erosions (10). share is 0.5, smooth
1, `of` Dice; cross entropy + Dice for the compound. Both are differentiated through S_P too.

Sums run over the valid voxels of one channel of one sample; channels are averaged, without class 0
of classes and those without a valid voxel; then samples. Empty against empty is 1, a perfect
loss of 0, as smooth keeps both ratios finite.

The compound is the reading of two sentences of the ContextLoss paper: clDice applies its loss to a
critical mask, the skeletons, and compound clDice differs from it only in the loss that is applied
(L_pixel: Dice and cross entropy), and from ContextLoss only in the mask. So both stand in both
places, on all voxels and on the skeletons, where clDice takes the part of Dice. With dice_share 1
it is the other reading: only the loss on all voxels is exchanged. The paper does not say how cross
entropy is weighted on two skeletons: here each has a half.

The published code takes 10 iterations whatever it is told, and sums over a whole batch. MONAI's
SoftclDiceLoss knows no ignored voxels, adds up channels, and adds a small number to the denominator
of clDice, so that a perfect prediction does not reach 1. Voxel size has no influence.

Source: Shit et al. 2021, arXiv:2003.07311; Schacht et al.: "ContextLoss: context information for
topology-preserving segmentation"; clCE after Acebes et al. 2024 (MICCAI).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.learning.batch import LossBatch, LossValue, probabilities, sample_means
from pipeline.learning.label_skeletons import Mask, label_skeletons, skeleton_channels
from pipeline.learning.loss_settings import ClDiceSettings, CompoundClDiceSettings, LossSettings
from pipeline.learning.losses.cross_entropy import element_cross_entropy
from pipeline.learning.settings import Form
from pipeline.learning.soft_skeleton import skeleton_of_mask, soft_skeleton

Inner = Callable[[LossBatch, LossSettings], LossValue]


def cldice(batch: LossBatch, settings: ClDiceSettings, *, inner: Inner) -> LossValue:
    """The first loss above; its own part is "cldice_loss", 1 - clDice."""
    base = inner(batch, settings.of)
    own = _cldice_loss(_skeletons(batch, settings.iterations), settings.smooth)
    total = (1.0 - settings.share) * base.total + settings.share * own
    return LossValue(total, base.parts | {"cldice_loss": own.detach()})


def compound_cldice(
    batch: LossBatch, settings: CompoundClDiceSettings, *, inner: Inner
) -> LossValue:
    """The second loss above; its own parts are "cldice_loss" and "skeleton_ce_loss"."""
    base = inner(batch, settings.of)
    skeletons = _skeletons(batch, settings.iterations)
    dice = _cldice_loss(skeletons, settings.smooth)
    entropy = _skeleton_cross_entropy(batch, skeletons, settings.smooth)
    own = settings.dice_share * dice + (1.0 - settings.dice_share) * entropy
    total = (1.0 - settings.share) * base.total + settings.share * own
    parts = {"cldice_loss": dice.detach(), "skeleton_ce_loss": entropy.detach()}
    return LossValue(total, base.parts | parts)


def prepare_cldice(
    labels: NDArray[np.uint64], form: Form, settings: ClDiceSettings | CompoundClDiceSettings
) -> dict[str, NDArray]:
    """The soft skeletons of one sample's labels, which are 0 or 1."""
    skeletons = label_skeletons(labels, form, _thinning(settings.iterations))
    return {_key(settings.iterations): skeletons}


class _Skeletons(NamedTuple):
    """(B, C, *space) each, without class 0 of classes; `counted` (B, C)."""

    predicted: Tensor
    true: Tensor
    probability: Tensor
    target: Tensor
    counted: Tensor


def _skeletons(batch: LossBatch, iterations: int) -> _Skeletons:
    first = int(batch.form == "classes")
    probability, target, valid, true = (
        tensor[:, first:]
        for tensor in (
            probabilities(batch),
            batch.targets,
            batch.mask,
            skeleton_channels(batch, _key(iterations), _thinning(iterations)),
        )
    )
    predicted = soft_skeleton(probability, valid, iterations, batch.map_samples)
    dtype, counted = probability.dtype, valid.flatten(2).any(2)
    return _Skeletons(predicted, true.to(dtype), probability, target.to(dtype), counted)


def _cldice_loss(of: _Skeletons, smooth: float) -> Tensor:
    precision = (_sums(of.predicted * of.target) + smooth) / (_sums(of.predicted) + smooth)
    recall = (_sums(of.true * of.probability) + smooth) / (_sums(of.true) + smooth)
    each = 1.0 - 2.0 * precision * recall / (precision + recall)
    return sample_means(torch.where(of.counted, each, 0.0), of.counted)


def _skeleton_cross_entropy(batch: LossBatch, of: _Skeletons, smooth: float) -> Tensor:
    entropy, _ = element_cross_entropy(batch)
    halves = [
        _sums(entropy * skeleton) / (_sums(skeleton) + smooth)
        for skeleton in (of.predicted, of.true)
    ]
    return sample_means(0.5 * (halves[0] + halves[1]), of.counted)


def _sums(images: Tensor) -> Tensor:
    """(B, C): the sum of each image."""
    return images.flatten(2).sum(2)


def _thinning(iterations: int) -> Callable[[Mask, Mask], Mask]:
    return partial(skeleton_of_mask, iterations=iterations)


def _key(iterations: int) -> str:
    return f"soft_skeleton_{iterations}"
