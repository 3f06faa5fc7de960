"""ContextLoss: cross entropy and Dice, and the same once more inside the context of errors.

    L_pixel = (1 - dice_share) CE + dice_share Dice
    L       = (1 - gamma) L_pixel + gamma L_pixel on M

M is the critical mask, the union of two halves, constant for the gradient:

    missed connections   the skeleton of the label is split by the prediction into what is missed
                         and what is there. Of the label, M holds the voxels strictly nearer to the
                         missed part.
    false connections    the same with the roles exchanged: the skeleton of the prediction is split
                         by the label, and M holds voxels of the prediction.

Nothing missed: that half is empty. Nothing there: all of the label. Logits are (B, C, *space);
gamma is 0.1, below 0.5; dice_share 0.5. Fine-tune for 5 % of the pretraining, then see
`pipeline.arrays.context_postprocessing`.

Each channel has its own M, from its binary target and its probability above 1/2. For classes M is
the union over the classes but 0 (predicted is the most probable class), and holds for all channels.
Instances are not told apart (`pipeline.learning.label_skeletons`).

Where the paper is silent: "L_pixel on M" is L_pixel with all that is outside M left out as ignored
elements are, so cross entropy is averaged over M and Dice adds up over M, and a sample with an
empty M counts 0. At equal distance a voxel is not in M. Distances are Euclidean between voxel
centres, in the unit of the voxel size; thinning (`pipeline.arrays.thinning`) counts voxels, and is
topological where the paper takes its soft skeleton. Ignored voxels are in no skeleton and not in M;
distances pass over them.

Source: Schacht et al.: "ContextLoss: context information for topology-preserving segmentation",
section 2.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.arrays.nearer import nearer_to_first
from pipeline.arrays.thinning import thin
from pipeline.learning.batch import LossBatch, LossValue
from pipeline.learning.label_skeletons import Mask, label_skeletons, skeleton_channels
from pipeline.learning.loss_settings import CeDiceSettings, ContextSettings, LossSettings
from pipeline.learning.settings import Form

_KEY = "skeleton"


def context(
    batch: LossBatch,
    settings: ContextSettings,
    *,
    inner: Callable[[LossBatch, LossSettings], LossValue],
) -> LossValue:
    """The loss above; its own part is "context_loss", L_pixel on M."""
    pixel = CeDiceSettings(dice_share=settings.dice_share)
    base = inner(batch, pixel)
    mask = context_mask(batch)
    critical = replace(batch, mask=mask, targets=torch.where(mask, batch.targets, 0.0))
    own = inner(critical, pixel).total
    total = (1.0 - settings.gamma) * base.total + settings.gamma * own
    return LossValue(total, base.parts | {"context_loss": own.detach()})


def prepare_context(
    labels: NDArray[np.uint64], form: Form, settings: ContextSettings
) -> dict[str, NDArray]:
    """The skeletons of one sample's labels."""
    return {_KEY: label_skeletons(labels, form, _skeleton)}


def context_mask(batch: LossBatch) -> Tensor:
    """M: (B, C, *space) bool, inside the mask of the batch."""
    skeletons = skeleton_channels(batch, _KEY, _skeleton)
    images = (skeletons, batch.targets > 0, _predicted(batch))
    first = int(batch.form == "classes")
    rows = (image[:, first:].flatten(0, 1).cpu().numpy() for image in images)
    halves = batch.map_samples(partial(_context, voxel_size=batch.voxel_size), *rows)
    shape = (len(batch.logits), -1, *batch.logits.shape[2:])
    found = torch.from_numpy(np.stack(halves)).to(batch.logits.device).view(shape)
    return found.any(1, keepdim=True).expand_as(batch.mask) if first else found


def _predicted(batch: LossBatch) -> Tensor:
    logits = batch.logits.detach()
    if batch.form != "classes":
        return (logits > 0) & batch.mask
    classes = torch.arange(logits.shape[1], device=logits.device)
    numbers = classes.view(1, -1, *(1,) * (logits.ndim - 2))
    return (logits.argmax(1, keepdim=True) == numbers) & batch.mask


def _context(skeleton: Mask, label: Mask, predicted: Mask, voxel_size: tuple[float, ...]) -> Mask:
    missed = nearer_to_first(skeleton & ~predicted, skeleton & predicted, label, voxel_size)
    if not (predicted & ~label).any():
        return missed
    other = thin(predicted)
    false = nearer_to_first(other & ~label, other & label, predicted, voxel_size)
    return missed | false


def _skeleton(mask: Mask, valid: Mask) -> Mask:
    return thin(mask)
