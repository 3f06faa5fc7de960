"""Tracings in every form that users have: SWC, Neuroglancer's precomputed skeletons.

Kimimaro writes both: `kimimaro forge` a folder of SWCs in nanometres, igneous and cloud-volume
precomputed folders, one file a segment or many in a shard. Positions of precomputed skeletons are
physical, in nanometres, x, y, z, after the `transform` of their folder; the name of a skeleton is
its segment's id. They count from the origin of that physical space, not from the first voxel of a
volume that has an offset.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import build_forest
from pipeline.errors import DataError, InputError
from pipeline.storage.precomputed_skeletons import shard_entries
from pipeline.storage.precomputed_source import is_precomputed, read_info
from pipeline.storage.swc import SwcOptions, read_skeletons
from pipeline.storage.swc_frame import to_voxels

_SKELETONS = "neuroglancer_skeletons"
_IDENTITY = (1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
# What cloud-volume takes a folder without `info` to hold; a file may end after any of them.
_USUAL = (("radius", np.dtype("<f4"), 1), ("vertex_types", np.dtype("u1"), 1))
_PACKED = ".gz"
# Bytes of a skeleton of one vertex.
_LEAST = 20
# Rounding errors of single precision in a position: of the voxel size, the product, the file.
_ROUNDINGS = 2.0
_PICKLES = (".pkl", ".pickle", ".p", ".joblib")
_OTHERS = (".npz", ".npy", ".json", ".h5", ".hdf5", ".nml")


def read_skeleton_set(path: str | Path, options: SwcOptions) -> list[Skeleton]:
    """The skeletons of an SWC file, folder or zip archive, or of a precomputed folder or file.

    A precomputed folder is one of skeletons, sharded or not, or that of a volume whose `info` names
    its skeletons. A single file of one is taken for what it is by its exact length, its name
    without ending being the segment's id. Skeletons come ordered by name as SWCs do (as text); the
    unit of precomputed ones is the nanometre whatever `options` say, see `options_for`.

    Args:
        path: of the file or folder.
        options: where the coordinates lie in the volume. Of a volume with an offset, take the
            offset away: `offset_vox` of the user less `source_offset`.

    Raises:
        InputError: nothing there, nothing known in it, a file that is damaged or not well formed
            (it is named), edges that close a cycle, Python pickles (never unpacked).
    """
    path = Path(path)
    if not _holds_precomputed(path):
        return read_skeletons(path, options)
    place = stored_skeletons(path)
    used = options_for(path, options)
    found = sorted((_to_skeleton(encoded, used) for encoded in _encoded(place)), key=_name)
    if not found:
        raise InputError(
            f"{place}: no skeleton in it; expected files named by segment ids, or shards"
        )
    return found


def options_for(path: str | Path, options: SwcOptions) -> SwcOptions:
    """Options as they apply to what lies at a path: precomputed skeletons are in nanometres.

    To be given to `check_placement` and `judge_placement` with the skeletons read.
    """
    return replace(options, unit="nm") if _holds_precomputed(Path(path)) else options


@dataclass(frozen=True)
class _Layer:
    """How the files of a folder of skeletons are to be understood.

    Attributes:
        transform: (3, 4), from stored x, y, z to nanometres.
        attributes: name, type and length per vertex of what follows the edges, in order.
        sharding: as `info` has it; None if each segment has its file.
        partial: whether a file may end before its last attributes.
    """

    transform: NDArray[np.float64]
    attributes: tuple[tuple[str, np.dtype, int], ...]
    sharding: dict[str, Any] | None = None
    partial: bool = False


@dataclass(frozen=True)
class _Encoded:
    name: str
    source: str
    data: bytes
    layer: _Layer


def _name(skeleton: Skeleton) -> str:
    return skeleton.name


# --- What lies at a path


def _holds_precomputed(path: Path) -> bool:
    """Whether a path is for this module; refuses what nobody reads."""
    if path.is_dir():
        return _is_folder_of_precomputed(path)
    if not path.is_file() or path.suffix.lower() in (".swc", ".zip"):
        return False
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise InputError(_no_pickles(path))
    if suffix in _OTHERS:
        raise InputError(
            f"{path}: no skeletons of a known kind; expected .swc, a folder or .zip of them, or "
            "precomputed skeletons"
        )
    if suffix == _PACKED:
        if not _fits(_unpacked(path), _layer_beside(path)):
            raise InputError(f"{path}: no precomputed skeleton in it; unpack an SWC with gunzip")
        return True
    with path.open("rb") as file:
        # An SWC begins with text, which would be the number of a billion vertices.
        return _fits(file.read(8), _layer_beside(path), path.stat().st_size)


def _is_folder_of_precomputed(folder: Path) -> bool:
    """Whether a folder has `info`, or files named by segment ids, and no SWC."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    if any(name.lower().endswith(".swc") and not name.startswith(".") for name in names):
        # A note called info is no trouble, nor are SWCs beside the chunks of a volume.
        if is_precomputed(folder) and _SKELETONS.encode() in (folder / "info").read_bytes():
            raise InputError(
                f"{folder}: holds both SWC files and precomputed skeletons; which are meant cannot "
                "be told: move one kind to a folder of its own"
            )
        return False
    for name in names:
        if Path(name).suffix.lower() in _PICKLES:
            raise InputError(_no_pickles(folder / name))
    return is_precomputed(folder) or any(_segment_of(name) is not None for name in names)


def _no_pickles(path: Path) -> str:
    return (
        f"{path}: a Python pickle, which is never unpacked: that could run any code. Write the "
        "skeletons as SWC (skeleton.to_swc() of each into LABEL.swc, unit nm) or as a precomputed "
        "folder"
    )


def stored_skeletons(path: str | Path) -> Path:
    """The folder or file that holds the skeletons at a path: of a volume, what its `info` names.

    Raises:
        InputError: the volume names none, or a folder that is not there.
    """
    path = Path(path)
    if not _holds_precomputed(path) or not is_precomputed(path):
        return path
    info = read_info(path)
    if info.get("@type") == _SKELETONS or {"transform", "vertex_attributes"} & set(info):
        return path
    if "scales" not in info:
        raise InputError(
            f"{path}: `info` describes {info.get('@type', 'nothing known')}; expected {_SKELETONS}"
        )
    name = info.get("skeletons")
    if not name:
        raise InputError(
            f"{path}: a precomputed volume whose `info` names no skeletons; name their folder, or "
            'link them: "skeletons": FOLDER in `info`'
        )
    if not (path / str(name)).is_dir():
        raise InputError(f"{path}: `info` names the skeletons {name!r}, which is no folder in it")
    return path / str(name)


# --- Folders


def _layer_beside(file: Path) -> _Layer:
    """For a single file: what the folder around it says, if that is one of skeletons."""
    if is_precomputed(file.parent) and read_info(file.parent).get("@type") == _SKELETONS:
        return _described(file.parent)
    return _usual_layer()


def _encoded(place: Path) -> Iterator[_Encoded]:
    """Every skeleton under a folder, or the one of a file."""
    if place.is_file():
        layer = _layer_beside(place)
        data = _unpacked(place) if place.suffix == _PACKED else place.read_bytes()
        yield _Encoded(place.name.split(".")[0], str(place), data, layer)
        return
    layer = _described(place) if is_precomputed(place) else _usual_layer()
    if layer.sharding:
        yield from _from_shards(place, layer)
        return
    seen: dict[int, Path] = {}
    for file in sorted(place.iterdir()):
        segment = _segment_of(file.name)
        if segment is None or not file.is_file():
            continue
        if segment in seen:
            raise InputError(
                f"segment {segment} has two files, {seen[segment]} and {file}; remove the older one"
            )
        seen[segment] = file
        data = _unpacked(file) if file.suffix == _PACKED else file.read_bytes()
        yield _Encoded(str(segment), str(file), data, layer)


def _segment_of(name: str) -> int | None:
    stem = name.removesuffix(_PACKED)
    return int(stem) if stem.isascii() and stem.isdecimal() else None


def _described(folder: Path) -> _Layer:
    """What the `info` of a folder of skeletons says."""
    info = read_info(folder)
    try:
        transform = np.array(info.get("transform") or _IDENTITY, np.float64).reshape(3, 4)
        attributes = tuple(
            (str(a["id"]), np.dtype(a["data_type"]).newbyteorder("<"), int(a["num_components"]))
            for a in info.get("vertex_attributes") or ()
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / 'info'}: not well formed: {error!r}") from error
    if not np.isfinite(transform).all():
        raise InputError(f"{folder / 'info'}: the transform is not finite: {transform.tolist()}")
    return _Layer(transform, attributes, info.get("sharding"))


def _usual_layer() -> _Layer:
    return _Layer(np.array(_IDENTITY, np.float64).reshape(3, 4), _USUAL, partial=True)


def _from_shards(folder: Path, layer: _Layer) -> Iterator[_Encoded]:
    if not any(file.suffix == ".shard" for file in folder.iterdir()):
        raise InputError(f"{folder}: `info` tells of shards, but there is no .shard file")
    try:
        for segment, data in shard_entries(folder, layer.sharding or {}):
            yield _Encoded(str(segment), f"{folder}, segment {segment}", data, layer)
    except DataError as error:
        raise InputError(str(error)) from error


def _unpacked(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: damaged, cannot be unpacked: {error}") from error


# --- One skeleton


def _counts(data: bytes) -> tuple[int, int]:
    """Numbers of vertices and edges that an encoded skeleton begins with."""
    vertices, edges = np.frombuffer(data[:8], "<u4").tolist()
    return vertices, edges


def _lengths(data: bytes, layer: _Layer) -> list[int]:
    """The lengths in bytes that an encoded skeleton may have."""
    vertices, edges = _counts(data)
    lengths = [8 + 12 * vertices + 8 * edges]
    for _, dtype, components in layer.attributes:
        lengths.append(lengths[-1] + vertices * components * dtype.itemsize)
    # All attributes may be left out; some of them only where nothing says which there are.
    return lengths if layer.partial else [lengths[0], lengths[-1]]


def _fits(data: bytes, layer: _Layer, size: int | None = None) -> bool:
    """Whether bytes (all, or the first of a file of `size`) are an encoded skeleton."""
    size = len(data) if size is None else size
    return size >= _LEAST and size in _lengths(data, layer)


def _to_skeleton(encoded: _Encoded, options: SwcOptions) -> Skeleton:
    data, layer = encoded.data, encoded.layer
    stored, edges = _decode(data, layer, encoded.source)
    values = _attributes(data, layer, len(stored), 8 + stored.size * 4 + edges.size * 4)
    radii = values.get("radius", values.get("radii", np.zeros(len(stored))))
    types = values.get("vertex_types", np.zeros(len(stored)))
    skeleton = Skeleton(
        encoded.name,
        to_voxels(_physical(stored, layer.transform, options), options),
        edges,
        np.where(radii < 0, 0.0, radii),
        types.astype(np.int64),
    )
    _require_forest(skeleton, encoded.source, options)
    return skeleton


def _decode(
    data: bytes, layer: _Layer, source: str
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices (N, 3) as stored and edges (E, 2)."""
    if len(data) < 8 or len(data) not in _lengths(data, layer):
        expected = _lengths(data, layer)[-1] if len(data) >= 8 else "8 or more"
        raise InputError(f"{source}: damaged skeleton: {len(data)} bytes, expected {expected}")
    count, edge_count = _counts(data)
    if not count:
        raise InputError(f"{source}: the skeleton has no vertices; remove the file")
    stored = np.frombuffer(data, "<f4", 3 * count, 8).reshape(-1, 3).astype(np.float64)
    edges = np.frombuffer(data, "<u4", 2 * edge_count, 8 + 12 * count).astype(np.int64)
    finite = np.isfinite(stored).all(axis=1)
    if not finite.all():
        first = int(np.argmin(finite))
        raise InputError(f"{source}: vertex {first} is not finite: {stored[first].tolist()}")
    if edge_count and edges.max() >= count:
        raise InputError(
            f"{source}: an edge names vertex {edges.max()}, but there are {count}, from 0"
        )
    return stored, edges.reshape(-1, 2)


def _attributes(
    data: bytes, layer: _Layer, count: int, begin: int
) -> dict[str, NDArray[np.float64]]:
    """The attributes with one number a vertex, by name."""
    found = {}
    for name, dtype, components in layer.attributes:
        end = begin + count * components * dtype.itemsize
        if end > len(data):
            break
        if components == 1:
            found[name] = np.frombuffer(data[begin:end], dtype).astype(np.float64)
        begin = end
    return found


def _physical(
    stored: NDArray[np.float64], transform: NDArray[np.float64], options: SwcOptions
) -> NDArray[np.float64]:
    """Vertices in nanometres, x, y, z; those on the face of a voxel exactly there.

    They are stored in single precision: voxel 1001 of 4.3 nm comes back as 1000.99998, and its
    floor would be the voxel before.
    """
    turn, shift = transform[:, :3], transform[:, 3]
    columns = stored @ turn.T + shift
    largest = np.abs(stored) @ np.abs(turn).T + np.abs(shift)
    error = _ROUNDINGS * float(np.finfo(np.float32).eps) * largest
    size = np.array([options.voxel_size_nm["zyx".index(letter)] for letter in options.axes])
    nearest = np.rint(columns / size) * size
    return np.where(np.abs(columns - nearest) <= error, nearest, columns)


def _require_forest(skeleton: Skeleton, source: str, options: SwcOptions) -> None:
    try:
        build_forest(skeleton, options.voxel_size_nm)
    except InputError as error:
        raise InputError(
            f"{source}: {error} (consolidate() of cloud-volume's Skeleton removes repeated edges)"
        ) from error
