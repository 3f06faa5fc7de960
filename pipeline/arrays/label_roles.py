"""What the values of a label volume stand for: instances, background, or nothing known.

Annotations come with classes of their own: unlabelled voxels, an uncertain edge around neurites,
artefacts. Two lists of values say which of them teach nothing and which are background; every
other value is an instance.

A class of many neurites ("axon") serves as one instance as long as two of them do not touch:
affinities join face neighbours, and the objects of the topology losses are the connected pieces of
a label. So pieces are not numbered here, which would take a pass of stitching over the volume.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.labels import IGNORE
from pipeline.errors import DataError, DtypeError, InputError

UNKNOWN = int(IGNORE)


def assign_roles(
    labels: NDArray[Any], *, ignore: Collection[int] = (), background: Collection[int] = ()
) -> NDArray[np.uint64]:
    """Labels to train on: instances keep their value, background is 0, the unknown `IGNORE`.

    0 is background unless it is ignored. 2**64 - 1 is unknown in every case: it is the value by
    which targets say so.

    Args:
        labels: any shape, integers or bool; not changed.
        ignore: values of which nothing is known; negative ones are allowed.
        background: values that are background.

    Returns:
        labels.shape uint64, an array of its own.

    Raises:
        DtypeError: labels are no integers.
        DataError: a negative label that has no role.
        InputError: see `check_roles`.
    """
    check_roles(labels.dtype, ignore=ignore, background=background)
    roles = labels.astype(np.uint64)
    unknown, empty = _among(labels, ignore), _among(labels, background)
    if labels.dtype.kind == "i":
        astray = (labels < 0) & ~unknown & ~empty
        if astray.any():
            raise DataError(
                f"a label is negative: {labels[astray].min()}; instances are positive, name other "
                "values in targets.ignore_labels or targets.background_labels"
            )
    roles[unknown] = IGNORE
    roles[empty] = 0
    return roles


def is_instance(
    labels: NDArray[Any], *, ignore: Collection[int] = (), background: Collection[int] = ()
) -> NDArray[np.bool_]:
    """labels.shape bool: neither background nor unknown. Negative values without a role count."""
    listed = {0, *ignore, *background}
    if labels.dtype == np.uint64:
        listed.add(UNKNOWN)
    return ~_among(labels, listed)


def check_roles(
    dtype: np.dtype, *, ignore: Collection[int] = (), background: Collection[int] = ()
) -> None:
    """Refuse roles that contradict each other or that labels of `dtype` cannot have.

    Raises:
        DtypeError: labels of this type are no integers.
        InputError: a value in both lists; background that is 2**64 - 1; a value beyond `dtype`.
    """
    if dtype.kind not in "iub":
        raise DtypeError(f"labels must be integers, got {dtype}")
    both = sorted(set(ignore) & set(background))
    if both:
        raise InputError(f"labels {both} are to be ignored and background at once: choose one")
    if UNKNOWN in background:
        raise InputError(f"label {UNKNOWN} (2**64 - 1) means unknown, it cannot be background")
    beyond = sorted(value for value in {*ignore, *background} if not _fits(value, dtype))
    if beyond:
        raise InputError(f"labels of {dtype} have no values {beyond}; look at the lists of roles")


def _fits(value: int, dtype: np.dtype) -> bool:
    if dtype.kind == "b":
        return value in (0, 1)
    return np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def _among(labels: NDArray[Any], values: Collection[int]) -> NDArray[np.bool_]:
    """Where labels are one of the values; those that the type cannot hold are nowhere."""
    plain = labels.view(np.uint8) if labels.dtype.kind == "b" else labels
    held = [value for value in sorted(values) if _fits(value, labels.dtype)]
    found: NDArray[np.bool_] = np.isin(plain, np.array(held, plain.dtype))
    return found


def number_pieces(plane: NDArray[np.uint64], *, first: int = 0) -> NDArray[np.uint64]:
    """The connected pieces of each label in a plane as instances of their own.

    Args:
        plane: (Y, X) uint64: classes, 0, `IGNORE`.
        first: linear index in the volume of the plane's first pixel.

    Returns:
        (Y, X) uint64, a new array: 1 + the smallest linear index in the volume of the pixels of a
        piece (4 neighbours); 0 and `IGNORE` stay.
    """
    known = plane != IGNORE
    classes = np.where(known, plane, np.uint64(0))
    if plane.size == 1:
        classes = (classes != 0).astype(np.uint64)  # cc3d fails on a single id of 2**63 and above
    pieces = cc3d.connected_components(classes, connectivity=4)
    numbers, places = np.unique(pieces, return_index=True)
    names = np.zeros(int(numbers.max(initial=0)) + 1, np.uint64)
    names[numbers] = places.astype(np.uint64) + np.uint64(first + 1)
    names[0] = 0
    return np.where(known, names[pieces], IGNORE)
