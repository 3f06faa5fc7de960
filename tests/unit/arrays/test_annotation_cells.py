"""Levels of a spatial index: every annotation once, in the cells that it crosses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.annotation_cells import crossed_cells, spread_over_levels

LOW, HIGH = np.array([-3.0, 0.0, 0.0]), np.array([61.0, 100.0, 7.0])
UNIT = np.array([1.0, 1.0, 4.0])


def pairs(ends: np.ndarray, size: list[float], grid: list[int]) -> set[tuple[int, int]]:
    found = crossed_cells(ends, np.zeros(3), np.array(size), np.array(grid))
    assert (np.diff(found[0]) >= 0).all()
    assert len(set(zip(*found, strict=True))) == len(found[0])
    return set(zip(found[0].tolist(), found[1].tolist(), strict=True))


def test_cells_of_points_and_lines_by_hand():
    points = np.array([[[0.0, 0, 0]], [[1.5, 3.9, 0]], [[1.0, 2.0, 0.5]]])
    assert pairs(points, [1, 2, 1], [2, 2, 1]) == {(0, 0), (1, 3), (2, 3)}
    # Through cells (0, 0), (0, 1), (1, 1) of a 2 by 2 grid, not through (1, 0).
    line = np.array([[[0.5, 0.6, 0], [1.4, 1.5, 0]]])
    assert pairs(line, [1, 1, 1], [2, 2, 1]) == {(0, 0), (0, 1), (0, 3)}
    assert pairs(line[:, ::-1], [1, 1, 1], [2, 2, 1]) == {(0, 0), (0, 1), (0, 3)}
    along = np.array([[[0.5, 0.5, 3.5], [0.5, 0.5, 0.5]]])
    assert pairs(along, [1, 1, 1], [1, 1, 4]) == {(0, 0), (0, 1), (0, 2), (0, 3)}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_a_line_crosses_the_cells_that_its_points_lie_in(seed):
    rng = np.random.default_rng(seed)
    grid = rng.integers(1, 9, 3)
    size = rng.uniform(0.5, 3, 3)
    ends = rng.uniform(0, 1, (4, 2, 3)) * grid * size * rng.choice([1.0, 0.3])
    ends[1, 1, 0] = ends[1, 0, 0]
    found = pairs(ends, size, grid)
    sampled = set()
    for i, (a, b) in enumerate(ends):
        for share in np.linspace(0, 1, 2001):
            cell = np.minimum(((a + (b - a) * share) / size).astype(int), grid - 1)
            sampled.add((i, int(np.ravel_multi_index(cell, grid))))
    assert sampled <= found
    for i, cell in found - sampled:  # so short a part that no sample lies in it
        corner = np.array(np.unravel_index(cell, grid)) * size
        a, b = ends[i]
        with np.errstate(divide="ignore", invalid="ignore"):
            first, second = (corner - a) / (b - a), (corner + size - a) / (b - a)
        flat = a == b
        enter = np.where(flat, 0, np.minimum(first, second)).max()
        leave = np.where(flat, 1, np.maximum(first, second)).min()
        assert max(enter, 0) <= min(leave, 1) + 1e-9
        assert min(leave, 1) - max(enter, 0) < 1 / 1000


def draw(seed: int, count: int, ends: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centre = LOW + rng.uniform(0.1, 0.9, (count, 1, 3)) * (HIGH - LOW)
    centre[: count // 3] = LOW + 0.25 * (HIGH - LOW)  # a crowd
    found = centre + rng.normal(0, 0.5, (count, ends, 3))
    return np.clip(found, LOW, HIGH - 0.01)


@pytest.mark.parametrize("ends", [1, 2])
@pytest.mark.parametrize("limit", [1, 10, 1000])
def test_levels_follow_the_format(ends, limit):
    places = draw(1, 400, ends)
    levels = spread_over_levels(places, LOW, HIGH, UNIT, limit)
    assert levels[0].grid.tolist() == [1, 1, 1]
    shown: list[set[int]] = []
    for number, level in enumerate(levels):
        np.testing.assert_allclose(level.grid * level.cell_size, HIGH - LOW)
        if number:
            ratio = level.grid / levels[number - 1].grid
            assert set(ratio.tolist()) <= {1.0, 2.0}
            assert (ratio == 2).any()
            longest = levels[number - 1].cell_size * UNIT
            assert ratio[longest.argmax()] == 2
        counts = [len(rows) for rows in level.rows]
        if level is not levels[-1]:
            assert max(counts) == limit
        rows = np.concatenate(level.rows)
        shown.append(set(rows.tolist()))
        at, cell = crossed_cells(places[sorted(shown[-1])], LOW, level.cell_size, level.grid)
        names = np.ravel_multi_index(level.cells.T, level.grid)
        assert (np.diff(names) > 0).all()
        wanted = set(zip(np.array(sorted(shown[-1]))[at].tolist(), cell.tolist(), strict=True))
        got = {(int(r), int(n)) for n, part in zip(names, level.rows, strict=True) for r in part}
        assert got == wanted
    assert sum(map(len, shown)) == 400
    assert set().union(*shown) == set(range(400))
    again = spread_over_levels(places, LOW, HIGH, UNIT, limit)
    assert [np.concatenate(a.rows).tolist() for a in again] == [
        np.concatenate(b.rows).tolist() for b in levels
    ]
    if limit == 1000:
        assert len(levels) == 1


def test_a_level_is_a_fair_sample():
    places = draw(2, 3000, 1)
    level = spread_over_levels(places, LOW, HIGH, UNIT, 600)[0]
    (rows,) = level.rows
    assert 150 < (rows < 1000).sum() < 250  # the crowd is a third of all


def test_no_annotations_and_a_crowd_in_one_place():
    (level,) = spread_over_levels(np.zeros((0, 1, 3)), LOW, HIGH, UNIT, 5)
    assert (level.grid.tolist(), level.cells.tolist(), level.rows) == ([1, 1, 1], [], [])
    levels = spread_over_levels(np.full((100, 1, 3), 5.0), LOW, HIGH, UNIT, 10)
    assert [len(level.rows) for level in levels] == [1] * len(levels)
    assert [len(level.rows[0]) for level in levels[:-1]] == [10] * (len(levels) - 1)
    assert len(levels[-1].rows[0]) == 100 - 10 * (len(levels) - 1) > 10
    assert (levels[-1].cell_size <= 16).all()
