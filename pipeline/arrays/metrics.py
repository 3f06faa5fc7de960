"""Splits, merges, omissions and expected run lengths of a segmentation, judged by skeletons.

One pass per skeleton, one over labels:

1. root each skeleton (`skeleton_forest`), repair the labels at its nodes;
2. gather the runs of equal label on each (`skeleton_runs`);
3. find the labels that are on two or more skeletons;
4. class every edge: omit, split, merged or correct, and add up.

Input are the labels at the nodes, never voxels: another agglomeration threshold is another lookup
on the same labels.

Source: the skeleton-based metrics in the appendix of the supervoxel loss paper (segmentation of
neurons with topology-aware losses); expected run length of Januszewski et al. 2018,
doi:10.1038/s41592-018-0049-4. Where these leave something open, `Scores.conventions` says what is
done.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.metrics_conventions import RepairEffect, ScoringOptions, describe_conventions
from pipeline.arrays.metrics_sums import Measures, Sums, add_sums, measures, ratio, sum_squares
from pipeline.arrays.relabel import apply_lookup
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import Forest, Labels, bridge_gaps, build_forest
from pipeline.arrays.skeleton_nodes import (
    crop_skeleton,
    keep_nodes,
    labels_at_nodes,
    node_voxels,
)
from pipeline.arrays.skeleton_runs import Merges, Runs, find_merges, gather_runs
from pipeline.errors import DataError, DtypeError, InputError, ShapeError

__all__ = [
    "CORRECT",
    "MERGED",
    "OMIT",
    "SPLIT",
    "Forest",
    "Scores",
    "ScoringOptions",
    "apply_lookup",
    "build_forest",
    "crop_skeleton",
    "keep_nodes",
    "labels_at_nodes",
    "node_voxels",
    "score",
    "score_forests",
]

CORRECT, OMIT, SPLIT, MERGED = range(4)
"""Classes of an edge in `Scores.edge_classes`."""

VoxelSize = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of a segmentation.

    Attributes:
        overall: measures over all skeletons.
        per_skeleton: the same for each, by name; names ascending.
        conventions: what was done where definitions differ, in words.
        node_labels: per skeleton, as given: (N,) uint64 by node, after repair.
        components: per skeleton: (N,) int64 by node, its piece of equal label; -1 on background.
        edge_classes: per skeleton: (E,) uint8, one of CORRECT, OMIT, SPLIT, MERGED.
        merges: the merging labels and the skeletons they are on (indices as given).
        sums: per skeleton, as given: what its measures are made of.
    """

    overall: Measures
    per_skeleton: dict[str, Measures]
    conventions: dict[str, str]
    node_labels: tuple[NDArray[np.uint64], ...]
    components: tuple[NDArray[np.int64], ...]
    edge_classes: tuple[NDArray[np.uint8], ...]
    merges: Merges
    sums: tuple[Sums, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries and numbers, no NaN; None where a rate is undefined."""
        return {
            "overall": dict(self.overall),
            "per_skeleton": {name: dict(row) for name, row in self.per_skeleton.items()},
            "conventions": dict(self.conventions),
        }


def score(
    skeletons: Sequence[Skeleton],
    node_labels: Sequence[Labels],
    voxel_size_nm: VoxelSize,
    options: ScoringOptions | None = None,
    out_of_bounds: Sequence[int] | None = None,
) -> Scores:
    """Judge a segmentation by the labels that it has at the nodes of skeletons.

    The numbers do not depend on the order of skeletons, nodes or edges, to the last bit.

    Args:
        skeletons: forests with distinct names.
        node_labels: per skeleton (N,) of any integer type, fragment or segment at each node; 0 is
            background.
        voxel_size_nm: z, y, x.
        options: None: the defaults.
        out_of_bounds: per skeleton, how many nodes lay outside the volume; reported only.

    Raises:
        InputError: no skeleton, a name twice, a cycle, a voxel size that is not positive.
        ShapeError: labels and nodes differ in number.
        DtypeError: labels are no integers.
        DataError: a label is negative.
    """
    if np.shape(voxel_size_nm) != (3,) or not all(0 < size < math.inf for size in voxel_size_nm):
        raise InputError(f"voxel size: expected three positive lengths (nm), got {voxel_size_nm}")
    forests = [build_forest(skeleton, voxel_size_nm) for skeleton in skeletons]
    return score_forests(forests, node_labels, voxel_size_nm, options, out_of_bounds)


def score_forests(
    forests: Sequence[Forest],
    node_labels: Sequence[Labels],
    voxel_size_nm: VoxelSize,
    options: ScoringOptions | None = None,
    out_of_bounds: Sequence[int] | None = None,
) -> Scores:
    """`score` for skeletons rooted before, so that a sweep over thresholds roots them once."""
    options = options or ScoringOptions()
    outside = [0] * len(forests) if out_of_bounds is None else [int(n) for n in out_of_bounds]
    _check_input(forests, node_labels, outside)
    given = [_by_position(f, values) for f, values in zip(forests, node_labels, strict=True)]
    repairs = [_repair(f, values, options) for f, values in zip(forests, given, strict=True)]
    runs = [gather_runs(r.labels, f) for r, f in zip(repairs, forests, strict=True)]
    merges = find_merges(runs, options.merge_min_nodes, options.merge_min_nm)
    before = [
        gather_runs(values, forest) if repair.effect.repaired else run
        for values, forest, repair, run in zip(given, forests, repairs, runs, strict=True)
    ]
    ffn_merges = find_merges(before, options.merge_min_nodes, options.merge_min_nm)
    classes = [
        _edge_classes(f, r.labels, run, merges)
        for f, r, run in zip(forests, repairs, runs, strict=True)
    ]
    sums = [
        _add_up(
            f, repair, run, c, merges, sum_squares(old.label_nm[~ffn_merges.hits(old.labels)]), n
        )
        for f, repair, run, c, old, n in zip(
            forests, repairs, runs, classes, before, outside, strict=True
        )
    ]
    return Scores(
        _overall(sums, merges),
        _per_skeleton(forests, sums, merges),
        describe_conventions(options, voxel_size_nm, _effect(repairs)),
        tuple(f.by_node(r.labels) for f, r in zip(forests, repairs, strict=True)),
        tuple(f.by_node(run.piece) for f, run in zip(forests, runs, strict=True)),
        tuple(classes),
        merges,
        tuple(sums),
    )


def _check_input(
    forests: Sequence[Forest], node_labels: Sequence[Labels], outside: Sequence[int]
) -> None:
    if not forests:
        raise InputError("no skeleton to score")
    if len(node_labels) != len(forests) or len(outside) != len(forests):
        raise ShapeError(
            f"{len(forests)} skeletons, labels for {len(node_labels)} of them, counts of nodes out "
            f"of bounds for {len(outside)}"
        )
    twice = [name for name, n in Counter(f.name for f in forests).items() if n > 1]
    if twice:
        raise InputError(f"skeleton names must be distinct, found more than once: {twice[:5]}")


def _by_position(forest: Forest, given: Labels) -> Labels:
    values = np.asarray(given)
    if values.dtype.kind not in "iu":
        raise DtypeError(f"skeleton {forest.name}: labels are {values.dtype}, expected integers")
    if values.dtype.kind == "i" and len(values) and values.min() < 0:
        raise DataError(f"skeleton {forest.name}: negative label {values.min()} at a node")
    values = values.astype(np.uint64, copy=False)
    if values.shape != forest.order.shape:
        raise ShapeError(
            f"skeleton {forest.name}: labels of shape {values.shape} for {len(forest.order)} nodes"
        )
    return values[forest.order]


@dataclass(frozen=True, eq=False)
class _Repair:
    """Labels after repair, by position, and the numbers of nodes concerned."""

    labels: Labels
    effect: RepairEffect


def _repair(forest: Forest, labels: Labels, options: ScoringOptions) -> _Repair:
    if not options.repair:
        return _Repair(labels, RepairEffect(0, 0, 0, 0))
    after, *counts = bridge_gaps(labels, forest, options.max_gap_nm)
    unlimited = counts if options.max_gap_nm is None else bridge_gaps(labels, forest)[1:]
    return _Repair(after, RepairEffect(*counts, *unlimited))


def _effect(repairs: Sequence[_Repair]) -> RepairEffect:
    return RepairEffect(*(sum(c) for c in zip(*(astuple(r.effect) for r in repairs), strict=True)))


def _edge_classes(forest: Forest, labels: Labels, runs: Runs, merges: Merges) -> NDArray[np.uint8]:
    """(E,) by edge of the skeleton."""
    below = np.flatnonzero(forest.up >= 0)
    own, other = labels[below], labels[forest.up[below]]
    classes = np.zeros(len(below), np.uint8)
    classes[merges.hits(own)] = MERGED
    classes[own != other] = SPLIT
    classes[(own == 0) | (other == 0)] = OMIT
    by_edge = np.empty_like(classes)
    by_edge[forest.edge[below]] = classes
    return by_edge


def _add_up(
    forest: Forest,
    repair: _Repair,
    runs: Runs,
    classes: NDArray[np.uint8],
    merges: Merges,
    ffn_square_nm: float,
    outside: int,
) -> Sums:
    correct, omit, split, merged = (int(n) for n in np.bincount(classes, minlength=4))
    hit = merges.hits(runs.piece_label)
    edges = forest.edge_count
    length = math.fsum(forest.length_nm.tolist())
    trees = len(np.unique(forest.tree[runs.piece >= 0]))
    splits = len(runs.piece_label) - trees
    square_edges = sum(n * n for n in runs.piece_edges[~hit].tolist())
    square_nm = sum_squares(runs.piece_nm[~hit])
    return Sums(
        edges=edges,
        correct=correct,
        omit=omit,
        split=split,
        merged=merged,
        splits=splits,
        weighted_splits=splits * edges,
        merged_components=int(hit.sum()),
        repaired=repair.effect.repaired,
        ambiguous=repair.effect.ambiguous,
        outside=outside,
        square_edges=square_edges,
        share_edges=ratio(square_edges, edges),
        length_nm=length,
        square_length=length**2,
        square_nm=square_nm,
        share_nm=ratio(square_nm, length),
        ffn_square_nm=ffn_square_nm,
    )


def _overall(sums: Sequence[Sums], merges: Merges) -> Measures:
    total = add_sums(sums)
    labels = len(merges.labels)
    rows = len(merges.label_index)
    row = measures(total, rows - labels, labels, int(merges.partners.sum()) // 2)
    row["splits_per_neuron"] = ratio(total.weighted_splits, total.edges)
    return row


def _per_skeleton(
    forests: Sequence[Forest], sums: Sequence[Sums], merges: Merges
) -> dict[str, Measures]:
    rows = {
        forest.name: measures(
            sums[i], int(merges.total[i]), int(merges.label_count[i]), int(merges.partners[i])
        )
        for i, forest in enumerate(forests)
    }
    return dict(sorted(rows.items()))
