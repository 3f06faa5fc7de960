"""Proofread: what a person needs to look at the segments.

1. `export` writes the segmentation as precomputed chunks with coarser levels, blockwise.
2. `skeleton_files` adds the skeletons, precomputed and SWC, by buckets of segments.
3. `proofread` adds a table of segments, and the state that opens all of it in Neuroglancer.
"""

from __future__ import annotations

from pipeline.arrays.pyramid import level_factors
from pipeline.geometry import Block, BlockGrid, Roi, Triple, triple
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.renamed_segments import read_segments, renaming_of_segments
from pipeline.stages.run import Run
from pipeline.stages.skeleton_join import joined_buckets, rows_file, skeleton_rows
from pipeline.storage.atomic import write_text
from pipeline.storage.precomputed_skeletons import write_segment_properties
from pipeline.storage.skeleton_table import write_segment_table
from pipeline.storage.volume import level_shape


def _factors(run: Run) -> list[Triple]:
    return level_factors(run.config.proofread.levels, run.voxel_size_nm, run.shape)


def _export_grid(run: Run) -> BlockGrid:
    last = (_factors(run) or [(1, 1, 1)])[-1]
    block = triple(tuple(c * f for c, f in zip(run.config.chunk, last, strict=True)))
    return BlockGrid.over(run.shape, block)


# cloud-volume and neuroglancer take seconds to import: only the stages here pay, where they run.


def _create_export(run: Run) -> None:
    from pipeline.storage.precomputed import create_segmentation

    create_segmentation(
        run.path("precomputed"),
        run.shape,
        run.voxel_size_nm,
        run.config.chunk,
        level_factors=_factors(run),
    )


def _export(block: Block, run: Run) -> BlockResult:
    from pipeline.storage.precomputed import downsample_region, write_region

    labels = read_segments(run, block.write)
    if not labels.any():
        return BlockResult("empty")
    target = run.path("precomputed")
    write_region(target, block.write, labels)
    for level, factor in enumerate(_factors(run), start=1):
        first = triple(tuple(o // f for o, f in zip(block.write.offset, factor, strict=True)))
        coarse = Roi(first, level_shape(block.write.shape, factor))
        downsample_region(target, coarse, level)
    return BlockResult()


EXPORT = Stage(
    name="export",
    version=1,
    reads=("segments",),
    optional=("segment_lookup",),
    writes=("precomputed",),
    parameters=lambda run: {
        **renaming_of_segments(run),
        "levels": run.config.proofread.levels,
        "chunk": run.config.chunk,
        "voxel_size_nm": run.voxel_size_nm,
    },
    grid=_export_grid,
    create=_create_export,
    process=_export,
)


def _proofread(_block: Block, run: Run) -> BlockResult:
    from pipeline.stages.viewing import write_viewer_state
    from pipeline.storage.precomputed import link

    parts = [rows_file(run, bucket) for bucket in joined_buckets(run)]
    count = write_segment_table(run.path("segment_table"), run.path("segment_table_parquet"), parts)
    table = skeleton_rows(run)
    properties = {
        "cable_um": ("cable, micrometres", table["cable_nm"] / 1000),
        "branch_points": ("branch points", table["branch_points"]),
        "tips": ("tips", table["tips"]),
        "components": ("separate pieces", table["components"]),
        "loops": ("loops", table["loops"]),
    }
    write_segment_properties(run.path("segment_properties"), table["segment"], properties)
    link(run.path("precomputed"), skeletons="skeletons", properties="segment_properties")
    write_viewer_state(run)
    return BlockResult(stats={"skeletons": count})


def _create_proofread(run: Run) -> None:
    for name in ("segment_properties", "truth_layer"):
        run.path(name).mkdir(parents=True)
    for name in ("segment_table", "viewer_state"):
        write_text(run.path(name), "")


PROOFREAD = Stage(
    name="proofread",
    version=3,
    reads=("skeletons", "skeleton_rows", "skeleton_layer", "precomputed"),
    optional=("image", "statistics", "source_skeletons", "sites"),
    writes=(
        "segment_properties",
        "truth_layer",
        "segment_table",
        "segment_table_parquet",
        "viewer_state",
    ),
    within=("precomputed",),
    parameters=lambda run: {
        "voxel_size_nm": run.voxel_size_nm,
        "swc": run.config.input.swc.model_dump(),
    },
    grid=one_block,
    create=_create_proofread,
    process=_proofread,
)
