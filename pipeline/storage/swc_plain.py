"""SWC text with nothing unusual in it, read as a table instead of row by row.

Short decimals are read by `number_rows`, others by Arrow. Whatever is unusual or wrong is left to
the reader that goes row by row and can name the line. What they read, they read alike, to the last
bit.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from pipeline.arrays.number_rows import are_whole, read_rows

_NAMES = [f"column {i}" for i in range(7)]
_READ = csv.ReadOptions(column_names=_NAMES, use_threads=False)
_PARSE = csv.ParseOptions(delimiter=" ", quote_char=False, double_quote=False)
_CONVERT = csv.ConvertOptions(
    column_types=dict.fromkeys(_NAMES, pa.float64()), null_values=[], true_values=[],
    false_values=[],
)  # fmt: skip


def read_plain(data: bytes) -> NDArray[np.float64] | None:
    """(N, 7) the numbers of the rows in the order of the text, or None if anything is unusual.

    Unusual are: other characters than ASCII, carriage returns that end no line, a `#` anywhere but
    at the begin of a line, the word OFFSET, rows of more or fewer than seven numbers, numbers that
    are not finite, ids, types and parents that are no integers below 2^53, ids below 0. Each column
    lies in one piece of memory.
    """
    columns = read_rows(np.frombuffer(data, np.uint8), data.count(b"\n") + 1)
    if columns is None:
        columns = _read_by_arrow(data)
    if columns is None or not all(are_whole(columns[i]) for i in (0, 1, 6)):
        return None
    return None if (columns[0] < 0).any() else columns.T


def _read_by_arrow(data: bytes) -> NDArray[np.float64] | None:
    """(7, N) as `read_rows` gives them, also of long numbers."""
    body = _without_comments(data)
    if body is None or not body.strip():
        return None
    try:
        table = csv.read_csv(pa.py_buffer(_single_blanks(body)), _READ, _PARSE, _CONVERT)
    except pa.ArrowInvalid:
        return None
    columns = np.stack([column.to_numpy() for column in table.columns])
    return columns if np.isfinite(columns).all() else None


def _without_comments(data: bytes) -> bytes | None:
    if not data.isascii() or any(letter in data for letter in b"\r\v\f\x1c\x1d\x1e\x1f"):
        return None
    if b"#" not in data:
        return data
    lines = data.split(b"\n")
    comments = [line for line in lines if line.startswith(b"#")]
    rows = b"\n".join(line for line in lines if not line.startswith(b"#"))
    unusual = b"#" in rows or any(b"OFFSET" in line.upper() for line in comments)
    return None if unusual else rows


def _single_blanks(body: bytes) -> bytes:
    if b"\t" in body or b"  " in body:
        body = re.sub(rb"[ \t]+", b" ", body)
    return body.strip().replace(b"\n ", b"\n").replace(b" \n", b"\n")
