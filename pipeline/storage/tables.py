"""Columns on disk: edge tables, lookups, face records, node labels.

One Arrow IPC file a table, zstd-compressed, written atomically: bytes depend on the content alone.
A table's columns have one length; `write_arrays` keeps arrays of any shapes side by side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.storage.atomic import replacing

_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")
Columns = dict[str, NDArray[Any]]


def write_table(
    path: Path, columns: Mapping[str, NDArray[Any]], meta: Mapping[str, Any] | None = None
) -> None:
    """Write columns of equal length as one Arrow file, with `meta` (JSON) in its schema."""
    batch = pa.table({name: pa.array(values) for name, values in columns.items()})
    _write(path, batch, dict(meta or {}))


def read_table(path: Path) -> Columns:
    """The columns of a table, as numpy arrays.

    Raises:
        DataError: the file is missing, truncated or no table.
    """
    table = _read(path)
    return {name: table.column(name).to_numpy() for name in table.column_names}


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON metadata that `write_table` or `write_arrays` stored."""
    stored = _read(path).schema.metadata or {}
    meta: dict[str, Any] = json.loads(stored.get(b"axonloom", b"{}"))
    return meta


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays of any shapes into one Arrow file: one row, a list a column."""
    columns = {}
    for name, values in arrays.items():
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        offsets = pa.array(np.array([0, values.size], np.int64))
        columns[name] = pa.LargeListArray.from_arrays(offsets, flat)
    shapes = {name: list(values.shape) for name, values in arrays.items()}
    _write(path, pa.table(columns), {"shapes": shapes})


def read_arrays(path: Path) -> Columns:
    """What `write_arrays` wrote; raises DataError as `read_table` does."""
    table = _read(path)
    shapes = json.loads(table.schema.metadata[b"axonloom"])["shapes"]
    arrays = {}
    for name in table.column_names:
        values = table.column(name).combine_chunks().values
        arrays[name] = values.to_numpy(zero_copy_only=False).reshape(shapes[name])
    return arrays


def _write(path: Path, table: pa.Table, meta: dict[str, Any]) -> None:
    table = table.replace_schema_metadata({"axonloom": json.dumps(meta)})
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, table.schema, options=_OPTIONS) as writer,
    ):
        writer.write_table(table)


def _read(path: Path) -> pa.Table:
    try:
        with pa.OSFile(str(path), "rb") as source:
            return pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: missing or damaged table: {error}") from error
