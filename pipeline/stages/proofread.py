"""Proofread: what a person needs to look at the segments.

1. `export` writes the segmentation as precomputed chunks with coarser levels, blockwise.
2. `proofread` adds the skeletons (precomputed and SWC), a table of segments, and the state that
   opens all of it in Neuroglancer.
"""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.pyramid import level_factors
from pipeline.arrays.skeleton import Skeleton
from pipeline.geometry import Block, BlockGrid, Roi, Triple, triple
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.run import Run
from pipeline.stages.skeletonize import read_joined
from pipeline.storage.atomic import write_text
from pipeline.storage.precomputed_skeletons import write_segment_properties, write_skeletons
from pipeline.storage.source import read_labels
from pipeline.storage.swc import write_swc
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

    labels = read_labels(run.path("segments"), block.write)
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
    writes=("precomputed",),
    parameters=lambda run: {
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

    skeletons, size = read_joined(run), run.voxel_size_nm
    write_skeletons(run.path("skeleton_layer"), skeletons, size)
    segments = np.array(list(skeletons), np.uint64)
    table = segment_table(skeletons, run)
    properties = {
        "cable_um": ("cable, micrometres", table["cable_nm"] / 1000),
        "branch_points": ("branch points", table["branch_points"]),
        "tips": ("tips", table["tips"]),
        "components": ("separate pieces", table["components"]),
    }
    write_segment_properties(run.path("segment_properties"), segments, properties)
    link(run.path("precomputed"), skeletons="skeletons", properties="segment_properties")
    for segment, skeleton in skeletons.items():
        write_swc(
            run.path("swc") / f"{segment}.swc",
            skeleton,
            voxel_size_nm=size,
            unit=run.config.proofread.swc_unit,
            header=(f"segment {segment}", f"unit {run.config.proofread.swc_unit}"),
        )
    write_text(run.path("segment_table"), _as_csv(segments, table))
    write_viewer_state(run, skeletons)
    return BlockResult(stats={"skeletons": len(skeletons)})


def segment_table(skeletons: dict[int, Skeleton], run: Run) -> dict[str, NDArray[Any]]:
    """Per segment: nodes, cable, branch points, tips, components and its box of voxels."""
    rows = [_row(skeleton, run) for skeleton in skeletons.values()]
    names = ("nodes", "cable_nm", "branch_points", "tips", "components")
    columns = {name: np.array([row[name] for row in rows]) for name in names}
    for side in ("begin", "end"):
        corners = np.array([row[side] for row in rows]).reshape(-1, 3)
        columns |= {f"{side}_{'zyx'[axis]}": corners[:, axis] for axis in range(3)}
    return columns


def _row(skeleton: Skeleton, run: Run) -> dict[str, Any]:
    degree = np.bincount(skeleton.edges.reshape(-1), minlength=len(skeleton.nodes))
    voxels = np.floor(skeleton.nodes).astype(np.int64)
    return {
        "nodes": len(skeleton.nodes),
        "cable_nm": float(skeleton.edge_lengths_nm(run.voxel_size_nm).sum()),
        "branch_points": int((degree > 2).sum()),
        "tips": int((degree == 1).sum()),
        # A forest has as many trees as nodes beyond its edges.
        "components": len(skeleton.nodes) - len(skeleton.edges),
        "begin": voxels.min(axis=0),
        "end": voxels.max(axis=0) + 1,
    }


def _as_csv(segments: NDArray[np.uint64], table: dict[str, NDArray[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["segment", *table])
    for index, segment in enumerate(segments):
        writer.writerow([segment, *(column[index] for column in table.values())])
    return text.getvalue()


def _create_proofread(run: Run) -> None:
    for name in ("skeleton_layer", "segment_properties", "truth_layer", "swc"):
        run.path(name).mkdir(parents=True)
    for name in ("segment_table", "viewer_state"):
        write_text(run.path(name), "")


PROOFREAD = Stage(
    name="proofread",
    version=2,
    reads=("skeletons", "precomputed"),
    optional=("image", "statistics", "source_skeletons", "sites"),
    writes=(
        "skeleton_layer",
        "segment_properties",
        "truth_layer",
        "swc",
        "segment_table",
        "viewer_state",
    ),
    within=("precomputed",),
    parameters=lambda run: {
        "voxel_size_nm": run.voxel_size_nm,
        "swc_unit": run.config.proofread.swc_unit,
        "swc": run.config.input.swc.model_dump(),
    },
    grid=one_block,
    create=_create_proofread,
    process=_proofread,
)
