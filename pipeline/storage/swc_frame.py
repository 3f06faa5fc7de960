"""From the coordinates of a tracing to the voxels of a volume, and whether they fit together.

A coordinate goes through five steps, in this order: the OFFSET header is added (when the file is
parsed), the columns are named, the unit becomes voxels, `offset_vox` is added, axes are flipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_nodes import inside_roi, node_voxels
from pipeline.errors import ConfigError, InputError
from pipeline.geometry import Roi, Triple, triple

NM_PER_UNIT = {"nm": 1.0, "um": 1000.0}

# Decimal micrometres rarely survive a division: 1.001 um at 1 nm is 1000.9999999999999 voxels.
# A voxel coordinate this close to an integer is that integer.
_SNAP_VOX = 1e-9

# A hint is worth giving when fewer nodes than this are on foreground ...
_FEW = 0.5
# ... and another orientation has twice as many, and so much more of all nodes.
_GAIN = 0.2
_SAMPLED_NODES = 4096


@dataclass(frozen=True, kw_only=True)
class SwcOptions:
    """How the coordinates of an SWC relate to the volume.

    Attributes:
        voxel_size_nm: z, y, x of the working resolution.
        axes: what the three coordinate columns are, in order.
        unit: of the coordinates and the OFFSET header: "voxel", "um" or "nm".
        offset_vox: z, y, x, added after the conversion to voxels, before a flip.
        flip: letters of the axes that run the other way; voxel i becomes size - 1 - i.
        volume_shape: z, y, x; needed for a flip.
    """

    voxel_size_nm: tuple[float, float, float]
    axes: str = "xyz"
    unit: str = "voxel"
    offset_vox: tuple[float, float, float] = (0.0, 0.0, 0.0)
    flip: tuple[str, ...] = ()
    volume_shape: Triple | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "flip", tuple(self.flip))
        if sorted(self.axes) != ["x", "y", "z"]:
            raise ConfigError(
                f"axes: expected the letters x, y, z in some order, got {self.axes!r}"
            )
        if self.unit not in ("voxel", *NM_PER_UNIT):
            raise ConfigError(f"unit: expected voxel, um or nm, got {self.unit!r}")
        size = self.voxel_size_nm
        if len(size) != 3 or not all(0 < s < math.inf for s in size):
            raise ConfigError(f"voxel_size_nm: expected three positive lengths, got {size}")
        if len(self.offset_vox) != 3 or not all(map(math.isfinite, self.offset_vox)):
            raise ConfigError(f"offset_vox: expected three numbers, got {self.offset_vox}")
        if len(set(self.flip)) != len(self.flip) or not set(self.flip) <= set("zyx"):
            raise ConfigError(f"flip: expected distinct letters of z, y, x, got {self.flip}")
        if self.flip and self.volume_shape is None:
            raise ConfigError(f"flip {self.flip}: needs volume_shape, a flip is size - 1 - index")

    @property
    def units_per_voxel(self) -> tuple[float, float, float]:
        """Size of a voxel in the unit of the coordinates, z, y, x."""
        if self.unit == "voxel":
            return 1.0, 1.0, 1.0
        z, y, x = (s / NM_PER_UNIT[self.unit] for s in self.voxel_size_nm)
        return z, y, x

    @property
    def radius_nm_per_unit(self) -> float:
        """Nanometres per unit of radius; radii in voxels are taken along x."""
        return self.voxel_size_nm[2] if self.unit == "voxel" else NM_PER_UNIT[self.unit]


def to_voxels(columns: NDArray[np.float64], options: SwcOptions) -> NDArray[np.float64]:
    """Coordinate columns (N, 3) of an SWC as nodes (N, 3), z, y, x, continuous voxels."""
    nodes = np.empty_like(columns)
    for axis, letter in enumerate("zyx"):
        values = columns[:, options.axes.index(letter)]
        if options.unit != "voxel":
            values = values * NM_PER_UNIT[options.unit] / options.voxel_size_nm[axis]
            nearest = np.rint(values)
            tolerance = _SNAP_VOX + 4 * np.spacing(np.abs(values))
            values = np.where(np.abs(values - nearest) <= tolerance, nearest, values)
        nodes[:, axis] = values + options.offset_vox[axis]
        if letter in options.flip:
            size = triple(options.volume_shape, "volume_shape")[axis]
            nodes[:, axis] = flip_coordinate(nodes[:, axis], size)
    return nodes


def flip_coordinate(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The mirror image of coordinates on an axis of `size` voxels: size - value.

    Floor of the result is size - 1 - floor(value) for every value. The mirror image of an integer,
    the lower face of voxel i, is the upper face of voxel size - 1 - i and would count for the next
    voxel: it becomes the last number below. So lengths stay right to the last digits.
    """
    last_below = np.nextafter(size - np.floor(values), -np.inf)
    return np.minimum(size - values, last_below)


def check_placement(skeletons: Sequence[Skeleton], volume_shape: Triple) -> NDArray[np.int64]:
    """How many nodes of each skeleton lie outside the volume.

    Raises:
        InputError: skeletons that are more than ten times as long as the volume, or wholly outside.
    """
    voxels = [node_voxels(skeleton) for skeleton in skeletons]
    everything = np.concatenate([np.zeros((0, 3), np.int64), *voxels])
    if not len(everything):
        return np.zeros(len(voxels), np.int64)
    low, high = everything.min(axis=0), everything.max(axis=0)
    seen = (
        f"nodes span {low.tolist()} to {high.tolist()} voxels (z, y, x), the volume {volume_shape}"
    )
    if (high - low).max() > 10 * max(volume_shape):
        raise InputError(
            f"tracings are more than ten times larger than the volume: {seen}. Are their "
            f"coordinates in nm or um? Set the unit and the voxel size, or crop the tracings first"
        )
    volume = Roi((0, 0, 0), volume_shape)
    outside = np.array([np.count_nonzero(~inside_roi(v, volume)) for v in voxels], np.int64)
    if outside.sum() == len(everything):
        raise InputError(
            f"no node lies in the volume: {seen}. Check the unit, the voxel size, the order of the "
            f"axes, and an offset between tracing and volume"
        )
    return outside


def suggest_orientation(
    skeletons: Sequence[Skeleton],
    is_foreground: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
    volume_shape: Triple,
    options: SwcOptions | None = None,
) -> str | None:
    """A hint when few nodes are on foreground and another orientation fits much better.

    Tried are the 8 flips of the 6 orders of the axes, on at most 4,096 nodes.

    Args:
        skeletons: as read.
        is_foreground: for voxels (M, 3) int64, z, y, x, all inside the volume: (M,) bool.
        volume_shape: z, y, x.
        options: those the skeletons were read with; None: columns x, y, z in voxels, no flip.

    Returns:
        A sentence that names the options to set, None if the orientation seems right or none does
        better.
    """
    used = options or SwcOptions(voxel_size_nm=(1.0, 1.0, 1.0))
    nodes = np.concatenate([np.zeros((0, 3)), *(s.nodes for s in skeletons)])
    nodes = nodes[:: -(-len(nodes) // _SAMPLED_NODES) or 1]
    if not len(nodes):
        return None
    columns = _to_columns(nodes, used)
    shares: dict[tuple[str, tuple[str, ...]], float] = {}
    for axes, flip in _orientations(used):
        tried = SwcOptions(
            voxel_size_nm=used.voxel_size_nm, axes=axes, unit=used.unit,
            offset_vox=used.offset_vox, flip=flip, volume_shape=volume_shape,
        )  # fmt: skip
        voxels = np.floor(to_voxels(columns, tried)).astype(np.int64)
        voxels = voxels[inside_roi(voxels, Roi((0, 0, 0), volume_shape))]
        hits = np.count_nonzero(is_foreground(voxels)) if len(voxels) else 0
        shares[axes, flip] = hits / len(nodes)
    now = shares[used.axes, _ordered(used.flip)]
    best = max(shares, key=lambda key: shares[key])
    if now >= _FEW or shares[best] < max(2 * now, now + _GAIN):
        return None
    return (
        f"{now:.0%} of the nodes lie on foreground with {_describe(used.axes, used.flip)}; with "
        f"{_describe(*best)} it is {shares[best]:.0%}. Set the axes and the flip of the tracings "
        f"accordingly if that is how they run"
    )


def _ordered(flip: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(letter for letter in "zyx" if letter in flip)


def _orientations(used: SwcOptions) -> list[tuple[str, tuple[str, ...]]]:
    """All 48, those that change least first: of equals, the first is suggested."""
    orders = ["".join(order) for order in permutations("xyz")]
    flips = [chosen for count in range(4) for chosen in combinations("zyx", count)]
    pairs = [(axes, flip) for axes in orders for flip in flips]
    moved = {axes: sum(a != b for a, b in zip(axes, used.axes, strict=True)) for axes in orders}
    return sorted(pairs, key=lambda pair: moved[pair[0]] + len(set(pair[1]) ^ set(used.flip)))


def _to_columns(nodes: NDArray[np.float64], used: SwcOptions) -> NDArray[np.float64]:
    """Undo `to_voxels`, but for the last digits."""
    columns = np.empty_like(nodes)
    for axis, letter in enumerate("zyx"):
        values = nodes[:, axis]
        if letter in used.flip:
            values = triple(used.volume_shape, "volume_shape")[axis] - values
        values = (values - used.offset_vox[axis]) * used.units_per_voxel[axis]
        columns[:, used.axes.index(letter)] = values
    return columns


def _describe(axes: str, flip: tuple[str, ...]) -> str:
    flipped = f"flip {', '.join(_ordered(flip))}" if flip else "no flip"
    return f"axes '{axes}' and {flipped}"
