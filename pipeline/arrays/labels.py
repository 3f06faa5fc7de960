"""Affinities and labels as arrays: types, quantisation, perfect affinities from labels."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import DTypeLike, NDArray

from pipeline.errors import DataError, DtypeError, InputError, ShapeError

Labels = NDArray[np.uint64]
"""(Z, Y, X); 0 is background."""

Affinities = NDArray[np.uint8] | NDArray[np.uint16]
"""(C, Z, Y, X); channel d < 3 joins a voxel to its predecessor along axis d (z, y, x)."""

SparseMap = tuple[NDArray[np.uint64], NDArray[np.uint64]]
"""Ids, strictly increasing, and what each becomes; ids that are not listed keep theirs."""


IGNORE = np.uint64(2**64 - 1)
"""The label of voxels of which nothing is known: no loss, no target."""


def distinct(*ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The ids that occur in arrays of any shape, increasing; np.unique takes ten times as long."""
    found = np.concatenate([part.reshape(-1) for part in ids])
    found.sort()
    new = np.ones(found.size, np.bool_)
    np.not_equal(found[1:], found[:-1], out=new[1:])
    return found[new]


def affinity_scale(dtype: DTypeLike) -> int:
    """The integer that stands for affinity 1: 255 for uint8, 65535 for uint16.

    Raises:
        DtypeError: any other data type.
    """
    found = np.dtype(dtype)
    if found not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise DtypeError(f"affinities are uint8 or uint16, got {found}; quantise them first")
    return int(np.iinfo(found).max)


def quantised_threshold(x: float, dtype: DTypeLike) -> int:
    """The smallest integer q with q / scale >= x in float64, so that passing x is `value >= q`.

    Args:
        x: threshold in [0, 1].
        dtype: of the affinities, uint8 (scale 255) or uint16 (scale 65535).

    Raises:
        InputError: x is not in [0, 1].
        DtypeError: no affinities have this data type.
    """
    scale = affinity_scale(dtype)
    if not 0.0 <= x <= 1.0:
        raise InputError(f"a threshold lies in [0, 1], got {x}")
    # The product is rounded, so its ceiling may be one off either way.
    q = min(math.ceil(x * scale), scale)
    while q > 0 and (q - 1) / scale >= x:
        q -= 1
    while q / scale < x:
        q += 1
    return q


def quantise(p: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Affinities in [0, 1] as uint8: rint(255 * float64(p)), ties to even.

    Args:
        p: floating point, any shape; the input is not changed.

    Raises:
        DtypeError: p is not floating point.
        DataError: NaN, or values outside [0, 1]; names their number and the first position.
    """
    if not np.issubdtype(p.dtype, np.floating):
        raise DtypeError(f"expected floating point affinities in [0, 1], got {p.dtype}")
    wide = p if p.dtype in (np.float32, np.float64) else p.astype(np.float32)
    out = np.empty(p.shape, np.uint8)
    bad, first = _quantise(np.ascontiguousarray(wide).reshape(-1), out.reshape(-1))
    if bad:
        where = tuple(int(i) for i in np.unravel_index(first, p.shape))
        raise DataError(
            f"{bad} of {p.size} affinities are NaN or outside [0, 1], the first at {where} "
            f"({p[where]}); affinities are probabilities, look at the network's last layer"
        )
    return out


@njit(cache=True, nogil=True)
def _quantise(p: np.ndarray, out: np.ndarray) -> tuple[int, int]:
    bad = 0
    first = -1
    for i in range(p.size):
        value = np.float64(p[i])
        if value >= 0.0 and value <= 1.0:  # false for NaN
            out[i] = np.uint8(np.rint(255.0 * value))
        else:
            if bad == 0:
                first = i
            bad += 1
    return bad, first


def affinities_from_labels(labels: Labels) -> NDArray[np.uint8]:
    """Perfect affinities: 255 where a voxel and its predecessor carry the same non-zero label.

    Args:
        labels: (Z, Y, X) uint64, 0 is background.

    Returns:
        (3, Z, Y, X) uint8; channel d is 0 on the first plane along axis d.

    Raises:
        ShapeError: labels do not have three axes.
    """
    if labels.ndim != 3:
        raise ShapeError(f"expected labels (Z, Y, X), got shape {labels.shape}")
    affinities = np.zeros((3, *labels.shape), np.uint8)
    for axis in range(3):
        here = np.moveaxis(labels, axis, 0)
        same = (here[1:] == here[:-1]) & (here[1:] != 0)
        np.moveaxis(affinities[axis], axis, 0)[1:] = np.where(same, np.uint8(255), np.uint8(0))
    return affinities


def among(labels: NDArray[np.uint64], ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which labels, of any shape, are one of the ids, which ascend."""
    if not len(ids):
        return np.zeros(labels.shape, np.bool_)
    at = np.minimum(np.searchsorted(ids, labels), len(ids) - 1)
    return ids[at] == labels
