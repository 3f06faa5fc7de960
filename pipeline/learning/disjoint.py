"""Disjoint sets, as numba functions on an array of parents.

The smaller index is always the root. So a set is named by its first member, whatever the order in
which it was joined, and a parent comes before its children.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def apart(size: int) -> NDArray[np.int32]:
    """The parents of `size` sets of one member."""
    return np.arange(size).astype(np.int32)


@njit(cache=True, nogil=True)
def find(parent: NDArray[np.int32], i: int) -> int:
    """The root of the set that holds `i`; shortens the path on the way."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True)
def union(parent: NDArray[np.int32], i: int, j: int) -> None:
    """Join the sets that hold `i` and `j`."""
    i, j = find(parent, i), find(parent, j)
    if i < j:
        parent[j] = i
    else:
        parent[i] = j


@njit(cache=True, nogil=True)
def flatten(parent: NDArray[np.int32]) -> None:
    """Make every parent a root: in this order one step reaches it."""
    for i in range(parent.size):
        parent[i] = parent[parent[i]]
