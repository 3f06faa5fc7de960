"""Project: the maximum projections of image, affinities and segments for the report, blockwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Block
from pipeline.report.projections import (
    AXES,
    LabelProjections,
    MaxProjections,
    ProjectionGrid,
    affinity_strength,
)
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.fragments import read_affinities
from pipeline.stages.relabel import output_grid
from pipeline.stages.renamed_segments import read_segments, renaming_of_segments
from pipeline.stages.run import Run
from pipeline.storage.tables import read_arrays, write_arrays

_NAMES = ("image", "affinities", "segments")


def projection_grid(run: Run) -> ProjectionGrid:
    """The pixels of the report's pictures."""
    return ProjectionGrid(run.shape, run.voxel_size_nm)


def available(run: Run) -> tuple[str, ...]:
    """Which volumes this run can show."""
    given = run.config.input
    has = {
        "image": given.image is not None,
        "affinities": given.segments is None
        and (given.affinities is not None or given.image is not None),
        "segments": True,
    }
    return tuple(name for name in _NAMES if has[name])


def _project(block: Block, run: Run) -> BlockResult:
    grid, shown = projection_grid(run), available(run)
    labels = read_segments(run, block.write)
    # Without an image every voxel is equally bright, and the largest label wins.
    image = np.zeros(block.write.shape, np.uint8)
    parts: dict[str, NDArray[Any]] = {}
    if "image" in shown:
        image = run.volume("image").read(block.write)
        parts |= _named("image", _maxima(grid, block, image))
    if "affinities" in shown:
        strength = affinity_strength(read_affinities(run.volume("affinities"), block.write))
        parts |= _named("affinities", _maxima(grid, block, strength))
    found = LabelProjections(grid, image.dtype)
    found.add(block.write, labels, image)
    parts |= _named("segments", found.part(block.write))
    write_arrays(run.block_file("projections", block.index), parts)
    return BlockResult()


def _maxima(grid: ProjectionGrid, block: Block, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    found = MaxProjections(grid, values.dtype)
    found.add(block.write, values)
    return found.part(block.write)


def _named(name: str, parts: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {f"{name}.{key}": values for key, values in parts.items()}


def projections(run: Run) -> dict[str, tuple[NDArray[Any], ...]]:
    """The pictures along z, y and x of each volume that the run can show."""
    grid, pictures = projection_grid(run), {}
    for name in available(run):
        whole: MaxProjections | LabelProjections | None = None
        for block, part in _parts(run, name):
            if whole is None:
                kind = LabelProjections if name == "segments" else MaxProjections
                whole = kind(grid, part["best0"].dtype)
            whole.add_part(block.write, part)
        assert whole is not None
        pictures[name] = tuple(whole.along(axis) for axis in AXES)
    return pictures


def _parts(run: Run, name: str) -> Iterator[tuple[Block, dict[str, NDArray[Any]]]]:
    for block in output_grid(run):
        stored = read_arrays(run.block_file("projections", block.index))
        mine = {k.split(".")[1]: v for k, v in stored.items() if k.startswith(f"{name}.")}
        yield block, mine


PROJECT = Stage(
    name="project",
    version=1,
    reads=("segments",),
    optional=("image", "affinities", "segment_lookup"),
    writes=("projections",),
    parameters=lambda run: {"voxel_size_nm": run.voxel_size_nm, **renaming_of_segments(run)},
    grid=output_grid,
    create=lambda run: run.path("projections").mkdir(parents=True),
    process=_project,
)
