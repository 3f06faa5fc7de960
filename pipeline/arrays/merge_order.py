"""The order in which edges are merged: exact, for any 64-bit sums and counts."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


@njit(cache=True, nogil=True)
def _product(a: np.uint64, b: np.uint64) -> tuple[np.uint64, np.uint64]:
    """High and low 64 bits of a * b."""
    a0, a1 = a & _LOW, a >> _HALF
    b0, b1 = b & _LOW, b >> _HALF
    low, middle = a0 * b0, a1 * b0
    middle += low >> _HALF
    other = a0 * b1 + (middle & _LOW)
    high = a1 * b1 + (middle >> _HALF) + (other >> _HALF)
    return high, (other << _HALF) | (low & _LOW)


@njit(cache=True, nogil=True)
def before(
    s1: np.uint64, c1: np.uint64, k1: np.uint64, s2: np.uint64, c2: np.uint64, k2: np.uint64
) -> bool:
    """Whether the first edge is merged before the second: larger score, then smaller key."""
    if (s1 | c1 | s2 | c2) >> _HALF == 0:
        left, right = s1 * c2, s2 * c1
        return bool(left > right or (left == right and k1 < k2))
    high1, low1 = _product(s1, c2)
    high2, low2 = _product(s2, c1)
    if high1 != high2:
        return bool(high1 > high2)
    return bool(low1 > low2 or (low1 == low2 and k1 < k2))


@njit(cache=True, nogil=True)
def sift_down(heap: np.ndarray, edges: np.ndarray, size: int, hole: int) -> None:
    """Restore the heap below `hole`. Rows are (sum, count, key) as pushed, with their edge."""
    s, c, k, e = heap[hole, 0], heap[hole, 1], heap[hole, 2], edges[hole]
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        right = child + 1
        if right < size and before(
            heap[right, 0], heap[right, 1], heap[right, 2],
            heap[child, 0], heap[child, 1], heap[child, 2],
        ):  # fmt: skip
            child = right
        if not before(heap[child, 0], heap[child, 1], heap[child, 2], s, c, k):
            break
        heap[hole, 0], heap[hole, 1], heap[hole, 2] = heap[child, 0], heap[child, 1], heap[child, 2]
        edges[hole] = edges[child]
        hole = child
    heap[hole, 0], heap[hole, 1], heap[hole, 2] = s, c, k
    edges[hole] = e


def history_order(
    total: NDArray[np.uint64], count: NDArray[np.uint64], key: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """The order of merges: exact score descending, then key ascending."""
    # The quotients are right but for rounding; the exact sort then finds nearly sorted input.
    order = np.argsort(-(total / count), kind="stable")
    _sort_exactly(order, total, count, key)
    return order


@njit(cache=True, nogil=True)
def _sort_exactly(order: np.ndarray, total: np.ndarray, count: np.ndarray, key: np.ndarray) -> None:
    """Bottom-up merge sort; stretches that are in order already are left as they are."""
    n = order.size
    spare = np.empty(n, np.int64)
    width = 1
    while width < n:
        for begin in range(0, n - width, 2 * width):
            middle, end = begin + width, min(begin + 2 * width, n)
            x, y = order[middle - 1], order[middle]
            if before(total[x], count[x], key[x], total[y], count[y], key[y]):
                continue
            spare[begin:middle] = order[begin:middle]
            left, right, out = begin, middle, begin
            while left < middle:
                if right == end:
                    order[out] = spare[left]
                    left += 1
                else:
                    x, y = spare[left], order[right]
                    if before(total[x], count[x], key[x], total[y], count[y], key[y]):
                        order[out] = x
                        left += 1
                    else:
                        order[out] = y
                        right += 1
                out += 1
        width *= 2
