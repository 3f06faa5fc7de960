"""From affinities to segments: fragments, stitch, edges, agglomerate, relabel.

1. `fragments` labels each block on its own, and keeps its faces, inner edges and voxel counts.
2. `stitch` unites labels across faces (face records only), and cuts the map into blocks.
3. `edges` renames each block's edges and adds those that cross its lower faces.
4. `agglomerate` merges the summed edges, and writes the history and a lookup per threshold.
5. `relabel` writes fragments and segments on a grid of its own, so that files do not depend on
   the blocks.

The result is a function of the affinities, `low`, `high` and the thresholds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.agglomerate import MergeHistory, agglomerate, fragment_to_segment
from pipeline.arrays.edges import cross_face_edges, map_edges, sum_edges
from pipeline.arrays.fragments import LOWER, UPPER, extract_fragments
from pipeline.arrays.labels import (
    Affinities,
    SparseMap,
    affinity_scale,
    quantise,
    quantised_threshold,
)
from pipeline.arrays.relabel import apply_lookup, restrict_lookup, sum_counts
from pipeline.arrays.stitch import joined_pairs, resolve
from pipeline.errors import DataError, DtypeError, ShapeError
from pipeline.geometry import Block, BlockGrid, Roi, Triple, check_indexable, triple
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.faces import (
    face_labels,
    holding_blocks,
    predecessor,
    read_edges,
    read_face,
    read_map,
    write_edges,
    write_faces,
    write_map,
)
from pipeline.stages.ingest import round_up
from pipeline.stages.run import Run
from pipeline.storage.tables import read_table, write_table
from pipeline.storage.volume import Volume

# Output is written in boxes of about this extent, whatever the user's block.
_OUTPUT_EXTENT = 256
# Chunks of the scratch labels are no larger than this along each axis.
_SCRATCH_EXTENT = 128


@dataclass(frozen=True)
class SegmentationChoice:
    """The parameters in force: chosen on training data, or as configured."""

    low: float
    high: float
    thresholds: tuple[float, ...]


def segmentation_choice(run: Run) -> SegmentationChoice:
    """What the tuning stage chose, if the run has one, else the configuration."""
    config = run.config.segment
    if run.tuned:
        chosen = json.loads(run.path("tuning").read_text())
        return SegmentationChoice(chosen["low"], chosen["high"], (chosen["threshold"],))
    return SegmentationChoice(config.low, config.high, config.thresholds)


def _untuned(run: Run, *names: str) -> dict[str, Any]:
    """The configured values; none where the tuning stage, an input of its own, chooses them."""
    return {} if run.tuned else run.config.segment.model_dump(include=set(names))


def read_affinities(volume: Volume, roi: Roi) -> Affinities:
    """Three channels of integer affinities; float32 in [0, 1] are quantised to uint8."""
    data = volume.read(roi)
    if np.issubdtype(data.dtype, np.floating):
        return quantise(data[:3])
    return data


def _segment_grid(run: Run, halo: Triple = (0, 0, 0)) -> BlockGrid:
    whole = Roi((0, 0, 0), run.shape)
    return BlockGrid(whole, run.config.segment.block, (0, 0, 0), halo)


def fragments_grid(run: Run) -> BlockGrid:
    """The user's blocks, each with one voxel more on the successor side."""
    return _segment_grid(run, (1, 1, 1))


def check_affinities(run: Run) -> None:
    """Refuse affinities that the kernels cannot take.

    Raises:
        ShapeError: fewer than three channels, or another shape than the image.
        DtypeError: other than uint8, uint16 or float32.
    """
    check_indexable(run.shape)
    if run.foreign("affinities") is None:
        return
    volume = run.volume("affinities")
    if volume.channels is None or volume.channels < 3:
        found = volume.shape if volume.channels is None else (volume.channels, *volume.shape)
        raise ShapeError(f"{volume.path}: expected affinities (3, z, y, x), got {found}")
    if volume.dtype.name not in ("uint8", "uint16", "float32"):
        raise DtypeError(
            f"{volume.path}: expected affinities of uint8, uint16 or float32 in [0, 1], "
            f"got {volume.dtype}"
        )
    if volume.shape != run.shape:
        raise ShapeError(
            f"{volume.path}: affinities of shape {volume.shape}, but the volume has {run.shape}"
        )


def _slot_shape(grid: BlockGrid) -> tuple[Triple, Triple]:
    """Chunk of the scratch labels, and the extent that one block has there."""
    chunk = triple(tuple(min(b, _SCRATCH_EXTENT) for b in grid.block_shape))
    return chunk, round_up(grid.block_shape, chunk)


def _slot(grid: BlockGrid, block: Block) -> Roi:
    """Where the labels of a block lie in the scratch volume.

    There each block begins at a chunk: blocks of any shape then have chunks of their own, of a
    size that the compressor takes.
    """
    _, extent = _slot_shape(grid)
    first = triple(tuple(p * e for p, e in zip(block.position, extent, strict=True)))
    return Roi(first, block.write.shape)


def _create_fragments(run: Run) -> None:
    grid = fragments_grid(run)
    chunk, extent = _slot_shape(grid)
    Volume.create(
        run.path("local_fragments"),
        triple(tuple(n * e for n, e in zip(grid.cells, extent, strict=True))),
        np.uint64,
        chunks=chunk,
        voxel_size_nm=None,
    )
    for name in ("faces", "block_edges", "block_counts"):
        run.path(name).mkdir(parents=True)


def _fragments(block: Block, run: Run) -> BlockResult:
    affinities = read_affinities(run.volume("affinities"), block.read)
    choice = segmentation_choice(run)
    found = extract_fragments(
        affinities,
        origin=block.write.offset,
        write_shape=block.write.shape,
        volume_shape=run.shape,
        low=quantised_threshold(choice.low, affinities.dtype),
        high=quantised_threshold(choice.high, affinities.dtype),
    )
    if not len(found.ids):
        return BlockResult("empty")
    run.volume("local_fragments").write(_slot(fragments_grid(run), block), found.labels)
    write_faces(run.block_file("faces", block.index), found)
    write_edges(run.block_file("block_edges", block.index), found.edges)
    counts = {"id": found.ids, "voxels": found.voxels}
    write_table(run.block_file("block_counts", block.index), counts)
    foreground = int(found.voxels.sum())
    return BlockResult(
        stats={
            "foreground": foreground,
            "foreground_share": round(foreground / block.write.size, 6),
            "fragments": len(found.ids),
        }
    )


FRAGMENTS = Stage(
    name="fragments",
    version=1,
    reads=("affinities",),
    optional=("tuning",),
    writes=("local_fragments", "faces", "block_edges", "block_counts"),
    parameters=lambda run: _untuned(run, "low", "high"),
    grid=fragments_grid,
    create=_create_fragments,
    check=check_affinities,
    process=_fragments,
)


def _stitch(_block: Block, run: Run) -> BlockResult:
    grid = _segment_grid(run)
    holding = holding_blocks(run, "fragments")
    pairs = [
        joined_pairs(
            read_face(run.block_file("faces", block.index), axis, LOWER),
            read_face(run.block_file("faces", before.index), axis, UPPER),
        )
        for block, before, axis in _shared_faces(grid, holding)
    ]
    united = resolve(np.concatenate(pairs) if pairs else np.zeros((0, 2), np.uint64))
    for index in sorted(holding):
        present = face_labels(run.block_file("faces", index))
        write_map(run.block_file("stitch", index), restrict_lookup(present, *united))
    return BlockResult(stats={"stitched": len(united[0])})


def _shared_faces(grid: BlockGrid, holding: frozenset[int]) -> Iterator[tuple[Block, Block, int]]:
    for index in sorted(holding):
        block = grid[index]
        for axis in range(3):
            before = predecessor(grid, block, axis)
            if before is not None and before.index in holding:
                yield block, before, axis


STITCH = Stage(
    name="stitch",
    version=1,
    reads=("faces",),
    writes=("stitch",),
    parameters=lambda run: {"block": run.config.segment.block},
    grid=one_block,
    create=lambda run: run.path("stitch").mkdir(),
    process=_stitch,
)


def _edges(block: Block, run: Run) -> BlockResult:
    holding = holding_blocks(run, "fragments")
    if block.index not in holding:
        return BlockResult("empty")
    grid = _segment_grid(run)
    own = read_map(run.block_file("stitch", block.index))
    tables = [map_edges(read_edges(run.block_file("block_edges", block.index)), *own)]
    for axis in range(3):
        before = predecessor(grid, block, axis)
        if before is None or before.index not in holding:
            continue
        crossing = cross_face_edges(
            read_face(run.block_file("faces", block.index), axis, LOWER),
            read_face(run.block_file("faces", before.index), axis, UPPER),
        )
        other = read_map(run.block_file("stitch", before.index))
        tables.append(map_edges(crossing, *_union(own, other)))
    table = sum_edges(tables)
    write_edges(run.block_file("edges", block.index), table)
    return BlockResult(stats={"edges": len(table)})


def _union(a: SparseMap, b: SparseMap) -> SparseMap:
    ids, first = np.unique(np.concatenate([a[0], b[0]]), return_index=True)
    return ids, np.concatenate([a[1], b[1]])[first]


EDGES = Stage(
    name="edges",
    version=1,
    reads=("faces", "block_edges", "stitch"),
    writes=("edges",),
    parameters=lambda _run: {},
    grid=_segment_grid,
    create=lambda run: run.path("edges").mkdir(),
    process=_edges,
)


def _agglomerate(_block: Block, run: Run) -> BlockResult:
    choice = segmentation_choice(run)
    holding = sorted(holding_blocks(run, "fragments"))
    table = sum_edges([read_edges(run.block_file("edges", index)) for index in holding])
    scale = _scale(run)
    history = agglomerate(table, min(choice.thresholds), scale)
    write_history(run.path("history") / "history.arrow", history)
    fragments = _fragment_counts(run, holding)
    sizes = fragments
    for number, threshold in enumerate(choice.thresholds):
        lookup, sizes_here = _finish_lookup(
            fragment_to_segment(history, threshold), fragments, run.config.segment.min_voxels
        )
        write_map(lookup_file(run, threshold), lookup)
        if number == 0:
            sizes = sizes_here
    write_table(run.path("lookup") / "segments.arrow", {"id": sizes[0], "voxels": sizes[1]})
    return BlockResult(
        stats={
            "fragments": len(fragments[0]),
            "edges": len(table),
            "merges": len(history.kept),
            "segments": len(sizes[0]),
        }
    )


def _scale(run: Run) -> int:
    dtype = run.volume("affinities").dtype
    return 255 if np.issubdtype(dtype, np.floating) else affinity_scale(dtype)


def _fragment_counts(run: Run, holding: list[int]) -> SparseMap:
    """Every global fragment and its voxels in the whole volume."""
    ids, voxels = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    for index in holding:
        counts = read_table(run.block_file("block_counts", index))
        ids.append(apply_lookup(counts["id"], *read_map(run.block_file("stitch", index))))
        voxels.append(counts["voxels"])
    return sum_counts(np.concatenate(ids), np.concatenate(voxels))


def _finish_lookup(
    lookup: SparseMap, fragments: SparseMap, min_voxels: int
) -> tuple[SparseMap, SparseMap]:
    """The lookup with small segments sent to 0, and the size of each segment that stays."""
    segment_of = apply_lookup(fragments[0], *lookup)
    segments, voxels = sum_counts(segment_of, fragments[1])
    small = voxels < min_voxels
    target = segment_of.copy()
    target[np.isin(segment_of, segments[small])] = 0
    changed = target != fragments[0]
    return (fragments[0][changed], target[changed]), (segments[~small], voxels[~small])


def lookup_file(run: Run, threshold: float) -> Path:
    """Where the lookup of a threshold lies."""
    return run.path("lookup") / f"threshold_{threshold!r}.arrow"


def write_history(path: Path, history: MergeHistory) -> None:
    """Keep a merge history as columns."""
    columns: dict[str, NDArray[Any]] = {}
    meta: dict[str, Any] = {}
    for field in fields(history):
        value = getattr(history, field.name)
        if isinstance(value, np.ndarray):
            columns[field.name] = value
        else:
            meta[field.name] = value
    write_table(path, columns, meta)


def _create_agglomerate(run: Run) -> None:
    run.path("history").mkdir()
    run.path("lookup").mkdir()


AGGLOMERATE = Stage(
    name="agglomerate",
    version=1,
    reads=("edges", "block_counts", "stitch"),
    optional=("tuning",),
    writes=("history", "lookup"),
    parameters=lambda run: {
        **_untuned(run, "thresholds"),
        "min_voxels": run.config.segment.min_voxels,
    },
    grid=one_block,
    create=_create_agglomerate,
    process=_agglomerate,
)


def output_grid(run: Run) -> BlockGrid:
    """Boxes of whole output chunks, the same for every blocking of the work."""
    block = triple(tuple(c * max(1, _OUTPUT_EXTENT // c) for c in run.config.chunk))
    grid = BlockGrid.over(run.shape, block)
    grid.require_alignment(run.config.chunk)
    return grid


def _create_relabel(run: Run) -> None:
    size = run.config.input.voxel_size_nm or run.source.voxel_size_nm
    for name in ("fragments", "segments"):
        Volume.create(
            run.path(name), run.shape, np.uint64, chunks=run.config.chunk, voxel_size_nm=size
        )


def _relabel(block: Block, run: Run) -> BlockResult:
    fragments = _global_fragments(block.write, run)
    if fragments is None:
        return BlockResult("empty")
    run.volume("fragments").write(block.write, fragments)
    path = lookup_file(run, segmentation_choice(run).thresholds[0])
    segments = apply_lookup(fragments, *_cached_map(path, path.stat().st_mtime_ns))
    run.volume("segments").write(block.write, segments)
    return BlockResult(stats={"foreground": int(np.count_nonzero(segments))})


def _global_fragments(roi: Roi, run: Run) -> NDArray[np.uint64] | None:
    """Global fragment ids in `roi`; None where no block holds any."""
    holding = holding_blocks(run, "fragments")
    local = run.volume("local_fragments")
    out: NDArray[np.uint64] | None = None
    grid = _segment_grid(run)
    for block in grid.overlapping(roi):
        if block.index not in holding:
            continue
        if out is None:
            out = np.zeros(roi.shape, np.uint64)
        part = block.write.intersect(roi)
        stored = part.relative_to(block.write).shift(_slot(grid, block).offset)
        _require_stored(local, block, stored)
        stitched = read_map(run.block_file("stitch", block.index))
        out[part.relative_to(roi).slices] = apply_lookup(local.read(stored), *stitched)
    if out is not None and not out.any():
        return None
    return out


def _require_stored(volume: Volume, block: Block, stored: Roi) -> None:
    missing = volume.missing_chunks(stored)
    if missing:
        raise DataError(
            f"{volume.path}: block {block.index} was computed, but its chunk {missing[0]} is gone"
        )


@lru_cache(maxsize=2)
def _cached_map(path: Path, _mtime_ns: int) -> SparseMap:
    return read_map(path)


RELABEL = Stage(
    name="relabel",
    version=1,
    reads=("local_fragments", "stitch", "lookup"),
    optional=("tuning",),
    writes=("fragments", "segments"),
    parameters=lambda run: {
        **_untuned(run, "thresholds"),
        "chunk": run.config.chunk,
        "voxel_size_nm": run.config.input.voxel_size_nm or run.source.voxel_size_nm,
    },
    grid=output_grid,
    create=_create_relabel,
    process=_relabel,
)
