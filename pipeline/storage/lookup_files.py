"""Lookups from fragment to segment, and lists of ids, as users have them on disk.

Ids are integers up to 2^64 - 1 and stay integers all the way: a float knows only those up to 2^53,
and two neurons whose ids round to one number would be one neuron. So floats are refused even where
they are whole.
"""

from __future__ import annotations

import csv
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from pipeline.arrays.labels import SparseMap, distinct
from pipeline.errors import DtypeError, InputError, ShapeError
from pipeline.storage.tables import read_table

Ids = NDArray[np.uint64]

# What the two columns are called in tables that have names for them.
_FRAGMENTS = ("fragment", "fragments", "fragment_id", "supervoxel", "supervoxel_id", "id", "ids")
_SEGMENTS = ("segment", "segments", "segment_id", "target", "targets", "root_id")
_DIGITS = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]+")
_EXPECTED = "expected two columns of integers, fragment and segment"
_END = 2**64


def read_lookup(path: Path) -> SparseMap:
    """Which segment each fragment belongs to: fragments strictly increasing, and their segments.

    A fragment that is not listed keeps its id (`apply_lookup`); `missing_ids` finds those of a
    lookup that ought to know them all. Known are, by the ending of the name:

    - .arrow, .feather: the lookups of this project, and Arrow tables of others;
    - .parquet; .npz with two arrays; .npy of shape (N, 2);
    - .csv, .tsv, .txt: two columns, parted by comma, semicolon, tab or blanks; lines that begin
      with # are comments, one line of names may come first;
    - .json: an object {fragment: segment}.

    Columns, fields and arrays are found by their names (fragment, supervoxel or id; segment, target
    or root_id) or, if there are two without such names, are the fragment and its segment. A row
    that is there twice counts once; segment 0 is background.

    Raises:
        InputError: no such file or no table; columns missing; an id that is negative, no integer or
            beyond 64 bits; a fragment with two segments; fragment 0 (background) with a segment.
        DtypeError: columns of another type than integers.
        DataError: a lookup of this project that is damaged.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a lookup from fragment to segment")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path}: expected a lookup as {', '.join(_READERS)}, got {path.suffix or 'no ending'}"
        )
    return _as_map(path, *reader(path))


def missing_ids(labels: Ids, lookup: SparseMap) -> Ids:
    """The labels (uint64, any shape) that a lookup does not list, increasing; 0 needs no entry."""
    present = distinct(np.asarray(labels, np.uint64))
    return present[(present != 0) & ~np.isin(present, lookup[0])]


def read_ids(path: Path) -> Ids:
    """The ids in a text file, increasing, each once: decimal or 0x..., one a line.

    Blank lines and what follows a # are passed over; a file without any id gives none.

    Raises:
        InputError: no such file; a line that is not one id from 0 to 2^64 - 1 (it is named).
    """
    found = []
    for number, line in _lines(path, "a list of ids, one a line"):
        content = line.partition("#")[0].strip()
        if content:
            found.append(_id(content, f"{path}, line {number}"))
    return distinct(np.array(found, np.uint64))


def _as_map(path: Path, fragments: Ids, segments: Ids) -> SparseMap:
    """Sorted, repeated rows once; refuses what is no map."""
    order = np.argsort(fragments, kind="stable")
    fragments, segments = fragments[order], segments[order]
    again = fragments[1:] == fragments[:-1]
    differs = np.flatnonzero(again & (segments[1:] != segments[:-1]))
    if len(differs):
        at = differs[0]
        raise InputError(
            f"{path}: fragment {fragments[at]} belongs to two segments, {segments[at]} and "
            f"{segments[at + 1]} ({len(differs)} such rows); a fragment has one segment"
        )
    once = np.append(True, ~again)[: len(fragments)]
    fragments, segments = fragments[once], segments[once]
    if len(fragments) and fragments[0] == 0:
        if segments[0]:
            raise InputError(
                f"{path}: fragment 0, the background, is given segment {segments[0]}; remove the "
                "row: background stays background"
            )
        fragments, segments = fragments[1:], segments[1:]
    return fragments, segments


def _chosen(path: Path, names: Sequence[str]) -> tuple[str, str]:
    """The names of the two columns among those that a table has."""
    known = {name.strip().lower(): name for name in names}
    fragments = [known[name] for name in _FRAGMENTS if name in known]
    segments = [known[name] for name in _SEGMENTS if name in known]
    if fragments and segments:
        return fragments[0], segments[0]
    if len(names) != 2 or fragments[:1] == [names[1]] or segments[:1] == [names[0]]:
        listed = ", ".join(map(repr, names)) or "none"
        raise InputError(
            f"{path}: {_EXPECTED}; it has {listed}. Call them fragment and segment, or leave two"
        )
    return names[0], names[1]


def _columns(path: Path, columns: Mapping[str, NDArray[Any]]) -> SparseMap:
    """The two columns of a table, as uint64."""
    fragments, segments = _chosen(path, list(columns))
    return (
        _unsigned(path, fragments, columns[fragments]),
        _unsigned(path, segments, columns[segments]),
    )


def _unsigned(path: Path, name: str, values: NDArray[Any]) -> Ids:
    if values.dtype.kind not in "iu":
        raise DtypeError(
            f"{path}: column {name!r} holds {values.dtype}, expected integers; floats do not know "
            "ids above 2^53 exactly, so write them as integers"
        )
    if values.dtype.kind == "i" and len(values) and values.min() < 0:
        raise InputError(f"{path}: column {name!r} holds {values.min()}; ids are 0 to 2^64 - 1")
    return values.astype(np.uint64)


# --- Arrow and parquet


def _read_arrow(path: Path) -> SparseMap:
    try:
        with pa.OSFile(str(path), "rb") as source:
            table = pa.ipc.open_file(source).read_all()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: not an Arrow table that can be read: {error}") from error
    if b"axonloom" not in (table.schema.metadata or {}):
        return _from_table(path, table)
    columns = read_table(path)  # holds every batch against its checksums
    if set(columns) != {"id", "target"}:
        raise InputError(
            f"{path}: a table of {', '.join(columns)}, no lookup; expected one with id and target, "
            "such as lookup/threshold_0.5.arrow of a run"
        )
    return _columns(path, columns)


def _read_parquet(path: Path) -> SparseMap:
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a parquet table that can be read: {error}") from error
    return _from_table(path, table)


def _from_table(path: Path, table: pa.Table) -> SparseMap:
    if len(set(table.column_names)) != len(table.column_names):
        raise InputError(f"{path}: two columns have one name: {', '.join(table.column_names)}")
    names = _chosen(path, table.column_names)
    fragments, segments = (_from_column(path, name, table.column(name)) for name in names)
    return fragments, segments


def _from_column(path: Path, name: str, column: pa.ChunkedArray) -> Ids:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        raise InputError(f"{path}: column {name!r} lacks {column.null_count} values")
    if not pa.types.is_integer(column.type):
        return _unsigned(path, name, np.zeros(0, column.type.to_pandas_dtype()))
    return _unsigned(path, name, column.to_numpy())


# --- NumPy


def _read_npz(path: Path) -> SparseMap:
    try:
        with np.load(path, allow_pickle=False) as members:
            fragments, segments = (members[name] for name in _chosen(path, members.files))
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not a NumPy archive that can be read: {error}") from error
    if fragments.ndim != 1 or fragments.shape != segments.shape:
        raise ShapeError(
            f"{path}: arrays of {fragments.shape} and {segments.shape}; expected two of one length"
        )
    return _unsigned(path, "fragment", fragments), _unsigned(path, "segment", segments)


def _read_npy(path: Path) -> SparseMap:
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: not a NumPy array that can be read: {error}") from error
    if rows.dtype.names and rows.ndim == 1:
        return _columns(path, {name: rows[name] for name in rows.dtype.names})
    if rows.ndim != 2 or rows.shape[1] != 2:
        raise ShapeError(f"{path}: an array of {rows.shape}; expected (N, 2), fragment and segment")
    return _columns(path, {"fragment": rows[:, 0], "segment": rows[:, 1]})


# --- Text


def _read_text(path: Path) -> SparseMap:
    # Arrow reads plain tables ten times as fast; it knows no comments and tells no lines.
    return _read_plain_text(path) or _read_any_text(path)


def _read_plain_text(path: Path) -> SparseMap | None:
    """Two columns parted by commas or tabs, names in the first line or none; None if not so."""
    with path.open("rb") as file:
        first = file.readline(4096).strip()
    delimiter = next((d for d in (b",", b"\t") if first.count(d) == 1), None)
    if delimiter is None or not re.fullmatch(rb"\w+[,\t]\w+", first):
        return None
    named = not first[:1].isdigit()
    names = first.decode().split(delimiter.decode()) if named else ["fragment", "segment"]
    try:
        table = arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(column_names=names, skip_rows=int(named)),
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter.decode(), quote_char=False),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.uint64()), null_values=[]
            ),
        )
    except pa.ArrowException:
        return None  # the other reader names the line
    return _from_table(path, table)


def _read_any_text(path: Path) -> SparseMap:
    rows = list(_rows(path))
    if not rows:
        raise InputError(f"{path}: no rows; {_EXPECTED}")
    number, first = rows[0]
    at = (0, 1)
    if not any(re.match(r"[-+.]?[0-9]", cell) for cell in first):
        fragment, segment = _chosen(path, first)
        at = first.index(fragment), first.index(segment)
        del rows[0]
    elif len(first) != 2:
        raise InputError(f"{path}, line {number}: {len(first)} columns; {_EXPECTED}")
    fragments, segments = [], []
    for number, cells in rows:
        place = f"{path}, line {number}"
        if len(cells) != len(first):
            raise InputError(f"{place}: {len(cells)} columns, expected {len(first)}")
        fragments.append(_id(cells[at[0]], place))
        segments.append(_id(cells[at[1]], place))
    return np.array(fragments, np.uint64), np.array(segments, np.uint64)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line that is no comment."""
    delimiter: str | None = None
    seen = False
    for number, line in _lines(path, _EXPECTED):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not seen:
            delimiter, seen = next((d for d in ",;\t" if d in line), None), True
        if delimiter is None:
            yield number, line.split()
        else:
            cells = next(csv.reader([line], delimiter=delimiter))
            yield number, [cell.strip() for cell in cells]


def _lines(path: Path, expected: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line, whatever ends it."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected {expected}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no text; {expected}") from error
    yield from enumerate(re.split(r"\r\n|\r|\n", text), start=1)


def _id(text: str, place: str) -> int:
    """An id as it is written: never through a float."""
    if not _DIGITS.fullmatch(text):
        raise InputError(f"{place}: {text[:40]!r} is no id; expected an integer, 0 to 2^64 - 1")
    value = int(text, 16 if text[:2].lower() == "0x" else 10)
    if value >= _END:
        raise InputError(f"{place}: {text[:40]} is beyond 2^64 - 1, the largest id")
    return value


# --- JSON


def _read_json(path: Path) -> SparseMap:
    def pairs(found: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        return found  # a dict would keep the last of two equal keys

    try:
        rows = json.loads(path.read_bytes(), object_pairs_hook=pairs, parse_float=_Float)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, tuple) for row in rows):
        raise InputError(f"{path}: expected an object {{fragment: segment}}")
    columns = np.empty((2, len(rows)), np.uint64)
    for row, (fragment, segment) in enumerate(rows):
        place = f"{path}, fragment {fragment[:40]!r}"
        if isinstance(segment, bool | _Float) or not isinstance(segment, int | str):
            raise InputError(f"{place}: its segment is {segment!r}, expected an integer")
        columns[:, row] = _id(fragment, place), _id(str(segment), place)
    return columns[0], columns[1]


class _Float(str):
    """A number of a JSON file that is written as a float; its digits are kept for the message."""

    __slots__ = ()


_READERS: dict[str, Callable[[Path], SparseMap]] = {
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
    ".parquet": _read_parquet,
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".csv": _read_text,
    ".tsv": _read_text,
    ".txt": _read_text,
    ".json": _read_json,
}
