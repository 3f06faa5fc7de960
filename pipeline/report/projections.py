"""Projections of a volume along z, y and x, gathered block by block.

A terabyte is never in memory: a block is reduced to its few pixels, and pixels add up. Everything
here is a maximum (of intensities, or of pairs of intensity and label), so that neither the blocks
nor their order show in the picture. A pixel stands for a bin of voxels anchored at the volume's
origin, and shows the maximum over its bin, through the whole depth.

`along(axis)` has the two other axes in z, y, x order: along z (y, x), along y (z, x), along
x (z, y).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DtypeError, ShapeError
from pipeline.geometry import Roi, Triple, triple

AXES = (0, 1, 2)
_SLAB_PLANES = 8


@dataclass(frozen=True)
class ProjectionGrid:
    """The pixels of the projections of a volume.

    `factors` voxels share a pixel along each axis: as few as keep every side within `max_pixels`,
    and as close to square in nanometres as whole voxels allow.

    Attributes:
        shape: of the volume, voxels.
        voxel_size_nm: z, y, x.
        max_pixels: limit of every side of a projection.
    """

    shape: Triple
    voxel_size_nm: tuple[float, float, float]
    max_pixels: int = 1024

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.max_pixels < 1:
            raise ShapeError(f"no pixels for a volume of {self.shape} within {self.max_pixels}")
        if not all(0 < size < np.inf for size in self.voxel_size_nm):
            raise ShapeError(f"voxel size must be positive, got {self.voxel_size_nm} nm")

    @property
    def factors(self) -> Triple:
        """Voxels per pixel along z, y, x."""
        extents = [n * s for n, s in zip(self.shape, self.voxel_size_nm, strict=True)]
        pixel_nm = max(extents) / self.max_pixels
        z, y, x = (
            # The second bound keeps the limit where the quotient was rounded down.
            max(int(np.ceil(pixel_nm / size)), -(-n // self.max_pixels))
            for n, size in zip(self.shape, self.voxel_size_nm, strict=True)
        )
        return z, y, x

    @property
    def pixels(self) -> Triple:
        """Pixels along z, y, x; the last may hold fewer voxels than the others."""
        z, y, x = (-(-n // f) for n, f in zip(self.shape, self.factors, strict=True))
        return z, y, x

    def picture(self, axis: int) -> tuple[int, int]:
        """Rows and columns of the projection along `axis`."""
        rows, columns = (self.pixels[other] for other in AXES if other != axis)
        return rows, columns

    def window(self, roi: Roi, axis: int) -> tuple[slice, slice]:
        """The pixels of the projection along `axis` that `roi` touches."""
        rows, columns = (
            slice(roi.offset[d] // self.factors[d], -(-roi.end[d] // self.factors[d]))
            for d in AXES
            if d != axis
        )
        return rows, columns

    def check(self, roi: Roi, shape: tuple[int, ...]) -> None:
        """Refuse an array that is not `roi` of this volume."""
        if shape != roi.shape:
            raise ShapeError(f"an array of {shape} was given for the box {roi} of {roi.shape}")
        if min(roi.offset) < 0 or any(e > n for e, n in zip(roi.end, self.shape, strict=True)):
            raise ShapeError(f"the box {roi} leaves the volume of {self.shape}")


def _lowest(dtype: np.dtype[Any]) -> Any:
    """The value that loses against every other of `dtype`."""
    if dtype.kind == "f":
        return -np.inf
    if dtype.kind in "iu":
        return np.iinfo(dtype).min
    raise DtypeError(f"projections take integers and floats, got {dtype}")


def _bin_starts(begin: int, end: int, factor: int) -> NDArray[np.int64]:
    """Where in an array over voxels [begin, end) the bins of `factor` voxels begin."""
    edges = np.arange(begin // factor * factor, end, factor, dtype=np.int64)
    return np.maximum(edges, begin) - begin


def project_max(values: NDArray[Any], roi: Roi, grid: ProjectionGrid, axis: int) -> NDArray[Any]:
    """The maximum of a block along `axis`, one value per pixel of `grid.window(roi, axis)`.

    NaN loses against every number; a pixel of NaN alone is NaN.

    Raises:
        ShapeError: `values` is not of the shape of `roi`, or `roi` leaves the volume.
    """
    grid.check(roi, values.shape)
    flat = np.fmax.reduce(values, axis=axis)
    for along, d in enumerate(d for d in AXES if d != axis):
        starts = _bin_starts(roi.offset[d], roi.end[d], grid.factors[d])
        flat = np.fmax.reduceat(flat, starts, axis=along)
    return flat


class MaxProjections:
    """Maximum projections along z, y and x of one volume of numbers.

    Blocks may come in any order, overlap, and come twice. `merge` adds what another gathered.
    """

    def __init__(self, grid: ProjectionGrid, dtype: np.dtype[Any] | type) -> None:
        self.grid = grid
        lowest = _lowest(np.dtype(dtype))
        self._best = [np.full(grid.picture(axis), lowest, dtype) for axis in AXES]
        self._seen = [np.zeros(grid.picture(axis), bool) for axis in AXES]

    def add(self, roi: Roi, values: NDArray[Any]) -> None:
        """Take in a block: `values` are the voxels of `roi`, in the data type given at the start.

        Raises:
            ShapeError, DtypeError: the array is not that block of this volume.
        """
        if values.dtype != self._best[0].dtype:
            raise DtypeError(f"projections of {self._best[0].dtype} were given {values.dtype}")
        for axis in AXES:
            window = self.grid.window(roi, axis)
            piece = project_max(values, roi, self.grid, axis)
            self._best[axis][window] = np.fmax(self._best[axis][window], piece)
            self._seen[axis][window] = True

    def merge(self, other: MaxProjections) -> None:
        """Take in what `other` gathered of the same volume."""
        _same_grid(self.grid, other.grid)
        for axis in AXES:
            self._best[axis] = np.fmax(self._best[axis], other._best[axis])
            self._seen[axis] |= other._seen[axis]

    def part(self, roi: Roi) -> dict[str, NDArray[Any]]:
        """What the pixels of `roi` hold now: small arrays that can be kept on disk."""
        return {f"best{axis}": self._best[axis][self.grid.window(roi, axis)] for axis in AXES}

    def add_part(self, roi: Roi, part: Mapping[str, NDArray[Any]]) -> None:
        """Take in what `part` gave for a block in another place."""
        for axis in AXES:
            window = self.grid.window(roi, axis)
            self._best[axis][window] = np.fmax(self._best[axis][window], part[f"best{axis}"])
            self._seen[axis][window] = True

    def along(self, axis: int) -> NDArray[Any]:
        """The projection along `axis`; pixels that no block touched have the smallest value."""
        best = np.array(self._best[axis])
        known = self._seen[axis] & ((best > -np.inf) if best.dtype.kind == "f" else True)
        best[~known] = best[known].min() if known.any() else 0
        return best


class LabelProjections:
    """Label projections along z, y and x: each pixel has the label of its brightest labelled voxel.

    The pictures therefore show the same surfaces as the maximum projection of the image. Among
    equally bright voxels the largest label wins, which depends on no order and on no block.
    Background (0) never hides a label.
    """

    def __init__(self, grid: ProjectionGrid, dtype: np.dtype[Any] | type) -> None:
        """`dtype` is that of the image."""
        self.grid = grid
        lowest = _lowest(np.dtype(dtype))
        self._best = [np.full(grid.picture(axis), lowest, dtype) for axis in AXES]
        self._label = [np.zeros(grid.picture(axis), np.uint64) for axis in AXES]

    def add(self, roi: Roi, labels: NDArray[Any], image: NDArray[Any]) -> None:
        """Take in a block: the labels and the image of the voxels of `roi`.

        Raises:
            ShapeError, DtypeError: the arrays are not that block of this volume.
        """
        self.grid.check(roi, labels.shape)
        self.grid.check(roi, image.shape)
        if labels.dtype.kind != "u" or image.dtype != self._best[0].dtype:
            raise DtypeError(
                f"expected unsigned labels and an image of {self._best[0].dtype}, "
                f"got {labels.dtype} and {image.dtype}"
            )
        lowest = _lowest(image.dtype)
        # Slabs: temporary arrays fit the cache, and slabs of background are skipped.
        for z in range(0, roi.shape[0], _SLAB_PLANES):
            slab = slice(z, z + _SLAB_PLANES)
            if labels[slab].any():
                inside = Roi((roi.offset[0] + z, *roi.offset[1:]), triple(labels[slab].shape))
                shown = np.where(labels[slab] > 0, image[slab], lowest)
                if shown.dtype.kind == "f":
                    shown = np.where(np.isnan(shown), lowest, shown)
                self._add_slab(inside, labels[slab], shown)

    def _add_slab(self, roi: Roi, labels: NDArray[Any], shown: NDArray[Any]) -> None:
        """`shown` is the image where there is a label, and the lowest value elsewhere."""
        for axis in AXES:
            best = project_max(shown, roi, self.grid, axis)
            rows, columns = (
                np.arange(roi.offset[d], roi.end[d]) // self.grid.factors[d]
                - roi.offset[d] // self.grid.factors[d]
                for d in AXES
                if d != axis
            )
            of_voxels = np.expand_dims(best[rows][:, columns], axis)
            winners = np.where(shown == of_voxels, labels, 0)
            label = project_max(winners, roi, self.grid, axis).astype(np.uint64)
            window = self.grid.window(roi, axis)
            self._label[axis][window], self._best[axis][window] = _brighter(
                (self._label[axis][window], self._best[axis][window]), (label, best)
            )

    def merge(self, other: LabelProjections) -> None:
        """Take in what `other` gathered of the same volume."""
        _same_grid(self.grid, other.grid)
        whole = Roi((0, 0, 0), self.grid.shape)
        self.add_part(whole, other.part(whole))

    def part(self, roi: Roi) -> dict[str, NDArray[Any]]:
        """What the pixels of `roi` hold now: small arrays that can be kept on disk."""
        windows = [self.grid.window(roi, axis) for axis in AXES]
        best = {f"best{axis}": self._best[axis][windows[axis]] for axis in AXES}
        return best | {f"label{axis}": self._label[axis][windows[axis]] for axis in AXES}

    def add_part(self, roi: Roi, part: Mapping[str, NDArray[Any]]) -> None:
        """Take in what `part` gave for a block in another place."""
        for axis in AXES:
            window = self.grid.window(roi, axis)
            ours = self._label[axis][window], self._best[axis][window]
            theirs = part[f"label{axis}"], part[f"best{axis}"]
            self._label[axis][window], self._best[axis][window] = _brighter(ours, theirs)

    def along(self, axis: int) -> NDArray[np.uint64]:
        """The labels seen along `axis`; 0 where the whole bin is background."""
        return np.array(self._label[axis])


def _brighter(
    ours: tuple[NDArray[np.uint64], NDArray[Any]], theirs: tuple[NDArray[np.uint64], NDArray[Any]]
) -> tuple[NDArray[np.uint64], NDArray[Any]]:
    """Of two pictures of (label, intensity), pixel by pixel the larger (intensity, label)."""
    (mine, bright), (its, other) = ours, theirs
    tie = np.maximum(mine, its)
    label = np.where(bright > other, mine, np.where(bright < other, its, tie))
    return label, np.maximum(bright, other)


def _same_grid(ours: ProjectionGrid, theirs: ProjectionGrid) -> None:
    if ours != theirs:
        raise ShapeError(f"projections of different volumes cannot be merged: {ours}, {theirs}")


def affinity_strength(affinities: NDArray[Any]) -> NDArray[np.uint16]:
    """Mean over the three nearest-neighbour channels of a block, rounded down, as uint16.

    The mean rather than the maximum: a maximum over channels and depth is bright almost
    everywhere, while the mean is high only inside of neurites and dips where the network doubts.

    Args:
        affinities: (C, Z, Y, X) uint8 or uint16, C >= 3; further channels are ignored.
    """
    if affinities.ndim != 4 or affinities.shape[0] < 3:
        raise ShapeError(f"expected affinities (3 or more, Z, Y, X), got {affinities.shape}")
    if affinities.dtype.kind != "u" or affinities.dtype.itemsize > 2:
        raise DtypeError(f"affinities are uint8 or uint16, got {affinities.dtype}")
    strength = np.empty(affinities.shape[1:], np.uint16)
    for z in range(len(strength)):
        strength[z] = affinities[:3, z].sum(axis=0, dtype=np.uint32) // 3
    return strength
