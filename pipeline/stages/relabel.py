"""Relabel: fragments and segments on the output's own grid, through the lookups of each block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.relabel import apply_lookup, name_positions
from pipeline.geometry import Block, BlockGrid, triple
from pipeline.stages.agglomerate import read_lookup
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.collect import without_small
from pipeline.stages.fragments import fragment_names, held_blocks, read_positions
from pipeline.stages.run import Run
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
    held = held_blocks(run, block.write)
    if not held:
        return BlockResult("empty")
    parts = []
    for source in held:
        part = source.write.intersect(block.write)
        positions = read_positions(run, source, part)
        if positions.any():
            parts.append((part.relative_to(block.write).slices, positions, _names(run, source)))
    if not parts:
        return BlockResult("empty")
    labels = np.zeros(block.write.shape, np.uint64)
    foreground = 0
    # One array for both: every voxel of a segment is one of a fragment, so none is left over.
    for number, artifact in enumerate(("fragments", "segments")):
        named = (name_positions(p, names[number], labels[slices]) for slices, p, names in parts)
        foreground = sum(named)
        run.volume(artifact).write(block.write, labels)
    return BlockResult(stats={"foreground": foreground})


def _names(run: Run, source: Block) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Fragment of the volume, and segment of the first threshold, for each local label."""
    fragments = fragment_names(run, source)
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
