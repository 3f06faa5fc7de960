"""Sites of errors as Neuroglancer annotations: points and lines that can be hovered and listed.

The precomputed annotation format: `info`, every annotation by its id, those of each segment, and
one cell over the whole volume. The format counts x, y, z, in voxels whose voxel i spans [i, i + 1),
as our nodes do. Written here because the writer of the `neuroglancer` package sets a uint32 after
a float32 two bytes too far. Equal sites give equal bytes.

Source: google/neuroglancer, src/datasource/precomputed/annotations.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.error_sites import KINDS, Sites
from pipeline.errors import InputError
from pipeline.geometry import Triple
from pipeline.settings import NmTriple
from pipeline.storage.atomic import remove_tree, write_json

LAYERS = {"split": "splits", "merge": "merges", "omission": "omissions"}
"""The folder of each kind."""

_PROPERTIES: list[dict[str, Any]] = [
    {"id": "cable_nm", "type": "float32", "description": "cable lost, nm"},
    {"id": "rank", "type": "uint32", "description": "rank among all sites by cable lost"},
]
_RELATIONSHIP = "segments"


def write_site_layers(
    folder: Path,
    sites: Sites,
    shape: Triple,
    voxel_size_nm: NmTriple,
    *,
    largest: int = 10_000,
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
        largest: of each kind only so many are written, those with the most cable: the format
            takes a file for each.

    Returns:
        By folder, the number of annotations.

    Raises:
        InputError: `largest` is not positive, or coordinates are beyond what float32 holds.
    """
    if largest < 1:
        raise InputError(f"largest: expected 1 or more annotations a kind, got {largest}")
    written = {}
    for kind, name in enumerate(KINDS):
        rows = np.flatnonzero(sites.kind == kind)[:largest]
        layer = _layer(sites, rows, is_line=name != "omission")
        _write_layer(folder / LAYERS[name], layer, voxel_size_nm, shape)
        written[LAYERS[name]] = len(rows)
    return written


@dataclass(frozen=True, eq=False)
class _Layer:
    """Annotations of one kind.

    Attributes:
        ends: (n, 1 or 2, 3) float32, x, y, z of each point or of the ends of each line.
        ids: (n,) uint64.
        encoded: of each the geometry and the properties.
        segments: of each the related segments.
    """

    ends: NDArray[np.float32]
    ids: NDArray[np.uint64]
    encoded: list[bytes]
    segments: list[list[int]]


def _layer(sites: Sites, rows: NDArray[np.int64], *, is_line: bool) -> _Layer:
    columns = [sites.end_a_vox, sites.end_b_vox] if is_line else [sites.position_vox]
    places = np.stack([column[rows, ::-1] for column in columns], axis=1)
    if not (np.abs(places) < np.finfo(np.float32).max).all():
        raise InputError("sites: a coordinate is not finite, or beyond what float32 holds")
    ends = places.astype("<f4")
    records = np.empty(len(rows), [("ends", "<f4", ends.shape[1:]), ("cable", "<f4"), ("n", "<u4")])
    records["ends"], records["cable"], records["n"] = ends, sites.cable_nm[rows], rows + 1
    pairs = zip(sites.label_a[rows].tolist(), sites.label_b[rows].tolist(), strict=True)
    segments = [sorted({*pair} - {0}) for pair in pairs]
    return _Layer(ends, sites.site[rows].astype("<u8"), [r.tobytes() for r in records], segments)


def _write_layer(path: Path, layer: _Layer, voxel_size_nm: NmTriple, shape: Triple) -> None:
    for part in ("info", "by_id", _RELATIONSHIP, "spatial0"):
        remove_tree(path / part)
    for part in ("by_id", _RELATIONSHIP, "spatial0"):
        (path / part).mkdir(parents=True)
    related: dict[int, list[int]] = {}
    for row, (data, segments) in enumerate(zip(layer.encoded, layer.segments, strict=True)):
        listed = struct.pack(f"<I{len(segments)}Q", len(segments), *segments)
        (path / "by_id" / str(layer.ids[row])).write_bytes(data + listed)
        for segment in segments:
            related.setdefault(segment, []).append(row)
    for segment, rows in related.items():
        (path / _RELATIONSHIP / str(segment)).write_bytes(_listed(layer, rows))
    # The format wants no order here: a viewer that has no room for all takes the first.
    mixed = np.random.default_rng(0).permutation(len(layer.ids)).tolist()
    (path / "spatial0" / "0_0_0").write_bytes(_listed(layer, mixed))
    write_json(path / "info", _info(layer, voxel_size_nm, shape))


def _listed(layer: _Layer, rows: list[int]) -> bytes:
    """Several annotations: how many, each of them, their ids."""
    data = [layer.encoded[row] for row in rows]
    return b"".join([struct.pack("<Q", len(rows)), *data, layer.ids[rows].tobytes()])


def _info(layer: _Layer, voxel_size_nm: NmTriple, shape: Triple) -> dict[str, Any]:
    """Bounds hold the volume, and sites that lie outside."""
    points = layer.ends.reshape(-1, 3).astype(np.float64)
    low = np.floor(points.min(axis=0, initial=0.0))
    high = np.maximum(np.floor(points.max(axis=0, initial=0.0)) + 1, shape[::-1])
    kind = "LINE" if layer.ends.shape[1] == 2 else "POINT"
    return {
        "@type": "neuroglancer_annotations_v1",
        "dimensions": {
            axis: [size * 1e-9, "m"] for axis, size in zip("xyz", voxel_size_nm[::-1], strict=True)
        },
        "lower_bound": low.tolist(),
        "upper_bound": high.tolist(),
        "annotation_type": kind,
        "properties": _PROPERTIES,
        "relationships": [{"id": _RELATIONSHIP, "key": _RELATIONSHIP}],
        "by_id": {"key": "by_id"},
        "spatial": [
            {
                "key": "spatial0",
                "grid_shape": [1, 1, 1],
                "chunk_size": (high - low).tolist(),
                "limit": max(1, len(layer.ids)),
            }
        ],
    }
