"""Voxels and edges as bits, and the groups of voxels that need no second thought.

All byte arrays are (Z, Y, X); edge d of a voxel joins it to its predecessor along axis d. The walks
go row by row without a test of bounds inside, so that they run on whole vectors of bytes.

    codes   bits 0-2  found: predicted, and both ends known      edges along z, y, x
            bits 3-5  wanted: both ends carry one label, not 0
            bit 6     the voxel is unknown
    kinds   bit 0     an end of a found edge
            bit 1     an end of a wanted edge
            bit 2     an end of an edge that is both

A *group* is a component of right edges, or of mistaken edges between voxels that have found edges
only or wanted edges only. Whatever the question, the voxels of a group hang together; groups
therefore stand for their voxels in all that follows (`critical_groups`). In a good prediction
nearly all edges are inside groups.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.labels import IGNORE
from pipeline.learning.disjoint import union

Bytes = NDArray[np.uint8]

ADDED, MISSED, SWAPPED = 1, 2, 3
"""Kinds of voxels without a right edge: found edges only; wanted edges only; some of both."""

UNKNOWN = 64
_ALL = 7


@njit(cache=True, nogil=True)
def encode_edges(labels: NDArray[np.uint64], positive: NDArray[np.uint8]) -> Bytes:
    """Codes of `labels` (Z, Y, X) and `positive` (3, Z, Y, X) or, if Z is 1, (2, Z, Y, X)."""
    nz, ny, nx = labels.shape
    codes = np.empty(labels.shape, np.uint8)
    last = positive.shape[0] - 1
    for z in range(nz):
        for y in range(ny):
            row, code = labels[z, y], codes[z, y]
            for x in range(nx):
                code[x] = np.uint8(UNKNOWN) if row[x] == IGNORE else np.uint8(0)
            _encode_row(code[1:], row[1:], row[:-1], positive[last, z, y, 1:], 2)
            if y > 0:
                _encode_row(code, row, labels[z, y - 1], positive[last - 1, z, y], 1)
            if z > 0:
                _encode_row(code, row, labels[z - 1, y], positive[0, z, y], 0)
    return codes


@njit(cache=True, nogil=True)
def _encode_row(
    code: Bytes, here: NDArray[np.uint64], there: NDArray[np.uint64], positive: Bytes, axis: int
) -> None:
    found, wanted = np.uint8(1 << axis), np.uint8(8 << axis)
    for x in range(code.size):
        known = (here[x] != IGNORE) & (there[x] != IGNORE)
        same = (here[x] == there[x]) & (here[x] != 0)
        bits = np.uint8(0)
        if known & (positive[x] != 0):
            bits |= found
        if known & same:
            bits |= wanted
        code[x] |= bits


@njit(cache=True, nogil=True)
def kinds_of_voxels(codes: Bytes) -> Bytes:
    """Kinds, as the module's text describes them."""
    nz, ny, nx = codes.shape
    kinds = np.empty(codes.shape, np.uint8)
    for z in range(nz):
        for y in range(ny):
            kind, code = kinds[z, y], codes[z, y]
            for x in range(nx):
                kind[x] = _kind(code[x])
            _add_kinds(kind[:-1], code[1:], 2)
            if y + 1 < ny:
                _add_kinds(kind, codes[z, y + 1], 1)
            if z + 1 < nz:
                _add_kinds(kind, codes[z + 1, y], 0)
    return kinds


@njit(cache=True, nogil=True)
def _kind(code: np.uint8) -> np.uint8:
    """The kind of an end of the edges in `code`."""
    found, wanted = code & 7, (code >> 3) & 7
    kind = np.uint8(found != 0)
    kind |= np.uint8(wanted != 0) << np.uint8(1)
    kind |= np.uint8((found & wanted) != 0) << np.uint8(2)
    return np.uint8(kind)


@njit(cache=True, nogil=True)
def _add_kinds(kind: Bytes, following: Bytes, axis: int) -> None:
    """Add what the edges of the next voxels along an axis say of these."""
    bits = np.uint8(9 << axis)
    for x in range(kind.size):
        kind[x] |= _kind(following[x] & bits)


@njit(cache=True, nogil=True)
def edges_within_groups(codes: Bytes, kinds: Bytes) -> Bytes:
    """Bits 0-2: the voxel's edges along z, y, x whose ends are in one group by themselves."""
    nz, ny, _ = codes.shape
    inner = np.zeros(codes.shape, np.uint8)
    for z in range(nz):
        for y in range(ny):
            row, code, kind = inner[z, y], codes[z, y], kinds[z, y]
            _mark_inner(row[1:], code[1:], kind[1:], kind[:-1], 2)
            if y > 0:
                _mark_inner(row, code, kind, kinds[z, y - 1], 1)
            if z > 0:
                _mark_inner(row, code, kind, kinds[z - 1, y], 0)
    return inner


@njit(cache=True, nogil=True)
def _mark_inner(inner: Bytes, code: Bytes, kind: Bytes, before: Bytes, axis: int) -> None:
    shift, bit = np.uint8(axis), np.uint8(1 << axis)
    for x in range(code.size):
        found, wanted = code[x] >> shift, code[x] >> shift >> np.uint8(3)
        alike = (kind[x] == before[x]) & (kind[x] < SWAPPED)
        joined = (found & wanted) | ((found | wanted) & np.uint8(alike))
        inner[x] |= np.uint8((joined & 1) * bit)


@njit(cache=True, nogil=True)
def silent_edges(codes: Bytes, kinds: Bytes) -> Bytes:
    """Bits 0-2: edges that were not predicted, between voxels that other found edges end at."""
    nz, ny, _ = codes.shape
    silent = np.zeros(codes.shape, np.uint8)
    for z in range(nz):
        for y in range(ny):
            row, code, kind = silent[z, y], codes[z, y], kinds[z, y]
            _mark_silent(row[1:], code[1:], kind[1:], kind[:-1], 2)
            if y > 0:
                _mark_silent(row, code, kind, kinds[z, y - 1], 1)
            if z > 0:
                _mark_silent(row, code, kind, kinds[z - 1, y], 0)
    return silent


@njit(cache=True, nogil=True)
def _mark_silent(silent: Bytes, code: Bytes, kind: Bytes, before: Bytes, axis: int) -> None:
    shift = np.uint8(axis)
    for x in range(code.size):
        ends = kind[x] & before[x] & np.uint8(1)
        silent[x] |= np.uint8((ends & ~(code[x] >> shift)) << shift)


@njit(cache=True, nogil=True)
def places(marks: Bytes) -> NDArray[np.int32]:
    """Flat indices of the bytes that are not 0; compiled without a branch, for speed."""
    flat = marks.reshape(-1)
    found = np.empty(flat.size, np.int32)
    count = 0
    for i in range(flat.size):
        found[count] = i
        count += 1 if flat[i] else 0
    return found[:count]


@njit(cache=True, nogil=True)
def number_groups(kinds: Bytes, inner: Bytes) -> tuple[NDArray[np.int32], Bytes]:
    """The group of each voxel, numbered from 0 by first voxels, and the kind of each group.

    (Z * Y * X,) int32; not set where the kind is 0. A voxel without edges inside groups, and with
    others, is a group by itself.
    """
    _, ny, nx = kinds.shape
    link, voxels = _needed(inner).reshape(-1), places(kinds)
    group = np.empty(kinds.size, np.int32)
    for i in voxels:
        group[i] = group[i - 1] if link[i] & 4 else i
        if link[i] & 2:
            union(group, i, i - nx)
        if link[i] & 1:
            union(group, i, i - ny * nx)
    return group, _renumber(kinds.reshape(-1), voxels, group)


@njit(cache=True, nogil=True)
def _needed(inner: Bytes) -> Bytes:
    """Those edges inside groups that join what the others do not join: no square is closed."""
    nz, ny, _ = inner.shape
    needed = inner.copy()
    for z in range(nz):
        for y in range(ny):
            row, here = needed[z, y], inner[z, y]
            if y > 0:
                _drop_squares(row[1:], here[1:], here[:-1], inner[z, y - 1, 1:], 2, 1)
            if z > 0:
                _drop_squares(row[1:], here[1:], here[:-1], inner[z - 1, y, 1:], 2, 0)
                if y > 0:
                    _drop_squares(row, here, inner[z, y - 1], inner[z - 1, y], 1, 0)
    return needed


@njit(cache=True, nogil=True)
def _drop_squares(
    needed: Bytes, here: Bytes, beside: Bytes, below: Bytes, along: int, axis: int
) -> None:
    """Drop the edge along `axis` where the one beside it and the two `along` between are there.

    `beside` is the row of predecessors along `along`, `below` that along `axis`.
    """
    side, bit = np.uint8(along), np.uint8(axis)
    for x in range(here.size):
        closed = (here[x] >> side) & (below[x] >> side) & (beside[x] >> bit) & np.uint8(1)
        needed[x] &= ~np.uint8(closed << bit)


@njit(cache=True, nogil=True)
def _renumber(kind: Bytes, voxels: NDArray[np.int32], group: NDArray[np.int32]) -> Bytes:
    """Turn parents into numbers of groups, in place; gives the kind of each group."""
    kinds = np.empty(voxels.size, np.uint8)
    count = 0
    for i in voxels:
        if group[i] == i:
            kinds[count] = kind[i]
            group[i] = count
            count += 1
        else:
            group[i] = group[group[i]]  # the parent came before: it has its number
    return kinds[:count].copy()
