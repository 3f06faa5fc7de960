"""Training patches: where they are cut and how they are changed.

A batch is a pure function of the seed and the step: nothing depends on how often or in which order
batches are asked for. A share of the patches is centred on a labelled voxel, each label being as
likely as any other; the rest lie anywhere in the allowed regions. Mirroring and transposing act
on image and labels before affinities are computed from the labels, so that an affinity always
points to the predecessor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.labels import IGNORE
from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import BlockGrid, Roi, Triple, triple
from pipeline.learning.settings import AugmentSettings, TrainSettings

_INDEX_TILE: Triple = (64, 64, 64)
_VOXELS_PER_LABEL_AND_TILE = 64


class PatchSource(Protocol):
    """An image and its labels, the same box in both."""

    @property
    def shape(self) -> Triple:
        """Extent of the volume, voxels."""

    def image(self, roi: Roi) -> NDArray[np.float32]:
        """The normalised image of a box."""

    def labels(self, roi: Roi) -> NDArray[np.uint64]:
        """The labels of a box: 0 is background, `targets.IGNORE` unknown."""


Region = tuple[PatchSource, Roi]
"""A source and the box of it that patches may touch."""


@dataclass(frozen=True)
class ForegroundIndex:
    """Labelled voxels to centre patches on, grouped by region and label.

    `voxels` (N, 3) int64, coordinates in the region's volume; group g has rows `starts[g]` to
    `starts[g + 1]` and lies in region `region[g]`.
    """

    voxels: NDArray[np.int64]
    starts: NDArray[np.int64]
    region: NDArray[np.int64]

    @property
    def digest(self) -> str:
        """SHA-256 of the content: changes with the labels and the regions."""
        sha = hashlib.sha256()
        for array in (self.voxels, self.starts, self.region):
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()


def index_foreground(regions: Sequence[Region]) -> ForegroundIndex:
    """Read all labels once, in tiles, and keep at most 64 voxels of a label per tile of 64^3.

    Which ones is decided by a hash of their position, so the index depends on the labels alone;
    the bound per tile spreads them evenly along long objects.

    Raises:
        InputError: there is no region, or no labelled voxel in any.
    """
    if not regions:
        raise InputError("no training regions were given: name at least one labelled volume")
    rows = [
        _index_tile(source, number, block.write)
        for number, (source, allowed) in enumerate(regions)
        for block in BlockGrid(allowed, _INDEX_TILE)
    ]
    table = np.concatenate(rows)
    if not len(table):
        raise InputError(
            f"no labelled voxel in {', '.join(str(allowed) for _, allowed in regions)}: all labels "
            f"are background or ignored, there is nothing to train on"
        )
    table = table[np.lexsort((table["z"], table["label"], table["region"]))]
    change = (table["label"][1:] != table["label"][:-1]) | (
        table["region"][1:] != table["region"][:-1]
    )
    first = np.concatenate([[0], np.flatnonzero(change) + 1])
    voxels = np.stack([table[axis] for axis in "zyx"], axis=1)
    return ForegroundIndex(voxels, np.append(first, len(table)), table["region"][first])


_ROW = np.dtype([("region", "i8"), ("label", "u8"), ("z", "i8"), ("y", "i8"), ("x", "i8")])


def _index_tile(source: PatchSource, region: int, tile: Roi) -> NDArray:
    labels = source.labels(tile)
    places = np.argwhere((labels != 0) & (labels != IGNORE)) + np.array(tile.offset)
    ids = labels[tuple((places - np.array(tile.offset)).T)]
    order = np.lexsort((_hash(places), ids))
    ids, places = ids[order], places[order]
    first = np.searchsorted(ids, ids)  # where the label's run begins
    kept = np.arange(len(ids)) - first < _VOXELS_PER_LABEL_AND_TILE
    rows = np.empty(int(kept.sum()), dtype=_ROW)
    rows["region"], rows["label"] = region, ids[kept]
    rows["z"], rows["y"], rows["x"] = places[kept].T
    return rows


def _hash(places: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A well-mixed number for each position (the finaliser of splitmix64 over 21 bits an axis)."""
    z, y, x = places.astype(np.uint64).T
    value = (z << np.uint64(42)) ^ (y << np.uint64(21)) ^ x
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ (value >> np.uint64(shift))) * np.uint64(factor)
    return value ^ (value >> np.uint64(31))


class PatchSampler:
    """Batches of augmented patches, each a function of (seed, step)."""

    def __init__(
        self, regions: Sequence[Region], index: ForegroundIndex, settings: TrainSettings
    ) -> None:
        """Check that every patch that may be drawn fits.

        Raises:
            InputError: a region leaves its volume, or is smaller than a patch.
        """
        self._regions, self._index, self._settings = regions, index, settings
        self._orders = _axis_orders(settings.augment)
        for source, allowed in regions:
            if not Roi((0, 0, 0), source.shape).contains(allowed):
                raise InputError(f"training region {allowed} leaves its volume {source.shape}")
            for order in self._orders:
                _check_fit(_shape_before(settings.patch, order), allowed)

    def batch(self, step: int) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
        """Images (B, 1, Z, Y, X) and labels (B, Z, Y, X) of a step.

        Raises:
            DataError: the image holds NaN or infinity.
            ShapeError: a source gives another shape than was asked for.
        """
        key = np.array([self._settings.seed, step], dtype=np.uint64)
        random = np.random.Generator(np.random.Philox(key=key))
        patches = [self._patch(random) for _ in range(self._settings.batch)]
        images = np.stack([image for image, _ in patches])[:, None]
        return images, np.stack([labels for _, labels in patches])

    def batches(
        self, first: int, end: int
    ) -> Generator[tuple[int, NDArray[np.float32], NDArray[np.uint64]]]:
        """Steps `first` to `end` with their batches; the next is read while one is used."""
        with ThreadPoolExecutor(1) as reader:
            following = reader.submit(self.batch, first)
            for step in range(first, end):
                images, labels = following.result()
                if step + 1 < end:
                    following = reader.submit(self.batch, step + 1)
                yield step, images, labels

    def _patch(self, random: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
        order = self._orders[random.integers(len(self._orders))]
        shape = _shape_before(self._settings.patch, order)
        source, roi = self._place(random, shape)
        image, labels = source.image(roi), source.labels(roi)
        _check_patch(image, labels, roi)
        mirror = random.random(3) < (0.5 if self._settings.augment.flip else 0.0)
        image, labels = (reorient(array, order, mirror) for array in (image, labels))
        return vary_intensity(image, random, self._settings.augment), labels

    def _place(self, random: np.random.Generator, shape: Triple) -> tuple[PatchSource, Roi]:
        if random.random() < self._settings.foreground_fraction:
            group = int(random.integers(len(self._index.region)))
            row = int(random.integers(self._index.starts[group], self._index.starts[group + 1]))
            source, allowed = self._regions[self._index.region[group]]
            middle = self._index.voxels[row]
            wanted = [int(m) - n // 2 for m, n in zip(middle, shape, strict=True)]
            ends = zip(wanted, allowed.offset, allowed.end, shape, strict=True)
            return source, Roi(triple([min(max(w, o), e - n) for w, o, e, n in ends]), shape)
        sizes = np.array([allowed.size for _, allowed in self._regions], dtype=np.float64)
        number = int(random.choice(len(sizes), p=sizes / sizes.sum()))
        source, allowed = self._regions[number]
        spans = zip(allowed.offset, allowed.end, shape, strict=True)
        return source, Roi(triple([int(random.integers(o, e - n + 1)) for o, e, n in spans]), shape)


def reorient(array: NDArray[Any], order: Triple, mirror: NDArray[np.bool_]) -> NDArray[Any]:
    """The array with its axes in another order, then mirrored where `mirror` says so; a copy."""
    steps = tuple(slice(None, None, -1) if flag else slice(None) for flag in mirror)
    return np.ascontiguousarray(array.transpose(order)[steps])


def vary_intensity(
    image: NDArray[np.float32], random: np.random.Generator, settings: AugmentSettings
) -> NDArray[np.float32]:
    """The image with a random gain, offset, gamma (of the magnitude, keeping signs) and noise.

    Draws the same amount of random numbers whatever the settings are.
    """
    log_gain, shift, log_gamma = random.standard_normal(3)
    deviation = settings.noise * random.random()
    noise = random.standard_normal(image.shape, dtype=np.float32)
    if settings.gamma:
        exponent = np.float32(np.exp(settings.gamma * log_gamma))
        image = np.sign(image) * np.abs(image) ** exponent
    gain, offset = np.exp(settings.scale * log_gain), settings.shift * shift
    return image * np.float32(gain) + np.float32(offset) + noise * np.float32(deviation)


def _axis_orders(settings: AugmentSettings) -> list[Triple]:
    if settings.transpose == "zyx":
        return [triple(order) for order in permutations(range(3))]
    return [(0, 1, 2), (0, 2, 1)] if settings.transpose == "yx" else [(0, 1, 2)]


def _shape_before(patch: Triple, order: Triple) -> Triple:
    """The shape to read so that it is `patch` after the axes were put in `order`."""
    shape = [0, 0, 0]
    for axis, extent in zip(order, patch, strict=True):
        shape[axis] = extent
    return triple(shape)


def _check_fit(shape: Triple, allowed: Roi) -> None:
    if any(n > a for n, a in zip(shape, allowed.shape, strict=True)):
        raise InputError(
            f"a training patch of {shape} voxels does not fit into the region {allowed} of "
            f"{allowed.shape} voxels: use a smaller patch or a larger region"
        )


def _check_patch(image: NDArray[np.float32], labels: NDArray[np.uint64], roi: Roi) -> None:
    for name, array in (("image", image), ("labels", labels)):
        if array.shape != roi.shape:
            raise ShapeError(f"{name} of {roi}: expected {roi.shape}, got {array.shape}")
    if image.dtype != np.float32 or labels.dtype != np.uint64:
        raise DtypeError(
            f"{roi}: expected float32 image and uint64 labels, got {image.dtype}, {labels.dtype}"
        )
    if not np.isfinite(image).all():
        raise DataError(f"the image holds NaN or infinity in {roi}; training would spread it")
