"""Joining of pieces: rings kept and opened, somata, gaps, ticks on graphs with cycles, reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_join import JoinReport, join_pieces
from pipeline.arrays.skeleton_join_gaps import gap_edges
from pipeline.arrays.skeleton_join_graph import number_groups, unite
from pipeline.arrays.skeleton_join_reach import covered_by
from pipeline.arrays.skeleton_join_touch import touching_edges
from pipeline.arrays.skeleton_join_weld import weld
from pipeline.arrays.skeleton_prune import components, prune_ticks
from pipeline.arrays.skeleton_settings import SkeletonSettings
from pipeline.arrays.skeleton_tree import find_ways
from pipeline.arrays.skeletons import SkeletonPieces, context_vox, skeletonize_block
from pipeline.errors import InputError
from pipeline.geometry import BlockGrid, Roi, Triple

SIZE = (1000.0, 1000.0, 1000.0)
FINE = (300.0, 300.0, 300.0)  # a tube of some voxels' radius is no soma yet
DEFAULTS = SkeletonSettings()
PLAIN = SkeletonSettings(join_radius_vox=0, tick_nm=0)
Points = NDArray[np.float64]


def path(
    nodes: Sequence[Sequence[int]] | NDArray[np.int64],
    *,
    closed: bool = False,
    segment: int = 1,
    radius_nm: float = 1000.0,
    face_nm: float = 9000.0,
    soma: Sequence[int] = (),
) -> SkeletonPieces:
    """One path through voxels."""
    count = len(nodes)
    edges = [[i, i + 1] for i in range(count - 1)] + ([[count - 1, 0]] if closed else [])
    flags = np.zeros(count, bool)
    flags[list(soma)] = True
    return SkeletonPieces(
        segment=np.full(count, segment, np.uint64),
        nodes=np.asarray(nodes, float) + 0.5,
        edges=np.array(edges, np.int64).reshape(-1, 2),
        radius_nm=np.full(count, radius_nm),
        face_nm=np.full(count, face_nm),
        soma=flags,
    )


def join(
    pieces: Sequence[SkeletonPieces], method: SkeletonSettings = PLAIN
) -> tuple[dict[int, Skeleton], JoinReport]:
    return join_pieces(pieces, voxel_size_nm=SIZE, settings=method)


def rings_of(skeleton: Skeleton) -> int:
    count = len(skeleton.nodes)
    return len(skeleton.edges) - count + int(components(count, skeleton.edges).max()) + 1


def tip_count(skeleton: Skeleton) -> int:
    degree = np.bincount(skeleton.edges.ravel(), minlength=len(skeleton.nodes))
    return int((degree == 1).sum())


def square(side: int, z: int = 0) -> list[list[int]]:
    """The voxels around a square."""
    span = range(side)
    return (
        [[z, 0, i] for i in span]
        + [[z, i, side] for i in span]
        + [[z, side, side - i] for i in span]
        + [[z, side - i, 0] for i in span]
    )


# The reach of a radius of 1 voxel is 4.5 voxels: rings shorter than 28 voxels are within reach.
@pytest.mark.parametrize(("side", "kept"), [(4, 0), (7, 0), (10, 1), (30, 1)])
def test_a_ring_longer_than_the_circle_of_reach_is_kept(side: int, kept: int) -> None:
    found, report = join([path(square(side), closed=True)])
    assert rings_of(found[1]) == kept
    assert (report.loops_kept, report.loops_opened) == (kept, 1 - kept)
    assert len(found[1].nodes) == 4 * side
    assert report.cable_out_nm == 1000 * (4 * side - (1 - kept))


def test_a_ring_in_two_pieces_is_closed_by_welding_and_none_is_on_request() -> None:
    around = square(20)
    halves = [path(around[:41]), path([*around[40:], around[0]])]
    found, report = join(halves)
    assert rings_of(found[1]) == 1
    assert tip_count(found[1]) == 0
    assert (report.welded, report.loops_kept) == (2, 1)
    opened, report = join(halves, PLAIN.model_copy(update={"keep_loops": False}))
    assert rings_of(opened[1]) == 0
    assert (report.loops_kept, report.loops_opened) == (0, 1)


def test_a_slit_is_opened_however_long() -> None:
    # Two strands four voxels apart, 200 long, none of them near a face.
    one = [[0, 0, x] for x in range(200)]
    other = [[0, y, 0] for y in range(5)] + [[0, 4, x] for x in range(200)]
    end = [[0, y, 199] for y in range(5)]
    found, report = join([path(one), path(other), path(end)])
    assert rings_of(found[1]) == 0
    assert report.loops_opened == 1


def test_strands_doubled_along_a_face_become_one_and_the_rest_of_a_ring_is_kept() -> None:
    # The last side of the square lies along a face: both blocks have traced it.
    around = square(30)
    double = [[1, 30 - i, 0] for i in range(1, 30)]
    pieces = [
        path(around[:91]),
        path([*around[90:], around[0]], face_nm=0.0),
        path([around[90], *double, around[0]], face_nm=0.0),
    ]
    found, report = join(pieces)
    assert rings_of(found[1]) == 1
    assert report.loops_opened == 1
    # One of the two strands, and the corner of the square that lies on the face.
    assert report.doubled_nm == pytest.approx(
        28_000 + 2_000 * np.sqrt(2) + 2_000 - 1_000 * np.sqrt(2)
    )
    assert tip_count(found[1]) == 0


def test_ticks_before_dust_and_their_lengths() -> None:
    pieces = [
        path([[0, 0, x] for x in range(30)]),
        path([[0, y, 10] for y in range(4)]),
        path([[20, 0, x] for x in range(5)]),
        path([[20, y, 2] for y in range(3)]),
    ]
    method = SkeletonSettings(tick_nm=3500, join_radius_vox=0, dust_nm=4500)
    found, report = join(pieces, method)
    # The crumb has 6 voxel edges of cable, of which its shortest branch (a tick) leaves 4.
    assert (report.ticks_removed, report.ticks_nm) == (2, 5000.0)
    assert (report.dust_removed, report.dust_nm) == (1, 4000.0)
    assert report.cable_in_nm == report.cable_out_nm + 5000 + 4000
    assert len(found[1].nodes) == 30


def test_a_ring_with_a_tick_stays_a_ring() -> None:
    pieces = [path(square(12), closed=True), path([[0, -y, 5] for y in range(4)])]
    found, report = join(pieces, SkeletonSettings(tick_nm=5000))
    assert (report.ticks_removed, report.ticks_nm, rings_of(found[1])) == (1, 3000.0, 1)
    assert len(found[1].nodes) == 48


def test_gaps_are_no_longer_than_the_radius_in_voxels() -> None:
    ends = {(0, 0, 2): True, (1, 1, 1): True, (0, 1, 2): False, (2, 0, 0): True, (0, 2, 1): False}
    for step, joined in ends.items():
        start = np.array([[0, 0, x] for x in range(5)])
        pieces = [path(start), path(np.array([0, 0, 4]) + step + start)]
        for size in (SIZE, (3000.0, 1000.0, 1000.0)):
            _, report = join_pieces(pieces, voxel_size_nm=size, settings=DEFAULTS)
            assert report.gaps_joined == joined, step


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 2.0, 2.5, 4.0]))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_gap_edges_agree_with_all_pairs(seed: int, radius: float) -> None:
    rng = np.random.default_rng(seed)
    places = np.unique(rng.integers(-6, 7, (30, 3)), axis=0)
    segments = rng.integers(1, 3, len(places)).tolist()
    pieces = [path([v], segment=s) for v, s in zip(places.tolist(), segments, strict=True)]
    welded = weld(pieces)
    close = [
        (float(((welded.voxels[a] - welded.voxels[b]) ** 2).sum()), a, b)
        for a, b in product(range(len(places)), repeat=2)
        if a < b and welded.segment[a] == welded.segment[b]
    ]
    group = list(range(len(places)))
    expected = []
    for distance, a, b in sorted(close):
        if distance <= radius**2 and group[a] != group[b]:
            expected.append([a, b])
            group = [group[a] if g == group[b] else g for g in group]
    assert gap_edges(welded, radius).tolist() == expected


def test_a_node_off_the_centre_of_a_voxel_is_refused() -> None:
    piece = path([[0, 0, 0], [0, 0, 1]])
    piece.nodes[1, 2] = 1.75
    with pytest.raises(InputError, match="centre of a voxel"):
        join([piece])


def test_a_soma_becomes_one_node_with_a_star() -> None:
    neurite = [[0, 0, x] for x in range(-20, 21)]
    body = [20 + x for x in (-2, -1, 0, 1, 2)]
    across = [[0, y, 0] for y in range(21)]
    first, second = path(neurite, soma=body), path(across, soma=[0, 1, 2])
    first.radius_nm[21] = 4000.0
    for pieces in ([first, second], [second, first]):
        found, report = join(pieces)
        assert report.somata == 1
        degree = np.bincount(found[1].edges.ravel())
        centre = int(np.argmax(degree))
        # Mean of x: 0; of y: 3 / 7, so the nearest node is the crossing itself.
        assert found[1].nodes[centre].tolist() == [0.5, 0.5, 0.5]
        assert (degree[centre], tip_count(found[1]), rings_of(found[1])) == (3, 3, 0)
        assert found[1].radii_nm[centre] == 4000.0
        assert len(found[1].nodes) == 41 - 4 + 18


def test_rings_in_a_soma_vanish_and_two_somata_stay_two() -> None:
    around = square(12)
    pieces = [
        path(around, closed=True, soma=range(len(around))),
        path([[0, 0, -x] for x in range(30)], soma=[0, 29]),
    ]
    found, report = join(pieces)
    assert (report.somata, report.loops_kept, rings_of(found[1])) == (2, 0, 0)
    assert len(found[1].nodes) == 30


def test_reports_add_field_by_field() -> None:
    one = JoinReport(*range(1, 13))
    assert one + JoinReport() == one
    assert one + one == JoinReport(*range(2, 26, 2))


def test_segments_do_not_influence_one_another_nor_does_the_order_of_pieces() -> None:
    rng = np.random.default_rng(5)
    pieces = [
        path(np.cumsum(rng.integers(-1, 2, (60, 3)), axis=0), segment=int(s), face_nm=f)
        for s, f in zip(rng.integers(1, 5, 24), np.tile([0.0, 9000.0], 12), strict=True)
    ]
    together, report = join(pieces, DEFAULTS)
    total = JoinReport()
    for segment in range(1, 5):
        rows = [p for p in pieces if p.segment[0] == segment]
        alone, part = join(rows[::-1], DEFAULTS)
        total += part
        for name in ("nodes", "edges", "radii_nm"):
            a, b = getattr(alone[segment], name), getattr(together[segment], name)
            np.testing.assert_array_equal(a, b)
    for name in ("welded", "gaps_joined", "loops_kept", "loops_opened", "ticks_removed"):
        assert getattr(total, name) == getattr(report, name)
    assert total.cable_out_nm == pytest.approx(report.cable_out_nm)
    assert report.loops_opened > 0


def test_components_are_numbered_by_their_smallest_nodes() -> None:
    edges = np.array([[5, 1], [6, 2], [2, 5], [3, 4]], np.int32)
    assert components(8, edges).tolist() == [0, 1, 1, 2, 2, 1, 1, 3]
    group = np.arange(8, dtype=np.int32)
    assert unite(group, np.vstack([edges, [[1, 6]]])).tolist() == [True] * 4 + [False]
    assert number_groups(group) == 4


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_ways_are_those_of_scipy(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    positions, radius = rng.random((count, 3)) * 1e4, rng.random(count) * 900 + 100
    edges = np.unique(np.sort(rng.integers(0, count, (2 * count, 2)), axis=1), axis=0)
    edges = edges[edges[:, 0] != edges[:, 1]].astype(np.int32)
    ways = find_ways(positions, edges, radius)
    lengths = np.sqrt(((positions[edges[:, 0]] - positions[edges[:, 1]]) ** 2).sum(axis=1))
    cost = lengths / radius[edges].min(axis=1) ** 2
    graph = coo_array((cost, (edges[:, 0], edges[:, 1])), (count, count))
    part = components(count, edges)
    price = {frozenset(e): c for e, c in zip(edges.tolist(), cost.tolist(), strict=True)}
    place = np.argsort(ways.outward)
    for node in range(count):
        root = int(ways.root[node])
        assert part[root] == part[node]
        assert radius[root] == radius[part == part[node]].max()
        total, length, at = 0.0, 0.0, node
        while ways.parent[at] >= 0:
            above = int(ways.parent[at])
            assert place[above] < place[at]
            total += price[frozenset((at, above))]
            length += float(np.linalg.norm(positions[at] - positions[above]))
            at = above
        assert at == root
        assert total == pytest.approx(dijkstra(graph, directed=False, indices=root)[node])
        assert length == pytest.approx(ways.length_nm[node])


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_what_is_out_of_reach_is_added_furthest_first(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 150
    positions = rng.random((count, 3)) * rng.choice([10.0, 40.0])
    reach = rng.uniform(0.5, 8, count)
    parent = np.array([rng.integers(0, n) if n > 3 else -1 for n in range(count)], np.int32)
    root = np.arange(count, dtype=np.int32)
    for node in range(4, count):
        root[node] = root[parent[node]]
    kept = parent < 0
    order = rng.permutation(np.flatnonzero(~kept))
    radius = rng.integers(1, 5, count).astype(float)
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    reached = (apart <= reach) & (root[:, None] == root[None])  # [node, by]
    expected = kept.copy()
    for first in order.tolist():
        if not (reached[first] & expected).any():
            covered = (reached & expected).any(axis=1)
            able = [n for n in order.tolist() if reached[first, n] and not covered[n]]
            node = max(able, key=lambda n: (radius[n], n == first))  # of equals the first in order
            while not expected[node]:
                expected[node] = True
                node = parent[node]
    covered_by(kept, parent, root, positions, radius, reach, order)
    np.testing.assert_array_equal(kept, expected)


def test_a_corner_at_a_face_is_cut_off_if_its_neighbours_touch() -> None:
    nodes = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 0, 2], [0, 1, 3], [0, 0, 4], [0, 0, 5]])
    pieces = [path(nodes)]
    pieces[0].radius_nm[0] = 2000.0
    pieces[0].face_nm[[2, 4]] = 0.0
    found, report = join(pieces)
    # The second corner stays: the voxels beside it are two apart.
    assert found[1].nodes.tolist() == (nodes[[0, 1, 3, 5, 6, 4]] + 0.5).tolist()
    assert tip_count(found[1]) == 2
    assert report.doubled_nm == pytest.approx(1000 * (1 + np.sqrt(2) - 1))


def reference_ticks(lengths: dict[frozenset[int], float], limit: float) -> set[frozenset[int]]:
    """Remove the shortest side branch again and again, everything computed anew each time."""
    edges = dict(lengths)
    while True:
        degree: dict[int, int] = {}
        for node in (n for edge in edges for n in edge):
            degree[node] = degree.get(node, 0) + 1
        branches = []
        for tip in (n for n, d in degree.items() if d == 1):
            total, node, gone = 0.0, tip, set[frozenset[int]]()
            while node == tip or degree[node] == 2:
                onward = next(e for e in edges if node in e and e not in gone)
                gone.add(onward)
                total += edges[onward]
                (node,) = onward - {node}
            if degree[node] >= 3 and total < limit:
                branches.append((total, tip, gone))
        if not branches:
            return set(edges)
        for edge in min(branches, key=lambda b: b[:2])[2]:
            del edges[edge]


@given(st.integers(0, 2**32 - 1), st.integers(3, 25), st.integers(0, 4))
@settings(deadline=None, max_examples=80, derandomize=True)
def test_ticks_on_graphs_with_cycles_agree_with_the_slow_way(
    seed: int, count: int, extra: int
) -> None:
    rng = np.random.default_rng(seed)
    positions = rng.random((count, 3)) * 10
    pairs = {(n, int(rng.integers(max(0, n - 4), n))) for n in range(1, count)}
    drawn = np.sort(rng.integers(0, count, (extra, 2)), axis=1)[:, ::-1].tolist()
    pairs |= {(a, b) for a, b in drawn if a != b}
    edges = np.array(sorted(pairs), np.int64)
    lengths = np.sqrt(((positions[edges[:, 0]] - positions[edges[:, 1]]) ** 2).sum(axis=1))
    names = [frozenset(e) for e in edges.tolist()]
    alive, _ = prune_ticks(positions, edges, 7.0)
    kept = {n for n, e in zip(names, edges, strict=True) if alive[e].all()}
    assert kept == reference_ticks(dict(zip(names, lengths.tolist(), strict=True)), 7.0)


def drawn(shape: Triple, centre_lines: Sequence[Points], radius: float) -> NDArray[np.uint64]:
    """Label 1 on the voxels whose centres lie within the radius of a line of points."""
    volume = np.zeros(shape, np.uint64)
    span = np.arange(-int(radius) - 1, int(radius) + 2)
    ball = np.stack(np.meshgrid(span, span, span, indexing="ij"), axis=-1).reshape(-1, 3)
    for points in centre_lines:
        voxels = (np.floor(points).astype(int)[:, None] + ball).reshape(-1, 3)
        away = ((voxels + 0.5 - np.repeat(points, len(ball), axis=0)) ** 2).sum(axis=1)
        volume[tuple(voxels[away <= radius**2].T)] = 1
    return volume


def drawn_inside(shape: Triple, line: Points, radius: float) -> NDArray[np.uint64]:
    """As `drawn`, of a line whose tube may leave the volume."""
    rim = int(radius) + 2
    depth, height, width = (length + 2 * rim for length in shape)
    wider = drawn((depth, height, width), [line + rim], radius)
    return np.ascontiguousarray(wider[rim:-rim, rim:-rim, rim:-rim])


def circle(centre: Sequence[float], radius: float) -> Points:
    angle = np.linspace(0, 2 * np.pi, 500)
    offset = radius * np.stack([0 * angle, np.cos(angle), np.sin(angle)], axis=1)
    return np.asarray(centre) + offset


def blockwise(
    volume: NDArray[np.uint64],
    block: Triple,
    *,
    context: bool = True,
    size: tuple[float, float, float] = SIZE,
) -> tuple[Skeleton, JoinReport]:
    whole = Roi((0, 0, 0), volume.shape)  # type: ignore[arg-type]
    pieces = []
    for part in BlockGrid(whole, block, (0, 0, 0), (1, 1, 1)):
        seen = part.write.grow(context_vox(size)).intersect(whole) if context else part.read
        pieces.append(
            skeletonize_block(
                volume[seen.slices],
                origin=seen.offset,
                voxel_size_nm=size,
                settings=DEFAULTS,
                block=part.write.relative_to(seen) if context else None,
            )
        )
    found, report = join_pieces(pieces, voxel_size_nm=size, settings=DEFAULTS)
    return found[1], report


@pytest.mark.parametrize(
    "block", [(52, 26, 52), (52, 26, 26), (26, 26, 26), (20, 26, 30), (26, 22, 31)]
)
@pytest.mark.parametrize("offset", [(0.0, 0.0, 0.0), (0.5, 0.3, 0.2), (2.0, 1.0, 0.0)])
@pytest.mark.parametrize(("radius", "tube"), [(17.0, 1.5), (19.0, 2.0)])
def test_a_ring_over_several_blocks_is_one_ring(
    block: Triple, offset: tuple[float, float, float], radius: float, tube: float
) -> None:
    centre = np.array([26.0, 26.0, 26.0]) + offset
    skeleton, _ = blockwise(drawn((52, 52, 52), [circle(centre, radius)], tube), block)
    assert (rings_of(skeleton), tip_count(skeleton)) == (1, 0)
    assert components(len(skeleton.nodes), skeleton.edges).max() == 0


@pytest.mark.parametrize("radius", [1.3, 2.0, 3.5])
@pytest.mark.parametrize("block", [(24, 48, 96), (24, 24, 48), (24, 24, 24)])
def test_a_tube_along_a_face_has_no_ring(radius: float, block: Triple) -> None:
    for shift in (0.0, 0.5, 1.0, radius * 0.6, radius - 0.3):
        ends = np.array([[24 + shift, 24 + shift / 2, 12], [24 + shift, 24 + shift / 2, 84]])
        line = np.linspace(*ends, 200)
        skeleton, _ = blockwise(drawn((48, 48, 96), [line], radius), block)
        assert (rings_of(skeleton), tip_count(skeleton)) == (0, 2), shift


@pytest.mark.parametrize("radius", [5.0, 5.5, 6.0])
@pytest.mark.parametrize("block", [(64, 32, 80), (32, 32, 80), (22, 32, 20)])
def test_a_wide_tube_along_a_face_has_its_own_centre_line(radius: float, block: Triple) -> None:
    # Wider than a block looks: outer parts have skeletons of their own, as long as the axis.
    for shift in (-2.0, 0.0, 0.5, 2.0):
        axis = np.array([32.0, 32.0 + shift])
        line = np.linspace([*axis, 0], [*axis, 79.9], 400)
        skeleton, _ = blockwise(drawn_inside((64, 64, 80), line, radius), block, size=FINE)
        nodes = skeleton.nodes
        away = np.sqrt(((nodes[:, :2] - axis) ** 2).sum(axis=1))
        assert (rings_of(skeleton), tip_count(skeleton)) == (0, 2), shift
        assert away.max() < 2.0, shift


@pytest.mark.parametrize("lean", [0.8, 1.0, 1.6])
def test_a_tube_that_crosses_a_face_at_a_flat_angle_keeps_its_centre_line(lean: float) -> None:
    # The patch that two blocks share is as long as the tube: its centre is not where it crosses.
    line = np.linspace([40.4, 32.0 - lean, 0.0], [40.9, 32.0 + lean, 95.9], 600)
    skeleton, _ = blockwise(drawn_inside((64, 64, 96), line, 5.0), (64, 32, 96), size=FINE)
    direction = (line[-1] - line[0]) / np.linalg.norm(line[-1] - line[0])
    across = skeleton.nodes - line[0]
    across -= (across @ direction)[:, None] * direction
    assert (rings_of(skeleton), tip_count(skeleton)) == (0, 2)
    assert np.sqrt((across**2).sum(axis=1)).max() < 3.0


def test_a_wide_ring_has_no_spokes() -> None:
    ring = drawn((60, 90, 90), [circle((30.3, 45.1, 45.4), 30.0)], 4.4)
    skeleton, _ = blockwise(ring, (60, 90, 90), size=FINE)
    assert (rings_of(skeleton), tip_count(skeleton)) == (1, 0)


def test_nodes_that_touch_across_a_face_are_tied_unless_they_are_already() -> None:
    one = path([[5, 5, x] for x in range(6)], face_nm=0.0)
    other = path([[5, 5, 6], [5, 6, 7], [5, 7, 8]], face_nm=0.0)
    far = path([[5, 5, 8], [5, 5, 9]], face_nm=9000.0)
    welded = weld([one, other, far])
    pairs = welded.voxels[touching_edges(welded, SIZE)].tolist()
    assert {frozenset(map(tuple, pair)) for pair in pairs} == {frozenset({(5, 5, 5), (5, 5, 6)})}


@pytest.mark.parametrize("block", [(40, 40, 80), (40, 20, 40), (20, 20, 20)])
@pytest.mark.parametrize("thick", [55.0, 66.0, 70.0, 74.0])
def test_a_tube_reaches_the_borders_of_the_volume_wherever_its_root_lies(
    block: Triple, thick: float
) -> None:
    # It is rooted where it is thickest; close to its end, what stays beyond the root is near too.
    volume = drawn_inside((40, 40, 80), np.linspace([20.2, 20.7, 0], [20.2, 20.7, 79.9], 400), 3.2)
    volume |= drawn_inside((40, 40, 80), np.array([[20.2, 20.7, thick]]), 4.2)
    skeleton, _ = blockwise(volume, block, size=FINE)
    assert skeleton.nodes[:, 2].min() < 1.0
    assert skeleton.nodes[:, 2].max() > 79.0
    assert (rings_of(skeleton), tip_count(skeleton)) == (0, 2)


@pytest.mark.parametrize("block", [(24, 24, 48), (24, 24, 24)])
def test_a_rough_tube_along_a_face_has_no_ring(block: Triple) -> None:
    rng = np.random.default_rng(3)
    line = np.linspace([25.0, 24.5, 12], [25.0, 24.5, 84], 200)
    inner = drawn((48, 48, 96), [line], 2.0)
    outer = drawn((48, 48, 96), [line], 5.0)
    rough = np.where(rng.random(outer.shape) < 0.6, outer, inner)
    skeleton, report = blockwise(rough, block, context=False)
    assert rings_of(skeleton) == 0
    assert report.loops_opened > 0


def test_pieces_without_their_soma_column_have_no_soma() -> None:
    piece = replace(path([[0, 0, x] for x in range(9)]), soma=np.zeros(0, np.bool_))
    found, report = join([piece])
    assert (report.somata, len(found[1].nodes)) == (0, 9)
