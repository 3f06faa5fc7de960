"""Affinities of a box as the predict stage gives them: normalised image, 0 outside the tissue."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.intensity import tiles_to_voxels
from pipeline.geometry import Roi
from pipeline.stages.ingest import holds_tissue, mask_tiles, statistics_of
from pipeline.stages.run import Run

if TYPE_CHECKING:
    from pipeline.learning.inference import Predictor


def predict_tissue(predictor: Predictor, run: Run, roi: Roi) -> NDArray[np.uint8]:
    """(3, *roi.shape) uint8 affinities; 0, voxel by voxel, outside the tissue mask."""
    from pipeline.learning.inference import predict_roi

    return _predict(predict_roi, predictor, run, roi)


def predict_foreground(predictor: Predictor, run: Run, roi: Roi) -> NDArray[np.float32]:
    """(*roi.shape) float32 probability of foreground; 0, voxel by voxel, outside the mask."""
    from pipeline.learning.inference import predict_probability

    return _predict(predict_probability, predictor, run, roi)


def _predict(
    function: Callable[..., NDArray[Any]], predictor: Predictor, run: Run, roi: Roi
) -> NDArray[Any]:
    statistics, image = statistics_of(run), run.volume("image")

    def read(box: Roi) -> NDArray[np.float32]:
        return statistics.normalise(image.read(box))

    found = function(predictor, read, run.shape, roi, wanted=lambda tile: holds_tissue(tile, run))
    found *= tiles_to_voxels(mask_tiles(run), roi.shape, roi.offset)
    return found
