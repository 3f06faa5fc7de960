"""Affinities of any box of a volume, from a lattice of tiles that is fixed in volume coordinates.

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
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import DataError, InputError, ShapeError
from pipeline.geometry import Roi, Triple, triple
from pipeline.learning import checkpoint
from pipeline.learning.model import AffinityUNet, receptive_radius, stride
from pipeline.learning.precision import autocast, choose_bf16, choose_device, deterministic, place
from pipeline.learning.settings import PredictSettings

Reader = Callable[[Roi], NDArray[np.float32]]
Wanted = Callable[[Roi], bool]


@dataclass(frozen=True)
class Predictor:
    """A network ready to predict tiles."""

    model: AffinityUNet
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
            InputError: no usable model; no such device; tile and context do not suit the network.
        """
        saved = checkpoint.load_model(directory)
        check_tile(settings, stride(saved.network))
        device = choose_device(settings.device)
        model = place(saved.model, device)
        bf16 = choose_bf16(settings.precision, device)
        note = str(saved.note["normalisation"])
        return cls(model, settings, device, bf16, note, checkpoint.digest(directory))

    @property
    def receptive_radius(self) -> Triple:
        """Voxels around a voxel that its affinities depend on; more context changes nothing."""
        return receptive_radius(self.model.settings)

    def affinities(self, image: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Quantised affinities (3, *tile) of one tile, from its image with context on all sides.

        Raises:
            DataError: the network gives NaN or infinity.
        """
        inner = Roi(self.settings.context, self.settings.tile).slices
        batch = torch.from_numpy(np.ascontiguousarray(image))[None, None]
        with deterministic(self.settings.threads, self.device), torch.inference_mode():
            batch = batch.to(self.device, memory_format=torch.channels_last_3d)
            with autocast(self.device, self.bf16):
                logits = self.model(batch)[(0, slice(None), *inner)]
            return _quantise(logits).cpu().numpy()


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
    whole = Roi((0, 0, 0), volume_shape)
    if not whole.contains(roi):
        raise InputError(f"cannot predict {roi}: it leaves the volume {volume_shape}")
    result = np.zeros((3, *roi.shape), dtype=np.uint8)
    context = predictor.settings.context
    tiles = [
        tile
        for tile in lattice_tiles(roi, predictor.settings.tile)
        if wanted is None or wanted(tile.intersect(whole))
    ]
    if not tiles:
        return result
    hull = _hull([tile.grow(context).intersect(whole) for tile in tiles])
    image = _read_checked(read, hull)
    for tile in tiles:
        affinities = predictor.affinities(cut_tile(image, hull, tile.grow(context)))
        part = tile.intersect(roi)
        found = affinities[(slice(None), *part.relative_to(tile).slices)]
        result[(slice(None), *part.relative_to(roi).slices)] = found
    for axis in range(3):
        if roi.offset[axis] == 0:
            np.moveaxis(result[axis], axis, 0)[0] = 0
    return result


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


def _hull(boxes: list[Roi]) -> Roi:
    begin = triple([min(box.offset[axis] for box in boxes) for axis in range(3)])
    return Roi.between(begin, triple([max(box.end[axis] for box in boxes) for axis in range(3)]))


def _read_checked(read: Reader, roi: Roi) -> NDArray[np.float32]:
    image = read(roi)
    if image.shape != roi.shape:
        raise ShapeError(f"image of {roi}: expected {roi.shape}, got {image.shape}")
    return image.astype(np.float32, copy=False)


def _quantise(logits: Tensor) -> Tensor:
    if not torch.isfinite(logits).all():
        raise DataError("the network's output holds NaN or infinity: the model or its precision")
    return torch.sigmoid(logits.float()).double().mul(255.0).round().to(torch.uint8)
