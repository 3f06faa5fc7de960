"""Synthetic light microscopy of neurons, with labels and tracings that are true by construction.

`grow_neurons` makes the tracings, `render` the image and the labels of any box. Both depend on the
`PhantomSpec` alone; noise comes from a hash of the seed and the global voxel index, so blocks equal
the whole volume bit for bit. For that, the kernels use only operations that IEEE 754 rounds exactly
(no exp, log or cos, whose vectorised versions may differ from the scalar ones), and every sum has a
fixed order.

1. Emission: neurites as bright as a smooth random field of their neuron, and free beads.
2. Blur: a separable, truncated Gaussian, wider along z.
3. Background: a slope and two scales of smooth clouds.
4. Camera: shot noise, read noise, offset, 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.phantom_growth import grow
from pipeline.arrays.phantom_light import (
    beads,
    blur_x,
    blur_y,
    blur_z,
    brightness,
    camera,
    glow,
)
from pipeline.arrays.phantom_spec import BEAD_CELL, GrowthSpec, LightSpec, PhantomSpec
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.tubes import TubeEdges, rasterise_edges, tube_edges
from pipeline.errors import InputError
from pipeline.geometry import Roi, triple

__all__ = ["GrowthSpec", "LightSpec", "PhantomSpec", "grow_neurons", "render"]

_BLUR_REACH = 3.0  # the Gaussian is cut beyond this many sigmas


def grow_neurons(spec: PhantomSpec) -> list[Skeleton]:
    """The neurons of a phantom: trees "neuron_001" ... whose nodes lie inside the volume.

    Lines of voxels along their edges are disjoint, so that `render` gives each neuron one
    6-connected label that holds all its nodes, and yet many neurons touch.

    Raises:
        InputError: there is no room for so many neurons.
    """
    return grow(spec.shape, spec.voxel_size_nm, spec.neurons, spec.seed, spec.growth)


def render(
    spec: PhantomSpec, skeletons: Sequence[Skeleton], roi: Roi
) -> tuple[NDArray[np.uint16], NDArray[np.uint64]]:
    """Image and labels of the box `roi` of a phantom, the same in every blocking.

    Args:
        spec: the phantom.
        skeletons: from `grow_neurons`; number i has label i + 1.
        roi: a box inside the volume.

    Returns:
        (image uint16, labels uint64), each of roi.shape; label 0 is background.

    Raises:
        InputError: `roi` leaves the volume.
    """
    if not Roi((0, 0, 0), spec.shape).contains(roi):
        raise InputError(f"{roi} leaves the phantom of {spec.shape} voxels")
    kernels = _blur_kernels(spec)
    read = roi.grow(triple([len(k) // 2 for k in kernels]))
    edges = _edges_around(spec, skeletons, read)
    emission = _emission(spec, edges, read)
    signal = _blur(emission, kernels)
    return _expose(spec, signal, roi), rasterise_edges(edges, roi)


def _edges_around(spec: PhantomSpec, skeletons: Sequence[Skeleton], read: Roi) -> TubeEdges:
    """The edges that can show in `read`, of the few neurons that come near it."""
    voxel = np.asarray(spec.voxel_size_nm)
    found, ids = [], []
    largest = max((s.radii_nm.max(initial=0.0) for s in skeletons), default=0.0)
    # `rasterise_edges` looks that far to decide what is attached to its axis.
    margin = 3.0 * largest / voxel + 8.0
    for i, skeleton in enumerate(skeletons):
        low, high = skeleton.nodes.min(axis=0) - margin, skeleton.nodes.max(axis=0) + margin
        if (low < np.asarray(read.end)).all() and (high > np.asarray(read.offset)).all():
            found.append(skeleton)
            ids.append(i + 1)
    return tube_edges(
        found,
        ids,
        voxel_size_nm=spec.voxel_size_nm,
        radius_nm=None,
        min_radius_nm=spec.growth.thinnest_nm,
    )


def _emission(spec: PhantomSpec, edges: TubeEdges, read: Roi) -> NDArray[np.float32]:
    """Light given off by neurites and beads, before the blur."""
    near = edges.near(read, float(np.min(spec.voxel_size_nm)))
    voxel = np.asarray(spec.voxel_size_nm)
    light = spec.light
    low, high = light.neurite_counts
    counts = brightness(
        near.ends, near.ids, voxel / light.stretch_nm, spec.seed, low, high, light.dimmest
    )
    emission = np.zeros(read.shape, np.float32)
    origin = np.asarray(read.offset, np.int64)
    glow(near.ends, near.radii_nm, counts, voxel, origin, emission)
    ends, radii, counts = beads(
        origin,
        np.asarray(read.end),
        voxel,
        spec.seed,
        light.bead_density * BEAD_CELL**3 / 1e6,
        light.bead_radius_nm,
        light.bead_counts,
    )
    glow(ends, radii, counts, voxel, origin, emission)
    return emission


def _blur_kernels(spec: PhantomSpec) -> list[NDArray[np.float32]]:
    """Normalised Gaussians, cut at whole voxels, per axis."""
    kernels = []
    for sigma_nm, size_nm in zip(spec.light.blur_nm, spec.voxel_size_nm, strict=True):
        sigma = sigma_nm / size_nm
        reach = int(np.ceil(_BLUR_REACH * sigma))
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        kernels.append((weights / weights.sum()).astype(np.float32))
    return kernels


def _blur(
    emission: NDArray[np.float32], kernels: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """The valid part of the convolution along all axes."""
    if not emission.any():
        z, y, x = (n - len(k) + 1 for n, k in zip(emission.shape, kernels, strict=True))
        return np.zeros((z, y, x), np.float32)
    blurred = emission
    for axis, kernel in enumerate(kernels):
        shape = list(blurred.shape)
        shape[axis] -= len(kernel) - 1
        out = np.zeros(tuple(shape), np.float32)
        (blur_z, blur_y, blur_x)[axis](blurred, kernel, out)
        blurred = out
    return blurred


def _expose(spec: PhantomSpec, signal: NDArray[np.float32], roi: Roi) -> NDArray[np.uint16]:
    """What the camera makes of the signal and the background."""
    light = spec.light
    image = np.empty(roi.shape, np.uint16)
    gain = light.counts_per_electron
    camera(
        signal,
        np.asarray(roi.offset, np.int64),
        np.asarray(spec.shape, np.int64),
        spec.seed,
        np.array([light.background_counts, light.slope, *light.clouds]),
        np.array([light.offset_counts, gain, (light.read_noise_counts / gain) ** 2]),
        image,
    )
    return image
