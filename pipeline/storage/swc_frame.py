"""From the coordinates of a tracing to the voxels of a volume.

A coordinate goes through five steps, in this order: the OFFSET header is added (when the file is
parsed), the columns are named, the unit becomes voxels, `offset_vox` is added, axes are flipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.geometry import Triple, triple

NM_PER_UNIT = {"nm": 1.0, "um": 1000.0}

# Decimal micrometres rarely survive a division: 1.001 um at 1 nm is 1000.9999999999999 voxels.
# A voxel coordinate this close to an integer is that integer.
_SNAP_VOX = 1e-9


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
        values, offset = columns[:, options.axes.index(letter)], options.offset_vox[axis]
        if options.unit == "voxel":
            nodes[:, axis] = added(values, offset)
        else:
            values = values * NM_PER_UNIT[options.unit] / options.voxel_size_nm[axis]
            nodes[:, axis] = _on_faces(values + offset, np.abs(values) + abs(offset), _SNAP_VOX)
        if letter in options.flip:
            size = triple(options.volume_shape, "volume_shape")[axis]
            nodes[:, axis] = flip_coordinate(nodes[:, axis], size)
    return nodes


def added(values: NDArray[np.float64], offset: float) -> NDArray[np.float64]:
    """Coordinates moved by an offset; sums that miss an integer by rounding alone become it."""
    if not offset:
        return values
    return _on_faces(values + offset, np.abs(values) + abs(offset), 0.0)


def _on_faces(
    values: NDArray[np.float64], magnitude: NDArray[np.float64], tolerance: float
) -> NDArray[np.float64]:
    """Values that miss a face between voxels by rounding alone, put on it.

    `magnitude` is that of what they were added up from, and says how large such an error may be
    beside `tolerance`.
    """
    nearest = np.rint(values)
    near = np.abs(values - nearest) <= tolerance + 4 * np.spacing(magnitude)
    return np.where(near, nearest, values)


def flip_coordinate(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The mirror image of coordinates on an axis of `size` voxels: size - value.

    Floor of the result is size - 1 - floor(value) for every value. The mirror image of an integer,
    the lower face of voxel i, is the upper face of voxel size - 1 - i and would count for the next
    voxel: it becomes the last number below. So lengths stay right to the last digits.
    """
    last_below = np.nextafter(size - np.floor(values), -np.inf)
    return np.minimum(size - values, last_below)


def to_columns(nodes: NDArray[np.float64], used: SwcOptions) -> NDArray[np.float64]:
    """Undo `to_voxels`, but for the last digits."""
    columns = np.empty_like(nodes)
    for axis, letter in enumerate("zyx"):
        values = nodes[:, axis]
        if letter in used.flip:
            values = triple(used.volume_shape, "volume_shape")[axis] - values
        values = (values - used.offset_vox[axis]) * used.units_per_voxel[axis]
        columns[:, used.axes.index(letter)] = values
    return columns
