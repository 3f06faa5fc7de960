"""Join: the pieces of each segment put together, bucket by bucket of segments.

A step reads the pieces of its bucket and no others, some segments at a time: memory is bounded by
the nodes of these, or of one segment, however far it reaches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from heapq import nlargest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_buckets import bucket_of
from pipeline.arrays.skeleton_smooth import smooth_nodes
from pipeline.arrays.skeleton_summary import SUMMARY_TYPES, summarise_skeletons
from pipeline.arrays.skeletons import SkeletonPieces
from pipeline.geometry import Block
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.block_tables import holding_blocks
from pipeline.stages.run import Run
from pipeline.stages.skeleton_buckets import Bucket, bucket_count, bucket_grid
from pipeline.stages.skeletonize import AREAS, skeleton_parameters
from pipeline.storage.skeleton_table import read_segment_table, write_part
from pipeline.storage.tables import Columns, part_numbers, read_part, write_parts

# All other numbers that blocks report are sums.
_MAXIMA = ("longest_joint_nm",)


def _join(block: Block, run: Run) -> BlockResult:
    from pipeline.arrays.skeleton_join import join_pieces  # scipy: half a second to import

    bucket = Bucket.of(run, "skeleton_pieces", "skeleton_index", block.index)
    stats: dict[str, float] = {}

    def parts() -> Iterator[Columns]:
        for group in range(len(bucket.groups)):
            held = bucket.read(group)
            skeletons, report = join_pieces(
                [as_pieces(columns) for columns in held],
                voxel_size_nm=run.voxel_size_nm,
                settings=run.config.skeletonize.method,
            )
            add_stats(stats, asdict(report))
            yield finished_columns(skeletons, held, run)

    return write_finished(block, len(bucket.groups), parts(), stats, run)


def as_pieces(columns: Columns) -> SkeletonPieces:
    """The pieces among the columns of a part."""
    return SkeletonPieces(**{item.name: columns[item.name] for item in fields(SkeletonPieces)})


def write_finished(
    block: Block, count: int, parts: Iterator[Columns], stats: dict[str, float], run: Run
) -> BlockResult:
    """Write the finished skeletons of a bucket, part by part, and the table of its segments.

    `stats` is read at the end: the parts may fill it.
    """
    if not count:
        return BlockResult("empty")
    rows: list[Columns] = []

    def told() -> Iterator[Columns]:
        for columns in parts:
            skeletons = {n: v for n, v in columns.items() if n != AREAS}
            rows.append(summarise_skeletons(**skeletons, voxel_size_nm=run.voxel_size_nm))
            yield columns

    write_parts(run.block_file("skeletons", block.index), range(count), told())
    table = {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
    write_part(rows_file(run, block.index), table)
    return BlockResult(stats={"skeletons": len(table["segment"]), **stats})


def finished_columns(skeletons: dict[int, Skeleton], pieces: list[Columns], run: Run) -> Columns:
    """The columns of skeletons, smoothed, with the areas that were measured at their pieces."""
    columns = skeleton_columns(skeletons)
    areas = {}
    if AREAS in pieces[0]:
        areas = {AREAS: _areas(columns, pieces, run)}
    rounds = run.config.skeletonize.method.smooth_rounds
    return columns | {"nodes": smooth_nodes(columns["nodes"], edges_in(columns), rounds)} | areas


def edges_in(columns: Columns) -> NDArray[np.int64]:
    """(E, 2) the edges of skeletons behind one another, as indices into all nodes."""
    first = np.cumsum(columns["node_count"]) - columns["node_count"]
    edges: NDArray[np.int64] = columns["edges"] + np.repeat(first, columns["edge_count"])[:, None]
    return edges


def _areas(columns: Columns, pieces: list[Columns], run: Run) -> NDArray[np.float32]:
    """(N,) the area at each node's voxel, the largest that a block found; NaN if none did."""
    segment = np.repeat(columns["segment"], columns["node_count"])
    segments = np.concatenate([segment, *(p["segment"] for p in pieces)])
    nodes = np.concatenate([columns["nodes"], *(p["nodes"] for p in pieces)])
    voxels = np.ravel_multi_index(tuple(np.floor(nodes).astype(np.int64).T), run.shape)
    order = np.lexsort((voxels, segments))
    fresh = np.ones(len(order), bool)
    fresh[1:] = (np.diff(segments[order]) != 0) | (np.diff(voxels[order]) != 0)
    place = np.empty(len(order), np.int64)
    place[order] = np.cumsum(fresh) - 1
    largest = np.full(int(fresh.sum()), np.nan, np.float32)
    np.fmax.at(largest, place[len(segment) :], np.concatenate([p[AREAS] for p in pieces]))
    found: NDArray[np.float32] = largest[place[: len(segment)]]
    return found


def skeleton_columns(skeletons: dict[int, Skeleton]) -> Columns:
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


def create_finished(run: Run) -> None:
    """Make the folders of finished skeletons."""
    for name in ("skeletons", "skeleton_rows"):
        run.path(name).mkdir(parents=True)


JOIN = Stage(
    name="join",
    version=3,
    reads=("skeleton_pieces", "skeleton_index"),
    writes=("skeletons", "skeleton_rows"),
    parameters=skeleton_parameters,
    grid=bucket_grid,
    create=create_finished,
    process=_join,
)


@dataclass(frozen=True, eq=False)
class Joined:
    """Some segments of a bucket.

    Attributes:
        skeletons: by segment, in voxels of the volume.
        areas_nm2: by segment (N,), the cross-section at each node, NaN where unknown; None: not
            measured.
    """

    skeletons: dict[int, Skeleton]
    areas_nm2: dict[int, NDArray[np.float32]] | None


def joined_in(run: Run, bucket: int) -> Iterator[Joined]:
    """What was joined of a bucket, some segments at a time."""
    path = run.block_file("skeletons", bucket)
    for number in part_numbers(path):
        stored = read_part(path, number)
        areas = None
        if AREAS in stored:
            cuts = _cut(stored[AREAS], stored["node_count"])
            areas = dict(zip(stored["segment"].tolist(), cuts, strict=True))
        yield Joined(_skeletons(stored), areas)


def _skeletons(stored: Columns) -> dict[int, Skeleton]:
    nodes = _cut(stored["nodes"], stored["node_count"])
    radii = _cut(stored["radii_nm"], stored["node_count"])
    edges = _cut(stored["edges"], stored["edge_count"])
    return {
        segment: Skeleton(str(segment), nodes[i], edges[i], radii[i])
        for i, segment in enumerate(stored["segment"].tolist())
    }


def _cut(rows: NDArray[Any], counts: NDArray[np.int64]) -> list[NDArray[Any]]:
    """The rows of each skeleton; none without skeletons, where `np.split` gives one piece."""
    return np.split(rows, np.cumsum(counts)[:-1]) if len(counts) else []


def joined_buckets(run: Run) -> list[int]:
    """The buckets that hold a skeleton, increasing."""
    return sorted(holding_blocks(run, joining_stage(run)))


def joining_stage(run: Run) -> str:
    """The stage that makes the skeletons of segments."""
    return "fuse" if run.config.skeletonize.level == "fragments" else "join"


def rows_file(run: Run, bucket: int) -> Path:
    """Where the rows of a bucket's segments lie."""
    return run.block_file("skeleton_rows", bucket).with_suffix(".parquet")


def skeleton_rows(run: Run) -> Columns:
    """The table of all segments, ascending: see `summarise_skeletons`."""
    stamp = run.ledger_file(joining_stage(run)).stat().st_mtime_ns
    return _rows(run, stamp)


@lru_cache(maxsize=1)
def _rows(run: Run, _mtime_ns: int) -> Columns:
    parts = [read_segment_table(rows_file(run, b)) for b in joined_buckets(run)]
    if not parts:
        return {name: np.zeros(0, kind) for name, kind in SUMMARY_TYPES.items()}
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(table["segment"])
    return {name: values[order] for name, values in table.items()}


def longest_segments(run: Run, count: int) -> list[int]:
    """The segments with most cable, that first; of equals the smaller id."""
    rows = skeleton_rows(run)
    pairs = zip(rows["cable_nm"].tolist(), (-int(s) for s in rows["segment"]), strict=True)
    return [-segment for _, segment in nlargest(count, pairs)]


def read_joined(run: Run, wanted: list[int]) -> dict[int, Skeleton]:
    """The skeletons of some segments, in that order; others are not read."""
    ids = set(wanted)
    found: dict[int, Skeleton] = {}
    buckets = bucket_of(np.array(wanted, np.uint64), bucket_count(run))
    for bucket in np.unique(buckets).tolist():
        for joined in joined_in(run, bucket):
            held = joined.skeletons
            found |= {segment: held[segment] for segment in ids & held.keys()}
    return {segment: found[segment] for segment in wanted}


def stage_sums(run: Run, stage: str) -> dict[str, float]:
    """What the blocks of a stage reported, taken together; empty if it has not begun."""
    total = defaultdict[str, float](float)
    with closing(run.ledger(stage)) as ledger:
        for mark in ledger.marks.values():
            add_stats(total, mark.stats)
    return dict(total)


def add_stats(total: dict[str, float], more: Mapping[str, float]) -> None:
    """Add the counts of one step to those of others, in place."""
    for name, value in more.items():
        held = total.get(name, 0.0)
        total[name] = max(held, value) if name in _MAXIMA else held + value
