"""Arrays inside NumPy archives: the member's name follows the file's, as in volume.npz/gray.

A member is packed as a whole, so reading any box of it unpacks all of it. It is read once and kept
in memory by every process that opens it: what does not fit there belongs in a zarr.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DtypeError, InputError, ShapeError
from pipeline.geometry import Roi, Triple, triple
from pipeline.settings import NmTriple

_SUFFIX = ".npz"
_NUMBERS = "biuf"
_UNREADABLE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True, eq=False)
class NpzSource:
    """A three-dimensional array read from an archive; a stack of pictures is its planes."""

    path: Path
    array: NDArray[Any]
    voxel_size_nm: NmTriple | None = None

    @property
    def shape(self) -> Triple:
        """z, y, x."""
        return triple(self.array.shape)

    @property
    def dtype(self) -> np.dtype:
        """Of the voxels."""
        return self.array.dtype

    def read(self, roi: Roi) -> NDArray[Any]:
        """A copy of the voxels of `roi`.

        Raises:
            InputError: the box leaves the array.
        """
        if not Roi((0, 0, 0), self.shape).contains(roi):
            raise InputError(f"{self.path}: {roi} leaves the array of {self.shape} voxels")
        return self.array[roi.slices].copy()


def archive_of(path: Path) -> Path | None:
    """The archive that a path names a member of, or is; None if there is no archive in it."""
    for place in (path, *path.parents):
        if place.suffix.lower() == _SUFFIX and place.is_file():
            return place
    return None


def stored_file(path: Path) -> Path:
    """The file or folder on disk that holds what a path names."""
    return archive_of(path) or path


def read_member(path: Path) -> NpzSource:
    """Read the array that a path such as volume.npz/gray names.

    Raises:
        InputError: no such member, or none named (the members are listed); an unreadable archive.
        DtypeError: the array holds Python objects, texts or records, not numbers.
        ShapeError: not three axes, or empty.
    """
    archive = archive_of(path)
    if archive is None:
        raise InputError(f"{path}: no NumPy archive ({_SUFFIX}) in this path")
    member = path.relative_to(archive).as_posix()
    array = _read(archive, "" if member == "." else member)
    if array.dtype.kind not in _NUMBERS:
        raise DtypeError(
            f"{path}: expected numbers, got {array.dtype}; save the voxels as an array of numbers"
        )
    if array.ndim != 3 or 0 in array.shape:
        raise ShapeError(f"{path}: expected an array (z, y, x), got shape {array.shape}")
    native = array.dtype.newbyteorder("=")
    return NpzSource(path, np.ascontiguousarray(array, dtype=native))


def _read(archive: Path, member: str) -> NDArray[Any]:
    if not zipfile.is_zipfile(archive):
        raise InputError(f"{archive}: not a NumPy archive; expected what numpy.savez writes")
    try:
        with np.load(archive, allow_pickle=False) as members:
            if member in members.files:
                return np.asarray(members[member])
            names = list(members.files)
    except _UNREADABLE as error:
        if "Object arrays" in str(error):
            raise DtypeError(
                f"{archive / member}: an array of Python objects, which is never unpacked: that "
                "could run any code. Save the voxels as an array of numbers"
            ) from error
        raise InputError(f"{archive / member}: cannot be read: {error}") from error
    wanted = f"no array named {member!r} in it" if member else "name one of its arrays"
    example = f", as in {archive.name}/{names[0]}" if names else ""
    raise InputError(f"{archive}: {wanted}{example}; it holds {', '.join(names) or 'none'}")
