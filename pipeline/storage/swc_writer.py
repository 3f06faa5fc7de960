"""Writing tracings as SWC files, quickly and in little memory: a slice of rows at a time.

Numbers are written as Python's `repr` writes them: the shortest text that gives the number back.
Arrow finds the same digits several times faster; where it would write them otherwise (whole
numbers, exponents) they are put right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import Floats, Integers
from pipeline.arrays.skeleton_order import parents_first
from pipeline.errors import InputError
from pipeline.storage.swc_frame import NM_PER_UNIT, SwcOptions

_ROWS = 1 << 16  # rows that are in memory as text at a time
_FORMAT = pcsv.WriteOptions(
    include_header=False, delimiter=" ", quoting_style="none", batch_size=_ROWS
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
    lines += [f"# coordinates and radii in {unit}", "# id type x y z radius parent", ""]
    order, parent = parents_first(skeleton, options.voxel_size_nm)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write("\n".join(lines).encode("utf-8"))
            for rows in _rows(skeleton, options, order, parent):
                pcsv.write_csv(rows, file, _FORMAT)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _rows(
    skeleton: Skeleton, options: SwcOptions, order: Integers, parent: Integers
) -> Iterator[pa.RecordBatch]:
    """The columns of a file, a slice of its rows at a time."""
    number = np.empty(len(order) + 1, np.int64)
    number[order] = np.arange(1, len(order) + 1)
    number[-1] = -1  # what a root's parent, -1, leads to
    for start in range(0, len(order), _ROWS):
        node = order[start : start + _ROWS]
        places = skeleton.nodes[node, ::-1] + 0.0  # no "-0.0"
        if options.unit != "voxel":
            places = places * options.voxel_size_nm[::-1] / NM_PER_UNIT[options.unit]
        radii = np.nan_to_num(skeleton.radii_nm[node], nan=0.0) / options.radius_nm_per_unit
        columns = [
            pa.array(number[node]),
            pa.array(skeleton.types[node]),
            *(_as_repr(np.ascontiguousarray(values)) for values in (*places.T, radii)),
            pa.array(number[parent[node]]),
        ]
        yield pa.record_batch(columns, names=["id", "type", "x", "y", "z", "radius", "parent"])


def _as_repr(values: Floats) -> pa.Array:
    """(n,) finite float64 as the text that `repr` gives."""
    size = np.abs(values)
    # Arrow writes exponents from 1e10 on and none down to 1e-6; `repr` has its own bounds.
    odd = (size >= 1e9) | ((size < 1e-4) & ((size > 0) | np.signbit(values)))
    whole = ~odd & (values == np.rint(values))
    text = pc.cast(pa.array(values), pa.string())
    if whole.any():
        integers = pc.cast(pa.array(values[whole].astype(np.int64)), pa.string())
        text = _replaced(text, whole, pc.binary_join_element_wise(integers, "0", "."))
    if odd.any():
        text = _replaced(text, odd, pa.array([repr(value) for value in values[odd].tolist()]))
    return text


def _replaced(text: pa.Array, chosen: NDArray[np.bool_], by: pa.Array) -> pa.Array:
    return pc.replace_with_mask(text, pa.array(chosen), by)
