from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from pipeline.arrays.labels import IGNORE
from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import Roi, Triple
from pipeline.learning.sampling import PatchSampler, index_foreground, reorient, vary_intensity
from pipeline.learning.settings import AugmentSettings, TrainSettings
from pipeline.learning.targets import affinity_targets

PLAIN = AugmentSettings(flip=False, transpose="none", scale=0, shift=0, gamma=0, noise=0)
SHAPE = (20, 30, 40)


class Arrays:
    """A source whose image holds each voxel's linear index."""

    def __init__(self, labels: np.ndarray) -> None:
        self.held = labels
        self.picture = np.arange(labels.size, dtype=np.float32).reshape(labels.shape)

    @property
    def shape(self) -> Triple:
        z, y, x = self.held.shape
        return z, y, x

    def image(self, roi: Roi) -> np.ndarray:
        return self.picture[roi.slices]

    def labels(self, roi: Roi) -> np.ndarray:
        return self.held[roi.slices]


def volume(shape: Triple = SHAPE) -> Arrays:
    labels = np.zeros(shape, np.uint64)
    labels[2:6, 3:9, 4:30] = 2**40
    labels[15, 25, 35] = 7  # one voxel: as likely a centre as the large object
    labels[10:12] = IGNORE
    return Arrays(labels)


def sampler(source: Arrays, region: Roi | None = None, **changes: object) -> PatchSampler:
    values = {"patch": (4, 6, 8), "batch": 2, "augment": PLAIN, "foreground_fraction": 1.0}
    settings = TrainSettings.model_validate(values | changes)
    regions = [(source, region or Roi((0, 0, 0), source.shape))]
    return PatchSampler(regions, index_foreground(regions), settings)


def origin(image: np.ndarray, shape: Triple = SHAPE) -> Triple:
    z, y, x = np.unravel_index(int(image.flat[0]), shape)
    return int(z), int(y), int(x)


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    one, two = sampler(volume(), augment={}), sampler(volume(), augment={})
    expected = [one.batch(step) for step in range(4)]
    for step in (3, 1, 1, 0, 2):
        for a, b in zip(two.batch(step), expected[step], strict=True):
            np.testing.assert_array_equal(a, b)
    other = sampler(volume(), augment={}, seed=1).batch(0)
    assert not np.array_equal(other[0], expected[0][0])
    for step, images, labels in one.batches(1, 4):
        np.testing.assert_array_equal(images, expected[step][0])
        np.testing.assert_array_equal(labels, expected[step][1])


def test_shapes_and_types() -> None:
    images, labels = sampler(volume()).batch(0)
    assert (images.shape, images.dtype) == ((2, 1, 4, 6, 8), np.float32)
    assert (labels.shape, labels.dtype) == ((2, 4, 6, 8), np.uint64)


def test_image_and_labels_come_from_one_place() -> None:
    source = volume()
    images, labels = sampler(source, foreground_fraction=0.5).batch(0)
    for image, patch in zip(images[:, 0], labels, strict=True):
        roi = Roi(origin(image), (4, 6, 8))
        np.testing.assert_array_equal(image, source.image(roi))
        np.testing.assert_array_equal(patch, source.labels(roi))


def test_foreground_patches_are_centred_and_labels_balanced() -> None:
    source, drawn = volume(), sampler(volume())
    centres = [int(patch[2, 3, 4]) for step in range(50) for patch in drawn.batch(step)[1]]
    counts = {label: centres.count(label) for label in set(centres)}
    assert set(counts) == {7, 2**40}
    assert min(counts.values()) > 30
    assert source.held[15, 25, 35] == 7


def test_patches_stay_in_their_region() -> None:
    region = Roi((3, 4, 5), (9, 20, 30))
    for fraction in (0.0, 1.0):
        drawn = sampler(volume(), region, foreground_fraction=fraction)
        for step in range(30):
            for image in drawn.batch(step)[0]:
                assert region.contains(Roi(origin(image), (4, 6, 8)))


def test_random_patches_reach_every_corner() -> None:
    source = Arrays(np.ones((5, 6, 7), np.uint64))
    drawn = sampler(source, patch=(4, 5, 6), foreground_fraction=0.0, batch=8)
    found = {origin(i, (5, 6, 7)) for step in range(20) for i in drawn.batch(step)[0]}
    assert found == set(product((0, 1), repeat=3))


def test_a_patch_as_large_as_its_region_fits() -> None:
    images, _ = sampler(volume(), patch=SHAPE).batch(0)
    assert origin(images[0]) == (0, 0, 0)


def test_larger_patches_are_refused_with_both_shapes() -> None:
    with pytest.raises(InputError, match=r"\(21, 30, 40\).*\(20, 30, 40\)"):
        sampler(volume(), patch=(21, 30, 40))
    with pytest.raises(InputError, match=r"\(20, 40, 30\).*\(20, 30, 40\)"):
        sampler(volume(), patch=SHAPE, augment={"transpose": "yx"})
    source = volume()
    index = index_foreground([(source, Roi((0, 0, 0), SHAPE))])
    moved = [(source, Roi((1, 0, 0), SHAPE))]
    with pytest.raises(InputError, match="leaves its volume"):
        PatchSampler(moved, index, TrainSettings(patch=(4, 4, 4)))


@pytest.mark.parametrize("value", [0, IGNORE])
def test_no_foreground_is_refused(value: int) -> None:
    with pytest.raises(InputError, match="no labelled voxel"):
        sampler(Arrays(np.full(SHAPE, value, np.uint64)))


def test_no_regions_are_refused() -> None:
    with pytest.raises(InputError, match="no training regions"):
        index_foreground([])


def test_the_index_is_bounded_complete_and_reproducible() -> None:
    labels = np.zeros((70, 64, 64), np.uint64)
    labels[:, 10:20, 10:20] = 3
    labels[1, 1, :5] = 9
    index = index_foreground([(Arrays(labels), Roi((0, 0, 0), labels.shape))])
    np.testing.assert_array_equal(index.starts, [0, 128, 133])  # two tiles of 64, five voxels
    assert set(labels[tuple(index.voxels[:128].T)]) == {3}
    assert len(np.unique(index.voxels, axis=0)) == 133
    again = index_foreground([(Arrays(labels.copy()), Roi((0, 0, 0), labels.shape))])
    assert again.digest == index.digest
    labels[1, 1, 6] = 9
    changed = index_foreground([(Arrays(labels), Roi((0, 0, 0), labels.shape))])
    assert changed.digest != index.digest


def test_two_regions_with_one_label_are_two_groups() -> None:
    source = Arrays(np.ones((8, 8, 8), np.uint64))
    index = index_foreground(
        [(source, Roi((0, 0, 0), (4, 8, 8))), (source, Roi((4, 0, 0), (4, 8, 8)))]
    )
    np.testing.assert_array_equal(index.region, [0, 1])
    assert index.voxels[: index.starts[1], 0].max() < 4 <= index.voxels[index.starts[1] :, 0].min()


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("mirror", [(False, True, False), (True, True, True)])
def test_geometry_commutes_with_affinities(order: Triple, mirror: tuple[bool, ...]) -> None:
    """Edges of the changed labels are the changed edges: mirroring moves them by one voxel."""
    labels = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint64)
    changed = reorient(labels, order, np.array(mirror))
    found = affinity_targets(changed[None])[0][0].numpy()
    edges = affinity_targets(labels[None])[0][0].numpy()
    for axis in range(3):
        expected = edges[order[axis]].transpose(order)
        for direction in range(3):
            if mirror[direction]:
                expected = np.flip(expected, direction)
        if mirror[axis]:
            expected = np.roll(expected, 1, axis)
        np.testing.assert_array_equal(found[axis], expected)


def test_transposing_all_axes_keeps_the_patch_shape() -> None:
    drawn = sampler(volume(), augment={"transpose": "zyx"})
    seen = {tuple(np.sign(np.diff(drawn.batch(s)[0][0, 0, :2, :2, :2].ravel()))) for s in range(30)}
    assert all(drawn.batch(step)[0].shape == (2, 1, 4, 6, 8) for step in range(30))
    assert len(seen) > 3


def test_intensity_changes_and_labels_do_not() -> None:
    random = np.random.default_rng(0)
    image = np.linspace(-1, 1, 27, dtype=np.float32).reshape(3, 3, 3)
    settings = AugmentSettings(noise=0)
    varied = vary_intensity(image, random, settings)
    assert varied.dtype == np.float32
    assert (np.diff(varied.ravel()) > 0).all()  # gain and gamma keep the order
    assert not np.allclose(varied, image)
    np.testing.assert_array_equal(vary_intensity(image, random, PLAIN), image)
    noisy = vary_intensity(image, random, PLAIN.model_copy(update={"noise": 0.5}))
    assert 0 < np.abs(noisy - image).mean() < 1


class Broken(Arrays):
    """A source that gives what `change` makes of the image."""

    def __init__(self, labels: np.ndarray, change: object) -> None:
        super().__init__(labels)
        self.change = change

    def image(self, roi: Roi) -> np.ndarray:
        return self.change(super().image(roi))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda image: image + np.float32(np.nan), DataError),
        (lambda image: image[1:], ShapeError),
        (lambda image: image.astype(np.float64), DtypeError),
    ],
)
def test_bad_sources_are_named(change: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"\[\d+:\d+"):
        sampler(Broken(volume().held, change)).batch(0)
