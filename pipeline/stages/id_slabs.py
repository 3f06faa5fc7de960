"""Slabs of ids: how tables of the whole volume are cut, whatever the blocks.

An id is 1 + a linear voxel index, so the ids of a slab of whole planes are a range. A slab's rows
are spread over the blocks that its fragments reach; each block's graph says in which slabs it has
rows, and the index gathers that.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Block, BlockGrid
from pipeline.stages.block_tables import holding_blocks, read_slabs
from pipeline.stages.run import Run
from pipeline.storage.tables import changed_at, read_table, write_table

# Voxels of a slab: bounds what one step holds, and is the same for all runs on a volume. Of wide
# volumes that would be few planes, and each block would be read once for each slab that it reaches.
_SLAB_VOXELS = 2**28
_SLAB_PLANES = 64


def id_slabs(run: Run) -> BlockGrid:
    """The slabs of a volume, first to last along z."""
    _, ny, nx = run.shape
    planes = max(_SLAB_PLANES, _SLAB_VOXELS // (ny * nx))
    return BlockGrid.over(run.shape, (planes, ny, nx))


def slab_of(run: Run, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The slab that each id, none of them 0, belongs to."""
    slab = id_slabs(run)[0].write.size
    return ((ids - np.uint64(1)) // np.uint64(slab)).astype(np.int64)


def inside(run: Run, slab: Block, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the ids belong to a slab."""
    return slab_of(run, ids) == slab.index


def write_index(run: Run) -> None:
    """Gather which blocks have rows of which slab."""
    slabs, blocks = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for index in sorted(holding_blocks(run, "fragments")):
        found = read_slabs(run.block_file("block_graphs", index))
        slabs.append(found)
        blocks.append(np.full(len(found), index))
    columns = {"slab": np.concatenate(slabs), "block": np.concatenate(blocks)}
    write_table(_index_file(run), columns)


def blocks_of(run: Run, slab: Block) -> list[int]:
    """The blocks that have rows of a slab, increasing."""
    path = _index_file(run)
    slabs, blocks = _index(path, changed_at(path))
    found: list[int] = blocks[slabs == slab.index].tolist()
    return found


def _index_file(run: Run) -> Path:
    return run.path("slab_index") / "index.arrow"


@lru_cache(maxsize=2)
def _index(path: Path, _mtime_ns: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    columns = read_table(path)
    return columns["slab"], columns["block"]
