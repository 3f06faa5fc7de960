"""A random share of a volume's tiles: where background is assumed although nobody looked.

Tiles lie on a lattice anchored at the volume's first voxel, and a hash of a tile's position and a
seed decides: a voxel's answer depends on its position alone, never on blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.geometry import Roi

SAMPLED_TILE = 16
"""Side of a tile in voxels: wide enough to teach its inside, small beside a training patch."""


def sampled_tiles(roi: Roi, share: float, seed: int = 0) -> NDArray[np.bool_]:
    """Which voxels of `roi` lie in a chosen tile.

    Args:
        roi: global voxels.
        share: of the tiles that are chosen, in [0, 1]: the probability of each.
        seed: 0 to 2**64 - 1; another seed chooses other tiles. The tiles of a share are among
            those of a greater one.

    Returns:
        roi.shape bool.

    Raises:
        InputError: the share is not in [0, 1], or the seed out of range.
    """
    if not 0.0 <= share <= 1.0:
        raise InputError(f"the share of sampled tiles lies in [0, 1], got {share}")
    if not 0 <= seed < 2**64:
        raise InputError(f"a seed lies in 0 .. 2**64 - 1, got {seed}")
    spans = zip(roi.offset, roi.end, strict=True)
    # Negative positions wrap round, which is as good a number as any other.
    axes = [(np.arange(a, b) // SAMPLED_TILE).astype(np.uint64) for a, b in spans]
    tiles = [np.unique(axis, return_inverse=True) for axis in axes]
    mixed = _mix(np.full((1, 1, 1), seed, np.uint64))
    for axis, (numbers, _) in enumerate(tiles):
        shape = tuple(-1 if other == axis else 1 for other in range(3))
        mixed = _mix(mixed ^ numbers.reshape(shape))
    # 53 bits: all that a float64 holds, so that a share of 1 chooses every tile.
    chosen = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share
    return chosen[np.ix_(*(inverse.reshape(-1) for _, inverse in tiles))]


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A well-mixed number for each number. Source: splitmix64, Steele et al. 2014."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
