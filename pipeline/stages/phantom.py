"""Phantom: a synthetic volume with its labels and tracings, written blockwise at any size."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.arrays.phantom import grow_neurons, render
from pipeline.arrays.phantom_spec import LightSpec, PhantomSpec
from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import ConfigError
from pipeline.geometry import Block, BlockGrid
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.ingest import round_up
from pipeline.stages.run import Run
from pipeline.storage.swc import write_swc
from pipeline.storage.volume import Volume


def phantom_spec(run: Run) -> PhantomSpec:
    """The phantom that the configuration describes."""
    config = run.config.phantom
    if config is None:
        raise ConfigError("a phantom needs a phantom section in the configuration")
    usual = LightSpec()
    dim, bright = (counts * config.brightness for counts in usual.neurite_counts)
    light = replace(usual, neurite_counts=(dim, bright), dimmest=config.dimmest)
    return PhantomSpec(config.shape, config.voxel_size_nm, config.neurons, config.seed, light=light)


def _grid(run: Run) -> BlockGrid:
    config = run.config
    return BlockGrid.over(run.shape, round_up(config.ingest.block, config.chunk))


def _create(run: Run) -> None:
    spec = phantom_spec(run)
    for name, dtype in (("phantom_image", np.uint16), ("phantom_labels", np.uint64)):
        Volume.create(
            run.path(name),
            spec.shape,
            dtype,
            chunks=run.config.chunk,
            voxel_size_nm=spec.voxel_size_nm,
        )
    folder = run.path("phantom_swc")
    folder.mkdir()
    for skeleton in _neurons(run, run.token):
        write_swc(
            folder / f"{skeleton.name}.swc",
            skeleton,
            voxel_size_nm=spec.voxel_size_nm,
            unit="um",
            header=("truth of a phantom",),
        )


def _phantom(block: Block, run: Run) -> BlockResult:
    image, labels = render(phantom_spec(run), _neurons(run, run.token), block.write)
    run.volume("phantom_image").write(block.write, image)
    run.volume("phantom_labels").write(block.write, labels)
    return BlockResult(stats={"foreground": int(np.count_nonzero(labels))})


@lru_cache(maxsize=2)
def _neurons(run: Run, _token: str) -> list[Skeleton]:
    return grow_neurons(phantom_spec(run))


def _parameters(run: Run) -> dict[str, Any]:
    spec = run.config.phantom
    return {**(spec.model_dump() if spec else {}), "chunk": run.config.chunk}


PHANTOM = Stage(
    name="phantom",
    version=1,
    reads=(),
    writes=("phantom_image", "phantom_labels", "phantom_swc"),
    parameters=_parameters,
    grid=_grid,
    create=_create,
    process=_phantom,
)
