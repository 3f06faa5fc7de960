"""Skeletons of fragments, fused by a lookup: another lookup costs no look at a voxel.

1. `skeletonize` traces fragments instead of segments, and lists where they touch.
2. `fragment_join` puts the pieces of each fragment together, by buckets of fragments.
3. `scatter` hands each fragment, and each contact inside a segment, to the bucket of its segment.
4. `scatter_index` gathers which file has parts of which bucket.
5. `fuse` ties the fragments of each segment at their contacts.

Another lookup begins at step 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.labels import SparseMap
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_contacts import Contacts, combine_contacts
from pipeline.geometry import Block
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.renamed_segments import (
    rename_fragment_ids,
    renaming_of_segments,
    segment_lookup,
)
from pipeline.stages.run import Run
from pipeline.stages.skeleton_buckets import (
    CONTACT,
    Bucket,
    bucket_grid,
    index_stage,
    write_by_bucket,
)
from pipeline.stages.skeleton_join import (
    add_stats,
    as_pieces,
    create_finished,
    edges_in,
    finished_columns,
    skeleton_columns,
    write_finished,
)
from pipeline.stages.skeletonize import skeleton_parameters
from pipeline.storage.tables import Columns, part_numbers, read_part, write_parts


def _fragment_join(block: Block, run: Run) -> BlockResult:
    from pipeline.arrays.skeleton_join import join_pieces  # scipy: half a second to import

    bucket = Bucket.of(run, "skeleton_pieces", "skeleton_index", block.index)
    if not bucket.groups:
        return BlockResult("empty")
    # What is too short by itself may tie two others together.
    settings = run.config.skeletonize.method.model_copy(update={"dust_nm": 0.0})
    stats: dict[str, float] = {}

    def parts() -> Iterator[Columns]:
        for group in range(len(bucket.groups)):
            held = bucket.read(group)
            skeletons, report = join_pieces(
                [as_pieces(columns) for columns in held],
                voxel_size_nm=run.voxel_size_nm,
                settings=settings,
            )
            add_stats(stats, {"fragments": len(skeletons), **asdict(report)})
            yield skeleton_columns(skeletons) | _contact_columns(_contacts_in(held))

    path = run.block_file("fragment_skeletons", block.index)
    write_parts(path, range(len(bucket.groups)), parts())
    return BlockResult(stats=stats)


def _contacts_in(parts: list[Columns]) -> Contacts:
    """The contacts of several parts, those of one pair added up."""
    names = [item.name for item in fields(Contacts)]
    tables = []
    for part in parts:
        columns = {name: part[CONTACT + name] for name in names}
        order = np.lexsort((columns["b"], columns["a"]))
        tables.append(Contacts(**{name: values[order] for name, values in columns.items()}))
    return combine_contacts(tables)


def _contact_columns(contacts: Contacts) -> Columns:
    return {CONTACT + name: values for name, values in contacts.columns().items()}


FRAGMENT_JOIN = Stage(
    name="fragment_join",
    version=2,
    reads=("skeleton_pieces", "skeleton_index"),
    writes=("fragment_skeletons",),
    parameters=skeleton_parameters,
    grid=bucket_grid,
    create=lambda run: run.path("fragment_skeletons").mkdir(parents=True),
    process=_fragment_join,
)


def _scatter(block: Block, run: Run) -> BlockResult:
    path = run.block_file("fragment_skeletons", block.index)
    if not path.exists():
        return BlockResult("empty")
    lookup = segment_lookup(run)
    assert lookup is not None
    parts = [read_part(path, number) for number in part_numbers(path)]
    columns = _assigned(parts, lookup, run)
    given = sum(len(part["segment"]) for part in parts)
    stats = {"background": given - len(np.unique(columns["fragment"]))}
    if not len(columns["segment"]):
        return BlockResult("empty", stats=stats)
    write_by_bucket(run.block_file("scattered_skeletons", block.index), columns, run)
    return BlockResult(stats={"nodes": len(columns["segment"]), **stats})


def _assigned(parts: list[Columns], lookup: SparseMap, run: Run) -> Columns:
    """Nodes, edges and contacts of fragments with the segment of each; segment 0 is left out."""
    fragment = _joined([np.repeat(p["segment"], p["node_count"]) for p in parts])
    starts = np.cumsum([0, *(len(p["nodes"]) for p in parts)])
    edges = _joined([edges_in(p) + s for p, s in zip(parts, starts, strict=False)])
    names = np.unique(fragment)
    segment = rename_fragment_ids(names, lookup, run)[np.searchsorted(names, fragment)]
    kept = segment != 0
    place = np.cumsum(kept) - 1
    edges = place[edges[kept[edges[:, 0]]]]
    nodes = {name: _joined([p[name] for p in parts])[kept] for name in ("nodes", "radii_nm")}
    return {
        "segment": segment[kept],
        "fragment": fragment[kept],
        **nodes,
        "edges": edges,
        **_inside(_contacts_in(parts), lookup, run),
    }


def _inside(contacts: Contacts, lookup: SparseMap, run: Run) -> Columns:
    """The contacts of which both fragments are in one segment, and that segment."""
    one, other = (rename_fragment_ids(ids, lookup, run) for ids in (contacts.a, contacts.b))
    inside = (one == other) & (one != 0)
    rows = {name: values[inside] for name, values in contacts.columns().items()}
    return {CONTACT + name: values for name, values in rows.items()} | {
        CONTACT + "segment": one[inside]
    }


def _joined(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(arrays)


def _lookup_parameters(run: Run) -> dict[str, Any]:
    return {**skeleton_parameters(run), **renaming_of_segments(run)}


SCATTER = Stage(
    name="scatter",
    version=1,
    reads=("fragment_skeletons", "segment_lookup"),
    writes=("scattered_skeletons",),
    parameters=_lookup_parameters,
    grid=bucket_grid,
    create=lambda run: run.path("scattered_skeletons").mkdir(parents=True),
    process=_scatter,
)


SCATTER_INDEX = index_stage("scatter_index", "scattered_skeletons", "scatter")


def _fuse(block: Block, run: Run) -> BlockResult:
    from pipeline.arrays.skeleton_fuse import fuse_skeletons

    bucket = Bucket.of(run, "scattered_skeletons", "scatter_index", block.index)
    stats: dict[str, float] = {}

    def parts() -> Iterator[Columns]:
        for group in range(len(bucket.groups)):
            held = bucket.read(group)
            fragments, lookup = _fragments(held)
            skeletons, report = fuse_skeletons(
                fragments,
                _contacts_in(held),
                lookup,
                voxel_size_nm=run.voxel_size_nm,
                settings=run.config.skeletonize.method,
            )
            add_stats(stats, asdict(report))
            yield finished_columns(skeletons, held, run)

    return write_finished(block, len(bucket.groups), parts(), stats, run)


def _fragments(parts: list[Columns]) -> tuple[dict[int, Skeleton], SparseMap]:
    """The skeletons of the fragments in some parts, and the segment of each."""
    found: dict[int, Skeleton] = {}
    pairs = []
    for part in parts:
        # Of one fragment all nodes are in one file, but those of its segment's others lie between.
        order = np.argsort(part["fragment"], kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        names, starts = np.unique(part["fragment"][order], return_index=True)
        bounds = np.append(starts, len(order))
        edges = place[part["edges"]]
        edges = edges[np.argsort(edges[:, 0], kind="stable")]
        cuts = np.searchsorted(edges[:, 0], bounds)
        for i, name in enumerate(names.tolist()):
            rows = order[bounds[i] : bounds[i + 1]]
            inner = edges[cuts[i] : cuts[i + 1]] - bounds[i]
            found[name] = Skeleton(str(name), part["nodes"][rows], inner, part["radii_nm"][rows])
        pairs.append((names, part["segment"][order][starts]))
    names = np.concatenate([pair[0] for pair in pairs])
    order = np.argsort(names)
    return found, (names[order], np.concatenate([pair[1] for pair in pairs])[order])


FUSE = Stage(
    name="fuse",
    version=1,
    reads=("scattered_skeletons", "scatter_index"),
    writes=("skeletons", "skeleton_rows"),
    parameters=skeleton_parameters,
    grid=bucket_grid,
    create=create_finished,
    process=_fuse,
)
