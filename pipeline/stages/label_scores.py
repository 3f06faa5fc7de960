"""Scores against dense labels: VOI, ARI and adapted Rand error, beside another segmentation.

1. `label_overlap` reads segments and labels, each box once, and counts what they share.
2. `reference_overlap` does the same for the segmentation to compare with, if one is named.
3. `label_scores` scores both tables, into label_scores.json.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.arrays.contingency import (
    VoxelScores,
    describe_voxel_conventions,
    score_contingency,
    score_foreground,
)
from pipeline.geometry import Block
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.dense_labels import check_label_volume, check_truth_labels
from pipeline.stages.dense_truth import (
    holds_scored,
    read_background,
    read_overlap,
    scored_labels_parameters,
    write_overlaps,
)
from pipeline.stages.evaluate import check_segments
from pipeline.stages.relabel import output_grid
from pipeline.stages.renaming import Renaming, check_renaming, renaming_parameters
from pipeline.stages.run import Run
from pipeline.storage.atomic import write_json


def _check(run: Run) -> None:
    check_segments(run)
    check_renaming(run)
    check_truth_labels(run, run.shape, "the volume")


def _create(*artifacts: str) -> Callable[[Run], None]:
    def create(run: Run) -> None:
        for name in artifacts:
            run.path(name).mkdir(parents=True)

    return create


def _overlap(block: Block, run: Run) -> BlockResult:
    return write_overlaps("label_overlap", "label_background", block, run.path("segments"), run)


LABEL_OVERLAP = Stage(
    name="label_overlap",
    version=2,
    reads=("segments", "source_labels"),
    writes=("label_overlap", "label_background"),
    parameters=scored_labels_parameters,
    grid=output_grid,
    create=_create("label_overlap", "label_background"),
    check=_check,
    wanted=holds_scored,
    process=_overlap,
)


def _reference(block: Block, run: Run) -> BlockResult:
    path = run.path("source_reference")
    return write_overlaps("reference_overlap", "reference_background", block, path, run)


REFERENCE_OVERLAP = Stage(
    name="reference_overlap",
    version=2,
    reads=("source_reference", "source_labels"),
    writes=("reference_overlap", "reference_background"),
    parameters=scored_labels_parameters,
    grid=output_grid,
    create=_create("reference_overlap", "reference_background"),
    check=lambda run: check_label_volume(run.path("source_reference"), run.shape, "the volume"),
    wanted=holds_scored,
    process=_reference,
)


def _scores(what: str, run: Run, renaming: Renaming | None = None) -> VoxelScores | None:
    """The scores of a segmentation; None if no voxel of the region has a label."""
    table = read_overlap(f"{what}_overlap", run)
    if not len(table):
        return None
    ids, voxels = read_background(f"{what}_background", f"{what}_overlap", run)
    if renaming is not None:
        table, ids = renaming.rename_table(table), renaming.apply(ids)
    return {**score_contingency(table), **score_foreground(table, (ids, voxels))}


def _label_scores(_block: Block, run: Run) -> BlockResult:
    ours = _scores("label", run, Renaming.of(run))
    result: dict[str, Any] = {"segments": ours}
    if run.foreign("source_reference") is not None:
        result["reference"] = _scores("reference", run)
    # Labels may be there to learn from alone: that nothing is scored is no failure, but is said.
    result |= {"region": str(run.score_roi), "conventions": describe_voxel_conventions()}
    write_json(run.path("label_scores"), result)
    names = ("voi", "voi_split", "voi_merge", "ari")
    return BlockResult(stats={name: ours[name] for name in names} if ours else {})


LABEL_SCORES = Stage(
    name="label_scores",
    version=2,
    reads=("label_overlap", "label_background"),
    optional=("reference_overlap", "reference_background", "source_lookup", "source_excluded"),
    writes=("label_scores",),
    parameters=lambda run: {**scored_labels_parameters(run), **renaming_parameters(run)},
    grid=one_block,
    create=lambda run: write_json(run.path("label_scores"), {}),
    process=_label_scores,
)
