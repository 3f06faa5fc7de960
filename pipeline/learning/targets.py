"""What the network is trained towards, and the form in which losses receive a batch.

Channel d of an affinity joins a voxel to its predecessor along axis d: its target is 1 where both
carry the same label that is neither background (0) nor `IGNORE`. Two background voxels have
target 0. An edge is left out (mask False) where its voxel lies in the patch's first plane along d,
the partner being outside, or where either end is `IGNORE`.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import DtypeError, ShapeError
from pipeline.learning.settings import LossSettings

_IGNORE_AS_INT64 = -1  # torch has no comparisons of uint64


def affinity_targets(labels: NDArray[np.uint64] | Tensor) -> tuple[Tensor, Tensor]:
    """Affinity targets and the mask of the edges that count.

    Args:
        labels: (B, Z, Y, X) uint64 array or int64 tensor that holds the same bits (`IGNORE` is
            -1 there); 0 is background.

    Returns:
        (B, 3, Z, Y, X) float32 targets, 0 or 1, and a bool mask of the same shape; on the device
        of `labels`. Targets are 0 where the mask is False.

    Raises:
        ShapeError, DtypeError: not four axes; neither uint64 nor int64.
    """
    ids = labels if isinstance(labels, Tensor) else _as_tensor(labels)
    if ids.ndim != 4:
        raise ShapeError(f"expected labels (B, Z, Y, X), got {tuple(ids.shape)}")
    if ids.dtype != torch.int64:
        raise DtypeError(f"expected int64 labels (uint64 bits), got {ids.dtype}")
    shape = (ids.shape[0], 3, *ids.shape[1:])
    targets = torch.zeros(shape, dtype=torch.float32, device=ids.device)
    mask = torch.zeros(shape, dtype=torch.bool, device=ids.device)
    known, inside = ids != _IGNORE_AS_INT64, (ids != 0) & (ids != _IGNORE_AS_INT64)
    for axis in (1, 2, 3):
        extent = ids.shape[axis] - 1
        here = (slice(None),) * axis + (slice(1, None),)
        joined = (ids[here] == ids.narrow(axis, 0, extent)) & inside[here]
        targets[:, axis - 1][here] = joined.float()
        mask[:, axis - 1][here] = known[here] & known.narrow(axis, 0, extent)
    return targets, mask


def _as_tensor(labels: NDArray[np.uint64]) -> Tensor:
    if labels.dtype != np.uint64:
        raise DtypeError(f"expected uint64 labels, got {labels.dtype}")
    return torch.from_numpy(np.ascontiguousarray(labels).view(np.int64))


@dataclass(frozen=True)
class LossBatch:
    """One batch as every loss gets it; samples are independent of each other.

    `logits` (B, 3, Z, Y, X) in any floating type; `labels` (B, Z, Y, X) uint64; `targets` and
    `mask` as `affinity_targets` gives them, on the device of the logits. `pool`, where given,
    computes what is done sample by sample on the CPU.
    """

    logits: Tensor
    labels: NDArray[np.uint64]
    targets: Tensor
    mask: Tensor
    settings: LossSettings = field(default_factory=LossSettings)
    pool: Executor | None = None

    @classmethod
    def of(
        cls,
        logits: Tensor,
        labels: NDArray[np.uint64],
        settings: LossSettings,
        pool: Executor | None = None,
    ) -> LossBatch:
        """The batch with its targets computed from the labels.

        Raises:
            ShapeError: logits and labels disagree.
        """
        expected = (labels.shape[0], 3, *labels.shape[1:])
        if tuple(logits.shape) != expected:
            raise ShapeError(
                f"labels {labels.shape} want logits {expected}, got {tuple(logits.shape)}"
            )
        targets, mask = affinity_targets(_as_tensor(labels).to(logits.device))
        return cls(logits, labels, targets, mask, settings, pool)


@dataclass(frozen=True)
class LossValue:
    """What a loss gives: the scalar to minimise, and named parts of it for the log (detached)."""

    total: Tensor
    parts: dict[str, float]
