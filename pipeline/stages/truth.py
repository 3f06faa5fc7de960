"""The tracings of a run: all of them, those to learn from, those to be scored, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.metrics import ScoringOptions
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_nodes import crop_skeleton, keep_nodes, node_span, nodes_inside
from pipeline.errors import InputError
from pipeline.geometry import Roi
from pipeline.stages.run import Run
from pipeline.storage.swc import check_placement


def check_truth(run: Run) -> None:
    """Refuse tracings that cannot be read, or do not lie in the volume or the region to score."""
    check_placement(run.truth(), run.shape, run.swc_options)
    scored_truth(run)


def located_parameters(run: Run) -> dict[str, Any]:
    """The part of the configuration that decides which nodes tracings have, and where."""
    region = run.config.regions.score
    return {
        "region": region.model_dump() if region else None,
        "swc": run.config.input.swc.model_dump(),
        "voxel_size_nm": run.voxel_size_nm,
    }


def truth_parameters(run: Run) -> dict[str, Any]:
    """The part of the configuration that decides which nodes of which tracings are scored."""
    return {**located_parameters(run), "out_of_bounds": run.config.evaluate.out_of_bounds}


def located_truth(run: Run) -> list[Skeleton]:
    """The tracings inside the region to score, in the order of their names.

    Without such a region they are whole, whatever lies outside the volume.

    Raises:
        InputError: there is a region, and no node in it.
    """
    if run.config.regions.score is None:
        return run.truth()
    return list(_cut(run, run.path("source_skeletons"), run.truth_stamp, run.token))


@lru_cache(maxsize=2)
def _cut(run: Run, path: Path, _stamp: str, _token: str) -> tuple[Skeleton, ...]:
    return tuple(cropped(run.truth(), run.score_roi, f"{path}: regions.score"))


def scored_truth(run: Run) -> list[Skeleton]:
    """`located_truth` as it is scored.

    Nodes outside the volume stay, or go, as `evaluate.out_of_bounds` says.

    Raises:
        InputError: no node is left, or one lies outside where that is refused.
    """
    return list(_scored(run, run.path("source_skeletons"), run.truth_stamp, run.token))


@lru_cache(maxsize=2)
def _scored(run: Run, path: Path, _stamp: str, _token: str) -> tuple[Skeleton, ...]:
    rule = run.config.evaluate.out_of_bounds
    kept = []
    for skeleton, outside in zip(located_truth(run), _outside(run, _stamp, _token), strict=True):
        if rule == "raise" and outside:
            raise InputError(
                f"{path}: {outside} nodes of {skeleton.name} lie outside the volume "
                f"of {run.shape} voxels; check axes, flip, unit and offset, or set "
                "evaluate.out_of_bounds to zero or drop"
            )
        if rule != "drop" or not outside:
            kept.append(skeleton)
        elif (part := keep_nodes(skeleton, nodes_inside(skeleton, run.roi))) is not None:
            kept.append(part)
    if not kept:
        raise InputError(f"{path}: no node of any skeleton lies in the volume of {run.shape}")
    return tuple(kept)


@lru_cache(maxsize=2)
def _outside(run: Run, _stamp: str, _token: str) -> tuple[int, ...]:
    """How many nodes of each located tracing lie outside the volume."""
    spans = (node_span(skeleton, run.roi) for skeleton in located_truth(run))
    return tuple(span.nodes - span.inside for span in spans)


def scored_nodes(run: Run) -> NDArray[np.bool_] | None:
    """(N,) which nodes of `located_truth`, laid end to end, `scored_truth` has; None: all.

    Raises:
        As `scored_truth`.
    """
    located, scored = located_truth(run), scored_truth(run)
    if sum(len(s.nodes) for s in located) == sum(len(s.nodes) for s in scored):
        return None
    return np.concatenate([nodes_inside(skeleton, run.roi) for skeleton in located])


@dataclass(frozen=True)
class Outside:
    """Nodes outside the volume.

    Attributes:
        nodes: by the name of each tracing that has any, also of those left out.
        every: number of nodes of all tracings.
        left_out: names of the tracings that are not scored, because no node of them is left.
    """

    nodes: dict[str, int]
    every: int
    left_out: tuple[str, ...]

    def of(self, skeletons: Sequence[Skeleton]) -> list[int]:
        """How many nodes of each of these tracings lie outside."""
        return [self.nodes.get(skeleton.name, 0) for skeleton in skeletons]


def outside_volume(run: Run) -> Outside:
    """Nodes of the tracings outside the volume; none where a region to score cuts them anyway."""
    return _outside_volume(run, run.truth_stamp, run.token)


@lru_cache(maxsize=2)
def _outside_volume(run: Run, _stamp: str, _token: str) -> Outside:
    if run.config.regions.score is not None:
        return Outside({}, sum(len(s.nodes) for s in run.truth()), ())
    counts = _outside(run, _stamp, _token)
    found = {s.name: count for s, count in zip(located_truth(run), counts, strict=True)}
    kept = {skeleton.name for skeleton in scored_truth(run)}
    return Outside(
        {name: count for name, count in found.items() if count},
        sum(len(s.nodes) for s in run.truth()),
        tuple(sorted(found.keys() - kept)),
    )


def describe_placement(run: Run) -> dict[str, str]:
    """In words, how tracings were put into the volume, and what became of nodes outside."""
    swc, options = run.config.input.swc, run.swc_options
    offset = " x ".join(str(float(v)) for v in options.offset_vox)
    rule = {
        "zero": "count as background",
        "drop": "are left out with their edges",
        "raise": "are refused",
    }[run.config.evaluate.out_of_bounds]
    return {
        "tracings": (
            f"columns in the order {options.axes}, in {options.unit}; moved by {offset} voxels "
            f"(z, y, x); axes that run backwards: {', '.join(sorted(swc.flip)) or 'none'}"
        ),
        "out_of_bounds": f"nodes outside the volume {rule}",
    }


def training_truth(run: Run) -> list[Skeleton]:
    """The tracings inside the training region."""
    return cropped(run.truth(), run.train_roi, f"{run.path('source_skeletons')}: regions.train")


def cropped(skeletons: list[Skeleton], roi: Roi, what: str) -> list[Skeleton]:
    """The parts of skeletons inside a box; none at all is an error."""
    parts = [part for s in skeletons if (part := crop_skeleton(s, roi)) is not None]
    if not parts:
        raise InputError(f"{what} {roi} holds no node of any skeleton")
    return parts


def scoring_options(run: Run) -> ScoringOptions:
    """The conventions that the configuration asks for."""
    config = run.config.evaluate
    return ScoringOptions(
        config.repair, config.max_gap_nm, config.merge_min_nodes, config.merge_min_nm
    )
