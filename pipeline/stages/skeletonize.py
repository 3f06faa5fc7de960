"""Skeletonize: centre lines of each block, then one skeleton per segment.

1. `skeletonize` traces a block with some voxels of context, so that pieces meet on shared seams.
2. `skeleton_index` gathers which block holds pieces of which bucket of segments.
3. `join` (in `skeleton_join`) puts the pieces of each segment together, bucket by bucket.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_settings import SkeletonSettings
from pipeline.arrays.skeletons import (
    SkeletonPieces,
    check_settings,
    context_vox,
    smallest_block,
    trace_block,
)
from pipeline.errors import DtypeError, ShapeError
from pipeline.geometry import Block, BlockGrid, Roi
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.renamed_segments import (
    check_segment_lookup,
    read_segments,
    renaming_of_segments,
)
from pipeline.stages.run import Run
from pipeline.stages.skeleton_buckets import (
    CONTACT,
    bucket_count,
    index_stage,
    write_by_bucket,
)
from pipeline.storage.source import open_source, read_labels
from pipeline.storage.tables import Columns

AREAS = "areas_nm2"
"""The column of cross-sections, square nanometres."""


def _grid(run: Run) -> BlockGrid:
    whole = Roi((0, 0, 0), run.shape)
    return BlockGrid(whole, run.config.skeletonize.block, (0, 0, 0), (1, 1, 1))


def _check(run: Run) -> None:
    check_settings(run.voxel_size_nm, run.config.skeletonize.method)
    for name, what in (("segments", "a segmentation"), ("source_soma_mask", "a mask of somata")):
        path = run.foreign(name)
        if path is None:
            continue
        found = open_source(path)
        if found.dtype.kind not in "iub" or (name == "segments" and found.dtype.kind == "b"):
            raise DtypeError(
                f"{path}: {what} holds integers, got {found.dtype}; "
                f"save it as an unsigned integer type"
            )
        if found.shape != run.shape:
            raise ShapeError(f"{path}: {what} of {found.shape}, but the volume has {run.shape}")
    check_segment_lookup(run)


def _skeletonize(block: Block, run: Run) -> BlockResult:
    measured = run.config.skeletonize.cross_sections
    context = run.config.skeletonize.section_context if measured else 0
    seen = _seen(block, run)
    section = block.read.grow((context,) * 3).intersect(run.roi)
    around = _hull(seen, section)
    traced = of_fragments(run)
    surrounded = read_labels(run.path("segments"), around) if traced else read_segments(run, around)
    if not surrounded.any():
        return BlockResult("empty")
    found = trace_block(
        surrounded[seen.relative_to(around).slices],
        origin=seen.offset,
        voxel_size_nm=run.voxel_size_nm,
        settings=_method(run),
        soma_mask=_soma(seen, run),
        block=block.write.relative_to(seen) if _has_context(run) else None,
    )
    counts = {name: value for name, value in asdict(found.report).items() if value}
    columns = found.pieces.columns()
    if measured:
        view = surrounded[section.relative_to(around).slices]
        columns[AREAS] = _areas(found.pieces, view, section, run)
    if traced:
        columns |= _contacts(surrounded[block.read.relative_to(around).slices], block)
    # Of two fragments that touch here, both may be traced by the neighbours.
    if not len(columns["segment"]) and not len(columns.get(CONTACT + "segment", ())):
        return BlockResult("empty", stats=counts)
    write_by_bucket(run.block_file("skeleton_pieces", block.index), columns, run)
    return BlockResult(stats={"nodes": len(found.pieces.segment), **counts})


def _has_context(run: Run) -> bool:
    """Whether blocks divide objects with their neighbours: those that are large enough."""
    block = run.config.skeletonize.block
    return all(b >= min(smallest_block(), n) for b, n in zip(block, run.shape, strict=True))


def _seen(block: Block, run: Run) -> Roi:
    """What is read to trace a block."""
    if not _has_context(run):
        return block.read
    return block.write.grow(context_vox(run.voxel_size_nm)).intersect(run.roi)


def _hull(one: Roi, other: Roi) -> Roi:
    """The least box that holds both."""
    begin = np.minimum(one.offset, other.offset).tolist()
    end = np.maximum(one.end, other.end).tolist()
    return Roi.between((begin[0], begin[1], begin[2]), (end[0], end[1], end[2]))


def _areas(
    pieces: SkeletonPieces, labels: NDArray[np.uint64], roi: Roi, run: Run
) -> NDArray[np.float32]:
    """(N,) the area of the cross-section at each node; of nodes outside the box, unknown."""
    from pipeline.arrays.cross_sections import cross_sections, tangents

    size = run.voxel_size_nm
    directions = tangents(Skeleton("", pieces.nodes, pieces.edges), size)
    beyond = (pieces.nodes < roi.offset) | (pieces.nodes >= roi.end)
    inside = ~np.asarray(beyond).any(axis=1)
    areas = np.full(len(pieces.nodes), np.nan, np.float32)
    areas[inside] = cross_sections(
        labels,
        roi.offset,
        pieces.nodes[inside],
        directions[inside],
        pieces.segment[inside],
        voxel_size_nm=size,
    )[0]
    return areas


def of_fragments(run: Run) -> bool:
    """Whether fragments are traced, to be fused by a lookup."""
    return run.config.skeletonize.level == "fragments"


def _method(run: Run) -> SkeletonSettings:
    """What is asked for; of fragments even the smallest is traced: it may tie two others."""
    method = run.config.skeletonize.method
    return method.model_copy(update={"min_voxels": 0}) if of_fragments(run) else method


def _contacts(labels: NDArray[np.uint64], block: Block) -> Columns:
    """Where fragments touch, as columns that go with the fragment of the smaller id."""
    from pipeline.arrays.skeleton_contacts import find_contacts

    found = find_contacts(labels, origin=block.read.offset, write_shape=block.write.shape)
    columns = {CONTACT + name: values for name, values in found.columns().items()}
    return columns | {CONTACT + "segment": found.a}


def _soma(roi: Roi, run: Run) -> NDArray[np.bool_] | None:
    path = run.foreign("source_soma_mask")
    return None if path is None else read_labels(path, roi) != 0


def skeleton_parameters(run: Run) -> dict[str, Any]:
    """What the pieces and the joined skeletons depend on."""
    fragments = of_fragments(run)
    return {
        "voxel_size_nm": run.voxel_size_nm,
        "buckets": bucket_count(run),
        "level": run.config.skeletonize.level,
        **_sections(run),
        **({} if fragments else renaming_of_segments(run)),
        **run.config.skeletonize.method.model_dump(),
    }


def _sections(run: Run) -> dict[str, Any]:
    settings = run.config.skeletonize
    return {"section_context": settings.section_context} if settings.cross_sections else {}


def _lookup(run: Run) -> tuple[str, ...]:
    named = run.foreign("segment_lookup") is not None and not of_fragments(run)
    return ("segment_lookup",) if named else ()


SKELETONIZE = Stage(
    name="skeletonize",
    version=6,
    reads=("segments",),
    optional=("source_soma_mask",),
    more=_lookup,
    writes=("skeleton_pieces",),
    parameters=skeleton_parameters,
    grid=_grid,
    create=lambda run: run.path("skeleton_pieces").mkdir(parents=True),
    check=_check,
    process=_skeletonize,
)


SKELETON_INDEX = index_stage("skeleton_index", "skeleton_pieces", "skeletonize")
