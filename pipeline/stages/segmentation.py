"""From affinities to segments: what the stages of the segmentation have in common.

1. `fragments` labels each block on its own, and keeps its faces, inner edges and voxel counts.
2. `stitch` unites labels across faces, up and down a tree of block groups.
3. `edges` renames each block's edges and adds those that cross its lower faces.
4. `agglomerate` merges the edges, up and down a tree of block groups.
5. `collect` gathers edges, history and lookups into tables in which no block shows.
6. `relabel` writes fragments and segments on a grid of its own, so that files do not depend on
   the blocks.

The result is a function of the affinities, `low`, `high` and the thresholds. No step holds more
than a block, a group of blocks or a slab of ids; between the steps everything lies on disk.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.arrays.labels import affinity_scale
from pipeline.geometry import BlockGrid, Roi, Triple
from pipeline.stages.run import Run


@dataclass(frozen=True)
class SegmentationChoice:
    """The parameters in force: chosen on training data, or as configured."""

    low: float
    high: float
    thresholds: tuple[float, ...]


def segmentation_choice(run: Run) -> SegmentationChoice:
    """What the tuning stage chose, if the run has one, else the configuration."""
    config = run.config.segment
    if run.tuned:
        chosen = json.loads(run.path("tuning").read_text())
        return SegmentationChoice(chosen["low"], chosen["high"], (chosen["threshold"],))
    return SegmentationChoice(config.low, config.high, config.thresholds)


def untuned(run: Run, *names: str) -> dict[str, Any]:
    """The configured values; none where the tuning stage, an input of its own, chooses them."""
    return {} if run.tuned else run.config.segment.model_dump(include=set(names))


def segment_grid(run: Run, halo_upper: Triple = (0, 0, 0)) -> BlockGrid:
    """The user's blocks."""
    whole = Roi((0, 0, 0), run.shape)
    return BlockGrid(whole, run.config.segment.block, (0, 0, 0), halo_upper)


def stored_scale(run: Run) -> int:
    """The integer that stands for affinity 1 in the edge sums."""
    dtype = run.volume("affinities").dtype
    return 255 if np.issubdtype(dtype, np.floating) else affinity_scale(dtype)
