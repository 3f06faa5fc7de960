"""One step of training: forward, loss, backward, update."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import DataError
from pipeline.learning.batch import LossBatch, LossValue
from pipeline.learning.distributed import Group
from pipeline.learning.loader import Batch
from pipeline.learning.losses import compute_loss
from pipeline.learning.model import UNet
from pipeline.learning.precision import autocast, choose_bf16
from pipeline.learning.settings import Precision, TrainSettings
from pipeline.learning.targets import make_targets

VoxelSize = tuple[float, float, float]


def make_optimiser(model: UNet, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW; biases do not decay."""
    kernels = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": kernels, "weight_decay": settings.weight_decay},
        {"params": biases, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate at a step: linear warm-up, then half a cosine down to the final fraction."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    span = max(1, settings.steps - 1 - settings.warmup_steps)
    progress = min(1.0, (step - settings.warmup_steps) / span)
    floor = settings.final_rate_fraction
    wave = 0.5 * (1.0 + math.cos(math.pi * progress))
    return settings.learning_rate * (floor + (1.0 - floor) * wave)


class TrainingStep:
    """Makes steps; figures and gradients are means over the processes of the group."""

    def __init__(
        self,
        settings: TrainSettings,
        model: UNet,
        optimiser: torch.optim.AdamW,
        *,
        group: Group,
        pool: Executor | None,
        voxel_size: VoxelSize | None,
        explain: Callable[[int], str],
    ) -> None:
        """`explain(step)` says where the samples of a batch lie, for the error message."""
        self._settings, self._model, self._optimiser = settings, model, optimiser
        self._group, self._pool, self._voxel_size = group, pool, voxel_size
        self._explain = explain
        self._device = next(model.parameters()).device
        self._bf16 = choose_bf16(settings.precision, self._device)
        self._network = torch.compile(model) if settings.compile else model

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Update the weights; the record of the step for the log.

        Raises:
            DataError: the loss or its gradient is not finite.
        """
        settings, step = self._settings, batch.step
        rate = learning_rate(settings, step)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        loss, parts, norm = self._gradients(batch)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DataError(
                f"training step {step} ({settings.phase(step)}): loss {loss}, gradient norm {norm}."
                f" What was saved before stays; look at the data of this step "
                f"({self._explain(step)}) or lower learning_rate (now {rate:.3g})"
            )
        self._optimiser.step()
        return {
            "step": step, "phase": settings.phase(step), "loss": loss, "lr": rate, **parts,
            "gradient_norm": norm,
        }  # fmt: skip

    def _gradients(self, batch: Batch) -> tuple[float, dict[str, float | None], float]:
        value = self._loss(batch)
        self._optimiser.zero_grad(set_to_none=True)
        value.total.backward()
        names = list(value.parts)
        told = [float(value.total.detach()), *(float(value.parts[name]) for name in names)]
        parameters = list(self._model.parameters())
        # A parameter that no output depends on has none.
        gradients = [p.grad for p in parameters if p.grad is not None]
        loss, *means = self._group.mean(gradients, told)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._settings.gradient_clip)
        parts = {n: m if math.isfinite(m) else None for n, m in zip(names, means, strict=True)}
        return loss, parts, float(norm)

    def _loss(self, batch: Batch) -> LossValue:
        settings = self._model.settings
        image = torch.from_numpy(batch.images)
        image = image.to(self._device, memory_format=torch.channels_last_3d)
        with autocast(self._device, self._bf16):
            logits: Tensor = self._network(image)
        size = self._voxel_size
        if settings.dimensions == 2:
            logits = logits.squeeze(2)
        together = LossBatch.of(
            logits,
            batch.labels,
            settings.output,
            voxel_size=None if size is None else size[-settings.dimensions :],
            prepared=batch.prepared,
            pool=self._pool,
        )
        return compute_loss(
            together, getattr(self._settings.loss, self._settings.phase(batch.step))
        )


def picture(model: UNet, batch: Batch, precision: Precision) -> NDArray[np.float32]:
    """Image, target and prediction side by side, (Y, 3 X) float32 in [0, 1].

    Of the middle plane of a batch's first sample; target and prediction are means over the
    channels, and 0.5 where no target is known.
    """
    device = next(model.parameters()).device
    image = torch.from_numpy(batch.images[:1]).to(device, memory_format=torch.channels_last_3d)
    with torch.no_grad(), autocast(device, choose_bf16(precision, device)):
        logits = model(image)
    form, channels = model.settings.output, model.settings.channels
    targets, mask = make_targets(batch.labels[:1], form, channels)
    if model.settings.dimensions == 2:
        targets, mask = targets[:, :, None], mask[:, :, None]
    middle = batch.images.shape[2] // 2
    plane = batch.images[0, 0, middle]
    low, high = float(plane.min()), float(plane.max())
    shown = (plane - low) / (high - low if high > low else 1.0)
    known = mask[0, :, middle].any(0).numpy()
    count = mask[0, :, middle].sum(0).clamp(min=1)
    target = (targets[0, :, middle].sum(0) / count).numpy()
    predicted = torch.sigmoid(logits[0, :, middle].float()).mean(0).cpu().numpy()
    panels = [shown, np.where(known, target, 0.5), predicted]
    return np.clip(np.concatenate(panels, axis=1), 0.0, 1.0).astype(np.float32)
