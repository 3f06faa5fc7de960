"""Predict: the normalised image to affinities, on a lattice of tiles fixed in the volume.

Outside the tissue mask affinities are 0, voxel by voxel, whether or not the block that holds the
voxel was computed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.intensity import tiles_to_voxels
from pipeline.errors import InputError
from pipeline.geometry import Block, BlockGrid, Roi, triple
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.ingest import (
    holds_tissue,
    mask_tiles,
    normalisation_note,
    round_up,
    statistics_of,
)
from pipeline.stages.run import Run
from pipeline.stages.train import gpu_if
from pipeline.storage.volume import Volume

if TYPE_CHECKING:
    from pipeline.learning.inference import Predictor


def _grid(run: Run) -> BlockGrid:
    lattice = zip(run.config.chunk, run.config.predict.tile, strict=True)
    step = triple(tuple(math.lcm(chunk, tile) for chunk, tile in lattice))
    grid = BlockGrid.over(run.shape, round_up(run.config.predict_block, step))
    grid.require_alignment(run.config.chunk)
    return grid


def _create(run: Run) -> None:
    Volume.create(
        run.path("affinities"),
        run.shape,
        np.uint8,
        channels=3,
        chunks=run.config.chunk,
        voxel_size_nm=run.voxel_size_nm,
        compressor="lz4",
    )


def _check(run: Run) -> None:
    from pipeline.learning.checkpoint import load_model
    from pipeline.learning.inference import check_tile
    from pipeline.learning.model import stride

    foreign = run.foreign("checkpoint")
    if foreign is not None and not foreign.is_dir():
        raise InputError(f"{foreign}: expected the folder of a trained network")
    network = run.config.network
    if foreign is not None:
        saved = load_model(foreign)
        network, theirs, ours = saved.network, saved.note["normalisation"], normalisation_note(run)
        if theirs != ours:
            raise InputError(
                f"{foreign}: the network was trained on images in which {theirs}; in this run "
                f"{ours}. Set ingest.low_percentile and ingest.high_percentile as in its training"
            )
    check_tile(run.config.predict, stride(network))


def _predict(block: Block, run: Run) -> BlockResult:
    from pipeline.learning.inference import predict_roi

    statistics, image = statistics_of(run), run.volume("image")

    def read(roi: Roi) -> NDArray[np.float32]:
        return statistics.normalise(image.read(roi))

    affinities = predict_roi(
        _predictor(run, _stamp(run.path("checkpoint")), run.token),
        read,
        run.shape,
        block.write,
        wanted=lambda roi: holds_tissue(roi, run),
    )
    mask = tiles_to_voxels(mask_tiles(run), block.write.shape, block.write.offset)
    affinities *= mask
    run.volume("affinities").write(block.write, affinities)
    return BlockResult(stats={"mean_affinity": round(float(affinities.mean()) / 255, 6)})


def _stamp(folder: Path) -> int:
    return max(file.stat().st_mtime_ns for file in folder.iterdir())


@lru_cache(maxsize=1)
def _predictor(run: Run, _stamp_ns: int, _token: str) -> Predictor:
    from pipeline.learning.inference import Predictor

    return Predictor.load(run.path("checkpoint"), run.config.predict)


PREDICT = Stage(
    name="predict",
    version=1,
    reads=("image", "statistics", "mask", "checkpoint"),
    writes=("affinities",),
    parameters=lambda run: {
        **run.config.predict.model_dump(),
        "chunk": run.config.chunk,
    },
    grid=_grid,
    create=_create,
    check=_check,
    wanted=lambda block, run: holds_tissue(block.write, run),
    process=_predict,
    resources=gpu_if(lambda run: run.config.predict.device),
)
