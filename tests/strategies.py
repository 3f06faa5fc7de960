"""Hypothesis strategies for property tests: shapes, blockings, affinities, edge tables."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.arrays.edges import EdgeTable
from pipeline.geometry import Triple


def shapes(max_side: int = 7, min_side: int = 1) -> st.SearchStrategy[Triple]:
    """Extents (z, y, x), down to one voxel thick."""
    side = st.integers(min_side, max_side)
    return st.tuples(side, side, side)


def block_shapes(volume: Triple) -> st.SearchStrategy[Triple]:
    """Block extents for a volume: one block, even, not divisible and pencils all occur."""
    z, y, x = (st.integers(1, n) for n in volume)
    return st.tuples(z, y, x)


@st.composite
def affinities(
    draw: st.DrawFn, shape: Triple, dtypes: tuple[type, ...] = (np.uint8, np.uint16)
) -> NDArray:
    """(3, Z, Y, X) with many ties: few distinct values, and sometimes smooth plateaus.

    The first planes, which must be ignored, hold values like all others.
    """
    dtype = draw(st.sampled_from(dtypes))
    top = int(np.iinfo(dtype).max)
    values = st.one_of(st.just(0), st.just(top), st.integers(0, top))
    palette = np.array(draw(st.lists(values, min_size=1, max_size=5)), dtype)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = draw(st.integers(1, 3))  # cells of equal value: plateaus
    small = tuple(-(-n // coarse) for n in shape)
    drawn = palette[rng.integers(0, len(palette), (3, *small))]
    for axis in (1, 2, 3):
        drawn = np.repeat(drawn, coarse, axis=axis)
    return np.ascontiguousarray(drawn[:, : shape[0], : shape[1], : shape[2]])


@st.composite
def affinity_volumes(draw: st.DrawFn, max_side: int = 7) -> NDArray:
    """Affinities of a whole small volume of any shape, uint8 or uint16."""
    return draw(affinities(draw(shapes(max_side))))


@st.composite
def stored_affinities(draw: st.DrawFn) -> NDArray:
    """Affinities of a whole volume as they lie on disk: uint8, uint16, or float32 in [0, 1].

    Few distinct values, so that scores tie, in cells of equal value. The floats are those of uint8
    or lie beside them, where several round to the same integer.
    """
    side = st.sampled_from([6, 5, 4, 3, 6, 5, 1, 2])  # seldom so thin that little can happen
    shape = draw(st.tuples(side, side, side))
    dtype = draw(st.sampled_from([np.uint8, np.uint16, np.float32]))
    top = 65535 if dtype == np.uint16 else 255
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    palette = rng.integers(0, top + 1, draw(st.integers(2, 6)))
    coarse = draw(st.integers(1, 3))
    drawn = palette[rng.integers(0, len(palette), (3, *(-(-n // coarse) for n in shape)))]
    for axis in (1, 2, 3):
        drawn = np.repeat(drawn, coarse, axis=axis)
    drawn = np.ascontiguousarray(drawn[:, : shape[0], : shape[1], : shape[2]])
    if dtype != np.float32:
        return drawn.astype(dtype)
    beside = rng.choice([0.0, 0.49, -0.49, 0.51], drawn.shape) * draw(st.booleans())
    values = np.clip((drawn + beside) / 255, 0, 1).astype(np.float32)
    # 0.5 is the one float32 whose 255-fold lies exactly between two integers.
    values[rng.random(values.shape) < 0.2 * draw(st.booleans())] = 0.5
    return values


@st.composite
def any_block_shapes(draw: st.DrawFn, volume: Triple, max_blocks: int = 60) -> Triple:
    """As `block_shapes`, and blocks that are larger than the volume, but no more than so many."""
    sides = [draw(st.integers(1, n + 2)) for n in volume]
    while math.prod(-(-n // side) for n, side in zip(volume, sides, strict=True)) > max_blocks:
        sides[sides.index(min(sides))] += 1
    z, y, x = sides
    return z, y, x


def fractions_near(values: NDArray, *, least: float = 0.0) -> st.SearchStrategy[float]:
    """Thresholds in [least, 1]: floats of any kind, and those that some affinity just passes.

    Args:
        values: affinities, uint8, uint16 or float32.
        least: the smallest threshold.
    """
    scale = 1.0 if values.dtype == np.float32 else float(np.iinfo(values.dtype).max)
    exact = sorted({float(v) / scale for v in np.unique(values)} | {least, 1.0})
    return st.one_of(st.sampled_from([x for x in exact if x >= least]), st.floats(least, 1.0))


@st.composite
def thresholds(draw: st.DrawFn, values: NDArray) -> tuple[int, int]:
    """Integer thresholds 1 <= low <= high; often values that occur, where ties are decided."""
    top = int(np.iinfo(values.dtype).max)
    occurring = sorted({int(v) for v in np.unique(values)} - {0}) or [1]
    one = st.one_of(st.sampled_from(occurring), st.integers(1, top))
    low, high = sorted((draw(one), draw(one)))
    return low, high


@st.composite
def edge_tables(draw: st.DrawFn, max_nodes: int = 12, scale: int = 255) -> EdgeTable:
    """Small region graphs with tied scores, ids of any size and rows in any order."""
    n = draw(st.integers(2, max_nodes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([1, 10, 2**58]))
    ids = np.sort(rng.choice(15 * spread, size=n, replace=False) if spread < 2**58 else
                  rng.integers(1, 2**63, n)).astype(np.uint64) + np.uint64(1)  # fmt: skip
    ids = np.unique(ids)
    a, b = np.triu_indices(len(ids), 1)
    kept = rng.permutation(len(a))[: draw(st.integers(0, len(a)))]
    count = rng.integers(1, draw(st.sampled_from([2, 4, 50])), len(kept)).astype(np.uint64)
    levels = rng.integers(0, scale + 1, draw(st.integers(1, 4))).astype(np.uint64)
    total = count * levels[rng.integers(0, len(levels), len(kept))]
    if draw(st.booleans()):
        total = rng.integers(0, count * np.uint64(scale) + np.uint64(1), dtype=np.uint64)
    return EdgeTable(ids[a[kept]], ids[b[kept]], total, count)
