"""Train: one block in the same table and ledger as every other stage.

The trainer keeps its own state in the checkpoint folder and resumes from it, so a crash costs the
steps since the last saved state and changes no byte of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.geometry import Block, Roi, Triple
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.ingest import normalisation_note, statistics_of
from pipeline.stages.run import Run


@dataclass(frozen=True)
class VolumeSource:
    """Training patches straight from the run's volumes."""

    run: Run

    @property
    def shape(self) -> Triple:
        """z, y, x."""
        return self.run.shape

    def image(self, roi: Roi) -> NDArray[np.float32]:
        """The normalised image in `roi`."""
        return statistics_of(self.run).normalise(self.run.volume("image").read(roi))

    def labels(self, roi: Roi) -> NDArray[np.uint64]:
        """The targets in `roi`."""
        return self.run.volume("targets").read(roi)


def _check(run: Run) -> None:
    from pipeline.learning.model import stride
    from pipeline.learning.sampling import ForegroundIndex, PatchSampler

    settings, steps = run.config.train, stride(run.config.network)
    if any(n % s for n, s in zip(settings.patch, steps, strict=True)):
        raise InputError(
            f"train.patch {settings.patch} must be a multiple of the network's stride {steps}"
        )
    # Made only because making one refuses patches that do not fit; no voxel is read.
    none = np.zeros(0, np.int64)
    unread = ForegroundIndex(none.reshape(0, 3), none, none)
    PatchSampler([(VolumeSource(run), run.train_roi)], unread, settings)


def _train(_block: Block, run: Run) -> BlockResult:
    # torch costs seconds to import: only the process that trains pays.
    from pipeline.learning.train import train

    summary = train(
        run.config.train,
        run.config.network,
        [(VolumeSource(run), run.train_roi)],
        run.path("checkpoint"),
        normalisation=normalisation_note(run),
    )
    return BlockResult(stats=_numbers(summary))


def _numbers(summary: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in summary.items() if isinstance(value, int | float)}


def _steps(run: Run) -> int:
    return run.config.train.pretrain_steps + run.config.train.finetune_steps


def _progress(run: Run) -> tuple[int, int] | None:
    log = run.path("checkpoint") / "log.jsonl"
    if not log.exists():
        return 0, _steps(run)
    with log.open("rb") as file:
        return sum(1 for _ in file), _steps(run)


def gpu_if(device: Callable[[Run], str]) -> Callable[[Run], dict[str, float]]:
    """The resource that a worker must offer when the configuration asks for a GPU."""
    return lambda run: {"GPU": 1.0} if device(run) == "cuda" else {}


TRAIN = Stage(
    name="train",
    version=1,
    reads=("image", "statistics", "targets"),
    writes=("checkpoint",),
    parameters=lambda run: {
        "network": run.config.network.model_dump(),
        "train": run.config.train.model_dump(exclude={"checkpoint_every_steps"}),
        "region": run.train_roi.offset + run.train_roi.shape,
    },
    grid=one_block,
    create=lambda run: run.path("checkpoint").mkdir(),
    check=_check,
    process=_train,
    progress=_progress,
    resources=gpu_if(lambda run: run.config.train.device),
)
