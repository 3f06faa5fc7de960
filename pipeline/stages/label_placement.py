"""Do the tracings lie on the segments that they are to judge?

Where few nodes have a segment, the segmentation may be poor, or the tracings may run another way.
So the other flips and orders of the axes are tried on a sample of the nodes; where at least half of
the nodes lie on segments, no voxel is looked at, but a unit that makes the tracings far too small
is still told. The result is a finding, not a failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.geometry import Block
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.node_labels import gather_node_labels
from pipeline.stages.placement import read_warning
from pipeline.stages.run import Run
from pipeline.stages.truth import Outside, describe_placement, outside_volume, truth_parameters
from pipeline.storage.atomic import write_json
from pipeline.storage.source import labels_at, translation_vox
from pipeline.storage.swc_placement import SEGMENTATION, judge_placement, suggest_unit

_ENOUGH = 0.5
# Of the tracings that are left out so many are named.
_NAMED = 5
# Of a voxel: what pyramids of others move their levels by.
_USUAL = 0.5


def _process(_block: Block, run: Run) -> BlockResult:
    outside = outside_volume(run)
    labelled = int(np.count_nonzero(gather_node_labels("node_labels", run)))
    share = labelled / outside.every
    result: dict[str, Any] = {"share": share, "better": None}
    warnings = [*about_outside(outside, run), *_about_translation(run)]
    if share < _ENOUGH:
        found = judge_placement(
            run.truth(),
            lambda voxels: labels_at(run.path("segments"), voxels) != 0,
            run.shape,
            run.swc_options,
            SEGMENTATION,
        )
        warnings += [found.warning] if found.warning else []
        result["better"] = asdict(found.better) if found.better else None
    elif unit := suggest_unit(run.truth(), run.shape, run.swc_options, SEGMENTATION):
        # A corner of the volume may be labelled throughout.
        warnings.append(unit)
    result["warning"] = "; ".join(warnings) or None
    write_json(run.path("label_placement"), result)
    return BlockResult(stats={"share": round(share, 6)})


def about_outside(outside: Outside, run: Run) -> Iterator[str]:
    """What is to be said of nodes outside the volume, and of the tracings left out for them."""
    count = sum(outside.nodes.values())
    if count:
        rule = describe_placement(run)["out_of_bounds"].removeprefix("nodes outside the volume ")
        yield f"{count:,} of {outside.every:,} nodes of the tracings lie outside the volume: {rule}"
    if outside.left_out:
        names = ", ".join(outside.left_out[:_NAMED])
        more = len(outside.left_out) - _NAMED
        yield f"not scored, because wholly outside: {names}" + (
            f" and {more:,} more" if more > 0 else ""
        )


def _about_translation(run: Run) -> Iterator[str]:
    """Physical tracings may count from an origin that the metadata of the volume speak of."""
    shift, swc = translation_vox(run.source), run.config.input.swc
    # Coarser levels lie half a voxel off by convention; who gives an offset knows of another.
    if swc.unit == "voxel" or any(swc.offset) or max(map(abs, shift)) <= _USUAL:
        return
    place = ", ".join(f"{v:g}" for v in shift)
    remedy = " ".join(f"{0 - v:g}" for v in shift)
    yield (
        f"the metadata of the volume put its first voxel at {place} voxels (z, y, x), which is not "
        f"used: if the tracings count from that origin, set --offset {remedy} (input.swc.offset)"
    )


LABEL_PLACEMENT = Stage(
    name="label_placement",
    version=2,
    reads=("segments", "node_labels", "source_skeletons"),
    writes=("label_placement",),
    parameters=truth_parameters,
    grid=one_block,
    create=lambda run: write_json(run.path("label_placement"), {}),
    process=_process,
)


def label_placement_warning(run: Run) -> str | None:
    """What the stage has to say against the place of the tracings, if it has run."""
    return read_warning(run, "label_placement")
