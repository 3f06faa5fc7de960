"""Constrained MALIS: squared errors of affinities, weighted by the pairs of voxels they decide.

    L_malis = 1/2 sum_e w+_e (1 - p_e)^2 + 1/2 sum_e w-_e p_e^2
    L       = (1 - share) L_of + share L_malis

w+ and w- are the shares of all positive and of all negative pairs whose maximin edge e is, in the
constrained graphs of `pipeline.learning.maximin`: they are 0 on all but the edges of two spanning
forests, and each set of weights adds up to 1 where there is such a pair. Weights are constants for
the gradient. (B, C, *space) affinities only.

The paper leaves open how both halves are weighted (here: equally) and what becomes of background,
which is in no pair: an edge in background gets a gradient only where it joins two objects. So a
voxelwise loss is mixed in, `of` with 1 - share; share: 1 gives the published loss alone. Voxel
size has no influence: pairs of voxels are counted.

Source: Funke et al. 2018, "Large scale image segmentation with structured loss based deep learning
for connectome reconstruction", section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.learning.batch import LossBatch, LossValue
from pipeline.learning.loss_settings import LossSettings, MalisSettings
from pipeline.learning.maximin import share_maximin_pairs


def malis(
    batch: LossBatch,
    settings: MalisSettings,
    *,
    inner: Callable[[LossBatch, LossSettings], LossValue],
) -> LossValue:
    """The loss above; its own part is "malis_loss"."""
    own = _malis(batch)
    parts = {"malis_loss": own.detach()}
    if settings.share == 1.0:
        return LossValue(own, parts)
    base = inner(batch, settings.of)
    total = (1.0 - settings.share) * base.total + settings.share * own
    return LossValue(total, base.parts | parts)


def _malis(batch: LossBatch) -> Tensor:
    """Only edges with a weight are looked at; the others have no gradient."""
    logits = batch.logits
    arrays = (
        batch.labels,
        logits.detach().float().cpu().numpy(),
        batch.targets.cpu().numpy() > 0,
        batch.mask.cpu().numpy(),
    )
    total = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
    for sample, signs in enumerate(batch.map_samples(share_maximin_pairs, *arrays)):
        edges, shares = (
            torch.from_numpy(np.concatenate(part)) for part in zip(*signs, strict=True)
        )
        found = logits[sample].reshape(-1)[edges.to(logits.device)].to(total.dtype)
        positive = torch.arange(len(edges), device=logits.device) < len(signs[0].edges)
        wrong = torch.sigmoid(torch.where(positive, -found, found))
        total = total + (shares.to(wrong) * wrong**2).sum()
    return 0.5 * total / len(logits)
