"""Foreground masks that are compared: what is taken as one, what is left out, and windows on them.

Every mask metric takes its input through here, so that all agree on it: a mask is boolean, or of
integers of which all but 0 are foreground. Voxels under `ignore` become background in both masks:
no score depends on what they hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import cc3d
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import DtypeError, InputError, ShapeError

Mask = NDArray[np.bool_]


class MaskPair(NamedTuple):
    """Two masks of one shape, background where nothing is known.

    Attributes:
        prediction, target: bool.
        known: bool, where both are compared; None if that is everywhere.
    """

    prediction: Mask
    target: Mask
    known: Mask | None


def as_mask(values: ArrayLike, name: str = "mask") -> Mask:
    """Values as booleans: integers other than 0 are foreground; a boolean array is not copied.

    Raises:
        DtypeError: neither boolean nor integer, such as probabilities.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "bui":
        raise DtypeError(
            f"{name}: expected a mask, boolean or integer (all but 0 is foreground), got "
            f"{array.dtype}; compare probabilities with a threshold first"
        )
    mask: Mask = array if array.dtype == np.bool_ else array != 0
    return mask


def as_image(values: ArrayLike, name: str = "mask") -> Mask:
    """The same for what has neighbours: (Y, X) or (Z, Y, X).

    Raises:
        DtypeError: neither boolean nor integer.
        ShapeError: not two or three axes.
    """
    mask = as_mask(values, name)
    if mask.ndim not in (2, 3):
        raise ShapeError(f"{name}: expected (Y, X) or (Z, Y, X), got shape {mask.shape}")
    return mask


def pair_masks(
    prediction: ArrayLike, target: ArrayLike, ignore: ArrayLike | None = None
) -> MaskPair:
    """Both masks as booleans, background where `ignore` is set; the input is not changed.

    Raises:
        DtypeError: one is neither boolean nor integer.
        ShapeError: the shapes differ.
    """
    found, truth = as_mask(prediction, "prediction"), as_mask(target, "target")
    if found.shape != truth.shape:
        raise ShapeError(f"prediction of shape {found.shape}, target of shape {truth.shape}")
    if ignore is None:
        return MaskPair(found, truth, None)
    known = ~as_mask(ignore, "ignore")
    if known.shape != truth.shape:
        raise ShapeError(f"ignore of shape {known.shape}, target of shape {truth.shape}")
    return MaskPair(found & known, truth & known, known)


def ratio(part: int, whole: int) -> float | None:
    """A share; None of nothing."""
    return part / whole if whole else None


def label_components(mask: Mask, neighbours: Any) -> tuple[NDArray[np.unsignedinteger], int]:
    """The components of (Y, X) or (Z, Y, X), numbered from 1, and how many there are.

    Args:
        neighbours: 4, 8, 6, 18 or 26.
    """
    # cc3d reserves too few labels for three voxels in a row: a line gets room around it.
    line = mask.ndim == 3 and mask.size == max(mask.shape)
    image = np.pad(mask, 1) if line else mask
    labels, found = cc3d.connected_components(image, connectivity=neighbours, return_N=True)
    return labels[1:-1, 1:-1, 1:-1] if line else labels, int(found)


def windows(
    shape: tuple[int, ...], patch: int | tuple[int, ...] | None
) -> Iterator[tuple[slice, ...]]:
    """Windows that do not overlap and cover the image, in C order from its origin.

    What is left at the far border is no whole window, and is given as a smaller one.

    Args:
        shape: of the image.
        patch: extent of a window, of each axis or of all; None is one window, the image.

    Raises:
        InputError: an extent below 1 or no integer, or not one for each axis.
    """
    extent = np.maximum(shape, 1) if patch is None else np.asarray(patch)
    fits = extent.shape in ((), (len(shape),)) and extent.dtype.kind in "iu"
    if not fits or extent.min() < 1:
        raise InputError(
            f"patch {patch}: expected an integer of at least 1, or {len(shape)} of them, one "
            "for each axis"
        )
    extent = np.broadcast_to(extent, len(shape)).tolist()
    starts = (range(0, n, step) for n, step in zip(shape, extent, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(slice(a, a + n) for a, n in zip(corner, extent, strict=True))
