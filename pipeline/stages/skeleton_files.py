"""Skeleton files: precomputed skeletons and SWC, bucket by bucket of segments."""

from __future__ import annotations

from typing import Any

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_opened import open_loops
from pipeline.geometry import Block
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.run import Run
from pipeline.stages.skeleton_buckets import bucket_count, bucket_grid
from pipeline.stages.skeleton_join import (
    Joined,
    joined_buckets,
    joined_in,
    joining_stage,
    stage_sums,
)
from pipeline.storage.precomputed_skeletons import (
    CROSS_SECTION,
    RADIUS,
    create_skeletons,
    sharding_of,
    write_skeleton_files,
    write_skeleton_shard,
)
from pipeline.storage.swc import write_swc

# From so many segments on a file each is a burden for file systems and servers.
_MANY = 10_000


def sharded(run: Run) -> bool:
    """Whether precomputed skeletons lie in shards."""
    asked = run.config.proofread.sharded
    if asked == "auto":
        return stage_sums(run, joining_stage(run)).get("skeletons", 0) >= _MANY
    return asked == "yes"


def _create(run: Run) -> None:
    attributes = [RADIUS]
    if run.config.skeletonize.cross_sections:
        attributes.append(CROSS_SECTION)
    layout = sharding_of(bucket_count(run)) if sharded(run) else None
    create_skeletons(run.path("skeleton_layer"), attributes, layout)
    run.path("swc").mkdir()


def _files(block: Block, run: Run) -> BlockResult:
    opened, count = 0, 0
    held = Joined({}, {} if run.config.skeletonize.cross_sections else None)
    layer, size, in_shards = run.path("skeleton_layer"), run.voxel_size_nm, sharded(run)
    for joined in joined_in(run, block.index):
        count += len(joined.skeletons)
        if run.config.proofread.swc:
            opened += sum(_write_swc(s, segment, run) for segment, s in joined.skeletons.items())
        if in_shards:
            held.skeletons.update(joined.skeletons)
            if held.areas_nm2 is not None:
                held.areas_nm2.update(joined.areas_nm2 or {})
        else:
            write_skeleton_files(layer, joined.skeletons, size, joined.areas_nm2)
    if in_shards:
        write_skeleton_shard(layer, block.index, held.skeletons, size, held.areas_nm2)
    return BlockResult(stats={"skeletons": count, "loops_opened": opened})


def _write_swc(skeleton: Skeleton, segment: int, run: Run) -> int:
    """Write a segment's SWC; gives how many loops had to be opened for it."""
    forest, opened = open_loops(skeleton, run.voxel_size_nm)
    unit = run.config.proofread.swc_unit
    header = [f"segment {segment}", f"unit {unit}"]
    if opened:
        header.append(f"loops opened: {opened}")
    write_swc(
        run.path("swc") / f"{segment}.swc",
        forest,
        voxel_size_nm=run.voxel_size_nm,
        unit=unit,
        header=header,
    )
    return opened


def _parameters(run: Run) -> dict[str, Any]:
    return {
        "voxel_size_nm": run.voxel_size_nm,
        "cross_sections": run.config.skeletonize.cross_sections,
        **run.config.proofread.model_dump(include={"swc", "swc_unit", "sharded"}),
    }


SKELETON_FILES = Stage(
    name="skeleton_files",
    version=2,
    reads=("skeletons", "skeleton_rows", "precomputed"),
    writes=("skeleton_layer", "swc"),
    within=("precomputed",),
    parameters=_parameters,
    grid=bucket_grid,
    create=_create,
    wanted=lambda block, run: block.index in joined_buckets(run),
    process=_files,
)
