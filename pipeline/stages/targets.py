"""Targets: dense labels, or tracings drawn as tubes, as one label volume with an ignore value."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.tubes import training_targets
from pipeline.errors import DtypeError, ShapeError
from pipeline.geometry import Block, BlockGrid
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.ingest import round_up
from pipeline.stages.run import Run
from pipeline.stages.truth import training_truth
from pipeline.storage.source import open_source, read_labels
from pipeline.storage.swc import check_placement
from pipeline.storage.volume import Volume


def _grid(run: Run) -> BlockGrid:
    return BlockGrid.over(run.shape, round_up(run.config.ingest.block, run.config.chunk))


def _check(run: Run) -> None:
    if run.target_source == "skeletons":
        check_placement(run.truth(), run.shape)
        training_truth(run)
        return
    path = run.path("source_labels")
    labels = open_source(path)
    if labels.shape != run.shape:
        raise ShapeError(
            f"{path}: labels of shape {labels.shape}, but the image has shape {run.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer) and labels.dtype != np.bool_:
        raise DtypeError(f"{path}: labels must be integers, got {labels.dtype}")


def _create(run: Run) -> None:
    Volume.create(
        run.path("targets"),
        run.shape,
        np.uint64,
        chunks=run.config.chunk,
        voxel_size_nm=run.voxel_size_nm,
    )


def _targets(block: Block, run: Run) -> BlockResult:
    labels = _drawn(block, run) if run.target_source == "skeletons" else _dense(block, run)
    if not labels.any():
        return BlockResult("empty")
    run.volume("targets").write(block.write, labels)
    return BlockResult(stats={"labelled": int(np.count_nonzero(labels))})


def _dense(block: Block, run: Run) -> NDArray[np.uint64]:
    return read_labels(run.path("source_labels"), block.write)


def _drawn(block: Block, run: Run) -> NDArray[np.uint64]:
    path = run.path("source_skeletons")
    skeletons = _truth(run, path.stat().st_mtime_ns, run.token)
    config = run.config.targets
    return training_targets(
        skeletons,
        range(1, len(skeletons) + 1),
        block.write,
        voxel_size_nm=run.voxel_size_nm,
        radius_nm=config.radius_nm,
        min_radius_nm=config.min_radius_nm or min(run.voxel_size_nm),
        shell_nm=config.shell_nm,
        negatives=config.background,
        neighbourhood_nm=config.neighbourhood_nm,
    )


@lru_cache(maxsize=2)
def _truth(run: Run, _mtime_ns: int, _token: str) -> list[Skeleton]:
    return run.truth()


def _parameters(run: Run) -> dict[str, object]:
    source = run.target_source
    parameters: dict[str, object] = {
        "source": source,
        "train": run.train_roi.offset + run.train_roi.shape,
        "voxel_size_nm": run.voxel_size_nm,
    }
    if source == "skeletons":
        parameters |= run.config.targets.model_dump(exclude={"source"})
        parameters["swc"] = run.config.input.swc.model_dump()
    return parameters


TARGETS = Stage(
    name="targets",
    version=1,
    reads=("image", "source_targets"),
    writes=("targets",),
    parameters=_parameters,
    grid=_grid,
    create=_create,
    check=_check,
    wanted=lambda block, run: block.write.overlaps(run.train_roi),
    process=_targets,
)
