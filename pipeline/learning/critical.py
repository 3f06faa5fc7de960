"""Critical components: the mistakes of a segmentation that change how objects are connected.

Voxels are nodes, neighbours under connectivity k are joined. The objects of a label image are its
components: one label, not 0, and a path inside. A mistake voxel of negative sign has a target label
and prediction 0; of positive sign it has a predicted label and target 0, and then the objects are
those of the prediction. A mistake component C is a component of mistake voxels within one label.

The default is the LINEAR definition (Corollaries 1 to 3): C is critical if it is a whole object, or
touches at least two different components of its object minus **all** mistakes; in one number: it
does not touch exactly one. So mistakes that are responsible only together are all flagged: both
gaps of a broken ring, for example. The two others are in `critical_modes`.

Ignored voxels are left out of mistakes and of neighbourhoods alike: they are in no object. All is
linear in the number of voxels: union-find, and one look at the neighbours of each mistake.

Source: Grim, Chandrashekar, Sumbul: "Efficient connectivity-preserving instance segmentation with
supervoxel-based loss function".
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.errors import DtypeError, InputError, ShapeError
from pipeline.learning.critical_modes import (
    global_critical,
    linear_critical,
    local_critical,
)
from pipeline.learning.disjoint import flatten, union

Sign = Literal["negative", "positive"]
Mode = Literal["linear", "local", "global"]
_MODES: dict[str, Callable[..., NDArray[np.bool_]]] = {
    "linear": linear_critical,
    "local": local_critical,
    "global": global_critical,
}
_LARGEST_STEP = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}  # axes that change between neighbours, at most


def critical_components(
    target: NDArray[Any],
    prediction: NDArray[Any],
    *,
    connectivity: int | None = None,
    mode: Mode = "linear",
    sign: Sign = "negative",
    ignore: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.bool_], int]:
    """The voxels of the critical components of one sign, and the number of components.

    Args:
        target: (Y, X) or (Z, Y, X), any integer type or bool; 0 is background.
        prediction: same shape, any integer type or bool.
        connectivity: 4 or 8 in two dimensions, 6, 18 or 26 in three; none: 8 or 26.
        mode: which definition; "linear" as in the module's text, the others as in
            `pipeline.learning.critical_modes`.
        sign: "negative" finds splits and omissions, "positive" merges and additions.
        ignore: same shape; True takes a voxel out of mistakes and neighbourhoods.

    Raises:
        ShapeError, DtypeError: shapes disagree or are not 2-D or 3-D; labels are not integers.
        InputError: a connectivity that the dimension does not have, an unknown mode or sign.
    """
    components = number_critical_components(
        target, prediction, connectivity=connectivity, mode=mode, sign=sign, ignore=ignore
    )
    return components > 0, int(components.max(initial=0))


def number_critical_components(
    target: NDArray[Any],
    prediction: NDArray[Any],
    *,
    connectivity: int | None = None,
    mode: Mode = "linear",
    sign: Sign = "negative",
    ignore: NDArray[np.bool_] | None = None,
) -> NDArray[np.int32]:
    """As `critical_components`: 0 or the number of a voxel's component, by first voxels."""
    _check(target, prediction, ignore)
    if sign not in ("negative", "positive"):
        raise InputError(f"sign must be 'negative' or 'positive', got {sign!r}")
    if mode not in _MODES:
        raise InputError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
    objects, other = (target, prediction) if sign == "negative" else (prediction, target)
    labels, mistakes = _mistakes(objects, other, ignore)
    offsets = _backward_offsets(target.ndim, connectivity)
    parts = _object_parts(labels, mistakes, offsets)
    critical = _MODES[mode](parts, labels, mistakes, offsets)
    return _number(parts, mistakes, critical).reshape(target.shape)


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
                        union(parent, i, (w * ny + v) * nx + u)
    flatten(parent)
    return parent


@njit(cache=True, nogil=True)
def _number(
    parts: NDArray[np.int32], mistakes: NDArray[np.bool_], critical: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Consecutive numbers of the critical mistake components, given at their roots."""
    numbers = np.zeros(parts.size, dtype=np.int32)
    count = 0
    for i, mistaken in enumerate(mistakes.ravel()):
        if mistaken and critical[parts[i]]:
            if parts[i] == i:
                count += 1
                numbers[i] = count
            else:
                numbers[i] = numbers[parts[i]]
    return numbers
