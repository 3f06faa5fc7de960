"""Skeletons of the objects in one block, cut so that neighbouring blocks meet.

A block reads one plane of voxels more than it writes on its successor side, so that two neighbours
share a plane. Where an object crosses that plane, both see the same patch of it and both put a node
on the same voxel, the most central one of the patch. So the pieces of one object always touch: two
adjacent voxels lie together in at least one block, and equal nodes are one node.

1. Connected components (26 neighbours) of each label.
2. kimimaro traces every component, through the central voxel of each patch on a face.
3. A component without a skeleton (a single voxel) gets one node; a patch that the trace missed (a
   path that ends in a soma leaves out what is inside) is tied to the nearest node.

`pipeline.arrays.skeleton_join` puts the pieces together. Blocks should be several times wider than
the neurites: every crossing of a face bends the centre line by a voxel or two, and an object that
fills a block has no centre line in it.

Source: TEASAR, Sato et al. 2000, doi:10.1109/PCCGA.2000.883951, as implemented in kimimaro.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import cc3d
import edt
import fastremap
import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton_settings import SkeletonSettings
from pipeline.errors import DtypeError, ShapeError
from pipeline.geometry import Triple

VoxelSize = tuple[float, float, float]

_CONST_VOX = 3.0
_Trace = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class SkeletonPieces:
    """Nodes and edges of many segments in one block, as columns.

    Attributes:
        segment: (N,) uint64, the label of each node's voxel.
        nodes: (N, 3) float64, z, y, x in voxels of the volume, at voxel centres.
        edges: (E, 2) int64, indices into `nodes`; both ends belong to one segment.
        radius_nm: (N,) float64, distance to the nearest voxel that is not of the segment. A face of
            the block is no boundary: near it, the radius may be too large.
        face_nm: (N,) float64, distance to the nearest face of the block that was read.
    """

    segment: NDArray[np.uint64]
    nodes: NDArray[np.float64]
    edges: NDArray[np.int64]
    radius_nm: NDArray[np.float64]
    face_nm: NDArray[np.float64]

    def __post_init__(self) -> None:
        count = len(self.segment)
        sizes = {name: len(array) for name, array in self.columns().items() if name != "edges"}
        if set(sizes.values()) != {count}:
            raise ShapeError(f"skeleton pieces: columns of unequal length, {sizes}")
        if len(self.edges) and not 0 <= self.edges.min() <= self.edges.max() < count:
            raise ShapeError(f"skeleton pieces: an edge names a node beyond {count}")

    def columns(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, for storage; `SkeletonPieces(**columns)` gives them back."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def concatenate(cls, pieces: Sequence[SkeletonPieces]) -> SkeletonPieces:
        """All pieces behind one another, edges renumbered; none gives an empty table."""
        starts = np.cumsum([0, *(len(p.segment) for p in pieces)])
        edges = [p.edges + s for p, s in zip(pieces, starts, strict=False)]
        return cls(
            np.concatenate([np.zeros(0, np.uint64), *(p.segment for p in pieces)]),
            np.concatenate([np.zeros((0, 3)), *(p.nodes for p in pieces)]),
            np.concatenate([np.zeros((0, 2), np.int64), *edges]),
            np.concatenate([np.zeros(0), *(p.radius_nm for p in pieces)]),
            np.concatenate([np.zeros(0), *(p.face_nm for p in pieces)]),
        )


def const_nm(settings: SkeletonSettings, voxel_size_nm: VoxelSize) -> float:
    """The constant part of a path's reach, nanometres."""
    return _CONST_VOX * max(voxel_size_nm) if settings.const_nm is None else settings.const_nm


def skeletonize_block(
    labels: NDArray[np.uint64],
    *,
    origin: Triple,
    voxel_size_nm: VoxelSize,
    settings: SkeletonSettings,
) -> SkeletonPieces:
    """Skeletons of every object in a block, meeting those of the neighbours at shared planes.

    Args:
        labels: (Z, Y, X) uint64, the read ROI: the write ROI plus one voxel on the successor side
            where the volume goes on. 0 is background. Not changed.
        origin: the first voxel of `labels` in the volume.
        voxel_size_nm: z, y, x.
        settings: of the method.

    Returns:
        One tree per connected component; at least one node for every component that is kept.
        The same input gives the same table, row by row.

    Raises:
        ShapeError: `labels` has not three axes. DtypeError: it is not uint64.
    """
    if labels.ndim != 3:
        raise ShapeError(f"skeletonize: expected labels (Z, Y, X), got shape {labels.shape}")
    if labels.dtype != np.uint64:
        raise DtypeError(f"skeletonize: expected uint64 labels, got {labels.dtype}")
    if not labels.any():
        return SkeletonPieces.concatenate([])
    # cc3d refuses some ids of 2^63 and beyond.
    small_ids, _ = fastremap.renumber(labels, in_place=False)
    found = cc3d.connected_components(small_ids, connectivity=26, out_dtype=np.uint32)
    components = np.asarray(found, np.uint32)
    targets = _patch_centres(components, voxel_size_nm)
    statistics = cc3d.statistics(components, no_slice_conversion=True)
    _drop_small(components, statistics["voxel_counts"], settings.min_voxels, targets)
    traces = _trace(components, targets, voxel_size_nm, settings)
    boxes = statistics["bounding_boxes"]
    parts = []
    for component in range(1, len(boxes)):
        low, high = boxes[component][0::2].astype(np.int64), boxes[component][1::2].astype(np.int64)
        trace = traces.get(component)
        if trace is None:
            inside = components[_slices(low, high)] == component
            if not inside.any():
                continue  # dropped for its size
            trace = _single_node(inside, low, voxel_size_nm)
        trace = _reach_targets(trace, targets.get(component), voxel_size_nm)
        parts.append(_as_pieces(trace, labels, origin, voxel_size_nm))
    return SkeletonPieces.concatenate(parts)


def _slices(low: NDArray[np.int64], high: NDArray[np.int64]) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))


def _patch_centres(
    components: NDArray[np.uint32], voxel_size_nm: VoxelSize
) -> dict[int, NDArray[np.int64]]:
    """For each component, the central voxels of the patches in which faces of the block cut it.

    A patch is one piece of a component in a face (8 neighbours). Its centre depends on the plane of
    voxels alone, so both blocks that share a plane find the same.
    """
    found: dict[int, set[tuple[int, ...]]] = {}
    for axis in range(3):
        size = np.delete(voxel_size_nm, axis)
        for depth in {0, components.shape[axis] - 1}:
            plane = np.ascontiguousarray(np.take(components, depth, axis))
            for pixel in _central_pixels(plane, size):
                voxel = (*pixel[:axis].tolist(), depth, *pixel[axis:].tolist())
                found.setdefault(int(components[voxel]), set()).add(voxel)
    return {label: np.array(sorted(voxels), np.int64) for label, voxels in found.items()}


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


def _drop_small(
    components: NDArray[np.uint32],
    counts: NDArray[np.integer],
    min_voxels: int,
    targets: dict[int, NDArray[np.int64]],
) -> None:
    """Clear components of fewer voxels, in place, unless they touch a face."""
    kept = np.arange(len(counts), dtype=np.uint32)
    small = counts < min_voxels
    small[list(targets)] = False
    if small[1:].any():
        kept[small] = 0
        components[...] = kept[components]


def _trace(
    components: NDArray[np.uint32],
    targets: dict[int, NDArray[np.int64]],
    voxel_size_nm: VoxelSize,
    settings: SkeletonSettings,
) -> dict[int, _Trace]:
    import kimimaro  # takes half a second, and most stages do without

    # kimimaro works on Fortran order: transposed, a C array need not be turned (half of the time).
    found = kimimaro.skeletonize(
        components.T,
        teasar_params={
            "scale": settings.scale,
            "const": const_nm(settings, voxel_size_nm),
            "pdrf_scale": settings.centring_weight,
            "pdrf_exponent": settings.centring_exponent,
            "soma_detection_threshold": settings.soma_detection_nm,
            "soma_acceptance_threshold": settings.soma_acceptance_nm,
            "soma_invalidation_scale": settings.soma_scale,
            "soma_invalidation_const": settings.soma_const_nm,
        },
        anisotropy=voxel_size_nm[::-1],
        dust_threshold=0,
        # Its own border targets fail on planes one voxel wide.
        fix_borders=False,
        extra_targets_before=[tuple(v[::-1]) for rows in targets.values() for v in rows.tolist()],
        progress=False,
        parallel=1,
    )
    size = np.asarray(voxel_size_nm)
    traces = {}
    for component, skeleton in found.items():
        nodes = np.rint(skeleton.vertices[:, ::-1] / size).astype(np.int64)
        if len(nodes):
            edges = skeleton.edges.astype(np.int64)
            traces[int(component)] = (nodes, edges, skeleton.radii.astype(np.float64))
    return traces


def _single_node(
    inside: NDArray[np.bool_], low: NDArray[np.int64], voxel_size_nm: VoxelSize
) -> _Trace:
    """The voxel nearest the centroid; ties go to the first in C order."""
    voxels = np.argwhere(inside)
    distance = (((voxels - voxels.mean(axis=0)) * voxel_size_nm) ** 2).sum(axis=1)
    node = voxels[[int(np.argmin(distance))]] + low
    return node, np.zeros((0, 2), np.int64), np.array([min(voxel_size_nm)])


def _reach_targets(
    trace: _Trace, targets: NDArray[np.int64] | None, voxel_size_nm: VoxelSize
) -> _Trace:
    """Tie each patch centre that is no node yet to the nearest node."""
    nodes, edges, radii = trace
    for target in targets if targets is not None else ():
        squares = (((nodes - target) * voxel_size_nm) ** 2).sum(axis=1)
        nearest = int(np.argmin(squares))
        if squares[nearest] > 0:
            edges = np.vstack([edges, [nearest, len(nodes)]])
            nodes = np.vstack([nodes, target])
            # The distance to the surface falls by no more than the way that one goes.
            least = radii[nearest] - np.sqrt(squares[nearest])
            radii = np.append(radii, max(least, min(voxel_size_nm)))
    return nodes, edges, radii


def _as_pieces(
    trace: _Trace, labels: NDArray[np.uint64], origin: Triple, voxel_size_nm: VoxelSize
) -> SkeletonPieces:
    nodes, edges, radii = trace
    to_faces = np.minimum(nodes, np.asarray(labels.shape) - 1 - nodes) * voxel_size_nm
    return SkeletonPieces(
        segment=labels[tuple(nodes.T)],
        nodes=nodes + np.asarray(origin) + 0.5,
        edges=edges,
        radius_nm=radii,
        face_nm=to_faces.min(axis=1),
    )
