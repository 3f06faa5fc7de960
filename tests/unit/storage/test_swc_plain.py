"""The fast reader of SWC text reads what the slow one reads, and leaves the rest to it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.storage.swc_plain import read_plain
from pipeline.storage.swc_rows import _from_table, _row_by_row, parse_swc

NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(10**6), 10**6).map(str),
    st.sampled_from(["1.", ".5", "+2", "-0", "1e3", "1E-3", "007", "1e400", "1d3", "0x10", "1,5"]),
    st.sampled_from(["nan", "inf", "NaN", "-inf", "", "_", "1_0", "abc", "1#2", "\uff11"]),
)
IDS = st.one_of(
    st.integers(-2, 12).map(str),
    st.sampled_from(["3.0", "2.5", str(2**53), str(2**53 + 1), "1e1", "-1.0"]),
)
BLANKS = st.sampled_from([" ", "  ", "\t", " \t ", "\x0b", "\xa0", "\u2028"])
LINES = st.sampled_from(["# a comment", "#OFFSET 1 2 3", " # late", "", "  ", "# offset is meant"])


@st.composite
def rows(draw: st.DrawFn) -> str:
    """A row, mostly well formed."""
    if draw(st.integers(0, 9)) == 0:
        return draw(LINES)
    values = [draw(IDS), "2", *(draw(NUMBERS) for _ in range(4)), draw(IDS)]
    values = values[: draw(st.sampled_from([7, 7, 7, 7, 6]))]
    if draw(st.integers(0, 9)) == 0:
        values.append(draw(st.sampled_from(["8", "# end"])))
    begin, end = (draw(st.sampled_from(["", "", " "])) for _ in range(2))
    return begin + draw(st.one_of(st.just(" "), BLANKS)).join(values) + end


def outcome(function, *arguments):
    try:
        found = function(*arguments)
    except InputError as error:
        return str(error)
    return [getattr(found, name).tolist() for name in ("types", "columns", "radii", "parents")]


@settings(deadline=None, derandomize=True, max_examples=400)
@given(st.lists(rows(), max_size=6), st.sampled_from(["\n", "\n", "\r\n", "\r"]), st.booleans())
def test_both_readers_agree(lines, line_end, closed):
    data = (line_end.join(lines) + line_end * closed).encode()
    slow = outcome(_row_by_row, data, "x.swc")
    assert repr(outcome(parse_swc, data, "x.swc")) == repr(slow)
    fast = _from_table(data)
    if fast is not None:
        assert isinstance(slow, list)
        assert fast.types.dtype == fast.parents.dtype == np.int64


def forest(rng, count):
    """Rows of a shuffled forest with ids that skip."""
    ids = np.cumsum(rng.integers(1, 4, count))
    parents = [-1 if i == 0 or rng.random() < 0.1 else ids[rng.integers(i)] for i in range(count)]
    places = rng.normal(0, 1e4, (count, 4))
    lines = [
        f"{i} 2 {x!r} {y:.3f} {z:e} {abs(r):.2f} {p}"
        for i, (x, y, z, r), p in zip(ids.tolist(), places.tolist(), parents, strict=True)
    ]
    return [lines[i] for i in rng.permutation(count)]


@pytest.mark.parametrize("seed", range(20))
def test_well_formed_files_take_the_fast_way(seed):
    rng = np.random.default_rng(seed)
    lines = ["# made by hand", *forest(rng, 60), "", "# the end"]
    data = "\n".join(lines).encode()
    assert _from_table(data) is not None
    assert repr(outcome(parse_swc, data, "x")) == repr(outcome(_row_by_row, data, "x"))


@pytest.mark.parametrize(
    "text",
    [
        "1 2 0 0 0 1 2\n2 2 0 0 0 1 1",
        "1 2 0 0 0 1 1",
        "1 2 0 0 0 1 -1\n1 2 0 0 0 1 -1",
        "1 2 0 0 0 1 9",
        "1 2 0 0 0 1 -1 7",
        "1 2 0 0 nan 1 -1",
        "-1 2 0 0 0 1 -1",
        "# OFFSET 1 2 3\n1 2 0 0 0 1 -1",
        "1 2 0 0 0 1 -1 # root",
        f"{2**53 + 1} 2 0 0 0 1 -1",
        "",
    ],
)
def test_the_unusual_and_the_wrong_go_row_by_row(text):
    assert _from_table(text.encode()) is None


def test_numbers_are_read_to_the_last_bit():
    table = read_plain(b"1 2 0.1 1e23 9007199254740993e-3 5e-324 -1\n")
    assert table is not None
    assert table[0].tolist() == [1, 2, 0.1, 1e23, 9007199254740993e-3, 5e-324, -1]
