"""Directions of skeletons, and the areas of objects across them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.arrays.cross_sections import cross_sections, tangents
from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import DtypeError, InputError, ShapeError

SIZE = (4.0, 2.0, 1.0)
SHAPE = (40, 76, 150)
BIG = 2**64 - 5
ORIGIN = (100, 7, -30)


def line(points: NDArray | list, *, closed: bool = False) -> Skeleton:
    count = len(points)
    edges = [[i, i + 1] for i in range(count - 1)] + ([[count - 1, 0]] if closed else [])
    return Skeleton("s", np.array(points, float), np.array(edges))


def test_tangents_of_a_straight_line_and_a_bend() -> None:
    straight = line([[0, -2 * i, 0] for i in range(8)])
    assert tangents(straight, SIZE).tolist() == [[0, 1, 0]] * 8
    bend = line([[0, 0, i] for i in range(4)] + [[0, i, 3] for i in range(1, 4)])
    found = tangents(bend, (1, 1, 1), window=1)
    half = np.sqrt(0.5)
    expected = [[0, 0, 1]] * 3 + [[0, half, half]] + [[0, 1, 0]] * 3
    np.testing.assert_allclose(found, expected, atol=1e-15)
    wide = tangents(bend, (1, 1, 1), window=2)
    np.testing.assert_allclose(wide[2], np.array([0, 1, 3]) / np.sqrt(10))


def test_tangents_are_physical_and_smooth() -> None:
    """A helix sampled with jitter below a voxel; the analytic tangent within a few degrees."""
    t = np.linspace(0, 4 * np.pi, 400)
    helix = np.stack([30 * t, 200 * np.cos(t), 200 * np.sin(t)], axis=1)
    exact = np.stack([np.full(len(t), 30.0), -200 * np.sin(t), 200 * np.cos(t)], axis=1)
    exact /= np.linalg.norm(exact, axis=1)[:, None]
    voxels = np.round(helix / SIZE)
    found = tangents(line(voxels), SIZE, window=6)
    cosine = np.abs((found * exact).sum(axis=1))
    angle = np.degrees(np.arccos(cosine.clip(max=1)))
    # At the tips there is one side only: half of the bend within the window.
    assert angle.max() < 7
    assert angle[6:-6].max() < 3
    rough = tangents(line(voxels), SIZE, window=1)
    assert np.abs((rough * exact).sum(axis=1)).min() < cosine.min()


def test_tangents_at_branch_points_stop_there_and_take_the_straightest() -> None:
    nodes = [[0, 0, i] for i in range(5)] + [[0, 1, 3], [0, 2, 4]]
    edges = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [2, 5], [5, 6]])
    found = tangents(Skeleton("s", np.array(nodes, float), edges), (1, 1, 1), window=4)
    assert found[:5].tolist() == [[0, 0, 1]] * 5
    np.testing.assert_allclose(found[5:], [[0, np.sqrt(0.5)] * 1 + [np.sqrt(0.5)]] * 2)


@pytest.mark.parametrize("count", range(3, 12))
def test_tangents_of_rings(count: int) -> None:
    """However short: across the radius."""
    angle = 2 * np.pi * np.arange(count) / count
    ring = np.stack([0 * angle, np.cos(angle), np.sin(angle)], axis=1)
    found = tangents(line(ring, closed=True), (1, 1, 1), window=5)
    np.testing.assert_allclose((found * ring).sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)


def test_tangents_of_a_loop_on_a_stalk_and_without_direction() -> None:
    nodes = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 2], [0, -1, 2], [5, 5, 5], [6, 6, 6], [6, 6, 6]])
    edges = np.array([[0, 1], [1, 2], [2, 3], [3, 1], [5, 6]])
    found = tangents(Skeleton("s", nodes, edges), (1, 1, 1), window=9)
    assert (found[4:] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(found[:4], axis=1), 1)
    assert found[0].tolist() == [0, 0, 1]
    # The way round the loop ends before it comes back: at node 3 for the branch that begins at 2.
    eighth = np.pi / 8
    np.testing.assert_allclose(found[1], [0, np.sin(eighth), -np.cos(eighth)])
    assert tangents(Skeleton("s", nodes[:0], edges[:0]), SIZE).shape == (0, 3)
    with pytest.raises(InputError, match="at least 1 node, got 0"):
        tangents(Skeleton("s", nodes, edges), SIZE, window=0)


def test_the_order_of_edges_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    nodes, edges = rng.random((60, 3)) * 90, rng.integers(0, 60, (62, 2))
    expected = tangents(Skeleton("s", nodes, edges), SIZE)
    shuffled = edges[rng.permutation(62)][:, ::-1]
    assert tangents(Skeleton("s", nodes, shuffled), SIZE).tolist() == expected.tolist()


def cylinder(direction: NDArray, radius_nm: float, label: int = BIG) -> NDArray[np.uint64]:
    """A cylinder through the middle voxel of the block, longer than it."""
    middle = (np.array(SHAPE) // 2) * SIZE
    place = np.moveaxis(np.indices(SHAPE), 0, -1) * SIZE - middle
    along = place @ direction
    inside = (place**2).sum(axis=-1) - along**2 <= radius_nm**2
    return np.where(inside, np.uint64(label), np.uint64(0))


DIRECTIONS = [
    *np.eye(3),
    *(d / np.linalg.norm(d) for d in ([1.0, 1, 1], [1, -2, 0.5], [0.2, 1, -3], [-3, 1, 1])),
]


def middle_nodes(direction: NDArray) -> NDArray:
    """Voxel centres along the axis, near the middle of the block, in voxels of the volume."""
    steps = np.linspace(-8, 8, 9)[:, None] * direction
    return np.floor(np.array(SHAPE) // 2 + 0.5 + steps / SIZE) + 0.5 + ORIGIN


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_area_of_cylinders(direction: NDArray) -> None:
    """Anisotropic voxels, every direction: within 5 %, the mean of nodes within 3 %."""
    radius = 24.0
    labels = cylinder(direction, radius)
    kept = labels.copy()
    nodes = middle_nodes(direction)
    segments = np.full(len(nodes), BIG, np.uint64)
    area, touches = cross_sections(
        labels, ORIGIN, nodes, np.tile(direction * 3, (len(nodes), 1)), segments, SIZE
    )
    assert area.dtype == np.float32
    assert not touches.any()
    np.testing.assert_allclose(area, np.pi * radius**2, rtol=0.05)
    np.testing.assert_allclose(area.mean(), np.pi * radius**2, rtol=0.03)
    assert (labels == kept).all()


def test_the_direction_comes_from_the_skeleton() -> None:
    direction = DIRECTIONS[3]
    middle = np.array(SHAPE) // 2 + 0.5
    nodes = np.floor(middle + np.linspace(-40, 40, 41)[:, None] * direction / SIZE) + 0.5
    found = tangents(line(nodes), SIZE, window=8)[12:-12]
    area, _ = cross_sections(
        cylinder(direction, 20.0), (0, 0, 0), nodes[12:-12], found,
        np.full(len(found), BIG, np.uint64), SIZE,
    )  # fmt: skip
    np.testing.assert_allclose(np.median(area), np.pi * 20**2, rtol=0.05)


def test_only_the_patch_around_the_node_and_only_its_label() -> None:
    labels = np.zeros((9, 20, 30), np.uint32)
    labels[:, 2:6, 2:6] = 7
    labels[:, 2:6, 10:12] = 7
    labels[:, 6:9, 2:6] = 9
    nodes = np.array([[4.5, 3.5, 3.5], [4.9, 3.1, 10.5], [4.5, 7.5, 4.5]])
    along_z = np.array([[1.0, 0, 0]] * 3)
    area, touches = cross_sections(
        labels, (0, 0, 0), nodes, along_z, np.array([7, 7, 9], np.uint64), (4, 2, 1)
    )
    assert area.tolist() == [32, 16, 24]
    assert not touches.any()
    for dtype in (np.int16, np.dtype(">u4"), np.uint8):
        again, _ = cross_sections(
            np.asfortranarray(labels.astype(dtype)), (0, 0, 0), nodes, along_z,
            np.array([7, 7, 9], np.uint64), (4, 2, 1),
        )  # fmt: skip
        assert again.tolist() == area.tolist()


def test_what_is_unknown() -> None:
    """A section at the border, no direction, another segment's voxel."""
    labels = np.zeros((9, 12, 12), np.uint64)
    labels[:, 4:8, 0:5] = 7
    labels[:, 4:8, 6:9] = 8
    nodes = np.array([[4.5, 5.5, 3.5], [4.5, 5.5, 7.5], [4.5, 5.5, 7.5], [4.5, 1.5, 1.5]])
    directions = np.array([[1.0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]])
    segments = np.array([7, 8, 7, 7], np.uint64)
    area, touches = cross_sections(labels, (0, 0, 0), nodes, directions, segments, SIZE)
    assert np.isnan(area).all()
    assert touches.tolist() == [True, False, False, False]
    area, touches = cross_sections(labels, (0, 0, 0), nodes[:0], directions[:0], segments[:0], SIZE)
    assert len(area) == len(touches) == 0


def test_refusals() -> None:
    labels = np.ones((4, 5, 6), np.uint64)
    node, direction, segment = np.full((1, 3), 2.5), np.ones((1, 3)), np.ones(1, np.uint64)

    def call(**changes: object) -> None:
        arguments = {
            "labels": labels, "origin": (0, 0, 0), "nodes": node, "tangents": direction,
            "segments": segment, "voxel_size_nm": SIZE,
        }  # fmt: skip
        cross_sections(**{**arguments, **changes})  # type: ignore[arg-type]

    with pytest.raises(ShapeError, match=r"expected \(Z, Y, X\), got \(4, 5\)"):
        call(labels=labels[..., 0])
    with pytest.raises(DtypeError, match="got float64"):
        call(labels=labels.astype(float))
    with pytest.raises(ShapeError, match=r"\(1, 3\) nodes and \(2, 3\) tangents for 1"):
        call(tangents=np.ones((2, 3)))
    for origin in ((0, 0, 3), (0, -4, 0)):
        with pytest.raises(ShapeError, match=r"node 0 at .* lies outside the block"):
            call(origin=origin)
    with pytest.raises(ShapeError, match="outside"):
        call(nodes=np.full((1, 3), np.nan))
    with pytest.raises(InputError, match="1 tangents that are not finite"):
        call(tangents=np.full((1, 3), np.inf))
    with pytest.raises(InputError, match="positive voxel size"):
        call(voxel_size_nm=(4, 0, 1))
