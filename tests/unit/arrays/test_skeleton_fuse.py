"""Skeletons of segments fused from those of fragments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_contacts import Contacts, find_contacts
from pipeline.arrays.skeleton_fuse import fuse_skeletons, nearest_nodes, smooth_branches
from pipeline.arrays.skeleton_prune import components
from pipeline.arrays.skeleton_settings import SkeletonSettings
from pipeline.errors import DtypeError, InputError

SIZE = (1000.0, 1000.0, 1000.0)
DEFAULTS = SkeletonSettings()
KEEP_ALL = SkeletonSettings(scale=0, const_nm=0, tick_nm=0)
NONE = np.zeros(0, np.uint64), np.zeros(0, np.uint64)


def lookup(**targets: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """`lookup(f3=7)` sends fragment 3 to segment 7."""
    rows = sorted((int(name[1:]), target) for name, target in targets.items())
    return np.array([r[0] for r in rows], np.uint64), np.array([r[1] for r in rows], np.uint64)


def line(name: int, *voxels: tuple[int, int, int], radius: float = 1000.0) -> Skeleton:
    index = np.arange(len(voxels))
    edges = np.stack([index[1:], index[:-1]], axis=1)
    return Skeleton(str(name), np.array(voxels) + 0.5, edges, np.full(len(voxels), radius))


def bar(cuts: tuple[int, ...], length: int = 60) -> tuple[NDArray[np.uint64], dict[int, Skeleton]]:
    """A bar of 3 x 3 along x, cut into fragments 1, 2, ..., and their centre lines."""
    labels = np.zeros((5, 5, length), np.uint64)
    found = {}
    for number, (begin, end) in enumerate(zip((0, *cuts), (*cuts, length), strict=True), 1):
        labels[1:4, 1:4, begin:end] = number
        found[number] = line(number, *((2, 2, x) for x in range(begin, end)))
    return labels, found


def touching(labels: NDArray[np.uint64]) -> Contacts:
    return find_contacts(labels, origin=(0, 0, 0), write_shape=labels.shape)  # type: ignore[arg-type]


def fuse(
    fragments: dict[int, Skeleton],
    contacts: Contacts,
    table: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    method: SkeletonSettings = DEFAULTS,
    smoothing: float = 0.0,
):
    return fuse_skeletons(
        fragments, contacts, table, voxel_size_nm=SIZE, settings=method, smoothing=smoothing
    )


def parts_of(skeleton: Skeleton) -> int:
    return int(components(len(skeleton.nodes), skeleton.edges).max() + 1)


def rings_of(skeleton: Skeleton) -> int:
    return len(skeleton.edges) - len(skeleton.nodes) + parts_of(skeleton)


def test_a_cut_bar_is_one_line_again() -> None:
    labels, fragments = bar((20, 31, 32))
    found, report = fuse(fragments, touching(labels), lookup(f2=1, f3=1, f4=1))
    assert list(found) == [1]
    skeleton = found[1]
    expected = [(2.5, 2.5, x + 0.5) for x in range(60)]
    assert sorted(map(tuple, skeleton.nodes.tolist())) == expected
    assert sorted(np.abs(np.diff(skeleton.edges, axis=1)).ravel().tolist()) == [1] * 59
    assert (report.fragments, report.segments, report.joints, report.rings) == (4, 1, 3, 0)
    assert report.cable_in_nm == pytest.approx(56_000)  # pieces of 19, 10, 0 and 27 edges
    assert report.cable_out_nm == pytest.approx(59_000)
    assert report.longest_joint_nm == pytest.approx(1000)


def test_the_lookup_decides() -> None:
    labels, fragments = bar((20, 40, 50))
    found, report = fuse(fragments, touching(labels), lookup(f1=7, f2=7, f4=0))
    assert sorted(found) == [3, 7], "an id that is not listed stays"
    assert (report.dropped, report.fragments, report.joints) == (1, 3, 1)
    assert len(found[7].nodes) == 40
    np.testing.assert_array_equal(found[3].nodes, fragments[3].nodes)
    np.testing.assert_array_equal(found[3].edges, fragments[3].edges)
    assert found[3].name == "3"


def test_fragments_that_do_not_touch_stay_apart() -> None:
    labels, fragments = bar((20, 40))
    found, report = fuse(fragments, touching(labels), lookup(f1=1, f3=1))
    assert parts_of(found[1]) == 2
    assert report.joints == 0


def test_ends_beside_a_joint_go() -> None:
    labels, fragments = bar((30,))
    # The trace of a fragment ends in a corner of its cut face.
    fragments[1] = line(1, *((2, 2, x) for x in range(28)), (1, 1, 28), (1, 1, 29))
    fragments[2] = line(2, (3, 3, 30), (3, 3, 31), *((2, 2, x) for x in range(32, 60)))
    skeleton = fuse(fragments, touching(labels), lookup(f2=1))[0][1]
    degree = np.bincount(skeleton.edges.ravel())
    assert (degree == 1).sum() == 2
    assert (degree > 2).sum() == 0
    assert parts_of(skeleton) == 1


def test_strands_side_by_side_become_one() -> None:
    labels = np.zeros((4, 4, 60), np.uint64)
    labels[:2], labels[2:] = 1, 2
    fragments = {
        1: line(1, *((1, 2, x) for x in range(60))),
        2: line(2, *((2, 2, x) for x in range(60))),
    }
    found, report = fuse(fragments, touching(labels), lookup(f2=1))
    assert report.cable_in_nm == pytest.approx(118_000)
    assert report.cable_out_nm == pytest.approx(59_000, rel=0.05)
    assert parts_of(found[1]) == 1


def frame(width: int) -> tuple[NDArray[np.uint64], dict[int, Skeleton]]:
    """A square frame one voxel thick, of four fragments, one a side."""
    labels = np.zeros((1, width, width), np.uint64)
    last = width - 1
    sides = [
        [(0, 0, k) for k in range(last)],
        [(0, k, last) for k in range(last)],
        [(0, last, k) for k in range(last, 0, -1)],
        [(0, k, 0) for k in range(last, 0, -1)],
    ]
    for number, side in enumerate(sides, 1):
        labels[tuple(np.array(side).T)] = number
    return labels, {n: line(n, *side) for n, side in enumerate(sides, 1)}


def test_a_ring_of_the_object_stays_and_a_pinhole_goes() -> None:
    together = lookup(f2=1, f3=1, f4=1)
    labels, fragments = frame(30)
    found, report = fuse(fragments, touching(labels), together)
    assert rings_of(found[1]) == report.rings == 1
    assert report.cable_out_nm == pytest.approx(4 * 29_000)
    assert parts_of(found[1]) == 1
    labels, fragments = frame(6)  # 20 voxels around: a hole narrower than the reach of 4.5 voxels
    found, report = fuse(fragments, touching(labels), together)
    assert rings_of(found[1]) == report.rings == 0


def test_one_ring_is_closed_once() -> None:
    """A ring four voxels wide, of many fragments: many edges could close it."""
    y, x = np.indices((4, 64, 64))[1:]
    away = np.hypot(y - 31.5, x - 31.5)
    inside = (away > 24) & (away < 28)
    rng = np.random.default_rng(0)
    voxels = np.argwhere(inside)
    seeds = voxels[rng.random(len(voxels)) < 1 / 40]
    owner = ((voxels[:, None] - seeds) ** 2).sum(axis=2).argmin(axis=1) + 1
    labels = np.zeros(inside.shape, np.uint64)
    labels[tuple(voxels.T)] = owner
    fragments = {}
    for number in np.unique(owner).tolist():
        own = voxels[owner == number]
        centre = own[((own - own.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        fragments[number] = line(number, tuple(centre.tolist()))
    ids = np.array(sorted(fragments), np.uint64)
    found, report = fuse(fragments, touching(labels), (ids, np.full(len(ids), 5, np.uint64)))
    assert parts_of(found[5]) == 1
    assert rings_of(found[5]) == report.rings == 1


def test_without_reach_every_edge_stays_once() -> None:
    labels, fragments = bar((20, 40))
    skeleton = fuse(fragments, touching(labels), lookup(f2=1, f3=1), KEEP_ALL)[0][1]
    assert len(skeleton.nodes) == 60
    assert len(np.unique(np.sort(skeleton.edges, axis=1), axis=0)) == len(skeleton.edges) == 59


def test_the_radius_at_a_cut_is_that_of_the_neurite() -> None:
    labels = np.zeros((11, 11, 40), np.uint64)
    disc = np.hypot(*np.indices((11, 11)) - 5) <= 5
    labels[disc, :20], labels[disc, 20:] = 1, 2
    # The cut counts as surface: the radius of a fragment falls towards it.
    thick = np.minimum(5000.0, 1000.0 * np.minimum(np.arange(40) + 1, 40 - np.arange(40)))
    thin = np.minimum(thick, 1000.0 * np.minimum(np.abs(np.arange(40) - 20) + 1, 20))
    nodes = np.array([(5.5, 5.5, k + 0.5) for k in range(40)])
    chain = np.stack([np.arange(1, 20), np.arange(19)], axis=1)
    fragments = {
        1: Skeleton("1", nodes[:20], chain, thin[:20]),
        2: Skeleton("2", nodes[20:], chain, thin[20:]),
    }
    found = fuse(fragments, touching(labels), lookup(f2=1), KEEP_ALL)[0][1]
    at = found.nodes[:, 2].argsort()
    middle = found.radii_nm[at][15:25]
    assert thin[15:25].min() == 1000
    assert middle.min() >= 3000  # the least is where both estimates have fallen by two voxels
    assert middle[5] == pytest.approx(1000 * (np.sqrt(disc.sum() / np.pi) - 0.5))
    assert middle.max() < 5200  # a disc of 81 pixels


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=15, derandomize=True)
def test_neither_the_order_of_fragments_nor_the_group_shows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 30, (6, 7, 8)).repeat(2, 0).repeat(2, 1).repeat(3, 2).astype(np.uint64)
    fragments = {}
    for name in rng.permutation(np.unique(labels)).tolist():
        own = np.argwhere(labels == name)
        own = own[rng.permutation(len(own))[: rng.integers(1, 6)]]
        own = np.unique(own, axis=0)
        fragments[name] = line(name, *map(tuple, own.tolist()), radius=float(rng.integers(1, 4000)))
    contacts = touching(labels)
    ids = np.array(sorted(fragments), np.uint64)
    targets = rng.integers(100, 104, len(ids)).astype(np.uint64)
    found, report = fuse(fragments, contacts, (ids, targets))
    turned, again = fuse(dict(reversed(fragments.items())), contacts, (ids, targets))
    assert again == report
    assert list(found) == list(turned) == sorted(found)
    alone = {}
    for segment in np.unique(targets).tolist():
        group = {i: fragments[i] for i in ids[targets == segment].tolist()}
        alone.update(fuse(group, contacts, (ids, targets))[0])
    for segment, skeleton in found.items():
        for other in (turned[segment], alone[segment]):
            np.testing.assert_array_equal(other.nodes, skeleton.nodes)
            np.testing.assert_array_equal(other.edges, skeleton.edges)
            np.testing.assert_array_equal(other.radii_nm, skeleton.radii_nm)
    for segment, skeleton in found.items():
        members = ids[targets == segment]
        row = np.isin(contacts.a, members) & np.isin(contacts.b, members)
        pairs = np.searchsorted(members, np.stack([contacts.a[row], contacts.b[row]], axis=1))
        assert parts_of(skeleton) == components(len(members), pairs).max() + 1
    assert report.longest_joint_nm <= 1000 * 3 * np.linalg.norm(labels.shape)


def test_a_fragment_without_skeleton_is_counted() -> None:
    labels, fragments = bar((20, 40))
    del fragments[2]
    found, report = fuse(fragments, touching(labels), lookup(f2=1, f3=1))
    assert report.without_skeleton == 2
    assert parts_of(found[1]) == 2
    fragments[2] = Skeleton("2", np.zeros((0, 3)), np.zeros((0, 2), np.int64))
    assert fuse(fragments, touching(labels), lookup(f2=1, f3=1))[1].without_skeleton == 2


def test_dust_and_ticks() -> None:
    labels, fragments = bar((20, 40))
    dusty = SkeletonSettings(dust_nm=30_000)
    found, report = fuse(fragments, touching(labels), lookup(f2=1), dusty)
    assert list(found) == [1]  # 39 edges; fragment 3 has 19
    assert report.dust_removed == 1


def test_nothing() -> None:
    found, report = fuse({}, Contacts.empty(), NONE)
    assert not found
    assert (report.segments, report.joints, report.cable_out_nm) == (0, 0, 0.0)
    only = {3: line(3, (1, 1, 1))}
    assert len(fuse(only, Contacts.empty(), NONE)[0][3].nodes) == 1
    assert fuse(only, Contacts.empty(), lookup(f3=0))[0] == {}


def test_refusals() -> None:
    only = {3: line(3, (1, 1, 1))}
    with pytest.raises(DtypeError, match="uint64"):
        fuse(only, Contacts.empty(), (np.zeros(1, np.int64), np.zeros(1, np.int64)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="reaches"):
        fuse(only, Contacts.empty(), NONE, smoothing=-1.0)


def test_nearest_nodes_of_small_and_large_fragments() -> None:
    rng = np.random.default_rng(0)
    starts = np.cumsum([0, 3, 900, 1, 40])
    place = rng.random((starts[-1], 3)) * 100
    owner = rng.integers(0, 4, 200)
    points = rng.random((200, 3)) * 100
    found = nearest_nodes(place, starts, owner, points)
    for k in range(200):
        own = np.arange(starts[owner[k]], starts[owner[k] + 1])
        distance = ((place[own] - points[k]) ** 2).sum(axis=1)
        assert found[k] == own[distance.argmin()]


def test_smoothing_takes_zigzags_away_and_leaves_ends() -> None:
    count = 41
    place = np.zeros((count, 3))
    place[:, 2] = np.arange(count)
    place[1::2, 1] = 1.0
    chain = np.stack([np.arange(1, count), np.arange(count - 1)], axis=1)
    steps = 3 * np.sqrt(2.0)
    found = smooth_branches(place, chain, np.full(count, steps))
    np.testing.assert_array_equal(found[[0, -1]], place[[0, -1]])
    # A stretch of six edges: y averages to 1/2, x stays.
    np.testing.assert_allclose(found[5:-5, 1], 0.5)
    np.testing.assert_allclose(found[:, 2], place[:, 2], atol=1e-9)
    np.testing.assert_array_equal(smooth_branches(place, chain, np.zeros(count)), place)


def test_smoothing_leaves_branch_points() -> None:
    labels, fragments = bar((20,))
    star = np.array([[0, 0, 0], [0, 0, 9.0], [0, 9.0, 0], [9.0, 0, 0], [0, 1, 4.0]])
    edges = np.array([[4, 0], [1, 4], [2, 0], [3, 0]])
    found = smooth_branches(star, edges, np.full(5, 3.0))
    np.testing.assert_array_equal(found[:4], star[:4])
    assert 0 < found[4, 1] < 1
    plain = fuse(fragments, touching(labels), lookup(f2=1))[0][1]
    smooth = fuse(fragments, touching(labels), lookup(f2=1), smoothing=1.0)[0][1]
    np.testing.assert_allclose(smooth.nodes, plain.nodes)
