"""Skeletons of the objects in one block, cut so that neighbouring blocks meet.

A block reads one plane of voxels more than it writes on its successor side, so that two neighbours
share a plane. Where an object crosses that plane, both see the same patch of it and both put a node
on the same voxel, the most central one of the patch. So the pieces of one object always touch: two
adjacent voxels lie together in at least one block, and equal nodes are one node.

1. Connected components (26 neighbours) of each label, in one pass (`skeleton_block_runs`); those
   below the size and away from the faces go.
2. The central voxel of each patch on a face (`skeleton_block_patches`).
3. A path tracer draws each component, through these voxels (`skeleton_block_trace`).
4. Rings that the component has are closed (`skeleton_loops`).

All but the first step look at the boxes of components only: background costs nothing.
`pipeline.arrays.skeleton_join` puts the pieces together. Blocks should be several times wider than
the neurites: every crossing of a face bends the centre line by a voxel or two, and an object that
fills a block has no centre line in it.

Source: TEASAR, Sato et al. 2000, doi:10.1109/PCCGA.2000.883951, as implemented in kimimaro.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton_block_patches import patch_centres
from pipeline.arrays.skeleton_block_runs import (
    Component,
    Components,
    distance_inside,
    euler_of_component,
    find_components,
)
from pipeline.arrays.skeleton_block_trace import (
    Trace,
    body_of,
    single_node,
    trace_component,
)
from pipeline.arrays.skeleton_loops import close_loops
from pipeline.arrays.skeleton_settings import (
    SkeletonSettings,
    VoxelSize,
    check_settings,
    const_nm,
)
from pipeline.errors import DtypeError, ShapeError
from pipeline.geometry import Triple

__all__ = [
    "BlockSkeletonReport",
    "BlockSkeletons",
    "SkeletonPieces",
    "VoxelSize",
    "check_settings",
    "const_nm",
    "skeletonize_block",
    "trace_block",
]


@dataclass(frozen=True, eq=False)
class SkeletonPieces:
    """Nodes and edges of many segments in one block, as columns.

    Attributes:
        segment: (N,) uint64, the label of each node's object.
        nodes: (N, 3) float64, z, y, x in voxels of the volume, at voxel centres.
        edges: (E, 2) int64, indices into `nodes`; both ends belong to one segment. They may close
            rings, where the object has them.
        radius_nm: (N,) float64, distance to the nearest voxel that is not of the segment. A face of
            the block is no boundary: near it, the radius may be too large.
        face_nm: (N,) float64, distance to the nearest face of the block that was read.
        soma: (N,) bool, the node's voxel lies in a given soma mask; False if none is given.

    `trace_block` sorts: segments ascend, the nodes and the edges of each are one run of rows.
    """

    segment: NDArray[np.uint64]
    nodes: NDArray[np.float64]
    edges: NDArray[np.int64]
    radius_nm: NDArray[np.float64]
    face_nm: NDArray[np.float64]
    soma: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def __post_init__(self) -> None:
        count = len(self.segment)
        if count and not len(self.soma):
            object.__setattr__(self, "soma", np.zeros(count, np.bool_))
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
            np.concatenate([np.zeros(0, np.bool_), *(p.soma for p in pieces)]),
        )


@dataclass(frozen=True)
class BlockSkeletonReport:
    """What tracing a block met, as counts.

    Attributes:
        components: connected components of all labels, the skipped ones included.
        skipped: components below `min_voxels` that touch no face.
        single_nodes: skeletons of one node.
        tangled: components of so many tips that kimimaro was not used.
        limited: components above `max_fill`, of which only ways to the faces were drawn.
        limited_voxels: their voxels.
        loops: rings that were closed.
    """

    components: int = 0
    skipped: int = 0
    single_nodes: int = 0
    tangled: int = 0
    limited: int = 0
    limited_voxels: int = 0
    loops: int = 0


@dataclass(frozen=True, eq=False)
class BlockSkeletons:
    """The skeletons of a block and what tracing it met."""

    pieces: SkeletonPieces
    report: BlockSkeletonReport


def skeletonize_block(
    labels: NDArray[np.uint64],
    *,
    origin: Triple,
    voxel_size_nm: VoxelSize,
    settings: SkeletonSettings,
    soma_mask: NDArray[np.bool_] | None = None,
) -> SkeletonPieces:
    """The pieces of `trace_block` without its report."""
    return trace_block(
        labels,
        origin=origin,
        voxel_size_nm=voxel_size_nm,
        settings=settings,
        soma_mask=soma_mask,
    ).pieces


def trace_block(
    labels: NDArray[np.uint64],
    *,
    origin: Triple,
    voxel_size_nm: VoxelSize,
    settings: SkeletonSettings,
    soma_mask: NDArray[np.bool_] | None = None,
) -> BlockSkeletons:
    """Skeletons of every object in a block, meeting those of the neighbours at shared planes.

    Args:
        labels: (Z, Y, X) uint64, the read ROI: the write ROI plus one voxel on the successor side
            where the volume goes on. 0 is background. Not changed.
        origin: the first voxel of `labels` in the volume.
        voxel_size_nm: z, y, x.
        settings: of the method.
        soma_mask: (Z, Y, X) bool, voxels of somata, or None.

    Returns:
        One tree per connected component, with a further edge for each ring that it has; at least
        one node for every component that is kept. The same input gives the same table, row by row.

    Raises:
        ShapeError: `labels` has not three axes, or the mask has another shape. DtypeError: labels
            are not uint64, or the mask is not bool. InputError, ConfigError: of `check_settings`.
    """
    _check(labels, soma_mask)
    check_settings(voxel_size_nm, settings)
    components = find_components(labels)
    targets = patch_centres(components, voxel_size_nm)
    kept = (components.counts >= settings.min_voxels) | components.at_faces()
    tracer = _Tracer(components, targets, voxel_size_nm, settings)
    traced = [tracer.trace(part) for part in components.by_segment() if kept[part.number - 1]]
    report = BlockSkeletonReport(
        components=len(kept),
        skipped=int((~kept).sum()),
        single_nodes=sum(len(trace.nodes) == 1 for _, trace in traced),
        **tracer.counts,
    )
    pieces = _as_pieces(traced, labels.shape, origin, voxel_size_nm, soma_mask)
    return BlockSkeletons(pieces, report)


def _check(labels: NDArray[np.uint64], soma_mask: NDArray[np.bool_] | None) -> None:
    if labels.ndim != 3:
        raise ShapeError(f"skeletonize: expected labels (Z, Y, X), got shape {labels.shape}")
    if labels.dtype != np.uint64:
        raise DtypeError(f"skeletonize: expected uint64 labels, got {labels.dtype}")
    if soma_mask is None:
        return
    if soma_mask.shape != labels.shape:
        raise ShapeError(
            f"skeletonize: the soma mask has shape {soma_mask.shape}, the labels {labels.shape}; "
            f"give a mask of the same box"
        )
    if soma_mask.dtype != np.bool_:
        raise DtypeError(
            f"skeletonize: expected a soma mask of bool, got {soma_mask.dtype}; compare it with 0"
        )


class _Tracer:
    """Traces component after component of a block and counts what it meets."""

    def __init__(
        self,
        components: Components,
        targets: dict[int, NDArray[np.int64]],
        voxel_size_nm: VoxelSize,
        settings: SkeletonSettings,
    ) -> None:
        self.shape = components.shape
        self.targets = targets
        self.voxel_size_nm = voxel_size_nm
        self.settings = settings
        self.most = settings.max_fill * float(np.prod(self.shape))
        self.counts = {"tangled": 0, "limited": 0, "limited_voxels": 0, "loops": 0}

    def trace(self, part: Component) -> tuple[int, Trace]:
        """Label and skeleton of a component."""
        if part.count == 1:
            return part.label, single_node(part.low, self.voxel_size_nm)
        mask = part.mask()
        distance = distance_inside(part, self.shape, self.voxel_size_nm)
        limited = part.count > self.most
        trace, kind = trace_component(
            part,
            self.targets.get(part.number, np.zeros((0, 3), np.int64)),
            mask,
            distance,
            limited=limited,
            voxel_size_nm=self.voxel_size_nm,
            settings=self.settings,
        )
        self.counts["tangled"] += kind == "tangled"
        self.counts["limited"] += limited
        self.counts["limited_voxels"] += part.count * limited
        # A ring shows as fewer components and cavities than tunnels.
        if self.settings.keep_loops and not limited and euler_of_component(part, mask) < 1:
            body = body_of(part, mask, distance, self.voxel_size_nm)
            trace, loops = close_loops(part, body, trace, self.voxel_size_nm, self.settings)
            self.counts["loops"] += loops
        return part.label, trace


def _as_pieces(
    traced: Sequence[tuple[int, Trace]],
    shape: tuple[int, ...],
    origin: Triple,
    voxel_size_nm: VoxelSize,
    soma_mask: NDArray[np.bool_] | None,
) -> SkeletonPieces:
    if not traced:
        return SkeletonPieces.concatenate([])
    sizes = [len(trace.nodes) for _, trace in traced]
    starts = np.cumsum([0, *sizes[:-1]])
    nodes = np.concatenate([trace.nodes for _, trace in traced])
    edges = [trace.edges + start for (_, trace), start in zip(traced, starts, strict=True)]
    to_faces = np.minimum(nodes, np.asarray(shape) - 1 - nodes) * voxel_size_nm
    soma = np.zeros(len(nodes), np.bool_) if soma_mask is None else soma_mask[tuple(nodes.T)]
    return SkeletonPieces(
        segment=np.repeat(np.array([label for label, _ in traced], np.uint64), sizes),
        nodes=nodes + np.asarray(origin) + 0.5,
        edges=np.concatenate(edges),
        radius_nm=np.concatenate([trace.radii_nm for _, trace in traced]),
        face_nm=to_faces.min(axis=1),
        soma=soma,
    )
