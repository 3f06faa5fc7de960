"""SWC text with nothing unusual in it, read as a table instead of row by row.

Whatever is unusual or wrong is left to the reader that goes row by row and can name the line. What
both read, they read alike, to the last bit.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

_NAMES = [f"column {i}" for i in range(7)]
_READ = csv.ReadOptions(column_names=_NAMES, use_threads=False)
_PARSE = csv.ParseOptions(delimiter=" ", quote_char=False, double_quote=False)
_CONVERT = csv.ConvertOptions(
    column_types=dict.fromkeys(_NAMES, pa.float64()), null_values=[], true_values=[],
    false_values=[],
)  # fmt: skip
# Beyond this, floats do not tell integers apart.
_EXACT = 2.0**53


def read_plain(data: bytes) -> NDArray[np.float64] | None:
    """(N, 7) the numbers of the rows in the order of the text, or None if anything is unusual.

    Unusual are: other characters than ASCII, carriage returns, a `#` anywhere but at the begin of
    a line, the word OFFSET, rows of more or fewer than seven numbers, numbers that are not finite,
    ids, types and parents that are no integers below 2^53, ids below 0.
    """
    body = _without_comments(data)
    if body is None or not body.strip():
        return None
    try:
        table = csv.read_csv(pa.py_buffer(_single_blanks(body)), _READ, _PARSE, _CONVERT)
    except pa.ArrowInvalid:
        return None
    rows = np.stack([column.to_numpy() for column in table.columns], axis=1)
    whole = rows[:, [0, 1, 6]]
    fine = np.isfinite(rows).all() and (np.abs(whole) < _EXACT).all()
    if not fine or (whole != np.floor(whole)).any() or (rows[:, 0] < 0).any():
        return None
    return rows


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
