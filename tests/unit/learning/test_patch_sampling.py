from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import product

import numpy as np
import pytest

from pipeline.arrays.labels import IGNORE
from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import Roi, Triple
from pipeline.learning.sampling import PatchSampler, check_regions, index_foreground
from pipeline.learning.settings import AugmentSettings, TrainSettings

PLAIN = AugmentSettings(flip=False, transpose="none", scale=0, shift=0, gamma=0, noise=0, blur=0)
DEFORMED = {"deform_fraction": 1, "elastic": 1, "rotation_degrees": 30, "tilt_degrees": 5}
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


def same(one: tuple[np.ndarray, ...], two: tuple[np.ndarray, ...]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_sample_is_a_function_of_seed_step_and_index() -> None:
    augment = DEFORMED | {"zoom": 0.1, "missing_sections": 0.2, "blur_fraction": 1}
    one, two = sampler(volume(), augment=augment), sampler(volume(), augment=augment)
    places = [(step, index) for step in range(3) for index in range(3)]
    expected = {place: one.sample(*place) for place in places}
    for place in (*reversed(places), *places[3:6], places[3]):
        assert same(two.sample(*place), expected[place])
    other = sampler(volume(), augment=augment, seed=1).sample(0, 0)
    assert not any(same(other, found) for found in expected.values())
    images = [image.tobytes() for image, _ in expected.values()]
    assert len(set(images)) == len(places), "steps and indices differ"


def test_a_larger_batch_begins_with_the_smaller_one() -> None:
    small, large = sampler(volume(), augment={}), sampler(volume(), augment={}, batch=5)
    for step in range(3):
        images, labels = large.batch(step)
        assert same(small.batch(step), (images[:2], labels[:2]))
        for index in range(5):
            assert same(large.sample(step, index), (images[index, 0], labels[index]))


def test_threads_draw_what_one_thread_draws() -> None:
    drawn = sampler(volume(), augment=DEFORMED)
    expected = [drawn.sample(step, 0) for step in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda step: drawn.sample(step, 0), range(24)))
    assert all(map(same, found, expected))


def test_the_light_moves_no_patch() -> None:
    one, two = sampler(volume()), sampler(volume(), augment=PLAIN.model_copy(update={"noise": 1.0}))
    for step in range(5):
        np.testing.assert_array_equal(one.sample(step, 0)[1], two.sample(step, 0)[1])
        assert not np.array_equal(one.sample(step, 0)[0], two.sample(step, 0)[0])


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


def test_a_place_is_where_the_sample_comes_from() -> None:
    first, second = volume(), volume()
    regions = [(source, Roi((0, 0, 0), SHAPE)) for source in (first, second)]
    second.picture += first.picture.size
    settings = TrainSettings(patch=(4, 6, 8), augment=PLAIN, foreground_fraction=0.5)
    drawn = PatchSampler(regions, index_foreground(regions), settings)
    found = set()
    for step in range(20):
        number, box = drawn.place(step, 1)
        image, labels = drawn.sample(step, 1)
        np.testing.assert_array_equal(image, regions[number][0].image(box))
        np.testing.assert_array_equal(labels, regions[number][0].labels(box))
        found.add(number)
    assert found == {0, 1}


def test_a_place_has_the_axes_of_the_volume() -> None:
    drawn = sampler(volume(), augment=PLAIN.model_copy(update={"transpose": "zyx"}))
    shapes = {drawn.place(step, 0)[1].shape for step in range(60)}
    assert len(shapes) == 6
    assert all(sorted(shape) == [4, 6, 8] for shape in shapes)


def test_regions_count_by_objects_and_by_size() -> None:
    """Foreground: three objects against one. Anywhere: 1000 voxels against 9000."""
    many, one = Arrays(np.zeros((10, 10, 10), np.uint64)), Arrays(np.zeros((10, 30, 30), np.uint64))
    many.held[2, 2, 2], many.held[5, 5, 5], many.held[8, 8, 8] = 1, 2, 3
    one.held[:, 5:25, 5:25] = 1
    regions = [(source, Roi((0, 0, 0), source.shape)) for source in (many, one)]
    index = index_foreground(regions)
    for fraction, expected in ((1.0, 0.75), (0.0, 0.1)):
        settings = TrainSettings(patch=(4, 4, 4), foreground_fraction=fraction)
        drawn = PatchSampler(regions, index, settings)
        share = np.mean([drawn.place(step, 0)[0] == 0 for step in range(400)])
        assert abs(share - expected) < 0.06


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
    with pytest.raises(InputError, match="leaves its volume"):
        check_regions(moved, TrainSettings(patch=(4, 4, 4)))


@pytest.mark.parametrize("size", [(1.0, 1.0), (0.0, 1.0, 1.0), (1.0, float("nan"), 1.0)])
def test_voxel_sizes_are_three_positive_numbers(size: tuple[float, ...]) -> None:
    regions = [(volume(), Roi((0, 0, 0), SHAPE))]
    with pytest.raises(InputError, match="positive voxel size"):
        PatchSampler(regions, index_foreground(regions), TrainSettings(patch=(4, 4, 4)),
                     voxel_size=size)  # fmt: skip


def test_no_foreground_is_refused_with_what_was_found() -> None:
    labels = np.zeros(SHAPE, np.uint64)
    labels[:, :, :10] = IGNORE
    message = r"\[0:20, 0:30, 0:40\].*24000 voxels 18000 are background .* 6000 ignored"
    with pytest.raises(InputError, match=message) as caught:
        sampler(Arrays(labels))
    assert "targets.background_labels" in str(caught.value)


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


def test_transposing_all_axes_keeps_the_patch_shape() -> None:
    drawn = sampler(volume(), augment={"transpose": "zyx"})
    seen = {tuple(np.sign(np.diff(drawn.batch(s)[0][0, 0, :2, :2, :2].ravel()))) for s in range(30)}
    assert all(drawn.batch(step)[0].shape == (2, 1, 4, 6, 8) for step in range(30))
    assert len(seen) > 3


@pytest.mark.parametrize(
    ("transpose", "size", "fits"),
    [
        ("zyx", (40.0, 4.0, 4.0), False),
        ("zyx", (1.4, 1.0, 1.0), True),
        ("yx", (40.0, 4.0, 4.0), True),
        ("yx", (4.0, 4.0, 8.0), False),
        ("none", (40.0, 4.0, 8.0), True),
    ],
)
def test_axes_of_other_voxel_sizes_do_not_change_places(
    transpose: str, size: tuple[float, ...], fits: bool
) -> None:
    source = volume()
    regions = [(source, Roi((0, 0, 0), source.shape))]
    settings = TrainSettings(patch=(4, 6, 8), augment={"transpose": transpose})
    with nullcontext() if fits else pytest.raises(InputError, match=f"transpose: {transpose} "):
        PatchSampler(regions, index_foreground(regions), settings, voxel_size=size)


def test_place_and_light_are_drawn_independently() -> None:
    """Mirrored along an axis or not, strongly blurred or not: all four occur often."""
    augment = PLAIN.model_copy(update={"flip": True, "blur": 2.0, "blur_fraction": 1.0})
    source = volume()
    drawn = sampler(source, augment=augment)
    mirrored, change = [], []
    for step in range(60):
        image, _ = drawn.sample(step, 0)
        before = source.image(drawn.place(step, 0)[1])
        mirrored.append(
            (image[0].mean() > image[-1].mean(), image[:, 0].mean() > image[:, -1].mean())
        )
        change.append(np.ptp(before) - np.ptp(image))  # a blur draws the corners of a ramp inwards
    strong = np.array(change) > np.median(change)
    for axis in np.array(mirrored).T:
        counts = [int((strong == a)[axis == b].sum()) for a in (0, 1) for b in (0, 1)]
        assert min(counts) > 6


class Recording(Arrays):
    """Notes what is read."""

    def __init__(self, labels: np.ndarray) -> None:
        super().__init__(labels)
        self.read: list[Roi] = []

    def image(self, roi: Roi) -> np.ndarray:
        self.read.append(roi)
        return super().image(roi)


def test_deformed_patches_read_no_voxel_outside_their_region() -> None:
    source, region = Recording(np.ones(SHAPE, np.uint64)), Roi((3, 4, 5), (9, 20, 30))
    drawn = sampler(source, region, augment=DEFORMED | {"zoom": 0.2}, foreground_fraction=0.0)
    ignored = 0
    for step in range(30):
        ignored += int((drawn.sample(step, 0)[1] == IGNORE).sum())
    assert all(region.contains(roi) for roi in source.read)
    assert any(roi.shape > (4, 6, 8) for roi in source.read)
    assert ignored, "what lies outside is not known"


def test_a_deformed_patch_inside_its_region_has_no_padding() -> None:
    source = Recording(np.ones((60, 60, 60), np.uint64))
    source.held[:20], source.held[40:] = 0, 0
    source.held[20:40, :20], source.held[20:40, 40:] = 0, 0
    source.held[20:40, 20:40, :20], source.held[20:40, 20:40, 40:] = 0, 0
    drawn = sampler(source, patch=(16, 16, 16), augment=DEFORMED)
    for step in range(10):
        assert IGNORE not in drawn.sample(step, 0)[1]


@pytest.mark.parametrize("transpose", ["yx", "zyx"])
def test_planes_stay_in_their_plane(transpose: str) -> None:
    """A patch of one plane: nothing comes from another, whatever is asked for."""
    labels = np.ones(SHAPE, np.uint64)
    source = Recording(labels)
    augment = DEFORMED | {
        "transpose": transpose, "zoom": 0.2, "missing_sections": 1, "low_contrast_sections": 1,
        "blur_fraction": 1, "noise": 0,
    }  # fmt: skip
    drawn = sampler(source, patch=(1, 12, 12), augment=augment, foreground_fraction=0.0)
    for step in range(30):
        image, found = drawn.sample(step, 0)
        assert image.shape == found.shape == (1, 12, 12)
        assert image.std() > 0, "no plane is lost"
        assert 1 in source.read[-1].shape


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
