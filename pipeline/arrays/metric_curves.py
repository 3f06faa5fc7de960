"""What the conventions do to the scores: overall figures over merge tolerance and longest gap.

The same labels at the nodes are scored with one option after another changed and the others kept.
Each row equals what `score_forests` gives with these options, to the last bit, for a fraction of
the work:

1. repair and runs are made once for each longest gap (`_judge`), those without repair once;
2. a merge tolerance only moves runs of equal label between correct and merged (`_with_merges`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.arrays.metrics import VoxelSize, score_forests
from pipeline.arrays.metrics_conventions import ScoringOptions
from pipeline.arrays.metrics_sums import Measures, Sums, add_sums, measures, ratio, sum_squares
from pipeline.arrays.skeleton_forest import Forest, Labels, bridge_gaps
from pipeline.arrays.skeleton_runs import Merges, Runs, find_merges, gather_runs

MERGE_MIN_NODES = (1, 2, 5, 10, 20, 50, 100, 200)
MERGE_MIN_NM = (0.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4)
MAX_GAP_NM: tuple[float | None, ...] = (0.0, 250.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, None)

CurveRow = dict[str, Any]


@dataclass(frozen=True, eq=False)
class MetricCurves:
    """Overall figures over conventions.

    Attributes:
        rows: each with "option" (merge_min_nodes, merge_min_nm or max_gap_nm), "value" (None: no
            limit) and "overall"; in the order asked for.
        options: the other options of every row.
        conventions: those of `options`, in words.
        neurons: their number.
    """

    rows: tuple[CurveRow, ...]
    options: ScoringOptions
    conventions: dict[str, str]
    neurons: int

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries and numbers; None where a rate is undefined."""
        return {
            "neurons": self.neurons,
            "rows": [{**row, "overall": dict(row["overall"])} for row in self.rows],
            "conventions": dict(self.conventions),
        }


def metric_curves(
    forests: Sequence[Forest],
    node_labels: Sequence[Labels],
    voxel_size_nm: VoxelSize,
    options: ScoringOptions | None = None,
    out_of_bounds: Sequence[int] | None = None,
    *,
    merge_min_nodes: Sequence[int] = MERGE_MIN_NODES,
    merge_min_nm: Sequence[float] = MERGE_MIN_NM,
    max_gap_nm: Sequence[float | None] = MAX_GAP_NM,
) -> MetricCurves:
    """Overall figures over each option, the others as in `options`.

    Without repair (`options.repair`) there are no gaps to close and no rows over `max_gap_nm`.

    Args:
        forests, node_labels, voxel_size_nm, options, out_of_bounds: as for `score_forests`.
        merge_min_nodes, merge_min_nm, max_gap_nm: the values to score with; None among the gaps:
            any length.

    Raises:
        InputError: as `score_forests`, or an option that cannot be.
        ShapeError, DtypeError: as `score_forests`.
    """
    options = options or ScoringOptions()
    gaps = max_gap_nm if options.repair else ()
    asked = [
        *(("merge_min_nodes", n, replace(options, merge_min_nodes=n)) for n in merge_min_nodes),
        *(("merge_min_nm", nm, replace(options, merge_min_nm=nm)) for nm in merge_min_nm),
        *(("max_gap_nm", nm, replace(options, max_gap_nm=nm)) for nm in gaps),
    ]
    # Also the check of all input.
    conventions = score_forests(
        forests, node_labels, voxel_size_nm, options, out_of_bounds
    ).conventions
    outside = [0] * len(forests) if out_of_bounds is None else [int(n) for n in out_of_bounds]
    given = [values[f.order] for f, values in zip(forests, node_labels, strict=True)]
    found = dict(_scores(forests, given, outside, (each for *_, each in asked)))
    rows = tuple(
        {"option": name, "value": value, "overall": found[each]} for name, value, each in asked
    )
    return MetricCurves(rows, options, conventions, len(forests))


def _scores(
    forests: Sequence[Forest],
    given: Sequence[Labels],
    outside: Sequence[int],
    asked: Iterable[ScoringOptions],
) -> Iterator[tuple[ScoringOptions, Measures]]:
    """The overall figures for each distinct set of options, sharing what they share."""
    before = [gather_runs(labels, forest) for labels, forest in zip(given, forests, strict=True)]
    judged: dict[float | None, list[_Judged]] = {}
    ffn: dict[tuple[int, float], list[float]] = {}
    for options in dict.fromkeys(asked):
        gap, tolerance = options.max_gap_nm, (options.merge_min_nodes, options.merge_min_nm)
        if gap not in judged:
            judged[gap] = [
                _judge(*each, options) for each in zip(forests, given, before, outside, strict=True)
            ]
        if tolerance not in ffn:
            ffn[tolerance] = _ffn_squares(before, find_merges(before, *tolerance))
        yield options, _overall(judged[gap], tolerance, ffn[tolerance])


@dataclass(frozen=True, eq=False)
class _Judged:
    """The runs of one skeleton after repair, and its sums if no label were merging."""

    runs: Runs
    sums: Sums


def _judge(
    forest: Forest, given: Labels, before: Runs, outside: int, options: ScoringOptions
) -> _Judged:
    labels, repaired, ambiguous = given, 0, 0
    if options.repair:
        labels, repaired, ambiguous = bridge_gaps(given, forest, options.max_gap_nm)
    runs = gather_runs(labels, forest) if repaired else before
    omit, split = _omitted_and_split(forest, labels)
    trees = len(np.unique(forest.tree[runs.piece >= 0]))
    edges, length = forest.edge_count, math.fsum(forest.length_nm.tolist())
    splits = len(runs.piece_label) - trees
    plain = Sums(
        edges=edges,
        correct=0,
        omit=omit,
        split=split,
        merged=0,
        splits=splits,
        weighted_splits=splits * edges,
        merged_components=0,
        repaired=repaired,
        ambiguous=ambiguous,
        outside=outside,
        square_edges=0,
        share_edges=0.0,
        length_nm=length,
        square_length=length**2,
        square_nm=0.0,
        share_nm=0.0,
        ffn_square_nm=0.0,
    )
    return _Judged(runs, _with_hits(plain, runs, np.zeros(len(runs.piece_label), np.bool_)))


def _omitted_and_split(forest: Forest, labels: Labels) -> tuple[int, int]:
    """Numbers of edges with an end on background, and between two labels."""
    below = np.flatnonzero(forest.up >= 0)
    own, other = labels[below], labels[forest.up[below]]
    omit = (own == 0) | (other == 0)
    return int(omit.sum()), int(((own != other) & ~omit).sum())


def _with_hits(sums: Sums, runs: Runs, hit: np.ndarray) -> Sums:
    """The sums if these pieces carry merging labels."""
    square_edges = sum(n * n for n in runs.piece_edges[~hit].tolist())
    square_nm = sum_squares(runs.piece_nm[~hit])
    return replace(
        sums,
        correct=int(runs.piece_edges[~hit].sum()),
        merged=int(runs.piece_edges[hit].sum()),
        merged_components=int(hit.sum()),
        square_edges=square_edges,
        share_edges=ratio(square_edges, sums.edges),
        square_nm=square_nm,
        share_nm=ratio(square_nm, sums.length_nm),
    )


def _ffn_squares(before: Sequence[Runs], merges: Merges) -> list[float]:
    return [sum_squares(run.label_nm[~merges.hits(run.labels)]) for run in before]


def _overall(
    judged: Sequence[_Judged], tolerance: tuple[int, float], ffn: Sequence[float]
) -> Measures:
    merges = find_merges([each.runs for each in judged], *tolerance)
    total = add_sums(
        [_with_merges(each, merges, square) for each, square in zip(judged, ffn, strict=True)]
    )
    labels = len(merges.labels)
    pairs = int(merges.partners.sum()) // 2
    row = measures(total, len(merges.label_index) - labels, labels, pairs)
    row["splits_per_neuron"] = ratio(total.weighted_splits, total.edges)
    return row


def _with_merges(judged: _Judged, merges: Merges, ffn_square_nm: float) -> Sums:
    hit = merges.hits(judged.runs.piece_label)
    sums = _with_hits(judged.sums, judged.runs, hit) if hit.any() else judged.sums
    return replace(sums, ffn_square_nm=ffn_square_nm)
