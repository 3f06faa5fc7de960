"""The table of segments: parts of buckets merged into CSV and Parquet."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.arrays.skeleton_summary import SUMMARY_TYPES
from pipeline.errors import DataError, ShapeError
from pipeline.storage import skeleton_table
from pipeline.storage.skeleton_table import read_segment_table, write_part, write_segment_table


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skeleton_table, "_PART_ROWS", 3)
    monkeypatch.setattr(skeleton_table, "_GROUP_ROWS", 7)


def table(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    ids = np.sort(rng.choice(np.arange(1, 10 * count + 1), count, replace=False))
    columns = {"segment": ids.astype(np.uint64) + np.uint64(2**63)}
    for name, kind in list(SUMMARY_TYPES.items())[1:]:
        drawn = rng.random(count) * 1e5
        columns[name] = drawn if kind is np.float64 else drawn.astype(kind)
    columns["cable_nm"][: count // 2] = np.floor(columns["cable_nm"][: count // 2])
    return columns


def parts(folder: Path, columns: dict[str, np.ndarray], share: np.ndarray) -> list[Path]:
    """One part per value of `share`, rows in no order."""
    folder.mkdir()
    paths = []
    for bucket in range(int(share.max(initial=-1)) + 1):
        rows = np.random.default_rng(bucket).permutation(np.flatnonzero(share == bucket))
        paths.append(folder / f"{bucket}.parquet")
        write_part(paths[-1], {name: values[rows] for name, values in columns.items()})
    return paths


def merged(folder: Path, paths: list[Path]) -> tuple[bytes, bytes]:
    rows = write_segment_table(folder / "s.csv", folder / "s.parquet", paths)
    assert pq.read_metadata(folder / "s.parquet").num_rows == rows
    return (folder / "s.csv").read_bytes(), (folder / "s.parquet").read_bytes()


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 50])
def test_however_it_is_shared_out(tmp_path: Path, count: int) -> None:
    columns = table(count)
    rng = np.random.default_rng(0)
    shares = {
        "one": np.zeros(count, int),
        "random": rng.integers(0, 5, count),
        "runs": np.arange(count) // 9,
        "mostly_empty": np.full(count, 4),
    }
    written = {
        name: merged(tmp_path, parts(tmp_path / name, columns, share))
        for name, share in shares.items()
    }
    assert len(set(written.values())) == 1
    found = read_segment_table(tmp_path / "s.parquet")
    assert list(found) == list(SUMMARY_TYPES)
    for name, values in found.items():
        assert values.dtype == SUMMARY_TYPES[name]
        assert values.tolist() == columns[name].tolist()
    with (tmp_path / "s.csv").open(newline="") as file:
        names, *rows = csv.reader(file)
    assert names == list(SUMMARY_TYPES)
    assert len(rows) == count
    for row, texts in enumerate(rows):
        for name, text in zip(names, texts, strict=True):
            assert (float if name.endswith("_nm") else int)(text) == columns[name][row]


def test_no_parts_at_all(tmp_path: Path) -> None:
    text, _ = merged(tmp_path, [])
    assert text.decode() == ",".join(SUMMARY_TYPES) + "\n"
    assert len(read_segment_table(tmp_path / "s.parquet")["segment"]) == 0


def test_a_segment_of_two_buckets(tmp_path: Path) -> None:
    columns = table(10)
    paths = parts(tmp_path / "p", columns, np.arange(10) % 2)
    write_part(tmp_path / "more", {name: values[5:6] for name, values in columns.items()})
    before = merged(tmp_path, paths)
    with pytest.raises(DataError, match=f"segment {columns['segment'][5]} is in two"):
        write_segment_table(tmp_path / "s.csv", tmp_path / "s.parquet", [*paths, tmp_path / "more"])
    # The tables of before are whole.
    assert before == ((tmp_path / "s.csv").read_bytes(), (tmp_path / "s.parquet").read_bytes())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["more", "p", "s.csv", "s.parquet"]


def test_damaged_parts_are_named(tmp_path: Path) -> None:
    (path,) = parts(tmp_path / "p", table(20), np.zeros(20, int))
    whole = path.read_bytes()
    at = whole.index(np.sort(table(20)["segment"])[:1].tobytes()[:1], 4)
    for damaged in (whole[:-20], b"", whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"0\.parquet: missing or damaged"):
            merged(tmp_path, [path])
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        read_segment_table(path)


def test_refusals(tmp_path: Path) -> None:
    columns = table(4)
    with pytest.raises(ShapeError, match="expected columns of one length, segment, nodes"):
        write_part(tmp_path / "a", {**columns, "nodes": columns["nodes"][:2]})
    with pytest.raises(ShapeError, match="expected columns"):
        write_part(tmp_path / "a", {"segment": columns["segment"]})
    columns["segment"][2] = columns["segment"][0]
    with pytest.raises(DataError, match=f"segment {columns['segment'][0]} comes twice"):
        write_part(tmp_path / "a", columns)
    assert list(tmp_path.iterdir()) == []
