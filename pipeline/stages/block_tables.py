"""The tables that a block of the segmentation leaves on disk, and how others read them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.edges import EdgeTable
from pipeline.arrays.fragments import LOWER, UPPER, BlockFragments, FaceRecord
from pipeline.arrays.labels import SparseMap, distinct
from pipeline.errors import StageError
from pipeline.geometry import Block, BlockGrid, triple
from pipeline.stages.run import Run
from pipeline.storage.tables import read_arrays, read_table, write_arrays, write_table

EDGE_COLUMNS = ("u", "v", "affinity_sum", "face_count")


@dataclass(frozen=True, eq=False)
class BlockGraph:
    """What a block contributes to the region graph, in terms of the fragments of the volume.

    Attributes:
        edges: of the voxel pairs that the block owns.
        counts: fragments in the block, increasing, and their voxels there.
        borders: per axis, the fragments that touch across the block's lower face, on both sides.
        slabs: (n,) int64, increasing, the slabs of ids in which it has rows.
    """

    edges: EdgeTable
    counts: tuple[NDArray[np.uint64], NDArray[np.uint64]]
    borders: tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]
    slabs: NDArray[np.int64]


def write_record(path: Path, found: BlockFragments) -> None:
    """Keep the faces, inner edges and voxel counts of a block as one file."""
    arrays: dict[str, NDArray[Any]] = {"ids": found.ids, "voxels": found.voxels}
    arrays.update(_columns(found.edges))
    for (axis, side), face in found.faces.items():
        if face is None:
            continue
        name = _name(axis, side)
        arrays[f"{name}.labels"], arrays[f"{name}.joins"] = face.labels, face.joins
        if face.affinities is not None:
            arrays[f"{name}.affinities"] = face.affinities
    write_arrays(path, arrays)


def write_graph(path: Path, graph: BlockGraph) -> None:
    """Keep the graph of a block as one file."""
    borders = {f"border_{axis}": graph.borders[axis] for axis in range(3)}
    ids, voxels = graph.counts
    more = {"ids": ids, "voxels": voxels, "slabs": graph.slabs}
    write_arrays(path, {**_columns(graph.edges), **more, **borders})


def read_border(path: Path, axis: int) -> NDArray[np.uint64]:
    """The fragments that touch across the lower face of a block's graph, or a group's."""
    return read_arrays(path, (f"border_{axis}",))[f"border_{axis}"]


def read_slabs(path: Path) -> NDArray[np.int64]:
    """The slabs of ids in which a block's graph has rows."""
    return read_arrays(path, ("slabs",))["slabs"]


def read_counts(path: Path) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Ids and voxels of a block's record or graph."""
    arrays = read_arrays(path, ("ids", "voxels"))
    return arrays["ids"], arrays["voxels"]


def read_edges(path: Path) -> EdgeTable:
    """The edges of a block's record or graph."""
    return EdgeTable(**read_arrays(path, EDGE_COLUMNS))


def _columns(table: EdgeTable) -> dict[str, NDArray[Any]]:
    return {name: getattr(table, name) for name in EDGE_COLUMNS}


Faces = dict[tuple[int, int], FaceRecord]
"""Records of a block's faces by axis and side; none where the volume ends."""


def read_faces(path: Path, side: int | None = None, axis: int | None = None) -> Faces:
    """The face records of a block; only those of a side or axis if one is given."""
    sides = [(a, s) for a in range(3) for s in (LOWER, UPPER)]
    wanted = [(a, s) for a, s in sides if axis in (None, a) and side in (None, s)]
    parts = ("labels", "joins", "affinities")
    arrays = read_arrays(path, {f"{_name(a, s)}.{part}" for a, s in wanted for part in parts})
    found = {}
    for a, s in wanted:
        labels, joins, affinities = (arrays.get(f"{_name(a, s)}.{part}") for part in parts)
        if labels is not None and joins is not None:
            found[a, s] = FaceRecord(labels, joins, affinities)
    return found


def face_labels(path: Path) -> NDArray[np.uint64]:
    """Every non-zero label on any face of a block, increasing."""
    names = [f"{_name(axis, side)}.labels" for axis in range(3) for side in (LOWER, UPPER)]
    planes = [plane.reshape(-1) for plane in read_arrays(path, names).values()]
    return present(np.zeros(0, np.uint64), *planes)


def present(*labels: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The labels that occur in one or more arrays, increasing, background left out."""
    found = distinct(*labels)
    return found[found != 0]


def _name(axis: int, side: int) -> str:
    return f"{'upper' if side else 'lower'}_{'zyx'[axis]}"


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
    path = run.ledger_file(stage)
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    return _holding(run, stage, stamp)


@lru_cache(maxsize=8)
def _holding(run: Run, stage: str, _mtime_ns: int) -> frozenset[int]:
    ledger = run.ledger(stage)
    if not ledger.complete:
        raise StageError(f"stage {stage} is incomplete; run it before the stages that read it")
    return frozenset(mark.block for mark in ledger.marks.values() if mark.state == "done")
