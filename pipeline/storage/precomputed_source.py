"""Reading volumes of others in Neuroglancer's precomputed format, on a local disk.

The full resolution as a source of voxels: axes z, y, x, the first voxel of the volume at 0, 0, 0.
Where that voxel lies in the coordinates of the format is `offset` (`voxel_offset` in the file
`info`). tensorstore decodes; it reads the chunks that a box touches and no others.

Programs that write with a transfer encoding leave files such as 0-64_0-64_0-64.gz, of which
tensorstore knows nothing: it would give zeros. Those chunks are unpacked here and decoded from
memory.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from pipeline.errors import DataError, InputError, ShapeError
from pipeline.geometry import Roi, Triple, triple
from pipeline.settings import NmTriple

_PACKED = ".gz"
# Other endings that cloud-volume gives to chunks; nothing here unpacks them.
_FOREIGN = (".br", ".zstd", ".xz", ".bz2", ".lzma")
_CONTEXT = {
    "cache_pool": {"total_bytes_limit": 0},
    "data_copy_concurrency": {"limit": 1},
    "file_io_concurrency": {"limit": 4},
}


@dataclass(frozen=True)
class PrecomputedSource:
    """The full resolution of a precomputed volume with one channel.

    Attributes:
        path: the folder that holds `info`.
        shape: z, y, x.
        dtype: of the voxels.
        voxel_size_nm: z, y, x.
        offset: z, y, x of the first voxel in the coordinates of the format. Boxes count from that
            voxel; positions of the format, divided by the voxel size, are `offset` larger.
        chunks: z, y, x; the first chunk begins at the first voxel.
        kind: "segmentation" or "image".
        key: the folder of the chunks inside `path`.
        sharded: whether many chunks share a file.
    """

    path: Path
    shape: Triple
    dtype: np.dtype
    voxel_size_nm: NmTriple
    offset: Triple
    chunks: Triple
    kind: str
    key: str
    sharded: bool

    @property
    def roi(self) -> Roi:
        """The whole volume."""
        return Roi((0, 0, 0), self.shape)

    def read(self, roi: Roi) -> NDArray[Any]:
        """Voxels of `roi`, C order, a fresh array; a chunk without a file is 0 by the format.

        Raises:
            ShapeError: `roi` leaves the volume.
            DataError: a chunk is damaged (it is named), or packed in a way that cannot be read.
        """
        if not self.roi.contains(roi):
            raise ShapeError(f"{self.path}: {roi} leaves the volume of {self.shape} voxels")
        try:
            return self._voxels(roi)
        except (ValueError, OSError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self._culprit(roi)}: cannot be read: {error}") from error

    def _voxels(self, roi: Roi) -> NDArray[Any]:
        packed = () if self.sharded else tuple(self._packed_chunks(roi))
        store = self._unpacked_store(roi) if packed else self._store()
        x, y, z = roi.shift(self.offset).slices[::-1]
        # The format counts x, y, z, channel.
        data = store[x, y, z, 0].T.read(order="C").result()
        return np.ascontiguousarray(data)

    def _store(self) -> ts.TensorStore:
        stamp = (self.path / "info").stat()
        return _open_store(str(self.path.resolve()), stamp.st_mtime_ns, stamp.st_ino)

    def _chunks_of(self, roi: Roi) -> Iterator[Roi]:
        spans = zip(roi.offset, roi.end, self.chunks, strict=True)
        for position in product(*(range(a // c, -(-e // c)) for a, e, c in spans)):
            first = triple(tuple(p * c for p, c in zip(position, self.chunks, strict=True)))
            yield Roi(first, self.chunks).intersect(self.roi)

    def _name(self, chunk: Roi) -> str:
        """Of the file of an unsharded chunk: x0-x1_y0-y1_z0-z1, offset included."""
        placed = chunk.shift(self.offset)
        spans = list(zip(placed.offset, placed.end, strict=True))[::-1]
        return "_".join(f"{begin}-{end}" for begin, end in spans)

    def _packed_chunks(self, roi: Roi) -> Iterator[Path]:
        """Files of chunks that `roi` touches and tensorstore does not see."""
        for chunk in self._chunks_of(roi):
            file = self.path / self.key / self._name(chunk)
            found = [e for e in (_PACKED, *_FOREIGN) if file.with_name(file.name + e).exists()]
            if found and found != [_PACKED]:
                names = ", ".join(file.name + ending for ending in found)
                raise DataError(
                    f"{file.parent}: {names}: expected one file a chunk, plain or {_PACKED}; write "
                    "the volume again without a transfer encoding (cloud-volume: compress=False)"
                )
            if found and file.exists():
                raise DataError(
                    f"{file}: this chunk is there twice, plain and as {file.name}{_PACKED}; which "
                    "is right cannot be told: remove the older one"
                )
            if found:
                yield file.with_name(file.name + _PACKED)

    def _unpacked_store(self, roi: Roi) -> ts.TensorStore:
        """The volume with the chunks of `roi`, unpacked, in memory."""
        memory = {"driver": "memory", "path": "volume/"}
        context = ts.Context(_CONTEXT)
        place = ts.KvStore.open(memory, context=context).result()
        place["info"] = (self.path / "info").read_bytes()
        for chunk in self._chunks_of(roi):
            file = self.path / self.key / self._name(chunk)
            packed = file.with_name(file.name + _PACKED)
            if packed.exists():
                place[f"{self.key}/{file.name}"] = _unpacked(packed)
            elif file.exists():
                place[f"{self.key}/{file.name}"] = file.read_bytes()
        spec = {"driver": "neuroglancer_precomputed", "kvstore": memory, "scale_index": 0}
        return ts.open(spec, open=True, context=context).result()

    def _culprit(self, roi: Roi) -> str:
        """The chunk of `roi` that cannot be read, as a message names it."""
        for chunk in self._chunks_of(roi):
            try:
                self._voxels(chunk)
            except (ValueError, OSError):
                name = "in a shard" if self.sharded else f"file {self._name(chunk)}"
                return f"{self.path / self.key}: chunk {chunk} ({name})"
        return f"{self.path}: {roi}"


def is_precomputed(path: Path) -> bool:
    """Whether a folder has the file `info` that precomputed layers of all kinds begin with."""
    return (path / "info").is_file()


def read_info(path: Path) -> dict[str, Any]:
    """What the file `info` of a precomputed folder says.

    Raises:
        InputError: no such file, or no JSON object in it.
    """
    try:
        found = json.loads((path / "info").read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path}: no precomputed data (no file `info`)") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path / 'info'}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path / 'info'}: expected a JSON object, got {type(found).__name__}")
    return found


def open_precomputed_source(path: Path) -> PrecomputedSource:
    """Open the full resolution of a local precomputed volume.

    Raises:
        InputError: no `info`, one that is not well formed, or one of meshes, skeletons, ...
        ShapeError: more than one channel, or an empty volume.
    """
    info = read_info(path)
    if not info.get("scales"):
        kind = info.get("@type", "nothing known")
        raise InputError(
            f"{path}: `info` describes {kind}, no volume; expected the folder of an image or a "
            "segmentation, whose `info` lists `scales`"
        )
    stamp = (path / "info").stat()
    try:
        store = _open_store(str(path.resolve()), stamp.st_mtime_ns, stamp.st_ino)
        scale = store.spec().to_json()["scale_metadata"]
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a precomputed volume that can be read: {error}") from error
    shape = triple(tuple(store.shape[2::-1]))
    if store.shape[3] != 1:
        raise ShapeError(
            f"{path}: expected one channel (z, y, x), got {store.shape[3]}; save one as a volume"
        )
    if min(shape) < 1:
        raise ShapeError(f"{path}: the volume is empty, shape {shape}")
    x, y, z = (float(size) for size in scale["resolution"])
    return PrecomputedSource(
        path=path,
        shape=shape,
        dtype=np.dtype(store.dtype.numpy_dtype),
        voxel_size_nm=(z, y, x),
        offset=triple(tuple(store.domain.inclusive_min[2::-1])),
        chunks=triple(tuple(scale["chunk_size"][::-1])),
        kind=str(info.get("type", "image")),
        key=str(scale["key"]),
        sharded=scale.get("sharding") is not None,
    )


# Opening costs a millisecond or two; the stamp of `info` keeps a volume that was created anew from
# being read through an old handle.
@lru_cache(maxsize=16)
def _open_store(path: str, _mtime_ns: int, _inode: int) -> ts.TensorStore:
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": path + "/"},
        "scale_index": 0,
        "context": _CONTEXT,
    }
    return ts.open(spec, open=True).result()


def _unpacked(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: damaged chunk: {error}") from error
