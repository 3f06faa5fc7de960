"""Columns on disk: edge tables, lookups, face records, node labels.

One Arrow IPC file a table, zstd-compressed, written atomically: bytes depend on the content alone.
A table's columns have one length; `write_arrays` keeps arrays of any shapes side by side. Arrow has
no checksums, so each batch carries one for each of its columns: a flipped bit is an error.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from pipeline.errors import DataError
from pipeline.storage.atomic import replacing

_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")
_SMALL_BYTES = 2**19
# Rows of a batch of a long table: what a reader holds at least.
_BATCH_ROWS = 2**20
Columns = dict[str, NDArray[Any]]


def write_table(
    path: Path, columns: Mapping[str, NDArray[Any]], meta: Mapping[str, Any] | None = None
) -> None:
    """Write columns of equal length as one Arrow file, with `meta` (JSON) in its schema."""
    arrays = {name: pa.array(values) for name, values in columns.items()}
    _write(path, pa.RecordBatch.from_pydict(arrays), dict(meta or {}))


def write_long_table(
    path: Path,
    parts: Iterable[Mapping[str, NDArray[Any]]],
    like: Mapping[str, DTypeLike],
    meta: Mapping[str, Any] | None = None,
) -> int:
    """Write a table that never is in memory whole; gives the number of rows.

    The bytes depend on the sequence of rows, not on how it is cut into parts.

    Args:
        path: of the file.
        parts: the rows, in order; columns of equal length.
        like: name and type of each column.
        meta: JSON for the schema.
    """
    fields = [pa.field(name, pa.from_numpy_dtype(np.dtype(kind))) for name, kind in like.items()]
    schema = pa.schema(fields, {"axonloom": json.dumps(dict(meta or {}))})
    rows = 0
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema, options=_OPTIONS) as writer,
    ):
        for number, (batch, last) in enumerate(_even_batches(parts, like)):
            columns = pa.record_batch([pa.array(batch[n]) for n in like], schema=schema)
            writer.write_batch(columns, custom_metadata=_seal(columns, number, last=last))
            rows += len(columns)
    return rows


def _even_batches(
    parts: Iterable[Mapping[str, NDArray[Any]]], like: Mapping[str, DTypeLike]
) -> Iterator[tuple[Columns, bool]]:
    """The same rows in batches of `_BATCH_ROWS`, the last one shorter; whether it is the last."""
    first = next(iter(like))
    held = {name: np.zeros(0, kind) for name, kind in like.items()}
    for part in parts:
        held = {name: np.concatenate([held[name], part[name]]) for name in like}
        while len(held[first]) > _BATCH_ROWS:
            yield {name: values[:_BATCH_ROWS] for name, values in held.items()}, False
            held = {name: values[_BATCH_ROWS:] for name, values in held.items()}
    yield held, True


def read_table(path: Path) -> Columns:
    """The columns of a table, as numpy arrays.

    Raises:
        DataError: the file is missing, truncated or no table.
    """
    table = _read(path)
    return {name: table.column(name).to_numpy() for name in table.column_names}


def changed_at(path: Path) -> int:
    """When a table was written, in ns: keys what is kept of it in memory.

    Raises:
        DataError: it is missing.
    """
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing or damaged table: {error}") from error


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON metadata that `write_table` or `write_arrays` stored."""
    stored = _read(path, most=1).schema.metadata or {}
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
    _write(path, pa.RecordBatch.from_pydict(columns), {"shapes": shapes})


def read_arrays(path: Path, names: Container[str] | None = None) -> Columns:
    """What `write_arrays` wrote, or those of it in `names`; raises DataError as `read_table`."""
    table = _read(path, names)
    shapes = json.loads(table.schema.metadata[b"axonloom"])["shapes"]
    arrays = {}
    for name in table.column_names if names is None else filter(names.__contains__, shapes):
        values = table.column(name).combine_chunks().values
        arrays[name] = values.to_numpy(zero_copy_only=False).reshape(shapes[name])
    return arrays


def write_parts(
    path: Path, numbers: Sequence[int], parts: Iterable[Mapping[str, NDArray[Any]]]
) -> None:
    """Write several tables of arrays into one file, of which each can be read by itself.

    Args:
        path: of the file.
        numbers: of the parts, increasing, one at least.
        parts: as many, in that order, taken one by one: arrays (N,) or (N, k). All have the same
            names, types and k; N may differ between the arrays.

    Raises:
        ValueError: parts and numbers differ in number.
    """
    with ExitStack() as stack:
        writer = None
        for k, (_number, arrays) in enumerate(zip(numbers, parts, strict=True)):
            columns = {}
            for name, values in arrays.items():
                offsets = pa.array(np.array([0, values.size], np.int64))
                flat = pa.array(np.ascontiguousarray(values).reshape(-1))
                columns[name] = pa.LargeListArray.from_arrays(offsets, flat)
            widths = {name: list(values.shape[1:]) for name, values in arrays.items()}
            meta = {"parts": [int(n) for n in numbers], "widths": widths}
            batch = pa.RecordBatch.from_pydict(columns)
            batch = batch.replace_schema_metadata({"axonloom": json.dumps(meta)})
            if writer is None:
                temporary = stack.enter_context(replacing(path))
                sink = stack.enter_context(pa.OSFile(str(temporary), "wb"))
                writer = stack.enter_context(pa.ipc.new_file(sink, batch.schema, options=_OPTIONS))
            last = k == len(numbers) - 1
            writer.write_batch(batch, custom_metadata=_seal(batch, k, last=last))


def part_numbers(path: Path) -> list[int]:
    """The parts of a file that `write_parts` wrote; raises DataError as `read_table`."""
    with _opened(path) as reader:
        return list(_part_meta(reader)["parts"])


def read_part(path: Path, number: int, names: Container[str] | None = None) -> Columns:
    """One part of a file that `write_parts` wrote, or those of its arrays in `names`.

    Raises:
        DataError: the file is missing or damaged, or has no such part.
    """
    with _opened(path, names) as reader:
        meta = _part_meta(reader)
        if number not in meta["parts"]:
            raise ValueError(f"no part {number}, only {meta['parts']}")
        row = meta["parts"].index(number)
        last = row == len(meta["parts"]) - 1
        batch = _batch(reader, row, last, whole=names is None)
        return {
            name: batch.column(name)
            .values.to_numpy(zero_copy_only=False)
            .reshape(-1, *meta["widths"][name])
            for name in batch.schema.names
        }


def _part_meta(reader: pa.ipc.RecordBatchFileReader) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((reader.schema.metadata or {})[b"axonloom"])
    if len(meta["parts"]) != reader.num_record_batches:
        raise ValueError("it has no end")
    return meta


@contextmanager
def _opened(
    path: Path, names: Container[str] | None = None
) -> Iterator[pa.ipc.RecordBatchFileReader]:
    """A reader of some columns; whatever goes wrong inside is a damaged table."""
    try:
        with pa.OSFile(str(path), "rb") as source:
            reader = pa.ipc.open_file(source)
            if names is not None:
                wanted = [i for i, name in enumerate(reader.schema.names) if name in names]
                options = pa.ipc.IpcReadOptions(included_fields=wanted)
                reader = pa.ipc.open_file(source, options=options)
            yield reader
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{path}: missing or damaged table: {error}") from error


def _write(path: Path, batch: pa.RecordBatch, meta: dict[str, Any]) -> None:
    batch = batch.replace_schema_metadata({"axonloom": json.dumps(meta)})
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema, options=_OPTIONS) as writer,
    ):
        writer.write_batch(batch, custom_metadata=_seal(batch, 0, last=True))


def _seal(batch: pa.RecordBatch, number: int, *, last: bool) -> dict[str, str]:
    """What a reader needs to know that a batch, and the whole table, is what was written."""
    place = {"batch": f"{number}{' last' if last else ''}", "columns": str(batch.schema.names)}
    return place | {f"crc32 {name}": _checksum(batch, name) for name in batch.schema.names}


def _checksum(batch: pa.RecordBatch, name: str) -> str:
    """Of the values of a column, its type, and what the schema says beside."""
    column = batch.column(name)
    values = column.values if isinstance(column, pa.LargeListArray) else column
    meta = (batch.schema.metadata or {}).get(b"axonloom", b"")
    found = zlib.crc32(f"{column.type} {len(column)} {len(values)}".encode() + meta)
    if values is not column:
        found = zlib.crc32(column.offsets.to_numpy().data, found)
    content = np.ascontiguousarray(values.to_numpy(zero_copy_only=False))
    return f"{zlib.crc32(content.data, found):08x}"


def _read(path: Path, names: Container[str] | None = None, *, most: int | None = None) -> pa.Table:
    """The columns of a table, or those in `names`; of its first `most` batches or all."""
    # To open a small file once more costs more than to read all of it.
    whole = names is None or (path.exists() and path.stat().st_size <= _SMALL_BYTES)
    with _opened(path, None if whole else names) as reader:
        count = reader.num_record_batches
        batches = [_batch(reader, k, k == count - 1, whole=whole) for k in range(count)[:most]]
        if not batches:
            raise ValueError("it has no end")
        return pa.Table.from_batches(batches)


def _batch(
    reader: pa.ipc.RecordBatchFileReader, number: int, last: bool, *, whole: bool
) -> pa.RecordBatch:
    """One batch, held against its seal; ValueError where it is not what was written."""
    found = reader.get_batch_with_custom_metadata(number)
    found.batch.validate(full=True)  # damage may point outside of the file
    stored = {k.decode(): v.decode() for k, v in dict(found.custom_metadata or {}).items()}
    expected = _seal(found.batch, number, last=last)
    if not whole:
        del expected["columns"]
    differing = sorted(name for name in expected if stored.get(name) != expected[name])
    if differing:
        raise ValueError(f"batch {number} is not what was written ({', '.join(differing)})")
    batch: pa.RecordBatch = found.batch
    return batch
