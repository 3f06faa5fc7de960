"""The phantom: true by construction, the same in every blocking, and not too easy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from pipeline.arrays import phantom
from pipeline.arrays.phantom import GrowthSpec, LightSpec, PhantomSpec, grow_neurons, render
from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import InputError, ShapeError
from pipeline.geometry import BlockGrid, Roi

SMALL = PhantomSpec(shape=(40, 56, 72), neurons=6, seed=11)
EMPTY = replace(SMALL, neurons=0, light=LightSpec(bead_density=0.0))


def whole(spec):
    return Roi((0, 0, 0), spec.shape)


def touching_pairs(labels):
    pairs = set()
    for axis in range(3):
        moved = np.moveaxis(labels, axis, 0)
        a, b = moved[1:].ravel(), moved[:-1].ravel()
        differ = (a != b) & (a > 0) & (b > 0)
        pairs |= {tuple(sorted(p)) for p in zip(a[differ], b[differ], strict=True)}
    return pairs


def assert_true_by_construction(spec, skeletons, labels):
    assert set(np.unique(labels)) <= set(range(spec.neurons + 1))
    boxes = ndimage.find_objects(labels.astype(np.int64))
    for i, (skeleton, box) in enumerate(zip(skeletons, boxes, strict=True)):
        assert ndimage.label(labels[box] == i + 1)[1] == 1
        assert (labels[tuple(np.floor(skeleton.nodes).astype(int).T)] == i + 1).all()


def test_thirty_neurons_are_thirty_pieces_that_touch():
    spec = PhantomSpec(shape=(256, 256, 256), neurons=30, seed=4)
    skeletons = grow_neurons(spec)
    labels = np.concatenate(
        [
            render(spec, skeletons, block.write)[1]
            for block in BlockGrid.over(spec.shape, (64, 256, 256))
        ]
    )
    assert_true_by_construction(spec, skeletons, labels)
    assert len(touching_pairs(labels)) >= 5
    assert 0.0005 < (labels > 0).mean() < 0.05


@pytest.mark.parametrize(
    "spec",
    [
        PhantomSpec(shape=(64, 64, 64), neurons=8, seed=1),
        PhantomSpec(shape=(16, 48, 100), neurons=3, seed=2),
        PhantomSpec(shape=(48, 64, 80), neurons=6, seed=3, voxel_size_nm=(500.0, 500.0, 500.0)),
        PhantomSpec(
            shape=(64, 96, 96), neurons=6, seed=5, growth=GrowthSpec(soma_share=1.0, contacts=5.0)
        ),
    ],
    ids=["cube", "slab", "isotropic", "somata"],
)
def test_labels_are_true_for_any_shape(spec):
    skeletons = grow_neurons(spec)
    _, labels = render(spec, skeletons, whole(spec))
    assert_true_by_construction(spec, skeletons, labels)


def test_skeletons_are_trees_inside_the_volume():
    spec = PhantomSpec(shape=(64, 128, 128), neurons=5, seed=8)
    skeletons = grow_neurons(spec)
    assert [s.name for s in skeletons] == [f"neuron_{i:03d}" for i in range(1, 6)]
    for skeleton in skeletons:
        assert len(skeleton.edges) == len(skeleton.nodes) - 1
        assert (skeleton.edges[:, 1] < skeleton.edges[:, 0]).all()
        np.testing.assert_array_equal(
            np.sort(skeleton.edges[:, 0]), np.arange(1, len(skeleton.nodes))
        )
        assert (skeleton.nodes >= 0).all()
        assert (skeleton.nodes < spec.shape).all()
        assert (skeleton.radii_nm >= spec.growth.thinnest_nm).all()
        lengths = skeleton.edge_lengths_nm(spec.voxel_size_nm)
        # 2.5 of the smallest voxel size, but for the way along a contact.
        assert np.median(lengths) == pytest.approx(1000.0)
        assert lengths.max() <= 2000.0
    assert any(np.bincount(s.edges[:, 1]).max() > 1 for s in skeletons)


def test_growth_depends_on_the_spec_alone():
    first, second = grow_neurons(SMALL), grow_neurons(SMALL)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.nodes, b.nodes)
        np.testing.assert_array_equal(a.edges, b.edges)
        np.testing.assert_array_equal(a.radii_nm, b.radii_nm)
    other = grow_neurons(replace(SMALL, seed=12))
    assert not np.array_equal(first[0].nodes[0], other[0].nodes[0])


def test_contacts_are_made_on_purpose():
    counts = []
    for contacts in (0.0, 6.0):
        pairs = 0
        for seed in range(3):
            growth = GrowthSpec(contacts=contacts, soma_share=0.0)
            spec = PhantomSpec(shape=(96, 160, 160), neurons=8, seed=seed, growth=growth)
            pairs += len(touching_pairs(render(spec, grow_neurons(spec), whole(spec))[1]))
        counts.append(pairs)
    assert counts[1] >= counts[0] + 5


def test_no_room_is_an_error():
    fat = GrowthSpec(radius_nm=(4000.0, 4000.0), thinnest_nm=4000.0)
    with pytest.raises(InputError, match="no room for neuron"):
        grow_neurons(PhantomSpec(shape=(16, 32, 32), neurons=40, growth=fat))


@pytest.mark.parametrize("blocks", [(20, 28, 36), (17, 56, 13), (40, 5, 72), (9, 11, 16)])
def test_blocks_equal_the_whole(blocks):
    growth = GrowthSpec(soma_share=0.4)
    spec = replace(SMALL, growth=growth)
    skeletons = grow_neurons(spec)
    image, labels = render(spec, skeletons, whole(spec))
    assert image.dtype == np.uint16
    assert labels.dtype == np.uint64
    for block in BlockGrid.over(spec.shape, blocks):
        part_image, part_labels = render(spec, skeletons, block.write)
        np.testing.assert_array_equal(part_image, image[block.write.slices])
        np.testing.assert_array_equal(part_labels, labels[block.write.slices])


def test_another_seed_gives_other_noise():
    a, _ = render(EMPTY, [], whole(EMPTY))
    b, _ = render(replace(EMPTY, seed=12), [], whole(EMPTY))
    assert (a != b).mean() > 0.9


def test_noise_has_the_variance_of_shot_and_read_noise_and_no_correlation():
    light = LightSpec(bead_density=0.0, slope=0.0, clouds=(0.0, 0.0))
    image, labels = render(replace(EMPTY, light=light), [], whole(EMPTY))
    assert not labels.any()
    image = image.astype(np.float64)
    mean = light.offset_counts + light.background_counts
    variance = light.background_counts * light.counts_per_electron + light.read_noise_counts**2
    assert image.mean() == pytest.approx(mean, rel=0.002)
    assert image.var() == pytest.approx(variance, rel=0.03)
    centred = (image - image.mean()) / image.std()
    assert 0.05 < (centred**3).mean() < 0.25  # a Poisson of 64 electrons has 1/8
    for axis in range(3):
        moved = np.moveaxis(centred, axis, 0)
        assert abs((moved[1:] * moved[:-1]).mean()) < 0.01


def test_the_background_slopes_and_is_cloudy():
    steep = LightSpec(bead_density=0.0, slope=1.0, clouds=(0.0, 0.0))
    image, _ = render(replace(EMPTY, light=steep), [], whole(EMPTY))
    corner = image[:8, :8, :8].mean(), image[-8:, -8:, -8:].mean()
    # From 1/2 to 3/2 of the mean, less half a box of eight voxels at each end.
    share = 1.0 - 7.0 * np.mean([1 / n for n in EMPTY.shape])
    assert corner[1] - corner[0] == pytest.approx(steep.background_counts * share, rel=0.1)
    cloudy = LightSpec(bead_density=0.0, slope=0.0, clouds=(0.0, 0.5))
    image, _ = render(replace(EMPTY, light=cloudy), [], whole(EMPTY))
    smooth = ndimage.uniform_filter(image.astype(np.float64), 5)
    assert smooth.std() > 50.0


def test_blur_is_the_gaussian_and_keeps_the_light():
    spec = EMPTY
    kernels = phantom._blur_kernels(spec)
    emission = np.zeros((31, 33, 35), np.float32)
    emission[15, 16, 17] = 1000.0
    blurred = phantom._blur(emission, kernels)
    margins = [len(k) // 2 for k in kernels]
    assert blurred.shape == tuple(n - 2 * m for n, m in zip(emission.shape, margins, strict=True))
    assert blurred.sum() == pytest.approx(1000.0, rel=1e-5)
    sigma = [s / v for s, v in zip(spec.light.blur_nm, spec.voxel_size_nm, strict=True)]
    expected = ndimage.gaussian_filter(emission, sigma, radius=margins, mode="constant")
    inner = tuple(slice(m, -m) for m in margins)
    np.testing.assert_allclose(blurred, expected[inner], atol=1e-3)


def test_beads_are_as_many_as_asked_and_never_labelled():
    light = LightSpec(bead_density=100.0, bead_counts=60_000.0, clouds=(0.0, 0.0), slope=0.0)
    spec = PhantomSpec(shape=(96, 160, 160), neurons=0, light=light)
    image, labels = render(spec, [], whole(spec))
    assert not labels.any()
    smooth = ndimage.gaussian_filter(image.astype(np.float64), 1.0)
    found = ndimage.label(smooth > light.offset_counts + light.background_counts + 300)[1]
    expected = light.bead_density * image.size / 1e6
    # The dimmest stay under the threshold, some touch.
    assert 0.5 * expected < found < 1.1 * expected


def test_neurites_can_be_seen_but_no_threshold_separates_them():
    spec = PhantomSpec(shape=(96, 192, 192), neurons=12, seed=6)
    skeletons = grow_neurons(spec)
    image, labels = render(spec, skeletons, whole(spec))
    dark = ndimage.median_filter(image[::8, ::8, ::8], 3)
    noise = np.sqrt(spec.light.counts_per_electron * spec.light.background_counts)
    on_axis = [image[tuple(np.floor(s.nodes).astype(int).T)].astype(float) for s in skeletons]
    contrast = (np.concatenate(on_axis) - np.median(dark)) / noise
    assert 3.0 < np.median(contrast) < 9.0
    assert np.percentile(contrast, 10) < 2.5
    for threshold in np.percentile(image, [98, 99, 99.5, 99.8]):
        pieces = ndimage.label(image > threshold, np.ones((3, 3, 3)))[0]
        alone = 0
        for i, skeleton in enumerate(skeletons):
            at_nodes = pieces[tuple(np.floor(skeleton.nodes).astype(int).T)]
            main = np.bincount(at_nodes)[1:].argmax() + 1 if at_nodes.any() else 0
            owners = np.unique(labels[pieces == main]) if main else np.zeros(1)
            alone += set(owners) <= {0, i + 1} and (at_nodes == main).mean() > 0.9
        assert alone <= 0.4 * len(skeletons)


def test_brightness_changes_along_a_neurite_but_smoothly():
    straight = Skeleton(
        "rod",
        np.stack([np.full(64, 20.5), np.full(64, 28.5), np.arange(4, 68.0)], axis=1),
        np.stack([np.arange(1, 64), np.arange(63)], axis=1),
        np.full(64, 900.0),
    )
    light = LightSpec(
        bead_density=0.0, clouds=(0.0, 0.0), slope=0.0, dimmest=0.1, stretch_nm=4000.0
    )
    image, _ = render(replace(SMALL, light=light), [straight], whole(SMALL))
    along = image[19:22, 27:30, 8:64].mean(axis=(0, 1))
    assert along.max() - light.background_counts > 1.7 * (along.min() - light.background_counts)
    assert np.abs(np.diff(along)).max() < 0.5 * (along.max() - along.min())


def test_a_box_outside_the_volume_is_refused():
    with pytest.raises(InputError, match="leaves the phantom"):
        render(SMALL, [], Roi((0, 0, 0), (41, 8, 8)))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (PhantomSpec, {"shape": (8, 64, 64)}, "at least 16"),
        (PhantomSpec, {"neurons": -1}, "negative"),
        (PhantomSpec, {"seed": -1}, "seed"),
        (PhantomSpec, {"voxel_size_nm": (0.0, 1.0, 1.0)}, "voxel size"),
        (GrowthSpec, {"radius_nm": (900.0, 500.0)}, "radius_nm"),
        (GrowthSpec, {"taper_nm": 0.0}, "taper_nm"),
        (GrowthSpec, {"soma_share": 1.5}, "soma_share"),
        (LightSpec, {"counts_per_electron": 0.0}, "counts_per_electron"),
        (LightSpec, {"dimmest": 2.0}, "dimmest"),
        (LightSpec, {"bead_density": 1e4}, "bead_density"),
    ],
)
def test_senseless_specs_are_refused(kind, changes, message):
    with pytest.raises(InputError, match=message):
        kind(**changes)


def test_a_shape_has_three_axes():
    with pytest.raises(ShapeError):
        PhantomSpec(shape=(64, 64))  # type: ignore[arg-type]
