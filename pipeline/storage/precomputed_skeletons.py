"""Skeletons and segment properties in Neuroglancer's precomputed format.

A folder of skeletons can be linked to a segmentation (`pipeline.storage.precomputed.link`) or be a
layer of its own. One file a segment: vertices in nanometres, x, y, z, where voxel i is centred at
(i + 0.5) * resolution, and the radius of each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from osteoid import Skeleton as EncodedSkeleton

from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import DataError, InputError, ShapeError
from pipeline.settings import NmTriple
from pipeline.storage.atomic import write_json

_RADIUS = {"id": "radius", "data_type": "float32", "num_components": 1}
_IDENTITY = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]


def write_skeletons(path: Path, skeletons: Mapping[int, Skeleton], voxel_size_nm: NmTriple) -> None:
    """Write a folder of skeletons, one file a segment; `info` comes last.

    Files of segments that are not in `skeletons` are removed: the folder holds what is given.

    Args:
        path: the folder.
        skeletons: by segment id, 1 to 2^64 - 1.
        voxel_size_nm: z, y, x, of the nodes' voxels.
    """
    path.mkdir(parents=True, exist_ok=True)
    for stale in set(_segment_ids(path)) - set(skeletons):
        (path / str(stale)).unlink()
    for segment, skeleton in skeletons.items():
        if not 0 < segment < 2**64:
            raise InputError(f"{path}: segment id {segment} is not within 1 to 2^64 - 1")
        (path / str(segment)).write_bytes(_encode(segment, skeleton, voxel_size_nm))
    info = {
        "@type": "neuroglancer_skeletons",
        "transform": _IDENTITY,
        "vertex_attributes": [_RADIUS],
    }
    write_json(path / "info", info)


def _encode(segment: int, skeleton: Skeleton, voxel_size_nm: NmTriple) -> bytes:
    vertices = (skeleton.nodes * voxel_size_nm)[:, ::-1]
    encoded: bytes = EncodedSkeleton(
        vertices=np.ascontiguousarray(vertices, np.float32),
        edges=skeleton.edges.astype(np.uint32),
        radii=skeleton.radii_nm.astype(np.float32),
        segid=segment,
        extra_attributes=[_RADIUS],
    ).to_precomputed()
    return encoded


def read_skeletons(path: Path, voxel_size_nm: NmTriple) -> dict[int, Skeleton]:
    """Every skeleton of a folder by segment, ascending; nodes in voxels of `voxel_size_nm`.

    Raises:
        InputError: the folder has no skeletons. DataError: a file is damaged.
    """
    if not (path / "info").is_file():
        raise InputError(f"{path}: no precomputed skeletons (no file `info`)")
    info = json.loads((path / "info").read_text())
    attributes = info.get("vertex_attributes", [])
    skeletons = {}
    for segment in _segment_ids(path):
        try:
            found = EncodedSkeleton.from_precomputed(
                (path / str(segment)).read_bytes(), segid=segment, vertex_attributes=attributes
            )
        except Exception as error:  # a short file makes osteoid fail in several ways
            raise DataError(f"{path / str(segment)}: damaged skeleton: {error}") from error
        found.transform = np.reshape(info.get("transform", _IDENTITY), (3, 4)).astype(np.float32)
        nodes = found.physical_space().vertices[:, ::-1].astype(np.float64) / voxel_size_nm
        radii = getattr(found, "radius", np.zeros(len(nodes))).astype(np.float64)
        skeletons[segment] = Skeleton(str(segment), nodes, found.edges.astype(np.int64), radii)
    return skeletons


def _segment_ids(path: Path) -> list[int]:
    return sorted(int(file.name) for file in path.iterdir() if file.name.isdecimal())


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
