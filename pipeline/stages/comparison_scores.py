"""Scores of a segmentation of the region to score, for the comparison of losses.

Scores of the mask (`segmentation_metrics`) and of labels (`instance_metrics`) compare with the
dense labels, or with the tubes drawn from tracings; unknown voxels are left out. Where there are
tracings, the segments at their nodes give normalized ERL, splits and merges. In two dimensions
each plane is an image of its own, and scores are means over planes.

A *case* is what a paired test counts as one observation: a plane; in three dimensions a window for
mask and labels, and a neuron for the tracings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.labels import IGNORE, Labels
from pipeline.arrays.masks import label_components as number_components
from pipeline.arrays.metrics import score
from pipeline.arrays.segmentation_metrics import (
    BETTER,
    instance_metrics,
    segmentation_metrics,
)
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_nodes import labels_at_nodes
from pipeline.errors import InputError
from pipeline.geometry import BlockGrid, Roi
from pipeline.stages.dense_labels import any_instance
from pipeline.stages.run import Run
from pipeline.stages.targets import target_labels
from pipeline.stages.truth import scored_truth, scoring_options

Figures = dict[str, float | None]
Cases = dict[str, list[float | None]]

SKELETON_BETTER = {
    "nerl": "high",
    "edge_accuracy": "high",
    "splits": "low",
    "merges_total": "low",
}
FIGURES = {**SKELETON_BETTER, **BETTER}
"""Every figure of the comparison, and whether a low or a high one is good."""


@dataclass(frozen=True)
class Truth:
    """What segmentations of the region to score are compared with.

    Attributes:
        roi: the region.
        labels: (Z, Y, X) uint64: instances, 0, `IGNORE`.
        skeletons: tracings with nodes in the region; none if there are none.
        dimensions: 2 if each plane is an image of its own.
    """

    roi: Roi
    labels: Labels
    skeletons: tuple[Skeleton, ...]
    dimensions: int


@dataclass(frozen=True)
class Scored:
    """Scores of one segmentation: of the region, and by case, in a fixed order."""

    overall: Figures
    cases: Cases

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"overall": self.overall, "cases": self.cases}


def read_truth(run: Run) -> Truth:
    """The truth of the region to score.

    Raises:
        InputError: nothing in it is labelled.
    """
    roi, dimensions = run.score_roi, run.config.network.dimensions
    labels = target_labels(run, roi)
    if not any_instance(labels):
        raise nothing_to_score(run)
    if run.config.network.output == "foreground":
        # One label for all foreground: its components are what should be found.
        known = labels != IGNORE
        found = np.where(known, labels, 0)
        if len(np.unique(found[found != 0])) == 1:
            labels = np.where(known, label_components(found > 0, dimensions), np.uint64(IGNORE))
    traced = run.config.input.skeletons is not None
    return Truth(roi, labels, tuple(scored_truth(run)) if traced else (), dimensions)


def nothing_to_score(run: Run) -> InputError:
    """The error of a region without truth."""
    return InputError(
        f"nothing to compare losses by: no labelled voxel in the region to score {run.score_roi}; "
        "move regions.score"
    )


def label_components(mask: NDArray[np.bool_], dimensions: int) -> Labels:
    """Components of a (Z, Y, X) mask with diagonals, uint64 from 1; plane by plane in 2-D."""
    if dimensions == 3:
        return number_components(mask, 26)[0].astype(np.uint64)
    labels, count = np.zeros(mask.shape, np.uint64), 0
    for z, plane in enumerate(mask):
        found, pieces = number_components(plane, 8)
        labels[z] = np.where(found > 0, found.astype(np.uint64) + np.uint64(count), np.uint64(0))
        count += pieces
    return labels


def score_segments(segments: Labels, truth: Truth, run: Run) -> Scored:
    """Score (Z, Y, X) uint64 segments of the region."""
    window = run.config.comparison.window
    if truth.dimensions == 2:
        planes = zip(segments, truth.labels, strict=True)
        # A plane of which nothing is known says nothing: its Betti errors would count as 0.
        rows = [_score_box(p, t, window[1:]) for p, t in planes if (t != IGNORE).any()]
        return Scored(_means(rows), _by_name(rows))
    overall = _score_box(segments, truth.labels, window)
    windows = BlockGrid.over(truth.roi.shape, window)
    rows = [
        _score_box(segments[b.write.slices], truth.labels[b.write.slices], None)
        for b in windows
        if any_instance(truth.labels[b.write.slices])
    ]
    cases = _by_name(rows)
    if truth.skeletons:
        found = _score_tracings(segments, truth, run)
        overall |= found.overall
        cases |= found.cases
    return Scored(overall, cases)


def _score_box(segments: Labels, labels: Labels, patch: tuple[int, ...] | None) -> Figures:
    ignored = labels == IGNORE
    mask = segmentation_metrics(
        segments != 0, (labels != 0) & ~ignored, ignore=ignored, patch=patch
    )
    found = instance_metrics(segments, labels)
    return {name: value for name, value in {**mask, **found}.items() if name in BETTER}


def _score_tracings(segments: Labels, truth: Truth, run: Run) -> Scored:
    nodes = [labels_at_nodes(s, segments, truth.roi.offset)[0] for s in truth.skeletons]
    found = score(truth.skeletons, nodes, run.voxel_size_nm, scoring_options(run))
    rows = [_chosen(found.per_skeleton[s.name]) for s in truth.skeletons]
    return Scored(_chosen(found.overall), _by_name(rows))


def _chosen(row: Any) -> Figures:
    return {name: None if row[name] is None else float(row[name]) for name in SKELETON_BETTER}


def _means(rows: Iterable[Figures]) -> Figures:
    return {
        name: float(np.mean(known)) if (known := [v for v in values if v is not None]) else None
        for name, values in _by_name(rows).items()
    }


def _by_name(rows: Iterable[Figures]) -> Cases:
    listed = list(rows)
    return {name: [row[name] for row in listed] for name in (listed[0] if listed else ())}
