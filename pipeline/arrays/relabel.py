"""Renaming labels through sparse maps, and the voxel counts that decide which segments stay.

A sparse map is a pair (ids, targets) with strictly increasing ids: an id that is not listed keeps
its own value. Background, 0, stays 0 whatever the map says.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.labels import Labels, SparseMap, distinct
from pipeline.errors import DataError, DtypeError, InputError, ShapeError

# Direct-mapped cache in front of the binary search: labels come back row after row.
_CACHE_BITS = 12
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


def check_lookup(ids: NDArray[np.uint64], targets: NDArray[np.uint64]) -> None:
    """Refuse what is no sparse map.

    Raises:
        DtypeError: not uint64.
        ShapeError: ids and targets differ in length or have more than one axis.
        InputError: ids do not increase strictly.
    """
    if ids.dtype != np.uint64 or targets.dtype != np.uint64:
        raise DtypeError(f"a lookup holds uint64, got ids {ids.dtype}, targets {targets.dtype}")
    if ids.ndim != 1 or ids.shape != targets.shape:
        raise ShapeError(f"a lookup has one target per id, got {ids.shape} and {targets.shape}")
    if len(ids) > 1 and not np.all(ids[:-1] < ids[1:]):
        raise InputError("the ids of a lookup must increase strictly; sort them, without repeats")


def apply_lookup(
    labels: NDArray[np.uint64], ids: NDArray[np.uint64], targets: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """A new array with every label replaced by its target; unlisted labels and 0 stay.

    Args:
        labels: uint64, any shape; not changed.
        ids: (n,) uint64, strictly increasing.
        targets: (n,) uint64.

    Raises:
        DtypeError, ShapeError, InputError: as `check_lookup`; labels are not uint64.
    """
    if labels.dtype != np.uint64:
        raise DtypeError(f"labels are uint64, got {labels.dtype}")
    check_lookup(ids, targets)
    out = np.empty(labels.shape, np.uint64)
    flat = np.ascontiguousarray(labels).reshape(-1)
    _replace(flat, np.ascontiguousarray(ids), np.ascontiguousarray(targets), out.reshape(-1))
    return out


@njit(cache=True, nogil=True)
def _target(label: np.uint64, ids: np.ndarray, targets: np.ndarray) -> np.uint64:
    begin = 0
    end = ids.size
    while begin < end:
        middle = (begin + end) >> 1
        if ids[middle] < label:
            begin = middle + 1
        else:
            end = middle
    if begin < ids.size and ids[begin] == label:
        return targets[begin]
    return label


@njit(cache=True, nogil=True)
def _replace(flat: np.ndarray, ids: np.ndarray, targets: np.ndarray, out: np.ndarray) -> None:
    known = np.zeros(1 << _CACHE_BITS, np.uint64)
    answer = np.zeros(1 << _CACHE_BITS, np.uint64)
    shift = np.uint64(64 - _CACHE_BITS)
    last = np.uint64(0)
    value = np.uint64(0)
    for i in range(flat.size):
        label = flat[i]
        if label != last:
            last = label
            if label == 0:
                value = np.uint64(0)
            else:
                slot = (label * _SPREAD) >> shift
                if known[slot] != label:
                    known[slot] = label
                    answer[slot] = _target(label, ids, targets)
                value = answer[slot]
        out[i] = value


def name_positions(
    positions: NDArray[np.uint32], names: NDArray[np.uint64], out: NDArray[np.uint64]
) -> int:
    """Write the name of every voxel that has one; gives how many got a name other than 0.

    Args:
        positions: (z, y, x) uint32; 0 is background, k stands for names[k - 1].
        names: (n,) uint64.
        out: (z, y, x) uint64, zero where positions are; background is not written.

    Raises:
        ShapeError: positions and out differ.
        DataError: a position is beyond the names.
    """
    if positions.shape != out.shape:
        raise ShapeError(f"positions of shape {positions.shape} into names of {out.shape}")
    named = _name_positions(positions, names, out)
    if named < 0:
        raise DataError(f"a voxel has a position beyond {len(names)} names: tables do not match")
    return int(named)


@njit(cache=True, nogil=True)
def _name_positions(positions: np.ndarray, names: np.ndarray, out: np.ndarray) -> int:
    named = 0
    for z in range(positions.shape[0]):
        for y in range(positions.shape[1]):
            row = positions[z, y]
            for x in range(row.size):
                if row[x] == 0:
                    continue
                if row[x] > names.size:
                    return -1
                name = names[row[x] - 1]
                out[z, y, x] = name
                named += name != 0
    return named


def restrict_lookup(
    labels_present: NDArray[np.uint64], ids: NDArray[np.uint64], targets: NDArray[np.uint64]
) -> SparseMap:
    """The rows of a lookup that a block needs.

    Args:
        labels_present: (m,) uint64, the labels of the block, any order, repeats allowed.
        ids: (n,) uint64, strictly increasing.
        targets: (n,) uint64.

    Returns:
        (ids, targets) of the labels that are present and listed, ids strictly increasing.

    Raises:
        DtypeError, ShapeError, InputError: as `check_lookup`.
    """
    check_lookup(ids, targets)
    if not len(ids):
        return ids.copy(), targets.copy()
    wanted = distinct(np.asarray(labels_present, np.uint64))
    rows = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    rows = rows[ids[rows] == wanted]
    return ids[rows], targets[rows]


def count_voxels(labels: Labels) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(ids, voxels): every non-zero label, increasing, and how many voxels carry it (uint64).

    Raises:
        DtypeError: labels are not uint64.
    """
    if labels.dtype != np.uint64:
        raise DtypeError(f"labels are uint64, got {labels.dtype}")
    keys, counts = _count(np.ascontiguousarray(labels).reshape(-1))
    used = keys != 0
    ids, voxels = keys[used], counts[used]
    order = np.argsort(ids)
    return ids[order], voxels[order]


@njit(cache=True, nogil=True)
def _slot(keys: np.ndarray, label: np.uint64) -> int:
    """Where `label` is, or the free slot where it belongs; a key of 0 is free."""
    mask = keys.size - 1
    slot = np.int64((label * _SPREAD) >> np.uint64(32)) & mask
    while keys[slot] != 0 and keys[slot] != label:
        slot = (slot + 1) & mask
    return int(slot)


@njit(cache=True, nogil=True)
def _count(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keys = np.zeros(1024, np.uint64)
    counts = np.zeros(1024, np.uint64)
    used = 0
    i = 0
    while i < flat.size:
        label = flat[i]
        begin = i
        while i < flat.size and flat[i] == label:
            i += 1
        if label == 0:
            continue
        slot = _slot(keys, label)
        if keys[slot] == 0:
            keys[slot] = label
            used += 1
        counts[slot] += np.uint64(i - begin)
        if 2 * used > keys.size:
            old_keys, old_counts = keys, counts
            keys = np.zeros(2 * old_keys.size, np.uint64)
            counts = np.zeros(2 * old_keys.size, np.uint64)
            for k in range(old_keys.size):
                if old_keys[k] != 0:
                    slot = _slot(keys, old_keys[k])
                    keys[slot] = old_keys[k]
                    counts[slot] = old_counts[k]
    return keys, counts


def sum_counts(
    ids: NDArray[np.uint64], voxels: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Rows with equal ids added: ids strictly increasing, and their totals (uint64).

    The counts of several blocks, concatenated in any order, give those of the volume.

    Raises:
        ShapeError: not one count per id.
    """
    ids = np.asarray(ids, np.uint64)
    voxels = np.asarray(voxels, np.uint64)
    if ids.ndim != 1 or ids.shape != voxels.shape:
        raise ShapeError(f"expected one voxel count per id, got {ids.shape} and {voxels.shape}")
    order = np.argsort(ids)
    ordered = ids[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
    if not len(first):
        return ordered, voxels.copy()
    return ordered[first], np.add.reduceat(voxels[order], first)


def add_counts(parts: Iterable[SparseMap]) -> SparseMap:
    """Tables of (ids, voxels) added to one, as `sum_counts` does; none give an empty one."""
    return sum_counts(*_stacked(parts))


def unite_maps(parts: Iterable[SparseMap]) -> SparseMap:
    """All rows of several maps, which agree where they list the same id."""
    ids, targets = _stacked(parts)
    ids, first = np.unique(ids, return_index=True)
    return ids, targets[first]


def _stacked(parts: Iterable[SparseMap]) -> SparseMap:
    nothing = np.zeros(0, np.uint64)
    first, second = zip((nothing, nothing), *parts, strict=True)
    return np.concatenate(first), np.concatenate(second)


def drop_small(
    segments: NDArray[np.uint64], voxels: NDArray[np.uint64], min_voxels: int
) -> SparseMap:
    """The lookup that sends every segment with fewer than `min_voxels` voxels to 0.

    Args:
        segments: (n,) uint64; rows with the same segment are added first, so it may be given the
            segment of every fragment, or the counts of all blocks: totals of the whole volume.
        voxels: (n,) uint64.
        min_voxels: smallest size that stays; 0 and 1 drop nothing.

    Raises:
        InputError: min_voxels is negative.
        ShapeError: not one count per segment.
    """
    if min_voxels < 0:
        raise InputError(f"min_voxels is a number of voxels, got {min_voxels}")
    ids, totals = sum_counts(segments, voxels)
    dropped = ids[(totals < np.uint64(min_voxels)) & (ids != 0)]
    return dropped, np.zeros(len(dropped), np.uint64)
