"""Critical edges: the mistaken affinities that change how objects are connected.

An edge joins two neighbours along an axis: 6-neighbours in three dimensions, 4-neighbours in two.
Predicted edges P are the positive ones; target edges T join two voxels of one label that is not 0.
The edges that are right, P and T together, form the *remaining* components; a voxel without such an
edge lies in none, as a voxel without any positive edge is background. Wrongly negative edges (T,
not P) are mistakes in the target's graph T, wrongly positive ones (P, not T) in the prediction's
graph P. Mistaken edges of one sign form one mistake component where they meet at voxels that lie in
no remaining component. Such a component is critical, as in the LINEAR definition, if it does not
touch exactly one remaining component. Hence

    false merge   a positive edge between two objects that both remain is critical by itself; so is
                  a chain of positive edges through background from one to another, and a predicted
                  object of nothing but mistakes.
    false split   a negative edge between two parts of an object that no right edges join is
                  critical; so is a gap several voxels long, and an object missed as a whole.
    neither       a frayed rim; single voxels given to the neighbour. But a misplaced sheet of
                  voxels that right edges hold together is a remaining component of its own, cut
                  from one object and merged to another, and counts as both.

`critical_edges` gives the union of these with the voxel form of the decoded graphs (components over
the edges of T and of P; a voxel without an edge is background; connectivity 6 or 4), carried back
to edges: an edge is critical if *either* end lies in a critical component. A perfect prediction has
none.

Edges that end at an ignored voxel do not exist. All is linear in the number of voxels.

Source: Grim, Chandrashekar, Sumbul: "Efficient connectivity-preserving instance segmentation with
supervoxel-based loss function", Definition 4, which this module completes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.errors import DtypeError, ShapeError
from pipeline.learning.critical import plain_labels
from pipeline.learning.critical_groups import (
    Components,
    Groups,
    Marked,
    added_components,
    marked,
    missed_components,
)
from pipeline.learning.critical_links import (
    ADDED,
    MISSED,
    UNKNOWN,
    edges_within_groups,
    encode_edges,
    kinds_of_voxels,
    number_groups,
)

_RIGHT = 4  # bit of a group's kind


def critical_edges(
    labels: NDArray[Any], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The edges of false splits and of false merges, as the module's text defines them.

    Args:
        labels: (Z, Y, X) or (Y, X), the target; 0 is background, the uint64 `IGNORE` unknown.
            Other integer types are taken too, but cannot hold `IGNORE`.
        positive: (3, Z, Y, X) or (2, Y, X) bool, the predicted edges: affinity above 1/2, logit
            above 0. Channel d joins a voxel to its predecessor along axis d.

    Returns:
        Two bool masks shaped like `positive`: split-critical and merge-critical edges. Edges that
        leave the patch or end at an ignored voxel are in neither. The input is only read.

    Raises:
        ShapeError, DtypeError: shapes disagree; labels are not integers or edges not bool.
        DataError: a label is negative.
    """
    split, merge = (np.zeros(positive.shape, np.bool_) for _ in range(2))
    _fill(labels, positive, split, merge)
    return split, merge


def number_critical_edges(
    labels: NDArray[Any], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """As `critical_edges`: 0 or the number of the critical component that an edge belongs to.

    An edge of several components counts for one: that of its own voxel, else of its predecessor,
    else its component of mistaken edges.
    """
    split, merge = (np.zeros(positive.shape, np.int32) for _ in range(2))
    _fill(labels, positive, split, merge)
    return split, merge


def _fill(
    labels: NDArray[Any], positive: NDArray[np.bool_], split: NDArray[Any], merge: NDArray[Any]
) -> None:
    """Write the numbers of critical components into zeros shaped like `positive`."""
    _check_edges(labels, positive)
    plain = plain_labels("labels", labels)
    edges = np.require(positive, requirements=["C", "W"]).view(np.uint8)
    codes = encode_edges(plain, edges.reshape(labels.ndim, *plain.shape))
    kinds = kinds_of_voxels(codes)
    groups = Groups(codes, kinds, *number_groups(kinds, edges_within_groups(codes, kinds)))
    found_bits, wanted_bits = codes & np.uint8(7), codes >> np.uint8(3) & np.uint8(7)
    missed, added = marked(wanted_bits & ~found_bits), marked(found_bits & ~wanted_bits)
    for out, edges_of_sign, found, kind in (
        (split, missed, missed_components(groups, missed), MISSED),
        (merge, added, added_components(groups, added), ADDED),
    ):
        flat = out.reshape(labels.ndim, -1)
        _number_mistaken(groups, edges_of_sign, found, flat)
        if found.voxels.any():
            _carry_to_edges(groups, found.voxels, kind, flat)


def _check_edges(labels: NDArray[Any], positive: NDArray[np.bool_]) -> None:
    if labels.ndim not in (2, 3) or positive.shape != (labels.ndim, *labels.shape):
        raise ShapeError(
            "expected labels (Z, Y, X) with edges (3, Z, Y, X), or (Y, X) with (2, Y, X), got "
            f"{labels.shape} and {positive.shape}"
        )
    if labels.size >= 2**31:
        raise ShapeError(f"at most 2**31 - 1 voxels at once, got {labels.shape}: use smaller parts")
    if positive.dtype != np.bool_:
        raise DtypeError(f"expected bool edges, got {positive.dtype}: compare with a threshold")


@njit(cache=True, nogil=True)
def _number_mistaken(
    groups: Groups, mistaken: Marked, found: Components, out: NDArray[np.generic]
) -> None:
    """Number the critical components of mistaken edges of one sign, above those of voxels.

    An edge between two remaining components is a component by itself. `out` is (3 or 2, Z * Y * X).
    """
    group, kinds = groups.of_voxel, groups.kinds
    _, ny, nx = groups.codes.shape
    steps, above = np.array([ny * nx, nx, 1]), 3 - len(out)
    numbers = np.zeros(kinds.size, np.int32)
    count = found.voxels.max() if kinds.size else 0
    for i, d in zip(mistaken.voxels, mistaken.axes):  # noqa: B905 (numba)
        a, b = group[i], group[i - steps[d]]
        if kinds[a] & kinds[b] & _RIGHT:
            if a != b:
                count += 1
                out[d - above, i] = count
            continue
        first = found.edges[b if kinds[a] & _RIGHT else a]
        if found.edges_critical[first]:
            if numbers[first] == 0:
                count += 1
                numbers[first] = count
            out[d - above, i] = numbers[first]


@njit(cache=True, nogil=True)
def _carry_to_edges(
    groups: Groups, numbers: NDArray[np.int32], kind: int, out: NDArray[np.generic]
) -> None:
    """Put the numbers of groups of missed or added voxels on all edges at them.

    The number of an edge's own voxel comes later than that of its predecessor, and stays.
    """
    codes, kinds = groups.codes.reshape(-1), groups.voxel_kinds.reshape(-1)
    nz, ny, nx = groups.codes.shape
    above = 3 - len(out)
    for r in range(nz * ny):
        z, y = r // ny, r % ny
        for i in range(r * nx, (r + 1) * nx):
            if kinds[i] != kind or numbers[groups.of_voxel[i]] == 0:
                continue
            number, x = numbers[groups.of_voxel[i]], i - r * nx
            for d in range(above, 3):
                step = (ny * nx, nx, 1)[d]
                place, extent = (z, y, x)[d], (nz, ny, nx)[d]
                if place > 0 and not codes[i - step] & UNKNOWN:
                    out[d - above, i] = number
                if place + 1 < extent and not codes[i + step] & UNKNOWN:
                    out[d - above, i + step] = number
