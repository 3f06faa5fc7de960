"""Ingest: any source to the working volume, its statistics, the tissue mask and the pyramid.

1. `ingest` copies blocks, and keeps each block's histogram and tile peaks.
2. `statistics` adds the histograms: percentiles of the whole volume and the tissue mask, once.
3. `pyramid` averages the coarser levels.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.intensity import (
    TILE,
    IntensityStatistics,
    histogram,
    require_supported,
    tile_peaks,
    tissue_mask,
)
from pipeline.arrays.pyramid import downsample_mean, level_factors
from pipeline.errors import ShapeError
from pipeline.geometry import Block, BlockGrid, Roi, Triple, triple
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.run import Run
from pipeline.storage.atomic import write_json
from pipeline.storage.source import TiffSource
from pipeline.storage.tables import read_arrays, write_arrays
from pipeline.storage.volume import Volume, level_shape

# Whole planes of a TIFF are decoded at once; a slab of them may take this much memory.
_SLAB_BYTES = 2**29


def _grid(run: Run) -> BlockGrid:
    config = run.config.ingest
    step = triple(tuple(math.lcm(c, TILE) for c in config.chunk))
    block = round_up(config.block, step)
    source = run.source
    if isinstance(source, TiffSource):
        plane = source.shape[1] * source.shape[2] * source.dtype.itemsize
        if plane * block[0] <= _SLAB_BYTES:
            block = round_up((block[0], source.shape[1], source.shape[2]), step)
    grid = BlockGrid.over(run.shape, block)
    grid.require_alignment(config.chunk)
    return grid


def round_up(shape: Triple, step: Triple) -> Triple:
    """`shape` rounded up to multiples of `step`."""
    return triple(tuple(-(-n // s) * s for n, s in zip(shape, step, strict=True)))


def _check(run: Run) -> None:
    source = run.source
    if isinstance(source, Volume) and source.channels is not None:
        raise ShapeError(
            f"{source.path}: expected one channel (z, y, x), got {source.channels} channels; "
            "save the channel to use as a volume of its own"
        )
    require_supported(source.dtype, str(run.path("source_image")))
    _ = run.voxel_size_nm


def _factors(run: Run) -> list[Triple]:
    return level_factors(run.config.ingest.levels, run.voxel_size_nm, run.shape)


def _create(run: Run) -> None:
    Volume.create(
        run.path("image"),
        run.shape,
        run.source.dtype,
        chunks=run.config.chunk,
        voxel_size_nm=run.voxel_size_nm,
    )
    run.path("tiles").mkdir(parents=True)
    run.path("histograms").mkdir(parents=True)


def _ingest(block: Block, run: Run) -> BlockResult:
    data = run.source.read(block.write)
    counts = histogram(data)
    run.volume("image").write(block.write, data)
    write_arrays(run.block_file("tiles", block.index), {"peaks": tile_peaks(data)})
    bins = np.flatnonzero(counts)
    write_arrays(run.block_file("histograms", block.index), {"bins": bins, "counts": counts[bins]})
    return BlockResult(stats={"mean": float(data.mean(dtype=np.float64))})


INGEST = Stage(
    name="ingest",
    version=1,
    reads=("source_image",),
    writes=("image", "tiles", "histograms"),
    parameters=lambda run: {
        "chunk": run.config.chunk,
        "voxel_size_nm": run.voxel_size_nm,
    },
    grid=_grid,
    create=_create,
    check=_check,
    process=_ingest,
)


def _statistics(_block: Block, run: Run) -> BlockResult:
    config = run.config.ingest
    dtype = run.source.dtype
    counts = np.zeros(65536, np.int64)
    peaks = np.zeros(level_shape(run.shape, (TILE,) * 3))
    for block in _grid(run):
        stored = read_arrays(run.block_file("histograms", block.index))
        counts[stored["bins"]] += stored["counts"]
        tiles = read_arrays(run.block_file("tiles", block.index))["peaks"]
        first = triple(tuple(o // TILE for o in block.write.offset))
        peaks[Roi(first, triple(tiles.shape)).slices] = tiles
    found = IntensityStatistics.from_histogram(
        counts, dtype, config.low_percentile, config.high_percentile
    )
    mask = np.ones(peaks.shape, np.uint8)
    if config.mask_sigma is not None:
        threshold = found.tissue_threshold(config.mask_sigma)
        mask = tissue_mask(peaks, threshold, config.mask_dilation_tiles)
    volume = run.volume("mask")
    volume.write(volume.roi, mask)
    write_json(run.path("statistics"), asdict(found))
    return BlockResult(stats={"tissue_share": round(float(mask.mean()), 6)})


def _create_mask(run: Run) -> None:
    z, y, x = (s * TILE for s in run.voxel_size_nm)
    Volume.create(
        run.path("mask"),
        level_shape(run.shape, (TILE,) * 3),
        np.uint8,
        chunks=run.config.chunk,
        voxel_size_nm=(z, y, x),
    )
    # Replaced by the stage's one block; it exists from the start, as every output does.
    write_json(run.path("statistics"), {})


STATISTICS = Stage(
    name="statistics",
    version=1,
    reads=("histograms", "tiles"),
    writes=("statistics", "mask"),
    parameters=lambda run: run.config.ingest.model_dump(
        include={"low_percentile", "high_percentile", "mask_sigma", "mask_dilation_tiles"}
    ),
    grid=one_block,
    create=_create_mask,
    process=_statistics,
)


def _pyramid_grid(run: Run) -> BlockGrid:
    last = _factors(run)[-1:] or [(1, 1, 1)]
    block = triple(tuple(c * f for c, f in zip(run.config.chunk, last[0], strict=True)))
    return BlockGrid.over(run.shape, block)


def _pyramid(block: Block, run: Run) -> BlockResult:
    image = run.volume("image")
    data = image.read(block.write)
    for number, factor in enumerate(_factors(run), start=1):
        first = triple(tuple(o // f for o, f in zip(block.write.offset, factor, strict=True)))
        coarse = downsample_mean(data, factor)
        image.level(number).write(Roi(first, triple(coarse.shape)), coarse)
    return BlockResult()


def _create_pyramid(run: Run) -> None:
    run.volume("image").set_levels(_factors(run))
    run.path("pyramid").parent.mkdir(parents=True, exist_ok=True)
    run.path("pyramid").write_text("levels of image.zarr\n")


PYRAMID = Stage(
    name="pyramid",
    version=1,
    reads=("image",),
    writes=("pyramid",),
    within=("image",),
    parameters=lambda run: {"levels": run.config.ingest.levels},
    grid=_pyramid_grid,
    create=_create_pyramid,
    process=_pyramid,
)


def statistics_of(run: Run) -> IntensityStatistics:
    """The volume's statistics, as the statistics stage left them."""
    path = run.path("statistics")
    return _load(path, path.stat().st_mtime_ns)


def normalisation_note(run: Run) -> str:
    """How image values become the network's input; kept with a network, checked before its use."""
    config = run.config.ingest
    return (
        f"percentiles {config.low_percentile} and {config.high_percentile} of the volume become "
        "0 and 1, clipped to [-0.5, 4]"
    )


@lru_cache(maxsize=4)
def _load(path: Path, _mtime_ns: int) -> IntensityStatistics:
    return IntensityStatistics(**json.loads(path.read_text()))


def mask_tiles(run: Run) -> NDArray[Any]:
    """The tissue mask on its lattice of 32-voxel tiles."""
    path = run.path("mask") / "zarr.json"
    return _load_mask(run, path.stat().st_mtime_ns, run.path("statistics").stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _load_mask(run: Run, _created_ns: int, _written_ns: int) -> NDArray[Any]:
    volume = run.volume("mask")
    return volume.read(volume.roi)


def tiles_of(roi: Roi) -> Roi:
    """The tiles that share a voxel with `roi`, as a box of the tile lattice."""
    begin = triple(tuple(o // TILE for o in roi.offset))
    end = triple(tuple(-(-e // TILE) for e in roi.end))
    return Roi.between(begin, end)


def holds_tissue(roi: Roi, run: Run) -> bool:
    """Whether the tissue mask has a voxel in `roi`."""
    return bool(mask_tiles(run)[tiles_of(roi).slices].any())
