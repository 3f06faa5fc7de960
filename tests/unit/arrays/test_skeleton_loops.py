"""Rings of an object, closed in its skeleton; and objects that have none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.arrays.betti import betti_numbers
from pipeline.arrays.skeleton_loop_kernels import enter, name_chords, reduce_sums
from pipeline.arrays.skeleton_settings import SkeletonSettings
from pipeline.arrays.skeletons import BlockSkeletons, trace_block

Mask = NDArray[np.bool_]
SHAPE = (40, 64, 64)


def grid(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.float64]:
    return np.moveaxis(np.indices(shape), 0, -1).astype(float)


def torus(centre: tuple[float, ...], ring: float, radius: float, axis: int = 0) -> Mask:
    away = grid() - centre
    flat = np.sqrt((np.delete(away, axis, -1) ** 2).sum(axis=-1))
    inside: Mask = (flat - ring) ** 2 + away[..., axis] ** 2 <= radius**2
    return inside


def bar(a: tuple[float, ...], b: tuple[float, ...], radius: float) -> Mask:
    start, way = np.array(a), np.subtract(b, a)
    along = np.clip((grid() - start) @ way / (way @ way), 0, 1)
    squares = ((grid() - start - along[..., None] * way) ** 2).sum(axis=-1)
    inside: Mask = squares <= radius**2
    return inside


def ladder() -> Mask:
    found = bar((20, 5, 10), (20, 58, 10), 2) | bar((20, 5, 40), (20, 58, 40), 2)
    for y in (8, 23, 39, 55):
        found |= bar((20, y, 10), (20, y, 40), 2)
    return found


def wheel() -> Mask:
    found = torus((20, 32, 32), 20, 2)
    for turn in np.arange(5) * 2 * np.pi / 5:
        found |= bar((20, 32, 32), (20, 32 + 20 * np.sin(turn), 32 + 20 * np.cos(turn)), 1.5)
    return found


def smooth(seed: int, shape: tuple[int, ...], width: float) -> NDArray[np.float64]:
    """Smooth noise of deviation 1."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), width)
    scaled: NDArray[np.float64] = noise / noise.std()
    return scaled


def rough_sheet() -> Mask:
    height = 20 + 3 * smooth(1, SHAPE[1:], 3)
    return np.abs(grid()[..., 0] - height) + 0.4 * smooth(2, SHAPE, 1) < 1.6


def rough_ball() -> Mask:
    away = np.sqrt(((grid() - [20, 32, 32]) ** 2).sum(axis=-1))
    return away + 1.5 * smooth(3, SHAPE, 1) < 13


def pierced_neurite() -> Mask:
    found = bar((20, 4, 4), (20, 60, 60), 3.2)
    for place in np.arange(6, 58, 4.6):
        found &= ~bar((0, place, place), (39, place, place), 0.9)
    return found


def pierced_ball() -> Mask:
    found = ((grid() - [20, 32, 32]) ** 2).sum(axis=-1) < 12**2
    return found & ~bar((0, 30, 35), (39, 30, 35), 1.2)


def traced(labels: NDArray[np.uint64], **changes: object) -> BlockSkeletons:
    return trace_block(
        labels,
        origin=(0, 0, 0),
        voxel_size_nm=(1000.0, 1000.0, 1000.0),
        settings=SkeletonSettings().model_copy(update=changes),
    )


def rings_of(found: BlockSkeletons, label: int) -> int:
    """Independent cycles, counted by pulling off tips: nodes of a tree vanish."""
    pieces = found.pieces
    node = {int(n): i for i, n in enumerate(np.flatnonzero(pieces.segment == label))}
    edges = [(node[a], node[b]) for a, b in pieces.edges.tolist() if a in node]
    parent = list(range(len(node)))

    def root(n: int) -> int:
        while parent[n] != n:
            n = parent[n]
        return n

    count = 0
    for a, b in edges:
        if root(a) == root(b):
            count += 1
        parent[root(a)] = root(b)
    return count


HOLED_SHEET = (np.abs(grid()[..., 0] - 20) < 2) & (
    ((grid()[..., 1:] - [32, 32]) ** 2).sum(axis=-1) > 14**2
)


@pytest.mark.parametrize(
    ("mask", "rings"),
    [
        (torus((20, 32, 32), 18, 1), 1),
        (torus((20, 32, 32), 18, 4), 1),
        (torus((20, 32, 32), 12, 2, axis=2), 1),
        (ladder(), 3),
        (torus((20, 16, 32), 12, 2.2) | torus((20, 42, 32), 13, 2.2), 2),
        (wheel(), 5),
        (HOLED_SHEET, 1),
        (((grid() - [20, 32, 20]) ** 2).sum(axis=-1) < 81, 0),
        (torus((20, 32, 40), 14, 2) | (((grid() - [20, 32, 22]) ** 2).sum(axis=-1) < 81), 1),
    ],
    ids=["thin", "thick", "upright", "ladder", "eight", "wheel", "holed", "ball", "soma"],
)
def test_every_ring_of_an_object_is_closed(mask: Mask, rings: int) -> None:
    assert betti_numbers(mask).b1 == rings
    found = traced(mask.astype(np.uint64) * np.uint64(7))
    assert found.report.loops == rings
    assert rings_of(found, 7) == rings
    opened = traced(mask.astype(np.uint64) * np.uint64(7), keep_loops=False)
    assert opened.report.loops == 0
    assert rings_of(opened, 7) == 0


@pytest.mark.parametrize(
    "mask",
    [
        rough_sheet(),
        rough_ball(),
        pierced_neurite(),
        pierced_ball(),
        (np.abs(grid()[..., 0] - 20) < 6) & (np.abs(grid()[..., 1] - 32) < 20),
        np.abs(np.sqrt(((grid() - [20, 32, 32]) ** 2).sum(axis=-1)) - 14) < 2,
        torus((20, 32, 32), 3, 1),
    ],
    ids=["sheet", "rough ball", "pierced neurite", "pierced ball", "slab", "shell", "tiny"],
)
def test_pinholes_and_paths_side_by_side_are_no_rings(mask: Mask) -> None:
    found = traced(mask.astype(np.uint64))
    assert found.report.loops == 0
    assert rings_of(found, 1) == 0


def test_rings_of_linked_objects_are_their_own() -> None:
    labels = torus((20, 24, 32), 14, 2).astype(np.uint64) * np.uint64(2**63)
    other = torus((20, 38, 32), 14, 2, axis=2)
    labels[other & (labels == 0)] = 3
    found = traced(labels)
    assert rings_of(found, 3) == rings_of(found, 2**63) == 1
    assert found.report.loops == 2


def test_the_closing_path_runs_on_voxels_of_the_object() -> None:
    labels = (torus((20, 16, 32), 12, 2.2) | torus((20, 42, 32), 13, 2.2)).astype(np.uint64)
    pieces = traced(labels).pieces
    assert (labels[tuple(np.floor(pieces.nodes).astype(int).T)] == 1).all()
    assert len(np.unique(pieces.nodes, axis=0)) == len(pieces.nodes)
    ends = pieces.nodes[pieces.edges]
    assert np.abs(ends[:, 0] - ends[:, 1]).max() == 1
    assert (np.abs(ends[:, 0] - ends[:, 1]).max(axis=1) > 0).all()
    depth = ndimage.distance_transform_edt(labels) * 1000
    np.testing.assert_allclose(
        pieces.radius_nm, depth[tuple(np.floor(pieces.nodes).astype(int).T)], rtol=1e-6
    )


def test_a_ring_stays_where_voxels_are_flat() -> None:
    away = (grid((20, 64, 64)) - [10, 32, 32]) * [2, 1, 1]
    flat = np.sqrt((away[..., 1:] ** 2).sum(axis=-1))
    mask = (flat - 18) ** 2 + away[..., 0] ** 2 <= 2.5**2
    found = trace_block(
        mask.astype(np.uint64),
        origin=(0, 0, 0),
        voxel_size_nm=(800.0, 400.0, 400.0),
        settings=SkeletonSettings(),
    )
    assert rings_of(found, 1) == found.report.loops == 1


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, derandomize=True, max_examples=20)
def test_noise_has_no_more_rings_than_tunnels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((24, 24, 24)) < rng.uniform(0.1, 0.25)
    found = traced(mask.astype(np.uint64), const_nm=0.0)
    assert found.report.loops == rings_of(found, 1)
    assert found.report.loops <= betti_numbers(mask).b1


def as_bits(rows: list[list[int]]) -> list[int]:
    return [sum(1 << c for c in row if c >= 0) for row in rows]


def rank_of(vectors: list[int]) -> int:
    basis: list[int] = []
    for vector in vectors:
        for held in basis:
            vector = min(vector, vector ^ held)
        if vector:
            basis.append(vector)
    return len(basis)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_reduction_agrees_with_elimination(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chords = int(rng.integers(1, 90))
    rows = [
        sorted(rng.choice(chords, min(chords, int(rng.integers(1, 4))), replace=False).tolist())
        for _ in range(int(rng.integers(0, 100)))
    ]
    padded = [row[::-1] + [-1] * (3 - len(row)) for row in rows]
    sums = np.array(sorted(padded), np.int64).reshape(-1, 3)
    start, end, pool = reduce_sums(sums, chords)
    names, loops = name_chords(start, end, pool)
    relations = as_bits(rows)
    assert len(loops) == chords - rank_of(relations)
    # The name of every relation vanishes, and chords of a name of their own are independent.
    for row in rows:
        assert not np.bitwise_xor.reduce(names[row], axis=0).any()
    assert rank_of([*relations, *(1 << int(c) for c in loops)]) == chords
    basis, held = np.zeros((len(loops), names.shape[1]), np.uint64), np.zeros(len(loops), bool)
    entered = [enter(names[c], basis, held) for c in rng.permutation(chords)]
    assert sum(entered) == len(loops)
