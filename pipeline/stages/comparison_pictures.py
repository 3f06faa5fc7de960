"""Small pictures of what each row of a comparison found, and where it is wrong.

All rows show the same box, chosen by the truth alone: one plane in two dimensions, a projection
along z in three.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.labels import IGNORE, Labels
from pipeline.geometry import Roi, triple
from pipeline.stages.comparison_scores import Truth
from pipeline.stages.ingest import statistics_of
from pipeline.stages.run import Run
from pipeline.storage.atomic import replacing

RIGHT, ADDED, MISSED, UNKNOWN = 1, 2, 3, 4
"""Values of a picture of errors; 0 is background that was found to be background."""

# Planes are few: projections of thick boxes show little but crossings.
_EXTENT = (48, 320, 320)

Pictures = dict[str, NDArray[Any]]


def picture_box(truth: Truth) -> Roi:
    """The box to show, in voxels of the region: that with most labelled voxels, axis by axis.

    In two dimensions one plane, the first that holds an object.
    """
    objects = (truth.labels != 0) & (truth.labels != IGNORE)
    depth = 1 if truth.dimensions == 2 else _EXTENT[0]
    offset, shape = [0, 0, 0], list(truth.roi.shape)
    for axis, extent in enumerate((depth, *_EXTENT[1:])):
        others = tuple(a for a in range(3) if a != axis)
        counts = Roi(triple(offset), triple(shape)).slices
        along = objects[counts].sum(axis=others)
        shape[axis] = min(extent, len(along))
        offset[axis] = _first_plane(along) if depth == 1 and axis == 0 else _most(along, extent)
    return Roi(triple(offset), triple(shape))


def _first_plane(counts: NDArray[np.integer]) -> int:
    return int(np.argmax(counts > 0))


def _most(counts: NDArray[np.integer], extent: int) -> int:
    """Where the first window with the largest sum begins."""
    sums = np.concatenate([[0], np.cumsum(counts)])
    extent = min(extent, len(counts))
    return int(np.argmax(sums[extent:] - sums[:-extent]))


def row_pictures(segments: Labels, truth: Truth) -> Pictures:
    """Segments and errors of (Z, Y, X) segments of the region.

    Returns:
        "segments": (Y, X) uint16, renumbered by size; "errors": (Y, X) uint8 of the values above.
    """
    box = picture_box(truth).slices
    found, labels = segments[box], truth.labels[box]
    return {"segments": _projected(found), "errors": _errors(found, labels)}


def truth_pictures(truth: Truth, run: Run) -> Pictures:
    """The same box of the image, (Y, X) uint8, and of the truth, (Y, X) uint16."""
    box = picture_box(truth)
    labels = truth.labels[box.slices]
    image = statistics_of(run).normalise(run.volume("image").read(box.shift(truth.roi.offset)))
    picture = image.max(axis=0)
    low, high = (float(v) for v in np.percentile(picture, (1, 99.8)))
    grey = np.clip((picture - low) / (high - low if high > low else 1.0), 0, 1)
    known = np.where(labels == IGNORE, 0, labels)
    return {"image": np.rint(255 * grey**0.8).astype(np.uint8), "truth": _projected(known)}


def write_pictures(path: Path, pictures: Pictures) -> None:
    """Write an `.npz` file whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **pictures)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _errors(found: Labels, labels: Labels) -> NDArray[np.uint8]:
    """Column by column: an object that was found anywhere along z is found."""
    known = labels != IGNORE
    wanted = ((labels != 0) & known).any(axis=0)
    given = ((found != 0) & known).any(axis=0)
    cases = [~known.any(axis=0), wanted & given, wanted, given]
    return np.select(cases, [UNKNOWN, RIGHT, MISSED, ADDED], 0).astype(np.uint8)


def _projected(labels: Labels) -> NDArray[np.uint16]:
    """The first label along z, numbered from 1 by falling size; 0 is background."""
    first = np.argmax(labels != 0, axis=0)
    flat = np.take_along_axis(labels, first[None], axis=0)[0]
    ids, index, counts = np.unique(flat, return_inverse=True, return_counts=True)
    order = np.lexsort((ids, -counts, ids == 0))
    rank = np.empty(len(ids), np.int64)
    rank[order] = np.arange(1, len(ids) + 1)
    rank[ids == 0] = 0
    return np.minimum(rank, np.iinfo(np.uint16).max)[index].reshape(flat.shape).astype(np.uint16)
