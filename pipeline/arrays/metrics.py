"""Splits, merges, omissions and expected run lengths of a segmentation, judged by skeletons.

Two passes per skeleton, on the threads of the process, and one over labels:

1. root each skeleton (`skeleton_forest`);
2. repair the labels at its nodes (`skeleton_gaps`), gather their runs (`skeleton_runs`);
3. find the labels that are on two or more skeletons;
4. class every edge: omit, split, merged or correct, and add up (`skeleton_sums`).

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
from functools import partial
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.metrics_conventions import RepairEffect, ScoringOptions, describe_conventions
from pipeline.arrays.metrics_sums import Measures, Sums, measures
from pipeline.arrays.relabel import apply_lookup
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import (
    Forest,
    Integers,
    Labels,
    build_forest,
    build_forests,
)
from pipeline.arrays.skeleton_gaps import close_gaps, find_claims
from pipeline.arrays.skeleton_nodes import (
    crop_skeleton,
    keep_nodes,
    labels_at_nodes,
    node_voxels,
)
from pipeline.arrays.skeleton_runs import Merges, Runs, RunTable, find_merges, gather_runs
from pipeline.arrays.skeleton_sums import Judged, ffn_squares, overall_measures, sum_up
from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.threads import map_threads

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
    "build_forests",
    "crop_skeleton",
    "keep_nodes",
    "labels_at_nodes",
    "node_voxels",
    "perfect_overall",
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
    forests = build_forests(skeletons, voxel_size_nm)
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
    outside = check_input(forests, len(node_labels), out_of_bounds)
    traced = map_threads(partial(_trace, options), list(zip(forests, node_labels, strict=True)))
    tolerance = (options.merge_min_nodes, options.merge_min_nm)
    before = RunTable.of([t.before for t in traced])
    ffn_square_nm = ffn_squares(before, find_merges(before, *tolerance))
    runs = RunTable.of([t.runs for t in traced])
    merges = find_merges(runs, *tolerance)
    effects = [t.effect for t in traced]
    repaired, ambiguous = [e.repaired for e in effects], [e.ambiguous for e in effects]
    sums = sum_up(forests, Judged(runs, repaired, ambiguous, outside), merges, ffn_square_nm)
    return Scores(
        overall_measures(sums, merges),
        _per_skeleton(forests, sums, merges),
        describe_conventions(options, voxel_size_nm, add_effects(effects)),
        tuple(t.node_labels for t in traced),
        tuple(t.components for t in traced),
        tuple(map_threads(partial(_edge_classes, merges), list(zip(forests, traced, strict=True)))),
        merges,
        tuple(sums),
    )


def perfect_overall(
    forests: Sequence[Forest], out_of_bounds: Sequence[int] | None = None
) -> Measures:
    """`Scores.overall` of a segmentation without errors, in which each skeleton has a label alone.

    No tolerance and no limit on gaps changes it: there is no gap, and no label on two skeletons.

    Args:
        forests, out_of_bounds: as for `score_forests`.

    Raises:
        InputError: no skeleton, or a name twice.
        ShapeError: counts and skeletons differ in number.
    """
    outside = check_input(forests, len(forests), out_of_bounds)
    runs = RunTable.of(map_threads(_perfect_runs, list(enumerate(forests, start=1))))
    merges = find_merges(runs, min_nodes=1, min_nm=0.0)
    none = [0] * len(forests)
    judged = Judged(runs, none, none, outside)
    return overall_measures(sum_up(forests, judged, merges, ffn_squares(runs, merges)), merges)


def _perfect_runs(of: tuple[int, Forest]) -> Runs:
    label, forest = of
    return gather_runs(np.full(len(forest.up), label, np.uint64), forest)[1]


def check_input(
    forests: Sequence[Forest], labelled: int, out_of_bounds: Sequence[int] | None
) -> list[int]:
    """How many nodes of each skeleton are out of bounds, after a check of the input.

    Args:
        forests, out_of_bounds: as for `score_forests`.
        labelled: for how many skeletons there are labels.

    Raises:
        InputError: no skeleton, or a name twice.
        ShapeError: labels or counts are not of as many skeletons.
    """
    outside = [0] * len(forests) if out_of_bounds is None else [int(n) for n in out_of_bounds]
    if not forests:
        raise InputError("no skeleton to score")
    if labelled != len(forests) or len(outside) != len(forests):
        raise ShapeError(
            f"{len(forests)} skeletons, labels for {labelled} of them, counts of nodes out "
            f"of bounds for {len(outside)}"
        )
    twice = [name for name, n in Counter(f.name for f in forests).items() if n > 1]
    if twice:
        raise InputError(f"skeleton names must be distinct, found more than once: {twice[:5]}")
    return outside


def by_position(forest: Forest, given: Labels) -> Labels:
    """Labels at the nodes of a skeleton as (N,) uint64 by position of its forest.

    Raises:
        DtypeError: they are no integers.
        DataError: one is negative.
        ShapeError: they are not one for each node.
    """
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
class _Traced:
    """One skeleton with its labels.

    Attributes:
        node_labels: (N,) by node, after repair.
        components: (N,) by node.
        piece: (N,) the same by position.
        runs, before: after and before repair.
        effect: numbers of nodes that the repair concerned.
    """

    node_labels: Labels
    components: Integers
    piece: Integers
    runs: Runs
    before: Runs
    effect: RepairEffect


def _trace(options: ScoringOptions, of: tuple[Forest, Labels]) -> _Traced:
    forest, given = of[0], by_position(*of)
    labels, effect = _repair(forest, given, options)
    piece, runs = gather_runs(labels, forest)
    before = gather_runs(given, forest)[1] if effect.repaired else runs
    return _Traced(forest.by_node(labels), forest.by_node(piece), piece, runs, before, effect)


def _repair(forest: Forest, labels: Labels, options: ScoringOptions) -> tuple[Labels, RepairEffect]:
    if not options.repair:
        return labels, RepairEffect(0, 0, 0, 0)
    claims = find_claims(labels, forest)
    effect = RepairEffect(*claims.counts(options.max_gap_nm), *claims.counts(None))
    return close_gaps(labels, claims, options.max_gap_nm), effect


def add_effects(effects: Sequence[RepairEffect]) -> RepairEffect:
    """The effect on all skeletons together."""
    return RepairEffect(*(sum(column) for column in zip(*map(astuple, effects), strict=True)))


def _edge_classes(merges: Merges, of: tuple[Forest, _Traced]) -> NDArray[np.uint8]:
    """(E,) by edge of the skeleton."""
    forest, traced = of
    hit = merges.hits(traced.runs.piece_label)
    return _class_edges(traced.piece, hit, forest.up, forest.edge, forest.edge_count)


@njit(cache=True, nogil=True)
def _class_edges(
    piece: Integers, hit: NDArray[np.bool_], up: Integers, edge: Integers, count: int
) -> NDArray[np.uint8]:
    """The class of each edge; `hit`: which pieces carry a merging label."""
    classes = np.empty(count, np.uint8)
    for p in range(len(up)):
        if up[p] < 0:
            continue
        own, other = piece[p], piece[up[p]]
        if own < 0 or other < 0:
            found = OMIT
        elif own != other:
            found = SPLIT
        else:
            found = MERGED if hit[own] else CORRECT
        classes[edge[p]] = found
    return classes


def _per_skeleton(
    forests: Sequence[Forest], sums: Sequence[Sums], merges: Merges
) -> dict[str, Measures]:
    of_merges = zip(
        merges.total.tolist(), merges.label_count.tolist(), merges.partners.tolist(), strict=True
    )
    rows = {
        forest.name: measures(each, *counts)
        for forest, each, counts in zip(forests, sums, of_merges, strict=True)
    }
    return dict(sorted(rows.items()))
