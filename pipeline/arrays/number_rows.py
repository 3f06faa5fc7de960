"""Rows of seven plain numbers, read straight from the bytes of a text.

Made for tracings, of which a file has ten thousand rows of short decimals. A number of at most
2^53, its point left out, times or by a power of ten of at most 10^22 is rounded once, so it is the
nearest double, as any other reader gives it. Longer numbers are left to others, as is any text that
has something unusual in it.

Source: exact short decimals, Clinger 1990, "How to read floating point numbers accurately".
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

_COLUMNS = 7
_EXACT = 2**53
_TENS = 10.0 ** np.arange(23)
_TAB, _NEWLINE, _RETURN, _BLANK, _HASH, _TILDE = b"\t\n\r #~"
_MINUS, _POINT, _ZERO, _PLUS, _E = b"-.0+e"
# Turns a capital letter into a small one.
_SMALL = 32
_OFFSET = np.frombuffer(b"offset", np.uint8)


def read_rows(text: NDArray[np.uint8], most: int) -> NDArray[np.float64] | None:
    """(7, N) the columns of the rows in the order of the text, or None if anything is unusual.

    Numbers stand apart by blanks and tabs; lines end in a line feed, with a carriage return before
    it or not. Empty lines are passed over, as are lines that begin with `#`. Unusual are: no row at
    all, rows of more or fewer than seven numbers, numbers of more than some 15 digits, a plus
    before a number, the word OFFSET in a comment, other characters.

    Args:
        text: (M,) uint8, ASCII.
        most: no fewer than there are rows.
    """
    rows = np.empty((_COLUMNS, most), np.float64)
    count = _read(np.ascontiguousarray(text), rows)
    return rows[:, :count] if count > 0 else None


def parents_above(
    ids: NDArray[np.float64], parents: NDArray[np.float64]
) -> NDArray[np.int64] | None:
    """(N,) int64, the row of each parent, -1 for a parent below 0; None if the rows are unusual.

    Usual are ids that increase from row to row, and parents that stand in a row above: such rows
    form trees.

    Args:
        ids: (N,) of the rows.
        parents: (N,) ids of the parents.
    """
    rows = np.empty(len(ids), np.int64)
    found = _resolve(np.ascontiguousarray(ids), np.ascontiguousarray(parents), rows)
    return rows if found else None


@njit(cache=True, nogil=True)
def _read(text: NDArray[np.uint8], rows: NDArray[np.float64]) -> int:
    """The number of rows, -1 if anything is unusual."""
    count = column = at = 0
    while at < len(text):
        letter = text[at]
        if letter in (_BLANK, _TAB):
            at += 1
        elif letter == _NEWLINE:
            if column != 0:
                if column != _COLUMNS:
                    return -1
                count += 1
                column = 0
            at += 1
        elif letter == _RETURN:
            at += 1
            if at == len(text) or text[at] != _NEWLINE:
                return -1
        elif letter == _HASH:
            if at > 0 and text[at - 1] != _NEWLINE:
                return -1
            at = _comment_end(text, at)
        else:
            if column == _COLUMNS or count == rows.shape[1]:
                return -1
            at, rows[column, count] = _number(text, at)
            column += 1
        if at < 0:
            return -1
    if column != 0:
        return count + 1 if column == _COLUMNS else -1
    return count


@njit(cache=True, nogil=True)
def _comment_end(text: NDArray[np.uint8], at: int) -> int:
    """Where the line ends, -1 if something unusual comes before."""
    matched = 0
    while at < len(text) and text[at] != _NEWLINE:
        letter = text[at]
        if letter == _RETURN:
            if at + 1 == len(text) or text[at + 1] != _NEWLINE:
                return -1
        elif letter > _TILDE or (letter < _BLANK and letter != _TAB):
            return -1
        # No letter of the word but its first is an "o": a match that breaks off begins anew.
        if letter | _SMALL == _OFFSET[matched]:
            matched += 1
        else:
            matched = 1 if letter | _SMALL == _OFFSET[0] else 0
        if matched == len(_OFFSET):
            return -1
        at += 1
    return at


@njit(cache=True, nogil=True)
def _number(text: NDArray[np.uint8], at: int) -> tuple[int, float]:
    """Where the number ends and what it is; -1 if it is none, or too long."""
    negative = text[at] == _MINUS
    at += negative
    digits, mantissa, power, past_point = 0, np.int64(0), 0, False
    while at < len(text):
        figure = np.int64(text[at]) - _ZERO
        if 0 <= figure <= 9:
            mantissa = 10 * mantissa + figure
            if mantissa > _EXACT:
                return -1, 0.0
            digits += 1
            power -= past_point
        elif text[at] == _POINT and not past_point:
            past_point = True
        else:
            break
        at += 1
    if digits == 0:
        return -1, 0.0
    if at < len(text) and text[at] | _SMALL == _E:
        at, exponent = _exponent(text, at + 1)
        power += exponent
    if at < 0 or abs(power) >= len(_TENS) or not _ends(text, at):
        return -1, 0.0
    value = mantissa * _TENS[power] if power >= 0 else mantissa / _TENS[-power]
    return at, -value if negative else value


@njit(cache=True, nogil=True)
def _exponent(text: NDArray[np.uint8], at: int) -> tuple[int, int]:
    negative = at < len(text) and text[at] == _MINUS
    if negative or (at < len(text) and text[at] == _PLUS):
        at += 1
    digits, value = 0, np.int64(0)
    while at < len(text) and 0 <= np.int64(text[at]) - _ZERO <= 9:
        if value < 10**6:
            value = 10 * value + np.int64(text[at]) - _ZERO
        digits += 1
        at += 1
    if digits == 0:
        return -1, 0
    return at, int(-value if negative else value)


@njit(cache=True, nogil=True)
def _ends(text: NDArray[np.uint8], at: int) -> bool:
    if at == len(text):
        return True
    letter = text[at]
    return letter in (_BLANK, _TAB, _NEWLINE, _RETURN)


@njit(cache=True, nogil=True)
def _resolve(
    ids: NDArray[np.float64], parents: NDArray[np.float64], rows: NDArray[np.int64]
) -> bool:
    for row in range(len(ids)):
        if row > 0 and ids[row] <= ids[row - 1]:
            return False
        if parents[row] < 0:
            rows[row] = -1
            continue
        # Ids seldom skip a number.
        guess = min(max(int(parents[row] - ids[0]), 0), row)
        if ids[guess] != parents[row]:
            guess = np.searchsorted(ids[:row], parents[row])
        if guess >= row or ids[guess] != parents[row]:
            return False
        rows[row] = guess
    return True


@njit(cache=True, nogil=True)
def are_whole(values: NDArray[np.float64]) -> bool:
    """Whether all values are integers below 2^53, beyond which doubles skip some."""
    whole = True
    for value in values:
        whole &= abs(value) < _EXACT and value == np.floor(value)
    return whole
