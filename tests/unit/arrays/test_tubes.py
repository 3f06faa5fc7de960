"""Tubes and training targets against a slow, obvious reference, and in every blocking."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.arrays.labels import IGNORE
from pipeline.arrays.negatives import sampled_tiles
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.tube_kernels import voxel_line
from pipeline.arrays.tubes import rasterise_tubes, training_targets
from pipeline.errors import InputError
from pipeline.geometry import BlockGrid, Roi

VOXEL = (1000.0, 400.0, 300.0)
SHAPE = (14, 19, 23)
WHOLE = Roi((0, 0, 0), SHAPE)
BLOCKINGS = [(14, 19, 23), (7, 10, 12), (5, 6, 7), (1, 19, 4)]


def random_skeleton(rng, nodes, name="s", integer=False):
    points = rng.uniform(0, 1, (nodes, 3)) * SHAPE
    if integer:
        points = np.minimum(np.round(points * 2) / 2, np.asarray(SHAPE) - 0.5)
    parents = [int(rng.integers(i)) for i in range(1, nodes)]
    edges = np.array([(i + 1, p) for i, p in enumerate(parents)], np.int64).reshape(-1, 2)
    return Skeleton(name, points, edges, rng.uniform(200, 1600, nodes))


def capsules(skeletons, ids, radius_nm, min_radius_nm):
    """(a, b, radius of a, radius of b, id) of every edge and every lonely node, in order."""
    found = []
    for skeleton, label in zip(skeletons, ids, strict=True):
        radii = [
            max(r if radius_nm is None else radius_nm, min_radius_nm) for r in skeleton.radii_nm
        ]
        linked = {int(n) for n in skeleton.edges.ravel()}
        pairs = [(int(a), int(b)) for a, b in skeleton.edges]
        pairs += [(n, n) for n in range(len(skeleton.nodes)) if n not in linked]
        found += [
            (skeleton.nodes[a], skeleton.nodes[b], radii[a], radii[b], label) for a, b in pairs
        ]
    return found


def beside(capsule, voxel):
    """Distance (nm) of a voxel's centre from the axis, the radius there, the share of the edge."""
    a, b, ra, rb, _ = capsule
    a_nm, b_nm = np.asarray(a) * VOXEL, np.asarray(b) * VOXEL
    centre = (np.asarray(voxel) + 0.5) * VOXEL
    along = b_nm - a_nm
    length2 = along @ along
    t = min(max(((centre - a_nm) @ along) / length2, 0.0), 1.0) if length2 else 0.0
    return float(np.linalg.norm(centre - (a_nm + t * along))), ra + t * (rb - ra), t


def reference_winners(capsules_):
    """For each voxel of the volume the winning capsule (or None), and whether it is on a line."""
    winners, on_line = {}, set()
    for number, capsule in enumerate(capsules_):
        for voxel in map(tuple, voxel_line(np.asarray(capsule[0]), np.asarray(capsule[1]))):
            distance, radius, _ = beside(capsule, voxel)
            offer = (distance / radius, capsule[4], number)
            winners[voxel] = min(winners.get(voxel, offer), offer)
            on_line.add(voxel)
    for voxel in product(*map(range, SHAPE)):
        if voxel in on_line:
            continue
        offers = []
        for number, capsule in enumerate(capsules_):
            distance, radius, _ = beside(capsule, voxel)
            if distance <= radius:
                offers.append((distance / radius, capsule[4], number))
        if offers:
            winners[voxel] = min(offers)
    return winners, on_line


def reference_tubes(capsules_):
    winners, on_line = reference_winners(capsules_)
    label_of = {voxel: offer[1] for voxel, offer in winners.items()}
    labels = np.zeros(SHAPE, np.uint64)

    def way_to_line(voxel):
        """The voxels from here to the axis, or none if the way leaves the label."""
        capsule = capsules_[winners[voxel][2]]
        _, _, t = beside(capsule, voxel)
        goal = np.asarray(capsule[0]) + t * (np.asarray(capsule[1]) - capsule[0])
        here, way = np.array(voxel), [voxel]
        while (here != np.floor(goal)).any():
            away = np.where(here != np.floor(goal), goal - (here + 0.5), 0.0)
            k = int(np.argmax(np.abs(away)))
            here[k] += int(np.sign(away[k]))
            way.append(tuple(here))
            if label_of.get(tuple(here)) != capsule[4]:
                return []
        around = [np.zeros(3, int), *np.eye(3, dtype=int), *-np.eye(3, dtype=int)]
        places = [tuple(here + step) for step in around]
        return way if any(p in on_line and label_of[p] == capsule[4] for p in places) else []

    kept = set(on_line)
    for voxel in winners:
        kept.update(() if voxel in on_line else way_to_line(voxel))
    for voxel in kept:
        labels[voxel] = label_of[voxel]
    return labels


def parameters(**changes):
    return {"voxel_size_nm": VOXEL, "radius_nm": None, "min_radius_nm": 350.0} | changes


def target_parameters(**changes):
    return parameters() | {"shell_nm": 500.0, "negatives": "assumed"} | changes


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("radius_nm", [None, 900.0])
def test_tubes_equal_the_reference(seed, radius_nm):
    rng = np.random.default_rng(seed)
    skeletons = [random_skeleton(rng, int(rng.integers(1, 6))) for _ in range(4)]
    ids = [7, 3, 3, 2**63 + 5]
    labels = rasterise_tubes(skeletons, ids, WHOLE, **parameters(radius_nm=radius_nm))
    expected = reference_tubes(capsules(skeletons, ids, radius_nm, 350.0))
    assert labels.dtype == np.uint64
    np.testing.assert_array_equal(labels, expected)
    assert len(np.unique(expected)) >= 3


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10**6), blocks=st.sampled_from(BLOCKINGS), integer=st.booleans())
def test_blocks_equal_the_whole(seed, blocks, integer):
    rng = np.random.default_rng(seed)
    skeletons = [random_skeleton(rng, 8, integer=integer) for _ in range(4)]
    ids = range(1, 5)
    near = target_parameters(negatives="near", neighbourhood_nm=2500.0)
    tubes = rasterise_tubes(skeletons, ids, WHOLE, **parameters())
    targets = training_targets(skeletons, ids, WHOLE, **near)
    for block in BlockGrid.over(SHAPE, blocks):
        part = rasterise_tubes(skeletons, ids, block.write, **parameters())
        np.testing.assert_array_equal(part, tubes[block.write.slices])
        part = training_targets(skeletons, ids, block.write, **near)
        np.testing.assert_array_equal(part, targets[block.write.slices])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), integer=st.booleans())
def test_one_neuron_is_one_piece_however_thin(seed, integer):
    rng = np.random.default_rng(seed)
    skeleton = random_skeleton(rng, 6, integer=integer)
    thin = parameters(radius_nm=1.0, min_radius_nm=1.0)
    for chosen in (thin, parameters(min_radius_nm=500.0)):
        labels = rasterise_tubes([skeleton], [1], WHOLE, **chosen)
        assert ndimage.label(labels)[1] == 1
        assert (labels[tuple(np.floor(skeleton.nodes).astype(int).T)] == 1).all()


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 10**6))
def test_labels_are_whole_where_lines_are_disjoint(seed):
    rng = np.random.default_rng(seed)
    first = Skeleton("a", [[2, 3, 2], [9, 12, 20.0]], [[1, 0]], rng.uniform(800, 2500, 2))
    shift = rng.uniform(1.5, 4.0)
    second = Skeleton(
        "b", first.nodes + np.array([0, shift, -shift / 2]), [[1, 0]], rng.uniform(400, 2500, 2)
    )
    lines = [{tuple(v) for v in voxel_line(*s.nodes)} for s in (first, second)]
    labels = rasterise_tubes([first, second], [1, 2], WHOLE.grow((9, 9, 9)), **parameters())
    if lines[0].isdisjoint(lines[1]):
        assert [ndimage.label(labels == i)[1] for i in (1, 2)] == [1, 1]


@settings(deadline=None, max_examples=200)
@given(
    a=st.tuples(*[st.floats(-5, 20)] * 3),
    b=st.tuples(*[st.one_of(st.floats(-5, 20), st.integers(-5, 20).map(float))] * 3),
)
def test_voxel_line_takes_face_steps_from_end_to_end(a, b):
    line = voxel_line(np.array(a), np.array(b))
    assert tuple(line[0]) == tuple(np.floor(a))
    assert tuple(line[-1]) == tuple(np.floor(b))
    assert (np.abs(np.diff(line, axis=0)).sum(axis=1) == 1).all()
    # Each voxel is touched by the segment (but for rounding at corners).
    for voxel in line:
        spans = [
            sorted(((v - p) / (q - p), (v + 1 - p) / (q - p))) if abs(q - p) > 1e-9 else (0.0, 1.0)
            for v, p, q in zip(voxel, a, b, strict=True)
        ]
        assert max(0.0, *(s[0] for s in spans)) <= min(1.0, *(s[1] for s in spans)) + 1e-6


def test_a_contested_line_voxel_goes_to_the_nearer_axis_then_the_smaller_id():
    through_middle = Skeleton("a", [[5.5, 9.5, 2.5], [5.5, 9.5, 20.5]], [[1, 0]])
    beside_middle = Skeleton("b", [[5.5, 2.5, 11.2], [5.5, 16.5, 11.2]], [[1, 0]])
    for order in ((0, 1), (1, 0)):
        pair = [(through_middle, beside_middle)[i] for i in order]
        labels = rasterise_tubes(pair, [(9, 4)[i] for i in order], WHOLE, **parameters())
        assert labels[5, 9, 11] == 9
    same = rasterise_tubes([through_middle] * 2, [9, 4], WHOLE, **parameters())
    assert set(np.unique(same)) == {0, 4}


def test_one_node_is_a_ball_and_unknown_radii_are_the_smallest():
    ball = Skeleton("ball", [[6.5, 9.5, 11.5]], np.zeros((0, 2)), [1000.0])
    labels = rasterise_tubes([ball], [5], WHOLE, **parameters())
    centre = (np.stack(np.indices(SHAPE), -1) + 0.5) * VOXEL
    distance = np.linalg.norm(centre - ball.nodes[0] * VOXEL, axis=-1)
    np.testing.assert_array_equal(labels == 5, distance <= 1000.0)
    for unknown in (0.0, np.nan):
        node = Skeleton("node", ball.nodes, ball.edges, [unknown])
        labels = rasterise_tubes([node], [5], WHOLE, **parameters())
        np.testing.assert_array_equal(labels == 5, distance <= 350.0)


def test_nothing_near_gives_background_or_nothing_known():
    far = random_skeleton(np.random.default_rng(0), 5)
    roi = Roi((200, 200, 200), (4, 5, 6))
    for skeletons in ([far], []):
        ids = range(1, len(skeletons) + 1)
        assert not rasterise_tubes(skeletons, ids, roi, **parameters()).any()
        assert not training_targets(skeletons, ids, roi, **target_parameters()).any()
        near = target_parameters(negatives="near", neighbourhood_nm=3000.0)
        assert (training_targets(skeletons, ids, roi, **near) == IGNORE).all()
    empty = Skeleton("empty", np.zeros((0, 3)), np.zeros((0, 2)))
    assert not rasterise_tubes([empty], [1], WHOLE, **parameters()).any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shell_nm", [0.0, 700.0])
@pytest.mark.parametrize("negatives", ["near", "assumed"])
def test_targets_equal_the_reference(seed, shell_nm, negatives):
    rng = np.random.default_rng(seed)
    skeletons, ids = [random_skeleton(rng, 3) for _ in range(2)], [1, 2]
    chosen = target_parameters(shell_nm=shell_nm, negatives=negatives, neighbourhood_nm=2600.0)
    targets = training_targets(skeletons, ids, WHOLE, **chosen)
    edges = capsules(skeletons, ids, None, 350.0)
    expected = reference_tubes(edges)
    for voxel in product(*map(range, SHAPE)):
        gaps = [beside(edge, voxel)[:2] for edge in edges]
        in_shell = min(distance - radius for distance, radius in gaps) <= shell_nm
        looked_at = negatives == "assumed" or min(distance for distance, _ in gaps) <= 2600.0
        if expected[voxel] == 0 and (in_shell or not looked_at):
            expected[voxel] = IGNORE
    np.testing.assert_array_equal(targets, expected)
    assert (targets == 0).any()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_sampled_background_is_known_near_tracings_and_in_some_tiles(share):
    rng = np.random.default_rng(2)
    skeletons = [random_skeleton(rng, 3)]
    roi = Roi((-40, -40, 0), (100, 100, 60))
    chosen = target_parameters(neighbourhood_nm=2600.0, sampled_share=share, sampled_seed=5)
    near, assumed, sampled = (
        training_targets(skeletons, [1], roi, **chosen | {"negatives": kind})
        for kind in ("near", "assumed", "sampled")
    )
    empty = (near == 0) | (sampled_tiles(roi, share, 5) & (assumed == 0))
    expected = np.where(assumed == 1, 1, np.where(empty, 0, IGNORE))
    np.testing.assert_array_equal(sampled, expected)
    np.testing.assert_array_equal(sampled == 1, assumed == 1)
    if share in (0.0, 1.0):
        np.testing.assert_array_equal(sampled, near if share == 0.0 else assumed)
    else:
        assert (near != sampled).any()
        assert (assumed != sampled).any()


def test_the_shell_has_its_width_in_nanometres_along_each_axis():
    rod = Skeleton("rod", [[6.5, 9.5, -5], [6.5, 9.5, 30]], [[1, 0]])
    chosen = target_parameters(radius_nm=1000.0, shell_nm=1000.0)
    targets = training_targets([rod], [1], WHOLE, **chosen)
    along_z, along_y = targets[:, 9, 11], targets[6, :, 11]
    # Centres lie whole voxels from the axis: 1000 nm along z, 400 nm along y.
    assert [int(np.abs(i - 6)) for i in np.flatnonzero(along_z == 1)] == [1, 0, 1]
    assert set(np.abs(np.flatnonzero(along_z == IGNORE) - 6)) == {2}
    assert set(np.abs(np.flatnonzero(along_y == 1) - 9)) == {0, 1, 2}
    assert set(np.abs(np.flatnonzero(along_y == IGNORE) - 9)) == {3, 4, 5}


def test_long_oblique_edges_are_drawn_in_full():
    edge = Skeleton("long", [[1, 1, 1], [390, 388, 391.0]], [[1, 0]])
    roi = Roi((190, 188, 192), SHAPE)
    labels = rasterise_tubes([edge], [1], roi, **parameters(radius_nm=1500.0))
    for voxel in product(*map(range, SHAPE)):
        place = np.asarray(voxel) + roi.offset
        inside = beside((edge.nodes[0], edge.nodes[1], 1500.0, 1500.0, 1), place)[0] <= 1500.0
        assert inside == bool(labels[voxel])


def test_inputs_are_not_changed():
    skeleton = random_skeleton(np.random.default_rng(1), 5)
    nodes, radii = skeleton.nodes.copy(), skeleton.radii_nm.copy()
    training_targets([skeleton], [1], WHOLE, **target_parameters())
    np.testing.assert_array_equal(skeleton.nodes, nodes)
    np.testing.assert_array_equal(skeleton.radii_nm, radii)


@pytest.mark.parametrize(
    ("ids", "changes", "message"),
    [
        ([1, 2], {}, "1 skeletons but 2 ids"),
        ([0], {}, "id must lie in 1"),
        ([IGNORE], {}, "id must lie in 1"),
        ([1], {"radius_nm": 0.0}, "radius_nm must be positive"),
        ([1], {"min_radius_nm": -1.0}, "min_radius_nm must be positive"),
        ([1], {"voxel_size_nm": (1.0, 0.0, 1.0)}, "voxel size must be positive"),
        ([1], {"shell_nm": -1.0}, "must not be negative"),
        ([1], {"negatives": "all"}, '"near" or "assumed" or "sampled"'),
        ([1], {"negatives": "sampled", "sampled_share": 1.5}, r"share .* in \[0, 1\], got 1.5"),
    ],
)
def test_senseless_arguments_are_refused(ids, changes, message):
    skeleton = random_skeleton(np.random.default_rng(0), 3)
    with pytest.raises(InputError, match=message):
        training_targets([skeleton], ids, WHOLE, **target_parameters(**changes))


def test_nodes_that_are_not_finite_are_refused():
    broken = Skeleton("broken", [[1, np.nan, 2]], np.zeros((0, 2)))
    with pytest.raises(InputError, match="broken"):
        rasterise_tubes([broken], [1], WHOLE, **parameters())
