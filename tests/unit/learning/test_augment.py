from __future__ import annotations

import math
from itertools import permutations

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage

from pipeline.arrays.labels import IGNORE
from pipeline.geometry import Roi, Triple
from pipeline.learning.augment import (
    Deformation,
    blur,
    draw_deformation,
    lose_sections,
    reorient,
    vary_intensity,
    vary_light,
    weaken_sections,
)
from pipeline.learning.settings import AugmentSettings
from pipeline.learning.targets import affinity_targets

OFF = AugmentSettings(flip=False, transpose="none", scale=0, shift=0, gamma=0, noise=0, blur=0)
ISOTROPIC = (1.0, 1.0, 1.0)


def asked(**changes: object) -> AugmentSettings:
    values = OFF.model_dump() | {"deform_fraction": 1.0} | changes
    return AugmentSettings.model_validate(values)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def drawn(shape: Triple, wanted: AugmentSettings, seed: int = 0, size=ISOTROPIC) -> Deformation:
    found = draw_deformation(rng(seed), shape, size, wanted)
    assert found is not None
    return found


def plain(shape: Triple, matrix: np.ndarray | None = None, shift: Triple = (0, 0, 0)):
    """A deformation that moves everything alike: constant coefficients give a constant spline."""
    spacing = np.array([5.0, 6.5, 8.0])
    counts = [int((n - 1) / s) + 4 for n, s in zip(shape, spacing, strict=True)]
    control = np.broadcast_to(np.array(shift, float), (*counts, 3)).copy()
    return Deformation(shape, np.eye(3) if matrix is None else matrix, control, spacing)


def applied(found: Deformation, image: np.ndarray, labels: np.ndarray, roi: Roi):
    """As the sampler does it: the box is cut to the volume."""
    read = found.read_box(roi).intersect(Roi((0, 0, 0), labels.shape))
    return found.apply(image[read.slices], labels[read.slices], read, roi)


# Geometry


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("mirror", [(False, True, False), (True, True, True)])
def test_geometry_commutes_with_affinities(order: Triple, mirror: tuple[bool, ...]) -> None:
    """Edges of the changed labels are the changed edges: mirroring moves them by one voxel."""
    labels = rng().integers(0, 3, (4, 5, 6)).astype(np.uint64)
    labels[0, 1, 2:4] = IGNORE
    changed = reorient(labels, order, np.array(mirror))
    for found, before in zip(
        affinity_targets(changed[None]), affinity_targets(labels[None]), strict=True
    ):
        for axis in range(3):
            expected = before[0, order[axis]].numpy().transpose(order)
            for direction in range(3):
                if mirror[direction]:
                    expected = np.flip(expected, direction)
            if mirror[axis]:
                expected = np.roll(expected, 1, axis)
            np.testing.assert_array_equal(found[0, axis].numpy(), expected)


def test_nothing_asked_is_no_deformation() -> None:
    assert draw_deformation(rng(), (8, 8, 8), ISOTROPIC, AugmentSettings()) is None
    never = asked(elastic=2, deform_fraction=0)
    assert draw_deformation(rng(), (8, 8, 8), ISOTROPIC, never) is None


def test_a_share_of_the_patches_is_deformed() -> None:
    half = asked(zoom=0.1, deform_fraction=0.3)
    share = np.mean(
        [draw_deformation(rng(s), (4, 4, 4), ISOTROPIC, half) is not None for s in range(400)]
    )
    assert abs(share - 0.3) < 0.07


def test_the_map_that_moves_nothing_changes_nothing() -> None:
    image = rng().random((9, 12, 17), dtype=np.float32)
    labels = rng(1).integers(0, 2**63, image.shape).astype(np.uint64)
    found = plain((5, 7, 11))
    roi = Roi((2, 3, 4), (5, 7, 11))
    assert found.read_box(roi) == roi
    warped, moved = applied(found, image, labels, roi)
    np.testing.assert_array_equal(warped, image[roi.slices])
    np.testing.assert_array_equal(moved, labels[roi.slices])


@pytest.mark.parametrize("shift", [(1, -2, 3), (-1, 0, 2)])
def test_a_shift_moves_image_and_labels_alike(shift: Triple) -> None:
    image = rng().random((12, 14, 20), dtype=np.float32)
    labels = rng(1).integers(0, 9, image.shape).astype(np.uint64)
    roi = Roi((3, 3, 4), (5, 7, 11))
    warped, moved = applied(plain(roi.shape, shift=shift), image, labels, roi)
    np.testing.assert_allclose(warped, image[roi.shift(shift).slices], atol=1e-6)
    np.testing.assert_array_equal(moved, labels[roi.shift(shift).slices])


@pytest.mark.parametrize(("a", "b"), [(0, 1), (0, 2), (1, 2)])
def test_a_quarter_turn_is_exact(a: int, b: int) -> None:
    matrix = np.eye(3)
    matrix[[a, b], [a, b]], matrix[a, b], matrix[b, a] = 0, -1, 1
    image = rng().random((9, 9, 9), dtype=np.float32)
    labels = rng(1).integers(0, 99, image.shape).astype(np.uint64)
    warped, moved = applied(plain((9, 9, 9), matrix), image, labels, Roi((0, 0, 0), (9, 9, 9)))
    # Voxel q comes from M q: what is seen is turned the other way.
    np.testing.assert_array_equal(moved, np.rot90(labels, 1, (b, a)))
    np.testing.assert_allclose(warped, np.rot90(image, 1, (b, a)), atol=1e-6)


def test_linear_images_are_read_exactly_between_voxels() -> None:
    """Interpolation is linear, so of z + 10 y + 100 x it gives the place itself."""
    places = np.stack(np.meshgrid(*map(np.arange, (30, 34, 40)), indexing="ij"))
    image = (places[0] + 10 * places[1] + 100 * places[2]).astype(np.float32)
    labels = np.ones(image.shape, np.uint64)
    roi = Roi((10, 11, 13), (10, 11, 12))
    found = drawn(roi.shape, asked(elastic=1, rotation_degrees=9, tilt_degrees=4, zoom=0.1), 3)
    warped, moved = applied(found, image, labels, roi)
    assert (moved == 1).all()
    source = reference_places(found, roi)
    expected = source[0] + 10 * source[1] + 100 * source[2]
    np.testing.assert_allclose(warped, expected, rtol=1e-5)
    assert np.abs(source - places[(slice(None), *roi.slices)]).max() > 1


def reference_places(found: Deformation, roi: Roi) -> np.ndarray:
    """(3, z, y, x): where each voxel of a patch comes from, one after the other."""
    middle = (np.array(roi.shape) - 1) / 2
    places = np.empty((3, *roi.shape))
    for q in np.ndindex(*roi.shape):
        moved = np.zeros(3)
        for k in np.ndindex(*found.control.shape[:3]):
            weight = 1.0
            for axis in range(3):
                weight *= bspline(q[axis] / found.spacing[axis] - (k[axis] - 1))
            moved += weight * found.control[k]
        places[(slice(None), *q)] = (
            found.matrix @ (np.array(q) + moved - middle) + middle + np.array(roi.offset)
        )
    return places


def bspline(t: float) -> float:
    """The cubic B-spline: bell of width 4 around 0."""
    t = abs(t)
    if t >= 2:
        return 0.0
    return (2 - t) ** 3 / 6 if t >= 1 else 2 / 3 - t * t + t**3 / 2


def test_labels_come_from_the_nearest_voxel_and_none_is_invented() -> None:
    labels = rng().integers(0, 2**63, (8, 14, 12)).astype(np.uint64)
    image = np.zeros(labels.shape, np.float32)
    roi = Roi((0, 0, 0), labels.shape)
    wanted = asked(elastic=1.5, elastic_spacing=4, rotation_degrees=40, zoom=0.2, tilt_degrees=9)
    found = drawn(roi.shape, wanted, 5)
    _, moved = applied(found, image, labels, roi)
    nearest = np.floor(reference_places(found, roi) + 0.5).astype(int)
    inside = (nearest >= 0).all(0) & (nearest < np.array(labels.shape)[:, None, None, None]).all(0)
    expected = np.full(labels.shape, IGNORE)
    expected[inside] = labels[tuple(nearest[:, inside])]
    np.testing.assert_array_equal(moved, expected)
    assert 0.02 < (~inside).mean() < 0.8


def test_beyond_the_region_the_image_goes_on_as_at_its_edge() -> None:
    image = np.arange(8, dtype=np.float32)[None, None, :].repeat(4, 0).repeat(5, 1)
    labels = np.ones(image.shape, np.uint64)
    roi = Roi((0, 0, 0), image.shape)
    warped, moved = applied(plain(roi.shape, shift=(0, 0, 3)), image, labels, roi)
    np.testing.assert_allclose(warped[1, 2], [3, 4, 5, 6, 7, 7, 7, 7], atol=1e-5)
    assert moved[1, 2].tolist() == [1] * 5 + [int(IGNORE)] * 3


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    offset=st.tuples(*[st.integers(0, 20)] * 3),
    size=st.tuples(*[st.sampled_from([1.0, 2.5, 6.0])] * 3),
    seed=st.integers(0, 2**20),
    elastic=st.floats(0, 4),
    degrees=st.floats(0, 180),
)
def test_the_box_that_is_read_holds_all_that_is_needed(
    shape: Triple, offset: Triple, size: tuple[float, ...], seed: int, elastic: float,
    degrees: float,
) -> None:  # fmt: skip
    """Read from a volume without an edge, a patch has no unknown voxel; thin axes do not move."""
    wanted = asked(elastic=elastic, elastic_spacing=5, rotation_degrees=degrees, zoom=0.3,
                   tilt_degrees=30)  # fmt: skip
    found = drawn(shape, wanted, seed, size)
    read = found.read_box(Roi(offset, shape))
    assert all(r == 1 for r, n in zip(read.shape, shape, strict=True) if n == 1)
    places = np.stack(np.meshgrid(*map(np.arange, read.shape), indexing="ij")).astype(np.float32)
    for axis in range(3):
        labels = np.ones(read.shape, np.uint64)
        warped, moved = found.apply(places[axis], labels, read, Roi(offset, shape))
        assert (moved == 1).all()
        if shape[axis] == 1:
            assert (warped == 0).all()


def test_displacements_are_as_large_as_asked_and_physical() -> None:
    """sd 1.5 in voxels of the finest axis; a coarse axis moves as many nanometres."""
    shape, size = (20, 40, 40), (4.0, 1.0, 1.0)
    wanted = asked(elastic=1.5, elastic_spacing=16)
    roi, read = Roi((50, 50, 50), shape), Roi((30, 20, 20), (60, 100, 100))
    places = np.stack(np.meshgrid(*map(np.arange, read.shape), indexing="ij")).astype(np.float32)
    own = places[(slice(None), *roi.relative_to(read).slices)]
    moves = []
    for seed in range(25):
        found = drawn(shape, wanted, seed, size)
        for axis in range(3):
            labels = np.ones(read.shape, np.uint64)
            warped, _ = found.apply(places[axis], labels, read, roi)
            moves.append((warped - own[axis]) * size[axis])
    deviation = [np.concatenate(moves[axis::3], axis=None).std() for axis in range(3)]
    np.testing.assert_allclose(deviation, 1.5, rtol=0.12)


def test_rotation_and_zoom_are_physical() -> None:
    """On anisotropic voxels the map in nanometres is a rotation times a number."""
    size = np.array([5.0, 1.0, 2.0])
    wanted = asked(rotation_degrees=180, tilt_degrees=30, zoom=0.2)
    angles = []
    for seed in range(40):
        matrix = drawn((9, 9, 9), wanted, seed, tuple(size)).matrix
        physical = matrix * size[:, None] / size
        factor = np.linalg.det(physical) ** (1 / 3)
        assert math.exp(-0.4) <= factor <= math.exp(0.4)
        np.testing.assert_allclose(physical @ physical.T, np.eye(3) * factor**2, atol=1e-12)
        tilt = math.degrees(math.acos(min(1.0, physical[0, 0] / factor)))
        assert tilt <= 30.0001
        angles.append(math.degrees(math.atan2(physical[2, 1], physical[1, 1])))
    assert min(angles) < -90 < 90 < max(angles)


def test_rotation_alone_stays_in_the_plane() -> None:
    for seed in range(10):
        matrix = drawn((9, 9, 9), asked(rotation_degrees=20), seed).matrix
        np.testing.assert_array_equal(matrix[0], [1, 0, 0])
        np.testing.assert_array_equal(matrix[:, 0], [1, 0, 0])
        assert abs(math.degrees(math.asin(matrix[2, 1]))) <= 20.0001


def test_nothing_folds() -> None:
    """The strongest displacement there is still has a positive Jacobian everywhere."""
    shape = (24, 24, 24)
    places = np.stack(np.meshgrid(*[np.arange(80)] * 3, indexing="ij")).astype(np.float32)
    read, roi = Roi((0, 0, 0), (80, 80, 80)), Roi((28, 28, 28), shape)
    for seed in range(6):
        found = drawn(shape, asked(elastic=100, elastic_spacing=8), seed)
        assert np.abs(found.control).max() <= 3.2
        labels = np.ones(read.shape, np.uint64)
        moved = [found.apply(places[axis], labels, read, roi)[0] for axis in range(3)]
        jacobian = np.stack([np.stack(np.gradient(m.astype(np.float64))) for m in moved])
        assert np.linalg.det(jacobian.transpose(2, 3, 4, 0, 1)).min() > 0


def rods(shape: Triple, radius: float) -> np.ndarray:
    """Straight rods along each axis, apart from one another."""
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    labels = np.zeros(shape, np.uint64)
    labels[(y - 20) ** 2 + (x - 20) ** 2 <= radius**2] = 2**40
    labels[(z - 40) ** 2 + (x - 42) ** 2 <= radius**2] = 2**40 + 1
    labels[(z - 22) ** 2 + (y - 44) ** 2 <= radius**2] = 3
    return labels


def test_objects_stay_whole() -> None:
    labels = rods((64, 64, 64), 2.5)
    image = (labels > 0).astype(np.float32)
    wanted = asked(elastic=2, rotation_degrees=20, tilt_degrees=10, zoom=0.1)
    roi = Roi((8, 8, 8), (48, 48, 48))
    for seed in range(8):
        warped, moved = applied(drawn(roi.shape, wanted, seed), image, labels, roi)
        known = moved != IGNORE
        assert set(np.unique(moved[known])) <= set(np.unique(labels))
        for label in np.unique(labels)[1:]:
            own = (moved == label).astype(np.uint8)
            pieces = cc3d.connected_components(own, connectivity=6)
            largest = np.bincount(pieces.ravel())[1:].max()
            # A corner of the patch may cut a rod, its crumbs are not broken off.
            assert largest >= 0.98 * own.sum()
        inside = ndimage.binary_erosion((moved > 0) & known, iterations=2)
        outside = ndimage.binary_erosion((moved == 0) & known, iterations=2)
        assert (warped[inside] == 1).all()
        assert (warped[outside] == 0).all()


def test_a_ball_stays_under_its_label() -> None:
    z, y, x = np.meshgrid(*[np.arange(40)] * 3, indexing="ij")
    distance = np.sqrt((2 * (z - 19)) ** 2 + (y - 21) ** 2 + (x - 18) ** 2)
    labels = np.where(distance <= 8, np.uint64(2**60 + 1), np.uint64(0))
    image = np.exp(-((distance / 6) ** 2)).astype(np.float32)
    roi = Roi((4, 4, 4), (32, 32, 32))
    wanted = asked(elastic=2, elastic_spacing=8, rotation_degrees=180, tilt_degrees=10)
    moves = []
    for seed in range(10):
        warped, moved = applied(drawn(roi.shape, wanted, seed, (2, 1, 1)), image, labels, roi)
        ball = moved == 2**60 + 1
        np.testing.assert_array_equal(warped[ball] > 0.1, True)
        centre = ndimage.center_of_mass(ball)
        np.testing.assert_allclose(ndimage.center_of_mass(warped), centre, atol=0.7)
        moves.append(np.linalg.norm(np.array(centre) - (15, 17, 14)))
    assert max(moves) > 2, "it did move"


def test_any_layout_of_input_gives_the_same() -> None:
    image = rng().random((12, 13, 14), dtype=np.float32)
    labels = rng(1).integers(0, 9, image.shape).astype(np.uint64)
    roi = Roi((0, 0, 0), image.shape)
    found = drawn(roi.shape, asked(elastic=1, elastic_spacing=4), 2)
    expected = applied(found, image, labels, roi)
    kept = image.copy(), labels.copy()
    image.setflags(write=False)
    labels.setflags(write=False)
    twice = np.repeat(image, 2, axis=2)[:, :, ::2]
    for other in (image, np.asfortranarray(image), twice):
        result = applied(found, other, np.asfortranarray(labels), roi)
        for one, two in zip(result, expected, strict=True):
            np.testing.assert_array_equal(one, two)
            assert one.flags.c_contiguous
    np.testing.assert_array_equal(image, kept[0])
    np.testing.assert_array_equal(labels, kept[1])


# Light


def test_all_off_is_the_image_itself() -> None:
    image = rng().standard_normal((4, 5, 6), dtype=np.float32)
    found = vary_light(image, rng(), ISOTROPIC, OFF, sections=True)
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("shape", [(1, 9, 9), (9, 1, 9), (1, 1, 1), (6, 7, 8)])
def test_everything_on_keeps_shape_type_and_input(shape: Triple) -> None:
    image = rng().standard_normal(shape, dtype=np.float32)
    kept = image.copy()
    wanted = AugmentSettings(blur_fraction=1, missing_sections=0.3, low_contrast_sections=0.5)
    for seed in range(5):
        found = vary_light(image, rng(seed), (3, 1, 1), wanted, sections=shape[0] > 1)
        assert (found.shape, found.dtype) == (shape, np.float32)
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(image, kept)


def test_intensity_changes_keep_the_order_of_values() -> None:
    image = np.linspace(-1, 1, 27, dtype=np.float32).reshape(3, 3, 3)
    varied = vary_intensity(image, rng(), asked(scale=0.2, shift=0.05, gamma=0.2))
    assert varied.dtype == np.float32
    assert (np.diff(varied.ravel()) > 0).all()
    assert not np.allclose(varied, image)


def test_gain_shift_gamma_and_noise_by_hand() -> None:
    image = np.array([-4.0, 0.0, 0.25, 1.0], np.float32).reshape(1, 1, 4)
    log_gain, shift, log_gamma = rng(7).standard_normal(3)
    gain = vary_intensity(image, rng(7), asked(scale=0.3))
    np.testing.assert_allclose(gain, image * math.exp(0.3 * log_gain), rtol=1e-6)
    moved = vary_intensity(image, rng(7), asked(shift=0.3))
    np.testing.assert_allclose(moved, image + 0.3 * shift, rtol=1e-6)
    exponent = math.exp(0.5 * log_gamma)
    bent = vary_intensity(image, rng(7), asked(gamma=0.5))
    np.testing.assert_allclose(
        bent.ravel(), [-(4.0**exponent), 0.0, 0.25**exponent, 1.0], rtol=1e-5
    )
    flat = np.zeros((20, 20, 20), np.float32)
    spread = [vary_intensity(flat, rng(s), asked(noise=0.5)).std() for s in range(30)]
    assert 0.4 < max(spread) < 0.52
    assert min(spread) < 0.1


def test_a_blur_is_as_wide_in_nanometres_along_each_axis() -> None:
    point = np.zeros((41, 41, 41), np.float32)
    point[20, 20, 20] = 1
    size = np.array([4.0, 1.0, 2.0])
    for seed in range(4):
        width = 8 * rng(seed).random(2)[1]
        found = blur(point, rng(seed), tuple(size), asked(blur=8, blur_fraction=1))
        assert found.sum() == pytest.approx(1, abs=1e-3)
        expected = ndimage.gaussian_filter(point, width / size, truncate=3.0)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_share_of_the_images_is_blurred() -> None:
    point = np.zeros((5, 5, 5), np.float32)
    point[2, 2, 2] = 1
    wanted = asked(blur=2, blur_fraction=0.25)
    share = np.mean([blur(point, rng(s), ISOTROPIC, wanted)[2, 2, 2] < 1 for s in range(400)])
    assert abs(share - 0.25) < 0.07


def test_lost_sections_are_dark_or_copies() -> None:
    image = np.arange(1, 41, dtype=np.float32)[:, None, None].repeat(3, 1).repeat(4, 2)
    kept = image.copy()
    found = np.concatenate(
        [lose_sections(image, rng(s), asked(missing_sections=0.3))[:, 1, 1] for s in range(50)]
    ).reshape(50, 40)
    number = np.arange(1, 41)
    dark, copied = found == 0, (found != 0) & (found != number)
    assert abs((dark | copied).mean() - 0.3) < 0.04
    assert abs(dark.mean() - copied.mean()) < 0.04
    for row, copies in zip(found, copied, strict=True):
        intact = row == number
        for z in np.flatnonzero(copies):
            assert row[z] == max(number[:z][intact[:z]]), "the last whole plane before"
    np.testing.assert_array_equal(image, kept)
    every = lose_sections(image, rng(), asked(missing_sections=1))
    assert (every == 0).all(), "nothing is left to copy"


def test_weak_sections_keep_their_mean() -> None:
    image = rng().standard_normal((200, 8, 8), dtype=np.float32)
    found = weaken_sections(image, rng(1), asked(low_contrast_sections=0.4))
    np.testing.assert_allclose(found.mean(axis=(1, 2)), image.mean(axis=(1, 2)), atol=1e-6)
    contrast = found.std(axis=(1, 2)) / image.std(axis=(1, 2))
    weak = contrast < 0.99
    assert abs(weak.mean() - 0.4) < 0.1
    assert contrast[weak].min() >= 0.0999
    assert contrast[weak].max() <= 0.5001
    np.testing.assert_array_equal(found[~weak], image[~weak])


def test_one_plane_has_no_sections() -> None:
    image = rng().random((1, 6, 6), dtype=np.float32)
    wanted = asked(missing_sections=1, low_contrast_sections=1)
    np.testing.assert_array_equal(
        vary_light(image, rng(), ISOTROPIC, wanted, sections=False), image
    )


@pytest.mark.parametrize(
    "values",
    [
        {"elastic": -1}, {"elastic": float("inf")}, {"elastic_spacing": 1}, {"zoom": 0.6},
        {"elastic_spacing": float("inf")}, {"rotation_degrees": 181}, {"tilt_degrees": -1},
        {"blur": -0.1}, {"blur_fraction": 1.1}, {"missing_sections": -0.1},
        {"low_contrast_sections": 2}, {"deform_fraction": 2},
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        AugmentSettings(**values)
