"""Short decimals read from bytes are the doubles that Python reads, or are left to others."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.number_rows import are_whole, parents_above, read_rows


def rows_of(text: str | bytes):
    data = text if isinstance(text, bytes) else text.encode()
    return read_rows(np.frombuffer(data, np.uint8), data.count(b"\n") + 1)


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def test_rows_become_columns():
    found = rows_of("1 2 3 4 5 6 -1\n# a comment\n\n 7\t8  9 10 11 12 1 \t\n")
    assert found.tolist() == [[1, 7], [2, 8], [3, 9], [4, 10], [5, 11], [6, 12], [-1, 1]]
    assert all(column.flags.c_contiguous for column in found)


ROW = "1 2 3 4 5 6 -1"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (f"{ROW}\r\n{ROW}\r\n", 2),
        (f"#\r\n{ROW}", 1),
        (f"\n\n{ROW}\n \n", 1),
        (f"# off set, o, OFF SET, oofff\n{ROW}", 1),
        (f"#\t~\n{ROW}\n#", 1),
        ("", None),
        ("\n \n", None),
        ("# only\n", None),
        (f"{ROW}\r{ROW}", None),
        (f"{ROW}\r", None),
        (f"# a\rb\n{ROW}", None),
        ("# a\r", None),
        (f"# Offset 1 2 3\n{ROW}", None),
        (f"# ooffset\n{ROW}", None),
        (f"{ROW}\n# last offset", None),
        (f"{ROW} # late", None),
        (f" # late\n{ROW}", None),
        (f"{ROW}#", None),
        (f"{ROW} 7", None),
        ("1 2 3 4 5 6", None),
        (f"1 2 3 4 5 6\n{ROW}", None),
        (f"{ROW}\n1", None),
        (f"\ufeff{ROW}", None),
        (f"# \u00b5m\n{ROW}", None),
        (f"# \x0b\n{ROW}", None),
        (f"{ROW}\x0b", None),
        (f"{ROW}\x00", None),
    ],
)
def test_what_is_unusual_is_left_to_others(text, rows):
    found = rows_of(text)
    assert (None if found is None else found.shape[1]) == rows


def test_more_rows_than_there_is_room_for_are_not_written():
    assert read_rows(np.frombuffer(f"{ROW}\n{ROW}".encode(), np.uint8), 1) is None


SHORT = ["0", "-0", "-0.0", "1.", ".5", "-.5", "007", "0.1", "1e22", "1e-22", "-2.5E+3", "3e0",
         "9007199254740992", "900719925474099.2", "123456789012345e-22", "1e-6"]  # fmt: skip
LEFT = ["", "-", ".", "-.", "e5", "1e", "1e+", "1e23", "1e-23", "9007199254740993", "+1", "--1",
        "1.2.3", "1-2", "1_0", "nan", "inf", "0x10", "1,5", "1e400", "1e99999999999999999999",
        "12345678901234567890123", "0.12345678901234567", "1d3"]  # fmt: skip


@pytest.mark.parametrize("token", SHORT)
def test_short_numbers_are_read_to_the_last_bit(token):
    found = rows_of(f"1 2 {token} 0 0 1 -1")
    assert bits(found[2, 0]) == bits(float(token))
    assert bits(rows_of(f"1 2 0 0 0 1 {token}\n")[6, 0]) == bits(float(token))


@pytest.mark.parametrize("token", LEFT)
def test_other_tokens_are_left_to_others(token):
    assert rows_of(f"1 2 {token} 0 0 1 -1") is None


@settings(deadline=None, derandomize=True, max_examples=500)
@given(st.integers(-(10**17), 10**17), st.integers(0, 25), st.integers(-25, 25), st.booleans())
def test_any_decimal_is_read_as_python_reads_it_or_not_at_all(number, places, power, raised):
    token = f"{abs(number):0{places + 1}d}"
    token = f"{'-' * (number < 0)}{token[: len(token) - places]}.{token[len(token) - places :]}"
    token += f"e{power}" * raised
    found = rows_of(f"1 2 {token} 0 0 1 -1")
    scale = (power if raised else 0) - places
    assert (found is not None) == (abs(number) <= 2**53 and abs(scale) <= 22)
    if found is not None:
        assert bits(found[2, 0]) == bits(float(token))


@pytest.mark.parametrize(
    ("ids", "parents", "rows"),
    [
        ([1, 2, 3], [-1, 1, 2], [-1, 0, 1]),
        ([0, 5, 9, 10], [-1, 0, 0, 9], [-1, 0, 0, 2]),
        ([3, 4, 7], [-1, -5, 4], [-1, -1, 1]),
        ([1, 2], [2, -1], None),
        ([1, 2], [-1, 2], None),
        ([2, 1], [-1, 2], None),
        ([1, 1], [-1, 1], None),
        ([1, 3], [-1, 2], None),
        ([1, 3], [0, 1], None),
        ([1, 3], [-1, 2.0**52], None),
        ([], [], []),
    ],
)
def test_parents_above_their_children(ids, parents, rows):
    found = parents_above(np.array(ids, float), np.array(parents, float))
    assert (None if found is None else found.tolist()) == rows


def test_whole_numbers():
    assert are_whole(np.array([0, -3, 2.0**53 - 1]))
    assert are_whole(np.zeros(0))
    for bad in (0.5, 2.0**53, -(2.0**53), np.nan, np.inf):
        assert not are_whole(np.array([1, bad]))
