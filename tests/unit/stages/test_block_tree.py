"""Trees of block groups: cells nest, and rounds visit each of them once up and once down."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ShapeError
from pipeline.geometry import BlockGrid, Roi
from pipeline.stages.block_tree import BlockTree, Rounds

shapes = st.tuples(*[st.integers(1, 20)] * 3)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(shapes, shapes, shapes, st.integers(2, 4))
def test_cells_nest_down_to_the_blocks(volume, block, group, fan):
    blocks = BlockGrid.over(volume, block)
    tree = BlockTree.over(blocks, group, fan)
    assert len(tree.levels[-1]) == 1
    assert all(len(grid) > 1 for grid in tree.levels[:-1])
    below = set(blocks)
    for level, grid in enumerate(tree.levels):
        found = []
        for cell in grid:
            parts = list(tree.inside(level, cell.write))
            assert all(cell.write.contains(part.write) for part in parts)
            assert sum(part.write.size for part in parts) == cell.write.size
            found += parts
        assert len(found) == len(below)
        assert set(found) == below
        below = set(grid)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(shapes, shapes, st.integers(2, 4))
def test_rounds_go_up_and_down_again(volume, block, fan):
    tree = BlockTree.over(BlockGrid.over(volume, block), (1, 1, 1), fan)
    rounds = tree.rounds
    steps = [tree.step(index) for index in range(len(rounds))]
    up = [(s.level, s.cell) for s in steps if not s.down]
    down = [(s.level, s.cell) for s in steps if s.down]
    cells = [(level, cell) for level, grid in enumerate(tree.levels) for cell in grid]
    assert up == cells
    assert sorted(down, key=lambda s: (s[0], s[1].index)) == cells[:-1]
    assert [s.level for s in steps if s.down] == sorted([s[0] for s in down], reverse=True)
    numbers = [tree.number(level, cell) for level, cell in cells]
    assert len(set(numbers)) == len(cells)


def test_a_volume_within_a_group_is_one_step():
    tree = BlockTree.over(BlockGrid.over((30, 40, 50), (7, 9, 50)), (64, 64, 64), 2)
    assert len(tree.rounds) == 1
    assert tree.step(0).cell.write == Roi((0, 0, 0), (30, 40, 50))
    assert not tree.step(0).down


def test_groups_are_whole_blocks():
    tree = BlockTree.over(BlockGrid.over((60, 60, 60), (7, 9, 60)), (10, 10, 10), 2)
    assert tree.levels[0].block_shape == (14, 18, 60)


def test_rounds_number_their_blocks_through():
    first, second = BlockGrid.over((4, 4, 4), (2, 2, 2)), BlockGrid.over((4, 4, 4), (4, 4, 2))
    rounds = Rounds((first, second))
    assert rounds.rounds == (range(8), range(8, 10))
    assert [block.index for block in rounds] == list(range(10))
    assert rounds[9].write == second[1].write
    assert rounds.place(9) == (1, second[1])
    with pytest.raises(IndexError):
        rounds.place(10)


def test_what_is_no_tree_is_refused():
    with pytest.raises(ShapeError, match="fan of at least 2"):
        BlockTree.over(BlockGrid.over((4, 4, 4), (2, 2, 2)), (1, 1, 1), 1)
    with pytest.raises(ShapeError, match="over one volume"):
        Rounds((BlockGrid.over((4, 4, 4), (2, 2, 2)), BlockGrid.over((5, 4, 4), (2, 2, 2))))
