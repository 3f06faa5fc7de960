"""Slabs of ids: how tables of the whole volume are cut, whatever the blocks.

An id is 1 + a linear voxel index, so the ids of a slab of whole planes are a range. A slab's rows
are spread over the blocks that its fragments reach; each block notes in which slabs it has rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Block, BlockGrid
from pipeline.stages.run import Run
from pipeline.storage.atomic import write_text

# Voxels of a slab: bounds what one step holds, and is the same for all runs on a volume.
_SLAB_VOXELS = 2**28


def id_slabs(run: Run) -> BlockGrid:
    """The slabs of a volume, first to last along z."""
    _, ny, nx = run.shape
    return BlockGrid.over(run.shape, (max(1, _SLAB_VOXELS // (ny * nx)), ny, nx))


def slab_of(run: Run, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The slab that each id, none of them 0, belongs to."""
    slab = id_slabs(run)[0].write.size
    return ((ids - np.uint64(1)) // np.uint64(slab)).astype(np.int64)


def inside(run: Run, slab: Block, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the ids belong to a slab."""
    return slab_of(run, ids) == slab.index


def note_slabs(run: Run, block: int, ids: NDArray[np.uint64]) -> None:
    """Note that a block has rows of these ids."""
    for slab in np.unique(slab_of(run, ids)).tolist():
        write_text(run.path("slabs") / f"{slab:06d}" / f"{block:09d}", "")


def blocks_of(run: Run, slab: Block) -> list[int]:
    """The blocks that have rows of a slab, increasing."""
    folder = run.path("slabs") / f"{slab.index:06d}"
    return sorted(int(path.name) for path in folder.glob("[0-9]*"))
