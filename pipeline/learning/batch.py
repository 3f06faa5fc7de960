"""The form in which every loss receives a batch, and what it gives back.

Two rules hold for all losses. Samples are independent, and the loss of a batch is the mean of the
losses of its samples, so that processes which share a batch agree with one process that has it all;
a sample without a valid element counts 0. And all sums are float32 (float64 for float64 logits),
whatever the logits are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ShapeError
from pipeline.learning.settings import Form
from pipeline.learning.targets import labels_tensor, make_targets

LARGEST_LOGIT = 1e4
"""In size; what lies beyond counts as this."""


@dataclass(frozen=True)
class LossBatch:
    """One batch; space is (Y, X) or (Z, Y, X)."""

    logits: Tensor
    """(B, C, *space), any floating type."""
    labels: NDArray[np.uint64]
    """(B, *space); 0 is background, `IGNORE` unknown; instances, or class numbers."""
    targets: Tensor
    """(B, C, *space) float32, 0 or 1, on the device of the logits; see `make_targets`."""
    mask: Tensor
    """(B, C, *space) bool: the elements that count."""
    form: Form
    """What the channels mean."""
    voxel_size: tuple[float, ...]
    """Extent of a voxel along each axis of space, in any one unit."""
    prepared: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """What the loader computed from the labels, (B, ...) each; see `prepare`."""
    pool: Executor | None = None
    """Threads for what is done sample by sample on the CPU."""

    @classmethod
    def of(
        cls,
        logits: Tensor,
        labels: NDArray[np.uint64],
        form: Form = "affinities",
        *,
        voxel_size: tuple[float, ...] | None = None,
        prepared: Mapping[str, NDArray[Any]] | None = None,
        pool: Executor | None = None,
    ) -> LossBatch:
        """The batch with its targets made from the labels.

        Raises:
            ShapeError, DtypeError, DataError: logits and labels disagree; as `make_targets`.
        """
        space = labels.shape[1:]
        if not labels.size:
            raise ShapeError(f"a batch needs at least one sample and one voxel, got {labels.shape}")
        if logits.shape[0] != labels.shape[0] or tuple(logits.shape[2:]) != space:
            raise ShapeError(
                f"labels {labels.shape} want logits ({labels.shape[0]}, C, "
                f"{', '.join(map(str, space))}), got {tuple(logits.shape)}"
            )
        ids = labels_tensor(labels).to(logits.device)
        targets, mask = make_targets(ids, form, logits.shape[1])
        size = voxel_size or (1.0,) * len(space)
        if len(size) != len(space):
            raise ShapeError(f"voxel size {size} does not suit labels {labels.shape}")
        return cls(logits, labels, targets, mask, form, size, prepared or {}, pool)

    def map_samples(self, function: Callable[..., Any], *arrays: Any) -> list[Any]:
        """`function` of each sample's part of the arrays, on the threads of the pool."""
        apply = map if self.pool is None else self.pool.map
        return list(apply(function, *arrays))

    def prepare(self, key: str, make: Callable[[], NDArray[Any]]) -> Tensor:
        """What the loader prepared under `key`, else made now; on the device of the logits."""
        found = self.prepared.get(key)
        array = make() if found is None else found
        return torch.from_numpy(array).to(self.logits.device)


@dataclass(frozen=True)
class LossValue:
    """What a loss gives: the scalar to minimise, and named parts of it for the log (detached)."""

    total: Tensor
    parts: dict[str, Tensor]


def bounded_logits(batch: LossBatch) -> Tensor:
    """Logits in float32 or float64 that are safe to compute with.

    What lies outside the mask, NaN included, becomes 0 and gets no gradient. Logits beyond +-1e4
    count as +-1e4 and keep their gradient, so infinite ones give a finite loss that still pushes
    them back.
    """
    logits = batch.logits
    wide = logits if logits.dtype == torch.float64 else logits.float()
    bounded: Tensor = _Bounded.apply(masked(wide, batch.mask))
    return bounded


def probabilities(batch: LossBatch) -> Tensor:
    """(B, C, *space): sigmoid of each channel, or softmax over classes; 0 outside the mask."""
    logits = bounded_logits(batch)
    found = torch.softmax(logits, 1) if batch.form == "classes" else torch.sigmoid(logits)
    return masked(found, batch.mask)


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where the mask is True, 0 elsewhere, whatever stands there; so is the gradient.

    What `torch.where` gives, but its time on the CPU does not depend on the mask, and is less.

    Args:
        values: (...), float32 or float64.
        mask: the same shape, bool.
    """
    found: Tensor = _Masked.apply(values, mask)
    return found


def sample_means(values: Tensor, counted: Tensor) -> Tensor:
    """The mean over a batch of each sample's sum of `values` divided by what is `counted`.

    Args:
        values: (B, ...), 0 where nothing counts.
        counted: (B, ...) bool or weights.
    """
    sums = values.flatten(1).sum(1)
    counts = counted.flatten(1).sum(1).to(sums.dtype)
    return (sums / torch.where(counts > 0, counts, 1.0)).mean()


class _Masked(torch.autograd.Function):
    """Bits of numbers and of the mask, one for each: `torch.where` branches at every element."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return _kept_bits(values, mask)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return masked(gradients[0], mask), None


def _kept_bits(values: Tensor, mask: Tensor) -> Tensor:
    bits = torch.int64 if values.dtype == torch.float64 else torch.int32
    keep = mask.view(torch.uint8).to(bits).neg_()  # all ones, or none
    return keep.bitwise_and_(values.view(bits)).view(values.dtype)


class _Bounded(torch.autograd.Function):
    """Clamp whose gradient is 1 everywhere: plain clamp would leave an infinite logit unmoved."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]
