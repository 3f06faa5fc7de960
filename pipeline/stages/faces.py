"""The tables that a block of fragments leaves on disk, and how its neighbours read them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.edges import EdgeTable
from pipeline.arrays.fragments import BlockFragments, FaceRecord
from pipeline.arrays.labels import SparseMap
from pipeline.errors import StageError
from pipeline.geometry import Block, BlockGrid, triple
from pipeline.stages.run import Run
from pipeline.storage.ledger import Mark
from pipeline.storage.tables import read_arrays, read_table, write_arrays, write_table


def write_faces(path: Path, found: BlockFragments) -> None:
    """Keep the face records of a block as one file."""
    arrays: dict[str, NDArray[Any]] = {}
    for (axis, side), face in found.faces.items():
        if face is None:
            continue
        name = _name(axis, side)
        arrays[f"{name}.labels"], arrays[f"{name}.joins"] = face.labels, face.joins
        if face.affinities is not None:
            arrays[f"{name}.affinities"] = face.affinities
    # A block that is the whole volume has no face: the file still says that it was made.
    arrays["axes"] = np.arange(3)
    write_arrays(path, arrays)


def read_face(path: Path, axis: int, side: int) -> FaceRecord:
    """One face record of a block."""
    arrays = read_arrays(path)
    name = _name(axis, side)
    labels, joins = arrays[f"{name}.labels"], arrays[f"{name}.joins"]
    return FaceRecord(labels, joins, arrays.get(f"{name}.affinities"))


def face_labels(path: Path) -> NDArray[np.uint64]:
    """Every non-zero label on any face of a block, increasing."""
    arrays = read_arrays(path)
    planes = [a.reshape(-1) for name, a in arrays.items() if name.endswith(".labels")]
    if not planes:
        return np.zeros(0, np.uint64)
    labels = np.unique(np.concatenate(planes))
    return labels[labels != 0]


def _name(axis: int, side: int) -> str:
    return f"{'upper' if side else 'lower'}_{'zyx'[axis]}"


def write_edges(path: Path, table: EdgeTable) -> None:
    """Keep an edge table."""
    write_table(path, {name: getattr(table, name) for name in _EDGE_COLUMNS})


def read_edges(path: Path) -> EdgeTable:
    """An edge table."""
    return EdgeTable(**read_table(path))


_EDGE_COLUMNS = ("u", "v", "affinity_sum", "face_count")


def write_map(path: Path, pairs: SparseMap) -> None:
    """Keep a sparse map of ids."""
    write_table(path, {"id": pairs[0], "target": pairs[1]})


def read_map(path: Path) -> SparseMap:
    """A sparse map of ids."""
    columns = read_table(path)
    return columns["id"], columns["target"]


def predecessor(grid: BlockGrid, block: Block, axis: int) -> Block | None:
    """The block before `block` along `axis`."""
    position = list(block.position)
    position[axis] -= 1
    return grid.at(triple(position)) if position[axis] >= 0 else None


def holding_blocks(run: Run, stage: str) -> frozenset[int]:
    """The blocks of a stage that wrote something; the others are known to hold nothing.

    Raises:
        StageError: the stage is not complete, so an absent file could mean anything.
    """
    path = run.ledger(stage).path
    return _holding(run, stage, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _holding(run: Run, stage: str, _mtime_ns: int) -> frozenset[int]:
    ledger = run.ledger(stage)
    if not ledger.complete:
        raise StageError(f"stage {stage} is incomplete; run it before the stages that read it")
    marks: list[Mark] = list(ledger.marks.values())
    return frozenset(mark.block for mark in marks if mark.state == "done")
