"""Critical components: the mistakes of a segmentation that change how objects are connected.

**Voxels.** Voxels are nodes, neighbours under connectivity k are joined. The objects of a label
image are its components: one label, not 0, and a path inside. A mistake voxel of negative sign has
a target label and prediction 0; of positive sign it has a predicted label and target 0, and then
the objects are those of the prediction. A mistake component C is a component of mistake voxels
within one label. What is computed here is the LINEAR definition (Corollaries 1 to 3): C is
critical if it is a whole object, or touches at least two different components of its object minus
**all** mistakes; in one number: it does not touch exactly one. So mistakes that are responsible
only together are all flagged: both gaps of a broken ring, for example.

**Edges.** An edge joins two 6-neighbours. Predicted edges P are the positive ones; target edges T
join two voxels of one label that is not 0. The edges that are right, P and T together, form the
*remaining* components; a voxel without such an edge lies in none, as a voxel without any positive
edge is background. Wrongly negative edges (T, not P) are mistakes in the target's graph T, wrongly
positive ones (P, not T) in the prediction's graph P. Mistaken edges of one sign form one mistake
component where they meet at voxels that lie in no remaining component. Such a component is
critical, as above, if it does not touch exactly one remaining component. Hence

    false merge   a positive edge between two objects that both remain is critical by itself; so is
                  a chain of positive edges through background from one to another, and a predicted
                  object of nothing but mistakes. A boundary misplaced by a voxel is not.
    false split   a negative edge between two parts of an object that no right edge joins directly
                  is critical; so is a gap several voxels long, and an object missed as a whole.
                  A frayed rim is not.

`critical_edges` gives the union of these with the voxel form of the decoded graphs (components over
the edges of T and of P; a voxel without an edge is background; 6-connectivity), carried back to
edges: an edge is critical if *either* end lies in a critical component. A perfect prediction has
none.

Ignored voxels are left out of mistakes and of neighbourhoods alike: they are in no object, and
their edges do not exist. All is linear in the number of voxels: union-find and one look at the
neighbours of each mistake.

Source: Grim, Chandrashekar, Sumbul: "Efficient connectivity-preserving instance segmentation with
supervoxel-based loss function"; the edge form is this project's completion of its Definition 4.
"""

from __future__ import annotations

from itertools import product
from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.errors import DtypeError, InputError, ShapeError
from pipeline.learning.targets import IGNORE

Sign = Literal["negative", "positive"]

_NONE = -1  # no remaining component touched so far
_SEVERAL = -2
_LARGEST_STEP = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}  # axes that change between neighbours, at most


def critical_components(
    target: NDArray[Any],
    prediction: NDArray[Any],
    *,
    connectivity: int | None = None,
    mode: Literal["linear"] = "linear",
    sign: Sign = "negative",
    ignore: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.bool_], int]:
    """The voxels of the critical components of one sign, and the number of components.

    Args:
        target: (Y, X) or (Z, Y, X), any integer type or bool; 0 is background.
        prediction: same shape, any integer type or bool.
        connectivity: 4 or 8 in two dimensions, 6, 18 or 26 in three; none: 8 or 26.
        mode: which definition; "linear" as in the module's text.
        sign: "negative" finds splits and omissions, "positive" merges and additions.
        ignore: same shape; True takes a voxel out of mistakes and neighbourhoods.

    Raises:
        ShapeError, DtypeError: shapes disagree or are not 2-D or 3-D; labels are not integers.
        InputError: a connectivity that the dimension does not have, an unknown mode or sign.
    """
    if mode != "linear":
        raise InputError(f"mode must be 'linear', got {mode!r}")
    components = number_critical_components(
        target, prediction, connectivity=connectivity, sign=sign, ignore=ignore
    )
    return components > 0, int(components.max(initial=0))


def number_critical_components(
    target: NDArray[Any],
    prediction: NDArray[Any],
    *,
    connectivity: int | None = None,
    sign: Sign = "negative",
    ignore: NDArray[np.bool_] | None = None,
) -> NDArray[np.int32]:
    """As `critical_components`: 0 or the number of a voxel's component, by first voxels."""
    _check(target, prediction, ignore)
    if sign not in ("negative", "positive"):
        raise InputError(f"sign must be 'negative' or 'positive', got {sign!r}")
    objects, other = (target, prediction) if sign == "negative" else (prediction, target)
    labels, mistakes = _mistakes(objects, other, ignore)
    offsets = _backward_offsets(target.ndim, connectivity)
    parts = _object_parts(labels, mistakes, offsets)
    touched = _touched_parts(parts, labels, mistakes, offsets)
    return _number(parts, mistakes, touched).reshape(target.shape)


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


def _check(
    target: NDArray[Any], prediction: NDArray[Any], ignore: NDArray[np.bool_] | None
) -> None:
    shapes = {a.shape for a in (target, prediction, ignore) if a is not None}
    if len(shapes) != 1 or target.ndim not in (2, 3):
        raise ShapeError(
            f"target, prediction and ignore must share one 2-D or 3-D shape, got {sorted(shapes)}"
        )
    if target.size >= 2**31:
        raise ShapeError(f"at most 2**31 - 1 voxels at once, got {target.shape}: use smaller parts")
    for name, labels in (("target", target), ("prediction", prediction)):
        if labels.dtype.kind not in "iub":
            raise DtypeError(f"{name}: expected integer labels, got {labels.dtype}")


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


def _backward_offsets(dimensions: int, connectivity: int | None) -> NDArray[np.int64]:
    """Steps (z, y, x) to the neighbours that come before a voxel in C order."""
    allowed = (4, 8) if dimensions == 2 else (6, 18, 26)
    chosen = allowed[-1] if connectivity is None else connectivity
    if chosen not in allowed:
        raise InputError(f"{dimensions}-D connectivity must be one of {allowed}, got {chosen}")
    steps = [
        step
        for step in product((-1, 0, 1), repeat=dimensions)
        if step < (0,) * dimensions and sum(map(abs, step)) <= _LARGEST_STEP[chosen]
    ]
    return np.array([(0, *step)[-3:] for step in steps], dtype=np.int64)


def _mistakes(
    objects: NDArray[Any], other: NDArray[Any], ignore: NDArray[np.bool_] | None
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Object labels as contiguous 3-D uint64, and which of their voxels the other image lacks."""
    labels = objects.astype(np.uint64, order="C", copy=ignore is not None)
    mistakes = (labels != 0) & (other == 0)
    if ignore is not None:
        labels[ignore] = 0
        mistakes &= ~ignore
    shape = (1, *labels.shape)[-3:]
    return labels.reshape(shape), np.ascontiguousarray(mistakes).reshape(shape)


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
def _find(parent: NDArray[np.int32], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True)
def _union(parent: NDArray[np.int32], i: int, j: int) -> None:
    """Join two sets; the smaller index stays the root, so roots do not depend on the order."""
    i, j = _find(parent, i), _find(parent, j)
    if i < j:
        parent[j] = i
    else:
        parent[i] = j


@njit(cache=True, nogil=True)
def _object_parts(
    labels: NDArray[np.uint64], mistakes: NDArray[np.bool_], offsets: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Flat root of each voxel: sets of one label that are mistaken, or right, throughout."""
    nz, ny, nx = labels.shape
    parent = np.arange(labels.size).astype(np.int32)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                label = labels[z, y, x]
                if label == 0:
                    continue
                i = (z * ny + y) * nx + x
                for k in range(len(offsets)):
                    w, v, u = z + offsets[k, 0], y + offsets[k, 1], x + offsets[k, 2]
                    if w < 0 or v < 0 or v >= ny or u < 0 or u >= nx:
                        continue
                    if labels[w, v, u] == label and mistakes[w, v, u] == mistakes[z, y, x]:
                        _union(parent, i, (w * ny + v) * nx + u)
    for i in range(parent.size):  # a parent comes before its child: one step reaches the root
        parent[i] = parent[parent[i]]
    return parent


@njit(cache=True, nogil=True)
def _touch(touched: NDArray[np.int32], component: int, part: int) -> None:
    if touched[component] == _NONE:
        touched[component] = part
    elif touched[component] != part:
        touched[component] = _SEVERAL


@njit(cache=True, nogil=True)
def _touched_parts(
    parts: NDArray[np.int32],
    labels: NDArray[np.uint64],
    mistakes: NDArray[np.bool_],
    offsets: NDArray[np.int64],
) -> NDArray[np.int32]:
    """For each root of a mistake component: the one right part it touches, NONE or SEVERAL."""
    nz, ny, nx = labels.shape
    touched = np.full(labels.size, _NONE, dtype=np.int32)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                if not mistakes[z, y, x]:
                    continue
                component = parts[(z * ny + y) * nx + x]
                if touched[component] == _SEVERAL:
                    continue
                for k in range(2 * len(offsets)):
                    side = 1 if k < len(offsets) else -1
                    j = k % len(offsets)
                    w = z + side * offsets[j, 0]
                    v = y + side * offsets[j, 1]
                    u = x + side * offsets[j, 2]
                    if w < 0 or w >= nz or v < 0 or v >= ny or u < 0 or u >= nx:
                        continue
                    if labels[w, v, u] == labels[z, y, x] and not mistakes[w, v, u]:
                        _touch(touched, component, parts[(w * ny + v) * nx + u])
    return touched


@njit(cache=True, nogil=True)
def _number(
    parts: NDArray[np.int32], mistakes: NDArray[np.bool_], touched: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Consecutive numbers of the mistake components that do not touch exactly one part."""
    numbers = np.zeros(parts.size, dtype=np.int32)
    count = 0
    for i, mistaken in enumerate(mistakes.ravel()):
        if mistaken and touched[parts[i]] < 0:
            if parts[i] == i:
                count += 1
                numbers[i] = count
            else:
                numbers[i] = numbers[parts[i]]
    return numbers


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
                _union(parent, i, i - steps[d])
                alone[i] = alone[i - steps[d]] = False
    for i in range(parent.size):
        parent[i] = parent[parent[i]]
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
                _union(parent, i, i - steps[d])
    touched = np.full(parent.size, _NONE, dtype=np.int32)
    for i in range(parent.size):
        for d in range(3):
            if flat[d, i]:
                j = i - steps[d]
                if remaining[i] < 0 and remaining[j] >= 0:
                    _touch(touched, _find(parent, i), remaining[j])
                elif remaining[j] < 0 and remaining[i] >= 0:
                    _touch(touched, _find(parent, j), remaining[i])
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
            root = _find(parent, i if remaining[i] < 0 else j)
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
