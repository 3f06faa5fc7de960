"""The staircase of voxels taken out of skeletons.

A path from voxel centre to voxel centre is up to a seventh longer than the line that it follows,
and by how much depends on where the path began. Nodes are drawn towards the middle of their
neighbours, but each stays inside its own voxel, hence inside its object. What is left is nearly the
length of the centre line, whatever the blocks.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.arrays.skeleton_graph import neighbours_of

# Of the way from a voxel's centre to its face: no node leaves its voxel by rounding.
_ROOM = 0.49


def smooth_nodes(
    nodes: NDArray[np.float64], edges: NDArray[np.int64], rounds: int
) -> NDArray[np.float64]:
    """Nodes with those drawn together, `rounds` times, that have two edges or more.

    The order of the edges and of their ends does not matter.

    Args:
        nodes: (N, 3) at centres of voxels, in voxels; of as many skeletons as one likes.
        edges: (E, 2) indices into `nodes`.
        rounds: 0 or more; 4 take out nearly all that ever goes.

    Returns:
        (N, 3), no further than 0.49 from `nodes` along each axis.
    """
    return _draw_together(nodes, *neighbours_of(len(nodes), edges), rounds)


@njit(cache=True, nogil=True)
def _draw_together(
    home: NDArray[np.float64],
    starts: NDArray[np.int64],
    neighbours: NDArray[np.int64],
    rounds: int,
) -> NDArray[np.float64]:
    """Each round takes every node halfway to the mean of its neighbours of the round before."""
    place, moved = home.copy(), home.copy()
    for _ in range(rounds):
        for node in range(len(home)):
            degree = starts[node + 1] - starts[node]
            if degree < 2:
                continue
            for axis in range(3):
                total = 0.0
                for slot in range(starts[node], starts[node + 1]):
                    total += place[neighbours[slot], axis]
                aim = 0.5 * (place[node, axis] + total / degree)
                low, high = home[node, axis] - _ROOM, home[node, axis] + _ROOM
                moved[node, axis] = min(max(aim, low), high)
        place, moved = moved, place
    return place
