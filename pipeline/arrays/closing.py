"""Binary closing of a segmentation: the plain way to repair gaps, against which losses must stand.

The foreground is dilated and then eroded by a ball. Segments that touch the same piece of what was
added are joined, and the piece with them: closing two ends of a broken neurite makes one segment of
them.
"""

from __future__ import annotations

from itertools import product

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.arrays.labels import Labels
from pipeline.arrays.relabel import apply_lookup
from pipeline.errors import DtypeError, InputError, ShapeError


def close_segments(labels: Labels, radius_vox: int) -> Labels:
    """Labels after a closing of their foreground with a ball.

    Args:
        labels: (Y, X) or (Z, Y, X) uint64; 0 is background.
        radius_vox: of the ball, voxels, at least 1.

    Returns:
        uint64, a new array. Joined segments and what was added between them have the smallest of
        their labels. Every piece of what was added touches a segment. What lies outside the image
        counts as background when it is dilated and as foreground when it is eroded, so that
        objects cut by the border keep their voxels.

    Raises:
        ShapeError, DtypeError, InputError: other axes, labels or radius.
    """
    if labels.ndim not in (2, 3):
        raise ShapeError(f"expected labels (Y, X) or (Z, Y, X), got {labels.shape}")
    if labels.dtype != np.uint64:
        raise DtypeError(f"expected uint64 labels, got {labels.dtype}")
    if radius_vox < 1:
        raise InputError(f"a closing needs a radius of at least one voxel, got {radius_vox}")
    mask = labels != 0
    grown = ndimage.binary_dilation(mask, _ball(labels.ndim, radius_vox))
    closed = ndimage.binary_erosion(grown, _ball(labels.ndim, radius_vox), border_value=1)
    added = cc3d.connected_components(
        (closed & ~mask).astype(np.uint8), connectivity=3**labels.ndim - 1
    )
    pieces, segments = _touching(added, labels)
    names, roots = _smallest_labels(pieces, segments)
    result = apply_lookup(labels, names, roots)
    piece_label = np.zeros(int(added.max(initial=0)) + 1, np.uint64)
    piece_label[pieces] = apply_lookup(segments, names, roots)
    result[added > 0] = piece_label[added[added > 0]]
    return result


def _ball(dimensions: int, radius: int) -> NDArray[np.bool_]:
    steps = np.indices((2 * radius + 1,) * dimensions) - radius
    return np.asarray((steps**2).sum(axis=0) <= radius**2)


def _touching(
    added: NDArray[np.unsignedinteger], labels: Labels
) -> tuple[NDArray[np.int64], Labels]:
    """Pairs of a piece that was added and a segment that it touches, with diagonals."""
    pieces, segments = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    for step in product((-1, 0, 1), repeat=labels.ndim):
        if not any(step):
            continue
        here = tuple(
            slice(max(0, -s), n - max(0, s)) for s, n in zip(step, added.shape, strict=True)
        )
        there = tuple(
            slice(max(0, s), n - max(0, -s)) for s, n in zip(step, added.shape, strict=True)
        )
        both = (added[here] > 0) & (labels[there] > 0)
        pieces.append(added[here][both].astype(np.int64))
        segments.append(labels[there][both])
    return np.concatenate(pieces), np.concatenate(segments)


def _smallest_labels(pieces: NDArray[np.int64], segments: Labels) -> tuple[Labels, Labels]:
    """The segments that pieces touch, sorted, and the smallest label each is joined with."""
    names, index = np.unique(segments, return_inverse=True)
    if not len(names):
        return names, names
    count = len(names) + int(pieces.max()) + 1
    links = coo_array((np.ones(len(pieces), np.int8), (index, len(names) + pieces)), (count, count))
    groups = connected_components(links, directed=False)[1][: len(names)]
    first = np.full(groups.max() + 1, len(names), np.int64)
    np.minimum.at(first, groups, np.arange(len(names)))
    return names, names[first[groups]]
