"""What the network is trained towards.

Three forms of targets are made from labels, in 2-D (Y, X) and in 3-D (Z, Y, X):

    affinities  channel d joins a voxel to its predecessor along axis d: 1 where both carry the same
                label that is neither background (0) nor `IGNORE`. Two background voxels have target
                0. An edge is left out (mask False) where its voxel lies in the patch's first plane
                along d, the partner being outside, or where either end is `IGNORE`.
    foreground  one channel, 1 where the label is not background.
    classes     labels are class numbers 0 .. C - 1; channel c is 1 where the label is c.

Voxels of label `IGNORE` are left out of the last two.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import DataError, DtypeError, ShapeError
from pipeline.learning.settings import Form

_IGNORE_AS_INT64 = -1  # torch has no comparisons of uint64


def make_targets(
    labels: NDArray[np.uint64] | Tensor, form: Form, channels: int
) -> tuple[Tensor, Tensor]:
    """Targets of a form, and the mask of the elements that count.

    Args:
        labels: (B, *space) uint64 array, or int64 tensor that holds the same bits (`IGNORE` is -1
            there); space has two or three axes.
        form: see the module.
        channels: of the logits; must suit the form.

    Returns:
        (B, C, *space) float32 targets, 0 or 1, and a bool mask of the same shape, on the device of
        `labels`. Targets are 0 where the mask is False.

    Raises:
        ShapeError, DtypeError: labels are not (B, *space), or neither uint64 nor int64; the number
            of channels does not suit the form.
        DataError: a label is no class number.
    """
    ids = labels if isinstance(labels, Tensor) else labels_tensor(labels)
    if ids.ndim not in (3, 4):
        raise ShapeError(f"expected labels (B, Y, X) or (B, Z, Y, X), got {tuple(ids.shape)}")
    if ids.dtype != torch.int64:
        raise DtypeError(f"expected int64 labels (uint64 bits), got {ids.dtype}")
    wanted = {"affinities": ids.ndim - 1, "foreground": 1, "classes": max(channels, 2)}[form]
    if channels != wanted:
        least = "at least " if form == "classes" else ""
        raise ShapeError(
            f"{form} of {ids.ndim - 1}-D labels have {least}{wanted} channels, got {channels}"
        )
    if form == "affinities":
        return _affinities(ids)
    known = ids != _IGNORE_AS_INT64
    if form == "foreground":
        return ((ids != 0) & known)[:, None].float(), known[:, None]
    return _one_hot(ids, known, channels)


def affinity_targets(labels: NDArray[np.uint64] | Tensor) -> tuple[Tensor, Tensor]:
    """`make_targets` of affinities."""
    return make_targets(labels, "affinities", labels.ndim - 1)


def labels_tensor(labels: NDArray[np.uint64]) -> Tensor:
    """The same bits as int64.

    Raises:
        DtypeError: the labels are not uint64.
    """
    if labels.dtype != np.uint64:
        raise DtypeError(f"expected uint64 labels, got {labels.dtype}")
    return torch.from_numpy(np.require(labels, requirements=["C", "W"]).view(np.int64))


def _affinities(ids: Tensor) -> tuple[Tensor, Tensor]:
    shape = (ids.shape[0], ids.ndim - 1, *ids.shape[1:])
    targets = torch.zeros(shape, dtype=torch.float32, device=ids.device)
    mask = torch.zeros(shape, dtype=torch.bool, device=ids.device)
    known, inside = ids != _IGNORE_AS_INT64, (ids != 0) & (ids != _IGNORE_AS_INT64)
    for axis in range(1, ids.ndim):
        extent = ids.shape[axis] - 1
        here = (slice(None),) * axis + (slice(1, None),)
        joined = (ids[here] == ids.narrow(axis, 0, extent)) & inside[here]
        targets[:, axis - 1][here] = joined.float()
        mask[:, axis - 1][here] = known[here] & known.narrow(axis, 0, extent)
    return targets, mask


def _one_hot(ids: Tensor, known: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    wrong = ids[known & ((ids < 0) | (ids >= channels))]
    if wrong.numel():
        found = int(wrong[0]) % 2**64  # the bits are those of a uint64
        raise DataError(f"labels must be class numbers 0 .. {channels - 1}, got {found}")
    classes = torch.arange(channels, device=ids.device).view(1, -1, *(1,) * (ids.ndim - 1))
    targets = (ids[:, None] == classes).float()
    return targets, known[:, None].expand_as(targets)
