"""Skeletons in numbers and words: the section of the report and the table of the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.report.facts import SkeletonFacts, SkeletonRow
from pipeline.report.quantities import decimal
from pipeline.stages.renamed_segments import segment_lookup
from pipeline.stages.run import Run
from pipeline.stages.skeleton_files import SKELETON_FILES
from pipeline.stages.skeleton_fuse import FRAGMENT_JOIN, FUSE
from pipeline.stages.skeleton_join import (
    JOIN,
    joined_buckets,
    joining_stage,
    longest_segments,
    skeleton_rows,
    stage_sums,
)
from pipeline.stages.skeletonize import AREAS, SKELETONIZE, of_fragments
from pipeline.storage.source import source_offset
from pipeline.storage.tables import Columns, part_numbers, read_part

SHOWN = 20
_TOTALS = ("branch_points", "tips", "components", "loops")


def skeleton_facts(run: Run) -> SkeletonFacts:
    """The skeletons of a run whose pieces are joined."""
    rows = skeleton_rows(run)
    by_fragments = of_fragments(run)
    traced = stage_sums(run, SKELETONIZE.name)
    fused = stage_sums(run, FUSE.name) if by_fragments else None
    return SkeletonFacts(
        cable_nm=rows["cable_nm"],
        **{name: int(rows[name].sum()) for name in _TOTALS},
        longest=_longest(run, rows),
        traced=traced,
        joined=stage_sums(run, FRAGMENT_JOIN.name if by_fragments else JOIN.name),
        fused=fused,
        warnings=list(_warnings(run, traced, fused or {})),
        notes=list(_notes(run, traced)),
    )


def _longest(run: Run, rows: Columns) -> list[SkeletonRow]:
    places = np.searchsorted(rows["segment"], np.array(longest_segments(run, SHOWN), np.uint64))
    return [_row(rows, place) for place in places.tolist()]


def _row(rows: Columns, place: int) -> SkeletonRow:
    return SkeletonRow(
        id=int(rows["segment"][place]),
        cable_nm=float(rows["cable_nm"][place]),
        largest_radius_nm=float(rows["largest_radius_nm"][place]),
        **{name: int(rows[name][place]) for name in ("nodes", *_TOTALS)},
    )


def _warnings(run: Run, traced: Mapping[str, float], fused: Mapping[str, float]) -> Iterator[str]:
    if not len(skeleton_rows(run)["segment"]):
        yield "No segment has a skeleton: is it the right segmentation? It is empty, or all went."
    if limited := traced.get("limited"):
        share = 100 * run.config.skeletonize.method.max_fill
        yield (
            f"{_counted(limited, 'component fills', 'components fill')} more than {share:.3g} % of "
            "the block (skeletonize.method.max_fill), traced to the faces of the block only: an "
            "unsegmented soma or a merge? If neurites are as thick, choose larger blocks."
        )
    if kept := _kept_ids(run):
        yield (
            f"{_counted(kept, 'segment is a fragment', 'segments are fragments')} that the lookup "
            f"{run.config.skeletonize.lookup} lacks and that kept its id "
            "(skeletonize.lookup_missing: keep). That is as it should be of a lookup which lists "
            "only fragments that change their id."
        )
    if untied := fused.get("without_skeleton"):
        yield (
            f"{_counted(untied, 'contact was', 'contacts were')} not tied, because a fragment "
            "there has no skeleton: segments may be in more pieces than their voxels."
        )
    if unknown := _unknown_areas(run):
        yield (
            f"{_counted(unknown, 'node has', 'nodes have')} no cross-section: the plane across it "
            "reaches further than skeletonize.section_context, or leaves the volume."
        )


def _notes(run: Run, traced: Mapping[str, float]) -> Iterator[str]:
    begin = source_offset(run.source)
    if any(begin):
        yield (
            f"Skeletons and the exported segments count from the first voxel; the segmentation "
            f"itself begins at voxel {begin} (z, y, x) of its format."
        )
    if skipped := traced.get("skipped"):
        least = run.config.skeletonize.method.min_voxels
        yield (
            f"{_counted(skipped, 'component has', 'components have')} less than {least:,} voxels "
            "(min_voxels) and no skeleton."
        )
    if opened := stage_sums(run, SKELETON_FILES.name).get("loops_opened"):
        yield (
            f"{_counted(opened, 'loop is', 'loops are')} opened in the SWC files, which hold "
            "trees; the precomputed skeletons keep them."
        )


def _counted(count: float, one: str, many: str) -> str:
    return f"{decimal(int(count))} {one if count == 1 else many}"


def _kept_ids(run: Run) -> int:
    """How many segments are fragments that the lookup does not name."""
    lookup = segment_lookup(run)
    if lookup is None:
        return 0
    named = np.concatenate(lookup)
    return int((~np.isin(skeleton_rows(run)["segment"], named)).sum())


def _unknown_areas(run: Run) -> int:
    """How many nodes have no cross-section, where these were asked for."""
    if not run.config.skeletonize.cross_sections:
        return 0
    return sum(int(np.isnan(areas).sum()) for areas in _areas(run))


def _areas(run: Run) -> Iterator[Any]:
    for bucket in joined_buckets(run):
        path = run.block_file("skeletons", bucket)
        for number in part_numbers(path):
            yield read_part(path, number, (AREAS,))[AREAS]


def has_skeletons(run: Run, complete: set[str]) -> bool:
    """Whether the stage that makes the skeletons of segments is among those complete."""
    return joining_stage(run) in complete
