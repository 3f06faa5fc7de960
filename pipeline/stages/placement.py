"""Placement: do the tracings lie on what is bright in the image?

Axes, flips and units of tracings are easily wrong, and then the network learns noise. So the image
is looked at where the nodes are, before anything is learned or scored. The result is a finding, not
a failure: `placement.json` holds the shares, and a warning if few nodes lie on bright voxels.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.neighbourhood import neighbourhood_means
from pipeline.geometry import Block, Roi, triple
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.ingest import statistics_of
from pipeline.stages.run import Run
from pipeline.storage.atomic import write_json
from pipeline.storage.swc import check_placement, judge_placement
from pipeline.storage.volume import Volume

# The mean of a voxel and its neighbours is bright if it exceeds the volume's median by so many
# standard errors: a node may be a voxel off, and a dim neurite drown in the noise of one voxel.
_SIGMA = 4.0
_NEIGHBOURS = 27
# Nodes in one such cube are read together.
_CELL = 64


def _placement(_block: Block, run: Run) -> BlockResult:
    statistics, image = statistics_of(run), run.volume("image")
    error = 1.4826 * statistics.mad / np.sqrt(_NEIGHBOURS)
    threshold = statistics.median + _SIGMA * error

    def is_bright(voxels: NDArray[np.int64]) -> NDArray[np.bool_]:
        bright: NDArray[np.bool_] = _means(image, voxels) > threshold
        return bright

    placement = judge_placement(run.truth(), is_bright, run.shape, run.swc_options)
    result: dict[str, Any] = {
        "bright_above": float(threshold),
        "used": asdict(placement.used),
        "better": asdict(placement.better) if placement.better else None,
        "warning": placement.warning,
    }
    write_json(run.path("placement"), result)
    return BlockResult(stats={"bright_share": round(placement.used.share_inside, 6)})


def _means(image: Volume, voxels: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean around each voxel (M, 3) of the volume; each cube that holds any is read once."""
    means = np.empty(len(voxels))
    _, cell = np.unique(voxels // _CELL, axis=0, return_inverse=True)
    order = np.argsort(cell.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(cell.reshape(-1)))
    for chosen in np.split(order, ends[:-1]):
        low, high = voxels[chosen].min(axis=0), voxels[chosen].max(axis=0) + 1
        box = Roi.between(triple(low), triple(high)).grow((1, 1, 1)).intersect(image.roi)
        means[chosen] = neighbourhood_means(image.read(box), voxels[chosen] - box.offset)
    return means


def _check(run: Run) -> None:
    check_placement(run.truth(), run.shape, run.swc_options)


PLACEMENT = Stage(
    name="placement",
    version=2,
    reads=("image", "statistics", "source_skeletons"),
    writes=("placement",),
    parameters=lambda run: {
        "swc": run.config.input.swc.model_dump(),
        "voxel_size_nm": run.voxel_size_nm,
    },
    grid=one_block,
    create=lambda run: write_json(run.path("placement"), {}),
    check=_check,
    process=_placement,
)


def placement_warning(run: Run) -> str | None:
    """What the stage has to say against the placement of the tracings, if it has run."""
    return read_warning(run, "placement")


def read_warning(run: Run, artifact: str) -> str | None:
    """The warning in a finding about the place of tracings, if there is one."""
    path = run.path(artifact)
    if not path.exists():
        return None
    found: str | None = json.loads(path.read_text()).get("warning")
    return found
