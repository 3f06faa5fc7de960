"""Fragments: each block on its own, with what its neighbours need to know of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.fragments import extract_fragments
from pipeline.arrays.labels import Affinities, quantise, quantised_threshold
from pipeline.arrays.relabel import apply_lookup
from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import Block, BlockGrid, Roi, Triple, check_indexable, triple
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.block_tables import (
    holding_blocks,
    read_counts,
    read_map,
    write_record,
)
from pipeline.stages.ingest import round_up
from pipeline.stages.run import Run
from pipeline.stages.segmentation import segment_grid, segmentation_choice, untuned
from pipeline.storage.volume import Volume

# Chunks of the scratch labels are no larger than this along each axis.
_SCRATCH_EXTENT = 128


def read_affinities(volume: Volume, roi: Roi) -> Affinities:
    """Three channels of integer affinities; float32 in [0, 1] are quantised to uint8."""
    data = volume.first_channels(3).read(roi)
    if np.issubdtype(data.dtype, np.floating):
        return quantise(data)
    return data


def fragments_grid(run: Run) -> BlockGrid:
    """The user's blocks, each with one voxel more on the successor side."""
    return segment_grid(run, (1, 1, 1))


def check_affinities(run: Run) -> None:
    """Refuse affinities that the kernels cannot take.

    Raises:
        InputError: linear indices that do not fit, or blocks too large for one process.
        ShapeError: fewer than three channels, or another shape than the image.
        DtypeError: other than uint8, uint16 or float32.
    """
    check_indexable(run.shape)
    extent = fragments_grid(run).block_shape
    if extent[0] * extent[1] * extent[2] >= 2**31:
        raise InputError(
            f"segment.block: blocks of {extent} have 2^31 voxels or more; use smaller ones"
        )
    if run.foreign("affinities") is None:
        return
    volume = run.volume("affinities")
    if volume.channels is None or volume.channels < 3:
        found = volume.shape if volume.channels is None else (volume.channels, *volume.shape)
        raise ShapeError(f"{volume.path}: expected affinities (3, z, y, x), got {found}")
    if volume.dtype.name not in ("uint8", "uint16", "float32"):
        raise DtypeError(
            f"{volume.path}: expected affinities of uint8, uint16 or float32 in [0, 1], "
            f"got {volume.dtype}"
        )
    if volume.shape != run.shape:
        raise ShapeError(
            f"{volume.path}: affinities of shape {volume.shape}, but the volume has {run.shape}"
        )


def _slot_shape(grid: BlockGrid) -> tuple[Triple, Triple]:
    """Chunk of the scratch labels, and the extent that one block has there."""
    chunk = triple(tuple(min(b, _SCRATCH_EXTENT) for b in grid.block_shape))
    return chunk, round_up(grid.block_shape, chunk)


def _slot(grid: BlockGrid, block: Block) -> Roi:
    """Where the labels of a block lie in the scratch volume.

    There each block begins at a chunk: blocks of any shape then have chunks of their own, of a
    size that the compressor takes.
    """
    _, extent = _slot_shape(grid)
    first = triple(tuple(p * e for p, e in zip(block.position, extent, strict=True)))
    return Roi(first, block.write.shape)


def _create_fragments(run: Run) -> None:
    grid = fragments_grid(run)
    chunk, extent = _slot_shape(grid)
    Volume.create(
        run.path("local_fragments"),
        triple(tuple(n * e for n, e in zip(grid.cells, extent, strict=True))),
        np.uint32,
        chunks=chunk,
        voxel_size_nm=None,
        compressor="lz4-plain",
    )
    run.path("block_records").mkdir(parents=True)


def _fragments(block: Block, run: Run) -> BlockResult:
    volume = run.volume("affinities").first_channels(3)
    if run.config.input.require_chunks:
        _require_chunks(volume, block.read)
    if volume.holds_nothing(block.read):
        return BlockResult("empty")
    affinities = read_affinities(volume, block.read)
    choice = segmentation_choice(run)
    found = extract_fragments(
        affinities,
        origin=block.write.offset,
        write_shape=block.write.shape,
        volume_shape=run.shape,
        low=quantised_threshold(choice.low, affinities.dtype),
        high=quantised_threshold(choice.high, affinities.dtype),
    )
    if not len(found.ids):
        return BlockResult("empty")
    run.volume("local_fragments").write(_slot(fragments_grid(run), block), found.positions)
    write_record(run.block_file("block_records", block.index), found)
    foreground = int(found.voxels.sum())
    return BlockResult(
        stats={
            "foreground": foreground,
            "foreground_share": round(foreground / block.write.size, 6),
            "fragments": len(found.ids),
        }
    )


def _require_chunks(volume: Volume, roi: Roi) -> None:
    absent = volume.absent_chunk(roi)
    if absent is not None:
        raise DataError(
            f"{volume.path}: nothing is stored for {absent}; without --require-chunks "
            "(input.require_chunks) it would be read as the fill value"
        )


FRAGMENTS = Stage(
    name="fragments",
    version=2,
    reads=("affinities",),
    optional=("tuning",),
    writes=("local_fragments", "block_records"),
    parameters=lambda run: {
        **untuned(run, "low", "high"),
        "require_chunks": run.config.input.require_chunks,
    },
    grid=fragments_grid,
    create=_create_fragments,
    check=check_affinities,
    process=_fragments,
)


# --- For the stages after stitching


def held_blocks(run: Run, roi: Roi) -> list[Block]:
    """The blocks that hold fragments and overlap `roi`."""
    holding = holding_blocks(run, "fragments")
    return [block for block in segment_grid(run).overlapping(roi) if block.index in holding]


def read_positions(run: Run, source: Block, part: Roi) -> NDArray[np.uint32]:
    """The positions of local labels in `part` of a block.

    Raises:
        DataError: a chunk that was written is gone.
    """
    local = run.volume("local_fragments")
    stored = part.relative_to(source.write).shift(_slot(fragments_grid(run), source).offset)
    missing = local.missing_chunks(stored)
    if missing:
        raise DataError(
            f"{local.path}: block {source.index} was computed, but its chunk {missing[0]} is gone"
        )
    return local.read(stored)


def fragment_names(run: Run, source: Block) -> NDArray[np.uint64]:
    """The fragment of the volume for each position of a local label in a block."""
    labels, _ = read_counts(run.block_file("block_records", source.index))
    return apply_lookup(labels, *read_map(run.block_file("stitch", source.index)))
