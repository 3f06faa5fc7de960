"""Soft skeletons: a differentiable thinning of images of probabilities.

    E_0 = values, E_{j+1} = erosion of E_j     minimum over a voxel and those next to it on an axis
    d_j = max(E_j - dilation of E_{j+1}, 0)    maximum over the 3^D voxels around each
    skeleton = 1 - product over j = 0 .. iterations of (1 - d_j)

which is the published recurrence, S <- S + max(d_j - S d_j, 0), written as a product. What is not
valid does not exist: it is no neighbour of anything, as if it lay outside the image.

The gradient is written by hand. The d_j of a voxel add up to at most 1, so the skeleton and the
levels E_j are all that has to be kept, where autograd keeps many images per level. It stops at the
level where no value above 1e-6 is left. Of several voxels that share a minimum or maximum, one gets
the gradient, see `pipeline.learning.soft_skeleton_kernels`. Two ways that agree: compiled loops on
the CPU, volume by volume; tensors elsewhere, deterministic on GPUs where max pooling is not.

Voxels count, not lengths: anisotropic volumes are thinned by voxels.

Source: Shit et al. 2021, "clDice - a novel topology-preserving loss function for tubular structure
segmentation", arXiv:2003.07311, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.learning import soft_skeleton_kernels as kernels
from pipeline.learning.soft_skeleton_kernels import ABSENT

Map = Callable[..., Any]
Levels = list[NDArray[Any]]
Step = tuple[int, ...]


def soft_skeleton(values: Tensor, valid: Tensor, iterations: int, apply: Map = map) -> Tensor:
    """The soft skeleton of each image, differentiable once.

    Args:
        values: (B, C, *space) float32 or float64 in 0 to 1, space of two or three axes.
        valid: the same shape, bool; other voxels do not exist, their skeleton and gradient are 0.
        iterations: soft erosions after the first; about the largest radius in voxels.
        apply: as `map`, calls a function for each image; on threads, for instance.
    """
    found: Tensor = _SoftSkeleton.apply(values, valid, iterations, apply)
    return found


def skeleton_of_mask(
    mask: NDArray[np.bool_], valid: NDArray[np.bool_], iterations: int
) -> NDArray[np.bool_]:
    """The same of a mask: bool, inside the mask.

    Args:
        mask, valid: (Y, X) or (Z, Y, X) bool.
        iterations: as above.
    """
    values = np.where(valid, mask, False).astype(np.float32)
    _, left = _thin_volume(_volume(values), _volume(valid), iterations, keep=False)
    found: NDArray[np.bool_] = (left == 0).reshape(mask.shape)
    return found


class _SoftSkeleton(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, valid: Tensor, iterations: int, apply: Map) -> Tensor:
        keep = ctx.needs_input_grad[0]
        ctx.each = apply
        if values.device.type == "cpu":
            left, ctx.levels = _thin_on_cpu(values, valid, iterations, apply, keep)
        else:
            left, ctx.levels = thin_tensor(values, valid, iterations, keep)
        ctx.save_for_backward(left)
        return 1 - left

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (left,) = ctx.saved_tensors
        if left.device.type == "cpu":
            return _gradient_on_cpu(ctx.levels, left, gradients[0], ctx.each), None, None, None
        return tensor_gradient(ctx.levels, left, gradients[0]), None, None, None


def _volume(array: NDArray[Any]) -> NDArray[Any]:
    """(Z, Y, X), Z = 1 for the plane, in C order."""
    return np.ascontiguousarray(array.reshape((1,) * (3 - array.ndim) + array.shape))


def _thin_on_cpu(
    values: Tensor, valid: Tensor, iterations: int, apply: Map, keep: bool
) -> tuple[Tensor, list[Levels]]:
    def one(image: NDArray[Any], exists: NDArray[np.bool_]) -> tuple[Levels, NDArray[Any]]:
        return _thin_volume(_volume(image), _volume(exists), iterations, keep)

    images, masks = (t.detach().flatten(0, 1).numpy() for t in (values, valid))
    found = list(apply(one, images, masks))
    left = np.stack([left for _, left in found]) if found else images
    return torch.from_numpy(left.reshape(values.shape)), [levels for levels, _ in found]


def _thin_volume(
    values: NDArray[Any], valid: NDArray[np.bool_], iterations: int, keep: bool
) -> tuple[Levels, NDArray[Any]]:
    """The levels, the last two alone if not to be kept, and the product of 1 - d_j."""
    levels = [kernels.first_level(values, valid)]
    left = np.ones_like(values)
    for _ in range(iterations + 1):
        eroded = kernels.erode(levels[-1])
        kernels.strip(levels[-1], eroded, left)
        levels = [*levels, eroded] if keep else [eroded]
        if kernels.is_empty(eroded):
            break
    return levels, left


def _gradient_on_cpu(levels: list[Levels], left: Tensor, gradient: Tensor, apply: Map) -> Tensor:
    def one(kept: Levels, rest: NDArray[Any], of: NDArray[Any]) -> NDArray[Any]:
        return _volume_gradient(kept, _volume(rest), _volume(of))

    lefts, gradients = (t.detach().flatten(0, 1).numpy() for t in (left, gradient))
    found = list(apply(one, levels, lefts, gradients))
    result = np.stack(found) if found else lefts
    return torch.from_numpy(result.reshape(left.shape))


def _volume_gradient(levels: Levels, left: NDArray[Any], gradient: NDArray[Any]) -> NDArray[Any]:
    later = np.zeros_like(levels[-1])
    for level, eroded in zip(levels[-2::-1], levels[:0:-1], strict=True):
        to_level = np.zeros_like(level)
        kernels.strip_backward(level, eroded, left, gradient, to_level, later)
        kernels.erode_backward(level, eroded, later, to_level)
        later = to_level
    return later[1:-1, 1:-1, 1:-1] if left.shape[0] > 1 else later[:, 1:-1, 1:-1]


def thin_tensor(
    values: Tensor, valid: Tensor, iterations: int, keep: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """(product of 1 - d_j, levels) of (B, C, *space) on any device; the levels if `keep`."""
    levels = [torch.where(valid, values.detach(), ABSENT)]
    left = torch.ones_like(levels[0])
    for _ in range(iterations + 1):
        eroded = _erode(levels[-1])
        left *= 1 - _taken(levels[-1], _dilate(eroded))
        levels = [*levels, eroded] if keep else [eroded]
        if not bool(((eroded > kernels.EMPTY) & (eroded < ABSENT)).any()):
            break
    return left, levels


def tensor_gradient(levels: list[Tensor], left: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the values, from that of the skeleton."""
    later = torch.zeros_like(left)
    for level, eroded in zip(levels[-2::-1], levels[:0:-1], strict=True):
        dilated = _dilate(eroded)
        taken = _taken(level, dilated)
        others = torch.where(taken < 1, left / torch.where(taken < 1, 1 - taken, 1.0), 1.0)
        share = torch.where(taken > 0, gradient * others, 0.0)
        later = later - _to_sources(share, eroded, dilated, _box(level.ndim - 2))
        later = torch.where(eroded < ABSENT, later, 0.0)
        later = share + _to_sources(later, level, eroded, _cross(level.ndim - 2))
    return later


def _erode(level: Tensor) -> Tensor:
    lowest = level
    for step in _cross(level.ndim - 2):
        lowest = torch.minimum(lowest, _shift(level, step, ABSENT))
    return torch.where(level < ABSENT, lowest, ABSENT)


def _dilate(eroded: Tensor) -> Tensor:
    highest = torch.where(eroded < ABSENT, eroded, -1.0)
    for axis in range(eroded.ndim - 2):
        before, after = (
            _shift(highest, tuple(side * (i == axis) for i in range(eroded.ndim - 2)), -1.0)
            for side in (-1, 1)
        )
        highest = torch.maximum(highest, torch.maximum(before, after))
    return highest


def _taken(level: Tensor, dilated: Tensor) -> Tensor:
    return torch.where(level < ABSENT, (level - dilated).clamp(min=0), 0.0)


def _to_sources(share: Tensor, source: Tensor, chosen: Tensor, steps: list[Step]) -> Tensor:
    """Add what each voxel gives to the first of its neighbours whose value was chosen."""
    open_ = torch.ones_like(share, dtype=torch.bool)
    total = torch.zeros_like(share)
    for step in steps:
        here = open_ & (_shift(source, step, -ABSENT) == chosen)
        back = tuple(-s for s in step)
        total += _shift(torch.where(here, share, 0.0), back, 0.0)
        open_ &= ~here
    return total


def _shift(image: Tensor, step: Step, fill: float) -> Tensor:
    """At each voxel the value of the one that lies `step` further; `fill` outside."""
    for axis, by in enumerate(step, start=2):
        if by:
            extent = image.shape[axis]
            edge = torch.full_like(image.narrow(axis, 0, 1), fill)
            rest = image.narrow(axis, max(by, 0), extent - 1)
            image = torch.cat([rest, edge] if by > 0 else [edge, rest], axis)
    return image


def _cross(axes: int) -> list[Step]:
    """The voxel itself, then its neighbours along the axes in C order."""
    units = [tuple(int(i == axis) for i in range(axes)) for axis in range(axes)]
    return [(0,) * axes, *(tuple(-s for s in u) for u in units), *reversed(units)]


def _box(axes: int) -> list[Step]:
    """The voxel itself, then the rest of its 3^D in C order."""
    return [(0,) * axes, *_others(axes)]


def _others(axes: int) -> Iterator[Step]:
    return (step for step in product((-1, 0, 1), repeat=axes) if any(step))
