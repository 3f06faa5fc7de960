"""Reading tracings: SWC files, folders of them, zip archives.

Writing them is the business of `swc_writer`, placing them in a volume that of `swc_frame`, judging
their place that of `swc_placement`; their names are offered here as well.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import InputError
from pipeline.storage.swc_frame import SwcOptions, to_voxels
from pipeline.storage.swc_placement import (
    SEGMENTATION,
    IsForeground,
    Orientation,
    Placement,
    Wording,
    check_placement,
    judge_placement,
)
from pipeline.storage.swc_rows import parse_swc
from pipeline.storage.swc_writer import write_swc
from pipeline.threads import map_threads

__all__ = [
    "SEGMENTATION",
    "IsForeground",
    "Orientation",
    "Placement",
    "SwcOptions",
    "Wording",
    "check_placement",
    "judge_placement",
    "read_skeletons",
    "write_swc",
]


def read_skeletons(path: str | Path, options: SwcOptions) -> list[Skeleton]:
    """The skeletons of an SWC file, of a folder's SWC files, or of those in a zip archive.

    Names are the files' stems; skeletons come ordered by name, nodes by SWC id, edges as (child,
    parent). Subfolders of a folder are not searched, those in an archive are; hidden files are
    passed over. A radius below 0 counts as unknown (0); one in voxels is measured along x.

    Raises:
        InputError: no such path, no SWC in it, two with one name, or an SWC that is not well
            formed (file and line are named).
    """
    path = Path(path)
    if path.is_dir():
        kept = [file for file in sorted(path.iterdir()) if _is_swc(file.name) and file.is_file()]
        return _read_all([_SwcFile(f.stem, str(f), f.read_bytes) for f in kept], path, options)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder; expected an .swc, a folder or a .zip")
    if zipfile.is_zipfile(path):
        return _read_archive(path, options)
    if path.suffix.lower() == ".zip":
        raise InputError(f"{path}: not a zip archive, or a damaged one")
    return _read_all([_SwcFile(path.stem, str(path), path.read_bytes)], path, options)


@dataclass(frozen=True)
class _SwcFile:
    """Where a skeleton lies; its text is there only while it is parsed."""

    name: str
    source: str
    read: Callable[[], bytes]


def _read_archive(path: Path, options: SwcOptions) -> list[Skeleton]:
    with _readable(path):
        opened = zipfile.ZipFile(path)
    # Threads share the archive: only the bytes on disk are read one after the other.
    with opened as archive:
        files = [
            _SwcFile(place.stem, f"{path}:{member}", partial(_read_member, archive, path, member))
            for member in sorted(archive.namelist())
            if _is_swc((place := PurePosixPath(member)).name) and not member.endswith("/")
        ]
        return _read_all(files, path, options)


def _read_member(archive: zipfile.ZipFile, path: Path, member: str) -> bytes:
    with _readable(path):
        return archive.read(member)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path}: the archive cannot be read: {error}") from error


def _read_all(files: list[_SwcFile], path: Path, options: SwcOptions) -> list[Skeleton]:
    """The skeletons by name; of several errors that of the first file is told."""
    if not files:
        raise InputError(f"{path}: no .swc file in it")
    second = _second_of_a_name(files)
    found = map_threads(lambda file: _to_skeleton(file, options), files[:second])
    if second is not None:
        name, source = files[second].name, files[second].source
        first = next(file.source for file in files if file.name == name)
        raise InputError(
            f"two skeletons are called {name}: {first} and {source}. Rename one: "
            f"scores are listed by name"
        )
    return sorted(found, key=lambda skeleton: skeleton.name)


def _second_of_a_name(files: list[_SwcFile]) -> int | None:
    """The first file that is called as one before it."""
    names: set[str] = set()
    for i, file in enumerate(files):
        if file.name in names:
            return i
        names.add(file.name)
    return None


def _is_swc(name: str) -> bool:
    return name.lower().endswith(".swc") and not name.startswith(".")


def _to_skeleton(file: _SwcFile, options: SwcOptions) -> Skeleton:
    rows = parse_swc(file.read(), file.source)
    child = np.flatnonzero(rows.parents >= 0)
    radii_nm = np.where(rows.radii < 0, 0.0, rows.radii) * options.radius_nm_per_unit
    return Skeleton(
        file.name,
        to_voxels(rows.columns, options),
        np.stack([child, rows.parents[child]], axis=1),
        radii_nm,
        rows.types,
    )
