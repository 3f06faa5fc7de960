"""Trees of block groups, and work that is done in rounds.

A tree is a list of grids over one volume, fine to coarse; each cell holds whole cells of the grid
before, and the last grid has one cell:

    blocks            groups            root
    +-+-+-+-+         +---+---+         +-------+
    +-+-+-+-+   ->    |   |   |   ->    |       |
    +-+-+-+-+         +---+---+         |       |
    +-+-+-+-+         |   |   |         |       |
    +-+-+-+-+         +---+---+         +-------+

A reduction goes up the tree and comes down again. To the runner both are rounds of one stage: the
blocks of a round run in any order, and all of them before the next round begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.errors import ShapeError
from pipeline.geometry import Block, BlockGrid, Roi, Triple, triple


class Place(NamedTuple):
    """Which cell of which round a block of `Rounds` is."""

    round: int
    cell: Block


@dataclass(frozen=True)
class Rounds:
    """Grids that are worked off one after the other; an integer names a block of any of them."""

    grids: tuple[BlockGrid, ...]

    def __post_init__(self) -> None:
        if not self.grids or len({grid.volume for grid in self.grids}) != 1:
            raise ShapeError("rounds are one or more grids over one volume")

    @property
    def volume(self) -> Roi:
        """What the grids tile."""
        return self.grids[0].volume

    @property
    def block_shape(self) -> Triple:
        """Of the first round."""
        return self.grids[0].block_shape

    @property
    def rounds(self) -> tuple[range, ...]:
        """The blocks of each round."""
        found, first = [], 0
        for grid in self.grids:
            found.append(range(first, first + len(grid)))
            first += len(grid)
        return tuple(found)

    def __len__(self) -> int:
        return sum(len(grid) for grid in self.grids)

    def place(self, index: int) -> Place:
        """The round of a block, and its cell in the grid of that round."""
        for number, (grid, blocks) in enumerate(zip(self.grids, self.rounds, strict=True)):
            if index in blocks:
                return Place(number, grid[index - blocks.start])
        raise IndexError(f"block {index} of rounds of {len(self)} blocks")

    def __getitem__(self, index: int) -> Block:
        cell = self.place(index).cell
        return Block(index, cell.position, cell.write, cell.read)

    def __iter__(self) -> Iterator[Block]:
        return (self[index] for index in range(len(self)))


Grid = BlockGrid | Rounds
"""How a stage cuts its work."""


class Step(NamedTuple):
    """What a block of `BlockTree.rounds` does: reduce a cell of a level, or hand results down."""

    level: int
    cell: Block
    down: bool


@dataclass(frozen=True)
class BlockTree:
    """The tree over `blocks`: `levels` of groups, the finest first; the last one has one cell.

    Level -1 means the blocks.
    """

    blocks: BlockGrid
    levels: tuple[BlockGrid, ...]

    @classmethod
    def over(cls, blocks: BlockGrid, group: Triple, fan: int) -> BlockTree:
        """A tree over `blocks`.

        Args:
            blocks: the leaves.
            group: voxels of the finest groups, rounded up to whole blocks.
            fan: cells per axis of a level that make one of the next, at least 2.
        """
        if fan < 2:
            raise ShapeError(f"a tree needs a fan of at least 2, got {fan}")
        sides = zip(group, blocks.block_shape, strict=True)
        shape = triple(tuple(b * max(1, -(-g // b)) for g, b in sides))
        levels = [BlockGrid(blocks.volume, shape)]
        while len(levels[-1]) > 1:
            wider = triple(tuple(n * fan for n in levels[-1].block_shape))
            levels.append(BlockGrid(blocks.volume, wider))
        return cls(blocks, tuple(levels))

    @property
    def top(self) -> int:
        """The level of one cell."""
        return len(self.levels) - 1

    @property
    def rounds(self) -> Rounds:
        """Up, and down again; the top turns round in one step."""
        return Rounds((*self.levels, *reversed(self.levels[:-1])))

    def step(self, index: int) -> Step:
        """What a block of the rounds does."""
        number, cell = self.rounds.place(index)
        if number <= self.top:
            return Step(number, cell, down=False)
        return Step(2 * self.top - number, cell, down=True)

    def inside(self, level: int, roi: Roi) -> Iterator[Block]:
        """The cells of the level below, or the blocks, that make up a cell of `level`."""
        finer = self.blocks if level == 0 else self.levels[level - 1]
        return finer.overlapping(roi)

    def number(self, level: int, cell: Block) -> int:
        """A number of its own for each cell of all levels, to name files by."""
        return sum(len(grid) for grid in self.levels[:level]) + cell.index
