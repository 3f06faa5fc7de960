"""Foreign images and labels: TIFF, arrays in .npz files, zarr, precomputed volumes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import BlockGrid, Roi, Triple, triple
from pipeline.settings import NmTriple
from pipeline.storage.npz import archive_of, read_member, stored_file
from pipeline.storage.precomputed_source import (
    PrecomputedSource,
    is_precomputed,
    open_precomputed_source,
)
from pipeline.storage.volume import Volume
from pipeline.threads import usable_threads

_SUFFIXES = (".tif", ".tiff")
# Voxels in one such cube, or in so many planes of a TIFF, are read together.
_CELL = 64
_PLANES = 8


class ImageSource(Protocol):
    """Anything that has a shape and gives the voxels of a box."""

    @property
    def shape(self) -> Triple:
        """z, y, x."""

    @property
    def dtype(self) -> np.dtype:
        """Of the voxels."""

    @property
    def voxel_size_nm(self) -> NmTriple | None:
        """z, y, x, where the metadata say it."""

    def read(self, roi: Roi) -> NDArray[Any]:
        """Voxels of the box."""


@dataclass(frozen=True)
class TiffSource:
    """A TIFF of several planes, or one file a plane in the order of their names.

    Numbers in names count by value: plane 2 comes before plane 10.
    """

    path: Path
    files: tuple[Path, ...]
    shape: Triple
    dtype: np.dtype
    voxel_size_nm: NmTriple | None = None

    def read(self, roi: Roi) -> NDArray[Any]:
        """Voxels of `roi`; whole planes are decoded, so thin slabs are the cheap ones.

        Raises:
            DataError: a plane is damaged or differs in shape or type from the first.
        """
        out = np.empty(roi.shape, self.dtype)
        _, rows, columns = roi.slices
        for i, z in enumerate(range(roi.offset[0], roi.end[0])):
            out[i] = self._plane(z)[rows, columns]
        return out

    def _plane(self, z: int) -> NDArray[Any]:
        file = self.files[z] if len(self.files) > 1 else self.files[0]
        key = 0 if len(self.files) > 1 else z
        try:
            with tifffile.TiffFile(file) as tiff:
                plane = tiff.series[0].asarray(key=key) if len(self.files) == 1 else tiff.asarray()
        except Exception as error:  # tifffile's codecs raise errors of many kinds
            raise DataError(f"{file}: plane {z} cannot be read: {error}") from error
        if plane.shape != self.shape[1:] or plane.dtype != self.dtype:
            raise DataError(
                f"{file}: plane {z} is {plane.shape} {plane.dtype}, "
                f"the first is {self.shape[1:]} {self.dtype}"
            )
        return np.asarray(plane)


def open_source(path: Path) -> ImageSource:
    """Open a TIFF file, a folder of TIFF planes, an array in an .npz file, a zarr or precomputed.

    An .npz is followed by the name of the array, as in volume.npz/gray; the array is kept in
    memory. A zarr is an array (v2, v3) or an OME-Zarr image (0.4, 0.5), precomputed the folder of
    an image or a segmentation; of pyramids the full resolution is taken. Boxes count from the first
    voxel that is stored: see `source_offset`.

    Raises:
        InputError: nothing there, or of no known kind.
        DtypeError: an array of an .npz that holds no numbers.
        ShapeError: not three axes, or empty.
    """
    stored = stored_file(path)
    if not stored.exists():
        raise InputError(f"{path}: no such file or folder")
    # What describes a precomputed volume may be rewritten in place, its folder staying as it was.
    stamp = (stored / "info" if is_precomputed(stored) else stored).stat()
    return _open(path, stamp.st_mtime_ns, stamp.st_ino)


def source_offset(source: ImageSource) -> Triple:
    """Where the first voxel of a source lies in the coordinates of its format, z, y, x, voxels.

    Only precomputed volumes have such an offset. Positions in their coordinates, such as those of
    precomputed skeletons, less the offset are positions in the array.
    """
    return source.offset if isinstance(source, PrecomputedSource) else (0, 0, 0)


def reading_threads(path: Path) -> int:
    """How many threads may read a source at once: the readers of other formats than zarr take one.

    Raises:
        As `open_source`.
    """
    return usable_threads() if isinstance(open_source(path), Volume) else 1


def translation_vox(source: ImageSource) -> tuple[float, float, float]:
    """Where OME-NGFF metadata put the first voxel of a source, z, y, x, in voxels.

    The transformations of the full resolution come first, then those of all its levels. Nothing is
    moved by it: whether tracings count from that origin cannot be known, nor whether its author
    took positions of voxels for their corners or their centres. Other formats give zeros.
    """
    scale, shift = np.ones(3), np.zeros(3)
    for step in _transformations(source):
        kind = step.get("type")
        values = np.asarray(step.get(kind, ())[-3:], np.float64) if kind in _AFFINE else np.ones(0)
        if len(values) != 3:
            continue
        if kind == "scale":
            scale, shift = scale * values, shift * values
        else:
            shift = shift + values
    z, y, x = (float(v) for v in shift / scale)
    return z, y, x


_AFFINE = ("scale", "translation")


def _transformations(source: ImageSource) -> list[dict[str, Any]]:
    if not isinstance(source, Volume) or not source.array:
        return []
    attributes: dict[str, Any] = dict(zarr.open_group(source.path, mode="r").attrs)
    images = attributes.get("ome", attributes).get("multiscales")
    if not images:
        return []
    parts = (images[0]["datasets"][0], images[0])
    return [step for part in parts for step in part.get("coordinateTransformations", ())]


def read_labels(path: Path, roi: Roi) -> NDArray[np.uint64]:
    """The labels in a box of any source of integers, as uint64.

    Raises:
        DataError: a label is negative.
        DtypeError: the voxels are no integers.
        ShapeError: there are channels.
    """
    source = open_source(path)
    if source.dtype.kind not in "iub":
        raise DtypeError(f"{path}: labels must be integers, got {source.dtype}")
    if isinstance(source, Volume) and source.channels is not None:
        raise ShapeError(
            f"{path}: expected labels (z, y, x), got {source.channels} channels; save one as a "
            "volume"
        )
    labels = source.read(roi)
    if labels.dtype.kind == "i" and labels.min() < 0:
        raise DataError(_negative(path, roi, labels))
    return labels.astype(np.uint64, copy=False)


def _negative(path: Path, roi: Roi, labels: NDArray[Any]) -> str:
    below = np.argwhere(labels < 0)
    voxel = tuple(int(v) for v in below[0] + roi.offset)
    return (
        f"{path}: a label is negative: {labels[tuple(below[0])]} at voxel {voxel} (z, y, x), "
        f"{len(below)} such voxels in the box {roi}; labels are 0, the background, to 2^64 - 1. "
        "Save the volume with 0 where there is no segment, as an unsigned type"
    )


def labels_at(path: Path, voxels: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The label of each voxel (M, 3; z, y, x), all inside the volume; any order, repeats allowed.

    For some thousand voxels spread over a volume of any size: each cube (of a TIFF, each slab of
    planes) that holds any is read once, cut to what is needed.

    Raises:
        As `read_labels`; ShapeError: a voxel lies outside.
    """
    source = open_source(path)
    cell_shape = (_CELL, _CELL, _CELL)
    if isinstance(source, TiffSource):
        cell_shape = (_PLANES, *source.shape[1:])
    grid = BlockGrid.over(source.shape, cell_shape)
    labels = np.zeros(len(voxels), np.uint64)
    if len(voxels) and (voxels.min() < 0 or (voxels.max(axis=0) >= grid.volume.shape).any()):
        raise ShapeError(f"{path}: a voxel lies outside the volume of {grid.volume.shape}")
    cell = np.ravel_multi_index(tuple((voxels // grid.block_shape).T), grid.cells)
    order = np.argsort(cell, kind="stable")
    first = np.flatnonzero(np.diff(cell[order])) + 1
    for chosen in np.split(order, first) if len(order) else ():
        low, high = voxels[chosen].min(axis=0), voxels[chosen].max(axis=0) + 1
        z, y, x = (voxels[chosen] - low).T
        labels[chosen] = read_labels(path, Roi.between(triple(low), triple(high)))[z, y, x]
    return labels


def _is_plane(file: Path) -> bool:
    return file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")


def _natural(file: Path) -> tuple[list[tuple[int, str]], str]:
    """Numbers in names by their value: plane 2 comes before plane 10, padded or not."""
    parts = re.split(r"(\d+)", file.name)
    return [(int(p), "") if i % 2 else (0, p) for i, p in enumerate(parts)], file.name


@lru_cache(maxsize=8)
def _open(path: Path, _mtime_ns: int, _inode: int) -> ImageSource:
    if archive_of(path) is not None:
        return read_member(path)
    if path.is_file():
        if path.suffix.lower() in _SUFFIXES:
            return _open_tiff(path)
        raise InputError(
            f"{path}: expected .tif, .tiff, a folder of them, .npz, zarr or a precomputed folder"
        )
    planes = tuple(sorted((f for f in path.iterdir() if _is_plane(f)), key=_natural))
    if planes:
        return _open_planes(path, planes)
    if is_precomputed(path):
        return open_precomputed_source(path)
    return Volume.open(path)


def _open_tiff(path: Path) -> TiffSource:
    try:
        with tifffile.TiffFile(path) as tiff:
            if not tiff.series:
                raise InputError(f"{path}: the TIFF holds no image")
            series = tiff.series[0]
            _require_planes(path, str(series.axes), series.shape)
            shape, dtype = tuple(int(n) for n in series.shape), np.dtype(series.dtype)
            size = _tiff_voxel_size(tiff)
    except (tifffile.TiffFileError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a readable TIFF: {error}") from error
    if len(shape) != 3 or min(shape) < 1:
        raise ShapeError(f"{path}: expected planes of a volume (z, y, x), got shape {shape}")
    return TiffSource(path, (path,), triple(shape), dtype, size)


def _require_planes(path: Path, axes: str, shape: Sequence[int]) -> None:
    """Refuse colours: three axes, one of them the samples of a pixel, are a picture."""
    if "S" in axes:
        raise ShapeError(
            f"{path}: expected planes of a volume (z, y, x), got axes {axes} of lengths "
            f"{tuple(shape)}, S being the samples of a pixel; save one channel as a volume"
        )


def _open_planes(path: Path, files: tuple[Path, ...]) -> TiffSource:
    try:
        with tifffile.TiffFile(files[0]) as tiff:
            shape, dtype = tuple(tiff.series[0].shape), np.dtype(tiff.series[0].dtype)
    except (tifffile.TiffFileError, ValueError, OSError, IndexError) as error:
        raise InputError(f"{files[0]}: not a readable TIFF: {error}") from error
    if len(files) == 1 and len(shape) == 3:
        return _open_tiff(files[0])
    if len(shape) != 2 or min(shape) < 1:
        raise ShapeError(f"{files[0]}: expected one plane (y, x) a file, got shape {shape}")
    return TiffSource(path, files, triple((len(files), *shape)), dtype)


def _tiff_voxel_size(tiff: tifffile.TiffFile) -> NmTriple | None:
    """ImageJ's spacing and resolution, where the unit is a length."""
    meta = tiff.imagej_metadata or {}
    unit = {"micron": 1e3, "um": 1e3, "\\u00B5m": 1e3, "µm": 1e3, "nm": 1.0}.get(
        str(meta.get("unit", ""))
    )
    page = tiff.pages[0]
    tags = getattr(page, "tags", {})
    if unit is None or "spacing" not in meta or "XResolution" not in tags:
        return None
    (nx, dx), (ny, dy) = tags["XResolution"].value, tags["YResolution"].value
    if not nx or not ny:
        return None
    return float(meta["spacing"]) * unit, dy / ny * unit, dx / nx * unit
