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
linear in the number of voxels: one look at each voxel cuts the rows into runs (`critical_runs`),
the rest looks at runs.

Source: Grim, Chandrashekar, Sumbul: "Efficient connectivity-preserving instance segmentation with
supervoxel-based loss function".
"""

from __future__ import annotations

from itertools import product
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.learning.critical_modes import global_critical, linear_critical, local_critical
from pipeline.learning.critical_runs import Labels3, cut_runs, join_runs, number_runs, paint_runs

Sign = Literal["negative", "positive"]
Mode = Literal["linear", "local", "global"]
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
        target: (Y, X) or (Z, Y, X), any integer type or bool, any memory layout; 0 is background.
        prediction: same shape, any integer type or bool.
        connectivity: 4 or 8 in two dimensions, 6, 18 or 26 in three; none: 8 or 26.
        mode: which definition; "linear" as in the module's text, the others as in
            `pipeline.learning.critical_modes`.
        sign: "negative" finds splits and omissions, "positive" merges and additions.
        ignore: same shape, bool; True takes a voxel out of mistakes and neighbourhoods.

    Returns:
        A bool mask of the input's shape, and how many components it holds. The input is only read.

    Raises:
        ShapeError, DtypeError: shapes disagree or are not 2-D or 3-D; labels are not integers, or
            `ignore` is not bool.
        DataError: a label is negative. What it should stand for is not for this function to guess.
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
    _require("sign", sign, Sign)
    truth, predicted, rows = _prepared(target, prediction, connectivity, mode, ignore)
    pair = (truth, predicted) if sign == "negative" else (predicted, truth)
    return _number(*pair, rows, mode).reshape(np.shape(target))


def number_both_signs(
    target: NDArray[Any],
    prediction: NDArray[Any],
    *,
    connectivity: int | None = None,
    mode: Mode = "linear",
    ignore: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """`number_critical_components` for the negative and the positive sign; converts input once."""
    truth, predicted, rows = _prepared(target, prediction, connectivity, mode, ignore)
    negative = _number(truth, predicted, rows, mode).reshape(np.shape(target))
    return negative, _number(predicted, truth, rows, mode).reshape(np.shape(target))


def _number(
    objects: Labels3, other: Labels3, rows: NDArray[np.int64], mode: Mode
) -> NDArray[np.int32]:
    numbers = np.zeros(objects.shape, np.int32)
    runs = cut_runs(objects, other)
    if not runs.mistaken.any():
        return numbers
    parts = join_runs(runs, objects.shape[1], rows)
    if mode == "linear":
        critical = linear_critical(runs, parts)
    elif mode == "global":
        critical = global_critical(runs, parts)
    else:
        critical = local_critical(runs, parts, objects, other, rows)
    paint_runs(runs, number_runs(parts, critical), numbers.reshape(-1, objects.shape[2]))
    return numbers


def _prepared(
    target: NDArray[Any],
    prediction: NDArray[Any],
    connectivity: int | None,
    mode: Mode,
    ignore: NDArray[np.bool_] | None,
) -> tuple[Labels3, Labels3, NDArray[np.int64]]:
    """Both images as contiguous (Z, Y, X) uint64 without ignored voxels; the rows of neighbours."""
    _require("mode", mode, Mode)
    target, prediction = np.asarray(target), np.asarray(prediction)
    shapes = {a.shape for a in (target, prediction, ignore) if a is not None}
    if len(shapes) != 1 or target.ndim not in (2, 3):
        raise ShapeError(
            f"target, prediction and ignore must share one 2-D or 3-D shape, got {sorted(shapes)}"
        )
    if target.size >= 2**31:
        raise ShapeError(f"at most 2**31 - 1 voxels at once, got {target.shape}: use smaller parts")
    if ignore is not None and ignore.dtype != np.bool_:
        raise DtypeError(f"ignore: expected bool, got {ignore.dtype}")
    rows = _rows_before(target.ndim, connectivity)
    truth = plain_labels("target", target, ignore)
    return truth, plain_labels("prediction", prediction, ignore), rows


def _require(name: str, value: str, literal: Any) -> None:
    allowed = get_args(literal)
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def plain_labels(name: str, labels: NDArray[Any], zero: NDArray[np.bool_] | None = None) -> Labels3:
    """Labels of two or three axes as contiguous (Z, Y, X) uint64, Z = 1 added for two.

    Shares memory with the input where it can. `name` is what an error calls the array; `zero` tells
    which voxels become 0.

    Raises:
        DtypeError: labels are neither integers nor bool.
        DataError: a label is negative.
    """
    if labels.dtype.kind not in "iub":
        raise DtypeError(f"{name}: expected integer labels, got {labels.dtype}")
    if labels.dtype.kind == "i" and (lowest := labels.min(initial=0)) < 0:
        raise DataError(
            f"{name}: labels are ids from 0, found {lowest}; write unknown voxels as 0 and name "
            "them in a mask"
        )
    # Writeable, though nothing is written: for read-only arrays all kernels would compile again.
    plain = np.require(labels, np.uint64, ["C", "W"])
    if zero is not None:
        plain = np.where(zero, np.uint64(0), plain)
    return plain.reshape((1, *plain.shape)[-3:])


def _rows_before(dimensions: int, connectivity: int | None) -> NDArray[np.int64]:
    """The rows before a row that hold neighbours, as `critical_runs.join_runs` takes them."""
    allowed = (4, 8) if dimensions == 2 else (6, 18, 26)
    chosen = allowed[-1] if connectivity is None else connectivity
    if chosen not in allowed:
        raise InputError(f"{dimensions}-D connectivity must be one of {allowed}, got {chosen}")
    largest = _LARGEST_STEP[chosen]
    planes = (0,) if dimensions == 2 else (-1, 0)
    steps = [(z, y) for z, y in product(planes, (-1, 0, 1)) if (z, y) < (0, 0)]
    return np.array(
        [(z, y, abs(z) + abs(y) < largest) for z, y in steps if abs(z) + abs(y) <= largest],
        dtype=np.int64,
    )
