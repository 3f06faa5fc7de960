"""The table of a comparison on the terminal: blocks of columns that fit, no figure cut off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.report.comparison_words import Entry, Figure, figures_of, verdict

_GAP = "  "
_MARKS = {"better": "+", "worse": "-", "unclear": "?", "": " "}
Column = list[str]


def table_blocks(table: Mapping[str, Any], width: int) -> Iterator[list[str]]:
    """Lines of each block of columns, at most `width` characters wide if one column fits.

    The first line of a block is its heading; then one for each row.
    """
    names = ["", *table["rows"]]
    first = [name.ljust(max(map(len, names))) for name in names]
    for columns in _packed(_columns(table), width - len(first[0])):
        yield [
            _GAP.join((name, *cells)).rstrip() for name, *cells in zip(first, *columns, strict=True)
        ]


def _packed(columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    """As many columns a block as fit."""
    block: list[Column] = []
    used = 0
    for column in columns:
        needed = len(_GAP) + len(column[0])
        if block and used + needed > width:
            yield block
            block, used = [], 0
        block.append(column)
        used += needed
    if block:
        yield block


def _columns(table: Mapping[str, Any]) -> list[Column]:
    """Cells of each column, its heading first, all of one width."""
    rows = table["rows"].items()
    columns = [
        [
            figure.name + " ",
            *(_cell(row["figures"][figure.key], figure, table["figures"]) for _, row in rows),
        ]
        for figure in figures_of(table)
    ]
    costs = [table["costs"]["losses"].get(name) for name, _ in rows]
    columns.append(["step", *("" if cost is None else f"x{cost['ratio']:.2f}" for cost in costs)])
    columns.append(
        ["MiB", *("" if c is None else f"{c['extra_bytes'] / 2**20:+.0f}" for c in costs)]
    )
    return [[cell.rjust(max(map(len, column))) for cell in column] for column in columns]


def _cell(entry: Entry, figure: Figure, better: Mapping[str, str]) -> str:
    if entry["mean"] is None:
        return "- "
    spread = "" if entry["sd"] is None else f"±{entry['sd']:.{figure.digits}f}"
    mark = _MARKS[verdict(entry, better[figure.key])]
    return f"{entry['mean']:.{figure.digits}f}{spread}{mark}"
