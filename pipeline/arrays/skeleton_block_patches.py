"""Where the faces of a block cut its objects: the voxels on which neighbouring blocks meet."""

from __future__ import annotations

import cc3d
import edt
import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton_block_runs import Components
from pipeline.arrays.skeleton_settings import VoxelSize


def patch_centres(
    components: Components,
    voxel_size_nm: VoxelSize,
    faces: NDArray[np.bool_],
    seams: NDArray[np.int64],
) -> dict[int, NDArray[np.int64]]:
    """For each component, by number, the central voxels of the patches in which faces cut it.

    A patch is one piece of a component in a face (8 neighbours). Its centre depends on the plane of
    voxels alone, so both blocks that share a plane find the same.

    Args:
        components: of the block.
        voxel_size_nm: z, y, x.
        faces: (3, 2) bool, the faces to look at: before and behind along each axis.
        seams: (S, 3) int64, further central voxels, each in a component.

    Returns:
        (T, 3) int64 voxels of the block, ascending; no entry for a component without any.
    """
    numbers, voxels = [components.at(seams)], [seams]
    for axis in range(3):
        size = np.delete(voxel_size_nm, axis)
        ends = (0, components.shape[axis] - 1)
        for depth in sorted({end for end, cut in zip(ends, faces[axis], strict=True) if cut}):
            plane = components.face(axis, depth)
            pixels = _central_pixels(plane, size)
            numbers.append(plane[tuple(pixels.T)])
            voxels.append(np.insert(pixels, axis, depth, axis=1))
    return _grouped(np.concatenate(numbers), np.concatenate(voxels))


def _grouped(
    numbers: NDArray[np.uint32], voxels: NDArray[np.int64]
) -> dict[int, NDArray[np.int64]]:
    """The distinct voxels of each number, ascending; faces share edges."""
    rows = np.unique(np.column_stack([numbers.astype(np.int64), voxels]), axis=0)
    names, starts = np.unique(rows[:, 0], return_index=True)
    groups = np.split(rows[:, 1:], starts[1:])
    return dict(zip(names.tolist(), groups, strict=False))


def _central_pixels(
    plane: NDArray[np.uint32], pixel_size_nm: NDArray[np.float64]
) -> NDArray[np.int64]:
    """(P, 2) for each patch, the pixel furthest from its rim.

    Of several, the one nearest to their mean, then the first in C order.
    """
    pixels = np.argwhere(plane)
    if not len(pixels):
        return np.zeros((0, 2), np.int64)
    patches = np.asarray(cc3d.connected_components(plane, connectivity=8)).reshape(plane.shape)
    # A rim of background: a patch ends at the edge of the plane as well.
    depth = edt.edt(np.pad(patches, 1), anisotropy=tuple(pixel_size_nm))[1:-1, 1:-1]
    patch, deep = patches[tuple(pixels.T)].astype(np.int64), depth[tuple(pixels.T)]
    deepest = np.zeros(patch.max() + 1, deep.dtype)
    np.maximum.at(deepest, patch, deep)
    inner = deep == deepest[patch]
    patch, pixels = patch[inner], pixels[inner]
    place = pixels * pixel_size_nm
    count = np.maximum(np.bincount(patch), 1)
    mean = np.stack([np.bincount(patch, place[:, k]) / count for k in range(2)], axis=1)
    away = np.round(((place - mean[patch]) ** 2).sum(axis=1), 3)
    order = np.lexsort((np.arange(len(patch)), away, patch))
    return pixels[order[np.append(True, np.diff(patch[order]) != 0)]]
