"""Fragments: each block on its own, with what its neighbours need to know of it."""

from __future__ import annotations

import numpy as np

from pipeline.arrays.fragments import extract_fragments
from pipeline.arrays.labels import Affinities, quantise, quantised_threshold
from pipeline.errors import DtypeError, ShapeError
from pipeline.geometry import Block, BlockGrid, Roi, Triple, check_indexable, triple
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.block_tables import write_record
from pipeline.stages.ingest import round_up
from pipeline.stages.run import Run
from pipeline.stages.segmentation import segment_grid, segmentation_choice, untuned
from pipeline.storage.volume import Volume

# Chunks of the scratch labels are no larger than this along each axis.
_SCRATCH_EXTENT = 128


def read_affinities(volume: Volume, roi: Roi) -> Affinities:
    """Three channels of integer affinities; float32 in [0, 1] are quantised to uint8."""
    data = volume.read(roi)
    if np.issubdtype(data.dtype, np.floating):
        return quantise(data[:3])
    return data


def fragments_grid(run: Run) -> BlockGrid:
    """The user's blocks, each with one voxel more on the successor side."""
    return segment_grid(run, (1, 1, 1))


def check_affinities(run: Run) -> None:
    """Refuse affinities that the kernels cannot take.

    Raises:
        ShapeError: fewer than three channels, or another shape than the image.
        DtypeError: other than uint8, uint16 or float32.
    """
    check_indexable(run.shape)
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


def slot(grid: BlockGrid, block: Block) -> Roi:
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
    affinities = read_affinities(run.volume("affinities"), block.read)
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
    run.volume("local_fragments").write(slot(fragments_grid(run), block), found.positions)
    write_record(run.block_file("block_records", block.index), found)
    foreground = int(found.voxels.sum())
    return BlockResult(
        stats={
            "foreground": foreground,
            "foreground_share": round(foreground / block.write.size, 6),
            "fragments": len(found.ids),
        }
    )


FRAGMENTS = Stage(
    name="fragments",
    version=2,
    reads=("affinities",),
    optional=("tuning",),
    writes=("local_fragments", "block_records"),
    parameters=lambda run: untuned(run, "low", "high"),
    grid=fragments_grid,
    create=_create_fragments,
    check=check_affinities,
    process=_fragments,
)
