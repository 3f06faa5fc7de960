"""Lookups and lists of ids in the forms that users have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pipeline.arrays.relabel import apply_lookup
from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.storage.lookup_files import missing_ids, read_ids, read_lookup
from pipeline.storage.tables import write_long_table, write_table

TOP = 2**64 - 1
PAIRS = {5: 2, 9: TOP, 2**53 + 1: 2**53, TOP: 2}
FRAGMENTS, SEGMENTS = list(PAIRS), list(PAIRS.values())


def text(pairs: dict[int, int], delimiter: str = ",") -> str:
    return "".join(f"{a}{delimiter}{b}\n" for a, b in pairs.items())


def unsigned(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint64)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def assert_is(found: tuple[np.ndarray, np.ndarray], pairs: dict[int, int]) -> None:
    assert found[0].dtype == found[1].dtype == np.uint64
    assert found[0].tolist() == sorted(pairs)
    assert found[1].tolist() == [pairs[fragment] for fragment in sorted(pairs)]
    apply_lookup(found[0], *found)


def test_a_lookup_of_this_project(tmp_path: Path) -> None:
    columns = {"id": unsigned(FRAGMENTS), "target": unsigned(SEGMENTS)}
    write_long_table(tmp_path / "a.arrow", [columns], {"id": np.uint64, "target": np.uint64})
    assert_is(read_lookup(tmp_path / "a.arrow"), PAIRS)
    write_long_table(tmp_path / "none.arrow", [], {"id": np.uint64, "target": np.uint64})
    assert_is(read_lookup(tmp_path / "none.arrow"), {})
    data = bytearray((tmp_path / "a.arrow").read_bytes())
    data[len(data) // 3] ^= 1
    (tmp_path / "a.arrow").write_bytes(data)
    with pytest.raises((DataError, InputError), match=r"a\.arrow"):
        read_lookup(tmp_path / "a.arrow")


def test_sizes_of_segments_are_no_lookup(tmp_path: Path) -> None:
    """Two columns of integers too, in the same folder of a run."""
    write_table(tmp_path / "segments.arrow", {"id": unsigned([1]), "voxels": unsigned([7])})
    with pytest.raises(InputError, match=r"a table of id, voxels, no lookup.*id and target"):
        read_lookup(tmp_path / "segments.arrow")


@pytest.mark.parametrize("suffix", [".arrow", ".feather", ".parquet"])
@pytest.mark.parametrize(
    "names",
    [("fragment", "segment"), ("supervoxel", "root_id"), ("a", "b"), ("target", "x", "ID")],
)
def test_tables_of_others(tmp_path: Path, suffix: str, names: tuple[str, ...]) -> None:
    values = {name: unsigned(FRAGMENTS[::-1]) for name in names}
    values[names[1] if len(names) == 2 else "target"] = unsigned(SEGMENTS[::-1])
    table = pa.table(values)
    path = tmp_path / f"lookup{suffix}"
    if suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    assert_is(read_lookup(path), PAIRS)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"a": [1.0, 2.0], "b": [1, 2]}, DtypeError, "'a' holds double|'a' holds float64"),
        ({"a": ["1"], "b": [1]}, DtypeError, "'a' holds"),
        ({"a": [1], "b": [-1]}, InputError, "'b' holds -1"),
        ({"a": [1, None], "b": [1, 2]}, InputError, "'a' lacks 1 values"),
        ({"a": [1], "b": [1], "c": [1]}, InputError, "it has 'a', 'b', 'c'"),
        ({"a": [1]}, InputError, "it has 'a'"),
        ({"segment": [1], "b": [1]}, InputError, "it has 'segment', 'b'"),
        ({"fragment": [3, 3], "segment": [1, 2]}, InputError, "fragment 3 belongs to two segments"),
    ],
)
def test_tables_that_are_no_lookups(tmp_path: Path, values, error, message) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table(values), path)
    with pytest.raises(error, match=message) as caught:
        read_lookup(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("swapped", [False, True])
def test_arrays(tmp_path: Path, swapped: bool) -> None:
    fragments, segments = unsigned(FRAGMENTS), unsigned(SEGMENTS)
    order = [1, 0] if swapped else [0, 1]
    for names in (("fragments", "segments"), ("ids", "targets"), ("arr_0", "arr_1")):
        if swapped and names[0] == "arr_0":
            continue
        both = [(names[0], fragments), (names[1], segments)]
        np.savez(tmp_path / "a.npz", **dict(both[i] for i in order))
        assert_is(read_lookup(tmp_path / "a.npz"), PAIRS)
    np.save(tmp_path / "a.npy", np.stack([fragments, segments], axis=1))
    assert_is(read_lookup(tmp_path / "a.npy"), PAIRS)
    kinds = [("fragment", "<u8"), ("segment", ">u8")]
    rows = np.empty(len(PAIRS), [kinds[i] for i in order])
    rows["fragment"], rows["segment"] = fragments, segments
    np.save(tmp_path / "a.npy", rows)
    assert_is(read_lookup(tmp_path / "a.npy"), PAIRS)


def test_arrays_that_are_no_lookups(tmp_path: Path) -> None:
    def refused(values: np.ndarray, error: type[Exception], message: str) -> None:
        np.save(tmp_path / "a.npy", values, allow_pickle=True)
        with pytest.raises(error, match=message):
            read_lookup(tmp_path / "a.npy")

    refused(np.zeros(4, np.uint64), ShapeError, r"array of \(4,\); expected \(N, 2\)")
    refused(np.zeros((2, 5), np.uint64), ShapeError, r"\(2, 5\)")
    refused(np.zeros((3, 2)), DtypeError, "floats do not know")
    refused(np.zeros((3, 2), bool), DtypeError, "holds bool")
    refused(np.array([[1, -4]]), InputError, "holds -4")
    refused(np.array([[None, 1]]), InputError, "cannot|can't|Object arrays")
    np.savez(tmp_path / "a.npz", fragments=np.arange(3), segments=np.arange(4))
    with pytest.raises(ShapeError, match=r"\(3,\) and \(4,\)"):
        read_lookup(tmp_path / "a.npz")
    write(tmp_path / "a.npz", "text")
    with pytest.raises(InputError, match="not a NumPy archive"):
        read_lookup(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "content",
    [
        text(PAIRS),
        text(PAIRS, "\t"),
        text(PAIRS, ";"),
        text(PAIRS, "  "),
        text(PAIRS, " , "),
        text(PAIRS).replace("\n", "\r\n"),
        "\ufeff" + text(PAIRS),
        "fragment,segment\n" + text(PAIRS),
        "supervoxel\troot_id\n" + text(PAIRS, "\t"),
        '"fragment","segment"\n' + text(PAIRS).replace("9,", '"9",'),
        "segment,fragment\n" + "".join(f"{b},{a}\n" for a, b in PAIRS.items()),
        "size,fragment,segment\n" + "".join(f"1.5,{a},{b}\n" for a, b in PAIRS.items()),
        "# ids of both\n\n" + text(PAIRS).replace("9,", "  # note\n\n9,", 1),
        text(PAIRS).replace("5,2\n", "0x5,0X2\n", 1),
        text(PAIRS) + text(PAIRS),
        "0,0\n" + text(PAIRS).rstrip("\n"),
        "".join(sorted(text(PAIRS).splitlines(keepends=True))),
    ],
)
def test_forms_of_the_same_text(tmp_path: Path, content: str) -> None:
    for suffix in (".csv", ".tsv", ".txt"):
        assert_is(read_lookup(write(tmp_path / f"a{suffix}", content)), PAIRS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,2\n3,-4\n", "line 2: '-4' is no id"),
        ("1,2\n3,4.0\n", "line 2: '4.0' is no id"),
        ("1,2\n3,1e3\n", "line 2: '1e3' is no id"),
        ("1,2\n\n3,\n", "line 3: '' is no id"),
        ("1,2\nx,4\n", "line 2: 'x' is no id"),
        (f"1,2\n3,{2**64}\n", f"line 2: {2**64} is beyond"),
        ("1,2\n3,4,5\n", "line 2: 3 columns, expected 2"),
        ("1,2\n3\n", "line 2: 1 columns, expected 2"),
        ("1,2,3\n", "line 1: 3 columns"),
        ("1\n2\n", "line 1: 1 columns"),
        ("1,2\n1,3\n", "fragment 1 belongs to two segments, 2 and 3"),
        ("0,3\n", "fragment 0, the background, is given segment 3"),
        ("", "no rows"),
        ("# nothing\n", "no rows"),
        ("a,b,c\n1,2,3\n", "it has 'a', 'b', 'c'"),
        (b"\xff\xfe\x00", "no text"),
    ],
)
def test_texts_that_are_no_lookups(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path / "a.csv", content)
    with pytest.raises(InputError, match=message) as caught:
        read_lookup(path)
    assert str(path) in str(caught.value)


def test_a_text_with_names_and_no_rows_is_an_empty_lookup(tmp_path: Path) -> None:
    assert_is(read_lookup(write(tmp_path / "a.csv", "fragment,segment\n")), {})
    assert_is(read_lookup(write(tmp_path / "a.json", "{}")), {})


def test_json(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps(PAIRS))
    assert_is(read_lookup(path), PAIRS)
    write(path, json.dumps({str(a): str(b) for a, b in PAIRS.items()}))
    assert_is(read_lookup(path), PAIRS)
    for content, message in (
        ('{"1": 2, "1": 3}', "fragment 1 belongs to two segments"),
        ('{"1": 2.0}', r"fragment '1': its segment is '2\.0'"),
        ('{"1": true}', "its segment is True"),
        ('{"1": null}', "its segment is None"),
        ('{"1": {"2": 3}}', "its segment is"),
        ('{"1": -2}', "'-2' is no id"),
        ('{"x": 2}', "'x' is no id"),
        ('{"1": "2.5"}', "'2.5' is no id"),
        (f'{{"{2**64}": 2}}', "beyond"),
        ("[[1, 2]]", "expected an object"),
        ("3", "expected an object"),
        ("{", "cannot be read as JSON"),
    ):
        with pytest.raises(InputError, match=message):
            read_lookup(write(path, content))


def test_what_is_no_lookup_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_lookup(tmp_path / "absent.csv")
    with pytest.raises(InputError, match=r"expected a lookup as \.arrow.*got \.xlsx"):
        read_lookup(write(tmp_path / "a.xlsx", "x"))
    for suffix in (".arrow", ".parquet", ".npy"):
        with pytest.raises(InputError, match="can be read"):
            read_lookup(write(tmp_path / f"a{suffix}", "1,2\n"))


maps = st.dictionaries(st.integers(1, TOP), st.integers(0, TOP), max_size=20)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(maps, st.randoms(use_true_random=False))
def test_every_form_gives_the_same_lookup(tmp_path_factory, pairs, random) -> None:
    folder = tmp_path_factory.mktemp("forms")
    rows = list(pairs.items())
    random.shuffle(rows)
    fragments, segments = unsigned([a for a, _ in rows]), unsigned([b for _, b in rows])
    write(folder / "a.csv", "fragment,segment\n" + text(dict(rows)))
    write(folder / "a.txt", "fragment segment\n" + text(dict(rows), " "))
    write(folder / "a.json", json.dumps(dict(rows)))
    np.savez(folder / "a.npz", fragment=fragments, segment=segments)
    np.save(folder / "a.npy", np.stack([fragments, segments], axis=1))
    parquet.write_table(pa.table({"a": fragments, "b": segments}), folder / "a.parquet")
    for path in folder.iterdir():
        assert_is(read_lookup(path), pairs)


def test_missing_ids() -> None:
    lookup = unsigned([3, TOP]), unsigned([1, 1])
    labels = unsigned([[TOP, 0, 9], [3, 9, TOP - 1]])
    assert missing_ids(labels[:, ::2], lookup).tolist() == [9, TOP - 1]
    assert missing_ids(labels, lookup).tolist() == [9, TOP - 1]
    assert missing_ids(unsigned([3, 0]), lookup).tolist() == []
    assert missing_ids(labels[:0], lookup).tolist() == []
    nothing = unsigned([]), unsigned([])
    assert missing_ids(unsigned([0, 4, 4]), nothing).tolist() == [4]


def test_lists_of_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "ids.txt", f"\ufeff# glia\r\n{TOP}\r\n\r\n 7 # soma\n0xFF\n7\n0\n")
    found = read_ids(path)
    assert found.dtype == np.uint64
    assert found.tolist() == [0, 7, 255, TOP]
    assert read_ids(write(path, "# none\n")).tolist() == []
    assert read_ids(write(path, "")).dtype == np.uint64
    for content, message in (
        ("1\n2.0\n", "line 2: '2.0' is no id"),
        ("1\n\n-3\n", "line 3: '-3' is no id"),
        ("1 2\n", "line 1: '1 2' is no id"),
        (f"{2**64}\n", "line 1: .* beyond"),
        ("٣\n", "is no id"),
        (b"\xff\xfe1\x00", "no text"),
    ):
        with pytest.raises(InputError, match=message):
            read_ids(write(path, content))
    with pytest.raises(InputError, match="no such file"):
        read_ids(tmp_path / "absent.txt")
