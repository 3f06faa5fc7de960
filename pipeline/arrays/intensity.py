"""Intensity statistics of a volume from tables of its blocks, and the tissue mask.

Histograms add and tile summaries are kept per tile, so the statistics of a volume do not depend on
how it was cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, DtypeError
from pipeline.geometry import Triple

BINS = 65536
TILE = 32
CELL = 4
SUPPORTED = ("uint8", "uint16", "float32")
# Normalised intensities beyond this many times the high percentile carry no more information.
_CLIP = (-0.5, 4.0)


def require_supported(dtype: np.dtype, name: str) -> None:
    """Refuse image types other than uint8, uint16 and float32."""
    if dtype.name not in SUPPORTED:
        raise DtypeError(
            f"{name}: an image of {dtype.name} is not supported, expected one of "
            f"{', '.join(SUPPORTED)}; convert it, for instance to uint16"
        )


def intensity_bins(image: NDArray[Any]) -> NDArray[np.int64]:
    """The histogram bin, 0 to 65535, of each voxel; greater values never have smaller bins.

    Integers are their own bin. A float32 falls into the bin of its upper 16 bits, ordered (a
    relative width of 1/128), so no range must be known beforehand.

    Raises:
        DataError: NaN or infinity.
    """
    if image.dtype != np.float32:
        return image.astype(np.int64)
    if not np.isfinite(image).all():
        position = tuple(int(i) for i in np.argwhere(~np.isfinite(image))[0])
        raise DataError(f"the image holds NaN or infinity, first at {position} of the block")
    # Adding zero turns -0 into 0: equal values must share a bin.
    upper = ((image + np.float32(0)).view(np.uint32) >> 16).astype(np.int64)
    return np.where(upper >= 0x8000, 0xFFFF - upper, upper + 0x8000)


def bin_values(dtype: np.dtype) -> NDArray[np.float64]:
    """(65536,) the value of each bin that is nearest to 0, of an image of `dtype`."""
    bins = np.arange(BINS)
    if dtype != np.float32:
        return bins.astype(np.float64)
    upper = np.where(bins < 0x8000, 0xFFFF - bins, bins - 0x8000).astype(np.uint32) << 16
    with np.errstate(invalid="ignore"):
        return upper.view(np.float32).astype(np.float64)


def histogram(image: NDArray[Any]) -> NDArray[np.int64]:
    """(65536,) number of voxels per bin."""
    return np.bincount(intensity_bins(image).reshape(-1), minlength=BINS)


def tile_peaks(image: NDArray[Any]) -> NDArray[np.float64]:
    """The brightest mean of a 4x4x4 cell in each 32x32x32 tile.

    The mean of a cell has an eighth of a voxel's noise, so its maximum tells neurites from noise.
    Cells and tiles are anchored at the array's first voxel, which must lie on a tile corner of the
    volume; cells at the far end hold what is left.
    """
    sums = _cell_reduce(np.add, image.astype(np.float64), CELL)
    counts = _cell_reduce(np.add, np.ones(image.shape), CELL)
    return _cell_reduce(np.maximum, sums / counts, TILE // CELL)


def _cell_reduce(ufunc: np.ufunc, values: NDArray[Any], step: int) -> NDArray[np.float64]:
    for axis in range(3):
        values = ufunc.reduceat(values, np.arange(0, values.shape[axis], step), axis=axis)
    return values


@dataclass(frozen=True)
class IntensityStatistics:
    """What the whole volume says of its intensities, in image values."""

    minimum: float
    maximum: float
    median: float
    mad: float
    low: float
    high: float
    otsu: float

    @classmethod
    def from_histogram(
        cls, counts: NDArray[np.int64], dtype: np.dtype, low: float, high: float
    ) -> IntensityStatistics:
        """Statistics from the summed histogram; `low` and `high` are percentiles, 0 to 100.

        Raises:
            DataError: every voxel has the same value.
        """
        values = bin_values(dtype)
        present = np.flatnonzero(counts)
        minimum, maximum = float(values[present[0]]), float(values[present[-1]])
        if minimum == maximum:
            raise DataError(f"every voxel of the image has the value {minimum}: nothing to segment")
        median = _quantile(counts, values, 0.5)
        deviation = np.abs(values[present] - median)
        order = np.argsort(deviation, kind="stable")
        running = np.cumsum(counts[present][order])
        mad = float(deviation[order][np.searchsorted(running, running[-1] / 2)])
        bottom, top = (_quantile(counts, values, p / 100) for p in (low, high))
        if top <= bottom:
            # Sparse data on a black background: the percentile itself is background.
            top = maximum
        return cls(minimum, maximum, median, mad, bottom, top, _otsu(counts, values))

    def normalise(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """The network's input: `low` becomes 0, `high` 1, clipped to [-0.5, 4]."""
        scaled = (image.astype(np.float32) - np.float32(self.low)) / np.float32(
            self.high - self.low
        )
        return np.clip(scaled, *_CLIP, out=scaled)

    def tissue_threshold(self, sigma: float) -> float:
        """A cell's mean above this is signal: `sigma` standard errors over the median."""
        standard_error = 1.4826 * self.mad / np.sqrt(CELL**3)
        return float(self.median + sigma * standard_error)


def _quantile(counts: NDArray[np.int64], values: NDArray[np.float64], q: float) -> float:
    running = np.cumsum(counts)
    rank = min(int(np.ceil(q * running[-1])), int(running[-1]))
    return float(values[np.searchsorted(running, max(rank, 1))])


def _otsu(counts: NDArray[np.int64], values: NDArray[np.float64]) -> float:
    """The value that parts the histogram with the greatest variance between the classes."""
    present = np.flatnonzero(counts)
    weight, value = counts[present].astype(np.float64), values[present]
    below, total = np.cumsum(weight)[:-1], np.cumsum(weight * value)[:-1]
    above = weight.sum() - below
    means = total / below, ((weight * value).sum() - total) / above
    between = below * above * (means[0] - means[1]) ** 2
    return float(value[int(np.argmax(between)) + 1])


def tissue_mask(peaks: NDArray[np.float64], threshold: float, dilation: int) -> NDArray[np.uint8]:
    """1 for each tile that holds signal or lies within `dilation` tiles of one that does."""
    found = peaks > threshold
    if dilation:
        from scipy import ndimage  # takes half a second, and most stages do without

        found = ndimage.maximum_filter(found, size=2 * dilation + 1, mode="constant")
    return found.astype(np.uint8)


def tiles_to_voxels(tiles: NDArray[Any], shape: Triple, first: Triple) -> NDArray[Any]:
    """Each tile's value at the voxels of a box of `shape` whose first voxel is `first`."""
    for axis in range(3):
        index = (np.arange(shape[axis]) + first[axis]) // TILE
        tiles = tiles.take(index, axis=axis)
    return tiles
