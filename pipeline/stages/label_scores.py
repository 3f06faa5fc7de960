"""Scores against dense labels: VOI, ARI and adapted Rand error, beside another segmentation.

1. `label_overlap` reads segments and labels, each box once, and counts what they share.
2. `reference_overlap` does the same for the segmentation to compare with, if one is named.
3. `label_scores` scores both tables, into label_scores.json.
"""

from __future__ import annotations

from typing import Any

from pipeline.arrays.contingency import (
    VoxelScores,
    describe_voxel_conventions,
    score_contingency,
)
from pipeline.geometry import Block
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.dense_labels import check_label_volume, check_truth_labels
from pipeline.stages.dense_truth import (
    holds_scored,
    read_overlap,
    scored_labels_parameters,
    write_overlap,
)
from pipeline.stages.evaluate import check_segments
from pipeline.stages.relabel import output_grid
from pipeline.stages.run import Run
from pipeline.storage.atomic import write_json


def _check(run: Run) -> None:
    check_segments(run)
    check_truth_labels(run, run.shape, "the volume")


LABEL_OVERLAP = Stage(
    name="label_overlap",
    version=1,
    reads=("segments", "source_labels"),
    writes=("label_overlap",),
    parameters=scored_labels_parameters,
    grid=output_grid,
    create=lambda run: run.path("label_overlap").mkdir(parents=True),
    check=_check,
    wanted=holds_scored,
    process=lambda block, run: write_overlap("label_overlap", block, run.path("segments"), run),
)


def _reference(block: Block, run: Run) -> BlockResult:
    return write_overlap("reference_overlap", block, run.path("source_reference"), run)


REFERENCE_OVERLAP = Stage(
    name="reference_overlap",
    version=1,
    reads=("source_reference", "source_labels"),
    writes=("reference_overlap",),
    parameters=scored_labels_parameters,
    grid=output_grid,
    create=lambda run: run.path("reference_overlap").mkdir(parents=True),
    check=lambda run: check_label_volume(run.path("source_reference"), run.shape, "the volume"),
    wanted=holds_scored,
    process=_reference,
)


def _scores(artifact: str, run: Run) -> VoxelScores | None:
    """The scores of a table; None if no voxel of the region has a label."""
    table = read_overlap(artifact, run)
    return score_contingency(table) if len(table) else None


def _label_scores(_block: Block, run: Run) -> BlockResult:
    ours = _scores("label_overlap", run)
    result: dict[str, Any] = {"segments": ours}
    if run.foreign("source_reference") is not None:
        result["reference"] = _scores("reference_overlap", run)
    # Labels may be there to learn from alone: that nothing is scored is no failure, but is said.
    result |= {"region": str(run.score_roi), "conventions": describe_voxel_conventions()}
    write_json(run.path("label_scores"), result)
    names = ("voi", "voi_split", "voi_merge", "ari")
    return BlockResult(stats={name: ours[name] for name in names} if ours else {})


LABEL_SCORES = Stage(
    name="label_scores",
    version=1,
    reads=("label_overlap",),
    optional=("reference_overlap",),
    writes=("label_scores",),
    parameters=scored_labels_parameters,
    grid=one_block,
    create=lambda run: write_json(run.path("label_scores"), {}),
    process=_label_scores,
)
