"""Targets: dense labels, or tracings drawn as tubes, as one label volume with an ignore value."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.labels import IGNORE
from pipeline.arrays.tube_growth import Growth
from pipeline.arrays.tubes import training_targets
from pipeline.errors import ConfigError
from pipeline.geometry import Block, BlockGrid, Roi
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.dense_labels import check_labels, read_roles
from pipeline.stages.ingest import round_up, statistics_of
from pipeline.stages.run import Run
from pipeline.stages.truth import training_truth
from pipeline.storage.swc import check_placement
from pipeline.storage.volume import Volume

# The noise of a voxel, in standard deviations, that hardly any of the background exceeds.
_NOISE = 3.0
# The parameters of tubes that have always been part of the key.
_DRAWN = {"radius_nm", "min_radius_nm", "shell_nm", "background"}


def _grid(run: Run) -> BlockGrid:
    return BlockGrid.over(run.shape, round_up(run.config.ingest.block, run.config.chunk))


def _check(run: Run) -> None:
    if run.target_source == "labels":
        check_labels(run)
        return
    config = run.config.targets
    for name in ("ignore_labels", "background_labels", "plane_components"):
        if getattr(config, name):
            raise ConfigError(
                f"targets.{name} is for dense labels, but the targets are tracings; "
                "leave it out, or set targets.source: labels"
            )
    check_placement(run.truth(), run.shape, run.swc_options)
    training_truth(run)


def _create(run: Run) -> None:
    Volume.create(
        run.path("targets"),
        run.shape,
        np.uint64,
        chunks=run.config.chunk,
        voxel_size_nm=run.voxel_size_nm,
    )


def _targets(block: Block, run: Run) -> BlockResult:
    labels = target_labels(run, block.write)
    if not labels.any():
        return BlockResult("empty")
    run.volume("targets").write(block.write, labels)
    learned = labels[block.write.intersect(run.train_roi).relative_to(block.write).slices]
    ignored = int(np.count_nonzero(learned == IGNORE))
    foreground = int(np.count_nonzero(learned)) - ignored
    return BlockResult(stats={"foreground": foreground, "ignored": ignored})


def target_labels(run: Run, roi: Roi) -> NDArray[np.uint64]:
    """What a network should find in any box: instances, 0 and `IGNORE`."""
    return _drawn(roi, run) if run.target_source == "skeletons" else read_roles(run, roi)


def _drawn(roi: Roi, run: Run) -> NDArray[np.uint64]:
    skeletons = run.truth()
    config = run.config.targets
    return training_targets(
        skeletons,
        range(1, len(skeletons) + 1),
        roi,
        voxel_size_nm=run.voxel_size_nm,
        radius_nm=config.radius_nm,
        min_radius_nm=config.min_radius_nm or min(run.voxel_size_nm),
        shell_nm=config.shell_nm,
        negatives=config.background,
        neighbourhood_nm=config.neighbourhood_nm,
        sampled_share=config.sampled_share,
        sampled_seed=config.sampled_seed,
        growth=_growth(run),
    )


def _growth(run: Run) -> Growth | None:
    config = run.config.targets
    if not config.grow_nm:
        return None
    read = run.volume("image").read
    if config.grow_threshold is not None:
        return Growth(
            read=read, volume=run.roi, reach_nm=config.grow_nm, threshold=config.grow_threshold
        )
    statistics = statistics_of(run)
    return Growth(
        read=read,
        volume=run.roi,
        reach_nm=config.grow_nm,
        fraction=_fraction(run),
        background=statistics.median,
        floor=statistics.median + _NOISE * 1.4826 * statistics.mad,
    )


def _fraction(run: Run) -> float:
    chosen = run.config.targets.grow_fraction
    return 0.5 if chosen is None else chosen


def _parameters(run: Run) -> dict[str, object]:
    """What matters of the options: those that are off do not outdate earlier runs."""
    source, config = run.target_source, run.config.targets
    parameters: dict[str, object] = {
        "source": source,
        "train": run.train_roi.offset + run.train_roi.shape,
        "voxel_size_nm": run.voxel_size_nm,
    }
    if source == "labels":
        if config.ignore_labels or config.background_labels:
            parameters["ignore_labels"] = sorted(set(config.ignore_labels))
            parameters["background_labels"] = sorted(set(config.background_labels))
        if config.plane_components:
            parameters["plane_components"] = True
        return parameters
    parameters |= config.model_dump(include=_DRAWN)
    parameters["swc"] = run.config.input.swc.model_dump()
    if config.background != "assumed":
        parameters["neighbourhood_nm"] = config.neighbourhood_nm
    if config.background == "sampled":
        parameters |= config.model_dump(include={"sampled_share", "sampled_seed"})
    if config.grow_nm:
        parameters |= config.model_dump(include={"grow_nm", "grow_threshold"})
        if config.grow_threshold is None:
            parameters["grow_fraction"] = _fraction(run)
    return parameters


def _statistics(run: Run) -> tuple[str, ...]:
    """Growth compares with the background of the whole volume."""
    config = run.config.targets
    relative = bool(config.grow_nm) and config.grow_threshold is None
    return ("statistics",) if relative and run.target_source == "skeletons" else ()


TARGETS = Stage(
    name="targets",
    version=1,
    reads=("image", "source_targets"),
    more=_statistics,
    writes=("targets",),
    parameters=_parameters,
    grid=_grid,
    create=_create,
    check=_check,
    wanted=lambda block, run: block.write.overlaps(run.train_roi),
    process=_targets,
)
