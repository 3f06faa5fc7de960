"""Tubes that grow into the bright voxels connected to them, so that targets follow the image.

Radii of tracings are guesses, and axes are a voxel or two off. Growth starts from the tubes as
they are drawn and stays within a reach of their surfaces:

1. Level: the median of the image along the tracing's axis, within the reach of each axis voxel.
   A dim neurite is compared with itself, not with its bright neighbour.
2. Bright: a voxel whose centre lies within the reach of a tube's surface, if it exceeds the
   background by a fraction of what the level of the nearest axis does, and is no noise; or, where a
   threshold is given, if it reaches that.
3. Flood: a bright voxel takes the label from which the shortest chain of bright face neighbours
   leads to it, if that is at most twice the reach long (the way round a corner); where two labels
   are equally near it is unknown. Tubes themselves never change.

The bounds on reach, chain and level make a voxel's label a function of the tracings and the image
near it: a block that reads so much beyond itself computes what the whole volume would hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.labels import IGNORE
from pipeline.arrays.tube_growth_kernels import flag_around, flood, local_medians, mark_reach
from pipeline.arrays.tube_kernels import voxel_line
from pipeline.arrays.tubes import TubeEdges, rasterise_edges
from pipeline.errors import InputError
from pipeline.geometry import Roi, triple

# Lengths of chains are counted in whole picometres: integer sums have no rounding.
_PER_NM = 1000.0


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How tubes grow, and the image that they grow in.

    Attributes:
        read: the image of a box inside `volume`, any numeric type.
        volume: the box that the image fills; nothing grows outside it.
        reach_nm: no grown voxel's centre lies farther from the surface of a tube.
        threshold: image value from which a voxel is bright; None: relative to the axis.
        fraction: of the way from the background to the level of the axis, in [0, 1]; a voxel there
            is bright. Used without a threshold.
        background: image value of the background, such as the median of the volume.
        floor: a voxel must exceed this value too: what noise alone reaches. Used without a
            threshold.
    """

    read: Callable[[Roi], NDArray[Any]]
    volume: Roi
    reach_nm: float
    threshold: float | None = None
    fraction: float = 0.5
    background: float = 0.0
    floor: float = -np.inf

    def __post_init__(self) -> None:
        if not (np.isfinite(self.reach_nm) and self.reach_nm > 0):
            raise InputError(f"the reach of growth must be positive, got {self.reach_nm} nm")
        if not 0.0 <= self.fraction <= 1.0:
            raise InputError(f"the fraction of the axis lies in [0, 1], got {self.fraction}")
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise InputError(f"a brightness threshold must be finite, got {self.threshold}")

    def grow(
        self, edges: TubeEdges, roi: Roi, shell_nm: float
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """The grown tubes in `roi`, and the shell around what has grown.

        Args:
            edges: of all tubes that may matter: those within the reach of growth, shell and levels.
            roi: global voxels, inside the volume.
            shell_nm: voxels whose centre lies within this distance of the surface of a grown voxel
                are in the shell. The shell of the tubes themselves is not this one.

        Returns:
            roi.shape uint64, 0 where there is no tube, `IGNORE` where two tracings are equally
            near; roi.shape bool, which may be set on tubes too.

        Raises:
            InputError: `roi` leaves the volume.
        """
        if not self.volume.contains(roi):
            raise InputError(f"tubes cannot grow in {roi}: the image fills {self.volume}")
        spacing = edges.voxel_size_nm
        steps = np.rint(spacing * _PER_NM).astype(np.int64)
        limit = int(2 * self.reach_nm * _PER_NM)
        shell = np.floor(shell_nm / spacing + 0.5) if shell_nm > 0 else np.zeros(3)
        outer = _grown_box(roi, shell).intersect(self.volume)
        read = _grown_box(outer, limit // steps).intersect(self.volume)
        tubes = rasterise_edges(edges, read)
        grown = tubes.copy()
        if tubes.any():
            flood(grown, self._bright(edges, read), steps, limit, IGNORE)
        added = (grown != tubes)[outer.relative_to(read).slices]
        flags = np.zeros(roi.shape, np.bool_)
        if shell_nm > 0:
            begin = np.asarray(roi.relative_to(outer).offset, np.int64)
            flag_around(added, _ball(shell_nm, spacing), begin, flags)
        return np.ascontiguousarray(grown[roi.relative_to(read).slices]), flags

    def _bright(self, edges: TubeEdges, read: Roi) -> NDArray[np.bool_]:
        """Which voxels of `read` tubes may grow into."""
        near = edges.near(read, self.reach_nm)
        lines = [voxel_line(a, b) for a, b in near.ends]
        starts = np.cumsum([0, *(len(line) for line in lines)])
        if self.threshold is not None:
            gap, _ = self._surroundings(near, read, starts, np.zeros(starts[-1]))
            enough: NDArray[np.bool_] = (gap < np.inf) & (self.read(read) >= self.threshold)
            return enough
        window = np.maximum(np.rint(self.reach_nm / near.voxel_size_nm), 1.0)
        # An axis that matters here lies within a radius and the reach of `read`; the voxel line
        # strays by up to three voxels from the even steps that samples are taken for.
        margin = np.ceil((near.radii_nm.max() + self.reach_nm) / near.voxel_size_nm) + 3
        around = _grown_box(read, margin + window).intersect(self.volume)
        image = self.read(around).astype(np.float64)
        samples = self._levels(edges.near(around, 0.0), near, lines, image, around, window)
        _, level = self._surroundings(near, read, starts, samples)
        # Beyond the reach, and where no axis voxel is known, the level is NaN: never bright.
        needed = self.background + self.fraction * (level - self.background)
        image = image[read.relative_to(around).slices]
        return (image >= needed) & (image > self.floor)

    def _surroundings(
        self,
        near: TubeEdges,
        read: Roi,
        starts: NDArray[np.int64],
        samples: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """For each voxel within the reach of a tube: how far its surface is, and its axis's sample.

        Infinity and NaN elsewhere.
        """
        gap, level = np.full(read.shape, np.inf), np.full(read.shape, np.nan)
        origin = np.asarray(read.offset, np.int64)
        table = (near.ends, near.radii_nm, near.voxel_size_nm, origin, self.reach_nm)
        mark_reach(*table, starts, samples, gap, level)
        return gap, level

    def _levels(
        self,
        edges: TubeEdges,
        near: TubeEdges,
        lines: list[NDArray[np.int64]],
        image: NDArray[np.float64],
        around: Roi,
        window: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """The level at each voxel of the lines of `near`, from the lines of all `edges`."""
        voxels, ids = _axis_voxels(edges)
        places = voxels - np.asarray(around.offset)
        inside = ((places >= 0) & (places < np.asarray(around.shape))).all(axis=1)
        values = np.full(len(ids), np.nan)
        values[inside] = image[tuple(places[inside].T)]
        medians = local_medians(voxels, ids, values, window.astype(np.int64))
        table = {(*v, i): m for v, i, m in zip(voxels.tolist(), ids.tolist(), medians, strict=True)}
        wanted = zip(lines, near.ids.tolist(), strict=True)
        # An edge outside the volume is not among `edges`: its level is as unknown as that of any
        # axis voxel there.
        found = [table.get((*v, label), np.nan) for line, label in wanted for v in line.tolist()]
        return np.array(found)


def _axis_voxels(edges: TubeEdges) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Voxels (N, 3) that axes run through, rising along z, and their labels; each pair once."""
    lines = [voxel_line(a, b) for a, b in edges.ends]
    ids = np.repeat(edges.ids, [len(line) for line in lines])
    rows = np.unique(np.column_stack([np.concatenate(lines), ids.view(np.int64)]), axis=0)
    voxels = np.ascontiguousarray(rows[:, :3])
    return voxels, np.ascontiguousarray(rows[:, 3]).view(np.uint64)


def _grown_box(roi: Roi, voxels: NDArray[np.float64] | NDArray[np.int64]) -> Roi:
    return roi.grow(triple(voxels.astype(np.int64)))


def _ball(radius_nm: float, spacing: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N, 3) offsets of the voxels whose centre is within a radius of the surface of voxel 0."""
    extent = np.floor(radius_nm / spacing + 0.5).astype(np.int64)
    offsets = np.argwhere(np.ones(2 * extent + 1, np.bool_)) - extent
    gaps = np.maximum(np.abs(offsets) - 0.5, 0.0) * spacing
    within: NDArray[np.int64] = offsets[(gaps**2).sum(axis=1) <= radius_nm**2]
    return within
