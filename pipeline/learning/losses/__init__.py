"""The losses that training can minimise, by name.

A loss is a function of one `LossBatch` and its settings. Where `prepare` is given, the loader calls
it ahead of the step, for what depends on the labels alone. Adding a loss is one file and one line
here, and its settings in `pipeline.learning.loss_settings`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.learning.batch import LossBatch, LossValue
from pipeline.learning.loss_settings import LossSettings
from pipeline.learning.losses.cldice import cldice, compound_cldice, prepare_cldice
from pipeline.learning.losses.context import context, prepare_context
from pipeline.learning.losses.cross_entropy import cross_entropy
from pipeline.learning.losses.focal import focal
from pipeline.learning.losses.malis import malis
from pipeline.learning.losses.overlap import ce_dice, dice, tversky
from pipeline.learning.losses.scnp import scnp
from pipeline.learning.losses.skeleton_recall import prepare_skeleton_recall, skeleton_recall
from pipeline.learning.losses.supervoxel import supervoxel
from pipeline.learning.settings import Form

Prepared = dict[str, NDArray[Any]]


class Loss(NamedTuple):
    """One row: how the loss is computed, and what the loader prepares for it.

    `function(batch, settings)` gives a `LossValue`; `prepare(labels, form, settings)` gives arrays
    by key for the labels (*space) uint64 of one sample.
    """

    function: Callable[[LossBatch, Any], LossValue]
    prepare: Callable[[NDArray[np.uint64], Form, Any], Prepared] | None = None


def compute_loss(batch: LossBatch, settings: LossSettings) -> LossValue:
    """The loss that the settings name."""
    return LOSSES[settings.name].function(batch, settings)


# A loss that contains another one gets `compute_loss` as `partial(function, inner=compute_loss)`.
LOSSES: dict[str, Loss] = {
    "ce": Loss(cross_entropy),
    "dice": Loss(dice),
    "ce_dice": Loss(ce_dice),
    "tversky": Loss(tversky),
    "focal": Loss(focal),
    "supervoxel": Loss(supervoxel),
    "scnp": Loss(partial(scnp, inner=compute_loss)),
    "context": Loss(partial(context, inner=compute_loss), prepare_context),
    "skeleton_recall": Loss(partial(skeleton_recall, inner=compute_loss), prepare_skeleton_recall),
    "cldice": Loss(partial(cldice, inner=compute_loss), prepare_cldice),
    "compound_cldice": Loss(partial(compound_cldice, inner=compute_loss), prepare_cldice),
    "malis": Loss(partial(malis, inner=compute_loss)),
}


def prepare_sample(labels: NDArray[np.uint64], form: Form, settings: LossSettings) -> Prepared:
    """What the loss, and every loss that it contains, asks to have prepared for one sample."""
    found: Prepared = {}
    for part in settings.parts():
        found |= prepare_sample(labels, form, part)
    prepare = LOSSES[settings.name].prepare
    return found if prepare is None else found | prepare(labels, form, settings)
