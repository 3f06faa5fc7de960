"""The losses that training can minimise, by name.

A loss is a function of one `LossBatch`; adding one is one file and one line here, and its name in
`pipeline.learning.settings.LossName`.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.learning.losses.bce import bce
from pipeline.learning.losses.supervoxel import supervoxel
from pipeline.learning.targets import LossBatch, LossValue

LOSSES: dict[str, Callable[[LossBatch], LossValue]] = {
    "bce": bce,
    "supervoxel": supervoxel,
}
