"""Skeletons of the objects in one block, cut so that neighbouring blocks meet.

A block reads some voxels of context, by which neighbours divide objects between them across, never
along (`skeleton_block_cut`). They share a seam of voxels. Where an object crosses it, both see the
same patch and both put a node on the same voxel, the most central one of the patch. So the pieces
of one object always touch: two adjacent voxels lie together in at least one block, and equal nodes
are one node. A block too small for that reads one plane of voxels more on its successor side
instead, and that plane is the seam.

1. Connected components (26 neighbours) of each label, in one pass (`skeleton_block_runs`); those
   below the size and away from the faces go.
2. The central voxel of each patch on a seam or a face (`skeleton_block_patches`).
3. A path tracer draws each component, through these voxels (`skeleton_block_trace`).
4. Rings that the component has are closed (`skeleton_loops`).

All but the first step look at the voxels of components only: background costs nothing.
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
from scipy.spatial import cKDTree

from pipeline.arrays.skeleton_block_body import Canvas, euler_of
from pipeline.arrays.skeleton_block_cut import context_vox, share_of, smallest_block
from pipeline.arrays.skeleton_block_distance import distances_inside
from pipeline.arrays.skeleton_block_patches import patch_centres
from pipeline.arrays.skeleton_block_runs import Component, Components, find_components
from pipeline.arrays.skeleton_block_trace import Trace, single_node, trace_component
from pipeline.arrays.skeleton_loops import close_loops
from pipeline.arrays.skeleton_settings import (
    SkeletonSettings,
    VoxelSize,
    check_settings,
    const_nm,
)
from pipeline.errors import DtypeError, ShapeError
from pipeline.geometry import Roi, Triple

__all__ = [
    "BlockSkeletonReport",
    "BlockSkeletons",
    "SkeletonPieces",
    "VoxelSize",
    "check_settings",
    "const_nm",
    "context_vox",
    "skeletonize_block",
    "smallest_block",
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
            the block is no boundary: without context, the radius near it may be too large.
        face_nm: (N,) float64, distance to where the block ends: to the nearest voxel of the seam in
            the node's component or face of the volume; without context, face of what was read.
            Infinite if there is none.
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
    block: Roi | None = None,
) -> SkeletonPieces:
    """The pieces of `trace_block` without its report."""
    return trace_block(
        labels,
        origin=origin,
        voxel_size_nm=voxel_size_nm,
        settings=settings,
        soma_mask=soma_mask,
        block=block,
    ).pieces


def trace_block(
    labels: NDArray[np.uint64],
    *,
    origin: Triple,
    voxel_size_nm: VoxelSize,
    settings: SkeletonSettings,
    soma_mask: NDArray[np.bool_] | None = None,
    block: Roi | None = None,
) -> BlockSkeletons:
    """Skeletons of every object in a block, meeting those of the neighbours.

    Args:
        labels: (Z, Y, X) uint64, the read ROI; 0 is background. Not changed. With `block`: the
            write ROI and `context_vox` around it, less where the volume ends. Without: the write
            ROI plus one voxel on the successor side where the volume goes on.
        origin: the first voxel of `labels` in the volume.
        voxel_size_nm: z, y, x.
        settings: of the method.
        soma_mask: (Z, Y, X) bool, voxels of somata, or None.
        block: the write ROI, relative to `labels`. The blocks of a volume must all give one, and
            all but the last along an axis be `smallest_block` long.

    Returns:
        One tree per connected component, with a further edge for each ring that it has; at least
        one node for every component that is kept. The same input gives the same table, row by row.

    Raises:
        ShapeError: `labels` has not three axes, or the mask has another shape. DtypeError: labels
            are not uint64, or the mask is not bool. InputError, ConfigError: of `check_settings`.
    """
    _check(labels, soma_mask)
    check_settings(voxel_size_nm, settings)
    seen = _see(labels, block, voxel_size_nm)
    components = seen.components
    targets = patch_centres(components, voxel_size_nm, seen.faces, seen.centres)
    kept = (components.counts >= settings.min_voxels) | components.at_faces(seen.faces)
    kept[components.at(seen.seam).astype(np.int64) - 1] = True
    tracer = _Tracer(targets, seen, voxel_size_nm, settings)
    traced = [tracer.trace(part) for part in components.by_segment() if kept[part.number - 1]]
    report = BlockSkeletonReport(
        components=len(kept),
        skipped=int((~kept).sum()),
        single_nodes=sum(len(trace.nodes) == 1 for _, trace in traced),
        **tracer.counts,
    )
    pieces = _as_pieces(traced, seen, origin, voxel_size_nm, soma_mask)
    return BlockSkeletons(pieces, report)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a block traces: see `Share`; without context there is no seam."""

    components: Components
    offset: Triple
    size: int
    faces: NDArray[np.bool_]
    seam: NDArray[np.int64]
    centres: NDArray[np.int64]
    distance_nm: NDArray[np.float32]


def _see(labels: NDArray[np.uint64], block: Roi | None, voxel_size_nm: VoxelSize) -> _Seen:
    none = np.zeros((0, 3), np.int64)
    if block is None or block.shape == labels.shape:
        faces = np.ones((3, 2), np.bool_)
        components = find_components(labels)
        distance = distances_inside(labels, components, voxel_size_nm)
        return _Seen(components, (0, 0, 0), labels.size, faces, none, none, distance)
    share = share_of(labels, block, voxel_size_nm)
    return _Seen(
        share.components, share.roi.offset, block.size, share.outer, share.seam, share.centres,
        share.distance_nm,
    )  # fmt: skip


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
        targets: dict[int, NDArray[np.int64]],
        seen: _Seen,
        voxel_size_nm: VoxelSize,
        settings: SkeletonSettings,
    ) -> None:
        self.canvas = Canvas(seen.components.shape, voxel_size_nm)
        self.distance_nm = seen.distance_nm
        self.targets = targets
        self.voxel_size_nm = voxel_size_nm
        self.settings = settings
        self.most = settings.max_fill * seen.size
        self.counts = {"tangled": 0, "limited": 0, "limited_voxels": 0, "loops": 0}

    def trace(self, part: Component) -> tuple[int, Trace]:
        """Label and skeleton of a component."""
        if part.count == 1:
            return part.label, single_node(part.low, self.voxel_size_nm)
        limited = part.count > self.most
        with self.canvas.painted(part, self.distance_nm[part.rows()]) as body:
            trace, kind = trace_component(
                part,
                body,
                self.targets.get(part.number, np.zeros((0, 3), np.int64)),
                limited=limited,
                voxel_size_nm=self.voxel_size_nm,
                settings=self.settings,
            )
            # A ring shows as fewer components and cavities than tunnels.
            if self.settings.keep_loops and not limited and euler_of(body) < 1:
                trace, loops = close_loops(body, trace, self.voxel_size_nm, self.settings)
                self.counts["loops"] += loops
        self.counts["tangled"] += kind == "tangled"
        self.counts["limited"] += limited
        self.counts["limited_voxels"] += part.count * limited
        return part.label, trace


def _as_pieces(
    traced: Sequence[tuple[int, Trace]],
    seen: _Seen,
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
    soma = np.zeros(len(nodes), np.bool_)
    if soma_mask is not None:
        soma = soma_mask[tuple((nodes + seen.offset).T)]
    return SkeletonPieces(
        segment=np.repeat(np.array([label for label, _ in traced], np.uint64), sizes),
        nodes=nodes + seen.offset + np.asarray(origin) + 0.5,
        edges=np.concatenate(edges),
        radius_nm=np.concatenate([trace.radii_nm for _, trace in traced]),
        face_nm=_to_faces(nodes, seen, voxel_size_nm),
        soma=soma,
    )


def _to_faces(
    nodes: NDArray[np.int64], seen: _Seen, voxel_size_nm: VoxelSize
) -> NDArray[np.float64]:
    """(N,) nanometres to the nearest face, or voxel of the seam in the same component."""
    components = seen.components
    size = np.asarray(voxel_size_nm, np.float64)
    sides = np.stack([nodes, np.asarray(components.shape) - 1 - nodes], axis=2) * size[:, None]
    nearest: NDArray[np.float64] = np.where(seen.faces, sides, np.inf).min(axis=(1, 2))
    if not len(seen.seam):
        return nearest
    # Components lie apart along a further axis by more than the box is wide.
    apart = 2.0 * float(np.linalg.norm(components.shape * size))
    seam, places = (
        np.column_stack([voxels * size, components.at(voxels) * apart])
        for voxels in (seen.seam, nodes)
    )
    to_seam = cKDTree(seam).query(places, distance_upper_bound=apart)[0]
    return np.minimum(nearest, to_seam)
