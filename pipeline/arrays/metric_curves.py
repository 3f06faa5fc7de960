"""What the conventions do to the scores: overall figures over merge tolerance and longest gap.

The same labels at the nodes are scored with one option after another changed and the others kept.
Each row equals what `score_forests` gives with these options, to the last bit, for a fraction of
the work:

1. claims on gaps are found once; runs are gathered once for each longest gap that changes labels;
2. a merge tolerance only moves runs of equal label between correct and merged (`sum_up`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipeline.arrays.metrics import VoxelSize, add_effects, by_position, check_input
from pipeline.arrays.metrics_conventions import (
    RepairEffect,
    ScoringOptions,
    describe_conventions,
)
from pipeline.arrays.metrics_sums import Measures
from pipeline.arrays.skeleton_forest import Forest, Labels
from pipeline.arrays.skeleton_gaps import close_gaps, find_claims
from pipeline.arrays.skeleton_runs import Runs, RunTable, find_merges, gather_runs
from pipeline.arrays.skeleton_sums import Judged, ffn_squares, overall_measures, sum_up
from pipeline.threads import map_threads

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
    limits = max_gap_nm if options.repair else ()
    asked = [
        *(("merge_min_nodes", n, replace(options, merge_min_nodes=n)) for n in merge_min_nodes),
        *(("merge_min_nm", nm, replace(options, merge_min_nm=nm)) for nm in merge_min_nm),
        *(("max_gap_nm", nm, replace(options, max_gap_nm=nm)) for nm in limits),
    ]
    outside = check_input(forests, len(node_labels), out_of_bounds)
    gaps = list(dict.fromkeys(each.max_gap_nm for each in (options, *(o for *_, o in asked))))
    walked = map_threads(
        partial(_walk, options.repair, gaps), list(zip(forests, node_labels, strict=True))
    )
    found = dict(_scores(forests, walked, gaps, outside, (each for *_, each in asked)))
    rows = tuple(
        {"option": name, "value": value, "overall": found[each]} for name, value, each in asked
    )
    effect = add_effects([w.effect for w in walked])
    conventions = describe_conventions(options, voxel_size_nm, effect)
    return MetricCurves(rows, options, conventions, len(forests))


@dataclass(frozen=True, eq=False)
class _Walked:
    """One skeleton with its labels.

    Attributes:
        before: runs of the labels as given.
        after: runs of the repaired labels, for each longest gap asked for.
        counts: with it, the numbers of nodes repaired and ambiguous.
        effect: the same for the longest gap of `options`, with the limit and without.
    """

    before: Runs
    after: list[Runs]
    counts: list[tuple[int, int]]
    effect: RepairEffect


def _walk(repair: bool, gaps: Sequence[float | None], of: tuple[Forest, Labels]) -> _Walked:
    """Walk over a skeleton once for each of the gaps that gives other labels; gaps[0] is usual."""
    forest, given = of[0], by_position(*of)
    before = gather_runs(given, forest)[1]
    if not repair:
        return _Walked(before, [before] * len(gaps), [(0, 0)] * len(gaps), RepairEffect(0, 0, 0, 0))
    claims = find_claims(given, forest)
    counts = [claims.counts(gap) for gap in gaps]
    # A longer limit never takes a claim back: equal counts are equal labels.
    runs = {(0, 0): before}
    for gap, key in zip(gaps, counts, strict=True):
        if key not in runs:
            runs[key] = gather_runs(close_gaps(given, claims, gap), forest)[1]
    effect = RepairEffect(*counts[0], *claims.counts(None))
    return _Walked(before, [runs[key] for key in counts], counts, effect)


def _scores(
    forests: Sequence[Forest],
    walked: Sequence[_Walked],
    gaps: Sequence[float | None],
    outside: Sequence[int],
    asked: Iterable[ScoringOptions],
) -> Iterator[tuple[ScoringOptions, Measures]]:
    """The overall figures for each distinct set of options, sharing what they share."""
    before = RunTable.of([w.before for w in walked])
    judged: dict[float | None, Judged] = {}
    ffn: dict[tuple[int, float], list[float]] = {}
    for options in dict.fromkeys(asked):
        gap, tolerance = options.max_gap_nm, (options.merge_min_nodes, options.merge_min_nm)
        if gap not in judged:
            judged[gap] = _judged(walked, gaps.index(gap), outside)
        if tolerance not in ffn:
            ffn[tolerance] = ffn_squares(before, find_merges(before, *tolerance))
        merges = find_merges(judged[gap].runs, *tolerance)
        sums = sum_up(forests, judged[gap], merges, ffn[tolerance])
        yield options, overall_measures(sums, merges)


def _judged(walked: Sequence[_Walked], gap: int, outside: Sequence[int]) -> Judged:
    repaired, ambiguous = zip(*(w.counts[gap] for w in walked), strict=True)
    return Judged(RunTable.of([w.after[gap] for w in walked]), repaired, ambiguous, outside)
