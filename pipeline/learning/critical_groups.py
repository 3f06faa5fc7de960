"""Which groups of voxels hang together under each question, and which mistakes are critical.

Works on the groups of `critical_links`. Only *seams* are looked at: edges whose ends lie in two
groups, mistaken ones, and in decoded objects with added voxels also those that nobody predicted. So
the cost beyond a glance at each byte is that of the mistakes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.learning.critical_links import ADDED, MISSED, Bytes, places, silent_edges
from pipeline.learning.critical_modes import touch, untouched
from pipeline.learning.disjoint import apart, flatten, union

Seams = NDArray[np.int32]
"""(m, 2), two groups each."""

_FOUND, _WANTED, _RIGHT = 1, 2, 4  # bits of a kind


class Groups(NamedTuple):
    """A patch as `critical_links` gives it.

    Attributes:
        codes, voxel_kinds: (Z, Y, X) uint8.
        of_voxel: (Z * Y * X,) int32; not set where the voxel's kind is 0.
        kinds: (n,) uint8, of each group.
    """

    codes: Bytes
    voxel_kinds: Bytes
    of_voxel: NDArray[np.int32]
    kinds: Bytes


class Marked(NamedTuple):
    """Some edges of a patch, in the order of voxels, then axes.

    Attributes:
        voxels: (m,) int32, flat index of the voxel that stores the edge.
        axes: (m,) uint8, 0, 1 or 2 for z, y or x.
    """

    voxels: NDArray[np.int32]
    axes: Bytes


class Components(NamedTuple):
    """Of mistakes of one sign.

    Attributes:
        edges: (n,) int32, the first group of the component of mistaken edges at a group that has
            no right edges.
        edges_critical: (n,) bool, at that first group.
        voxels: (n,) int32, 0 or the number of the critical component of missed or added voxels
            that a group belongs to, counted from 1 by first voxels.
    """

    edges: NDArray[np.int32]
    edges_critical: NDArray[np.bool_]
    voxels: NDArray[np.int32]


@njit(cache=True, nogil=True)
def marked(bits: Bytes) -> Marked:
    """The edges for which a bit is set: (Z, Y, X), bits 0-2 for edges along z, y, x."""
    flat, at = bits.reshape(-1), places(bits)
    # One more than is needed: all is written, and what does not count is written over.
    voxels, axes = np.empty(3 * at.size + 1, np.int32), np.empty(3 * at.size + 1, np.uint8)
    count = 0
    for i in at:
        for d in range(3):
            voxels[count], axes[count] = i, d
            count += flat[i] >> d & 1
    return Marked(voxels[:count], axes[:count])


def missed_components(groups: Groups, missed: Marked) -> Components:
    """The LINEAR definition for missed edges and voxels."""
    seams = _seams(missed, groups.of_voxel, *groups.codes.shape[1:])
    return _components(seams, seams, groups.kinds, MISSED)


def added_components(groups: Groups, added: Marked) -> Components:
    """The LINEAR definition for added edges and voxels."""
    plane = groups.codes.shape[1:]
    seams = _seams(added, groups.of_voxel, *plane)
    decoded = _join(seams, groups.kinds, 0, True)
    mixed = _mixed(groups.kinds, decoded)
    every = seams
    if mixed.any():
        silent = marked(silent_edges(groups.codes, groups.voxel_kinds))
        inside = _inside(_seams(silent, groups.of_voxel, *plane), decoded, mixed)
        every = np.concatenate((seams, inside))
    return _components(seams, every, groups.kinds, ADDED)


def _components(mistaken: Seams, every: Seams, kinds: Bytes, kind: int) -> Components:
    """`every` are the seams across which voxels of one object are neighbours."""
    edges = _join(mistaken, kinds, _RIGHT, False)
    edges_critical = _touched(mistaken, kinds, _RIGHT, edges) < 0
    return Components(edges, edges_critical, _critical_voxels(every, kinds, kind))


@njit(cache=True, nogil=True)
def _seams(marked: Marked, group: NDArray[np.int32], ny: int, nx: int) -> Seams:
    """The marked edges whose ends lie in two groups, in their order."""
    steps = np.array([ny * nx, nx, 1])
    seams, count = np.empty((marked.voxels.size, 2), np.int32), 0
    for i, d in zip(marked.voxels, marked.axes):  # noqa: B905 (numba)
        a, b = group[i], group[i - steps[d]]
        if a != b:
            seams[count, 0], seams[count, 1] = a, b
            count += 1
    return seams[:count].copy()


@njit(cache=True, nogil=True)
def _inside(seams: Seams, decoded: NDArray[np.int32], mixed: NDArray[np.bool_]) -> Seams:
    """The seams within decoded objects that are `mixed`."""
    kept, count = np.empty_like(seams), 0
    for k in range(len(seams)):
        first = decoded[seams[k, 0]]
        if first == decoded[seams[k, 1]] and mixed[first]:
            kept[count, 0], kept[count, 1] = seams[k, 0], seams[k, 1]
            count += 1
    return kept[:count].copy()


@njit(cache=True, nogil=True)
def _mixed(kinds: Bytes, decoded: NDArray[np.int32]) -> NDArray[np.bool_]:
    """At the first group of each decoded object: whether it has added voxels and others.

    An object of nothing but added voxels is one group.
    """
    added, other = np.zeros(kinds.size, np.bool_), np.zeros(kinds.size, np.bool_)
    for a in range(kinds.size):
        if kinds[a] == ADDED:
            added[decoded[a]] = True
        else:
            other[decoded[a]] = True
    return added & other


@njit(cache=True, nogil=True)
def _join(seams: Seams, kinds: Bytes, bit: int, joins_with: bool) -> NDArray[np.int32]:
    """The first group of each group's set, when seams join groups that all lack a bit of the kind.

    With `joins_with`, also those that all have it.
    """
    parent = apart(kinds.size)
    for k in range(len(seams)):
        a, b = seams[k]
        have, has = kinds[a] & bit, kinds[b] & bit
        if have == has and (joins_with or not has):
            union(parent, a, b)
    flatten(parent)
    return parent


@njit(cache=True, nogil=True)
def _touched(seams: Seams, kinds: Bytes, bit: int, first: NDArray[np.int32]) -> NDArray[np.int32]:
    """What each set of groups without the bit touches among the sets with it, as `touch` notes."""
    touched = untouched(kinds.size)
    for k in range(len(seams)):
        a, b = seams[k]
        have, has = kinds[a] & bit, kinds[b] & bit
        if has and not have:
            touch(touched, first[a], first[b])
        elif have and not has:
            touch(touched, first[b], first[a])
    return touched


@njit(cache=True, nogil=True)
def _critical_voxels(seams: Seams, kinds: Bytes, kind: int) -> NDArray[np.int32]:
    """Numbers of the critical components of missed or added voxels."""
    bit = _FOUND if kind == MISSED else _WANTED
    first = _join(seams, kinds, bit, True)
    touched = _touched(seams, kinds, bit, first)
    numbers = np.zeros(kinds.size, np.int32)
    count = 0
    for a in range(kinds.size):
        if kinds[a] == kind and touched[first[a]] < 0:
            if first[a] == a:
                count += 1
                numbers[a] = count
            else:
                numbers[a] = numbers[first[a]]
    return numbers
