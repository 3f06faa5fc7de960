"""Dense labels as truth: the tables of the voxels they share with other labels.

A table is kept for each block. Tables of disjoint boxes add up, so the blocks do not show. Values
of the labels have the roles that they have in training: ignored ones are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.contingency import (
    Contingency,
    count_background,
    count_contingency,
    sum_contingency,
)
from pipeline.arrays.labels import IGNORE, SparseMap
from pipeline.arrays.relabel import add_counts
from pipeline.geometry import Block, Roi
from pipeline.stages.base import BlockResult
from pipeline.stages.block_tables import holding_blocks
from pipeline.stages.dense_labels import any_instance, label_roles, read_roles
from pipeline.stages.run import Run
from pipeline.storage.source import read_labels
from pipeline.storage.tables import read_table, write_table

# Labels are looked through in slabs of about this size.
_SLAB_VOXELS = 2**24


def truth_labels_parameters(run: Run, roi: Roi) -> dict[str, Any]:
    """The part of the configuration that decides which labelled voxels of a box count."""
    parameters: dict[str, Any] = {"region": roi.offset + roi.shape, **label_roles(run)}
    if run.config.targets.plane_components:
        parameters["plane_components"] = True
    return parameters


def scored_labels_parameters(run: Run) -> dict[str, Any]:
    """The same for the region to score."""
    return truth_labels_parameters(run, run.score_roi)


def holds_scored(block: Block, run: Run) -> bool:
    """Whether a block has voxels in the region to score."""
    return block.write.overlaps(run.score_roi)


def write_overlap(artifact: str, block: Block, labels: Path, run: Run) -> BlockResult:
    """Count what the labels at a path share with the truth in a block; nothing without truth."""
    roi = block.write.intersect(run.score_roi)
    truth = read_roles(run, roi)
    if not any_instance(truth):
        return BlockResult("empty")
    return _write_pairs(artifact, block, read_labels(labels, roi), truth, run)


def write_overlaps(
    artifact: str, background: str, block: Block, labels: Path, run: Run
) -> BlockResult:
    """The same, and what the labels are where the truth is background, as a second table."""
    roi = block.write.intersect(run.score_roi)
    truth = read_roles(run, roi)
    if (truth == IGNORE).all():
        return BlockResult("empty")
    found = read_labels(labels, roi)
    ids, voxels = count_background(found, truth)
    write_table(run.block_file(background, block.index), {"id": ids, "voxels": voxels})
    return _write_pairs(artifact, block, found, truth, run)


def _write_pairs(
    artifact: str, block: Block, labels: NDArray[np.uint64], truth: NDArray[np.uint64], run: Run
) -> BlockResult:
    table = count_contingency(labels, truth)
    write_table(run.block_file(artifact, block.index), vars(table))
    return BlockResult(stats={"pairs": len(table), "voxels": int(table.voxels.sum())})


def read_background(artifact: str, stage: str, run: Run) -> SparseMap:
    """The second table of `write_overlaps`, of all blocks of a stage; may be empty."""
    files = (run.block_file(artifact, index) for index in sorted(holding_blocks(run, stage)))
    tables = (read_table(file) for file in files)
    return add_counts((table["id"], table["voxels"]) for table in tables)


def read_overlap(artifact: str, run: Run) -> Contingency:
    """The table of all blocks of the stage that has the artifact's name; may be empty."""
    files = (run.block_file(artifact, index) for index in sorted(holding_blocks(run, artifact)))
    return sum_contingency(Contingency(**read_table(file)) for file in files)


def holds_truth(run: Run, roi: Roi) -> bool:
    """Whether any voxel of a box is labelled; looks no further than the first that is found."""
    planes = max(1, _SLAB_VOXELS // (roi.shape[1] * roi.shape[2]))
    for begin in range(0, roi.shape[0], planes):
        depth = min(planes, roi.shape[0] - begin)
        slab = Roi((roi.offset[0] + begin, *roi.offset[1:]), (depth, *roi.shape[1:]))
        if any_instance(read_roles(run, slab)):
            return True
    return False
