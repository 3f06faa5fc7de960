"""Neuroglancer precomputed volumes, skeletons and segment properties, through cloud-volume.

The format counts x, y, z; nothing outside this module sees that order. Files are not compressed by
a transfer encoding, so any static web server can hand them out; labels are packed by the format's
own `compressed_segmentation`. A chunk without a label has no file and reads as zeros: the ledger,
not the volume, knows what is done. The same voxels give the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipeline.arrays.label_pyramid import downsample_labels
from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import Roi, Triple, triple
from pipeline.settings import NmTriple
from pipeline.storage.atomic import write_json

with warnings.catch_warnings():
    # Its client for Google's storage complains on import that an optional part is missing.
    warnings.simplefilter("ignore", ImportWarning)
    from cloudvolume import CloudVolume
    from cloudvolume.exceptions import (
        EmptyVolumeException,
        InfoUnavailableError,
        ScaleUnavailableError,
    )

Location = Path | str
_DTYPES = {
    "segmentation": ("uint8", "uint16", "uint32", "uint64"),
    "image": ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32"),
}
# What the format packs; smaller labels are stored raw.
_PACKED = ("uint32", "uint64")


@dataclass(frozen=True)
class Precomputed:
    """One level of a precomputed volume.

    Attributes:
        location: a folder, or an address such as https://host/path or gs://bucket/path.
        level: 0 is the full resolution.
        shape: z, y, x.
        offset: the first voxel of the volume, z, y, x; regions are given in these coordinates.
        chunk: z, y, x.
        voxel_size_nm: z, y, x.
        dtype: of the voxels.
        channels: 1 for labels; images may have more.
        kind: "segmentation" or "image".
        levels: how many there are.
    """

    location: str
    level: int
    shape: Triple
    offset: Triple
    chunk: Triple
    voxel_size_nm: NmTriple
    dtype: np.dtype
    channels: int
    kind: str
    levels: int

    @property
    def roi(self) -> Roi:
        """The whole volume."""
        return Roi(self.offset, self.shape)


def create_segmentation(
    path: Path,
    shape: Triple,
    voxel_size_nm: NmTriple,
    chunk: Triple,
    *,
    kind: Literal["segmentation", "image"] = "segmentation",
    dtype: DTypeLike = np.uint64,
    offset: Triple = (0, 0, 0),
    level_factors: Sequence[Triple] = (),
) -> Precomputed:
    """Create an empty precomputed volume; `path` must hold none.

    Args:
        path: a local folder.
        shape: z, y, x of the full resolution.
        voxel_size_nm: z, y, x.
        chunk: z, y, x, the same at every level.
        kind: how the viewer draws it.
        dtype: of the voxels.
        offset: the first voxel, z, y, x.
        level_factors: total downsampling z, y, x of each further level.

    Raises:
        InputError: there is a volume already, or a factor is no multiple of the one before.
        DtypeError: the format has no such voxels.
    """
    name = np.dtype(dtype).name
    if name not in _DTYPES[kind]:
        raise DtypeError(f"precomputed {kind}: expected one of {_DTYPES[kind]}, got {name}")
    if (path / "info").exists():
        raise InputError(f"{path}: holds a precomputed volume already")
    factors = [(1, 1, 1), *map(triple, level_factors)]
    for finer, coarser in pairwise(factors):
        if any(c % f for f, c in zip(finer, coarser, strict=True)):
            raise InputError(f"level factors: {coarser} is no multiple of {finer}")
    info = {
        "@type": "neuroglancer_multiscale_volume",
        "type": kind,
        "data_type": name,
        "num_channels": 1,
        "scales": [
            _scale_info(shape, voxel_size_nm, chunk, offset, factor, kind == "segmentation", name)
            for factor in factors
        ],
    }
    write_json(path / "info", info)
    return open_precomputed(path)


def _scale_info(
    shape: Triple,
    voxel_size_nm: NmTriple,
    chunk: Triple,
    offset: Triple,
    factor: Triple,
    labels: bool,
    dtype: str,
) -> dict[str, Any]:
    ends = [-(-(o + n) // f) for o, n, f in zip(offset, shape, factor, strict=True)]
    starts = [o // f for o, f in zip(offset, factor, strict=True)]
    size_nm = [s * f for s, f in zip(voxel_size_nm, factor, strict=True)]
    plain = [int(s) if float(s).is_integer() else float(s) for s in size_nm]
    packed = labels and dtype in _PACKED
    scale: dict[str, Any] = {
        "key": "_".join(str(s) for s in plain[::-1]),
        "size": [e - s for s, e in zip(starts, ends, strict=True)][::-1],
        "resolution": plain[::-1],
        "voxel_offset": starts[::-1],
        "chunk_sizes": [list(chunk[::-1])],
        "encoding": "compressed_segmentation" if packed else "raw",
    }
    if packed:
        scale["compressed_segmentation_block_size"] = [8, 8, 8]
    return scale


def open_precomputed(location: Location, level: int = 0) -> Precomputed:
    """Describe one level of a precomputed volume, local or remote, of whatever origin.

    Raises:
        InputError: no such volume, or no such level.
    """
    volume = _cloud_volume(location, level)
    return Precomputed(
        location=str(location),
        level=level,
        shape=triple(volume.bounds.size3()[::-1]),
        offset=triple(volume.bounds.minpt[::-1]),
        chunk=triple(volume.chunk_size[::-1]),
        voxel_size_nm=_nm(volume.resolution),
        dtype=np.dtype(volume.dtype),
        channels=int(volume.num_channels),
        kind=str(volume.layer_type),
        levels=len(volume.scales),
    )


def _nm(resolution: Sequence[float]) -> NmTriple:
    x, y, z = (float(v) for v in resolution)
    return z, y, x


def _address(location: Location) -> str:
    text = str(location)
    return text if "://" in text else "file://" + str(Path(text).resolve())


def _cloud_volume(location: Location, level: int, missing_is_zero: bool = True) -> CloudVolume:
    path = None if "://" in str(location) else Path(location)
    if path is not None and not (path / "info").is_file():
        raise InputError(f"{path}: no precomputed volume (no file `info`)")
    stamp = (path / "info").stat().st_mtime_ns if path is not None else 0
    try:
        return _open(_address(location), level, missing_is_zero, stamp)
    except ScaleUnavailableError as error:
        raise InputError(f"{location}: has no level {level}") from error
    except (InfoUnavailableError, ValueError, KeyError, OSError) as error:
        raise InputError(f"{location}: cannot open the precomputed volume: {error}") from error


# A block opens the same volume several times. The stamp keeps one that was created anew from being
# written through an old description.
@lru_cache(maxsize=32)
def _open(address: str, level: int, missing_is_zero: bool, _stamp: int) -> CloudVolume:
    return CloudVolume(
        "precomputed://" + address,
        mip=level,
        compress=False,
        cdn_cache=False,
        non_aligned_writes=False,
        fill_missing=missing_is_zero,
        delete_black_uploads=True,
        progress=False,
        parallel=1,
        bounded=True,
    )


def read_region(
    location: Location, roi: Roi, level: int = 0, *, missing_is_zero: bool = True
) -> NDArray[Any]:
    """Voxels of `roi` (in voxels of `level`): (z, y, x), or (channel, z, y, x) if there are more.

    Raises:
        ShapeError: `roi` leaves the volume.
        DataError: a chunk is damaged, or absent and `missing_is_zero` is False. The decoder of
            packed labels does not notice every truncated file.
    """
    described = open_precomputed(location, level)
    _require_inside(described, roi)
    try:
        voxels = np.asarray(_cloud_volume(location, level, missing_is_zero)[_box(roi)])
    except EmptyVolumeException as error:
        raise DataError(f"{location}: a chunk of {roi} has no file") from error
    except Exception as error:  # each codec raises its own
        raise DataError(f"{location}: cannot read {roi}: {error}") from error
    voxels = np.ascontiguousarray(voxels.T)
    return voxels if described.channels > 1 else voxels[0]


def write_region(location: Location, roi: Roi, voxels: NDArray[Any], level: int = 0) -> None:
    """Write whole chunks of a level; a chunk of zeros leaves no file.

    Args:
        location: the volume.
        roi: in voxels of `level`; begins and ends at chunk boundaries or at those of the volume.
        voxels: (z, y, x) of the volume's type.
        level: 0 is the full resolution.

    Raises:
        ShapeError: `roi` leaves the volume, or the shapes differ.
        DtypeError: the types differ.
        InputError: `roi` cuts a chunk.
    """
    volume = open_precomputed(location, level)
    _require_inside(volume, roi)
    if voxels.shape != roi.shape:
        raise ShapeError(f"{location}: expected voxels of shape {roi.shape}, got {voxels.shape}")
    if voxels.dtype != volume.dtype:
        raise DtypeError(f"{location}: expected {volume.dtype}, got {voxels.dtype}")
    _require_whole_chunks(volume, roi)
    _cloud_volume(location, level)[_box(roi)] = np.asfortranarray(voxels.T)


def downsample_region(location: Location, roi: Roi, level: int) -> None:
    """Fill whole chunks of a coarser level of labels from the level before it.

    Args:
        location: a segmentation.
        roi: in voxels of `level`, whole chunks as in `write_region`.
        level: at least 1; the level before must be complete there.
    """
    coarse, fine = open_precomputed(location, level), open_precomputed(location, level - 1)
    ratios = zip(coarse.voxel_size_nm, fine.voxel_size_nm, strict=True)
    factor = triple(tuple(round(c / f) for c, f in ratios))
    _require_inside(coarse, roi)
    begin = triple(tuple(o * f for o, f in zip(roi.offset, factor, strict=True)))
    end = triple(tuple(e * f for e, f in zip(roi.end, factor, strict=True)))
    below = Roi.between(begin, end).intersect(fine.roi)
    # Cells are anchored at multiples of the factor, where a volume with an offset need not begin.
    lead = [(b - a, 0) for a, b in zip(begin, below.offset, strict=True)]
    labels = np.pad(read_region(location, below, level - 1), lead)
    write_region(location, roi, downsample_labels(labels, factor), level)


def _box(roi: Roi) -> tuple[slice, slice, slice]:
    z, y, x = roi.slices
    return x, y, z


def _require_inside(volume: Precomputed, roi: Roi) -> None:
    if not volume.roi.contains(roi):
        raise ShapeError(f"{volume.location}: {roi} leaves level {volume.level}, {volume.roi}")


def _require_whole_chunks(volume: Precomputed, roi: Roi) -> None:
    spans = zip(roi.offset, roi.end, volume.offset, volume.roi.end, volume.chunk, strict=True)
    for axis, (begin, end, first, last, chunk) in enumerate(spans):
        if (begin - first) % chunk or ((end - first) % chunk and end != last):
            raise InputError(
                f"{volume.location}: {roi} cuts chunks of {volume.chunk} along axis {'zyx'[axis]}; "
                f"write regions that begin at {first} plus a multiple of {chunk} and end there or "
                f"at {last}"
            )


def link(path: Path, *, skeletons: str | None = None, properties: str | None = None) -> None:
    """Tell a segmentation the folders inside it that hold its skeletons and segment properties."""
    info = dict(_cloud_volume(path, 0).info)
    for key, folder in (("skeletons", skeletons), ("segment_properties", properties)):
        if folder is not None:
            if not (path / folder / "info").is_file():
                raise InputError(f"{path / folder}: nothing to link (no file `info`)")
            info[key] = folder
    write_json(path / "info", info)
