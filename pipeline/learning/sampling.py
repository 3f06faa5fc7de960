"""Training patches: where they are cut and how they are changed.

A patch is a pure function of the seed, the step and its index in the batch: nothing depends on how
often, in which order or by which thread patches are asked for. A share of the patches is centred on
a labelled voxel, each label of each region being as likely as any other, so a region counts by its
number of objects; the rest lie anywhere, and a region counts by its size. Geometry changes with the
labels before affinities are computed from them, so that an affinity always points to the
predecessor (`augment`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.labels import IGNORE
from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import BlockGrid, Roi, Triple, triple
from pipeline.learning.augment import draw_deformation, reorient, vary_light
from pipeline.learning.settings import VOXEL_RATIO, AugmentSettings, TrainSettings

_INDEX_TILE: Triple = (64, 64, 64)
_VOXELS_PER_LABEL_AND_TILE = 64
# Streams of random numbers.
_PLACE, _DEFORM, _LIGHT = 0, 1, 2


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
    rows, background = [], 0
    for number, (source, allowed) in enumerate(regions):
        for block in BlockGrid(allowed, _INDEX_TILE):
            labels = source.labels(block.write)
            background += labels.size - int(np.count_nonzero(labels))
            rows.append(_index_tile(labels, number, block.write))
    table = np.concatenate(rows)
    if not len(table):
        raise InputError(_no_foreground(regions, background))
    table = table[np.lexsort((table["z"], table["label"], table["region"]))]
    change = (table["label"][1:] != table["label"][:-1]) | (
        table["region"][1:] != table["region"][:-1]
    )
    first = np.concatenate([[0], np.flatnonzero(change) + 1])
    voxels = np.stack([table[axis] for axis in "zyx"], axis=1)
    return ForegroundIndex(voxels, np.append(first, len(table)), table["region"][first])


_ROW = np.dtype([("region", "i8"), ("label", "u8"), ("z", "i8"), ("y", "i8"), ("x", "i8")])


def _no_foreground(regions: Sequence[Region], background: int) -> str:
    """What was found in labels that hold no object, and what may be done."""
    boxes = ", ".join(str(allowed) for _, allowed in regions)
    voxels = sum(allowed.size for _, allowed in regions)
    return (
        f"no labelled voxel in {boxes}: of {voxels} voxels {background} are background (0) and "
        f"{voxels - background} ignored ({IGNORE}), there is nothing to train on. Choose "
        "regions.train so that it holds objects. Dense labels: look at which values are taken as "
        "background or ignored (targets.background_labels, targets.ignore_labels). Tracings: look "
        "at where they lie (input.swc)"
    )


def _index_tile(labels: NDArray[np.uint64], region: int, tile: Roi) -> NDArray:
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
    """Augmented patches, each a function of (seed, step, index in the batch) alone."""

    def __init__(
        self,
        regions: Sequence[Region],
        index: ForegroundIndex,
        settings: TrainSettings,
        *,
        voxel_size: Sequence[float] | None = None,
    ) -> None:
        """Check that every patch that may be drawn fits.

        Args:
            regions: what is drawn from.
            index: of the same regions.
            settings: of the training.
            voxel_size: along z, y, x in any one unit; only ratios matter, and only to augmentation;
                default: as long along each.

        Raises:
            InputError: a region leaves its volume, or is smaller than a patch; the voxel size is
                not three positive numbers; axes of other voxel sizes were to change places.
        """
        self._regions, self._index, self._settings = regions, index, settings
        self._orders = _axis_orders(settings.augment)
        self._voxel_size = _checked_size(voxel_size or (1.0, 1.0, 1.0))
        check_transpose(settings.augment, self._voxel_size)
        check_regions(regions, settings)
        sizes = np.array([allowed.size for _, allowed in regions], dtype=np.float64)
        self._shares = sizes / sizes.sum()

    def batch(self, step: int) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
        """Images (B, 1, Z, Y, X) and labels (B, Z, Y, X) of a step; raises as `sample`."""
        patches = [self.sample(step, index) for index in range(self._settings.batch)]
        images = np.stack([image for image, _ in patches])[:, None]
        return images, np.stack([labels for _, labels in patches])

    def sample(self, step: int, index: int) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
        """Image and labels, (Z, Y, X) each, of one patch of a step's batch.

        Safe to call from several threads, in any order.

        Raises:
            DataError: the image holds NaN or infinity.
            ShapeError, DtypeError: a source gives another shape or type than was asked for.
        """
        settings = self._settings.augment
        draw = self._draw(step, index)
        source, allowed = self._regions[draw.number]
        chance = self._random(_DEFORM, step, index)
        deformation = draw_deformation(chance, draw.box.shape, self._voxel_size, settings)
        read = draw.box
        if deformation is not None:
            read = deformation.read_box(draw.box).intersect(allowed)
        image, labels = source.image(read), source.labels(read)
        _check_patch(image, labels, read)
        if deformation is not None:
            image, labels = deformation.apply(image, labels, read, draw.box)
        chance = self._random(_LIGHT, step, index)
        sections = self._settings.patch[0] > 1 and draw.box.shape[0] > 1
        image = vary_light(image, chance, self._voxel_size, settings, sections=sections)
        return reorient(image, draw.order, draw.mirror), reorient(labels, draw.order, draw.mirror)

    def place(self, step: int, index: int) -> tuple[int, Roi]:
        """The number of the region, and the box in its volume, of `sample(step, index)`.

        A deformed patch comes from about this box: its middle lies in the middle of the patch.
        """
        draw = self._draw(step, index)
        return draw.number, draw.box

    def _random(self, purpose: int, step: int, index: int) -> np.random.Generator:
        # A stream for each purpose: another setting of the light moves no patch.
        key = np.array([self._settings.seed, step], dtype=np.uint64)
        counter = np.array([0, 0, purpose, index], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def _draw(self, step: int, index: int) -> _Draw:
        random = self._random(_PLACE, step, index)
        order = self._orders[random.integers(len(self._orders))]
        mirror = random.random(3) < (0.5 if self._settings.augment.flip else 0.0)
        shape = _shape_before(self._settings.patch, order)
        if random.random() < self._settings.foreground_fraction:
            number, box = self._around_label(random, shape)
        else:
            number, box = self._anywhere(random, shape)
        return _Draw(number, box, order, mirror)

    def _around_label(self, random: np.random.Generator, shape: Triple) -> tuple[int, Roi]:
        group = int(random.integers(len(self._index.region)))
        row = int(random.integers(self._index.starts[group], self._index.starts[group + 1]))
        number = int(self._index.region[group])
        allowed = self._regions[number][1]
        wanted = [int(m) - n // 2 for m, n in zip(self._index.voxels[row], shape, strict=True)]
        ends = zip(wanted, allowed.offset, allowed.end, shape, strict=True)
        return number, Roi(triple([min(max(w, o), e - n) for w, o, e, n in ends]), shape)

    def _anywhere(self, random: np.random.Generator, shape: Triple) -> tuple[int, Roi]:
        number = int(random.choice(len(self._shares), p=self._shares))
        allowed = self._regions[number][1]
        spans = zip(allowed.offset, allowed.end, shape, strict=True)
        return number, Roi(triple([int(random.integers(o, e - n + 1)) for o, e, n in spans]), shape)


@dataclass(frozen=True)
class _Draw:
    """Where a patch lies and how its axes are put."""

    number: int
    box: Roi
    order: Triple
    mirror: NDArray[np.bool_]


def check_regions(regions: Sequence[Region], settings: TrainSettings) -> None:
    """Refuse regions that some patch does not fit into.

    Raises:
        InputError: a region leaves its volume, or is smaller than a patch.
    """
    for source, allowed in regions:
        if not Roi((0, 0, 0), source.shape).contains(allowed):
            raise InputError(f"training region {allowed} leaves its volume {source.shape}")
        for order in _axis_orders(settings.augment):
            _check_fit(_shape_before(settings.patch, order), allowed)


def check_transpose(settings: AugmentSettings, voxel_size: Sequence[float]) -> None:
    """Refuse axes that change places though voxels are longer along one of them.

    Objects would be seen stretched as they never are, and losses told a wrong voxel size.

    Raises:
        InputError: names the axes' voxel sizes.
    """
    moved = "" if settings.transpose == "none" else settings.transpose
    sizes = [float(size) for axis, size in zip("zyx", voxel_size, strict=True) if axis in moved]
    if sizes and max(sizes) > VOXEL_RATIO * min(sizes):
        raise InputError(
            f"train.augment.transpose: {settings.transpose} lets axes change places whose voxels "
            f"differ in size by more than a factor of {VOXEL_RATIO}: {', '.join(moved)} have "
            f"{', '.join(f'{size:g}' for size in sizes)}; set it to "
            f"{'yx or none' if moved == 'zyx' else 'none'}"
        )


def _checked_size(voxel_size: Sequence[float]) -> tuple[float, ...]:
    size = tuple(float(extent) for extent in voxel_size)
    if len(size) != 3 or not all(np.isfinite(extent) and extent > 0 for extent in size):
        raise InputError(f"expected a positive voxel size along z, y, x, got {size}")
    return size


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
