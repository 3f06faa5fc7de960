"""Growth of tubes against a slow, obvious reference, and in every blocking."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.arrays.labels import IGNORE
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.tube_growth import Growth
from pipeline.arrays.tube_kernels import voxel_line
from pipeline.arrays.tubes import rasterise_tubes, training_targets, tube_edges
from pipeline.errors import InputError
from pipeline.geometry import BlockGrid, Roi

VOXEL = (1000.0, 400.0, 300.0)
SHAPE = (12, 17, 21)
WHOLE = Roi((0, 0, 0), SHAPE)
BLOCKINGS = [(6, 9, 11), (5, 6, 7), (1, 17, 4), (12, 3, 21)]
DRAWN = {"voxel_size_nm": VOXEL, "radius_nm": None, "min_radius_nm": 350.0}


def random_skeletons(rng, count=2, nodes=4, spread=1.0):
    found = []
    for name in range(count):
        points = rng.uniform(0.5 - spread / 2, 0.5 + spread / 2, (nodes, 3)) * SHAPE
        edges = np.array([(i, int(rng.integers(i))) for i in range(1, nodes)], np.int64)
        radii = rng.uniform(200, 900, nodes)
        found.append(Skeleton(str(name), points, edges.reshape(-1, 2), radii))
    return found


def growth(image, **changes):
    return Growth(
        **{
            "read": lambda roi: image[roi.slices],
            "volume": Roi((0, 0, 0), image.shape),
            "reach_nm": 1100.0,
            **changes,
        }
    )


def grown(skeletons, ids, grow, roi=WHOLE, shell_nm=0.0):
    return grow.grow(tube_edges(skeletons, ids, **DRAWN), roi, shell_nm)


# --- a slow reference


def axis_voxels(edges):
    """For each edge the voxels of its line inside the volume, or None where one is outside."""
    found = []
    for a, b in edges.ends:
        line = [tuple(v) for v in voxel_line(a, b).tolist()]
        found.append([v if all(0 <= i < n for i, n in zip(v, SHAPE, strict=True)) else None
                      for v in line])  # fmt: skip
    return found


def reference_levels(edges, image, reach_nm):
    """For each edge the level at each voxel of its line."""
    window = [max(round(reach_nm / size), 1) for size in VOXEL]
    own = {}
    for line, label in zip(axis_voxels(edges), edges.ids.tolist(), strict=True):
        own.setdefault(label, set()).update(v for v in line if v is not None)
    levels = []
    for (a, b), label in zip(edges.ends, edges.ids.tolist(), strict=True):
        levels.append([])
        for voxel in voxel_line(a, b).tolist():
            near = [
                float(image[other])
                for other in own[label]
                if all(abs(p - q) <= w for p, q, w in zip(voxel, other, window, strict=True))
            ]
            levels[-1].append(np.median(near) if near else np.nan)
    return levels


def reference_bright(edges, image, grow):
    levels = reference_levels(edges, image, grow.reach_nm)
    bright = np.zeros(SHAPE, bool)
    for voxel in product(*map(range, SHAPE)):
        centre = (np.array(voxel) + 0.5) * VOXEL
        best, level = np.inf, np.nan
        for e, (a, b) in enumerate(edges.ends * np.array(VOXEL)):
            along = b - a
            t = min(max((centre - a) @ along / (along @ along), 0.0), 1.0) if along.any() else 0.0
            radius = edges.radii_nm[e, 0] + t * (edges.radii_nm[e, 1] - edges.radii_nm[e, 0])
            gap = np.linalg.norm(centre - (a + t * along)) - radius
            if gap < best:
                best, level = gap, levels[e][int(t * (len(levels[e]) - 1) + 0.5)]
        if best > grow.reach_nm:
            continue
        if grow.threshold is not None:
            bright[voxel] = image[voxel] >= grow.threshold
        else:
            needed = grow.background + grow.fraction * (level - grow.background)
            bright[voxel] = image[voxel] >= needed and image[voxel] > grow.floor
    return bright


def chain_lengths(sources, bright, limit):
    """The length of the shortest chain of bright voxels from the sources; infinity beyond."""
    lengths = np.where(sources, 0, np.inf)
    heap = [(0, tuple(v)) for v in np.argwhere(sources).tolist()]
    while heap:
        length, voxel = heappop(heap)
        if length > lengths[voxel]:
            continue
        for axis, side in product(range(3), (-1, 1)):
            there = list(voxel)
            there[axis] += side
            there = tuple(there)
            longer = length + round(VOXEL[axis] * 1000)
            inside = 0 <= there[axis] < SHAPE[axis]
            if inside and bright[there] and longer <= limit and longer < lengths[there]:
                lengths[there] = longer
                heappush(heap, (longer, there))
    return lengths


def reference_grown(edges, tubes, image, grow):
    """Each label floods the free bright voxels alone; the shortest chain wins."""
    free = reference_bright(edges, image, grow) & (tubes == 0)
    labels = np.unique(tubes[tubes > 0])
    found = tubes.copy()
    if not len(labels):
        return found
    limit = int(2 * grow.reach_nm * 1000)
    lengths = np.stack([chain_lengths(tubes == label, free, limit) for label in labels])
    first = lengths.min(axis=0)
    tied = (lengths == first).sum(axis=0) > 1
    reached = free & np.isfinite(first)
    found[reached] = labels[lengths.argmin(axis=0)][reached]
    found[reached & tied] = IGNORE
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("absolute", [False, True])
def test_growth_equals_the_reference(seed, absolute):
    rng = np.random.default_rng(seed)
    skeletons, ids = random_skeletons(rng, 3, spread=0.9 + 0.4 * (seed % 2)), [4, 9, 4]
    image = ndimage.gaussian_filter(rng.uniform(0, 1000, SHAPE), 1.0).astype(np.float32)
    choice = {"threshold": 480.0} if absolute else {
        "fraction": 0.6, "background": 400.0, "floor": 450.0}  # fmt: skip
    grow = growth(image, **choice)
    edges = tube_edges(skeletons, ids, **DRAWN)
    tubes = rasterise_tubes(skeletons, ids, WHOLE, **DRAWN)
    expected = reference_grown(edges, tubes, image, grow)
    labels, shell = grow.grow(edges, WHOLE, 0.0)
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.uint64
    assert not shell.any()
    added = expected != tubes
    assert 20 < added.sum() < 0.9 * (tubes == 0).sum()


def test_equally_near_tracings_leave_the_voxel_unknown():
    """Two rods three voxels apart in a bright slab: of the voxels between, the middle is open."""
    image = np.full((3, 9, 12), 100, np.uint8)
    rods = [
        Skeleton(name, [[1.5, y + 0.5, 0.5], [1.5, y + 0.5, 11.5]], [[1, 0]], [100.0, 100.0])
        for name, y in (("a", 2), ("b", 6))
    ]
    drawn = {"voxel_size_nm": (400.0,) * 3, "radius_nm": None, "min_radius_nm": 100.0}
    targets = training_targets(
        rods, [1, 2], Roi((0, 0, 0), image.shape), shell_nm=0.0, negatives="assumed",
        growth=growth(image, reach_nm=900.0, threshold=50.0), **drawn,
    )  # fmt: skip
    ignore = int(IGNORE)
    # Reach: 900 nm from a surface 100 nm off the axis is two voxels.
    assert targets[1, :, 5].tolist() == [1, 1, 1, 1, ignore, 2, 2, 2, 2]


def test_the_chain_is_what_counts_not_the_distance():
    """A bright voxel behind a dark wall is not reached; one around a short corner is."""
    image = np.zeros((1, 7, 9), np.uint8)
    image[0, 3, :] = 100
    image[0, 1, 2] = 100  # beyond a dark row
    image[0, [2, 1, 1], [6, 6, 7]] = 100  # up and around
    rod = Skeleton("rod", [[0.5, 3.5, 0.5], [0.5, 3.5, 8.5]], [[1, 0]], [100.0, 100.0])
    drawn = {"voxel_size_nm": (400.0,) * 3, "radius_nm": None, "min_radius_nm": 100.0}
    edges = tube_edges([rod], [5], **drawn)
    labels, _ = growth(image, reach_nm=900.0, threshold=50.0).grow(
        edges, Roi((0, 0, 0), image.shape), 0.0
    )
    expected = np.where(image > 0, 5, 0)
    expected[0, 1, 2] = 0
    np.testing.assert_array_equal(labels, expected)
    labels, _ = growth(image, reach_nm=500.0, threshold=50.0).grow(
        edges, Roi((0, 0, 0), image.shape), 0.0
    )
    expected[0, 1] = 0  # 800 nm from the axis is 700 from the surface
    np.testing.assert_array_equal(labels, expected)


def test_a_long_way_round_is_not_gone():
    """Chains are at most twice the reach long, however near their end is."""
    image = np.zeros((1, 3, 12), np.uint8)
    image[0, 0, :] = 100  # parallel to the rod, joined to it at one end only
    image[0, 1, 0] = 100
    rod = Skeleton("rod", [[0.5, 2.5, 0.5], [0.5, 2.5, 11.5]], [[1, 0]], [100.0, 100.0])
    edges = tube_edges([rod], [1], voxel_size_nm=(400.0,) * 3, radius_nm=None, min_radius_nm=100.0)
    labels, _ = growth(image, reach_nm=1000.0, threshold=50.0).grow(
        edges, Roi((0, 0, 0), image.shape), 0.0
    )
    # Twice 1000 nm are five steps of 400: up two, along three.
    assert labels[0, 0].tolist() == [1] * 4 + [0] * 8


def test_brightness_is_relative_to_the_own_axis():
    """Beside a dim rod the glow counts that beside a bright one does not."""
    image = np.full((3, 11, 10), 100, np.uint16)
    for y, peak in ((2, 200), (8, 1100)):
        image[1, y] = peak
        image[1, [y - 1, y + 1]] = 170
    rods = [
        Skeleton(name, [[1.5, y + 0.5, 0.5], [1.5, y + 0.5, 9.5]], [[1, 0]], [100.0, 100.0])
        for name, y in (("dim", 2), ("bright", 8))
    ]
    edges = tube_edges(rods, [1, 2], voxel_size_nm=(400.0,) * 3, radius_nm=None,
                       min_radius_nm=100.0)  # fmt: skip
    whole = Roi((0, 0, 0), image.shape)
    relative = growth(image, reach_nm=500.0, fraction=0.5, background=100.0)
    assert relative.grow(edges, whole, 0.0)[0][1, :, 5].tolist() == [
        0,
        1,
        1,
        1,
        0,
        0,
        0,
        0,
        2,
        0,
        0,
    ]
    floored = growth(image, reach_nm=500.0, fraction=0.5, background=100.0, floor=170.0)
    assert floored.grow(edges, whole, 0.0)[0][1, :, 5].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0]
    absolute = growth(image, reach_nm=500.0, threshold=170.0)
    assert absolute.grow(edges, whole, 0.0)[0][1, :, 5].tolist() == [
        0,
        1,
        1,
        1,
        0,
        0,
        0,
        2,
        2,
        2,
        0,
    ]


def test_the_level_is_a_median_so_one_dark_node_changes_nothing():
    image = np.full((1, 5, 30), 0, np.uint8)
    image[0, 2] = 100
    image[0, 2, 14] = 0
    image[0, 3] = 40
    rod = Skeleton("rod", [[0.5, 2.5, 0.5], [0.5, 2.5, 29.5]], [[1, 0]], [100.0, 100.0])
    edges = tube_edges([rod], [1], voxel_size_nm=(400.0,) * 3, radius_nm=None, min_radius_nm=100.0)
    labels, _ = growth(image, reach_nm=800.0).grow(edges, Roi((0, 0, 0), image.shape), 0.0)
    assert labels.sum() == 30


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    blocks=st.sampled_from(BLOCKINGS),
    absolute=st.booleans(),
    reach_nm=st.sampled_from([350.0, 1100.0, 2300.0]),
    negatives=st.sampled_from(["near", "assumed", "sampled"]),
    voxel_size_nm=st.sampled_from([VOXEL, (333.33349, 400.0, 1000.0 / 3)]),
)
def test_blocks_equal_the_whole(seed, blocks, absolute, reach_nm, negatives, voxel_size_nm):
    rng = np.random.default_rng(seed)
    skeletons = random_skeletons(rng, 3, 5, spread=1.3)
    image = ndimage.gaussian_filter(rng.uniform(0, 1000, SHAPE), 1.0)
    choice = {"threshold": 490.0} if absolute else {"fraction": 0.5, "background": 400.0}
    chosen = {
        **DRAWN, "voxel_size_nm": voxel_size_nm, "shell_nm": 500.0, "negatives": negatives,
        "neighbourhood_nm": 1500.0, "sampled_share": 0.4,
        "growth": growth(image, reach_nm=reach_nm, **choice),
    }  # fmt: skip
    whole = training_targets(skeletons, [1, 2, 3], WHOLE, **chosen)
    for block in BlockGrid.over(SHAPE, blocks):
        part = training_targets(skeletons, [1, 2, 3], block.write, **chosen)
        np.testing.assert_array_equal(part, whole[block.write.slices])


def test_levels_look_beyond_the_block_and_its_halo():
    """Brightness along a rod changes at every voxel, and so do the medians along it."""
    rng = np.random.default_rng(0)
    image = np.zeros((1, 5, 200))
    image[0, 2] = rng.uniform(200, 1000, 200)
    image[0, [1, 3]] = rng.uniform(0, 1000, (2, 200))
    rod = Skeleton("rod", [[0.5, 2.5, 0.5], [0.5, 2.5, 199.5]], [[1, 0]], [100.0, 100.0])
    edges = tube_edges([rod], [1], voxel_size_nm=(400.0,) * 3, radius_nm=None, min_radius_nm=100.0)
    grow = growth(image, reach_nm=4000.0)
    whole, _ = grow.grow(edges, Roi((0, 0, 0), image.shape), 0.0)
    # Ten voxels to either side, the nearest axis voxel beside each.
    level = [np.median(image[0, 2, max(x - 10, 0) : x + 11]) for x in range(200)]
    for y in (1, 3):
        np.testing.assert_array_equal(whole[0, y] == 1, image[0, y] >= 0.5 * np.array(level))
    for block in BlockGrid.over(image.shape, (1, 5, 7)):
        part, _ = grow.grow(edges, block.write, 0.0)
        np.testing.assert_array_equal(part, whole[block.write.slices])


@settings(deadline=None, max_examples=15, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_growth_only_adds_and_stays_connected(seed):
    rng = np.random.default_rng(seed)
    skeletons = random_skeletons(rng, 1, 4)
    image = rng.uniform(0, 1000, SHAPE)
    tubes = rasterise_tubes(skeletons, [7], WHOLE, **DRAWN)
    labels, _ = grown(skeletons, [7], growth(image, threshold=400.0))
    assert (labels[tubes > 0] == 7).all()
    pieces, count = ndimage.label(labels > 0)
    assert count == len(np.unique(pieces[tubes > 0]))
    more, _ = grown(skeletons, [7], growth(image, threshold=300.0))
    further, _ = grown(skeletons, [7], growth(image, threshold=400.0, reach_nm=1900.0))
    assert (more[labels > 0] == 7).all()
    assert (further[labels > 0] == 7).all()
    assert (labels > 0).sum() > (tubes > 0).sum()


@pytest.mark.parametrize("shell_nm", [300.0, 500.0, 1300.0])
def test_the_shell_lies_around_what_has_grown(shell_nm):
    """Every voxel whose centre is within the width of a grown voxel's surface, and no other."""
    rng = np.random.default_rng(3)
    skeletons = random_skeletons(rng, 2)
    image = rng.uniform(0, 1000, SHAPE)
    tubes = rasterise_tubes(skeletons, [1, 2], WHOLE, **DRAWN)
    labels, shell = grown(skeletons, [1, 2], growth(image, threshold=700.0), shell_nm=shell_nm)
    expected = np.zeros(SHAPE, bool)
    places = np.argwhere(labels != tubes)
    for voxel in product(*map(range, SHAPE)):
        gaps = np.maximum(np.abs(places - voxel) - 0.5, 0) * VOXEL
        expected[voxel] = (np.sqrt((gaps**2).sum(axis=1)) <= shell_nm).any()
    np.testing.assert_array_equal(shell, expected)
    assert expected.any()
    assert not expected.all()
    targets = training_targets(
        skeletons, [1, 2], WHOLE, shell_nm=shell_nm, negatives="assumed",
        growth=growth(image, threshold=700.0), **DRAWN,
    )  # fmt: skip
    drawn = training_targets(
        skeletons, [1, 2], WHOLE, shell_nm=shell_nm, negatives="assumed", **DRAWN
    )
    free = labels == 0
    np.testing.assert_array_equal(targets[~free], labels[~free])
    ignored = expected | (drawn == IGNORE)
    np.testing.assert_array_equal(targets[free], np.where(ignored, IGNORE, 0)[free])


def test_nothing_bright_or_nothing_drawn_changes_nothing():
    rng = np.random.default_rng(0)
    skeletons = random_skeletons(rng, 2)
    dark = np.zeros(SHAPE, np.uint8)
    tubes = rasterise_tubes(skeletons, [1, 2], WHOLE, **DRAWN)
    for choice in ({"threshold": 1.0}, {"floor": 0.0}):
        labels, shell = grown(skeletons, [1, 2], growth(dark, **choice), shell_nm=800.0)
        np.testing.assert_array_equal(labels, tubes)
        assert not shell.any()
    far = Roi((0, 0, 0), (4, 4, 4))
    away = Skeleton("away", [[11, 16, 20.0]], np.zeros((0, 2)), [300.0])
    for some in ([], [away]):
        labels, shell = grown(some, range(1, len(some) + 1), growth(dark), far, 300.0)
        assert not labels.any()
        assert not shell.any()


def test_the_image_is_read_inside_the_volume_alone_and_not_changed():
    rng = np.random.default_rng(1)
    skeletons = random_skeletons(rng, 2, spread=1.4)
    image = rng.integers(0, 255, SHAPE).astype(np.uint8)
    before, asked = image.copy(), []

    def read(roi):
        asked.append(roi)
        return np.asfortranarray(image[roi.slices])

    grown(skeletons, [1, 2], growth(image, read=read), Roi((0, 0, 0), (5, 6, 7)), 500.0)
    assert asked
    assert all(WHOLE.contains(roi) for roi in asked)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reach_nm": 0.0}, "reach of growth must be positive, got 0.0"),
        ({"reach_nm": np.nan}, "reach of growth must be positive"),
        ({"fraction": 1.5}, r"fraction of the axis lies in \[0, 1\], got 1.5"),
        ({"threshold": np.inf}, "threshold must be finite"),
    ],
)
def test_senseless_growth_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        growth(np.zeros(SHAPE), **changes)


def test_a_box_beyond_the_image_is_refused():
    with pytest.raises(InputError, match="the image fills"):
        grown([], [], growth(np.zeros(SHAPE)), WHOLE.grow((0, 0, 1)))


@pytest.mark.parametrize("beyond", range(9))
def test_a_tracing_that_runs_off_the_image_grows_nothing(beyond):
    image = np.zeros((16, 24, 24), np.float32)
    image[:, 8:14] = 5.0
    volume = Roi((0, 0, 0), (16, 24, 24))
    growth = Growth(
        read=lambda roi: image[roi.slices],
        volume=volume,
        reach_nm=4.0,
        fraction=0.5,
        background=0.0,
        floor=0.5,
    )
    inside = Skeleton("a", [[8, 11, 2], [8, 11, 12], [8, 11, 20]], [[1, 0], [2, 1]])
    outside = Skeleton("b", [[8, 11, 24 + beyond], [8, 14, 24 + beyond]], [[1, 0]])

    def drawn(skeletons):
        return training_targets(
            skeletons,
            range(1, len(skeletons) + 1),
            volume,
            voxel_size_nm=(1.0, 1.0, 1.0),
            radius_nm=1.5,
            min_radius_nm=1.0,
            shell_nm=0.0,
            negatives="assumed",
            growth=growth,
        )

    both, alone = drawn([inside, outside]), drawn([inside])
    assert (both == 1).any()
    if beyond > 1:
        # No voxel of its tube is in the image. Voxels nearest to it are judged by its axis, of
        # which nothing is known, so they stay out; beyond its reach nothing changes.
        assert ((both == alone) | (both == 0)).all()
    if beyond > 5:
        np.testing.assert_array_equal(both, alone)
