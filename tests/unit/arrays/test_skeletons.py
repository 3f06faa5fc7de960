"""Skeletons per block and their joining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_join import JoinReport, join_pieces
from pipeline.arrays.skeleton_prune import components, prune_ticks
from pipeline.arrays.skeleton_settings import SkeletonSettings
from pipeline.arrays.skeleton_smooth import smooth_nodes
from pipeline.arrays.skeletons import SkeletonPieces, context_vox, skeletonize_block
from pipeline.errors import DtypeError, ShapeError
from pipeline.geometry import BlockGrid, Roi, Triple

VoxelSize = tuple[float, float, float]
ISOTROPIC: VoxelSize = (1000.0, 1000.0, 1000.0)
ANISOTROPIC: VoxelSize = (900.0, 300.0, 300.0)
DEFAULTS = SkeletonSettings()
# Every crossing of a face costs a jog of a voxel or two: in blocks this small, some per cent.
BLOCKS = [(64, 72, 80), (32, 36, 40), (25, 31, 37), (64, 29, 30)]


def draw_tube(
    volume: NDArray[np.uint64],
    points: Sequence[Sequence[float]],
    radius_nm: float,
    label: int,
    voxel_size_nm: VoxelSize,
) -> None:
    """Label the voxels whose centres lie within the radius of a polyline (z, y, x in voxels)."""
    corners = np.asarray(points, float)
    steps = [np.linspace(a, b, 400) for a, b in pairwise(corners)]
    axis = cKDTree(np.concatenate(steps) * voxel_size_nm)
    centres = np.argwhere(np.ones(volume.shape, bool)) + 0.5
    distance, _ = axis.query(centres * voxel_size_nm, distance_upper_bound=radius_nm)
    volume[np.isfinite(distance).reshape(volume.shape)] = label


def pieces_of(
    volume: NDArray[np.uint64], block: Triple, voxel_size_nm: VoxelSize, settings: SkeletonSettings
) -> list[SkeletonPieces]:
    grid = BlockGrid(Roi((0, 0, 0), volume.shape), block, (0, 0, 0), (1, 1, 1))  # type: ignore[arg-type]
    return [
        skeletonize_block(
            volume[b.read.slices],
            origin=b.read.offset,
            voxel_size_nm=voxel_size_nm,
            settings=settings,
        )
        for b in grid
    ]


def blockwise(
    volume: NDArray[np.uint64],
    block: Triple,
    voxel_size_nm: VoxelSize = ISOTROPIC,
    settings: SkeletonSettings = DEFAULTS,
) -> tuple[dict[int, Skeleton], JoinReport]:
    pieces = pieces_of(volume, block, voxel_size_nm, settings)
    return join_pieces(pieces, voxel_size_nm=voxel_size_nm, settings=settings)


def tips(skeleton: Skeleton) -> NDArray[np.float64]:
    degree = np.bincount(skeleton.edges.ravel(), minlength=len(skeleton.nodes))
    return skeleton.nodes[degree <= 1]


def trees(skeleton: Skeleton) -> int:
    """Number of components, of which none has a ring."""
    parent = list(range(len(skeleton.nodes)))

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for a, b in skeleton.edges.tolist():
        assert root(a) != root(b), "a ring"
        parent[root(a)] = root(b)
    return sum(root(n) == n for n in range(len(parent)))


def tubes(voxel_size_nm: VoxelSize) -> tuple[NDArray[np.uint64], dict[int, list[list[float]]]]:
    """Neurites, one of them along a face of the even blocks, and where each ends."""
    volume = np.zeros((64, 72, 80), np.uint64)
    unit = 1000.0 if voxel_size_nm == ISOTROPIC else 700.0
    ends = {
        2**64 - 5: [[5, 5, 5], [58, 60, 70]],
        7: [[10, 60, 8], [40, 10, 72]],
        9: [[32, 4, 20], [32, 68, 20]],
        10: [[46, 4, 60], [46, 68, 50], [60, 40, 10]],
    }
    draw_tube(volume, [[5, 5, 5], [30, 32, 35], [58, 60, 70]], 1.3 * unit, 2**64 - 5, voxel_size_nm)
    draw_tube(volume, [[10, 60, 8], [30, 31, 60], [40, 10, 72]], 1.6 * unit, 7, voxel_size_nm)
    draw_tube(volume, [[32, 4, 20], [32, 68, 20]], 1.5 * unit, 9, voxel_size_nm)
    draw_tube(volume, [[46, 4, 60], [46, 36, 55], [46, 68, 50]], 1.5 * unit, 10, voxel_size_nm)
    draw_tube(volume, [[46, 36, 55], [60, 40, 10]], 1.2 * unit, 10, voxel_size_nm)
    return volume, {k: [[float(v) for v in p] for p in e] for k, e in ends.items()}


@pytest.mark.parametrize("voxel_size_nm", [ISOTROPIC, ANISOTROPIC])
def test_blocks_do_not_show_on_tubes(voxel_size_nm: VoxelSize) -> None:
    volume, ends = tubes(voxel_size_nm)
    whole, _ = blockwise(volume, (64, 72, 80), voxel_size_nm)
    expected = {k: s.edge_lengths_nm(voxel_size_nm).sum() for k, s in whole.items()}
    for block in BLOCKS:
        found, report = blockwise(volume, block, voxel_size_nm)
        assert sorted(found) == sorted(ends)
        for label, skeleton in found.items():
            assert trees(skeleton) == 1, (block, label)
            cable = skeleton.edge_lengths_nm(voxel_size_nm).sum()
            assert cable == pytest.approx(expected[label], rel=0.2), (block, label)
            # Every end of the skeleton is an end of the tube, and the other way round.
            size = np.asarray(voxel_size_nm)
            gaps = cKDTree(np.array(ends[label]) * size).query(tips(skeleton) * size)[0]
            assert gaps.max() < 6 * max(voxel_size_nm), (block, label, tips(skeleton))
            assert len(tips(skeleton)) == len(ends[label]), (block, label, tips(skeleton))
        assert report.cable_out_nm == pytest.approx(sum(expected.values()), rel=0.08), block


@given(st.integers(0, 2**32 - 1), st.sampled_from([(7, 8, 9), (16, 5, 6), (4, 20, 11)]))
@settings(deadline=None, max_examples=25)
def test_components_are_those_of_the_object_on_noise(seed: int, block: Triple) -> None:
    rng = np.random.default_rng(seed)
    volume = rng.integers(1, 4, (16, 20, 18)).astype(np.uint64) * np.uint64(2**62)
    volume[rng.random(volume.shape) > 0.12] = 0
    exact = SkeletonSettings(join_radius_vox=0, tick_nm=0)
    found, report = blockwise(volume, block, settings=exact)
    assert set(found) == set(np.unique(volume[volume > 0]).tolist())
    for label, skeleton in found.items():
        mask = volume == np.uint64(label)
        components, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
        assert trees(skeleton) == count
        inside = components[tuple(np.floor(skeleton.nodes).astype(int).T)]
        assert set(inside.tolist()) == set(range(1, count + 1))
        assert (inside[skeleton.edges[:, 0]] == inside[skeleton.edges[:, 1]]).all()
    assert report.gaps_joined == 0


def test_order_of_the_pieces_does_not_matter() -> None:
    volume, _ = tubes(ISOTROPIC)
    pieces = pieces_of(volume, (25, 31, 37), ISOTROPIC, DEFAULTS)
    first = join_pieces(pieces, voxel_size_nm=ISOTROPIC, settings=DEFAULTS)
    shuffled = [pieces[i] for i in np.random.default_rng(3).permutation(len(pieces))]
    second = join_pieces(shuffled, voxel_size_nm=ISOTROPIC, settings=DEFAULTS)
    assert first[1] == second[1]
    assert list(first[0]) == list(second[0]) == sorted(first[0])
    for label in first[0]:
        for name in ("nodes", "edges", "radii_nm"):
            a, b = getattr(first[0][label], name), getattr(second[0][label], name)
            np.testing.assert_array_equal(a, b)


def test_same_block_gives_the_same_table_and_keeps_its_input() -> None:
    volume, _ = tubes(ISOTROPIC)
    before = volume.copy()
    tables = [
        skeletonize_block(volume, origin=(0, 0, 0), voxel_size_nm=ISOTROPIC, settings=DEFAULTS)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(volume, before)
    for name, column in tables[0].columns().items():
        np.testing.assert_array_equal(column, tables[1].columns()[name])


def test_columns_of_a_block() -> None:
    labels = np.zeros((6, 8, 20), np.uint64)
    labels[3, 4, 2:18] = 2**64 - 1
    table = skeletonize_block(
        labels, origin=(100, 200, 300), voxel_size_nm=ANISOTROPIC, settings=DEFAULTS
    )
    assert table.segment.dtype == np.uint64
    assert set(table.segment.tolist()) == {2**64 - 1}
    expected = [[103.5, 204.5, 300 + x + 0.5] for x in range(2, 18)]
    np.testing.assert_allclose(table.nodes[np.argsort(table.nodes[:, 2])], expected)
    np.testing.assert_allclose(table.radius_nm, 300.0)
    order = np.argsort(table.nodes[:, 2])
    to_face = [min(2 * 900, 3 * 300, x * 300, (19 - x) * 300) for x in range(2, 18)]
    np.testing.assert_allclose(table.face_nm[order], to_face)
    assert len(table.edges) == 15


@pytest.mark.parametrize(
    "voxels",
    [[(3, 3, 3)], [(3, 3, 3), (3, 3, 4)], [(0, 0, 0)], [(3, 3, 3), (4, 4, 4)], [(7, 7, 7)]],
)
def test_no_object_is_lost_for_being_small(voxels: list[Triple]) -> None:
    volume = np.zeros((8, 8, 8), np.uint64)
    for voxel in voxels:
        volume[voxel] = 5
    for block in ((8, 8, 8), (4, 4, 4), (3, 3, 3)):
        found, _ = blockwise(volume, block)
        assert list(found) == [5]
        held = {tuple(n) for n in np.floor(found[5].nodes).astype(int).tolist()}
        assert held <= set(voxels)
        assert trees(found[5]) == 1


def test_background_and_empty_input() -> None:
    table = skeletonize_block(
        np.zeros((4, 5, 6), np.uint64),
        origin=(0, 0, 0),
        voxel_size_nm=ISOTROPIC,
        settings=DEFAULTS,
    )
    assert len(table.segment) == len(table.edges) == 0
    for pieces in ([], [table, table]):
        found, report = join_pieces(pieces, voxel_size_nm=ISOTROPIC, settings=DEFAULTS)
        assert found == {}
        assert report == JoinReport()


@pytest.mark.parametrize("shape", [(1, 12, 12), (5, 6, 7), (1, 1, 9)])
def test_an_object_that_fills_the_volume(shape: Triple) -> None:
    for block in (shape, (3, 3, 3)):
        found, _ = blockwise(np.full(shape, 3, np.uint64), block)
        assert list(found) == [3]
        assert trees(found[3]) == 1
        assert np.isfinite(found[3].radii_nm).all()


def test_small_components_go_unless_they_touch_a_face() -> None:
    labels = np.zeros((10, 10, 10), np.uint64)
    labels[5, 5, 4:6] = 1
    labels[0, 2, 2:4] = 2
    labels[7, 2:9, 7] = 3
    table = skeletonize_block(
        labels,
        origin=(0, 0, 0),
        voxel_size_nm=ISOTROPIC,
        settings=SkeletonSettings(min_voxels=5),
    )
    assert set(table.segment.tolist()) == {2, 3}


def test_a_soma_cut_by_a_face_stays_in_one_piece() -> None:
    volume = np.zeros((48, 48, 48), np.uint64)
    grid = np.argwhere(np.ones(volume.shape, bool)) + 0.5
    ball = ((grid - 24.0) ** 2).sum(axis=1) < 11**2
    volume[ball.reshape(volume.shape)] = 4
    draw_tube(volume, [[24, 24, 24], [24, 24, 46]], 1500.0, 4, ISOTROPIC)
    draw_tube(volume, [[24, 24, 24], [24, 2, 10]], 1500.0, 4, ISOTROPIC)
    for block in ((48, 48, 48), (24, 48, 48), (24, 24, 24)):
        found, _ = blockwise(volume, block)
        assert trees(found[4]) == 1
        assert len(tips(found[4])) <= 4
        for end in ([24, 24, 46], [24, 2, 10]):
            assert np.sqrt(((tips(found[4]) - end) ** 2).sum(axis=1)).min() < 4


def line(nodes: Sequence[Sequence[float]], segment: int = 1) -> SkeletonPieces:
    count = len(nodes)
    return SkeletonPieces(
        segment=np.full(count, segment, np.uint64),
        nodes=np.asarray(nodes, float) + 0.5,
        edges=np.stack([np.arange(count - 1), np.arange(1, count)], axis=1),
        radius_nm=np.full(count, 1000.0),
        face_nm=np.full(count, 9000.0),
    )


def test_gaps_are_joined_nearest_first_within_the_radius_and_the_segment() -> None:
    pieces = [
        line([[0, 0, x] for x in range(5)]),
        line([[0, 0, x] for x in range(6, 9)]),
        line([[0, 2, x] for x in range(6, 9)]),
        line([[0, 5, x] for x in range(6, 9)]),
        line([[0, 1, x] for x in range(6, 9)], segment=2),
    ]
    exact = SkeletonSettings(tick_nm=0)
    found, report = join_pieces(pieces, voxel_size_nm=ISOTROPIC, settings=exact)
    assert report.gaps_joined == 2
    assert trees(found[1]) == 2
    assert trees(found[2]) == 1
    apart = exact.model_copy(update={"join_radius_vox": 0.0})
    assert trees(join_pieces(pieces, voxel_size_nm=ISOTROPIC, settings=apart)[0][1]) == 4


def test_ticks_and_dust() -> None:
    pieces = [
        line([[0, 0, x] for x in range(30)]),
        line([[0, y, 10] for y in range(4)]),
        line([[0, y, 20] for y in range(9)]),
        line([[20, 0, x] for x in range(3)]),
    ]
    plain = SkeletonSettings(tick_nm=5000, join_radius_vox=0)
    found, report = join_pieces(pieces, voxel_size_nm=ISOTROPIC, settings=plain)
    assert (report.ticks_removed, report.dust_removed) == (1, 0)
    assert found[1].edge_lengths_nm(ISOTROPIC).sum() == pytest.approx(29e3 + 8e3 + 2e3)
    strict = plain.model_copy(update={"dust_nm": 2500.0})
    found, report = join_pieces(pieces, voxel_size_nm=ISOTROPIC, settings=strict)
    assert report.dust_removed == 1
    assert report.cable_out_nm == pytest.approx(37e3)


def test_edges_run_from_child_to_parent_towards_the_thickest_node() -> None:
    table = line([[0, 0, x] for x in range(9)])
    table.radius_nm[4] = 5000.0
    found, _ = join_pieces([table], voxel_size_nm=ISOTROPIC, settings=DEFAULTS)
    children, parents = found[1].edges.T
    assert sorted(children.tolist()) == [0, 1, 2, 3, 5, 6, 7, 8]
    np.testing.assert_array_equal(parents, np.where(children < 4, children + 1, children - 1))


def reference_ticks(lengths: dict[frozenset[int], float], limit: float) -> set[frozenset[int]]:
    """Remove the shortest side branch again and again, everything computed anew each time."""
    edges = dict(lengths)
    while True:
        degree: dict[int, int] = {}
        for edge in edges:
            for node in edge:
                degree[node] = degree.get(node, 0) + 1
        branches = []
        for tip in sorted(n for n, d in degree.items() if d == 1):
            path, total, node = [], 0.0, tip
            while True:
                onward = [e for e in edges if node in e and e not in path]
                if not onward or (node != tip and degree[node] != 2):
                    break
                path.append(onward[0])
                total += edges[onward[0]]
                (node,) = onward[0] - {node}
            if degree[node] >= 3 and total < limit:
                branches.append((total, tip, path))
        if not branches:
            return set(edges)
        for edge in min(branches, key=lambda b: b[:2])[2]:
            del edges[edge]


@given(st.integers(0, 2**32 - 1), st.integers(2, 25))
@settings(deadline=None, max_examples=60)
def test_ticks_agree_with_the_slow_way(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    positions = rng.random((count, 3)) * 10
    parents = [int(rng.integers(max(0, n - 4), n)) for n in range(1, count)]
    edges = np.array([[n, p] for n, p in enumerate(parents, 1)], np.int64)
    lengths = np.sqrt(((positions[edges[:, 0]] - positions[edges[:, 1]]) ** 2).sum(axis=1))
    names = [frozenset(e) for e in edges.tolist()]
    alive, _ = prune_ticks(positions, edges, 7.0)
    kept = {n for n, e in zip(names, edges, strict=True) if alive[e].all()}
    assert kept == reference_ticks(dict(zip(names, lengths.tolist(), strict=True)), 7.0)


def test_refusals() -> None:
    for labels, error in (
        (np.ones((4, 4), np.uint64), ShapeError),
        (np.ones((4, 4, 4), np.uint32), DtypeError),
    ):
        with pytest.raises(error, match="skeletonize"):
            skeletonize_block(
                labels,  # type: ignore[arg-type]
                origin=(0, 0, 0),
                voxel_size_nm=ISOTROPIC,
                settings=DEFAULTS,
            )
    table = line([[0, 0, 0], [0, 0, 1]])
    with pytest.raises(ShapeError, match="edge"):
        SkeletonPieces(**{**table.columns(), "edges": np.array([[0, 2]])})
    with pytest.raises(ShapeError, match="unequal"):
        SkeletonPieces(**{**table.columns(), "radius_nm": np.zeros(3)})


def divided(
    volume: NDArray[np.uint64], block: Triple, size: VoxelSize, settings: SkeletonSettings
) -> list[SkeletonPieces]:
    """The pieces of blocks that see some context."""
    whole = Roi((0, 0, 0), volume.shape)
    pieces = []
    for b in BlockGrid(whole, block, (0, 0, 0)):
        seen = b.write.grow(context_vox(size)).intersect(whole)
        pieces.append(
            skeletonize_block(
                volume[seen.slices],
                origin=seen.offset,
                voxel_size_nm=size,
                settings=settings,
                block=b.write.relative_to(seen),
            )
        )
    return pieces


def shape_of(
    volume: NDArray[np.uint64], block: Triple, size: VoxelSize
) -> tuple[tuple[int, int, int], float, Skeleton]:
    """Components, tips and loops of label 1, its cable in nanometres, and its skeleton."""
    pieces = divided(volume, block, size, DEFAULTS)
    found = join_pieces(pieces, voxel_size_nm=size, settings=DEFAULTS)[0][1]
    count = len(found.nodes)
    parts = int(components(count, found.edges).max()) + 1
    tips = int((np.bincount(found.edges.ravel(), minlength=count) == 1).sum())
    smooth = replace(found, nodes=smooth_nodes(found.nodes, found.edges, 4))
    cable = float(smooth.edge_lengths_nm(size).sum())
    return (parts, tips, len(found.edges) - count + parts), cable, smooth


LENGTHWISE: Triple = (40, 60, 52)
OBLONG: VoxelSize = (500.0, 300.0, 200.0)
CUTS: list[Triple] = [(20, 33, 26), (16, 20, 24), (19, 60, 17)]


def drawn_in_voxels(points: NDArray[np.float64], radius: float) -> NDArray[np.uint64]:
    volume = np.zeros(LENGTHWISE, np.uint64)
    draw_tube(volume, points + 0.5, radius, 1, (1.0, 1.0, 1.0))
    return volume


def ring_at(z: float, tilt: float) -> NDArray[np.float64]:
    turn = np.linspace(0, 2 * np.pi, 60)
    return np.stack(
        [z + 16 * tilt * np.sin(turn), 30 + 16 * np.sin(turn), 26 + 16 * np.cos(turn)], axis=1
    )


@pytest.mark.parametrize("size", [OBLONG, (300.0, 300.0, 300.0)])
@pytest.mark.parametrize("tilt", [0.0, 0.05, 0.15])
@pytest.mark.parametrize("z", [19.0, 20.0, 20.5, 21.0])
def test_a_ring_in_a_face_stays_one_ring(size: VoxelSize, tilt: float, z: float) -> None:
    line = ring_at(z, tilt)
    length = float(np.linalg.norm(np.diff(line, axis=0) * size, axis=1).sum())
    volume = drawn_in_voxels(line, 2.0)
    for block in CUTS:
        found, cable, skeleton = shape_of(volume, block, size)
        assert found == (1, 0, 1), block
        # In an oblong section, the tracer itself strays by some per cent.
        assert cable == pytest.approx(length, rel=0.06 if size == OBLONG else 0.015), block
        away = cKDTree((line + 0.5) * size).query(skeleton.nodes * size)[0]
        assert np.median(away) < 1.2 * max(size)


@pytest.mark.parametrize("size", [OBLONG, (300.0, 300.0, 300.0)])
@pytest.mark.parametrize("radius", [2.0, 3.0])
def test_a_tube_in_a_face_is_one_path_to_its_very_ends(size: VoxelSize, radius: float) -> None:
    lengths = []
    for z in (18.0, 19.0, 20.0, 21.0, 22.0):
        ends = np.array([[z, 6, 6], [z, 52, 46]])
        volume = drawn_in_voxels(ends, radius)
        whole, cable, _ = shape_of(volume, LENGTHWISE, size)
        assert whole == (1, 2, 0)
        for block in CUTS:
            found, length, skeleton = shape_of(volume, block, size)
            assert found == whole, (z, block)
            assert length == pytest.approx(cable, rel=0.025), (z, block)
            tips = skeleton.nodes[np.bincount(skeleton.edges.ravel()) == 1]
            gaps = np.linalg.norm(tips[:, None] - (ends + 0.5), axis=2).min(axis=0)
            assert gaps.max() <= radius + 1, (z, block)
            lengths.append((block, round(length, 3)))
    # It is all the same where the faces lie.
    assert len(set(lengths)) <= len(CUTS) + 2


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_divided_objects_have_the_components_of_the_whole(seed: int) -> None:
    """Whatever touches is tied, at corners of blocks as well, and nothing else."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(8, 27, 3).tolist())
    volume = rng.integers(1, 4, shape, np.uint64)
    volume[rng.random(shape) > rng.choice([0.03, 0.1, 0.2])] = 0
    if seed % 2:
        # Blobs a few voxels wide, between which there are thin bridges.
        volume = volume.repeat(2, 0).repeat(3, 1).repeat(2, 2)[: shape[0], : shape[1], : shape[2]]
    size = [(100.0, 100.0, 100.0), (250.0, 100.0, 130.0)][seed % 3 > 0]
    plain = SkeletonSettings(join_radius_vox=0, tick_nm=0)
    block = tuple(rng.integers(10, 14, 3).tolist())
    pieces = divided(volume, block, size, plain)
    found = join_pieces(pieces, voxel_size_nm=size, settings=plain)[0]
    assert sorted(found) == np.unique(volume[volume > 0]).tolist()
    for label, skeleton in found.items():
        parts = cc3d.connected_components(volume == label, connectivity=26)
        nodes = parts[tuple(np.floor(skeleton.nodes).astype(int).T)]
        assert (nodes > 0).all()
        np.testing.assert_array_equal(nodes[skeleton.edges[:, 0]], nodes[skeleton.edges[:, 1]])
        own = components(len(nodes), skeleton.edges)
        assert own.max() + 1 == parts.max() == len(np.unique(nodes))
