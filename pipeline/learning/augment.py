"""Random changes of a training patch: its geometry with its labels, then its light alone.

1. Geometry, before targets are made from the labels: a smooth displacement, rotation and zoom
   (`draw_deformation`), then mirroring and exchange of axes (`reorient`). Lengths are physical: a
   displacement of 2 voxels of the finest axis is 0.4 voxels of an axis five times as coarse. An
   axis of one voxel does not move, so a plane stays in its plane.
2. Light, in the order in which nature spoils an image: blur, sections of low contrast, gain,
   offset, gamma and noise, sections that were lost (`vary_light`). Labels stay as they are: where
   a section is lost the network is to infer it from those beside it.

A deformed label is that of the nearest voxel, so objects thinner than about three voxels may break;
this is why deformations are off unless they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Roi, Triple, triple
from pipeline.learning.augment_kernels import warp
from pipeline.learning.settings import AugmentSettings

# A cubic B-spline with displacements below this share of the spacing folds nowhere (in 3-D 0.403,
# in 2-D 0.489: Choi & Lee 2000, Injectivity conditions of 2D and 3D uniform cubic B-splines).
_NO_FOLD = 0.4
# Mean square of a spline of independent unit coefficients along one axis: 151 / 315.
_SPLINE_POWER = 151 / 315
_LARGEST_ZOOM = 2.0  # standard deviations
_LOW_CONTRAST = (0.1, 0.5)
_LOST_VALUE = np.float32(0.0)  # the volume's low percentile


@dataclass(frozen=True)
class Deformation:
    """A smooth map of a patch; see `augment_kernels.warp` for the convention.

    Attributes:
        shape: of the patch, before `reorient`.
        matrix: (3, 3) float64, rotation and zoom in voxels; from the patch to the volume.
        control: (Kz, Ky, Kx, 3) float64, displacements at the control points, voxels.
        spacing: (3,) float64, distance of the control points, voxels.
    """

    shape: Triple
    matrix: NDArray[np.float64]
    control: NDArray[np.float64]
    spacing: NDArray[np.float64]

    def read_box(self, roi: Roi) -> Roi:
        """All voxels that the patch at `roi` may come from; may leave the volume."""
        half = (np.array(self.shape) - 1) / 2
        reach = np.abs(self.matrix) @ (half + np.abs(self.control).max(axis=(0, 1, 2)))
        centre = np.array(roi.offset) + half
        return Roi.between(
            triple(np.floor(centre - reach).astype(np.int64)),
            triple(np.ceil(centre + reach).astype(np.int64) + 1),
        )

    def apply(
        self, image: NDArray[np.float32], labels: NDArray[np.uint64], read: Roi, roi: Roi
    ) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
        """Image and labels of the patch at `roi` from those of the box `read`.

        Where the patch comes from outside `read`, the image goes on as at the edge and labels are
        `IGNORE`: no label is invented.
        """
        centre = np.array(roi.offset) - np.array(read.offset) + (np.array(self.shape) - 1) / 2
        warped, moved = np.empty(self.shape, np.float32), np.empty(self.shape, np.uint64)
        image, labels = np.ascontiguousarray(image), np.ascontiguousarray(labels)
        warp(image, labels, self.matrix, centre, self.control, self.spacing, warped, moved)
        return warped, moved


def draw_deformation(
    random: np.random.Generator,
    shape: Triple,
    voxel_size: Sequence[float],
    settings: AugmentSettings,
) -> Deformation | None:
    """A deformation of a patch of `shape`, or None where the settings or chance want none.

    Args:
        voxel_size: along z, y, x in any one unit; only ratios matter.
    """
    sizes = (settings.elastic, settings.rotation_degrees, settings.tilt_degrees, settings.zoom)
    if not any(sizes) or random.random() >= settings.deform_fraction:
        return None
    moving = [axis for axis in range(3) if shape[axis] > 1]
    size = np.array(voxel_size, np.float64)
    matrix = _rotation_and_zoom(random, moving, settings)
    control, spacing = _control_points(random, shape, moving, size.min() / size, settings)
    return Deformation(shape, matrix * size / size[:, None], control, spacing)


def _rotation_and_zoom(
    random: np.random.Generator, moving: list[int], settings: AugmentSettings
) -> NDArray[np.float64]:
    """A physical rotation in the plane of y and x, a tilt of that plane, and a zoom."""
    angle, tilt = random.uniform(-1, 1, 2) * (settings.rotation_degrees, settings.tilt_degrees)
    towards = random.uniform(-180, 180)
    deviation = float(np.clip(random.standard_normal(), -_LARGEST_ZOOM, _LARGEST_ZOOM))
    matrix = np.eye(3)
    matrix[moving, moving] = math.exp(settings.zoom * deviation)
    if len(moving) >= 2:
        matrix = _turn(moving[-2:], angle) @ matrix
    if len(moving) == 3:
        about = _turn([1, 2], towards)
        matrix = about @ _turn([0, 1], tilt) @ about.T @ matrix
    return matrix


def _turn(plane: list[int], degrees: float) -> NDArray[np.float64]:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = np.eye(3)
    matrix[np.ix_(plane, plane)] = [[cosine, -sine], [sine, cosine]]
    return matrix


def _control_points(
    random: np.random.Generator,
    shape: Triple,
    moving: list[int],
    finest_in_voxels: NDArray[np.float64],
    settings: AugmentSettings,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Displacements of the control points, and their spacing, both in voxels."""
    spacing = settings.elastic_spacing * finest_in_voxels
    counts = [int((n - 1) / s) + 4 if n > 1 else 1 for n, s in zip(shape, spacing, strict=True)]
    control = np.zeros((*counts, 3))
    if settings.elastic:
        # The spline averages its coefficients: they are larger than what is wanted of it.
        deviation = settings.elastic / _SPLINE_POWER ** (len(moving) / 2) * finest_in_voxels
        control[...] = random.standard_normal(control.shape) * deviation
        np.clip(control, -_NO_FOLD * spacing, _NO_FOLD * spacing, out=control)
        control[..., [axis for axis in range(3) if axis not in moving]] = 0.0
    for axis in range(3):
        if shape[axis] == 1:
            control = np.repeat(control, 4, axis=axis)
    return control, spacing


def reorient(array: NDArray[Any], order: Triple, mirror: NDArray[np.bool_]) -> NDArray[Any]:
    """The array with its axes in another order, then mirrored where `mirror` says so; a copy."""
    steps = tuple(slice(None, None, -1) if flag else slice(None) for flag in mirror)
    return np.ascontiguousarray(array.transpose(order)[steps])


def vary_light(
    image: NDArray[np.float32],
    random: np.random.Generator,
    voxel_size: Sequence[float],
    settings: AugmentSettings,
    *,
    sections: bool,
) -> NDArray[np.float32]:
    """The image (Z, Y, X) as another recording might have shown it; the same shape, float32.

    Args:
        voxel_size: along z, y, x in any one unit; only ratios matter.
        sections: whether z planes may be lost or of low contrast; not for a single plane.
    """
    image = blur(image, random, voxel_size, settings)
    if sections:
        image = weaken_sections(image, random, settings)
    image = vary_intensity(image, random, settings)
    return lose_sections(image, random, settings) if sections else image


def blur(
    image: NDArray[np.float32],
    random: np.random.Generator,
    voxel_size: Sequence[float],
    settings: AugmentSettings,
) -> NDArray[np.float32]:
    """A share of the images with a Gaussian blur of one physical width, mirrored at the border."""
    chance, width = random.random(2)
    if not settings.blur or chance >= settings.blur_fraction:
        return image
    from scipy import ndimage  # half a second, and most processes never train

    size = np.array(voxel_size, np.float64)
    sigma = settings.blur * width * size.min() / size
    return ndimage.gaussian_filter(image, sigma, mode="reflect", truncate=3.0)


def vary_intensity(
    image: NDArray[np.float32], random: np.random.Generator, settings: AugmentSettings
) -> NDArray[np.float32]:
    """The image with a random gain, offset, gamma (of the magnitude, keeping signs) and noise."""
    log_gain, shift, log_gamma = random.standard_normal(3)
    deviation = np.float32(settings.noise * random.random())
    if settings.gamma:
        exponent = np.float32(np.exp(settings.gamma * log_gamma))
        image = np.copysign(np.abs(image) ** exponent, image)
    gain = np.float32(np.exp(settings.scale * log_gain))
    image = image * gain + np.float32(settings.shift * shift)
    # Drawn last and only if wanted: nothing that follows in this stream changes the other values.
    if settings.noise:
        image += random.standard_normal(image.shape, dtype=np.float32) * deviation
    return image


def weaken_sections(
    image: NDArray[np.float32], random: np.random.Generator, settings: AugmentSettings
) -> NDArray[np.float32]:
    """The image with some z planes drawn towards their mean, to 10-50 % of their contrast."""
    chosen = random.random(len(image)) < settings.low_contrast_sections
    contrast = random.uniform(*_LOW_CONTRAST, len(image)).astype(np.float32)
    if not chosen.any():
        return image
    image = image.copy()
    planes = image[chosen]
    mean = planes.mean(axis=(1, 2), keepdims=True)
    image[chosen] = mean + contrast[chosen, None, None] * (planes - mean)
    return image


def lose_sections(
    image: NDArray[np.float32], random: np.random.Generator, settings: AugmentSettings
) -> NDArray[np.float32]:
    """The image with some z planes lost: half of them dark, half a copy of the last one before.

    Dark is 0, the volume's low percentile; so is a copy that has nothing before it.
    """
    lost = random.random(len(image)) < settings.missing_sections
    copied = random.random(len(image)) < 0.5
    if not lost.any():
        return image
    image = image.copy()
    before = None
    for z in range(len(image)):
        if not lost[z]:
            before = z
        elif copied[z] and before is not None:
            image[z] = image[before]
        else:
            image[z] = _LOST_VALUE
    return image
