"""Plain tables for a terminal and a log, and the same figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table: the first column to the left, the others to the right."""
    cells = [list(header), *([_text(value) for value in row] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
    print(title)
    for number, row in enumerate(cells):
        first, *rest = (text.rjust(width) for text, width in zip(row, widths, strict=True))
        print("  " + "  ".join([row[0].ljust(len(first)), *rest]))
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))
    print(flush=True)


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def save(folder: Path, name: str, figures: dict[str, Any]) -> None:
    """Keep the figures of a benchmark as JSON beside its volumes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(figures, indent=1, default=str) + "\n")
    print(f"figures: {path}", flush=True)
