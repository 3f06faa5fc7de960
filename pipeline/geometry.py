"""Boxes of voxels and the grids that cut a volume into them.

Axes are z, y, x; a `Roi` is half open. All numbers are integers in voxels of the working
resolution. The write ROIs of a grid are disjoint and cover the volume; a read ROI is the write ROI
grown by the halo and clipped to the volume:

      volume
    +----------------------------------+
    |        +-- read ---------+       |
    |        |  +-- write --+  |       |
    |        |  |  block i  |  |       |
    |        |  +-----------+  |       |
    |        +-----------------+       |
    +----------------------------------+

The last block along an axis shrinks to what is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from pipeline.errors import InputError, ShapeError

Triple = tuple[int, int, int]


def triple(values: object, name: str = "value") -> Triple:
    """Three integers as a tuple; anything else raises ShapeError naming `name`."""
    try:
        z, y, x = (int(v) for v in values)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{name}: expected three integers (z, y, x), got {values!r}") from error
    return z, y, x


@dataclass(frozen=True, order=True)
class Roi:
    """A half-open box: `offset` is its first voxel, `shape` its extent. Never empty."""

    offset: Triple
    shape: Triple

    def __post_init__(self) -> None:
        object.__setattr__(self, "offset", triple(self.offset, "Roi.offset"))
        object.__setattr__(self, "shape", triple(self.shape, "Roi.shape"))
        if min(self.shape) < 1:
            raise ShapeError(f"a Roi holds at least one voxel along each axis, got {self.shape}")

    @property
    def end(self) -> Triple:
        """The first voxel beyond the box, per axis."""
        return self.shift_of(self.offset, self.shape)

    @property
    def size(self) -> int:
        """Number of voxels."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the box in an array of the volume."""
        z, y, x = (slice(o, o + n) for o, n in zip(self.offset, self.shape, strict=True))
        return z, y, x

    @staticmethod
    def shift_of(point: Triple, by: Triple) -> Triple:
        """`point` moved by `by`."""
        return point[0] + by[0], point[1] + by[1], point[2] + by[2]

    @classmethod
    def between(cls, begin: Triple, end: Triple) -> Roi:
        """The box from `begin` up to, not including, `end`."""
        return cls(begin, (end[0] - begin[0], end[1] - begin[1], end[2] - begin[2]))

    def shift(self, by: Triple) -> Roi:
        """The same box moved by `by` voxels."""
        return Roi(self.shift_of(self.offset, by), self.shape)

    def relative_to(self, other: Roi) -> Roi:
        """This box in coordinates whose origin is the first voxel of `other`."""
        z, y, x = other.offset
        return self.shift((-z, -y, -x))

    def grow(self, lower: Triple, upper: Triple | None = None) -> Roi:
        """The box grown by `lower` voxels before it and `upper` (default: the same) after it."""
        after = lower if upper is None else upper
        begin = (self.offset[0] - lower[0], self.offset[1] - lower[1], self.offset[2] - lower[2])
        return Roi.between(begin, self.shift_of(self.end, after))

    def overlaps(self, other: Roi) -> bool:
        """Whether the boxes share a voxel."""
        pairs = zip(self.offset, self.end, other.offset, other.end, strict=True)
        return all(a0 < b1 and b0 < a1 for a0, a1, b0, b1 in pairs)

    def intersect(self, other: Roi) -> Roi:
        """The common box; boxes that share no voxel raise ShapeError."""
        if not self.overlaps(other):
            raise ShapeError(f"{self} and {other} share no voxel")
        begin = tuple(max(a, b) for a, b in zip(self.offset, other.offset, strict=True))
        end = tuple(min(a, b) for a, b in zip(self.end, other.end, strict=True))
        return Roi.between(triple(begin), triple(end))

    def contains(self, other: Roi) -> bool:
        """Whether `other` lies wholly inside."""
        pairs = zip(self.offset, self.end, other.offset, other.end, strict=True)
        return all(a0 <= b0 and b1 <= a1 for a0, a1, b0, b1 in pairs)

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{b}" for a, b in zip(self.offset, self.end, strict=True)) + "]"


def middle_part(roi: Roi, max_voxels: int) -> Roi:
    """The middle of a box, halved along its longest axis until it has at most `max_voxels` >= 1."""
    while roi.size > max_voxels:
        axis = roi.shape.index(max(roi.shape))
        offset, shape = list(roi.offset), list(roi.shape)
        offset[axis] += shape[axis] // 4
        shape[axis] -= shape[axis] // 2
        roi = Roi(triple(offset), triple(shape))
    return roi


@dataclass(frozen=True)
class Block:
    """One cell of a grid: `write` is what only this block may write, `read` what it may read."""

    index: int
    position: Triple
    write: Roi
    read: Roi

    @property
    def inner(self) -> Roi:
        """`write` in coordinates of `read`."""
        return self.write.relative_to(self.read)


@dataclass(frozen=True)
class BlockGrid:
    """Blocks of `block_shape` that tile the box `volume`; an integer names a block.

    `volume` is a Roi: the cells are anchored at its first voxel. A block larger than the volume is
    clipped to it. `halo_lower` and `halo_upper` are read beyond the write ROI, inside `bounds`
    (default: the volume itself).
    """

    volume: Roi
    block_shape: Triple
    halo_lower: Triple = (0, 0, 0)
    halo_upper: Triple = (0, 0, 0)
    bounds: Roi | None = None

    def __post_init__(self) -> None:
        shape = triple(self.block_shape, "block shape")
        if min(shape) < 1:
            raise ShapeError(f"block shape must be at least 1 along each axis, got {shape}")
        if min(*self.halo_lower, *self.halo_upper) < 0:
            raise ShapeError(f"halo must not be negative, got {self.halo_lower}, {self.halo_upper}")
        clipped = tuple(min(b, v) for b, v in zip(shape, self.volume.shape, strict=True))
        object.__setattr__(self, "block_shape", clipped)
        if self.bounds is not None and not self.bounds.contains(self.volume):
            raise ShapeError(f"grid over {self.volume} leaves its bounds {self.bounds}")

    @classmethod
    def over(cls, shape: Triple, block_shape: Triple, halo: Triple = (0, 0, 0)) -> BlockGrid:
        """A grid over a whole volume of `shape` with the same halo on both sides."""
        return cls(Roi((0, 0, 0), shape), block_shape, halo, halo)

    @property
    def cells(self) -> Triple:
        """Number of blocks per axis."""
        counts = zip(self.volume.shape, self.block_shape, strict=True)
        return triple(tuple(-(-v // b) for v, b in counts))

    @property
    def rounds(self) -> tuple[range, ...]:
        """All blocks in one: none needs another to be done before."""
        return (range(len(self)),)

    def __len__(self) -> int:
        z, y, x = self.cells
        return z * y * x

    def __getitem__(self, index: int) -> Block:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of a grid of {len(self)} blocks")
        _, ny, nx = self.cells
        return self.at((index // (ny * nx), index // nx % ny, index % nx))

    def __iter__(self) -> Iterator[Block]:
        return (self.at(triple(p)) for p in product(*map(range, self.cells)))

    def at(self, position: Triple) -> Block:
        """The block at a cell position (z, y, x)."""
        cells = self.cells
        if not all(0 <= p < n for p, n in zip(position, cells, strict=True)):
            raise IndexError(f"cell {position} of a grid of {cells} cells")
        index = (position[0] * cells[1] + position[1]) * cells[2] + position[2]
        steps = zip(self.volume.offset, position, self.block_shape, strict=True)
        cell = Roi(triple(tuple(o + p * b for o, p, b in steps)), self.block_shape)
        write = cell.intersect(self.volume)
        read = write.grow(self.halo_lower, self.halo_upper).intersect(self.bounds or self.volume)
        return Block(index, position, write, read)

    def overlapping(self, roi: Roi) -> Iterator[Block]:
        """The blocks whose write ROI shares a voxel with `roi`."""
        if not self.volume.overlaps(roi):
            return
        inside = roi.intersect(self.volume).relative_to(self.volume)
        spans = zip(inside.offset, inside.end, self.block_shape, strict=True)
        for position in product(*(range(a // b, -(-e // b)) for a, e, b in spans)):
            yield self.at(triple(position))

    def require_alignment(self, chunk_shape: Triple) -> None:
        """Refuse a grid of which two blocks would write into one chunk.

        Raises:
            InputError: a boundary between blocks cuts a chunk of `chunk_shape`.
        """
        spans = zip(self.volume.offset, self.block_shape, chunk_shape, self.cells, strict=True)
        for axis, (offset, block, chunk, cells) in enumerate(spans):
            if cells > 1 and (block % chunk or offset % chunk):
                raise InputError(
                    f"blocks of {self.block_shape} from {self.volume.offset} cut chunks of "
                    f"{chunk_shape} along axis {'zyx'[axis]}: two writers would share a chunk. "
                    f"Use a block that is a multiple of the chunk."
                )


def check_indexable(shape: Triple) -> None:
    """Refuse a volume whose edge ids (3 per voxel) do not fit a signed 64-bit integer."""
    if 3 * shape[0] * shape[1] * shape[2] >= 2**63:
        raise InputError(f"a volume of {shape} voxels has linear indices beyond 63 bits")
