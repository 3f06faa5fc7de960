"""Relabel: fragments and segments on the output's own grid, through the lookups of each block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.relabel import apply_lookup, name_positions
from pipeline.errors import DataError
from pipeline.geometry import Block, BlockGrid, Roi, triple
from pipeline.stages.agglomerate import read_lookup
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.block_tables import holding_blocks, read_counts, read_map
from pipeline.stages.collect import without_small
from pipeline.stages.fragments import fragments_grid, slot
from pipeline.stages.run import Run
from pipeline.stages.segmentation import segment_grid
from pipeline.storage.volume import Volume

# Output is written in boxes of about this extent, whatever the user's block.
_OUTPUT_EXTENT = 256


def output_grid(run: Run) -> BlockGrid:
    """Boxes of whole output chunks, the same for every blocking of the work."""
    block = triple(tuple(c * max(1, _OUTPUT_EXTENT // c) for c in run.config.chunk))
    grid = BlockGrid.over(run.shape, block)
    grid.require_alignment(run.config.chunk)
    return grid


def _create_relabel(run: Run) -> None:
    size = run.config.input.voxel_size_nm or run.source.voxel_size_nm
    for name in ("fragments", "segments"):
        Volume.create(
            run.path(name),
            run.shape,
            np.uint64,
            chunks=run.config.chunk,
            voxel_size_nm=size,
            compressor="zstd-plain",
        )


def _relabel(block: Block, run: Run) -> BlockResult:
    held = [b for b in segment_grid(run).overlapping(block.write) if _holds(run, b)]
    if not held:
        return BlockResult("empty")
    fragments = np.zeros(block.write.shape, np.uint64)
    segments = np.zeros(block.write.shape, np.uint64)
    in_fragments, in_segments = 0, 0
    for source in held:
        part = source.write.intersect(block.write)
        slices = part.relative_to(block.write).slices
        positions = _read_positions(run, source, part)
        names = _names(run, source)
        in_fragments += name_positions(positions, names[0], fragments[slices])
        in_segments += name_positions(positions, names[1], segments[slices])
    if not in_fragments:
        return BlockResult("empty")
    run.volume("fragments").write(block.write, fragments)
    run.volume("segments").write(block.write, segments)
    return BlockResult(stats={"foreground": in_segments})


def _holds(run: Run, block: Block) -> bool:
    return block.index in holding_blocks(run, "fragments")


def _read_positions(run: Run, source: Block, part: Roi) -> NDArray[np.uint32]:
    """The positions of local labels in `part` of a block."""
    local = run.volume("local_fragments")
    stored = part.relative_to(source.write).shift(slot(fragments_grid(run), source).offset)
    missing = local.missing_chunks(stored)
    if missing:
        raise DataError(
            f"{local.path}: block {source.index} was computed, but its chunk {missing[0]} is gone"
        )
    return local.read(stored)


def _names(run: Run, source: Block) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Fragment of the volume, and segment of the first threshold, for each local label."""
    local, _ = read_counts(run.block_file("block_records", source.index))
    fragments = apply_lookup(local, *read_map(run.block_file("stitch", source.index)))
    lookup = read_lookup(run.block_file("block_lookups", source.index), 0)
    return fragments, without_small(run, 0, apply_lookup(fragments, *lookup))


RELABEL = Stage(
    name="relabel",
    version=2,
    reads=("local_fragments", "block_records", "stitch", "block_lookups", "slab_sizes"),
    optional=("tuning",),
    writes=("fragments", "segments"),
    parameters=lambda run: {
        "min_voxels": run.config.segment.min_voxels,
        "chunk": run.config.chunk,
        "voxel_size_nm": run.config.input.voxel_size_nm or run.source.voxel_size_nm,
    },
    grid=output_grid,
    create=_create_relabel,
    process=_relabel,
)
