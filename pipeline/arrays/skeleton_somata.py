"""Each soma of a skeleton as one node, with a star of edges to the neurites that leave it.

How a method traces through a cell body says nothing, and depends on the blocks that cut it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton_join_graph import Indices, number_groups, unite
from pipeline.arrays.skeleton_tree import Flags, Floats


@dataclass(frozen=True, eq=False)
class Somata:
    """What merging the nodes of somata gave.

    Attributes:
        alive: (N,) bool, the nodes that are left: of each soma, one.
        tree: (T, 2) int32 edges of a forest, (child, parent) as given.
        rings: (K, 2) int32 edges that each close one ring.
        radius_nm: (N,) float64, at the node of a soma the largest radius in it.
        count: number of somata.
    """

    alive: Flags
    tree: Indices
    rings: Indices
    radius_nm: Floats
    count: int


def merge_somata(
    alive: Flags,
    tree: Indices,
    rings: Indices,
    welded_edges: Indices,
    soma: Flags,
    positions_nm: Floats,
    radius_nm: Floats,
) -> Somata:
    """Make each connected group of soma nodes one node, the one nearest to its centre of mass.

    Nodes that thinning removed connect a group as well, so a soma that faces of blocks have cut is
    one. Rings inside a soma vanish. A neurite that leaves a soma and comes back keeps its ring only
    if that is one of `rings`.

    Args:
        alive: (N,) the nodes that stay.
        tree: (T, 2) int32, edges of a forest over them.
        rings: (K, 2) int32, further edges, each closes a ring.
        welded_edges: (E, 2) int32, all edges, those of removed nodes too.
        soma: (N,) bool.
        positions_nm: (N, 3).
        radius_nm: (N,).

    Returns:
        The nodes, edges and radii that are left; ties between nodes go to the smaller.
    """
    if not (soma & alive).any():
        return Somata(alive, tree, rings, radius_nm, 0)
    group = np.arange(len(alive), dtype=np.int32)
    for edges in (welded_edges, rings):
        unite(group, edges[soma[edges].all(axis=1)])
    number_groups(group)
    members = np.flatnonzero(soma & alive)
    centre_of, radius, count = _centres(members, group[members], positions_nm, radius_nm)
    to = np.arange(len(alive), dtype=np.int32)
    to[members] = centre_of
    left = alive.copy()
    left[members] = to[members] == members
    radii = radius_nm.copy()
    radii[members] = radius
    joined = np.arange(len(alive), dtype=np.int32)
    tree = to[tree]
    tree = tree[unite(joined, tree)]
    rings = to[rings]
    rings = rings[rings[:, 0] != rings[:, 1]]
    return Somata(left, tree, _new_edges(rings, tree), radii, count)


def _centres(
    members: NDArray[np.int64], group: Indices, positions_nm: Floats, radius_nm: Floats
) -> tuple[Indices, Floats, int]:
    """For each member, the node nearest to its group's mean and the group's largest radius."""
    _, which = np.unique(group, return_inverse=True)
    size = np.bincount(which)
    mean = np.stack([np.bincount(which, positions_nm[members, k]) / size for k in range(3)], axis=1)
    away = np.round(((positions_nm[members] - mean[which]) ** 2).sum(axis=1), 3)
    order = np.lexsort((members, away, which))
    first = order[np.append(True, np.diff(which[order]) != 0)]
    largest = np.zeros(len(size))
    np.maximum.at(largest, which, radius_nm[members])
    return members[first][which].astype(np.int32), largest[which], len(size)


def _new_edges(rings: Indices, tree: Indices) -> Indices:
    """The rows of `rings` that are no edge of the tree, each once."""
    rings = np.unique(np.sort(rings, axis=1), axis=0)
    known = {tuple(row) for row in np.sort(tree, axis=1).tolist()} if len(rings) else set()
    new = [tuple(row) not in known for row in rings.tolist()]
    return rings[np.array(new, bool)]
