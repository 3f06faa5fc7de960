"""Training patches of any size to measure losses on: labels, an image, and logits of a network.

    sparse   curved tubes, 2 % of the voxels, some of them touching
    dense    cells of about 20 voxels that fill the patch, with walls one voxel thick between them

    late       logits of a network that has learnt: sure inside, unsure at surfaces, which it moves
               by up to a voxel, with gaps, specks and leaks where smooth noise is strong
    untrained  smooth noise around 0: half of all elements are positive, in pieces of a few voxels,
               harder on connectivity than a fresh network

The same seed gives the same patch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial import cKDTree

from pipeline.learning.settings import Form
from pipeline.learning.targets import make_targets

OBJECTS = ("sparse", "dense")
STATES = ("late", "untrained")
SPARSE_SHARE = 0.02

_THINNEST, _THICKEST = 1.5, 3.0
_CELL = 20  # voxels between the centres of cells
_BLUR, _SURE, _UNSURE = 0.7, 8.0, 1.2  # voxels; logits

Shape = tuple[int, ...]


def draw_labels(objects: str, shape: Shape, seed: int = 0) -> NDArray[np.uint64]:
    """Instance labels, 0 is background; `objects` as the module lists them."""
    return {"sparse": _tubes, "dense": _cells}[objects](shape, np.random.default_rng(seed))


def draw_logits(
    labels: NDArray[np.uint64], form: Form, state: str, seed: int = 1
) -> NDArray[np.float32]:
    """(C, *space) float32; `state` as the module lists them."""
    rng = np.random.default_rng(seed)
    channels = labels.ndim if form == "affinities" else 1
    noise = np.stack([_smooth(labels.shape, 1.0, rng) for _ in range(channels)])
    if state == "untrained":
        return np.float32(0.1) * noise
    targets = make_targets(labels[None], form, channels)[0][0].numpy()
    sharp = np.stack([gaussian_filter(target, _BLUR) for target in targets])
    return np.float32(_SURE) * (sharp - np.float32(0.5)) + np.float32(_UNSURE) * noise


def draw_image(labels: NDArray[np.uint64], seed: int = 2) -> NDArray[np.float32]:
    """Bright objects, blurred, in noise."""
    rng = np.random.default_rng(seed)
    bright = gaussian_filter((labels > 0).astype(np.float32), _BLUR)
    return bright + np.float32(0.2) * rng.standard_normal(labels.shape, np.float32)


def _tubes(shape: Shape, rng: np.random.Generator) -> NDArray[np.uint64]:
    lines, radius = np.zeros(shape, np.uint64), np.zeros(shape, np.float32)
    left, tube = SPARSE_SHARE * lines.size, 0
    while left > 0:
        tube += 1
        thick = rng.uniform(_THINNEST, _THICKEST)
        section = np.pi * thick**2 if len(shape) == 3 else 2 * thick
        path = _walk(shape, rng, 1 + int(2 * left / section))
        lines[path], radius[path] = tube, thick
        left -= section * len(path[0]) / 2
    distance, nearest = distance_transform_edt(lines == 0, return_indices=True)
    nearest = tuple(nearest)
    return np.where(distance <= radius[nearest], lines[nearest], np.uint64(0))


def _walk(shape: Shape, rng: np.random.Generator, longest: int) -> tuple[NDArray[np.int64], ...]:
    """The voxels of a slowly turning path through the patch, in steps of half a voxel."""
    place, heading = rng.uniform(0, shape), rng.normal(size=len(shape))
    path = [place]
    while len(path) < longest:
        heading = heading / np.linalg.norm(heading) + 0.08 * rng.normal(size=len(shape))
        place = place + 0.5 * heading / np.linalg.norm(heading)
        if (place < 0).any() or (place >= shape).any():
            break
        path.append(place)
    return tuple(np.array(path).astype(np.int64).T)


def _cells(shape: Shape, rng: np.random.Generator) -> NDArray[np.uint64]:
    count = max(2, round(np.prod(shape) / _CELL ** len(shape)))
    places = np.indices(shape).reshape(len(shape), -1).T + np.stack(
        [2.0 * _smooth(shape, 3.0, rng).ravel() for _ in shape], axis=1
    )
    centres = cKDTree(rng.uniform(0, shape, (count, len(shape))))
    cells = (centres.query(places)[1] + 1).astype(np.uint64).reshape(shape)
    wall = np.zeros(shape, np.bool_)
    for axis in range(len(shape)):
        here = (slice(None),) * axis + (slice(1, None),)
        wall[here] |= np.diff(cells, axis=axis) != 0
    return np.where(wall, np.uint64(0), cells)


def _smooth(shape: Shape, voxels: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise of mean 0 and deviation 1, alike over some voxels."""
    noise = gaussian_filter(rng.standard_normal(shape, np.float32), voxels)
    return (noise - noise.mean()) / noise.std()
