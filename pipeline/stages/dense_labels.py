"""Dense labels as targets: what their values stand for, and whether there is anything to learn.

Labels without a single instance are refused before anything is computed, as far as that can be
known by looking at a part of them; `require_foreground` knows it for certain, before training.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.label_roles import (
    UNKNOWN,
    assign_roles,
    check_roles,
    is_instance,
    number_pieces,
)
from pipeline.arrays.labels import IGNORE
from pipeline.errors import ConfigError, DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import BlockGrid, Roi, Triple
from pipeline.stages.run import Run
from pipeline.storage.npz import stored_file
from pipeline.storage.source import ImageSource, TiffSource, open_source
from pipeline.storage.volume import Volume

# What a check before the run reads at most: seconds, where labels are sparse in a huge volume.
_LOOK_AT_VOXELS = 2**28
_NAMED_VALUES = 8


def read_roles(run: Run, roi: Roi) -> NDArray[np.uint64]:
    """The targets in a box: instances, 0 and `IGNORE`.

    Raises:
        DataError: a label is negative and has no role.
    """
    if not run.config.targets.plane_components:
        return _assigned(run, roi)
    _, rows, columns = roi.slices
    path, roles = run.path("source_labels"), label_roles(run)
    stamp = path, stored_file(path).stat().st_mtime_ns, *(tuple(r) for r in roles.values())
    planes = [_plane(run, z, stamp)[rows, columns] for z in range(roi.offset[0], roi.end[0])]
    return np.stack(planes)


def _assigned(run: Run, roi: Roi) -> NDArray[np.uint64]:
    path = run.path("source_labels")
    try:
        return assign_roles(open_source(path).read(roi), **label_roles(run))
    except DataError as error:
        raise DataError(f"{path}: in {roi} {error}") from error


# Blocks of one plane ask for it one after the other.
@lru_cache(maxsize=32)
def _plane(run: Run, z: int, _stamp: tuple[Any, ...]) -> NDArray[np.uint64]:
    _, y, x = run.shape
    plane = _assigned(run, Roi((z, 0, 0), (1, y, x)))[0]
    return number_pieces(plane, first=z * y * x)


def check_label_volume(path: Path, shape: Triple, of: str) -> None:
    """Refuse what are no labels of a volume.

    Args:
        path: of the labels.
        shape: of the volume, z, y, x.
        of: what has this shape, for the message.

    Raises:
        DtypeError: no integers.
        ShapeError: another shape, or channels.
    """
    labels = open_source(path)
    if labels.dtype.kind not in "iub":
        raise DtypeError(f"{path}: labels must be integers, got {labels.dtype}")
    if isinstance(labels, Volume) and labels.channels is not None:
        raise ShapeError(f"{path}: expected labels (z, y, x), got {labels.channels} channels")
    if labels.shape != shape:
        raise ShapeError(f"{path}: labels of shape {labels.shape}, but {of} has shape {shape}")


def check_truth_labels(run: Run, shape: Triple, of: str) -> None:
    """As `check_label_volume`, for the labels of a run: their roles are checked too.

    Raises:
        InputError: roles that the labels cannot have.
    """
    path = run.path("source_labels")
    try:
        check_roles(open_source(path).dtype, **label_roles(run))
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error
    check_label_volume(path, shape, of)


def label_roles(run: Run) -> dict[str, tuple[int, ...]]:
    """Values of the labels that are ignored, and those that are background, in their order."""
    config = run.config.targets
    return {
        "ignore": tuple(sorted(set(config.ignore_labels))),
        "background": tuple(sorted(set(config.background_labels))),
    }


def any_instance(labels: NDArray[np.uint64]) -> bool:
    """Whether a voxel has a label that counts: neither 0 nor `IGNORE`."""
    return bool(((labels != 0) & (labels != IGNORE)).any())


def check_labels(run: Run) -> None:
    """Refuse labels that do not fit the image or the roles given, or that seem to hold no instance.

    Raises:
        ShapeError: another shape than the image, or channels.
        DtypeError: no integers.
        InputError: roles that the labels cannot have; no instance in the training region.
        ConfigError: options for tracings.
    """
    check_truth_labels(run, run.shape, "the image")
    if run.config.targets.grow_nm:
        raise ConfigError(
            "targets.grow_nm is for tracings, but the targets are labels; "
            "leave it out, or set targets.source: skeletons"
        )
    labels = open_source(run.path("source_labels"))
    looked_at = 0
    for roi in _looks(labels, run):
        if is_instance(labels.read(roi), **label_roles(run)).any():
            return
        looked_at += roi.size
        if looked_at > _LOOK_AT_VOXELS:
            return
    raise InputError(explain_no_foreground(run))


def require_foreground(run: Run) -> None:
    """Refuse to train on targets without a voxel of an instance in the training region.

    Raises:
        InputError: there is none; says what the region holds instead.
    """
    with closing(run.ledger("targets")) as ledger:
        counts = [m.stats.get("foreground") for m in ledger.marks.values() if m.state == "done"]
    # Blocks that an earlier version computed did not count: sampling finds out.
    if any(count is None for count in counts) or any(counts):
        return
    raise InputError(explain_no_foreground(run))


def explain_no_foreground(run: Run) -> str:
    """What the training region of a run without foreground holds, and what to do."""
    where = f"no voxel to learn from in the training region {run.train_roi}"
    if run.target_source == "skeletons":
        return (
            f"{run.path('source_skeletons')}: {where}: no tube of a tracing reaches it. Look at "
            "regions.train, and at axes, flip, unit and offset of the tracings"
        )
    path = run.path("source_labels")
    found: Counter[int] = Counter()
    for roi in _looks(open_source(path), run):
        values, counts = np.unique(open_source(path).read(roi), return_counts=True)
        found.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    most = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:_NAMED_VALUES]
    listed = [f"{value} ({_role(value, run)}, {count:,} voxels)" for value, count in most]
    more = f" and {len(found) - _NAMED_VALUES} more" if len(found) > _NAMED_VALUES else ""
    return (
        f"{path}: {where}: the labels there are {', '.join(listed)}{more}. Expected at least one "
        "instance, a value that is neither background nor ignored. Move regions.train to where "
        "there are labels, or correct targets.ignore_labels and targets.background_labels"
    )


def _role(value: int, run: Run) -> str:
    roles = label_roles(run)
    if value == UNKNOWN or value in roles["ignore"]:
        return "ignored"
    return "background" if value == 0 or value in roles["background"] else "an instance"


def _looks(labels: ImageSource, run: Run) -> Iterator[Roi]:
    """The training region in pieces, in a fixed order that comes around soon."""
    region = run.train_roi
    piece: Triple = run.config.ingest.block
    if isinstance(labels, TiffSource):
        # Whole planes are decoded at once.
        piece = (8, region.shape[1], region.shape[2])
    grid = BlockGrid(region, piece)
    order = list(range(len(grid)))
    random.Random(0).shuffle(order)
    return (grid[index].write for index in order)
