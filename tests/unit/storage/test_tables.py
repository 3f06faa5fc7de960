import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.storage.tables import (
    part_numbers,
    read_arrays,
    read_meta,
    read_part,
    read_table,
    write_arrays,
    write_long_table,
    write_parts,
    write_table,
)


def test_columns_and_metadata_come_back(tmp_path):
    columns = {
        "id": np.array([1, 2**64 - 1], np.uint64),
        "flag": np.array([True, False]),
        "score": np.array([0.5, np.inf]),
    }
    write_table(tmp_path / "deep" / "t.arrow", columns, {"threshold": 0.5})
    again = read_table(tmp_path / "deep" / "t.arrow")
    assert list(again) == list(columns)
    for name, values in columns.items():
        assert again[name].dtype == values.dtype
        assert (again[name] == values).all()
    assert read_meta(tmp_path / "deep" / "t.arrow") == {"threshold": 0.5}


def test_arrays_keep_their_shapes(tmp_path):
    arrays = {
        "plane": np.arange(6, dtype=np.uint64).reshape(2, 3),
        "none": np.zeros((0, 3), np.int64),
        "flags": np.ones((2, 2), bool),
    }
    write_arrays(tmp_path / "a.arrow", arrays)
    for name, values in read_arrays(tmp_path / "a.arrow").items():
        assert values.dtype == arrays[name].dtype
        assert values.shape == arrays[name].shape
        assert (values == arrays[name]).all()


def test_empty_tables_are_tables(tmp_path):
    write_table(tmp_path / "t.arrow", {"id": np.zeros(0, np.uint64)})
    assert read_table(tmp_path / "t.arrow")["id"].dtype == np.uint64


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in "ab":
        write_table(tmp_path / name, {"id": np.arange(1000, dtype=np.uint64)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_torn_or_absent_table_is_named(tmp_path):
    path = tmp_path / "t.arrow"
    with pytest.raises(DataError, match=r"t\.arrow"):
        read_table(path)
    write_table(path, {"id": np.arange(1000, dtype=np.uint64)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="missing or damaged"):
        read_table(path)


def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path):
    """Every eleventh bit of a small file of each kind; a reader never dies of it."""
    rng = np.random.default_rng(0)
    path = tmp_path / "t.arrow"
    arrays = {"labels": rng.integers(0, 9, (3, 20)).astype(np.uint64), "on": rng.random(9) > 0.5}
    ids = np.arange(30, dtype=np.uint64)
    long = {"id": np.uint64, "target": np.uint64}
    for write, read in (
        (lambda: write_arrays(path, arrays), read_arrays),
        (lambda: write_table(path, {"id": ids, "target": ids}, {"threshold": 0.5}), read_table),
        (lambda: write_long_table(path, [{"id": ids, "target": ids}], long), read_table),
    ):
        write()
        good = path.read_bytes()
        expected = read(path)
        refused = 0
        for bit in range(0, 8 * len(good), 11):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bad)
            try:
                found = read(path)
            except DataError:
                refused += 1
                continue
            assert list(found) == list(expected)
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name])
        assert refused > 8 * len(good) / 11 / 4


def test_a_long_table_does_not_depend_on_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.storage.tables._BATCH_ROWS", 8)
    ids = np.arange(24, dtype=np.uint64)
    for name, cuts in (("a", []), ("b", [3, 8, 9, 23]), ("c", [0, 8, 16, 24])):
        parts = [{"id": part} for part in np.split(ids, cuts)]
        rows = write_long_table(tmp_path / name, parts, {"id": np.uint64}, {"x": 1})
        assert rows == 24
        np.testing.assert_array_equal(read_table(tmp_path / name)["id"], ids)
        assert (tmp_path / name).read_bytes() == (tmp_path / "a").read_bytes()
    assert read_meta(tmp_path / "a") == {"x": 1}
    assert write_long_table(tmp_path / "none", [], {"id": np.uint64}) == 0
    assert read_table(tmp_path / "none")["id"].dtype == np.uint64


def test_nothing_half_written_is_left(tmp_path):
    with pytest.raises(TypeError):
        write_table(tmp_path / "t.arrow", {"id": np.arange(3)}, {"bad": object()})
    assert list(tmp_path.iterdir()) == []


def parts_of_three():
    rng = np.random.default_rng(0)
    return {
        number: {
            "id": rng.integers(0, 2**64, count, np.uint64, endpoint=False),
            "place": rng.random((count, 3)),
            "flag": rng.random(count + 1) < 0.5,
        }
        for number, count in ((2, 5), (7, 0), (40, 9))
    }


def test_parts_are_read_one_by_one(tmp_path):
    path, parts = tmp_path / "p.arrow", parts_of_three()
    write_parts(path, list(parts), iter(parts.values()))
    assert part_numbers(path) == [2, 7, 40]
    for number, arrays in parts.items():
        found = read_part(path, number)
        assert list(found) == list(arrays)
        for name, values in arrays.items():
            assert found[name].dtype == values.dtype
            assert found[name].shape == values.shape
            assert (found[name] == values).all()
        assert list(read_part(path, number, ("place",))) == ["place"]
    with pytest.raises(DataError, match="no part 3, only"):
        read_part(path, 3)
    with pytest.raises(DataError, match="missing or damaged"):
        part_numbers(tmp_path / "absent.arrow")
    again = tmp_path / "q.arrow"
    write_parts(again, list(parts), parts.values())
    assert again.read_bytes() == path.read_bytes()


def test_parts_that_do_not_come_leave_nothing(tmp_path):
    parts = list(parts_of_three().values())
    with pytest.raises(ValueError, match="zip"):
        write_parts(tmp_path / "p.arrow", [1, 2, 3], parts[:2])

    def broken():
        yield parts[0]
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError):
        write_parts(tmp_path / "p.arrow", [1, 2], broken())
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_part_is_an_error(tmp_path):
    path, parts = tmp_path / "p.arrow", parts_of_three()
    write_parts(path, list(parts), parts.values())
    whole = path.read_bytes()
    noticed = 0
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            found = {number: read_part(path, number) for number in part_numbers(path)}
        except DataError:
            noticed += 1
            continue
        assert list(found) == list(parts)
        assert all((found[k][n] == v).all() for k in parts for n, v in parts[k].items())
    assert noticed > len(whole) // 7 // 2
    path.write_bytes(whole[:-40])
    with pytest.raises(DataError):
        read_part(path, 2)
