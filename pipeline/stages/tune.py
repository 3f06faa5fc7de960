"""Tune: choose low, high and the threshold on the training region, never on what is scored.

Every pair of `low` and `high` is segmented once in memory; the merge history then serves every
threshold. The choice has the best normalized ERL; of equal ones the most cautious, that is the
highest threshold, then the highest `low`. The baseline's image threshold is chosen the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.agglomerate import agglomerate, fragment_to_segment
from pipeline.arrays.fragments import extract_fragments
from pipeline.arrays.labels import Affinities, quantised_threshold
from pipeline.arrays.metrics import ScoringOptions, score_forests
from pipeline.arrays.relabel import apply_lookup
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import Forest, build_forest
from pipeline.arrays.skeleton_nodes import labels_at_nodes
from pipeline.arrays.threshold import mask_affinities
from pipeline.geometry import Block, Roi, Triple, triple
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.fragments import read_affinities
from pipeline.stages.ingest import statistics_of
from pipeline.stages.run import Run
from pipeline.stages.truth import check_truth, cropped, training_truth
from pipeline.storage.atomic import write_json

LOWS = (0.3, 0.4, 0.5, 0.6, 0.7)
HIGHS = (0.7, 0.8, 0.9, 0.95, 0.98)
THRESHOLDS = tuple(round(0.1 + 0.05 * i, 2) for i in range(18))
BASELINES = 16


class _Region:
    """The region, its tracings rooted once, and how to score labels there."""

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


def scoring_options(run: Run) -> ScoringOptions:
    """The conventions that the configuration asks for."""
    config = run.config.evaluate
    return ScoringOptions(
        config.repair, config.max_gap_nm, config.merge_min_nodes, config.merge_min_nm
    )


def _region_truth(run: Run) -> tuple[Roi, list[Skeleton]]:
    """The region, and the tracings inside it; none at all is an error."""
    roi = _limited(run.train_roi, run.config.segment.tune_max_voxels)
    what = "segment.tune needs tracings to choose by, or set it to false: the region to tune on"
    return roi, cropped(training_truth(run), roi, what)


def _check(run: Run) -> None:
    check_truth(run)
    _region_truth(run)


def _limited(roi: Roi, max_voxels: int) -> Roi:
    """The middle of `roi`, halved along its longest axis until it is small enough."""
    while roi.size > max_voxels:
        axis = int(np.argmax(roi.shape))
        offset, shape = list(roi.offset), list(roi.shape)
        offset[axis] += shape[axis] // 4
        shape[axis] -= shape[axis] // 2
        roi = Roi(triple(offset), triple(shape))
    return roi


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
    region = _Region(run)
    affinities = read_affinities(run.volume("affinities"), region.roi)
    rows = list(_candidates(affinities, region))
    best = max(rows, key=lambda r: (round(r["nerl"], 9), r["threshold"], r["low"], r["high"]))
    chosen = {name: best[name] for name in ("low", "high", "threshold", "nerl")}
    curve = [r for r in rows if (r["low"], r["high"]) == (best["low"], best["high"])]
    result: dict[str, Any] = {**chosen, "region": list(region.roi.offset + region.roi.shape)}
    result["curve"] = curve
    result["candidates"] = rows
    if run.config.input.image is not None:
        result["baseline"] = _tune_baseline(run, region)
    write_json(run.path("tuning"), result)
    return BlockResult(stats=chosen)


def _candidates(affinities: Affinities, region: _Region) -> Iterator[dict[str, float]]:
    scale = int(np.iinfo(affinities.dtype).max)
    for low in LOWS:
        for high in HIGHS:
            fragments, edges = segment_array(affinities, low, high)
            history = agglomerate(edges, min(THRESHOLDS), scale)
            nodes = region.at_nodes(fragments)
            for threshold in THRESHOLDS:
                lookup = fragment_to_segment(history, threshold)
                scores = region.score([apply_lookup(n, *lookup) for n in nodes])
                yield {"low": low, "high": high, "threshold": threshold, **scores}


def _tune_baseline(run: Run, region: _Region) -> dict[str, Any]:
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


TUNE = Stage(
    name="tune",
    version=1,
    reads=("affinities", "source_skeletons"),
    optional=("image", "statistics"),
    writes=("tuning",),
    parameters=lambda run: {
        "region": run.train_roi.offset + run.train_roi.shape,
        "max_voxels": run.config.segment.tune_max_voxels,
        "swc": run.config.input.swc.model_dump(),
        "voxel_size_nm": run.voxel_size_nm,
        "candidates": [LOWS, HIGHS, THRESHOLDS, BASELINES],
        **run.config.evaluate.model_dump(
            include={"repair", "max_gap_nm", "merge_min_nodes", "merge_min_nm"}
        ),
    },
    grid=one_block,
    create=_create,
    check=_check,
    process=_tune,
)
