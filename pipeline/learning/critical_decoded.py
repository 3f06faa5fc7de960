"""Critical voxels of decoded affinities, carried to edges: the affinity form as it was published.

Target and prediction are decoded to labels, components over their edges; a voxel without an edge is
background. Critical components of these labels (`pipeline.learning.critical`) are carried back to
edges: an edge is critical if *either* end lies in a critical component (with both, a component of
one voxel would have no edge). Two objects that touch, and are merged without a voxel of background
between them, are not seen; `pipeline.learning.critical_edges` sees them.

Source: Grim, Chandrashekar, Sumbul: "Efficient connectivity-preserving instance segmentation with
supervoxel-based loss function", Definition 4; the way back to edges is ours.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.labels import IGNORE
from pipeline.errors import ShapeError
from pipeline.learning.critical import Mode, number_both_signs
from pipeline.learning.disjoint import apart, flatten, union


def number_critical_decoded(
    labels: NDArray[np.uint64],
    positive: NDArray[np.bool_],
    *,
    connectivity: int | None = None,
    mode: Mode = "linear",
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Split- and merge-critical edges; 0 or the number of the component they belong to.

    Args:
        labels: (Z, Y, X) or (Y, X) uint64 target; 0 is background, `IGNORE` unknown.
        positive: (3, Z, Y, X) or (2, Y, X) bool: predicted edges. Channel d joins a voxel to its
            predecessor along axis d.
        connectivity: of the decoded labels; none: 6 or 4, as the edges are.
        mode: definition of a critical component.

    Returns:
        Two int32 arrays like `positive`. An edge of two components counts for that of its own
        voxel. Edges that leave the patch or end at an ignored voxel are in neither.

    Raises:
        ShapeError: the shapes disagree; and as `number_both_signs`.
    """
    if labels.ndim not in (2, 3) or positive.shape != (labels.ndim, *labels.shape):
        raise ShapeError(
            f"labels {labels.shape} want edges ({labels.ndim}, "
            f"{', '.join(map(str, labels.shape))}), got {positive.shape}"
        )
    known = np.zeros(positive.shape, np.bool_)
    wanted = np.zeros(positive.shape, np.bool_)
    for axis in range(labels.ndim):
        here, there = (
            (slice(None),) * axis + (part,) for part in (slice(1, None), slice(None, -1))
        )
        known[axis][here] = (labels[here] != IGNORE) & (labels[there] != IGNORE)
        wanted[axis][here] = (labels[here] == labels[there]) & (labels[here] != 0)
    steps = np.array([int(np.prod(labels.shape[d + 1 :])) for d in range(labels.ndim)])
    flat = known.reshape(labels.ndim, -1)
    target, decoded = (
        _decode((edges & known).reshape(labels.ndim, -1), steps).reshape(labels.shape)
        for edges in (wanted, positive)
    )
    faces = 2 * labels.ndim if connectivity is None else connectivity
    signs = number_both_signs(target, decoded, connectivity=faces, mode=mode)
    missed, added = (_carry(sign.reshape(-1), flat, steps) for sign in signs)
    return missed.reshape(positive.shape), added.reshape(positive.shape)


@njit(cache=True, nogil=True)
def _decode(edges: NDArray[np.bool_], steps: NDArray[np.int64]) -> NDArray[np.int32]:
    """1 + the first voxel of each voxel's component over the edges; 0 without an edge."""
    parent = apart(edges.shape[1])
    joined = np.zeros(edges.shape[1], dtype=np.bool_)
    for d in range(steps.size):
        for i in range(steps[d], edges.shape[1]):
            if edges[d, i]:
                union(parent, i, i - steps[d])
                joined[i] = joined[i - steps[d]] = True
    flatten(parent)
    for i in range(parent.size):
        parent[i] = parent[i] + 1 if joined[i] else 0
    return parent


@njit(cache=True, nogil=True)
def _carry(
    numbers: NDArray[np.int32], known: NDArray[np.bool_], steps: NDArray[np.int64]
) -> NDArray[np.int32]:
    """The number of an edge's own voxel, else of its predecessor."""
    out = np.zeros(known.shape, dtype=np.int32)
    for d in range(steps.size):
        for i in range(steps[d], numbers.size):
            if known[d, i]:
                out[d, i] = numbers[i] if numbers[i] else numbers[i - steps[d]]
    return out
