"""Loops of a graph of cells, over the field of two elements.

A cell is a node, two cells that touch are an edge, three that touch in one place a triangle. The
edges of a spanning tree count nothing; the others are chords, and each closes a cycle. A triangle
says that its chords sum to nothing. What no triangle kills are the loops.
"""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def find_contacts(
    places: NDArray[np.int64],
    voxel_at: NDArray[np.int32],
    octants: NDArray[np.int64],
    apart_nm: NDArray[np.float64],
    cell: NDArray[np.int64],
    distance: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """The cells that meet in each neighbourhood of 2 x 2 x 2 voxels.

    Args:
        places, voxel_at: the voxels in their box.
        octants: (8, 8) offsets to the voxels of each neighbourhood of a voxel, in C order.
        apart_nm: (8, 8) distance between two voxels of a neighbourhood.
        cell: (N,) of each voxel, -1 for none.
        distance: (N,) from the node of its cell.

    Returns:
        (P, 4) cells u < v and the voxels of each that meet; (P,) the way from node to node through
        them; (T, 3) cells u < v < w. Rows repeat.
    """
    pairs, ways = np.empty((256, 4), np.int64), np.empty(256)
    triples = np.empty((256, 3), np.int64)
    pair_count, triple_count = 0, 0
    voxels, cells = np.empty(8, np.int64), np.empty(8, np.int64)
    for voxel in range(len(places)):
        for octant in range(8):
            if not _look(voxel, places[voxel] + octants[octant], voxel_at, voxels):
                continue
            found = _distinct_cells(voxels, cell, cells)
            # 8 cells make 28 pairs and 56 triples.
            if pair_count + 28 > len(pairs):
                pairs = np.concatenate((pairs, np.empty_like(pairs)))
                ways = np.concatenate((ways, np.empty_like(ways)))
            if triple_count + 56 > len(triples):
                triples = np.concatenate((triples, np.empty_like(triples)))
            for a in range(found):
                for b in range(a + 1, found):
                    pairs[pair_count, 0], pairs[pair_count, 1] = cells[a], cells[b]
                    ways[pair_count] = _nearest_contact(
                        voxels, cell, distance, apart_nm, pairs[pair_count]
                    )
                    pair_count += 1
                    for c in range(b + 1, found):
                        triples[triple_count, 0] = cells[a]
                        triples[triple_count, 1] = cells[b]
                        triples[triple_count, 2] = cells[c]
                        triple_count += 1
    return pairs[:pair_count], ways[:pair_count], triples[:triple_count]


@njit(cache=True, nogil=True)
def _look(first: int, around: np.ndarray, voxel_at: np.ndarray, voxels: np.ndarray) -> bool:
    """The voxels at 8 places, -1 for none; False if `first` is not the first of them."""
    for corner in range(8):
        voxels[corner] = voxel_at[around[corner]]
        if 0 <= voxels[corner] < first:
            return False
    return True


@njit(cache=True, nogil=True)
def _distinct_cells(voxels: np.ndarray, cell: np.ndarray, cells: np.ndarray) -> int:
    """Write the cells of 8 voxels, ascending, each once; returns their number."""
    found = 0
    for voxel in voxels:
        if voxel < 0 or cell[voxel] < 0:
            continue
        slot = 0
        while slot < found and cells[slot] < cell[voxel]:
            slot += 1
        if slot == found or cells[slot] != cell[voxel]:
            for k in range(found, slot, -1):
                cells[k] = cells[k - 1]
            cells[slot] = cell[voxel]
            found += 1
    return found


@njit(cache=True, nogil=True)
def _nearest_contact(
    voxels: np.ndarray,
    cell: np.ndarray,
    distance: np.ndarray,
    apart_nm: np.ndarray,
    pair: np.ndarray,
) -> float:
    """The shortest way between the nodes of a pair; its two voxels are written to the pair."""
    best = np.inf
    for i in range(8):
        if voxels[i] < 0 or cell[voxels[i]] != pair[0]:
            continue
        for j in range(8):
            if voxels[j] < 0 or cell[voxels[j]] != pair[1]:
                continue
            way = distance[voxels[i]] + apart_nm[i, j] + distance[voxels[j]]
            if way < best:
                best = way
                pair[2], pair[3] = voxels[i], voxels[j]
    return best


@njit(cache=True, nogil=True)
def reduce_sums(
    sums: NDArray[np.int64], chords: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Which chord each relation makes superfluous: the last of those that it cannot do without.

    Args:
        sums: (T, 3) chords that sum to nothing, descending, padded with -1; rows ascending.
        chords: how many there are, shortest first.

    Returns:
        (chords,) the first slot and the end of each chord's relation in the pool (0, 0 for a chord
        that stays), and the pool: chords, descending, each relation led by its own.
    """
    start, end = np.zeros(chords, np.int64), np.zeros(chords, np.int64)
    pool = np.empty(max(16, 3 * len(sums)), np.int64)
    used = 0
    work, spare = np.empty(chords + 3, np.int64), np.empty(chords + 3, np.int64)
    for row in range(len(sums)):
        size = 0
        while size < 3 and sums[row, size] >= 0:
            work[size] = sums[row, size]
            size += 1
        while size and end[work[0]] > 0:
            size = _add(work, size, pool, start[work[0]], end[work[0]], spare)
            work, spare = spare, work
        if size:
            while used + size > len(pool):
                pool = np.concatenate((pool, np.empty_like(pool)))
            pool[used : used + size] = work[:size]
            start[work[0]], end[work[0]] = used, used + size
            used += size
    return start, end, pool[:used]


@njit(cache=True, nogil=True)
def _add(
    work: np.ndarray, size: int, pool: np.ndarray, slot: int, end: int, result: np.ndarray
) -> int:
    """The sum of two descending lists, in which equal entries vanish; returns its size."""
    a, count = 0, 0
    while a < size or slot < end:
        if slot == end or (a < size and work[a] > pool[slot]):
            result[count] = work[a]
            a += 1
            count += 1
        elif a == size or pool[slot] > work[a]:
            result[count] = pool[slot]
            slot += 1
            count += 1
        else:
            a += 1
            slot += 1
    return count


@njit(cache=True, nogil=True)
def name_chords(
    start: NDArray[np.int64], end: NDArray[np.int64], pool: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(chords, W) the loops that each chord closes, one bit a loop, and the (G,) chord of each."""
    loops = np.flatnonzero(end == 0)
    names = np.zeros((len(start), (len(loops) + 63) // 64), np.uint64)
    found = 0
    for chord in range(len(start)):
        if end[chord] == 0:
            names[chord, found // 64] = np.uint64(1) << np.uint64(found % 64)
            found += 1
        for slot in range(start[chord] + 1, end[chord]):
            names[chord] ^= names[pool[slot]]
    return names, loops


@njit(cache=True, nogil=True)
def enter(name: NDArray[np.uint64], basis: NDArray[np.uint64], held: NDArray[np.bool_]) -> bool:
    """Add a sum of loops to a basis, in place; False if the basis makes it already."""
    rest = name.copy()
    for bit in range(len(basis)):
        if rest[bit // 64] >> np.uint64(bit % 64) & np.uint64(1):
            if not held[bit]:
                basis[bit] = rest
                held[bit] = True
                return True
            rest ^= basis[bit]
    return False


@njit(cache=True, nogil=True)
def enter_short_cycles(
    first: NDArray[np.int64],
    neighbour: NDArray[np.int64],
    edge: NDArray[np.int64],
    length: NDArray[np.float64],
    names: NDArray[np.uint64],
    starts: NDArray[np.int64],
    reach: NDArray[np.float64],
    basis: NDArray[np.uint64],
    held: NDArray[np.bool_],
) -> None:
    """Enter into the basis what closes within a short cycle.

    Args:
        first, neighbour, edge: of each node: its neighbours and the edges to them.
        length: (E,) of the edges. names: (E, W) the loops that they close.
        starts: (S,) nodes through which cycles are looked for.
        reach: (N,) of the nodes; a cycle is short below 2 pi times the mean along it.
        basis, held: of `enter`.
    """
    count = len(first) - 1
    longest = 2 * np.pi * reach.max()
    away, area = np.full(count, np.inf), np.zeros(count)  # area: reach, summed along the way
    name = np.zeros((count, names.shape[1]), np.uint64)
    seen = np.empty(count, np.int64)
    for origin in starts:
        reached = 1
        seen[0] = origin
        away[origin] = 0.0
        name[origin] = 0
        area[origin] = 0.0
        heap = [(0.0, np.int64(origin))]
        while len(heap):
            here, node = heapq.heappop(heap)
            if here > away[node]:
                continue
            for slot in range(first[node], first[node + 1]):
                other = neighbour[slot]
                onto = here + length[edge[slot]]
                if onto < longest / 2 and onto < away[other]:
                    if away[other] == np.inf:
                        seen[reached] = other
                        reached += 1
                    away[other] = onto
                    mean = (reach[node] + reach[other]) / 2
                    area[other] = area[node] + length[edge[slot]] * mean
                    name[other] = name[node] ^ names[edge[slot]]
                    heapq.heappush(heap, (onto, other))
        for k in range(reached):
            node = seen[k]
            for slot in range(first[node], first[node + 1]):
                other = neighbour[slot]
                around = away[node] + length[edge[slot]] + away[other]
                if around >= longest:
                    continue
                mean = (reach[node] + reach[other]) / 2
                inside = area[node] + length[edge[slot]] * mean + area[other]
                if around * around < 2 * np.pi * inside:
                    cycle = name[node] ^ name[other] ^ names[edge[slot]]
                    if cycle.any():
                        enter(cycle, basis, held)
        away[seen[:reached]] = np.inf
        if held.all():
            return
