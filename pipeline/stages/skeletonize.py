"""Skeletonize: centre lines of each block, then one skeleton per segment.

1. `skeletonize` traces a block with one voxel of overlap, so that pieces meet at shared planes.
2. `join` puts the pieces of each segment together and keeps the nodes as columns.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeletons import SkeletonPieces, skeletonize_block
from pipeline.errors import DtypeError, ShapeError
from pipeline.geometry import Block, BlockGrid, Roi
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.block_tables import holding_blocks
from pipeline.stages.run import Run
from pipeline.storage.source import open_source, read_labels
from pipeline.storage.tables import read_arrays, write_arrays


def _grid(run: Run) -> BlockGrid:
    whole = Roi((0, 0, 0), run.shape)
    return BlockGrid(whole, run.config.skeletonize.block, (0, 0, 0), (1, 1, 1))


def _check(run: Run) -> None:
    _ = run.voxel_size_nm
    foreign = run.foreign("segments")
    if foreign is not None:
        segments = open_source(foreign)
        if segments.dtype.kind not in "iu":
            raise DtypeError(f"{foreign}: a segmentation holds integers, got {segments.dtype}")
        if segments.shape != run.shape:
            raise ShapeError(
                f"{foreign}: segments of shape {segments.shape}, but the volume has {run.shape}"
            )


def _skeletonize(block: Block, run: Run) -> BlockResult:
    labels = read_labels(run.path("segments"), block.read)
    if not labels.any():
        return BlockResult("empty")
    pieces = skeletonize_block(
        labels,
        origin=block.read.offset,
        voxel_size_nm=run.voxel_size_nm,
        settings=run.config.skeletonize.method,
    )
    write_arrays(run.block_file("skeleton_pieces", block.index), pieces.columns())
    return BlockResult(stats={"nodes": len(pieces.segment)})


def _parameters(run: Run) -> dict[str, Any]:
    return {
        "voxel_size_nm": run.voxel_size_nm,
        **run.config.skeletonize.method.model_dump(),
    }


SKELETONIZE = Stage(
    name="skeletonize",
    version=1,
    reads=("segments",),
    writes=("skeleton_pieces",),
    parameters=_parameters,
    grid=_grid,
    create=lambda run: run.path("skeleton_pieces").mkdir(parents=True),
    check=_check,
    process=_skeletonize,
)


def _join(_block: Block, run: Run) -> BlockResult:
    from pipeline.arrays.skeleton_join import join_pieces  # scipy: half a second to import

    pieces = [
        SkeletonPieces(**read_arrays(run.block_file("skeleton_pieces", index)))
        for index in sorted(holding_blocks(run, "skeletonize"))
    ]
    skeletons, report = join_pieces(
        pieces, voxel_size_nm=run.voxel_size_nm, settings=run.config.skeletonize.method
    )
    write_arrays(run.path("skeletons") / "skeletons.arrow", _columns(skeletons))
    counts = {"skeletons": len(skeletons), **asdict(report)}
    return BlockResult(stats={name: value for name, value in counts.items() if value is not None})


def _columns(skeletons: dict[int, Skeleton]) -> dict[str, Any]:
    """All skeletons behind one another; edges count from each skeleton's first node."""
    parts = list(skeletons.values())
    none = Skeleton("", np.zeros((0, 3)), np.zeros((0, 2), np.int64))
    return {
        "segment": np.array(list(skeletons), np.uint64),
        "node_count": np.array([len(s.nodes) for s in parts], np.int64),
        "edge_count": np.array([len(s.edges) for s in parts], np.int64),
        "nodes": np.concatenate([none.nodes, *(s.nodes for s in parts)]),
        "radii_nm": np.concatenate([none.radii_nm, *(s.radii_nm for s in parts)]),
        "edges": np.concatenate([none.edges, *(s.edges for s in parts)]),
    }


def read_joined(run: Run) -> dict[int, Skeleton]:
    """The skeleton of each segment, in voxels of the volume."""
    stored = read_arrays(run.path("skeletons") / "skeletons.arrow")
    nodes = np.split(stored["nodes"], np.cumsum(stored["node_count"])[:-1])
    radii = np.split(stored["radii_nm"], np.cumsum(stored["node_count"])[:-1])
    edges = np.split(stored["edges"], np.cumsum(stored["edge_count"])[:-1])
    return {
        int(segment): Skeleton(str(segment), nodes[i], edges[i], radii[i])
        for i, segment in enumerate(stored["segment"])
    }


JOIN = Stage(
    name="join",
    version=1,
    reads=("skeleton_pieces",),
    writes=("skeletons",),
    parameters=_parameters,
    grid=one_block,
    create=lambda run: run.path("skeletons").mkdir(),
    process=_join,
)
