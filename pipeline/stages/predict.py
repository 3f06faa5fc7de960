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

from pipeline.errors import InputError
from pipeline.geometry import Block, BlockGrid, triple
from pipeline.learning.settings import NetworkSettings
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.ingest import holds_tissue, normalisation_note, round_up
from pipeline.stages.prediction import predict_tissue
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
    from pipeline.learning.fit import require_fit
    from pipeline.learning.inference import check_flips, check_tile
    from pipeline.learning.model import stride

    foreign = run.foreign("checkpoint")
    if foreign is not None and not foreign.is_dir():
        raise InputError(f"{foreign}: expected the folder of a trained network")
    network = run.config.network
    if foreign is not None:
        saved = load_model(foreign)
        _require_same_kind(foreign, saved.network, network)
        network = saved.network
        require_fit(
            foreign,
            saved,
            purpose="on this image",
            normalisation=normalisation_note(run),
            voxel_size_nm=run.voxel_size_nm,
        )
        if network.dimensions == 3 and run.shape[0] == 1 and saved.training.patch[0] > 1:
            raise InputError(
                f"{foreign}: this network cannot be used on this image: network.dimensions is 3 "
                f"there, trained on patches of {saved.training.patch}, but the image is one plane; "
                f"train one with network.dimensions: 2"
            )
    check_tile(run.config.predict, stride(network))
    check_flips(run.config.predict, network)


def _require_same_kind(path: Path, theirs: NetworkSettings, ours: NetworkSettings) -> None:
    """Refuse a network of another kind than the one that the configuration asks for.

    What is as it is by default was perhaps not asked for: the network given decides.
    """
    asked = type(ours)()
    for name in ("output", "dimensions"):
        wanted, found = getattr(ours, name), getattr(theirs, name)
        if found != wanted != getattr(asked, name):
            raise InputError(
                f"{path}: this network has network.{name}: {found}, the configuration asks for "
                f"{wanted}; give another checkpoint, or leave network.{name} out"
            )


def _predict(block: Block, run: Run) -> BlockResult:
    predictor = _predictor(run, _stamp(run.path("checkpoint")), run.token)
    affinities = predict_tissue(predictor, run, block.write)
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
