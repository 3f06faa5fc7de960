"""Stitch: from local labels to fragments of the volume, up and down a tree of block groups.

Up: a group unites the labels that are joined between its blocks, or between the groups in it, and
keeps what is open towards others. Down: a group tells those in it what became of their open labels;
the last step writes the map of each block. Voxels are never read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.fragments import LOWER, UPPER
from pipeline.arrays.labels import SparseMap
from pipeline.arrays.relabel import apply_lookup
from pipeline.arrays.stitch import OpenFaces, Pairs, join_boxes, joined_pairs
from pipeline.geometry import Block, Triple
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.block_tables import (
    Faces,
    face_labels,
    holding_blocks,
    predecessor,
    present,
    read_faces,
    read_map,
    write_map,
)
from pipeline.stages.block_tree import BlockTree, Rounds
from pipeline.stages.run import Run
from pipeline.stages.segmentation import segment_grid
from pipeline.storage.tables import read_arrays, write_arrays

# Blocks per axis of the finest groups: small, so that there is work for all workers. Groups per
# axis of a next level: large, so that there are few levels; a step reads at most 64 files then.
_BLOCKS, _FAN = 2, 4


def _tree(run: Run) -> BlockTree:
    blocks = segment_grid(run)
    z, y, x = blocks.block_shape
    return BlockTree.over(blocks, (_BLOCKS * z, _BLOCKS * y, _BLOCKS * x), _FAN)


def _rounds(run: Run) -> Rounds:
    return _tree(run).rounds


def _stitch(block: Block, run: Run) -> BlockResult:
    tree = _tree(run)
    level, cell, down = tree.step(block.index)
    if down:
        told = read_map(run.block_file("stitch_told", tree.number(level, cell)))
        _tell(run, tree, level, cell, told)
        return BlockResult()
    merged = _unite(run, tree, level, cell)
    if level == tree.top:
        _tell(run, tree, level, cell, (np.zeros(0, np.uint64), np.zeros(0, np.uint64)))
    return BlockResult(stats={"level": level, "stitched": merged})


def _unite(run: Run, tree: BlockTree, level: int, cell: Block) -> int:
    """Write what a group unites and what it leaves open; gives the number of labels renamed."""
    boxes: dict[Triple, OpenFaces] = {}
    for child in tree.inside(level, cell.write):
        if level > 0:
            boxes[child.position] = _read_open(_node_file(run, tree, level - 1, child))
        elif child.index in holding_blocks(run, "fragments"):
            boxes[child.position] = _open_faces(run, tree, child)
    merged, faces = join_boxes(boxes)
    arrays = {"ids": merged[0], "roots": merged[1]}
    for axis in range(3):
        arrays[f"pairs_{axis}"], arrays[f"uppers_{axis}"] = faces.pairs[axis], faces.uppers[axis]
    write_arrays(_node_file(run, tree, level, cell), arrays)
    return len(merged[0])


def _node_file(run: Run, tree: BlockTree, level: int, cell: Block) -> Path:
    return run.block_file("stitch_tree", tree.number(level, cell))


def _read_open(path: Path) -> OpenFaces:
    arrays = read_arrays(path)
    pairs = arrays["pairs_0"], arrays["pairs_1"], arrays["pairs_2"]
    return OpenFaces(pairs, (arrays["uppers_0"], arrays["uppers_1"], arrays["uppers_2"]))


def _open_faces(run: Run, tree: BlockTree, block: Block) -> OpenFaces:
    """The open faces of one block, from its face records and those that meet them."""
    faces = read_faces(run.block_file("block_records", block.index))
    pairs, uppers = [], []
    for axis in range(3):
        pairs.append(_pairs_below(run, tree, block, axis, faces))
        upper = faces.get((axis, UPPER))
        labels = np.zeros(0, np.uint64) if upper is None else present(upper.labels)
        uppers.append(np.stack([labels, labels], axis=1))
    return OpenFaces((pairs[0], pairs[1], pairs[2]), (uppers[0], uppers[1], uppers[2]))


def _pairs_below(run: Run, tree: BlockTree, block: Block, axis: int, faces: Faces) -> Pairs:
    before = predecessor(tree.blocks, block, axis)
    if before is None or before.index not in holding_blocks(run, "fragments"):
        return np.zeros((0, 2), np.uint64)
    other = read_faces(run.block_file("block_records", before.index), UPPER, axis)
    return joined_pairs(faces[axis, LOWER], other[axis, UPPER])


def _tell(run: Run, tree: BlockTree, level: int, cell: Block, told: SparseMap) -> None:
    """Hand what became of the labels that are open in each part of a group down to it.

    Args:
        run, tree, level, cell: which group.
        told: from the group's roots to the fragments of the volume.
    """
    own = read_arrays(_node_file(run, tree, level, cell), ("ids", "roots"))
    for child in tree.inside(level, cell.write):
        if level > 0:
            labels = _read_open(_node_file(run, tree, level - 1, child)).roots
            path = run.block_file("stitch_told", tree.number(level - 1, child))
        elif child.index in holding_blocks(run, "fragments"):
            labels = face_labels(run.block_file("block_records", child.index))
            path = run.block_file("stitch", child.index)
        else:
            continue
        write_map(path, _changed(labels, (own["ids"], own["roots"]), told))


def _changed(labels: NDArray[np.uint64], merged: SparseMap, told: SparseMap) -> SparseMap:
    """The rows of one map after the other for `labels` (increasing) that change them."""
    targets = apply_lookup(apply_lookup(labels, *merged), *told)
    changed = targets != labels
    return labels[changed], targets[changed]


def _create(run: Run) -> None:
    for name in ("stitch_tree", "stitch_told", "stitch"):
        run.path(name).mkdir(parents=True)


STITCH = Stage(
    name="stitch",
    version=2,
    reads=("block_records",),
    writes=("stitch_tree", "stitch_told", "stitch"),
    parameters=lambda _run: {},
    grid=_rounds,
    create=_create,
    process=_stitch,
)
