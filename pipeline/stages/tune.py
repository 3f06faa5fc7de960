"""Tune: choose low, high and the threshold on the validation region, never on what is scored.

With tracings the choice has the best normalized ERL, with dense labels alone the lowest VOI; of
equal ones the most cautious, that is the highest threshold, then the highest `low`. The baseline's
image threshold is chosen by the tracings in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.arrays.labels import Affinities
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.threshold import mask_affinities
from pipeline.errors import DataError, InputError
from pipeline.geometry import Block, Roi, middle_part
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.candidates import (
    Judge,
    LabelJudge,
    Row,
    TracingJudge,
    best_candidate,
    score_candidates,
    segment_array,
)
from pipeline.stages.dense_labels import check_truth_labels
from pipeline.stages.dense_truth import holds_truth, truth_labels_parameters
from pipeline.stages.fragments import read_affinities
from pipeline.stages.ingest import statistics_of
from pipeline.stages.run import Run
from pipeline.stages.truth import check_truth, cropped
from pipeline.storage.atomic import write_json

THRESHOLDS = tuple(round(0.1 + 0.05 * i, 2) for i in range(18))
BASELINES = 16

# The values of `low` and of `high` to try. Dense tissue has little background, and a plateau that
# is joined at once where neurites touch is a merge that no threshold takes back.
_CUTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "skeletons": ((0.3, 0.4, 0.5, 0.6, 0.7), (0.7, 0.8, 0.9, 0.95, 0.98)),
    "labels": ((0.02, 0.1, 0.3, 0.5), (0.9, 0.95, 0.98, 0.99, 1.0)),
}


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


def _tune(_block: Block, run: Run) -> BlockResult:
    judge = _judge(run)
    rows = list(_candidates(read_affinities(run.volume("affinities"), judge.roi), judge, run))
    best = best_candidate(rows, judge)
    result: dict[str, Any] = {**_chosen(best, judge), "metric": judge.metric}
    result["region"] = list(judge.roi.offset + judge.roi.shape)
    result["curve"] = [r for r in rows if (r["low"], r["high"]) == (best["low"], best["high"])]
    result["candidates"] = rows
    if isinstance(judge, TracingJudge) and run.config.input.image is not None:
        result["baseline"] = _tune_baseline(run, judge)
    write_json(run.path("tuning"), result)
    return BlockResult(stats=_chosen(best, judge))


def choose_segmentation(affinities: Affinities, run: Run) -> Row:
    """The best low, high and threshold for affinities (3, *shape) of the tuning region.

    With "metric", the figure that decided, under its own name.
    """
    judge = _judge(run)
    return _chosen(best_candidate(_candidates(affinities, judge, run), judge), judge)


def _judge(run: Run) -> TracingJudge | LabelJudge:
    if run.tuning_source == "skeletons":
        return TracingJudge(run, *_region_truth(run))
    return LabelJudge(run, tuning_region(run))


def _candidates(affinities: Affinities, judge: Judge, run: Run) -> Iterator[Row]:
    return score_candidates(affinities, judge, *_CUTS[run.tuning_source], THRESHOLDS)


def _chosen(best: Row, judge: Judge) -> Row:
    return {name: best[name] for name in ("low", "high", "threshold", judge.metric)}


def _tune_baseline(run: Run, judge: TracingJudge) -> dict[str, Any]:
    image = run.volume("image").read(judge.roi)
    statistics = statistics_of(run)
    # Evenly spaced between the volume's median and its high percentile.
    levels = np.linspace(statistics.median, statistics.high, BASELINES + 2)[1:-1]
    rows = []
    for level in levels:
        labels, _ = segment_array(mask_affinities(image >= level), 1.0, 1.0)
        rows.append({"threshold": float(level), **judge.score(labels)})
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
            "candidates": [*_CUTS["labels"], THRESHOLDS],
        }
    names = {"repair", "max_gap_nm", "merge_min_nodes", "merge_min_nm"}
    return {
        "region": run.validate_roi.offset + run.validate_roi.shape,
        "max_voxels": limit,
        "candidates": [*_CUTS["skeletons"], THRESHOLDS, BASELINES],
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
