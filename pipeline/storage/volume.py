"""The only reader and writer of zarr volumes.

zarr creates arrays and their metadata; tensorstore moves the voxels (2-5 times the speed of
zarr-python on reads that do not follow the chunks). Every volume that this project writes is an
OME-NGFF 0.5 group whose array "0" has the full resolution: axes z, y, x, channels first, with
dimension names (Neuroglancer draws an array without them as one flat colour).

A chunk that was never written reads as zeros, so an array never tells whether a block is done: the
ledger does. Written regions store every chunk, zeros included, and each chunk carries a checksum:
a chunk that is gone or damaged can be told from one that is empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
import zarr
from numpy.typing import NDArray

from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import Roi, Triple, triple
from pipeline.settings import NmTriple
from pipeline.storage.atomic import remove_tree
from pipeline.threads import usable_threads

_UNIT_NM = {
    "angstrom": 0.1,
    "nanometer": 1.0,
    "micrometer": 1e3,
    "millimeter": 1e6,
    "centimeter": 1e7,
    "meter": 1e9,
}
_METADATA_NAMES = ("zarr.json", ".zarray", ".zgroup")


@dataclass(frozen=True)
class Volume:
    """A handle on one array of (z, y, x) or (channel, z, y, x) voxels.

    Attributes:
        path: the zarr group or array, as the user names it.
        array: the array's path inside `path`; empty if `path` is the array itself.
        shape: z, y, x.
        channels: length of the channel axis, or None for three axes.
        dtype: of the voxels.
        chunks: chunk extent along z, y, x.
        voxel_size_nm: z, y, x, or None where the metadata state no unit.
        leading: number of further axes of length one in front, which are hidden.
    """

    path: Path
    array: str
    shape: Triple
    channels: int | None
    dtype: np.dtype
    chunks: Triple
    voxel_size_nm: NmTriple | None
    leading: int = 0

    @classmethod
    def open(cls, path: Path | str) -> Volume:
        """Open a zarr array (v2 or v3) or the full resolution of an OME-NGFF group.

        Raises:
            InputError: nothing there, no zarr, or a group without an image in it.
            ShapeError: neither three axes nor four, or an axis of length 0.
        """
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path}: no such volume")
        if not any((path / name).exists() for name in _METADATA_NAMES):
            raise InputError(f"{path}: not a zarr array or group (no zarr.json, .zarray, .zgroup)")
        node = zarr.open(path, mode="r")
        inner, scale_nm = "", None
        if isinstance(node, zarr.Group):
            inner, scale_nm = _image_of_group(path, node)
            node = node[inner]
        if not isinstance(node, zarr.Array):
            raise InputError(f"{path}: {inner!r} is no array; name the array to use")
        return cls._describe(path, inner, node, scale_nm)

    @classmethod
    def _describe(
        cls, path: Path, inner: str, array: zarr.Array, scale_nm: NmTriple | None
    ) -> Volume:
        shape = tuple(int(n) for n in array.shape)
        leading = 0
        while len(shape) - leading > 3 and shape[leading] == 1:
            leading += 1
        rest = shape[leading:]
        if len(rest) not in (3, 4):
            raise ShapeError(
                f"{path}: expected a volume of axes z, y, x or channel, z, y, x; got shape {shape}"
            )
        if min(shape) < 1:
            raise ShapeError(f"{path}: the volume is empty, shape {shape}")
        channels = rest[0] if len(rest) == 4 else None
        chunks = triple(array.chunks[-3:])
        # tensorstore gives native byte order, whatever lies on disk.
        dtype = np.dtype(array.dtype).newbyteorder("=")
        return cls(path, inner, triple(rest[-3:]), channels, dtype, chunks, scale_nm, leading)

    @classmethod
    def create(
        cls,
        path: Path,
        shape: Triple,
        dtype: np.typing.DTypeLike,
        *,
        chunks: Triple,
        voxel_size_nm: NmTriple | None,
        channels: int | None = None,
        level_factors: Sequence[Triple] = (),
        compressor: str = "zstd",
    ) -> Volume:
        """Create an empty OME-NGFF 0.5 volume, with coarser levels for `level_factors`.

        Args:
            path: must not exist.
            shape: z, y, x.
            dtype: of the voxels.
            chunks: chunk extent z, y, x (clipped to the volume).
            voxel_size_nm: z, y, x; None writes scale 1 without a unit.
            channels: length of a leading channel axis, stored in one chunk.
            level_factors: total downsampling z, y, x of each further level.
            compressor: "zstd" (images), "lz4" (affinities: a third of the time), "zstd-plain"
                (labels: ids that repeat are shorter unshuffled, in two thirds of the time) or
                "lz4-plain" (scratch labels).
        """
        if path.exists():
            raise InputError(f"{path} exists already")
        group = zarr.create_group(path, zarr_format=3)
        _create_array(group, "0", shape, np.dtype(dtype), chunks, channels, compressor)
        group.attrs["ome"] = _ome_metadata(path.stem, [(1, 1, 1)], voxel_size_nm, channels)
        volume = cls.open(path)
        if level_factors:
            volume.set_levels(level_factors, compressor)
        return volume

    def set_levels(self, level_factors: Sequence[Triple], compressor: str = "zstd") -> None:
        """Replace the coarser levels of a volume of this project by empty ones.

        Args:
            level_factors: total downsampling z, y, x of each; none removes them all.
            compressor: as in `create`.
        """
        group = zarr.open_group(self.path, mode="r+")
        for name in [name for name, _ in group.arrays() if name != self.array]:
            remove_tree(self.path / name)
        factors = [(1, 1, 1), *level_factors]
        for level, factor in enumerate(level_factors, start=1):
            extent = level_shape(self.shape, factor)
            _create_array(
                group, str(level), extent, self.dtype, self.chunks, self.channels, compressor
            )
        ome = _ome_metadata(self.path.stem, factors, self.voxel_size_nm, self.channels)
        group.attrs["ome"] = ome

    def level(self, level: int) -> Volume:
        """The same image at a coarser level of its pyramid."""
        node = zarr.open(self.path, mode="r")
        if not isinstance(node, zarr.Group) or str(level) not in node:
            raise InputError(f"{self.path}: has no level {level}")
        array = node[str(level)]
        assert isinstance(array, zarr.Array)
        scale = None
        if self.voxel_size_nm is not None:
            ratio = [f / c for f, c in zip(self.shape, array.shape[-3:], strict=True)]
            z, y, x = (s * r for s, r in zip(self.voxel_size_nm, ratio, strict=True))
            scale = (z, y, x)
        return self._describe(self.path, str(level), array, scale)

    @property
    def roi(self) -> Roi:
        """The whole volume."""
        return Roi((0, 0, 0), self.shape)

    def first_channels(self, count: int) -> Volume:
        """The same volume without the channels from `count` on; for reading."""
        if self.channels is None or self.channels < count:
            raise ShapeError(f"{self.path}: has {self.channels or 'no'} channels, not {count}")
        return replace(self, channels=count)

    def read(self, roi: Roi) -> NDArray[Any]:
        """Voxels of `roi`: (z, y, x) or (channel, z, y, x), C order, a fresh array.

        Raises:
            ShapeError: `roi` leaves the volume.
            DataError: a chunk is truncated or corrupted.
        """
        self._require_inside(roi)
        try:
            data = self._store(usable_threads())[self._index(roi)].read(order="C").result()
        except ValueError as error:
            raise DataError(f"{self.path}: cannot read {roi}: {error}") from error
        return np.asarray(data)

    def write(self, roi: Roi, data: NDArray[Any]) -> None:
        """Write the voxels of `roi`; zeros are stored too.

        Raises:
            ShapeError: `roi` leaves the volume or `data` has another shape.
            DtypeError: `data` has another type: nothing is cast on the way to disk.
        """
        self._require_inside(roi)
        expected = roi.shape if self.channels is None else (self.channels, *roi.shape)
        if data.shape != expected:
            raise ShapeError(f"{self.path}: expected data of shape {expected}, got {data.shape}")
        if data.dtype != self.dtype:
            raise DtypeError(f"{self.path}: expected {self.dtype}, got {data.dtype}")
        store = self._store()
        # tensorstore copies all chunks of a write before it compresses them: here a layer of them.
        for layer in self._layers(roi):
            part = data[(..., *layer.relative_to(roi).slices)]
            store[self._index(layer)].write(part).result()

    def missing_chunks(self, roi: Roi) -> list[Triple]:
        """Chunk positions (z, y, x) inside `roi` that have no file. For volumes of this project."""
        folder = self.path / self.array / "c"
        lead = ["0"] if self.channels is not None else []
        positions = self._chunk_positions(roi)
        return [p for p in positions if not folder.joinpath(*lead, *map(str, p)).exists()]

    def absent_chunk(self, roi: Roi) -> Roi | None:
        """The first part of `roi`, one chunk at most, of which something is not stored.

        For any zarr volume, sharded ones too; None if every chunk is there.
        """
        if self._all_stored(roi):
            return None
        for position in self._chunk_positions(roi):
            first = triple(tuple(p * c for p, c in zip(position, self.chunks, strict=True)))
            part = Roi(first, self.chunks).intersect(roi)
            if not self._all_stored(part):
                return part
        return roi

    def holds_nothing(self, roi: Roi) -> bool:
        """Whether `roi` is zero throughout because no chunk of it is stored; reads no voxel."""
        store = self._store()
        if store.fill_value is not None and np.any(store.fill_value):
            return False
        part = store[self._index(roi)]
        return bool(part.storage_statistics(query_not_stored=True).result().not_stored)

    def _all_stored(self, roi: Roi) -> bool:
        part = self._store()[self._index(roi)]
        found = part.storage_statistics(query_fully_stored=True).result()
        return bool(found.fully_stored)

    def _chunk_positions(self, roi: Roi) -> Iterator[Triple]:
        spans = zip(roi.offset, roi.end, self.chunks, strict=True)
        for position in product(*(range(a // c, -(-e // c)) for a, e, c in spans)):
            yield triple(position)

    def _layers(self, roi: Roi) -> Iterator[Roi]:
        """`roi` cut along z at the borders of chunks."""
        thick = self.chunks[0]
        for first in range(roi.offset[0] // thick * thick, roi.end[0], thick):
            begin, end = max(first, roi.offset[0]), min(first + thick, roi.end[0])
            yield Roi.between((begin, *roi.offset[1:]), (end, *roi.end[1:]))

    def _require_inside(self, roi: Roi) -> None:
        if not self.roi.contains(roi):
            raise ShapeError(f"{self.path}: {roi} leaves the volume of {self.shape} voxels")

    def _index(self, roi: Roi) -> tuple[Any, ...]:
        lead: tuple[Any, ...] = (0,) * self.leading
        if self.channels is not None:
            lead = (*lead, slice(0, self.channels))
        return (*lead, *roi.slices)

    def _store(self, threads: int = 1) -> ts.TensorStore:
        location = self.path / self.array if self.array else self.path
        for name, driver in (("zarr.json", "zarr3"), (".zarray", "zarr")):
            if (location / name).exists():
                stamp = (location / name).stat()
                identity = (driver, stamp.st_mtime_ns, stamp.st_ino)
                return _open_store(str(location.resolve()), *identity, threads)
        raise DataError(f"{location}: the array's metadata are gone")


def _create_array(
    group: zarr.Group,
    name: str,
    shape: Triple,
    dtype: np.dtype,
    chunks: Triple,
    channels: int | None,
    compressor: str,
) -> None:
    lead = () if channels is None else (channels,)
    clipped = tuple(min(c, n) for c, n in zip(chunks, shape, strict=True))
    group.create_array(
        name,
        shape=(*lead, *shape),
        dtype=dtype,
        chunks=(*lead, *clipped),
        compressors=_codecs(compressor),
        fill_value=0,
        dimension_names=("z", "y", "x") if channels is None else ("c", "z", "y", "x"),
    )


def level_shape(shape: Triple, factor: Triple) -> Triple:
    """Extent of a level downsampled by `factor`: partial cells count."""
    return triple(tuple(-(-n // f) for n, f in zip(shape, factor, strict=True)))


# Opening costs about a millisecond and every block opens several volumes; the stamp of the
# metadata file keeps a volume that was created anew from being read through an old handle.
# Chunks are decoded on as many threads as a process may keep busy; compressing them needs more
# memory, the more are in hand, and is left to one.
@lru_cache(maxsize=64)
def _open_store(
    location: str, driver: str, _mtime_ns: int, _inode: int, threads: int
) -> ts.TensorStore:
    spec = {
        "driver": driver,
        "kvstore": {"driver": "file", "path": location + "/"},
        "store_data_equal_to_fill_value": True,
        "context": {
            "cache_pool": {"total_bytes_limit": 0},
            "data_copy_concurrency": {"limit": threads},
            "file_io_concurrency": {"limit": 4},
        },
    }
    return ts.open(spec, open=True).result()


def _codecs(compressor: str) -> list[dict[str, Any]]:
    kinds = {
        "zstd": {"cname": "zstd", "clevel": 3, "shuffle": "shuffle"},
        "zstd-plain": {"cname": "zstd", "clevel": 3, "shuffle": "noshuffle"},
        "lz4": {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle"},
        "lz4-plain": {"cname": "lz4", "clevel": 1, "shuffle": "noshuffle"},
    }
    blosc = {"name": "blosc", "configuration": {**kinds[compressor], "blocksize": 0}}
    return [blosc, {"name": "crc32c"}]


def _ome_metadata(
    name: str, factors: Sequence[Triple], voxel_size_nm: NmTriple | None, channels: int | None
) -> dict[str, Any]:
    unit = {} if voxel_size_nm is None else {"unit": "nanometer"}
    axes: list[dict[str, str]] = [{"name": n, "type": "space", **unit} for n in "zyx"]
    lead: list[float] = []
    if channels is not None:
        axes.insert(0, {"name": "c", "type": "channel"})
        lead = [1.0]
    size = voxel_size_nm or (1.0, 1.0, 1.0)
    datasets = []
    for level, factor in enumerate(factors):
        scale = [s * f for s, f in zip(size, factor, strict=True)]
        # A coarse voxel's centre lies half a coarse voxel, less half a fine one, further in.
        shift = [s * (f - 1) / 2 for s, f in zip(size, factor, strict=True)]
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": lead + scale}]
        if any(shift):
            transforms.append({"type": "translation", "translation": [0.0] * len(lead) + shift})
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    return {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": datasets}]}


def _image_of_group(path: Path, group: zarr.Group) -> tuple[str, NmTriple | None]:
    attributes = json.loads(json.dumps(dict(group.attrs)))
    ome = attributes.get("ome", attributes)
    multiscales = ome.get("multiscales")
    if multiscales:
        first = multiscales[0]["datasets"][0]
        return str(first["path"]), _scale_nm(path, multiscales[0], first)
    arrays = sorted(name for name, _ in group.arrays())
    if "0" in arrays:
        return "0", None
    if len(arrays) == 1:
        return arrays[0], None
    found = ", ".join(arrays) or "no array"
    raise InputError(f"{path}: a group with {found}; name the array, as in {path}/NAME")


def _scale_nm(path: Path, multiscale: dict[str, Any], dataset: dict[str, Any]) -> NmTriple | None:
    axes = multiscale.get("axes", [])[-3:]
    names = [a.get("name") if isinstance(a, dict) else a for a in axes]
    if names and names != ["z", "y", "x"]:
        raise InputError(f"{path}: expected axes ending in z, y, x, the metadata say {names}")
    # A level is first scaled by its own transformations, then by those of all levels.
    steps = [s for part in (dataset, multiscale) for s in part.get("coordinateTransformations", [])]
    scales = [t["scale"][-3:] for t in steps if t.get("type") == "scale"]
    units = [str(a.get("unit")) if isinstance(a, dict) else "" for a in axes]
    if not scales or not axes or any(u not in _UNIT_NM for u in units):
        return None
    product = np.prod(np.asarray(scales, np.float64), axis=0)
    z, y, x = (float(s) * _UNIT_NM[u] for s, u in zip(product, units, strict=True))
    return z, y, x
