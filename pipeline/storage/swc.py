"""Reading and writing tracings: SWC files, folders of them, zip archives.

Placing them in a volume is the business of `swc_frame`, judging their place that of
`swc_placement`; their names are offered here as well.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import build_forest
from pipeline.errors import InputError
from pipeline.storage.swc_frame import (
    NM_PER_UNIT,
    SwcOptions,
    to_voxels,
)
from pipeline.storage.swc_placement import (
    SEGMENTATION,
    IsForeground,
    Orientation,
    Placement,
    Wording,
    check_placement,
    judge_placement,
    suggest_orientation,
)
from pipeline.storage.swc_rows import parse_swc

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
    "suggest_orientation",
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
    found: dict[str, tuple[str, Skeleton]] = {}
    for name, source, data in _swc_files(path):
        if name in found:
            raise InputError(
                f"two skeletons are called {name}: {found[name][0]} and {source}. Rename one: "
                f"scores are listed by name"
            )
        found[name] = (source, _to_skeleton(name, source, data, options))
    if not found:
        raise InputError(f"{path}: no .swc file in it")
    return [found[name][1] for name in sorted(found)]


def _swc_files(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Name, place and content of every SWC under a path."""
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if _is_swc(file.name) and file.is_file():
                yield file.stem, str(file), file.read_bytes()
    elif not path.is_file():
        raise InputError(f"{path}: no such file or folder; expected an .swc, a folder or a .zip")
    elif zipfile.is_zipfile(path):
        yield from _swc_members(path)
    elif path.suffix.lower() == ".zip":
        raise InputError(f"{path}: not a zip archive, or a damaged one")
    else:
        yield path.stem, str(path), path.read_bytes()


def _swc_members(path: Path) -> Iterator[tuple[str, str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.namelist()):
                place = PurePosixPath(member)
                if _is_swc(place.name) and not member.endswith("/"):
                    yield place.stem, f"{path}:{member}", archive.read(member)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path}: the archive cannot be read: {error}") from error


def _is_swc(name: str) -> bool:
    return name.lower().endswith(".swc") and not name.startswith(".")


def _to_skeleton(name: str, source: str, data: bytes, options: SwcOptions) -> Skeleton:
    rows = parse_swc(data, source)
    child = np.flatnonzero(rows.parents >= 0)
    radii_nm = np.where(rows.radii < 0, 0.0, rows.radii) * options.radius_nm_per_unit
    return Skeleton(
        name,
        to_voxels(rows.columns, options),
        np.stack([child, rows.parents[child]], axis=1),
        radii_nm,
        rows.types,
    )


def write_swc(
    path: str | Path,
    skeleton: Skeleton,
    *,
    voxel_size_nm: tuple[float, float, float],
    unit: str = "um",
    header: Sequence[str] = (),
) -> None:
    """Write a skeleton as SWC: columns x, y, z, ids from 1, parents first, one root per tree.

    Nodes keep their order as far as parents come before children. `read_skeletons` with the same
    unit and voxel size gives the nodes back within 1e-6 voxel. The file appears under its name
    only when it is whole; equal skeletons give equal bytes. An unknown radius is written as 0, one
    in voxels is measured along x.

    Args:
        path: of the file; its folder must exist. An existing file is replaced.
        voxel_size_nm: z, y, x.
        unit: "um", "nm" or "voxel".
        header: lines to put first, without the `#`.

    Raises:
        InputError: a cycle, coordinates that are not finite, no nodes, no such folder, or a header
            line that a reader would take for an OFFSET.
    """
    path = Path(path)
    options = SwcOptions(voxel_size_nm=voxel_size_nm, unit=unit)
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist")
    if not len(skeleton.nodes):
        raise InputError(f"{path}: skeleton {skeleton.name} has no nodes to write")
    lines = [f"# {line}" for text in header for line in text.splitlines()]
    if any(line[2:].strip().upper().startswith("OFFSET") for line in lines):
        raise InputError(f"{path}: an OFFSET in the header would shift every node; leave it out")
    lines += [f"# coordinates and radii in {unit}", "# id type x y z radius parent"]
    text = "\n".join([*lines, *_rows(skeleton, options)]) + "\n"
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_bytes(text.encode("utf-8"))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _rows(skeleton: Skeleton, options: SwcOptions) -> Iterator[str]:
    order, parent = _parents_first(skeleton, options.voxel_size_nm)
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(1, len(order) + 1)
    columns = skeleton.nodes[:, ::-1] + 0.0  # no "-0.0"
    if options.unit != "voxel":
        columns = columns * options.voxel_size_nm[::-1] / NM_PER_UNIT[options.unit]
    radii = np.nan_to_num(skeleton.radii_nm, nan=0.0) / options.radius_nm_per_unit
    for node in order.tolist():
        x, y, z = columns[node].tolist()
        above = number[parent[node]] if parent[node] >= 0 else -1
        kind, radius = int(skeleton.types[node]), float(radii[node])
        yield f"{number[node]} {kind} {x!r} {y!r} {z!r} {radius!r} {above}"


def _parents_first(
    skeleton: Skeleton, voxel_size_nm: tuple[float, float, float]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Nodes in an order with parents first, smallest index first otherwise; parents by node.

    The root of a tree is its first node that is nobody's child in `edges`: of the trees that an
    SWC holds, their own root.
    """
    count = len(skeleton.nodes)
    tree = _tree_of_nodes(skeleton, voxel_size_nm)
    is_child = np.zeros(count, bool)
    is_child[skeleton.edges[:, 0]] = True
    roots = np.flatnonzero(~is_child)
    _, first = np.unique(tree[roots], return_index=True)
    neighbours: list[list[int]] = [[] for _ in range(count)]
    for a, b in skeleton.edges.tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    heap = roots[first].tolist()
    heapify(heap)
    parent = np.full(count, -1, np.int64)
    order: list[int] = []
    while heap:
        node = heappop(heap)
        order.append(node)
        for other in neighbours[node]:
            if other != parent[node]:
                parent[other] = node
                heappush(heap, other)
    return np.array(order, np.int64), parent


def _tree_of_nodes(
    skeleton: Skeleton, voxel_size_nm: tuple[float, float, float]
) -> NDArray[np.int64]:
    """The tree of each node; refuses cycles."""
    forest = build_forest(skeleton, voxel_size_nm)
    return forest.by_node(forest.tree)
