"""Buckets of segments: what one step of joining or writing skeletons takes on at a time.

A bucket is a shard of the skeletons' sharded format: segments are spread by a hash of their ids,
so buckets are even and a step writes one whole shard. A block's pieces lie in one file, by bucket,
and an index says which files have a part of which bucket: none is opened in vain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton_buckets import bucket_of
from pipeline.geometry import Block, BlockGrid
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.block_tables import holding_blocks
from pipeline.stages.run import Run
from pipeline.storage.tables import (
    Columns,
    changed_at,
    part_numbers,
    read_part,
    read_table,
    write_parts,
    write_table,
)

# Voxels of the volume for one bucket: some hundred thousand nodes where 1 % is foreground.
_BUCKET_VOXELS = 2**29
_FEWEST, _MOST = 16, 4096
CONTACT = "contact_"
"""How the names of columns begin that hold contacts instead of nodes."""

# Nodes of the segments that are joined at once, unless one segment alone has more.
GROUP_NODES = 2_000_000


def bucket_count(run: Run) -> int:
    """How many buckets a volume has: a power of two, the same for every blocking."""
    wanted = -(-prod(run.shape) // _BUCKET_VOXELS)
    return min(max(_FEWEST, 1 << (wanted - 1).bit_length()), _MOST)


def bucket_grid(run: Run) -> BlockGrid:
    """One block a bucket; they lie in a row."""
    return BlockGrid.over((bucket_count(run), 1, 1), (1, 1, 1))


_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")


def write_by_bucket(path: Path, columns: Mapping[str, NDArray[Any]], run: Run) -> None:
    """Keep rows of nodes by the bucket of their segment, segments ascending in each.

    Args:
        path: of the file.
        columns: "segment" and others by node; "edges" (E, 2), indices of nodes. Those whose names
            begin with "contact_" have rows of their own, of which "contact_segment" is a segment.
        run: whose volume says how many buckets there are.
    """
    count = bucket_count(run)
    nodes = {n: v for n, v in columns.items() if n != "edges" and not n.startswith(CONTACT)}
    contacts = {n: v for n, v in columns.items() if n.startswith(CONTACT)}
    bucket = bucket_of(nodes["segment"], count)
    order = np.lexsort((nodes["segment"], bucket))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    edges = place[columns["edges"]]
    edges = edges[np.argsort(edges[:, 0], kind="stable")]
    nodes = {name: values[order] for name, values in nodes.items()}
    owner = contacts.get(CONTACT + "segment", np.zeros(0, np.uint64))
    held = bucket_of(owner, count)
    rows = np.lexsort((owner, held))
    contacts = {name: values[rows] for name, values in contacts.items()}
    numbers = np.union1d(bucket, held)
    bounds, ends = (np.searchsorted(b, [*numbers, count]) for b in (bucket[order], held[rows]))
    cuts = np.searchsorted(edges[:, 0], bounds)

    def parts() -> Iterator[Columns]:
        for i in range(len(numbers)):
            start, end = bounds[i], bounds[i + 1]
            part = {name: values[start:end] for name, values in nodes.items()}
            part |= {name: values[ends[i] : ends[i + 1]] for name, values in contacts.items()}
            ids = np.union1d(part["segment"], part.get(CONTACT + "segment", owner[:0]))
            first, last = (np.searchsorted(part["segment"], ids, side) for side in _SIDES)
            part |= {"edges": edges[cuts[i] : cuts[i + 1]] - start}
            yield {**part, "ids": ids, "counts": last - first}

    write_parts(path, numbers.tolist(), parts())


def index_file(run: Run, index: str) -> Path:
    """Where an index lies."""
    return run.path(index) / "index.arrow"


def write_bucket_index(run: Run, artifact: str, stage: str, index: str) -> int:
    """Gather which files of an artifact, made by a stage, have parts of which bucket."""
    buckets, files = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for number in sorted(holding_blocks(run, stage)):
        found = np.array(part_numbers(run.block_file(artifact, number)), np.int64)
        buckets.append(found)
        files.append(np.full(len(found), number))
    columns = {"bucket": np.concatenate(buckets), "file": np.concatenate(files)}
    write_table(index_file(run, index), columns)
    return len(columns["file"])


def index_stage(name: str, artifact: str, made_by: str) -> Stage:
    """The stage that writes the index `name` of an artifact, which another stage makes."""

    def gather(_block: Block, run: Run) -> BlockResult:
        return BlockResult(stats={"parts": write_bucket_index(run, artifact, made_by, name)})

    return Stage(
        name=name,
        version=1,
        reads=(artifact,),
        writes=(name,),
        parameters=lambda run: {},
        grid=one_block,
        create=lambda run: run.path(name).mkdir(parents=True),
        process=gather,
    )


def _files_of(index: Path, bucket: int) -> list[int]:
    """The files that have a part of a bucket, increasing."""
    buckets, files = _index(index, changed_at(index))
    found: list[int] = files[buckets == bucket].tolist()
    return found


@lru_cache(maxsize=2)
def _index(path: Path, _mtime_ns: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    columns = read_table(path)
    return columns["bucket"], columns["file"]


@dataclass(frozen=True, eq=False)
class Bucket:
    """The pieces of a bucket of segments, and the groups of segments to be joined at once.

    Attributes:
        number: of the bucket.
        paths: the files that have a part of it.
        held: of each file, its segments ("ids", ascending) and their nodes ("counts"), of which
            one that has contacts alone has none.
        groups: first and last segment of each group, ascending. A group has no more than
            `GROUP_NODES` nodes, or one segment.
    """

    number: int
    paths: list[Path]
    held: list[Columns]
    groups: list[tuple[np.uint64, np.uint64]]

    @classmethod
    def of(cls, run: Run, artifact: str, index: str, number: int) -> Bucket:
        """A bucket of an artifact, found by the artifact that is its index."""
        files = _files_of(index_file(run, index), number)
        paths = [run.block_file(artifact, file) for file in files]
        held = [read_part(path, number, ("ids", "counts")) for path in paths]
        return cls(number, paths, held, list(_groups(held)))

    def read(self, group: int) -> list[Columns]:
        """The rows of a group by file, as `write_by_bucket` was given them."""
        low, high = self.groups[group]
        return [
            _cut(read_part(path, self.number), low, high)
            for path, held in zip(self.paths, self.held, strict=True)
            if ((held["ids"] >= low) & (held["ids"] <= high)).any()
        ]


def _groups(held: list[Columns]) -> Iterator[tuple[np.uint64, np.uint64]]:
    if not held:
        return
    ids, place = np.unique(np.concatenate([h["ids"] for h in held]), return_inverse=True)
    nodes = np.zeros(len(ids), np.int64)
    np.add.at(nodes, place, np.concatenate([h["counts"] for h in held]))
    first, taken = 0, 0
    for i, count in enumerate(nodes.tolist()):
        if i > first and taken + count > GROUP_NODES:
            yield ids[first], ids[i - 1]
            first, taken = i, 0
        taken += count
    yield ids[first], ids[-1]


def _cut(columns: Columns, low: np.uint64, high: np.uint64) -> Columns:
    """The rows of a part whose segments lie within two ids."""
    start, end = _between(columns["segment"], low, high)
    edges = columns["edges"]
    first, last = np.searchsorted(edges[:, 0], [start, end])
    found = {"edges": edges[first:last] - start}
    for name, values in columns.items():
        if name.startswith(CONTACT):
            begin, stop = _between(columns[CONTACT + "segment"], low, high)
            found[name] = values[begin:stop]
        elif name not in ("edges", "ids", "counts"):
            found[name] = values[start:end]
    return found


def _between(ascending: NDArray[np.uint64], low: np.uint64, high: np.uint64) -> tuple[int, int]:
    return (
        int(np.searchsorted(ascending, low)),
        int(np.searchsorted(ascending, high, side="right")),
    )
