"""Train: one block in the same table and ledger as every other stage.

The trainer keeps its own state in the checkpoint folder and resumes from it, so a crash costs the
steps since the last saved state and changes no byte of the result. Several processes may train
together (`pipeline.stages.train_process`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.geometry import Block
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.dense_labels import require_foreground
from pipeline.stages.ingest import normalisation_note
from pipeline.stages.run import Run
from pipeline.stages.training_volumes import (
    VolumeSource,
    check_training_runs,
    training_regions,
    training_run_keys,
)
from pipeline.stages.validate import (
    Validation,
    check_validation,
    validates,
    validation_parameters,
    validation_source,
)


def _check(run: Run) -> None:
    from pipeline.learning.sampling import check_regions, check_transpose
    from pipeline.learning.train import check_training

    settings = run.config.train
    check_training(settings, run.config.network)
    check_regions([(VolumeSource(run), run.train_roi)], settings)
    check_training_runs(run)
    if validates(run):
        check_validation(run)
    _check_start(run)
    check_transpose(settings.augment, run.voxel_size_nm)


def _check_start(run: Run) -> None:
    from pipeline.learning.checkpoint import load_model
    from pipeline.learning.fit import require_fit

    start = run.config.input.start_from
    if start is None:
        return
    if not start.is_dir():
        raise InputError(f"{start}: expected the folder of a trained network (input.start_from)")
    require_fit(
        start,
        load_model(start),
        purpose="to start from",
        normalisation=normalisation_note(run),
        voxel_size_nm=run.voxel_size_nm,
        network=run.config.network,
    )


def _train(_block: Block, run: Run) -> BlockResult:
    require_foreground(run)
    if run.config.train.processes > 1:
        from pipeline.stages.train_process import train_in_processes

        summary = train_in_processes(run)
    else:
        summary = train_run(run, run.path("checkpoint"))
    return BlockResult(stats=_numbers(summary))


def train_run(run: Run, directory: Path) -> dict[str, Any]:
    """Train the network of a run in this process, or with those of its group, into a folder."""
    # torch costs seconds to import: only the process that trains pays.
    from pipeline.learning.train import train

    return train(
        run.config.train,
        run.config.network,
        training_regions(run),
        directory,
        normalisation=normalisation_note(run),
        voxel_size_nm=run.voxel_size_nm,
        validate=Validation(run) if validates(run) else None,
        start_from=run.config.input.start_from,
        # Where it runs is no part of what was trained: the same training gives the same bytes.
        config=run.config.model_dump(mode="json", exclude={"run_dir", "execution"}),
    )


def _numbers(summary: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in summary.items() if isinstance(value, int | float)}


def _progress(run: Run) -> tuple[int, int] | None:
    log, steps = run.path("checkpoint") / "log.jsonl", run.config.train.steps
    if not log.exists():
        return 0, steps
    with log.open("rb") as file:
        return sum(1 for _ in file), steps


def gpu_if(device: Callable[[Run], str]) -> Callable[[Run], dict[str, float]]:
    """The resource that a worker must offer when the configuration asks for a GPU."""
    return lambda run: {"GPU": 1.0} if device(run) == "cuda" else {}


def _judged_by(run: Run) -> tuple[str, ...]:
    return ("mask", *validation_source(run)) if validates(run) else ()


def _parameters(run: Run) -> dict[str, Any]:
    settings = run.config.train
    parameters: dict[str, Any] = {
        "network": run.config.network.model_dump(),
        "train": settings.deciding(),
        "region": run.train_roi.offset + run.train_roi.shape,
        "voxel_size_nm": run.voxel_size_nm,
    }
    if run.config.input.training_runs:
        parameters["training_runs"] = training_run_keys(run)
    if validates(run):
        parameters["validation"] = validation_parameters(run)
    return parameters


TRAIN = Stage(
    name="train",
    version=2,
    reads=("image", "statistics", "targets"),
    more=_judged_by,
    optional=("start_from",),
    writes=("checkpoint",),
    parameters=_parameters,
    grid=one_block,
    create=lambda run: run.path("checkpoint").mkdir(),
    check=_check,
    process=_train,
    progress=_progress,
    resources=gpu_if(lambda run: run.config.train.device),
)
