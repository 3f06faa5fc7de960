"""Sites of errors as Neuroglancer annotations: points and lines that can be hovered and listed.

The precomputed annotation format: `info`, every annotation by its id, those of each segment, and
grids of cells, coarse to fine, of which a viewer takes what it has room for. A part with many
entries is written as shards, so that a hundred thousand sites are a few dozen files. The format
counts x, y, z, in voxels whose voxel i spans [i, i + 1), as our nodes do. Written here because the
writer of the `neuroglancer` package sets a uint32 after a float32 two bytes too far, has one cell
and a file for each entry. Equal sites give equal bytes.

Source: google/neuroglancer, src/datasource/precomputed/annotations.md.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.annotation_cells import Level, spread_over_levels
from pipeline.arrays.error_sites import KINDS, Sites
from pipeline.errors import InputError
from pipeline.geometry import Triple
from pipeline.settings import NmTriple
from pipeline.storage.atomic import remove_tree, write_json
from pipeline.storage.shards import IDENTITY, MURMUR, write_shards
from pipeline.threads import map_threads

LAYERS = {"split": "splits", "merge": "merges", "omission": "omissions"}
"""The folder of each kind."""

_PROPERTIES: list[dict[str, Any]] = [
    {"id": "cable_nm", "type": "float32", "description": "cable lost, nm"},
    {"id": "rank", "type": "uint32", "description": "rank among all sites by cable lost"},
]
_RELATIONSHIP = "segments"
_MOST_FILES = 1_000  # of a part; with more entries it is written as shards
_CELL_LIMIT = 1_000  # annotations that a viewer gets at a time


def write_site_layers(
    folder: Path,
    sites: Sites,
    shape: Triple,
    voxel_size_nm: NmTriple,
    *,
    largest: int = 200_000,
) -> dict[str, int]:
    """Write a layer of annotations for each kind of site: `splits`, `merges`, `omissions`.

    A split is a line from end to end of its gap, a merge one between the closest nodes, an
    omission a point. Ids and the property `rank` are the numbers of the sites, the related
    segments their labels. A layer without sites is written all the same. A layer there is
    replaced; its `info` comes last, so that one half written is none.

    Args:
        folder: holds the layers.
        sites: of `find_sites`.
        shape: z, y, x of the volume, in voxels.
        voxel_size_nm: z, y, x.
        largest: of each kind only so many are written, those with the most cable.

    Returns:
        By folder, the number of annotations.

    Raises:
        InputError: `largest` is not positive, or coordinates are beyond what float32 holds.
    """
    if largest < 1:
        raise InputError(f"largest: expected 1 or more annotations a kind, got {largest}")

    def write(kind: int) -> int:
        name = KINDS[kind]
        rows = np.flatnonzero(sites.kind == kind)[:largest]
        layer = _layer(sites, rows, is_line=name != "omission")
        _write_layer(folder / LAYERS[name], layer, voxel_size_nm, shape)
        return len(rows)

    counts = map_threads(write, range(len(KINDS)))
    return {LAYERS[name]: count for name, count in zip(KINDS, counts, strict=True)}


@dataclass(frozen=True, eq=False)
class _Layer:
    """Annotations of one kind.

    Attributes:
        ends: (n, 1 or 2, 3) float32, x, y, z of each point or of the ends of each line.
        ids: (n,) uint64.
        records: (n,) of each the geometry and the properties, as they are written.
        segments: (n, 2) uint64, the related segments, ascending; 0 for none, the first or both.
    """

    ends: NDArray[np.float32]
    ids: NDArray[np.uint64]
    records: NDArray[np.void]
    segments: NDArray[np.uint64]


def _layer(sites: Sites, rows: NDArray[np.int64], *, is_line: bool) -> _Layer:
    columns = [sites.end_a_vox, sites.end_b_vox] if is_line else [sites.position_vox]
    places = np.stack([column[rows, ::-1] for column in columns], axis=1)
    if not (np.abs(places) < np.finfo(np.float32).max).all():
        raise InputError("sites: a coordinate is not finite, or beyond what float32 holds")
    ends = places.astype("<f4")
    records = np.empty(len(rows), [("ends", "<f4", ends.shape[1:]), ("cable", "<f4"), ("n", "<u4")])
    records["ends"], records["cable"], records["n"] = ends, sites.cable_nm[rows], rows + 1
    segments = np.sort(np.stack([sites.label_a[rows], sites.label_b[rows]], axis=1), axis=1)
    segments[segments[:, 0] == segments[:, 1], 0] = 0
    return _Layer(ends, sites.site[rows].astype("<u8"), records, segments)


def _write_layer(path: Path, layer: _Layer, voxel_size_nm: NmTriple, shape: Triple) -> None:
    remove_tree(path / "info")
    for part in [path / "by_id", path / _RELATIONSHIP, *path.glob("spatial*")]:
        remove_tree(part)
    low, high = _bounds(layer, shape)
    unit = np.array(voxel_size_nm[::-1], np.float64)
    levels = spread_over_levels(layer.ends.astype(np.float64), low, high, unit, _CELL_LIMIT)
    info = _info(layer, voxel_size_nm) | {
        "lower_bound": low.tolist(),
        "upper_bound": high.tolist(),
        "relationships": [
            {"id": _RELATIONSHIP, **_write_part(path, _RELATIONSHIP, _by_segment(layer), MURMUR)}
        ],
        "by_id": _write_part(path, "by_id", _by_id(layer), IDENTITY),
        "spatial": [
            _write_level(path, f"spatial{number}", layer, level)
            for number, level in enumerate(levels)
        ],
    }
    write_json(path / "info", info)


def _by_id(layer: _Layer) -> dict[int, bytes]:
    """Of each annotation its record and its segments."""
    size = layer.records.itemsize
    data = layer.records.tobytes()
    listed = [
        struct.pack(f"<I{2 - pair.count(0)}Q", 2 - pair.count(0), *(n for n in pair if n))
        for pair in layer.segments.tolist()
    ]
    return {
        number: data[size * row : size * (row + 1)] + listed[row]
        for row, number in enumerate(layer.ids.tolist())
    }


def _by_segment(layer: _Layer) -> dict[int, bytes]:
    """Of each segment its annotations, in the order of their ranks."""
    rows, column = np.nonzero(layer.segments)
    segment = layer.segments[rows, column]
    order = np.argsort(segment, kind="stable")
    names, starts = np.unique(segment[order], return_index=True)
    parts = np.split(rows[order], starts[1:]) if len(names) else []
    return {name: _listed(layer, part) for name, part in zip(names.tolist(), parts, strict=True)}


def _write_part(
    path: Path, key: str, entries: Mapping[int, bytes], hash_name: str
) -> dict[str, Any]:
    """Write entries under their keys; returns what `info` says of it."""
    if len(entries) > _MOST_FILES:
        return {"key": key, "sharding": write_shards(path / key, entries, hash_name=hash_name)}
    _write_files(path / key, {str(name): data for name, data in entries.items()})
    return {"key": key}


def _write_level(path: Path, key: str, layer: _Layer, level: Level) -> dict[str, Any]:
    """Write the cells of a grid; one cell that is all is written even without annotations."""
    entries = [_listed(layer, rows) for rows in level.rows]
    names = ["_".join(map(str, cell)) for cell in level.cells.tolist()]
    described = {
        "grid_shape": level.grid.tolist(),
        "chunk_size": level.cell_size.tolist(),
        "limit": max([1, *map(len, level.rows)]),
    }
    if len(entries) > _MOST_FILES:
        keys = _morton_codes(level.cells, level.grid).tolist()
        part = _write_part(path, key, dict(zip(keys, entries, strict=True)), IDENTITY)
        return part | described
    if not entries:
        names, entries = ["0_0_0"], [_listed(layer, np.zeros(0, np.int64))]
    _write_files(path / key, dict(zip(names, entries, strict=True)))
    return {"key": key} | described


def _morton_codes(cells: NDArray[np.int64], grid: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The compressed Morton code of each cell: an axis has only the bits that its size needs."""
    codes = np.zeros(len(cells), np.uint64)
    place = 0
    for bit in range(int(grid.max() - 1).bit_length()):
        for axis in range(3):
            if (int(grid[axis]) - 1) >> bit:
                codes |= (cells[:, axis] >> bit & 1).astype(np.uint64) << np.uint64(place)
                place += 1
    return codes


def _write_files(folder: Path, entries: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in entries.items():
        (folder / name).write_bytes(data)


def _listed(layer: _Layer, rows: NDArray[np.int64]) -> bytes:
    """Several annotations: how many, each of them, their ids."""
    number = struct.pack("<Q", len(rows))
    return number + layer.records[rows].tobytes() + layer.ids[rows].tobytes()


def _bounds(layer: _Layer, shape: Triple) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of x, y, z: they hold the volume, and sites that lie outside."""
    points = layer.ends.reshape(-1, 3).astype(np.float64)
    low = np.floor(points.min(axis=0, initial=0.0))
    return low, np.maximum(np.floor(points.max(axis=0, initial=0.0)) + 1, shape[::-1])


def _info(layer: _Layer, voxel_size_nm: NmTriple) -> dict[str, Any]:
    return {
        "@type": "neuroglancer_annotations_v1",
        "dimensions": {
            axis: [size * 1e-9, "m"] for axis, size in zip("xyz", voxel_size_nm[::-1], strict=True)
        },
        "annotation_type": "LINE" if layer.ends.shape[1] == 2 else "POINT",
        "properties": _PROPERTIES,
    }
