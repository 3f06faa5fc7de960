"""One block: components, distances, tracers, limits, soma mask, settings."""

from __future__ import annotations

from dataclasses import dataclass
from unittest import mock

import cc3d
import edt
import kimimaro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from pipeline.arrays import skeleton_block_trace
from pipeline.arrays.betti import euler_characteristic
from pipeline.arrays.skeleton_block_body import Body, Canvas, euler_of
from pipeline.arrays.skeleton_block_cut import context_vox, share_of, smallest_block
from pipeline.arrays.skeleton_block_distance import distances_inside
from pipeline.arrays.skeleton_block_kernels import draw_paths
from pipeline.arrays.skeleton_block_runs import Components, find_components, keep_voxels
from pipeline.arrays.skeleton_join import join_pieces
from pipeline.arrays.skeleton_settings import SkeletonSettings, check_settings, const_nm
from pipeline.arrays.skeletons import (
    BlockSkeletonReport,
    BlockSkeletons,
    SkeletonPieces,
    VoxelSize,
    skeletonize_block,
    trace_block,
)
from pipeline.errors import ConfigError, DtypeError, InputError, ShapeError
from pipeline.geometry import BlockGrid, Roi

ISOTROPIC: VoxelSize = (1000.0, 1000.0, 1000.0)
DEFAULTS = SkeletonSettings()
Labels = NDArray[np.uint64]


def traced(
    labels: Labels,
    voxel_size_nm: VoxelSize = ISOTROPIC,
    soma_mask: NDArray[np.bool_] | None = None,
    **changes: object,
) -> BlockSkeletons:
    return trace_block(
        labels,
        origin=(0, 0, 0),
        voxel_size_nm=voxel_size_nm,
        settings=DEFAULTS.model_copy(update=changes),
        soma_mask=soma_mask,
    )


def some_labels(seed: int) -> Labels:
    """A small block at any density; now and then one that is full."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 9, 3))
    labels = rng.integers(2**63 - 1, 2**63 + 2, shape, np.uint64)
    if seed % 4 == 0:
        labels[:] = 2**63
    else:
        labels[rng.random(shape) > rng.random()] = 0
    return labels


def parts_of(pieces: SkeletonPieces) -> NDArray[np.int64]:
    """(N,) the smallest node that each node is tied to."""
    part = np.arange(len(pieces.nodes))
    for _ in range(len(part)):
        before = part.copy()
        np.minimum.at(part, pieces.edges[:, 0], part[pieces.edges[:, 1]])
        np.minimum.at(part, pieces.edges[:, 1], part[pieces.edges[:, 0]])
        if (part == before).all():
            break
    return part


def rings(pieces: SkeletonPieces) -> int:
    return len(pieces.edges) - len(pieces.nodes) + len(np.unique(parts_of(pieces)))


def ball(shape: tuple[int, int, int], centre: tuple[float, ...], radius: float) -> Labels:
    grid = np.moveaxis(np.indices(shape), 0, -1)
    inside: Labels = (((grid - centre) ** 2).sum(axis=-1) <= radius**2).astype(np.uint64)
    return inside


def bar(shape: tuple[int, int, int], a: tuple[float, ...], b: tuple[float, ...]) -> Labels:
    """A tube of radius 2 from a to b."""
    grid = np.moveaxis(np.indices(shape), 0, -1)
    start, way = np.array(a), np.subtract(b, a)
    along = np.clip((grid - start) @ way / (way @ way), 0, 1)
    squares = ((grid - start - along[..., None] * way) ** 2).sum(axis=-1)
    inside: Labels = (squares <= 4).astype(np.uint64)
    return inside


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_components_distances_and_euler_agree_with_the_libraries(seed: int) -> None:
    labels = some_labels(seed)
    size = tuple(np.random.default_rng(seed).integers(1, 6, 3) * 130.0)
    small = (labels - np.uint64(2**63 - 2)) * (labels > 0)
    expected, count = cc3d.connected_components(
        small.astype(np.uint8), connectivity=26, return_N=True
    )
    found = find_components(labels)
    distance, canvas = distances_inside(labels, found, size), Canvas(found.shape, size)
    assert len(found.labels) == count
    numbers, firsts = [], []
    for part in found.by_segment():
        voxels = part.voxels()
        inside = expected == expected[tuple(voxels[0])]
        np.testing.assert_array_equal(voxels, np.argwhere(inside))
        assert (labels[inside] == np.uint64(part.label)).all()
        numbers.append((part.label, part.number))
        firsts.append((part.number, *voxels[0]))
        low, high = voxels.min(axis=0), voxels.max(axis=0)
        assert (part.low.tolist(), part.high.tolist()) == (low.tolist(), high.tolist())
        np.testing.assert_array_equal(found.voxels()[part.rows()], voxels)
        with canvas.painted(part, distance[part.rows()]) as body:
            assert euler_of(body) == euler_characteristic(inside)
            assert (body.rows(voxels) == np.arange(part.count)).all()
            assert (body.rows(np.argwhere(~inside)) == -1).all()
        reference = edt.edt(inside, anisotropy=size, black_border=bool(inside.all()))
        np.testing.assert_allclose(distance[part.rows()], reference[inside], rtol=1e-6)
    assert numbers == sorted(numbers)
    by_number = [first[1:] for first in sorted(firsts)]
    assert by_number == sorted(by_number)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, derandomize=True, max_examples=20)
def test_distances_of_thick_objects_agree_with_the_library(seed: int) -> None:
    """Thick and thin side by side; the deepest voxels see no surface by themselves."""
    rng = np.random.default_rng(seed)
    shape = (24, 30, 70)
    labels = np.zeros(shape, np.uint64)
    for label in range(1, 7):
        centre, radius = rng.uniform(0, shape), rng.uniform(1, 12)
        labels[ball(shape, tuple(centre), radius) > 0] = label
    size = tuple(rng.integers(1, 6, 3) * 130.0)
    found = find_components(labels)
    reference = edt.edt(labels.astype(np.uint32), anisotropy=size)
    distance = distances_inside(labels, found, size)
    np.testing.assert_allclose(distance, reference[tuple(found.voxels().T)], rtol=1e-6)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, derandomize=True, max_examples=40)
def test_what_is_kept_of_a_block_is_what_a_block_of_it_gives(seed: int) -> None:
    labels, rng = some_labels(seed), np.random.default_rng(seed)
    found = find_components(labels)
    voxels = found.voxels()
    begin = rng.integers(0, 3, 3) % np.array(labels.shape)
    box = Roi.between(tuple(begin.tolist()), labels.shape)
    kept = (voxels >= begin).all(axis=1) & (rng.random(len(voxels)) < 0.7)
    left = np.zeros_like(labels)
    left[tuple(voxels[kept].T)] = labels[tuple(voxels[kept].T)]
    expected = find_components(left[box.slices])
    cut = keep_voxels(found, kept, box)
    assert cut.shape == box.shape
    for name in ("runs", "starts", "number", "labels", "counts", "low", "high"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(cut.voxels(), voxels[kept] - begin)


def test_long_stretches_of_background_hide_no_run() -> None:
    row = np.zeros(200, np.uint64)
    for begin, end in ((15, 17), (31, 33), (48, 49), (66, 67), (67, 70), (199, 200)):
        row[begin:end] = begin
    found = find_components(row[None, None])
    assert found.runs[:, 2:].tolist() == [
        [15, 16], [31, 32], [48, 48], [66, 66], [67, 69], [199, 199]
    ]  # fmt: skip


def test_runs_that_touch_at_corners_are_one_component() -> None:
    labels = np.zeros((1, 2, 9), np.uint64)
    labels[0, 0] = [1, 1, 2, 2, 0, 1, 0, 2, 0]
    labels[0, 1] = [2, 2, 1, 1, 0, 0, 1, 0, 2]
    found = find_components(labels)
    assert found.labels.tolist() == [1, 2, 1, 2]
    assert found.counts.tolist() == [4, 4, 2, 2]


def test_rows_are_sorted_by_segment_and_independent_of_memory_order() -> None:
    rng = np.random.default_rng(4)
    labels = np.zeros((20, 24, 28), np.uint64)
    for z in range(2, 20, 4):
        labels[z, 5:20, 3:25] = rng.permutation(np.array([2**63, 7, 2**64 - 1, 1], np.uint64))[0]
        labels[z, 12, :] = 0
    plain = traced(labels).pieces
    assert (np.diff(plain.segment.astype(object)) >= 0).all()
    assert (np.diff(plain.segment[plain.edges[:, 0]].astype(object)) >= 0).all()
    assert (plain.segment[plain.edges[:, 0]] == plain.segment[plain.edges[:, 1]]).all()
    held = labels[tuple(np.floor(plain.nodes).astype(int).T)]
    np.testing.assert_array_equal(held, plain.segment)
    wide = np.zeros((20, 24, 56), np.uint64)
    wide[:, :, ::2] = labels
    for other in (np.asfortranarray(labels), wide[:, :, ::2], labels[::-1].copy()[::-1]):
        for name, column in traced(other).pieces.columns().items():
            np.testing.assert_array_equal(column, plain.columns()[name], err_msg=name)


def test_components_by_kimimaro_are_those_of_kimimaro() -> None:
    labels = bar((30, 40, 50), (4, 5, 6), (25, 33, 44))
    found = kimimaro.skeletonize(
        labels.T,
        teasar_params={
            "scale": DEFAULTS.scale,
            "const": const_nm(DEFAULTS, ISOTROPIC),
            "pdrf_scale": DEFAULTS.centring_weight,
            "pdrf_exponent": DEFAULTS.centring_exponent,
            "soma_detection_threshold": 3000,
            "soma_acceptance_threshold": 4500,
        },
        anisotropy=ISOTROPIC,
        dust_threshold=0,
        fix_borders=False,
        progress=False,
    )[1]
    pieces = traced(labels, tracer="kimimaro").pieces
    order = np.lexsort(pieces.nodes.T)
    expected = found.vertices[:, ::-1] / 1000 + 0.5
    np.testing.assert_allclose(pieces.nodes[order], expected[np.lexsort(expected.T)])
    np.testing.assert_allclose(np.sort(pieces.radius_nm), np.sort(found.radii), rtol=1e-6)


def test_own_paths_draw_what_kimimaro_draws() -> None:
    labels = bar((40, 40, 50), (5, 20, 5), (20, 20, 25)) | bar(
        (40, 40, 50), (20, 20, 25), (35, 8, 45)
    )
    labels |= bar((40, 40, 50), (20, 20, 25), (33, 35, 33))
    labels[0, 20, 3:9] = 0
    theirs = traced(labels, tracer="kimimaro").pieces
    ours = traced(labels)
    with mock.patch.object(skeleton_block_trace, "MOST_TIPS", 0):
        tangled = traced(labels, tracer="kimimaro")
    assert (ours.report.tangled, tangled.report.tangled) == (0, 1)
    np.testing.assert_array_equal(tangled.pieces.nodes, ours.pieces.nodes)
    for pieces in (theirs, ours.pieces):
        assert len(np.unique(parts_of(pieces))) == 1
        assert rings(pieces) == 0
        assert (np.bincount(pieces.edges.ravel()) == 1).sum() == 3
    away = np.abs(theirs.nodes[:, None] - ours.pieces.nodes[None]).max(axis=2)
    assert np.median(away.min(axis=1)) <= 1
    assert away.min(axis=1).max() <= 3


def test_counts_of_the_report() -> None:
    labels = np.zeros((12, 12, 12), np.uint64)
    labels[5, 5, 4:6] = 1
    labels[0, 2, 2:4] = 2
    labels[7, 2:9, 7] = 3
    labels[10, 10, 10] = 4
    labels[0, 10, 0] = 3
    found = traced(labels, min_voxels=3)
    assert found.report == BlockSkeletonReport(components=5, skipped=2, single_nodes=1)
    assert set(found.pieces.segment.tolist()) == {2, 3}
    assert traced(np.zeros((3, 4, 5), np.uint64)).report == BlockSkeletonReport()
    assert len(traced(np.zeros((0, 4, 5), np.uint64)).pieces.nodes) == 0


def test_a_component_that_fills_the_block_keeps_its_ways_to_the_faces() -> None:
    labels = np.full((20, 22, 24), 9, np.uint64)
    found = traced(labels)
    assert found.report.limited == 1
    assert found.report.limited_voxels == labels.size
    assert rings(found.pieces) == 0
    assert len(np.unique(parts_of(found.pieces))) == 1
    at_faces = found.pieces.nodes[found.pieces.face_nm == 0]
    tips = np.bincount(found.pieces.edges.ravel()) == 1
    # One patch on each face; ways may share voxels on their last steps.
    assert len(at_faces) >= 6
    assert tips.sum() <= 6
    steps = found.pieces.nodes[found.pieces.edges]
    assert np.abs(steps[:, 0] - steps[:, 1]).max() == 1
    assert traced(labels, max_fill=1.0).report.limited == 0


def test_the_share_that_limits_counts_a_component_not_a_label() -> None:
    labels = np.zeros((10, 10, 10), np.uint64)
    labels[:2], labels[5:7] = 1, 1
    assert traced(labels, max_fill=0.2).report.limited == 0
    found = traced(labels, max_fill=0.19).report
    assert (found.limited, found.limited_voxels) == (2, 400)


def test_a_limited_component_away_from_the_faces_gets_one_way() -> None:
    labels = np.zeros((12, 12, 12), np.uint64)
    labels[1:-1, 1:-1, 1:-1] = 3
    found = traced(labels)
    assert found.report.limited == 1
    assert (np.bincount(found.pieces.edges.ravel()) == 1).sum() == 2


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.12, 0.3, 0.7]),
    st.sampled_from([("paths", 64), ("kimimaro", 0), ("kimimaro", 64)]),
)
@settings(deadline=None, derandomize=True, max_examples=30)
def test_every_component_of_noise_is_one_piece_inside_itself(
    seed: int, share: float, traced_by: tuple[str, int]
) -> None:
    tracer, most_tips = traced_by
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 4, (14, 15, 16)).astype(np.uint64)
    labels[rng.random(labels.shape) > share] = 0
    with mock.patch.object(skeleton_block_trace, "MOST_TIPS", most_tips):
        pieces = traced(labels, keep_loops=False, const_nm=1000.0, tracer=tracer).pieces
    expected = cc3d.connected_components(labels.astype(np.uint8), connectivity=26)
    inside = expected[tuple(np.floor(pieces.nodes).astype(int).T)]
    part = parts_of(pieces)
    assert len(np.unique(part)) == expected.max()
    assert len(np.unique(np.stack([part, inside]), axis=1).T) == expected.max()
    assert rings(pieces) == 0
    assert (labels[tuple(np.floor(pieces.nodes).astype(int).T)] == pieces.segment).all()
    # Every voxel lies within the reach of a node of its component, and a step more.
    away = cKDTree(pieces.nodes).query(np.argwhere(labels > 0) + 0.5)[0]
    assert away.max() <= 1 + DEFAULTS.scale * pieces.radius_nm.max() / 1000 + np.sqrt(3)


@dataclass(frozen=True)
class Drawn:
    """The largest component of noise and the tree that was drawn into it."""

    body: Body
    price: NDArray[np.float64]
    reach: NDArray[np.float64]
    outward: NDArray[np.int64]
    drawn: NDArray[np.bool_]
    onward: NDArray[np.int64]


def draw_into_noise(seed: int, targets: int, longest_reach: float) -> Drawn:
    rng = np.random.default_rng(seed)
    labels = (rng.random((9, 10, 11)) < 0.4).astype(np.uint64)
    found = find_components(labels)
    part = max(found.by_segment(), key=lambda component: component.count)
    price, outward = rng.random(part.count) * 100, rng.permutation(part.count)
    reach = rng.random(part.count) * longest_reach
    with Canvas(found.shape, (2.0, 1.0, 1.0)).painted(part, np.zeros(part.count)) as body:
        drawn, onward = draw_paths(
            int(outward[0]), outward[1 : 1 + targets].copy(), outward, price, reach,
            body.places, body.voxel_at, body.offsets, body.lengths_nm,
            body.voxels * np.array([2.0, 1.0, 1.0]),
        )  # fmt: skip
    return Drawn(body, price, reach, outward, drawn, onward)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, derandomize=True, max_examples=20)
def test_without_reach_every_voxel_is_drawn_towards_the_root(seed: int) -> None:
    found = draw_into_noise(seed, 5, 0.0)
    onward, root = found.onward, found.outward[0]
    assert found.drawn.all()
    assert np.flatnonzero(onward < 0).tolist() == [root]
    others = np.flatnonzero(onward >= 0)
    step = np.abs(found.body.voxels[others] - found.body.voxels[onward[others]])
    assert (step.max(axis=1) == 1).all()
    node = np.arange(len(onward))
    for _ in range(len(onward)):
        node = np.where(onward[node] >= 0, onward[node], node)
    assert (node == root).all()


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, derandomize=True, max_examples=20)
def test_one_path_is_the_cheapest_way_of_the_library(seed: int) -> None:
    found = draw_into_noise(seed, 1, 1e6)
    at = found.body.voxels
    ends = np.argwhere(np.abs(at[:, None] - at[None]).max(axis=2) == 1)
    apart = np.linalg.norm((at[ends[:, 0]] - at[ends[:, 1]]) * [2.0, 1.0, 1.0], axis=1)
    paid = csr_array((apart * found.price[ends[:, 1]], (ends[:, 0], ends[:, 1])))
    root, target = found.outward[:2]
    before = dijkstra(paid, indices=target, return_predecessors=True)[1]
    way = [int(root)]
    while way[-1] != target:
        way.append(int(before[way[-1]]))
    assert set(np.flatnonzero(found.drawn).tolist()) == set(way)


@given(st.integers(0, 2**32 - 1), st.integers(0, 9))
@settings(deadline=None, derandomize=True, max_examples=30)
def test_every_voxel_lies_within_the_reach_of_a_node(seed: int, targets: int) -> None:
    found = draw_into_noise(seed, targets, 4.0)
    assert found.drawn[found.outward[: 1 + targets]].all()
    nodes = np.flatnonzero(found.drawn)
    at = found.body.voxels * [2.0, 1.0, 1.0]
    apart = np.linalg.norm(at[:, None] - at[None, nodes], axis=2)
    assert ((apart <= found.reach[nodes] + 1e-9) | (apart == 0)).any(axis=1).all()
    # No tip but the root and the targets was within the reach of the root.
    tips = np.setdiff1d(nodes, found.onward[nodes])
    tips = np.setdiff1d(tips, found.outward[: 1 + targets])
    beside = np.abs(found.body.voxels[tips] - found.body.voxels[found.outward[0]]).max(axis=1) == 1
    away = np.linalg.norm(at[tips] - at[found.outward[0]], axis=1)
    assert (away[beside] > found.reach[found.outward[0]]).all()


def test_a_side_branch_of_a_dendrite_is_not_tied_to_the_soma() -> None:
    shape = (60, 64, 72)
    labels = ball(shape, (30, 30, 20), 9) | bar(shape, (30, 30, 20), (30, 30, 68))
    labels |= bar(shape, (30, 30, 48), (30, 55, 58))
    pieces = traced(labels, keep_loops=False).pieces
    assert rings(pieces) == 0
    ends = pieces.nodes[pieces.edges]
    long = np.sqrt(((ends[:, 0] - ends[:, 1]) ** 2).sum(axis=1)) > 2
    # What is long begins in the soma and goes no further than its reach.
    assert np.sqrt(((ends[long] - [30.5, 30.5, 20.5]) ** 2).sum(axis=2)).max(initial=0) < 20


def test_a_filled_hole_of_a_soma_is_still_its_segment() -> None:
    labels = ball((40, 40, 40), (20, 20, 20), 12) * np.uint64(5)
    labels[ball((40, 40, 40), (20, 20, 20), 5) > 0] = 0
    labels |= np.uint64(5) * bar((40, 40, 40), (20, 30, 20), (20, 39, 20))
    pieces = traced(labels).pieces
    assert set(pieces.segment.tolist()) == {5}


def test_the_soma_mask_marks_nodes() -> None:
    labels = bar((12, 12, 40), (6, 6, 2), (6, 6, 37))
    mask = np.zeros(labels.shape, np.bool_)
    mask[:, :, 10:21] = True
    plain, masked = traced(labels).pieces, traced(labels, soma_mask=mask).pieces
    assert not plain.soma.any()
    assert plain.soma.dtype == masked.soma.dtype == np.bool_
    x = np.floor(masked.nodes[:, 2]).astype(int)
    np.testing.assert_array_equal(masked.soma, (x >= 10) & (x < 21))
    np.testing.assert_array_equal(plain.nodes, masked.nodes)
    with pytest.raises(ShapeError, match=r"soma mask has shape \(3, 3, 3\)"):
        traced(labels, soma_mask=np.zeros((3, 3, 3), bool))
    with pytest.raises(DtypeError, match="soma mask of bool, got uint8"):
        traced(labels, soma_mask=mask.astype(np.uint8))  # type: ignore[arg-type]


def test_tables_without_a_soma_column() -> None:
    columns = traced(bar((8, 8, 20), (4, 4, 2), (4, 4, 17))).pieces.columns()
    del columns["soma"]
    table = SkeletonPieces(**columns)
    np.testing.assert_array_equal(table.soma, np.zeros(len(table.nodes), bool))
    both = SkeletonPieces.concatenate([table, table])
    assert len(both.soma) == 2 * len(table.nodes)
    with pytest.raises(ShapeError, match="unequal"):
        SkeletonPieces(**columns, soma=np.ones(1, bool))


def test_skeletonize_block_gives_the_pieces() -> None:
    labels = bar((12, 12, 40), (6, 6, 2), (6, 6, 37))
    mask = labels > 0
    pieces = skeletonize_block(
        labels, origin=(3, 4, 5), voxel_size_nm=ISOTROPIC, settings=DEFAULTS, soma_mask=mask
    )
    np.testing.assert_array_equal(pieces.nodes - [3, 4, 5], traced(labels).pieces.nodes)
    assert pieces.soma.all()


@pytest.mark.parametrize(
    ("size", "changes", "error", "match"),
    [
        ((0.4, 0.2, 0.2), {}, InputError, "give nanometres, not micrometres"),
        ((5100.0, 100.0, 100.0), {}, InputError, "51 times the shortest"),
        ((0.0, 100.0, 100.0), {}, InputError, "positive edges"),
        ((float("nan"), 100.0, 100.0), {}, InputError, "positive edges"),
        ((1000.0, 100.0, 100.0), {"const_nm": 800.0}, ConfigError, "raise const_nm to 1000"),
        ((1000.0, 100.0, 100.0), {"soma_acceptance_nm": 900.0}, ConfigError, "soma_acceptance_nm"),
        ((1000.0, 100.0, 100.0), {"soma_detection_nm": 900.0}, ConfigError, "soma_detection_nm"),
        ((1000.0, 100.0, 100.0), {"tick_nm": 99.0}, ConfigError, "tick_nm is 99"),
    ],
)
def test_settings_that_cannot_work(
    size: VoxelSize, changes: dict[str, float], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        check_settings(size, SkeletonSettings(**changes))
    with pytest.raises(error, match=match):
        traced(np.zeros((3, 3, 3), np.uint64), size, **changes)


@pytest.mark.parametrize("edge", [1.0, 200.0, 20_000.0])
def test_defaults_work_on_every_voxel_size(edge: float) -> None:
    check_settings((50 * edge, edge, edge), DEFAULTS)
    check_settings((edge, edge, edge), SkeletonSettings(tick_nm=0, const_nm=0))
    size = (edge, edge, edge)
    assert DEFAULTS.soma_acceptance(size) > DEFAULTS.soma_detection(size) >= 3 * edge
    assert SkeletonSettings(soma_acceptance_nm=7.0).soma_acceptance(size) == 7.0


def beam(shape: tuple[int, int, int], low: tuple[int, ...], high: tuple[int, ...]) -> Labels:
    """A box from its first to its last voxel."""
    labels = np.zeros(shape, np.uint64)
    labels[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = 1
    return labels


def painted(components: Components) -> Labels:
    labels = np.zeros(components.shape, np.uint64)
    number = components.number_of_voxels().astype(np.int64)
    labels[tuple(components.voxels().T)] = components.labels[number - 1]
    return labels


def test_context_holds_two_climbs_and_the_depth() -> None:
    assert context_vox((100.0, 100.0, 100.0)) == (15, 15, 15)
    assert context_vox((250.0, 100.0, 300.0)) == (13, 15, 13)
    assert smallest_block() == 10


@pytest.mark.parametrize(("plane", "lower"), [(18, 0), (20, 0), (21, 7), (24, 7)])
def test_a_beam_along_a_face_goes_to_one_block(plane: int, lower: int) -> None:
    """Seven voxels wide around z = 20: the block that holds the axis holds all of it."""
    labels = beam((40, 20, 60), (17, 7, 5), (23, 13, 54))
    below = share_of(labels, Roi((0, 0, 0), (plane, 20, 60)), ISOTROPIC)
    above = share_of(labels, Roi((plane, 0, 0), (40 - plane, 20, 60)), ISOTROPIC)
    sections = [np.unique(s.components.voxels()[:, 0]) for s in (below, above)]
    assert [len(s) for s in sections] == [lower, 7 - lower]
    assert len(below.seam) == len(above.seam) == 0
    assert above.roi == Roi((plane - 5, 0, 0), (45 - plane, 20, 60))


def test_a_beam_across_a_face_is_cut_at_its_axis() -> None:
    labels = beam((20, 20, 60), (7, 7, 5), (13, 13, 54))
    begin, end = (
        share_of(labels, Roi((0, 0, x), (20, 20, 30)), ISOTROPIC) for x in (0, 30)
    )  # fmt: skip
    shift = np.array([0, 0, 25])
    np.testing.assert_array_equal(begin.seam, end.seam + shift)
    assert begin.centres.tolist() == (end.centres + shift).tolist()
    (centre,) = begin.centres.tolist()
    assert centre[:2] == [10, 10]
    # To the surface, whatever the block: of the axis 4 voxels, but for the ends.
    z, y, x = begin.components.voxels().T
    axis = (z == 10) & (y == 10) & (x >= 10) & (x < 30)
    assert begin.distance_nm[axis].tolist() == [4000.0] * 20
    assert begin.outer.tolist() == [[True, True], [True, True], [True, False]]


def test_neighbours_find_the_same_seams() -> None:
    rng = np.random.default_rng(2)
    coarse = rng.integers(0, 3, (6, 7, 8), np.uint64)
    labels = coarse.repeat(5, 0).repeat(5, 1).repeat(5, 2)
    whole = Roi((0, 0, 0), labels.shape)
    held = np.zeros(labels.shape, int)
    seams: dict[tuple[int, ...], int] = {}
    centres: dict[tuple[int, ...], int] = {}
    for b in BlockGrid(whole, (13, 12, 14), (0, 0, 0)):
        seen = b.write.grow(context_vox((40.0, 30.0, 30.0))).intersect(whole)
        share = share_of(labels[seen.slices], b.write.relative_to(seen), (40.0, 30.0, 30.0))
        origin = np.add(seen.offset, share.roi.offset)
        view = tuple(slice(o, o + n) for o, n in zip(origin, share.roi.shape, strict=True))
        left = painted(share.components)
        assert (left[left > 0] == labels[view][left > 0]).all()
        held[view] += left > 0
        for found, table in ((share.seam, seams), (share.centres, centres)):
            for voxel in map(tuple, (found + origin).tolist()):
                table[voxel] = table.get(voxel, 0) + 1
    np.testing.assert_array_equal(held > 0, labels > 0)
    assert set(centres) <= set(seams)
    assert min(seams.values()) >= 2
    assert min(centres.values()) >= 2
    # What two blocks hold is seam.
    assert {tuple(v) for v in np.argwhere(held > 1).tolist()} <= set(seams)


def test_a_block_with_context() -> None:
    labels = beam((20, 20, 60), (7, 7, 5), (13, 13, 54))
    before = labels.copy()
    mask = np.zeros(labels.shape, bool)
    mask[:, :, 20:25] = True
    block = Roi((0, 0, 0), (20, 20, 30))
    found = trace_block(
        labels[:, :, :45],
        origin=(100, 200, 300),
        voxel_size_nm=ISOTROPIC,
        settings=DEFAULTS,
        soma_mask=mask[:, :, :45],
        block=block,
    ).pieces
    np.testing.assert_array_equal(labels, before)
    share = share_of(labels[:, :, :45], block, ISOTROPIC)
    inside = np.floor(found.nodes).astype(int) - [100, 200, 300]
    to_seam = cKDTree(share.seam).query(inside)[0] * 1000
    to_sides = np.minimum(inside, [19, 19, 99] - inside).min(axis=1) * 1000.0
    np.testing.assert_allclose(found.face_nm, np.minimum(to_seam, to_sides))
    np.testing.assert_array_equal(found.soma, (inside[:, 2] >= 20) & (inside[:, 2] < 25))
    assert (found.nodes - [100, 200, 300.5] == share.centres[0] + [0.5, 0.5, 0]).all(axis=1).any()


def test_a_block_that_is_all_there_is_needs_no_context() -> None:
    labels = some_labels(3)
    whole = Roi((0, 0, 0), labels.shape)
    plain = traced(labels).pieces
    found = skeletonize_block(
        labels, origin=(0, 0, 0), voxel_size_nm=ISOTROPIC, settings=DEFAULTS, block=whole
    )
    for name, column in found.columns().items():
        np.testing.assert_array_equal(column, plain.columns()[name])


def test_a_block_that_leaves_its_labels() -> None:
    with pytest.raises(ShapeError, match=r"leaves the labels of shape \(4, 4, 4\)"):
        trace_block(
            np.zeros((4, 4, 4), np.uint64),
            origin=(0, 0, 0),
            voxel_size_nm=ISOTROPIC,
            settings=DEFAULTS,
            block=Roi((0, 0, 2), (4, 4, 3)),
        )


@pytest.mark.parametrize(("end", "block"), [((23, 12, 35), 24), ((22, 9, 31), 24)])
def test_a_short_end_behind_a_face_is_not_lost(end: tuple[int, int, int], block: int) -> None:
    size = (300.0, 100.0, 100.0)
    axis = np.linspace((22.5, 30.0, 28.0), end, 200)
    grid = np.argwhere(np.ones((48, 48, 48), bool)) + 0.5
    away = np.sqrt((((grid[:, None] - axis[None, ::8]) * size) ** 2).sum(axis=2)).min(axis=1)
    labels = (away < 520).reshape(48, 48, 48).astype(np.uint64)

    def cable(block: int) -> float:
        whole = Roi((0, 0, 0), (48, 48, 48))
        pieces = []
        for part in BlockGrid.over(whole.shape, (block,) * 3):
            seen = part.write.grow(context_vox(size)).intersect(whole)
            inner = part.write.relative_to(seen)
            view = np.ascontiguousarray(labels[seen.slices])
            pieces.append(
                skeletonize_block(
                    view, origin=seen.offset, voxel_size_nm=size, settings=SkeletonSettings(),
                    block=inner,
                )
            )  # fmt: skip
        [skeleton] = join_pieces(pieces, voxel_size_nm=size, settings=SkeletonSettings())[
            0
        ].values()
        return float(skeleton.edge_lengths_nm(size).sum())

    assert cable(block) == pytest.approx(cable(48), rel=0.1)
