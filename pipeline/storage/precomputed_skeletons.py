"""Skeletons and segment properties in Neuroglancer's precomputed format.

A folder of skeletons can be linked to a segmentation (`pipeline.storage.precomputed.link`) or be a
layer of its own. Vertices are in nanometres, x, y, z, where voxel i is centred at
(i + 0.5) * resolution; each has its radius and, where asked for, the area of its cross-section (NaN
where that is unknown). Edges may close loops.

Few skeletons lie in plain files, one a segment. Many lie in shards: a segment's bucket
(`pipeline.arrays.skeleton_buckets`) is the number of its shard, so that every bucket writes one
file, and all can be written at the same time. `create_skeletons` comes before them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_buckets import HASH, MINISHARD_BITS, shard_bits
from pipeline.errors import DataError, InputError, ShapeError
from pipeline.settings import NmTriple
from pipeline.storage.atomic import write_json
from pipeline.storage.shards import write_shard

RADIUS = "radius"
"""Of a vertex, nanometres."""
CROSS_SECTION = "cross_sectional_area"
"""Of a vertex, square nanometres; NaN where unknown. The name is that of kimimaro."""

_ATTRIBUTES = (RADIUS, CROSS_SECTION)
_IDENTITY = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
_SHARDED = "neuroglancer_uint64_sharded_v1"
# Indices of shards are read once per folder, not once per skeleton.
_CACHE = {"cache_pool": {"total_bytes_limit": 2**27}}
Areas = Mapping[int, NDArray[np.floating]]


# --- The folder


def sharding_of(buckets: int) -> dict[str, Any]:
    """How the shards of a folder with so many buckets are laid out.

    Raises:
        InputError: `buckets` is no power of two.
    """
    return {
        "@type": _SHARDED,
        "preshift_bits": 0,
        "hash": HASH,
        "minishard_bits": MINISHARD_BITS,
        "shard_bits": shard_bits(buckets),
        "minishard_index_encoding": "gzip",
        "data_encoding": "gzip",
    }


def skeleton_info(
    attributes: Sequence[str] = (RADIUS,), sharding: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What the file `info` of a folder of skeletons says.

    Args:
        attributes: what each vertex has, `RADIUS` or both `RADIUS` and `CROSS_SECTION`.
        sharding: of `sharding_of`; None: one file a segment.

    Raises:
        InputError: other attributes, or another order.
    """
    if tuple(attributes) not in (_ATTRIBUTES[:1], _ATTRIBUTES):
        raise InputError(
            f"attributes of skeletons: expected {RADIUS}, or {RADIUS} and {CROSS_SECTION}, got "
            f"{', '.join(attributes) or 'none'}"
        )
    info: dict[str, Any] = {
        "@type": "neuroglancer_skeletons",
        "transform": _IDENTITY,
        "vertex_attributes": [
            {"id": name, "data_type": "float32", "num_components": 1} for name in attributes
        ],
    }
    if sharding is not None:
        info["sharding"] = dict(sharding)
    return info


def create_skeletons(
    path: Path, attributes: Sequence[str] = (RADIUS,), sharding: Mapping[str, Any] | None = None
) -> None:
    """Make a folder of skeletons without any; arguments as in `skeleton_info`."""
    info = skeleton_info(attributes, sharding)
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "info", info)


@dataclass(frozen=True)
class _Layer:
    """What `info` says.

    Attributes:
        transform: (3, 4), from stored x, y, z to nanometres.
        attributes: name, type and numbers per vertex of what follows the edges, in order.
        sharding: None if each segment has its file.
    """

    transform: NDArray[np.float64]
    attributes: tuple[tuple[str, np.dtype, int], ...]
    sharding: dict[str, Any] | None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the attributes."""
        return tuple(name for name, _, _ in self.attributes)


def _layer(path: Path) -> _Layer:
    if not (path / "info").is_file():
        raise InputError(f"{path}: no precomputed skeletons (no file `info`)")
    try:
        info = json.loads((path / "info").read_text())
        return _Layer(
            np.array(info.get("transform") or _IDENTITY, np.float64).reshape(3, 4),
            tuple(
                (str(a["id"]), np.dtype(a["data_type"]).newbyteorder("<"), int(a["num_components"]))
                for a in info.get("vertex_attributes") or ()
            ),
            info.get("sharding"),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path / 'info'}: not well formed: {error!r}") from error


# --- Writing


def write_skeletons(
    path: Path,
    skeletons: Mapping[int, Skeleton],
    voxel_size_nm: NmTriple,
    areas_nm2: Areas | None = None,
) -> None:
    """Write a folder of skeletons, one file a segment; `info` comes last.

    Files of segments that are not in `skeletons` are removed: the folder holds what is given.

    Args:
        path: the folder.
        skeletons: by segment id, 1 to 2^64 - 1.
        voxel_size_nm: z, y, x, of the nodes' voxels.
        areas_nm2: by segment id, the cross-section of each node (N,), NaN where unknown; None: the
            folder has no cross-sections.

    Raises:
        InputError: an id out of range, a skeleton without nodes or without its areas.
        ShapeError: a skeleton has more nodes, or fewer, than areas.
    """
    path.mkdir(parents=True, exist_ok=True)
    for stale in set(_segment_ids(path)) - set(skeletons):
        (path / str(stale)).unlink()
    _write_files(path, skeletons, voxel_size_nm, areas_nm2)
    write_json(path / "info", skeleton_info(_names(areas_nm2)))


def write_skeleton_files(
    path: Path,
    skeletons: Mapping[int, Skeleton],
    voxel_size_nm: NmTriple,
    areas_nm2: Areas | None = None,
) -> None:
    """Add the files of some segments to a folder that `create_skeletons` made without shards.

    Arguments and errors as in `write_skeletons`; also InputError if the folder has shards, or
    other attributes.
    """
    layer = _layer(path)
    if layer.sharding:
        raise InputError(f"{path}: its skeletons lie in shards; write whole shards")
    _require_attributes(path, layer, areas_nm2)
    _write_files(path, skeletons, voxel_size_nm, areas_nm2)


def _write_files(
    path: Path,
    skeletons: Mapping[int, Skeleton],
    voxel_size_nm: NmTriple,
    areas_nm2: Areas | None,
) -> None:
    for segment, data in _encoded(path, skeletons, voxel_size_nm, areas_nm2):
        (path / str(segment)).write_bytes(data)


def write_skeleton_shard(
    path: Path,
    bucket: int,
    skeletons: Mapping[int, Skeleton],
    voxel_size_nm: NmTriple,
    areas_nm2: Areas | None = None,
) -> None:
    """Write the shard of one bucket; it appears whole or not at all.

    No other file is touched, so buckets can be written at the same time. Equal skeletons give equal
    bytes, whatever their order. Without skeletons there is no file, as the format has it.

    Args:
        path: a folder that `create_skeletons` made with `sharding_of`.
        bucket: which shard.
        skeletons: all of that bucket, by segment id.
        voxel_size_nm: z, y, x, of the nodes' voxels.
        areas_nm2: as in `write_skeletons`.

    Raises:
        InputError: no such folder or bucket, a segment that belongs elsewhere, an id out of range,
            a skeleton without nodes or without its areas.
        ShapeError: a skeleton has more nodes, or fewer, than areas.
    """
    layer = _layer(path)
    if layer.sharding is None:
        raise InputError(f"{path}: its skeletons lie in plain files, not in shards")
    _require_attributes(path, layer, areas_nm2)
    shards = 2 ** int(layer.sharding["shard_bits"])
    if not 0 <= bucket < shards:
        raise InputError(f"{path}: has shards 0 to {shards - 1}, got {bucket}")
    encoded = dict(_encoded(path, skeletons, voxel_size_nm, areas_nm2))
    write_shard(path, bucket, encoded, layer.sharding)


def _require_ids(path: Path, segments: Sequence[int]) -> None:
    for segment in segments:
        if not 0 < segment < 2**64:
            raise InputError(f"{path}: segment id {segment} is not within 1 to 2^64 - 1")


def _names(areas_nm2: Areas | None) -> tuple[str, ...]:
    return _ATTRIBUTES[:1] if areas_nm2 is None else _ATTRIBUTES


def _require_attributes(path: Path, layer: _Layer, areas_nm2: Areas | None) -> None:
    if layer.names != _names(areas_nm2):
        raise InputError(
            f"{path}: `info` tells of {', '.join(layer.names)} for each vertex, but "
            f"{', '.join(_names(areas_nm2))} were given"
        )


def _encoded(
    path: Path,
    skeletons: Mapping[int, Skeleton],
    voxel_size_nm: NmTriple,
    areas_nm2: Areas | None,
) -> Iterator[tuple[int, bytes]]:
    """Segments, ascending, and their bytes; everything that can be refused is refused here."""
    _require_ids(path, list(skeletons))
    absent = [s for s in skeletons if s not in areas_nm2] if areas_nm2 is not None else []
    if absent:
        raise InputError(f"{path}: no cross-sections of segment {absent[0]} were given")
    for segment in sorted(skeletons):
        areas = None if areas_nm2 is None else areas_nm2[segment]
        yield segment, encode_skeleton(segment, skeletons[segment], voxel_size_nm, areas)


def encode_skeleton(
    segment: int,
    skeleton: Skeleton,
    voxel_size_nm: NmTriple,
    areas_nm2: NDArray[np.floating] | None = None,
) -> bytes:
    """A skeleton as the format stores it: counts, vertices, edges, attributes.

    Args:
        segment: for messages.
        skeleton: nodes in voxels of `voxel_size_nm`.
        voxel_size_nm: z, y, x.
        areas_nm2: (N,) cross-sections; None leaves the attribute out.

    Raises:
        InputError: no nodes, or coordinates that are not finite.
        ShapeError: as many areas as nodes are needed.
    """
    count = len(skeleton.nodes)
    if not count:
        raise InputError(f"segment {segment}: a skeleton without nodes cannot be written")
    vertices = (skeleton.nodes * voxel_size_nm)[:, ::-1]
    if not np.isfinite(vertices).all():
        raise InputError(f"segment {segment}: a node has coordinates that are not finite")
    parts = [
        np.array([count, len(skeleton.edges)], "<u4"),
        np.ascontiguousarray(vertices, "<f4"),
        np.ascontiguousarray(skeleton.edges, "<u4"),
        np.ascontiguousarray(skeleton.radii_nm, "<f4"),
    ]
    if areas_nm2 is not None:
        if np.shape(areas_nm2) != (count,):
            raise ShapeError(
                f"segment {segment}: areas of shape {np.shape(areas_nm2)} for {count} nodes"
            )
        parts.append(np.ascontiguousarray(areas_nm2, "<f4"))
    return b"".join(part.tobytes() for part in parts)


# --- Reading


def read_skeletons(path: Path, voxel_size_nm: NmTriple) -> dict[int, Skeleton]:
    """Every skeleton of a folder by segment, ascending; nodes in voxels of `voxel_size_nm`.

    Raises:
        InputError: the folder has no skeletons, or an `info` that is not well formed.
        DataError: a file is damaged.
    """
    layer = _layer(path)
    turn, shift = layer.transform[:, :3], layer.transform[:, 3]
    skeletons = {}
    for segment, source, data in _stored(path, layer):
        vertices, edges, values = _decode(data, layer, source)
        nodes = (vertices @ turn.T + shift)[:, ::-1] / voxel_size_nm
        radii = values.get(RADIUS, np.zeros(len(nodes)))
        skeletons[segment] = Skeleton(str(segment), nodes, edges, radii)
    return skeletons


def read_areas(path: Path) -> dict[int, NDArray[np.float32]]:
    """The cross-sections of every skeleton of a folder, nm^2, by segment, ascending.

    Raises:
        InputError: the folder has no skeletons, or these have no cross-sections.
        DataError: a file is damaged.
    """
    layer = _layer(path)
    if CROSS_SECTION not in layer.names:
        raise InputError(f"{path}: its skeletons have no attribute {CROSS_SECTION}")
    areas = {}
    for segment, source, data in _stored(path, layer):
        vertices, _, values = _decode(data, layer, source)
        unknown = np.full(len(vertices), np.nan)
        areas[segment] = values.get(CROSS_SECTION, unknown).astype(np.float32)
    return areas


def _stored(path: Path, layer: _Layer) -> Iterator[tuple[int, str, bytes]]:
    """Segment, where it lies, and its bytes, ascending."""
    if layer.sharding is not None:
        for segment, data in shard_entries(path, layer.sharding):
            yield segment, f"{path}, segment {segment}", data
        return
    for segment in _segment_ids(path):
        yield segment, str(path / str(segment)), (path / str(segment)).read_bytes()


def shard_entries(path: Path, sharding: Mapping[str, Any]) -> Iterator[tuple[int, bytes]]:
    """The ids in the shards of a folder, ascending, and what is stored under each.

    Raises:
        DataError: a shard, or `sharding`, is not well formed.
    """
    spec = {
        "driver": "neuroglancer_uint64_sharded",
        "metadata": dict(sharding),
        "base": {"driver": "file", "path": f"{path.resolve()}/"},
        "context": _CACHE,
    }
    try:
        store = ts.KvStore.open(spec).result()
        for key in sorted(store.list().result()):
            yield int.from_bytes(key, "big"), store.read(key).result().value
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: the shards cannot be read: {error}") from error


def _decode(
    data: bytes, layer: _Layer, source: str
) -> tuple[NDArray[np.float64], NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Vertices (N, 3) as stored, edges (E, 2), and the attributes with one number a vertex."""
    head = np.frombuffer(data[:8], "<u4") if len(data) >= 8 else np.zeros(2, "<u4")
    count, edge_count = (int(n) for n in head)
    begin = 8 + 12 * count + 8 * edge_count
    whole = begin + count * sum(dtype.itemsize * n for _, dtype, n in layer.attributes)
    if len(data) not in (begin, whole) or len(data) < 8:
        raise DataError(f"{source}: damaged skeleton: {len(data)} bytes, expected {whole}")
    vertices = np.frombuffer(data, "<f4", 3 * count, 8).reshape(-1, 3).astype(np.float64)
    edges = np.frombuffer(data, "<u4", 2 * edge_count, 8 + 12 * count).astype(np.int64)
    if edges.max(initial=-1) >= count:
        raise DataError(f"{source}: damaged skeleton: an edge names vertex {edges.max()}")
    values = {}
    for name, dtype, components in layer.attributes if len(data) == whole else ():
        if components == 1:
            values[name] = np.frombuffer(data, dtype, count, begin).astype(np.float64)
        begin += count * components * dtype.itemsize
    return vertices, edges.reshape(-1, 2), values


def _segment_ids(path: Path) -> list[int]:
    return sorted(int(file.name) for file in path.iterdir() if file.name.isdecimal())


# --- What the list of segments shows


def write_segment_properties(
    path: Path,
    segments: NDArray[np.uint64],
    properties: Mapping[str, tuple[str, NDArray[Any]]],
) -> None:
    """Write what the viewer's list of segments shows and sorts by.

    Args:
        path: the folder.
        segments: (N,) ids.
        properties: by identifier, a description with its unit and (N,) numbers.
    """
    inline: list[dict[str, Any]] = [
        {"id": "label", "type": "label", "values": [f"neuron {s}" for s in segments.tolist()]}
    ]
    for name, (description, values) in properties.items():
        if len(values) != len(segments):
            raise ShapeError(f"{path}: {len(values)} values of {name}, {len(segments)} segments")
        whole = values.dtype.kind in "iu" and values.size and 0 <= values.min() <= values.max()
        dtype = "uint32" if whole and values.max() < 2**32 else "float32"
        cast = values.astype(dtype)
        inline.append(
            {
                "id": name,
                "type": "number",
                "description": description,
                "data_type": dtype,
                "values": [round(v, 3) for v in cast.tolist()],
            }
        )
    info = {
        "@type": "neuroglancer_segment_properties",
        "inline": {"ids": [str(s) for s in segments.tolist()], "properties": inline},
    }
    write_json(path / "info", info)
