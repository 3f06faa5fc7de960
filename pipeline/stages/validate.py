"""Validation while a network is trained: how good would the segmentation be?

The region is predicted and segmented in memory, as the stages after training would do it, with a
few values of `low`, `high` and the threshold; the score is the best normalized ERL among them.
Judges are the tracings if there are any, else centre lines of the dense labels, drawn once. Too few
values are tried to publish: the tune stage looks closer. Inputs are not mirrored, whatever
`predict.flips` says: that costs up to 8 times the time, to choose between networks alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.labels import IGNORE
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeletons import SkeletonPieces, skeletonize_block
from pipeline.errors import InputError
from pipeline.geometry import Roi, middle_part
from pipeline.stages.candidates import TracingJudge, best_candidate, score_candidates
from pipeline.stages.dense_labels import check_labels, read_roles
from pipeline.stages.prediction import predict_tissue
from pipeline.stages.run import Run
from pipeline.stages.truth import check_truth, cropped

if TYPE_CHECKING:
    from pipeline.learning.inference import Predictor
    from pipeline.learning.model import UNet

LOWS = (0.3, 0.5, 0.7)
HIGHS = (0.9, 0.98)
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_REMEDY = (
    "move regions.validation, raise train.validate_max_voxels, or set train.validate_every_steps "
    "to 0"
)


def validates(run: Run) -> bool:
    """Whether networks are validated in this run."""
    return run.config.train.validate_every_steps > 0


def validation_source(run: Run) -> tuple[str, ...]:
    """The artifact that networks are judged by; none where they are not."""
    if not validates(run):
        return ()
    known = run.config.input.skeletons is not None
    return ("source_skeletons" if known else "source_labels",)


def validation_parameters(run: Run) -> dict[str, Any]:
    """What the choice of the network depends on, beside the settings of training."""
    if not validates(run):
        return {}
    roi, config = validation_region(run), run.config
    parameters: dict[str, Any] = {
        "region": roi.offset + roi.shape,
        "predict": config.predict.model_dump(include={"tile", "context"}),
        "voxel_size_nm": run.voxel_size_nm,
        "candidates": [LOWS, HIGHS, THRESHOLDS],
        **config.evaluate.model_dump(
            include={"repair", "max_gap_nm", "merge_min_nodes", "merge_min_nm"}
        ),
    }
    if validation_source(run) == ("source_skeletons",):
        parameters["swc"] = config.input.swc.model_dump()
    else:
        parameters["method"] = config.skeletonize.method.model_dump()
        parameters["roles"] = config.targets.model_dump(
            include={"ignore_labels", "background_labels", "plane_components"}
        )
    return parameters


def validation_region(run: Run) -> Roi:
    """The middle of the validation region, no larger than configured."""
    return middle_part(run.validate_roi, run.config.train.validate_max_voxels)


def check_validation(run: Run) -> None:
    """Refuse a region without truth, as far as can be known without drawing centre lines.

    Raises:
        InputError: names the region.
    """
    if validation_source(run) == ("source_skeletons",):
        check_truth(run)
        _tracings(run)
        return
    check_labels(run)
    _labels(run)


def validation_truth(run: Run) -> list[Skeleton]:
    """Tracings inside the region, else centre lines of its labels.

    Raises:
        InputError: there is neither.
    """
    if validation_source(run) == ("source_skeletons",):
        return _tracings(run)
    roi = validation_region(run)
    pieces = skeletonize_block(
        _labels(run),
        origin=roi.offset,
        voxel_size_nm=run.voxel_size_nm,
        settings=run.config.skeletonize.method,
    )
    found = list(_by_segment(pieces))
    if not found:
        raise InputError(
            f"{run.path('source_labels')}: every object in the validation region {roi} is smaller "
            f"than skeletonize.method.min_voxels: {_REMEDY}"
        )
    return found


def _tracings(run: Run) -> list[Skeleton]:
    try:
        return cropped(run.truth(), validation_region(run), "the validation region")
    except InputError as error:
        raise InputError(f"{run.path('source_skeletons')}: {error}: {_REMEDY}") from error


def _labels(run: Run) -> NDArray[np.uint64]:
    """The labels of the region, 0 where they are to be ignored; none at all is an error."""
    roi = validation_region(run)
    labels = read_roles(run, roi)
    labels[labels == IGNORE] = 0
    if not labels.any():
        raise InputError(
            f"{run.path('source_labels')}: no voxel in the validation region {roi} has a label: "
            f"{_REMEDY}"
        )
    return labels


def _by_segment(pieces: SkeletonPieces) -> Iterator[Skeleton]:
    number = np.zeros(len(pieces.segment), np.int64)
    for segment in np.unique(pieces.segment):
        mine = pieces.segment == segment
        number[mine] = np.arange(np.count_nonzero(mine))
        edges = number[pieces.edges[mine[pieces.edges].all(axis=1)]]
        yield Skeleton(str(segment), pieces.nodes[mine], edges, pieces.radius_nm[mine])


class Validation:
    """Gives the figures of a network on the validation region; higher "score" is better."""

    def __init__(self, run: Run) -> None:
        """Read, or draw, the truth once."""
        self._run = run
        self._judge = TracingJudge(run, validation_region(run), validation_truth(run))

    def __call__(self, model: UNet) -> dict[str, float]:
        """ "score" (normalized ERL), and what `low`, `high` and threshold gave it."""
        affinities = predict_tissue(self._predictor(model), self._run, self._judge.roi)
        rows = score_candidates(affinities, self._judge, LOWS, HIGHS, THRESHOLDS)
        best = best_candidate(rows, self._judge)
        return {"score": best["nerl"], **best}

    def _predictor(self, model: UNet) -> Predictor:
        from pipeline.learning.inference import Predictor

        train = self._run.config.train
        settings = self._run.config.predict.model_copy(
            update={"precision": train.precision, "threads": train.threads, "flips": "none"}
        )
        return Predictor.of(model, settings)
