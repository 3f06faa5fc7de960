"""The text of an SWC file as checked rows, in the file's own unit and column order."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.number_rows import parents_above
from pipeline.errors import InputError
from pipeline.storage.swc_frame import added
from pipeline.storage.swc_plain import read_plain

_LINE_END = re.compile(r"\r\n|\r|\n")
_OFFSET = re.compile(r"#+\s*(OFFSET)\b[\s:=]*(.*)", re.IGNORECASE)
_STRANGE_BLANK = re.compile(r"[^\S\t ]")
_COLUMNS = "id type x y z radius parent"

# The seven columns and the number of the line.
_Row = tuple[int, int, float, float, float, float, int, int]


@dataclass(frozen=True, eq=False)
class SwcRows:
    """The nodes of one file, ascending by id: the order of the rows leaves no trace.

    Attributes:
        types: (N,) int64, structure type.
        columns: (N, 3) float64, columns 3 to 5 with the OFFSET header added.
        radii: (N,) float64, NaN where the file says so.
        parents: (N,) int64, row of the parent, -1 at a root.
    """

    types: NDArray[np.int64]
    columns: NDArray[np.float64]
    radii: NDArray[np.float64]
    parents: NDArray[np.int64]


def parse_swc(data: bytes, source: str) -> SwcRows:
    """Read the rows of an SWC file.

    Rows come in any order, comments (from `#` to the end of a line), blank lines, tabs, any line
    ends, a byte order mark and columns beyond the seventh are no trouble; a parent below 0 marks a
    root. A comment line `# OFFSET a b c` is added to the three coordinate columns, as they stand.

    Raises:
        InputError: naming `source` and the line: a row that is malformed or not numeric, an id
            twice, a parent that is missing, itself or a descendant, no row at all.
    """
    plain = _from_table(data)
    return _row_by_row(data, source) if plain is None else plain


def _from_table(data: bytes) -> SwcRows | None:
    """What is there if nothing is unusual or wrong, else None."""
    table = read_plain(data)
    if table is None:
        return None
    parents = parents_above(table[:, 0], table[:, 6])
    if parents is None:
        table = table[np.argsort(table[:, 0], kind="stable")]
        parents = _found_parents(table[:, 0], table[:, 6])
    if parents is None:
        return None
    types = table[:, 1].astype(np.int64)
    return SwcRows(types, np.ascontiguousarray(table[:, 2:5]), table[:, 5].copy(), parents)


def _found_parents(
    ids: NDArray[np.float64], above: NDArray[np.float64]
) -> NDArray[np.int64] | None:
    """The rows of the parents, ids ascending; None if an id is there twice, or no forest."""
    row = np.minimum(np.searchsorted(ids, above), len(ids) - 1)
    if (ids[1:] == ids[:-1]).any() or ((above >= 0) & (ids[row] != above)).any():
        return None
    parents = np.where(above < 0, -1, row)
    return None if _find_cycle(parents) >= 0 else parents


def _row_by_row(data: bytes, source: str) -> SwcRows:
    # Only comments hold other characters than ASCII, often in an older encoding.
    text = data.decode("utf-8-sig", errors="replace")
    rows: list[_Row] = []
    offset: tuple[float, float, float] | None = None
    for number, line in enumerate(_LINE_END.split(text), start=1):
        content, _, comment = line.partition("#")
        if content and not content.isspace():
            rows.append((*_parse_row(content, f"{source}, line {number}"), number))
        elif comment and (found := _parse_offset(line, f"{source}, line {number}")):
            if offset not in (None, found):
                raise InputError(f"{source}, line {number}: a second OFFSET {found}, not {offset}")
            offset = found
    if not rows:
        raise InputError(f"{source}: no nodes; expected rows of '{_COLUMNS}'")
    rows.sort()
    _check_ids(rows, source)
    _, types, x, y, z, radii, _, _ = zip(*rows, strict=True)
    moved = zip((x, y, z), offset or (0.0, 0.0, 0.0), strict=True)
    columns = np.stack([added(np.array(c, np.float64), by) for c, by in moved], axis=1)
    parents = _resolve_parents(rows, source)
    return SwcRows(np.array(types, np.int64), columns, np.array(radii), parents)


def _parse_row(content: str, place: str) -> tuple[int, int, float, float, float, float, int]:
    tokens = content.split()
    if len(tokens) < 7:
        raise InputError(f"{place}: {len(tokens)} columns, expected at least 7: '{_COLUMNS}'")
    try:
        # Python takes "_" for a thousands separator and every line separator of Unicode for a
        # blank: a row would swallow the next one as further columns.
        if "_" in content or _STRANGE_BLANK.search(content):
            raise ValueError(content)
        ident, kind, parent = _integer(tokens[0]), _integer(tokens[1]), _integer(tokens[6])
        x, y, z, radius = map(float, tokens[2:6])
    except ValueError as error:
        raise InputError(
            f"{place}: not the numbers '{_COLUMNS}' that an SWC row holds: {content.strip()[:80]!r}"
        ) from error
    if not (math.isfinite(x) and math.isfinite(y) and math.isfinite(z)):
        raise InputError(f"{place}: coordinates {x} {y} {z} are not finite")
    if math.isinf(radius):
        raise InputError(f"{place}: radius {radius} is not finite; write 0 if it is unknown")
    if ident < 0 or abs(kind) >= 2**63:
        raise InputError(f"{place}: id {ident}, type {kind}; expected an id of 0 or more")
    return ident, kind, x, y, z, radius, parent


def _integer(token: str) -> int:
    """An integer, also one written as 3.0; not through float, which is exact to 2^53 only."""
    try:
        return int(token)
    except ValueError:
        value = float(token)
        if not value.is_integer() or abs(value) >= 2**53:
            raise ValueError(token) from None
        return int(value)


def _parse_offset(line: str, place: str) -> tuple[float, float, float] | None:
    match = _OFFSET.match(line.strip())
    if match is None:
        return None
    try:
        x, y, z = map(float, re.split(r"[\s,]+", match[2].strip())[:3])
        if math.isfinite(x) and math.isfinite(y) and math.isfinite(z):
            return x, y, z
    except ValueError:
        if match[1] != "OFFSET":  # a sentence that begins with the word
            return None
    raise InputError(f"{place}: expected three numbers after OFFSET, got {match[2].strip()!r}")


def _check_ids(rows: list[_Row], source: str) -> None:
    for before, row in pairwise(rows):
        if before[0] == row[0]:
            first, second = sorted((before[7], row[7]))
            raise InputError(
                f"{source}, line {second}: id {row[0]} was used before, on line {first}"
            )


def _resolve_parents(rows: list[_Row], source: str) -> NDArray[np.int64]:
    row_of = {row[0]: i for i, row in enumerate(rows)}
    parents = np.full(len(rows), -1, np.int64)
    for i, (ident, _, _, _, _, _, parent, line) in enumerate(rows):
        if parent < 0:
            continue
        if parent == ident:
            raise InputError(f"{source}, line {line}: node {ident} is its own parent")
        if parent not in row_of:
            raise InputError(
                f"{source}, line {line}: node {ident} has parent {parent}, which no row defines; "
                f"a root has parent -1"
            )
        parents[i] = row_of[parent]
    ring = _find_cycle(parents)
    if ring >= 0:
        raise InputError(
            f"{source}, line {rows[ring][7]}: node {rows[ring][0]} is its own ancestor; "
            f"the parents must form trees"
        )
    return parents


def _find_cycle(parents: NDArray[np.int64]) -> int:
    """A row on a cycle, -1 if there is none: after N steps upwards only cycles are left."""
    end = len(parents)
    jump = np.append(np.where(parents < 0, end, parents), end)
    steps = 1
    while steps < end:
        jump = jump[jump]
        steps *= 2
    left = jump[jump < end]
    return int(left.min()) if len(left) else -1
