"""Voxels by cell: the same as comparing them all, in the same order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays import cells as module
from pipeline.arrays.cells import nodes_by_cell, order_by_cell
from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import InputError, ShapeError
from pipeline.geometry import BlockGrid, Roi

GRID = BlockGrid(Roi((2, -3, 0), (5, 7, 9)), (2, 3, 4))


def holder(grid: BlockGrid, voxel) -> int | None:
    """The block that holds a voxel, found by asking each."""
    held = [b.index for b in grid if b.write.contains(Roi(tuple(voxel), (1, 1, 1)))]
    return held[0] if held else None


def test_by_hand():
    voxels = np.array([[6, 3, 8], [2, -3, 0], [3, -1, 3], [2, 0, 0], [2, -3, 0]])
    order, cells = order_by_cell(voxels, GRID)
    assert order.tolist() == [1, 2, 4, 3, 0]
    assert cells.index.tolist() == [0, 3, 26]
    assert cells.ranges() == {0: slice(0, 3), 3: slice(3, 4), 26: slice(4, 5)}


@pytest.mark.parametrize("many", [1 << 22, 0])
@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(*(st.floats(-5, 12),) * 3), max_size=25), st.integers(1, 4))
def test_nodes_as_each_block_would_find_them(many, places, pieces):
    before, module._MANY_CELLS = module._MANY_CELLS, many
    try:
        parts = np.array_split(np.array(places).reshape(-1, 3), pieces)
        number, voxels, cells = nodes_by_cell([Skeleton("a", part, []) for part in parts], GRID)
        order, again = order_by_cell(voxels, GRID)
    finally:
        module._MANY_CELLS = before
    everything = np.floor(np.array(places).reshape(-1, 3)).astype(int)
    expected: dict[int, list[int]] = {}
    for i, voxel in enumerate(everything):
        if (block := holder(GRID, voxel)) is not None:
            expected.setdefault(block, []).append(i)
    assert {k: number[rows].tolist() for k, rows in cells.ranges().items()} == expected
    assert list(cells.ranges()) == sorted(expected)
    assert voxels.tolist() == everything[number].tolist()
    assert order.tolist() == list(range(len(number)))
    assert again.ranges() == cells.ranges()


def test_strided_voxels_of_another_type():
    voxels = np.array([[6, 9, 3, 9, 8], [2, 9, -3, 9, 0]], np.int32)[:, ::2]
    assert order_by_cell(voxels, GRID)[0].tolist() == [1, 0]


@pytest.mark.parametrize("outside", [[7, 0, 0], [2, -4, 0], [2, 0, 9], [1, 0, 0]])
def test_a_voxel_outside_is_refused(outside):
    with pytest.raises(ShapeError, match="outside"):
        order_by_cell(np.array([[2, 0, 0], outside]), GRID)


def test_nothing_at_all():
    number, voxels, cells = nodes_by_cell([], GRID)
    assert (number.shape, voxels.shape, cells.ranges()) == ((0,), (0, 3), {})
    number, voxels, cells = nodes_by_cell([Skeleton("a", [[50, 0, 0]], [])], GRID)
    assert (number.shape, voxels.shape, cells.ranges()) == ((0,), (0, 3), {})


def test_nodes_without_a_voxel_are_refused():
    for bad in (np.nan, np.inf, 2.0**62):
        with pytest.raises(InputError, match="skeleton b: a coordinate is not finite"):
            nodes_by_cell([Skeleton("a", [[3, 0, 0]], []), Skeleton("b", [[3, bad, 0]], [])], GRID)
