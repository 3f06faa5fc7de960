"""Predictions of any box of a volume, from a lattice of tiles that is fixed in volume coordinates.

      tile k of the lattice                        what the network reads for it
      +--------+--------+--------+                 +----------------+
      |        |        |        |                 |  context       |
      | roi +--+-----+  |        |                 |   +--------+   |
      |     |  |     |  |        |                 |   |  tile  |   |
      +-----+--+-----+--+--------+                 |   +--------+   |
      |     |  |     |  |        |                 +----------------+

A tile is always computed whole, in an input of one shape, and only then cut to the box that was
asked for. So a voxel's value depends on its place in the volume alone, bit for bit, and on the
number of threads at most: never on the block. Where an input reaches beyond the volume, the
volume's outermost voxels are repeated.

A network of foreground gives affinities too: an edge is as strong as the weaker of its two voxels.
Networks of two dimensions join nothing across planes: their affinities along z are 0.

Probabilities may be averaged over mirrored inputs (`PredictSettings.flips`), always in the same
order. In a mirror, predecessor and successor change places: the pair of v - 1 and v is stored by
v - 1 there, so channels of mirrored axes come from one voxel before the tile, out of its context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import DataError, InputError, ShapeError
from pipeline.geometry import Roi, Triple, triple
from pipeline.learning import checkpoint
from pipeline.learning.model import UNet, receptive_radius, stride
from pipeline.learning.precision import autocast, choose_bf16, choose_device, deterministic, place
from pipeline.learning.settings import NetworkSettings, PredictSettings

Reader = Callable[[Roi], NDArray[np.float32]]
Wanted = Callable[[Roi], bool]


@dataclass(frozen=True)
class Predictor:
    """A network ready to predict tiles."""

    model: UNet
    settings: PredictSettings
    device: torch.device
    bf16: bool
    normalisation: str
    """How image values were made in training; prediction must make them the same way."""
    digest: str
    """Identity of the model."""

    @classmethod
    def load(cls, directory: Path, settings: PredictSettings) -> Predictor:
        """The model in a directory, on the device that the settings name.

        Raises:
            InputError: no usable model; no such device; tile, context or flips do not suit it.
        """
        saved = checkpoint.load_model(directory)
        check_tile(settings, stride(saved.network))
        check_flips(settings, saved.network)
        model = place(saved.model, choose_device(settings.device))
        note = str(saved.note["normalisation"])
        return cls.of(model, settings, normalisation=note, digest=checkpoint.digest(directory))

    @classmethod
    def of(
        cls, model: UNet, settings: PredictSettings, *, normalisation: str = "", digest: str = ""
    ) -> Predictor:
        """A network in memory, on the device where it is.

        Raises:
            InputError: tile, context or flips do not suit the network.
        """
        check_tile(settings, stride(model.settings))
        check_flips(settings, model.settings)
        if model.settings.dimensions == 2:
            _, y, x = settings.context  # planes do not see each other
            settings = settings.model_copy(update={"context": (0, y, x)})
        device = next(model.parameters()).device
        bf16 = choose_bf16(settings.precision, device)
        return cls(model, settings, device, bf16, normalisation, digest)

    @property
    def receptive_radius(self) -> Triple:
        """Voxels around a voxel that its affinities depend on; more context changes nothing."""
        return receptive_radius(self.model.settings)

    def probabilities(self, image: NDArray[np.float32]) -> Tensor:
        """Probabilities (C, *tile) float32 of one tile, from its image with context on all sides.

        They are means over the mirrors that the settings ask for.

        Raises:
            DataError: the network gives NaN or infinity.
        """
        batch = torch.from_numpy(np.ascontiguousarray(image))[None, None]
        mirrors = mirrored_axes(self.settings, self.model.settings)
        with deterministic(self.settings.threads, self.device), torch.inference_mode():
            total = self._mirrored(batch, mirrors[0])
            for axes in mirrors[1:]:
                total += self._mirrored(batch, axes)
            return total / len(mirrors)

    def _mirrored(self, batch: Tensor, axes: tuple[int, ...]) -> Tensor:
        """The tile's probabilities from its input, mirrored along some axes, in its own frame."""
        dimensions = [2 + axis for axis in axes]
        mirror = batch.flip(dimensions).to(self.device, memory_format=torch.channels_last_3d)
        with autocast(self.device, self.bf16):
            channels = self.model(mirror).flip(dimensions)[0]
        boxes = [self._inner(axis if axis in axes else None) for axis in self._channel_axes()]
        logits = torch.stack([channels[(c, *box.slices)] for c, box in enumerate(boxes)])
        if not torch.isfinite(logits).all():
            raise DataError(
                "the network's output holds NaN or infinity: the model or its precision"
            )
        return torch.sigmoid(logits.float())

    def _channel_axes(self) -> list[int | None]:
        """The axis along which each channel joins voxels; none for foreground."""
        network = self.model.settings
        if network.output == "foreground":
            return [None]
        return list(range(3 - network.dimensions, 3))

    def _inner(self, axis: int | None) -> Roi:
        """The tile in its input, or the box one voxel before it along an axis."""
        offset = list(self.settings.context)
        if axis is not None:
            offset[axis] -= 1
        return Roi(triple(offset), self.settings.tile)


def predict_roi(
    predictor: Predictor,
    read: Reader,
    volume_shape: Triple,
    roi: Roi,
    *,
    wanted: Wanted | None = None,
) -> NDArray[np.uint8]:
    """Affinities of the box `roi`.

    Args:
        predictor: network and lattice.
        read: gives the normalised image (float32) of any box inside the volume; called once, for
            the hull of all tiles with their context.
        volume_shape: extent of the volume.
        roi: inside the volume; need not align with anything.
        wanted: asked for each lattice tile (clipped to the volume) whether it is computed; the
            others are 0. It must be a function of the volume alone, else the blocks show.

    Returns:
        (3, *roi.shape) uint8, rint(255 * p). Channel d joins a voxel to its predecessor along axis
        d and is 0 on the volume's first plane along d.

    Raises:
        InputError: the box leaves the volume.
        ShapeError: `read` gives another shape than was asked for.
        DataError: the image or an output holds NaN or infinity.
    """
    _require_inside(roi, volume_shape)
    network = predictor.model.settings
    axes = range(3 - network.dimensions, 3)
    result = np.zeros((3, *roi.shape), dtype=np.uint8)
    if network.output == "foreground":
        parts = [roi, *(part for axis in axes if (part := _predecessors(roi, axis)) is not None)]
        hull = _hull(parts)
        found = _predict(predictor, read, volume_shape, hull, parts, wanted, np.dtype(np.uint8))[0]
        for axis in axes:
            _join_voxels(result[axis], found, roi.relative_to(hull), axis)
        return result
    result[axes.start :] = _predict(
        predictor, read, volume_shape, roi, [roi], wanted, np.dtype(np.uint8)
    )
    for axis in axes:
        if roi.offset[axis] == 0:
            np.moveaxis(result[axis], axis, 0)[0] = 0
    return result


def predict_probability(
    predictor: Predictor,
    read: Reader,
    volume_shape: Triple,
    roi: Roi,
    *,
    wanted: Wanted | None = None,
    quantised: bool = False,
) -> NDArray[Any]:
    """Probability of being inside an object, from a network of foreground.

    Args:
        predictor, read, volume_shape, roi, wanted: as for `predict_roi`.
        quantised: give rint(255 * p) as uint8 instead of p as float32.

    Returns:
        (*roi.shape) float32 in [0, 1], or uint8.

    Raises:
        InputError: the network gives affinities; and as `predict_roi`.
    """
    if predictor.model.settings.output != "foreground":
        raise InputError(
            "a probability of foreground was asked for, but this network gives affinities: train "
            "one with network.output: foreground"
        )
    _require_inside(roi, volume_shape)
    dtype = np.dtype(np.uint8 if quantised else np.float32)
    return _predict(predictor, read, volume_shape, roi, [roi], wanted, dtype)[0]


def _require_inside(roi: Roi, volume_shape: Triple) -> None:
    if not Roi((0, 0, 0), volume_shape).contains(roi):
        raise InputError(f"cannot predict {roi}: it leaves the volume {volume_shape}")


def _predict(
    predictor: Predictor,
    read: Reader,
    volume_shape: Triple,
    box: Roi,
    parts: Sequence[Roi],
    wanted: Wanted | None,
    dtype: np.dtype,
) -> NDArray[Any]:
    """Probabilities (C, *box.shape); tiles that meet none of the `parts` of the box stay 0."""
    whole, settings = Roi((0, 0, 0), volume_shape), predictor.settings
    result = np.zeros((predictor.model.settings.channels, *box.shape), dtype)
    tiles = [
        tile
        for tile in lattice_tiles(box, settings.tile)
        if any(tile.overlaps(part) for part in parts)
        and (wanted is None or wanted(tile.intersect(whole)))
    ]
    if not tiles:
        return result
    hull = _hull([tile.grow(settings.context).intersect(whole) for tile in tiles])
    image = _read_checked(read, hull)
    for tile in tiles:
        found = predictor.probabilities(cut_tile(image, hull, tile.grow(settings.context)))
        if dtype == np.uint8:
            found = found.double().mul(255.0).round().to(torch.uint8)
        part = tile.intersect(box)
        values = found.cpu().numpy()[(slice(None), *part.relative_to(tile).slices)]
        result[(slice(None), *part.relative_to(box).slices)] = values
    return result


def _predecessors(roi: Roi, axis: int) -> Roi | None:
    """The plane of voxels before a box along an axis; None at the volume's lower face."""
    if roi.offset[axis] == 0:
        return None
    offset, shape = list(roi.offset), list(roi.shape)
    offset[axis], shape[axis] = offset[axis] - 1, 1
    return Roi(triple(offset), triple(shape))


def _join_voxels(
    result: NDArray[np.uint8], found: NDArray[np.uint8], inner: Roi, axis: int
) -> None:
    """Write, for the box `inner` of `found`, the weaker one of each voxel and its predecessor."""
    own = found[inner.slices]
    if inner.offset[axis]:
        back = [0, 0, 0]
        back[axis] = -1
        np.minimum(own, found[inner.shift(triple(back)).slices], out=result)
        return
    here, voxels = np.moveaxis(result, axis, 0), np.moveaxis(own, axis, 0)
    np.minimum(voxels[1:], voxels[:-1], out=here[1:])


def lattice_tiles(roi: Roi, tile: Triple) -> list[Roi]:
    """The tiles of the lattice at the volume's origin that share a voxel with `roi`, whole."""
    spans = zip(roi.offset, roi.end, tile, strict=True)
    places = product(*(range(begin // n * n, end, n) for begin, end, n in spans))
    return [Roi(triple(place), tile) for place in places]


def cut_tile(image: NDArray[np.float32], held: Roi, box: Roi) -> NDArray[np.float32]:
    """The image of `box` from that of `held`; what lies beyond repeats the outermost voxels.

    `held` lacks voxels of `box` only where the volume ends.

    Raises:
        DataError: the image holds NaN or infinity.
    """
    inside = box.intersect(held)
    part = image[inside.relative_to(held).slices]
    if not np.isfinite(part).all():
        raise DataError(f"the image holds NaN or infinity in {inside}: nothing can be predicted")
    before = zip(box.offset, inside.offset, strict=True)
    after = zip(box.end, inside.end, strict=True)
    margins = [(i - b, e - j) for (b, i), (e, j) in zip(before, after, strict=True)]
    return np.pad(part, margins, mode="edge")


def check_tile(settings: PredictSettings, steps: Triple) -> None:
    """Refuse an input extent (tile and context on both sides) that the network cannot take.

    Raises:
        InputError: it is no multiple of the stride along some axis; names the nearest valid tile.
    """
    extents = zip(settings.tile, settings.context, steps, strict=True)
    nearest = triple([max(1, round((t + 2 * c) / s)) * s - 2 * c for t, c, s in extents])
    if nearest != settings.tile:
        raise InputError(
            f"tile {settings.tile} with context {settings.context} on both sides must be a "
            f"multiple of the network's stride {steps}: use tile {nearest}"
        )


def mirrored_axes(settings: PredictSettings, network: NetworkSettings) -> list[tuple[int, ...]]:
    """Along which axes each input of a tile is mirrored; the first one along none.

    Planes of a network of two dimensions are not mirrored along z.
    """
    chosen = "" if settings.flips == "none" else settings.flips
    axes = [axis for axis in range(3 - network.dimensions, 3) if "zyx"[axis] in chosen]
    return [some for count in range(len(axes) + 1) for some in combinations(axes, count)]


def check_flips(settings: PredictSettings, network: NetworkSettings) -> None:
    """Refuse mirrored affinities without context, whose first plane of pairs lies outside.

    Raises:
        InputError: names the axis.
    """
    if network.output == "foreground":
        return
    for axis in mirrored_axes(settings, network)[-1]:
        if settings.context[axis] < 1:
            raise InputError(
                f"predict.flips: {settings.flips} needs predict.context of at least 1 along "
                f"{'zyx'[axis]}, got {settings.context}: a mirrored tile stores the affinities of "
                f"its first plane one voxel before it; raise the context, or set flips to none"
            )


def _hull(boxes: list[Roi]) -> Roi:
    begin = triple([min(box.offset[axis] for box in boxes) for axis in range(3)])
    return Roi.between(begin, triple([max(box.end[axis] for box in boxes) for axis in range(3)]))


def _read_checked(read: Reader, roi: Roi) -> NDArray[np.float32]:
    image = read(roi)
    if image.shape != roi.shape:
        raise ShapeError(f"image of {roi}: expected {roi.shape}, got {image.shape}")
    return image.astype(np.float32, copy=False)
