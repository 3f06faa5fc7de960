"""Critical edges: the mistaken affinities that change how objects are connected.

An edge joins two 6-neighbours. Predicted edges P are the positive ones; target edges T
join two voxels of one label that is not 0. The edges that are right, P and T together, form the
*remaining* components; a voxel without such an edge lies in none, as a voxel without any positive
edge is background. Wrongly negative edges (T, not P) are mistakes in the target's graph T, wrongly
positive ones (P, not T) in the prediction's graph P. Mistaken edges of one sign form one mistake
component where they meet at voxels that lie in no remaining component. Such a component is
critical, as in the LINEAR definition, if it does not touch exactly one remaining component. Hence

    false merge   a positive edge between two objects that both remain is critical by itself; so is
                  a chain of positive edges through background from one to another, and a predicted
                  object of nothing but mistakes.
    false split   a negative edge between two parts of an object that no right edges join is
                  critical; so is a gap several voxels long, and an object missed as a whole.
    neither       a frayed rim; single voxels given to the neighbour. But a misplaced sheet of
                  voxels that right edges hold together is a remaining component of its own, cut
                  from one object and merged to another, and counts as both.

`critical_edges` gives the union of these with the voxel form of the decoded graphs (components over
the edges of T and of P; a voxel without an edge is background; 6-connectivity), carried back to
edges: an edge is critical if *either* end lies in a critical component. A perfect prediction has
none.

Edges that end at an ignored voxel do not exist. All is linear in the number of voxels.

Source: Grim, Chandrashekar, Sumbul: "Efficient connectivity-preserving instance segmentation with
supervoxel-based loss function", Definition 4, which this module completes.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.labels import IGNORE
from pipeline.errors import DtypeError, ShapeError
from pipeline.learning.critical import Sign, number_critical_components
from pipeline.learning.critical_modes import touch, untouched
from pipeline.learning.disjoint import find, flatten, union


def critical_edges(
    labels: NDArray[np.uint64], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The edges of false splits and of false merges, as the module's text defines them.

    Args:
        labels: (Z, Y, X) uint64 target; 0 is background, `IGNORE` unknown.
        positive: (3, Z, Y, X) bool, the predicted edges: affinity above 1/2, logit above 0.
            Channel d joins a voxel to its predecessor along axis d.

    Returns:
        Two (3, Z, Y, X) bool masks: split-critical and merge-critical edges. Edges that leave the
        patch or end at an ignored voxel are in neither.

    Raises:
        ShapeError, DtypeError: shapes disagree; labels are not uint64 or edges not bool.
    """
    split, merge = number_critical_edges(labels, positive)
    return split > 0, merge > 0


def number_critical_edges(
    labels: NDArray[np.uint64], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """As `critical_edges`: 0 or the number of the critical component that an edge belongs to.

    An edge of several components counts for one: that of its own voxel, else of its predecessor,
    else its component of mistaken edges.
    """
    _check_edges(labels, positive)
    wanted, valid = _target_edges(labels, labels == IGNORE)
    found = positive & valid
    remaining = _joined_voxels(found & wanted)
    target, decoded = ((_joined_voxels(e) + 1).reshape(labels.shape) for e in (wanted, found))
    numbers = []
    signs: tuple[tuple[Sign, NDArray[np.bool_]], ...] = (
        ("negative", wanted & ~found),
        ("positive", found & ~wanted),
    )
    for sign, wrong in signs:
        voxels = number_critical_components(target, decoded, connectivity=6, sign=sign)
        edges = _mistaken_edge_components(wrong, remaining)
        _carry_to_edges(voxels, edges, valid)
        numbers.append(edges)
    return numbers[0], numbers[1]


def _check_edges(labels: NDArray[np.uint64], positive: NDArray[np.bool_]) -> None:
    if labels.ndim != 3 or positive.shape != (3, *labels.shape):
        raise ShapeError(
            f"expected labels (Z, Y, X) and edges (3, Z, Y, X), got {labels.shape} and "
            f"{positive.shape}"
        )
    if labels.dtype != np.uint64 or positive.dtype != np.bool_:
        raise DtypeError(
            f"expected uint64 labels and bool edges, got {labels.dtype} and {positive.dtype}"
        )


def _target_edges(
    labels: NDArray[np.uint64], ignored: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Edges within one object, and edges that exist: both ends in the patch and known."""
    wanted = np.zeros((3, *labels.shape), dtype=np.bool_)
    valid = np.zeros_like(wanted)
    for axis in range(3):
        here: list[slice] = [slice(None)] * 3
        there = list(here)
        here[axis], there[axis] = slice(1, None), slice(None, -1)
        h, t = tuple(here), tuple(there)
        valid[axis][h] = ~(ignored[h] | ignored[t])
        wanted[axis][h] = (labels[h] == labels[t]) & (labels[h] != 0) & valid[axis][h]
    return wanted, valid


@njit(cache=True, nogil=True)
def _joined_voxels(edges: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Flat root of each voxel's component over the edges, -1 for a voxel without an edge."""
    _, nz, ny, nx = edges.shape
    steps = (ny * nx, nx, 1)
    parent = np.arange(nz * ny * nx).astype(np.int32)
    alone = np.ones(parent.size, dtype=np.bool_)
    flat = edges.reshape(3, -1)
    for i in range(parent.size):
        for d in range(3):
            if flat[d, i]:
                union(parent, i, i - steps[d])
                alone[i] = alone[i - steps[d]] = False
    flatten(parent)
    return np.where(alone, np.int32(-1), parent)


@njit(cache=True, nogil=True)
def _mistaken_edge_components(
    mistakes: NDArray[np.bool_], remaining: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Numbers of the critical components of mistaken edges, 0 elsewhere; (3, Z, Y, X).

    Mistaken edges meet at the voxels that are in no remaining component ("free" ones).
    """
    _, _, ny, nx = mistakes.shape
    steps = (ny * nx, nx, 1)
    flat = mistakes.reshape(3, -1)
    parent = np.arange(remaining.size).astype(np.int32)
    for i in range(parent.size):
        for d in range(3):
            if flat[d, i] and remaining[i] < 0 and remaining[i - steps[d]] < 0:
                union(parent, i, i - steps[d])
    touched = untouched(parent.size)
    for i in range(parent.size):
        for d in range(3):
            if flat[d, i]:
                j = i - steps[d]
                if remaining[i] < 0 and remaining[j] >= 0:
                    touch(touched, find(parent, i), remaining[j])
                elif remaining[j] < 0 and remaining[i] >= 0:
                    touch(touched, find(parent, j), remaining[i])
    return _number_edges(flat, remaining, parent, touched, steps).reshape(mistakes.shape)


@njit(cache=True, nogil=True)
def _number_edges(
    flat: NDArray[np.bool_],
    remaining: NDArray[np.int32],
    parent: NDArray[np.int32],
    touched: NDArray[np.int32],
    steps: tuple[int, int, int],
) -> NDArray[np.int32]:
    """Consecutive numbers; an edge between two remaining components is a component by itself."""
    numbers = np.zeros((3, remaining.size), dtype=np.int32)
    number_of_root = np.zeros(remaining.size, dtype=np.int32)
    count = 0
    for i in range(remaining.size):
        for d in range(3):
            if not flat[d, i]:
                continue
            j = i - steps[d]
            if remaining[i] >= 0 and remaining[j] >= 0:
                if remaining[i] != remaining[j]:
                    count += 1
                    numbers[d, i] = count
                continue
            root = find(parent, i if remaining[i] < 0 else j)
            if touched[root] < 0:
                if number_of_root[root] == 0:
                    count += 1
                    number_of_root[root] = count
                numbers[d, i] = number_of_root[root]
    return numbers


@njit(cache=True, nogil=True)
def _carry_to_edges(
    voxels: NDArray[np.int32], edges: NDArray[np.int32], valid: NDArray[np.bool_]
) -> None:
    """Put the numbers of voxel components on the edges at them, in place.

    Edge components keep what is left, with numbers above those of the voxel components.
    """
    _, _, ny, nx = edges.shape
    steps = (ny * nx, nx, 1)
    at, numbers, exists = voxels.reshape(-1), edges.reshape(3, -1), valid.reshape(3, -1)
    count = at.max()
    for d in range(3):
        for i in range(steps[d], at.size):
            if not exists[d, i]:
                continue
            if at[i] > 0:
                numbers[d, i] = at[i]
            elif at[i - steps[d]] > 0:
                numbers[d, i] = at[i - steps[d]]
            elif numbers[d, i] > 0:
                numbers[d, i] += count
