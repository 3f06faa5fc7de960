import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.storage.tables import read_arrays, read_meta, read_table, write_arrays, write_table


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


def test_nothing_half_written_is_left(tmp_path):
    with pytest.raises(TypeError):
        write_table(tmp_path / "t.arrow", {"id": np.arange(3)}, {"bad": object()})
    assert list(tmp_path.iterdir()) == []
