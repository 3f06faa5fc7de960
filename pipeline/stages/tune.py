"""Tune: choose low, high and the threshold on the validation region, never on what is scored.

Every pair of `low` and `high` is segmented once in memory; the merge history then serves every
threshold. With tracings the choice has the best normalized ERL, with dense labels alone the lowest
VOI; of equal ones the most cautious, that is the highest threshold, then the highest `low`. The
baseline's image threshold is chosen by the tracings in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.agglomerate import agglomerate, fragment_to_segment
from pipeline.arrays.contingency import (
    count_contingency,
    rename_fragments,
    score_contingency,
)
from pipeline.arrays.fragments import extract_fragments
from pipeline.arrays.labels import Affinities, SparseMap, quantised_threshold
from pipeline.arrays.metrics import ScoringOptions, score_forests
from pipeline.arrays.relabel import apply_lookup
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import Forest, build_forest
from pipeline.arrays.skeleton_nodes import labels_at_nodes
from pipeline.arrays.threshold import mask_affinities
from pipeline.errors import DataError, InputError
from pipeline.geometry import Block, Roi, Triple, middle_part, triple
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.dense_labels import read_roles
from pipeline.stages.dense_truth import (
    check_truth_labels,
    holds_truth,
    truth_labels_parameters,
)
from pipeline.stages.fragments import read_affinities
from pipeline.stages.ingest import statistics_of
from pipeline.stages.run import Run
from pipeline.stages.truth import check_truth, cropped
from pipeline.storage.atomic import write_json

THRESHOLDS = tuple(round(0.1 + 0.05 * i, 2) for i in range(18))
BASELINES = 16

Row = dict[str, float]
JudgeLookup = Callable[[SparseMap], Row]


class _Judge(Protocol):
    """What the candidates are judged by.

    Attributes:
        roi: where they are judged.
        lows, highs: those to try.
        metric: the figure that decides; +1 in `sense` if more is better, else -1.
    """

    roi: Roi
    lows: Sequence[float]
    highs: Sequence[float]
    metric: str
    sense: int

    def look(self, fragments: NDArray[np.uint64]) -> JudgeLookup:
        """How to score what the lookup of a threshold makes of these fragments of the region."""


class _Tracings:
    """The region, its tracings rooted once, and how to score labels there."""

    lows: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7)
    highs: Sequence[float] = (0.7, 0.8, 0.9, 0.95, 0.98)
    metric, sense = "nerl", +1

    def __init__(self, run: Run) -> None:
        self.roi, self.skeletons = _region_truth(run)
        self.size = run.voxel_size_nm
        self.forests: list[Forest] = [build_forest(s, self.size) for s in self.skeletons]
        self.options = scoring_options(run)

    def at_nodes(self, labels: NDArray[np.uint64]) -> list[NDArray[np.uint64]]:
        """Labels of the region at the nodes of each skeleton."""
        return [labels_at_nodes(s, labels, self.roi.offset)[0] for s in self.skeletons]

    def score(self, node_labels: list[NDArray[np.uint64]]) -> dict[str, float]:
        """The figures that the choice and its curve need."""
        overall = score_forests(self.forests, node_labels, self.size, self.options).overall
        names = ("nerl", "splits", "merges_total", "pct_omit", "edge_accuracy")
        return {name: float(overall[name] or 0) for name in names}

    def look(self, fragments: NDArray[np.uint64]) -> JudgeLookup:
        """Segments are judged by their labels at the nodes."""
        nodes = self.at_nodes(fragments)
        return lambda lookup: self.score([apply_lookup(n, *lookup) for n in nodes])


class _DenseLabels:
    """The region, and its labels."""

    # Dense tissue has little background, and a plateau that is joined at once where neurites touch
    # is a merge that no threshold takes back.
    lows: Sequence[float] = (0.02, 0.1, 0.3, 0.5)
    highs: Sequence[float] = (0.9, 0.95, 0.98, 0.99, 1.0)
    metric, sense = "voi", -1

    def __init__(self, run: Run) -> None:
        self.roi = tuning_region(run)
        self.truth = read_roles(run, self.roi)

    def look(self, fragments: NDArray[np.uint64]) -> JudgeLookup:
        """Segments are judged by the voxels that they share with the labels."""
        table = count_contingency(fragments, self.truth)
        names = ("voi", "voi_split", "voi_merge", "ari")

        def judge(lookup: SparseMap) -> Row:
            scores = score_contingency(rename_fragments(table, *lookup))
            return {name: float(scores[name]) for name in names}

        return judge


def scoring_options(run: Run) -> ScoringOptions:
    """The conventions that the configuration asks for."""
    config = run.config.evaluate
    return ScoringOptions(
        config.repair, config.max_gap_nm, config.merge_min_nodes, config.merge_min_nm
    )


def tuning_region(run: Run) -> Roi:
    """The box that the choice is made in."""
    return middle_part(run.validate_roi, run.config.segment.tune_max_voxels)


def _region_truth(run: Run) -> tuple[Roi, list[Skeleton]]:
    """The region, and the tracings inside it; none at all is an error."""
    roi = tuning_region(run)
    what = "segment.tune needs tracings to choose by, or set it to false: the region to tune on"
    return roi, cropped(run.truth(), roi, what)


def _check(run: Run) -> None:
    if run.tuning_source == "skeletons":
        check_truth(run)
        _region_truth(run)
        return
    path, roi = run.path("source_labels"), tuning_region(run)
    check_truth_labels(run, run.shape, "the volume")
    try:
        known = holds_truth(run, roi)
    except DataError as error:
        raise InputError(str(error)) from error
    if not known:
        raise InputError(
            f"{path}: segment.tune needs labels to choose by, or set it to false: no voxel of the "
            f"region to tune on {roi} has a label"
        )


def segment_array(
    affinities: Affinities, low: float, high: float
) -> tuple[NDArray[np.uint64], Any]:
    """Fragments of a whole array, and the table of their contacts."""
    shape: Triple = triple(affinities.shape[1:])
    found = extract_fragments(
        affinities,
        origin=(0, 0, 0),
        write_shape=shape,
        volume_shape=shape,
        low=quantised_threshold(low, affinities.dtype),
        high=quantised_threshold(high, affinities.dtype),
    )
    return found.labels, found.edges


def _tune(_block: Block, run: Run) -> BlockResult:
    judge = _judge(run)
    affinities = read_affinities(run.volume("affinities"), judge.roi)
    rows = list(_candidates(affinities, judge))
    best = max(rows, key=lambda row: _rank(row, judge))
    chosen = {name: best[name] for name in ("low", "high", "threshold", judge.metric)}
    curve = [r for r in rows if (r["low"], r["high"]) == (best["low"], best["high"])]
    result: dict[str, Any] = {**chosen, "metric": judge.metric}
    result["region"] = list(judge.roi.offset + judge.roi.shape)
    result["curve"] = curve
    result["candidates"] = rows
    if isinstance(judge, _Tracings) and run.config.input.image is not None:
        result["baseline"] = _tune_baseline(run, judge)
    write_json(run.path("tuning"), result)
    return BlockResult(stats=chosen)


def _judge(run: Run) -> _Judge:
    if run.tuning_source == "skeletons":
        return _Tracings(run)
    return _DenseLabels(run)


def choose_segmentation(affinities: Affinities, run: Run) -> Row:
    """The best low, high and threshold for affinities (3, *shape) of the tuning region.

    With "metric", the figure that decided, under its own name.
    """
    judge = _judge(run)
    best = max(_candidates(affinities, judge), key=lambda row: _rank(row, judge))
    return {name: best[name] for name in ("low", "high", "threshold", judge.metric)}


def _rank(row: Row, judge: _Judge) -> tuple[float, ...]:
    """Better candidates are greater; of equal ones the more cautious."""
    gain = judge.sense * round(row[judge.metric], 9)
    return gain, row["threshold"], row["low"], row["high"]


def _candidates(affinities: Affinities, judge: _Judge) -> Iterator[Row]:
    scale = int(np.iinfo(affinities.dtype).max)
    for low in judge.lows:
        for high in judge.highs:
            fragments, edges = segment_array(affinities, low, high)
            history = agglomerate(edges, min(THRESHOLDS), scale)
            score = judge.look(fragments)
            for threshold in THRESHOLDS:
                scores = score(fragment_to_segment(history, threshold))
                yield {"low": low, "high": high, "threshold": threshold, **scores}


def _tune_baseline(run: Run, region: _Tracings) -> dict[str, Any]:
    image = run.volume("image").read(region.roi)
    statistics = statistics_of(run)
    # Evenly spaced between the volume's median and its high percentile.
    levels = np.linspace(statistics.median, statistics.high, BASELINES + 2)[1:-1]
    rows = []
    for level in levels:
        labels, _ = segment_array(mask_affinities(image >= level), 1.0, 1.0)
        rows.append({"threshold": float(level), **region.score(region.at_nodes(labels))})
    best = max(rows, key=lambda r: (round(r["nerl"], 9), r["threshold"]))
    return {"threshold": best["threshold"], "nerl": best["nerl"], "curve": rows}


def _create(run: Run) -> None:
    write_json(run.path("tuning"), {})


def _parameters(run: Run) -> dict[str, Any]:
    limit = run.config.segment.tune_max_voxels
    if run.tuning_source == "labels":
        return {
            **truth_labels_parameters(run, run.validate_roi),
            "max_voxels": limit,
            "candidates": [_DenseLabels.lows, _DenseLabels.highs, THRESHOLDS],
        }
    names = {"repair", "max_gap_nm", "merge_min_nodes", "merge_min_nm"}
    return {
        "region": run.validate_roi.offset + run.validate_roi.shape,
        "max_voxels": limit,
        "candidates": [_Tracings.lows, _Tracings.highs, THRESHOLDS, BASELINES],
        "swc": run.config.input.swc.model_dump(),
        "voxel_size_nm": run.voxel_size_nm,
        **run.config.evaluate.model_dump(include=names),
    }


TUNE = Stage(
    name="tune",
    version=2,
    reads=("affinities", "source_tuning"),
    optional=("image", "statistics"),
    writes=("tuning",),
    parameters=_parameters,
    grid=one_block,
    create=_create,
    check=_check,
    process=_tune,
)
