"""The table of segments: CSV for spreadsheets, Parquet for programs, ordered by segment.

Buckets of segments are summarised at the same time, each into a part of its own; the parts are
merged at the end. Merging holds a few rows of every part, never a whole table. Columns and units
are those of `pipeline.arrays.skeleton_summary`: cable and radii in nanometres, boxes in voxels.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.arrays.skeleton_summary import SUMMARY_TYPES
from pipeline.errors import DataError, ShapeError
from pipeline.storage.atomic import replacing

Columns = dict[str, NDArray[Any]]

# Rows of a part that are read at once: 1,024 parts of 14 columns take 117 MB in merging.
_PART_ROWS = 1024
# Rows of a group of the merged table, however the parts were cut.
_GROUP_ROWS = 2**16
_SCHEMA = pa.schema(
    [(name, pa.from_numpy_dtype(np.dtype(kind))) for name, kind in SUMMARY_TYPES.items()]
)


def write_part(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write the rows of one bucket, ordered by segment; equal rows give equal bytes.

    Args:
        path: of the part, replaced if it exists.
        columns: as `summarise_skeletons` gives them, rows in any order.

    Raises:
        ShapeError: a column is missing, unknown or of another length.
        DataError: a segment comes twice.
    """
    sizes = {name: len(values) for name, values in columns.items()}
    if set(sizes) != set(SUMMARY_TYPES) or len(set(sizes.values())) > 1:
        raise ShapeError(
            f"{path}: expected columns of one length, {', '.join(SUMMARY_TYPES)}; got {sizes}"
        )
    order = np.argsort(columns["segment"], kind="stable")
    rows = {name: np.asarray(columns[name], kind)[order] for name, kind in SUMMARY_TYPES.items()}
    twice = np.flatnonzero(np.diff(rows["segment"].astype(np.uint64)) == 0)
    if len(twice):
        raise DataError(f"{path}: segment {rows['segment'][twice[0]]} comes twice")
    with replacing(path) as temporary:
        pq.write_table(
            pa.table(rows, schema=_SCHEMA),
            temporary,
            row_group_size=_PART_ROWS,
            write_page_checksum=True,
        )


def write_segment_table(csv_path: Path, parquet_path: Path, parts: Sequence[Path]) -> int:
    """Merge parts into both tables, ordered by segment; gives the number of rows.

    The bytes depend on the rows alone, not on how they are shared out among the parts.

    Args:
        csv_path: with a line of names; numbers such that they read back equal.
        parquet_path: the same columns.
        parts: files of `write_part`; none gives tables without rows.

    Raises:
        DataError: a part is missing or damaged, or a segment is in two parts.
    """
    rows = 0
    with (
        replacing(csv_path) as text_path,
        replacing(parquet_path) as binary_path,
        text_path.open("w", newline="", encoding="utf-8") as text,
        pq.ParquetWriter(binary_path, _SCHEMA) as binary,
    ):
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(SUMMARY_TYPES)
        for batch in _even(_merged(parts)):
            lines.writerows(zip(*(batch[name].tolist() for name in SUMMARY_TYPES), strict=True))
            binary.write_table(pa.table(batch, schema=_SCHEMA), row_group_size=_GROUP_ROWS)
            rows += len(batch["segment"])
    return rows


def read_segment_table(path: Path) -> Columns:
    """The columns of a Parquet table or part.

    Raises:
        DataError: it is missing or damaged.
    """
    part = _Part(path)
    return _joined([part.rows(), *_rest(part)])


def _rest(part: _Part) -> Iterator[Columns]:
    while part.more:
        part.fill()
        yield part.rows()


@dataclass
class _Part:
    """A part of which some rows are in memory; its file is open only while it is read.

    Attributes:
        path: of the file.
        held: the rows in memory, not yet taken.
        groups: number of groups of rows in the file.
        taken: groups read so far.
    """

    path: Path
    held: Columns = field(default_factory=dict)
    groups: int = 1
    taken: int = 0

    def __post_init__(self) -> None:
        self.fill()

    @property
    def more(self) -> bool:
        """Whether rows are left in the file."""
        return self.taken < self.groups

    def fill(self) -> None:
        """Read the next group of rows in place of those held."""
        try:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                self.groups = file.num_row_groups
                table = file.read_row_group(self.taken) if self.groups else file.read()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path}: missing or damaged part of a table: {error}") from error
        if not table.schema.equals(_SCHEMA):
            raise DataError(f"{self.path}: no table of segments, or a damaged one: {table.schema}")
        self.taken += 1
        self.held = {name: table.column(name).to_numpy() for name in SUMMARY_TYPES}

    def rows(self) -> Columns:
        """The rows held."""
        return self.held

    def take(self, last: np.uint64) -> Columns:
        """Take the rows held up to the segment `last`."""
        count = int(np.searchsorted(self.held["segment"], last, side="right"))
        taken = {name: values[:count] for name, values in self.held.items()}
        self.held = {name: values[count:] for name, values in self.held.items()}
        return taken


def _merged(paths: Sequence[Path]) -> Iterator[Columns]:
    """All rows ordered by segment.

    Every part ascends, so up to the smallest of the last segments held, nothing can come any more
    from a file.
    """
    parts = [_Part(path) for path in paths]
    while parts:
        open_ends = [part.held["segment"][-1] for part in parts if part.more]
        last = min(open_ends, default=np.uint64(2**64 - 1))
        rows = _joined([part.take(last) for part in parts])
        order = np.argsort(rows["segment"], kind="stable")
        rows = {name: values[order] for name, values in rows.items()}
        twice = np.flatnonzero(rows["segment"][1:] == rows["segment"][:-1])
        if len(twice):
            raise DataError(
                f"segment {rows['segment'][twice[0]]} is in two of the parts beside {paths[0]}; "
                f"a segment belongs to one bucket"
            )
        yield rows
        for part in parts:
            if part.more and not len(part.held["segment"]):
                part.fill()
        parts = [part for part in parts if part.more or len(part.held["segment"])]


def _even(parts: Iterator[Columns]) -> Iterator[Columns]:
    """The same rows in batches of `_GROUP_ROWS`, the last one shorter; none without rows."""
    held: list[Columns] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part["segment"])
        while count >= _GROUP_ROWS:
            rows = _joined(held)
            yield {name: values[:_GROUP_ROWS] for name, values in rows.items()}
            held = [{name: values[_GROUP_ROWS:] for name, values in rows.items()}]
            count -= _GROUP_ROWS
    if count:
        yield _joined(held)


def _joined(parts: Sequence[Columns]) -> Columns:
    return {
        name: np.concatenate([np.zeros(0, kind), *(part[name] for part in parts)])
        for name, kind in SUMMARY_TYPES.items()
    }
