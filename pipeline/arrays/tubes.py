"""Tracings drawn into voxels: tubes around skeletons, and training targets made of them.

A tube is the set of voxels whose centre lies within a radius of a skeleton's edges; distances are
in nanometres. Everything here is a function of the global voxel index: a block computes exactly the
voxels that the whole volume would hold.

1. Lines: each edge claims a 6-connected line of voxels, so that thin tubes never break up on
   anisotropic voxels. Lines go before tubes.
2. Tubes: a voxel goes to the edge with the smallest distance / radius.
3. Where tubes meet, step 2 can leave crumbs of one behind the other. A voxel keeps its label only
   if the steps from it to its axis stay in that label, or if it lies on such a way of another
   voxel; crumbs become background. So each label is 6-connected wherever its lines are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.labels import IGNORE
from pipeline.arrays.negatives import sampled_tiles
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.tube_kernels import (
    NEAR,
    ON_LINE,
    SHELL,
    claim_lines,
    claim_tubes,
    flag_surroundings,
    keep_attached,
)
from pipeline.errors import InputError
from pipeline.geometry import Roi, triple

VoxelSize = tuple[float, float, float]
Negatives = Literal["near", "assumed", "sampled"]


@dataclass(frozen=True, eq=False)
class TubeEdges:
    """Edges as tapering capsules, in the order of skeletons and their edges.

    Attributes:
        ends: (E, 2, 3) float64, both ends, z, y, x in voxels.
        radii_nm: (E, 2) float64, the radius at each end, positive; linear in between.
        ids: (E,) uint64, the label.
        voxel_size_nm: (3,) float64.
    """

    ends: NDArray[np.float64]
    radii_nm: NDArray[np.float64]
    ids: NDArray[np.uint64]
    voxel_size_nm: NDArray[np.float64]

    def near(self, roi: Roi, reach_nm: float) -> TubeEdges:
        """The edges with a surface that may lie within `reach_nm` of `roi`, in the same order."""
        margin = (self.radii_nm.max(axis=1, initial=0.0) + reach_nm)[:, None]
        margin = margin / self.voxel_size_nm + 1.0
        low, high = self.ends.min(axis=1) - margin, self.ends.max(axis=1) + margin
        keep = ((low < np.asarray(roi.end)) & (high > np.asarray(roi.offset))).all(axis=1)
        return TubeEdges(self.ends[keep], self.radii_nm[keep], self.ids[keep], self.voxel_size_nm)


def tube_edges(
    skeletons: Sequence[Skeleton],
    ids: Sequence[int],
    *,
    voxel_size_nm: VoxelSize,
    radius_nm: float | None,
    min_radius_nm: float,
) -> TubeEdges:
    """The edges of all skeletons as capsules; a node without an edge becomes a ball.

    Args:
        skeletons: nodes in voxels of the working resolution.
        ids: one label per skeleton, 1 to 2**64 - 2; two skeletons may share one.
        voxel_size_nm: z, y, x.
        radius_nm: one radius for all, or None for each node's own.
        min_radius_nm: the smallest radius, also that of nodes whose radius is 0 or NaN.

    Raises:
        InputError: ids do not match the skeletons or are out of range; a radius or voxel size is
            not positive; a node is not finite.
    """
    _check_tubes(skeletons, ids, voxel_size_nm, radius_nm, min_radius_nm)
    ends, radii, labels = [np.zeros((0, 2, 3))], [np.zeros((0, 2))], [np.zeros(0, np.uint64)]
    for skeleton, label in zip(skeletons, ids, strict=True):
        own = skeleton.radii_nm if radius_nm is None else np.full(len(skeleton.nodes), radius_nm)
        # NaN and 0 mean "unknown"; fmax returns the number that is one.
        own = np.fmax(own, min_radius_nm)
        alone = np.setdiff1d(np.arange(len(skeleton.nodes)), skeleton.edges)
        pairs = np.concatenate([skeleton.edges, np.stack([alone, alone], axis=1)])
        ends.append(skeleton.nodes[pairs])
        radii.append(own[pairs])
        labels.append(np.full(len(pairs), label, np.uint64))
    return TubeEdges(
        np.concatenate(ends),
        np.concatenate(radii),
        np.concatenate(labels),
        np.asarray(voxel_size_nm, np.float64),
    )


def _check_tubes(
    skeletons: Sequence[Skeleton],
    ids: Sequence[int],
    voxel_size_nm: VoxelSize,
    radius_nm: float | None,
    min_radius_nm: float,
) -> None:
    if len(skeletons) != len(ids):
        raise InputError(f"{len(skeletons)} skeletons but {len(ids)} ids: give one id to each")
    for label in ids:
        if not 1 <= label < IGNORE:
            raise InputError(f"a tube's id must lie in 1 .. 2**64 - 2, got {label}")
    if not all(np.isfinite(size) and size > 0 for size in voxel_size_nm):
        raise InputError(f"voxel size must be positive, got {voxel_size_nm} nm")
    for name, value in (("radius_nm", radius_nm), ("min_radius_nm", min_radius_nm)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} must be positive, got {value}")
    for skeleton in skeletons:
        if not np.isfinite(skeleton.nodes).all() or np.isinf(skeleton.radii_nm).any():
            raise InputError(f"skeleton {skeleton.name} has a node or radius that is not finite")


def rasterise_tubes(
    skeletons: Sequence[Skeleton],
    ids: Sequence[int],
    roi: Roi,
    *,
    voxel_size_nm: VoxelSize,
    radius_nm: float | None,
    min_radius_nm: float,
) -> NDArray[np.uint64]:
    """Labels of the tubes around skeletons, for the voxels of `roi`.

    A voxel whose centre lies within the radius of several tubes goes to the one with the smallest
    distance / radius; equal: the smaller id. Voxels on the 6-connected line of an edge go to that
    edge before any tube (of several lines: by the same rule). See the module for crumbs. Two
    skeletons whose lines share a voxel cannot both stay connected there.

    Skeletons farther from `roi` than three times the largest radius and eight voxels may be left
    out.

    Args:
        skeletons, ids, voxel_size_nm, radius_nm, min_radius_nm: as for `tube_edges`.
        roi: any box of global voxels; it may leave the volume.

    Returns:
        roi.shape uint64, 0 where there is no tube.

    Raises:
        InputError: see `tube_edges`.
    """
    edges = tube_edges(
        skeletons,
        ids,
        voxel_size_nm=voxel_size_nm,
        radius_nm=radius_nm,
        min_radius_nm=min_radius_nm,
    )
    return rasterise_edges(edges, roi)


def rasterise_edges(edges: TubeEdges, roi: Roi) -> NDArray[np.uint64]:
    """`rasterise_tubes` of edges that were gathered before."""
    near = edges.near(roi, 0.0)
    labels = np.zeros(roi.shape, np.uint64)
    if not len(near.ids):
        return labels
    # A voxel's way to its axis is as long as a radius, and a way that begins as far outside `roi`
    # may lead through it.
    ways = np.ceil(near.radii_nm.max() / near.voxel_size_nm).astype(np.int64) + 1
    read = roi.grow(triple(2 * ways + 1))
    near = edges.near(read, 0.0)
    origin = np.asarray(read.offset, np.int64)
    nearness = np.full(read.shape, np.inf)
    winner = np.full(read.shape, -1, np.int32)
    table = (near.ends, near.radii_nm, near.ids, near.voxel_size_nm, origin)
    claim_lines(*table, nearness, winner)
    nearness[winner >= 0] = ON_LINE
    claim_tubes(*table, nearness, winner)
    begin, end = ways + 1, np.asarray(read.shape) - ways - 1
    kept = keep_attached(
        near.ends, near.ids, near.voxel_size_nm, origin, nearness, winner, begin, end
    )
    inner = roi.relative_to(read).slices
    labels[kept[inner]] = near.ids[winner[inner][kept[inner]]]
    return labels


class Grower(Protocol):
    """What makes more of tubes than is drawn: `pipeline.arrays.tube_growth.Growth`."""

    def grow(
        self, edges: TubeEdges, roi: Roi, shell_nm: float
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """The labels in `roi`, and the shell around what was added to the tubes."""


def training_targets(
    skeletons: Sequence[Skeleton],
    ids: Sequence[int],
    roi: Roi,
    *,
    voxel_size_nm: VoxelSize,
    radius_nm: float | None,
    min_radius_nm: float,
    shell_nm: float,
    negatives: Negatives,
    neighbourhood_nm: float = 0.0,
    sampled_share: float = 0.0,
    sampled_seed: int = 0,
    growth: Grower | None = None,
) -> NDArray[np.uint64]:
    """Labels to train on, from tracings: tubes, background where it is known, IGNORE elsewhere.

    - Tubes as drawn by `rasterise_tubes`; with `growth` what grows from them too.
    - A shell of IGNORE: other voxels within `shell_nm` of the surface of a tube or of what has
      grown from it, where the neurite may be wider or thinner.
    - `negatives="near"`: beyond the shell, voxels within `neighbourhood_nm` of a traced axis are
      background and all others IGNORE: somebody looked there. For volumes traced in part.
    - `negatives="assumed"`: beyond the shell all is background: the tracing is complete.
    - `negatives="sampled"`: as "near", and beyond the neighbourhoods background is assumed in a
      random share of the tiles of `pipeline.arrays.negatives`: few of them hold a neurite that
      nobody traced, and those that do are few.

    Only skeletons within the reach of `roi` matter: the larger of `neighbourhood_nm` and the
    largest radius + `shell_nm`, and what `rasterise_tubes` and `growth` ask for.

    Args:
        skeletons, ids, roi, voxel_size_nm, radius_nm, min_radius_nm: as for `rasterise_tubes`.
        shell_nm: width of the shell, 0 for none.
        negatives: where background is known.
        neighbourhood_nm: distance from the axis, not the surface; not used by "assumed".
        sampled_share: of the tiles in which background is assumed; used by "sampled" only.
        sampled_seed: which tiles these are.
        growth: how tubes grow; None leaves them as drawn.

    Returns:
        roi.shape uint64: ids, 0 for background, `IGNORE`.

    Raises:
        InputError: see `tube_edges`; a negative width; an unknown `negatives`; a share that is not
            in [0, 1].
    """
    _check_surroundings(negatives, shell_nm, neighbourhood_nm)
    edges = tube_edges(
        skeletons,
        ids,
        voxel_size_nm=voxel_size_nm,
        radius_nm=radius_nm,
        min_radius_nm=min_radius_nm,
    )
    if growth is None:
        labels, unknown = rasterise_edges(edges, roi), np.zeros(roi.shape, np.bool_)
    else:
        labels, unknown = growth.grow(edges, roi, shell_nm)
    around_nm = 0.0 if negatives == "assumed" else neighbourhood_nm
    near = edges.near(roi, max(shell_nm, around_nm))
    flags = np.zeros(roi.shape, np.uint8)
    origin = np.asarray(roi.offset, np.int64)
    flag_surroundings(
        near.ends, near.radii_nm, near.voxel_size_nm, origin, shell_nm, around_nm, flags
    )
    unknown |= (flags & SHELL) != 0
    if negatives != "assumed":
        empty = (flags & NEAR) != 0
        if negatives == "sampled":
            empty |= sampled_tiles(roi, sampled_share, sampled_seed)
        unknown |= ~empty
    labels[unknown & (labels == 0)] = IGNORE
    return labels


def _check_surroundings(negatives: Negatives, shell_nm: float, neighbourhood_nm: float) -> None:
    if negatives not in ("near", "assumed", "sampled"):
        raise InputError(f'negatives must be "near" or "assumed" or "sampled", got {negatives!r}')
    if not (shell_nm >= 0 and neighbourhood_nm >= 0):
        raise InputError(
            f"shell_nm and neighbourhood_nm must not be negative, "
            f"got {shell_nm} and {neighbourhood_nm}"
        )
