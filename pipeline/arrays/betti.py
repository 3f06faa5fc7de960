"""Betti numbers of binary images in two and three dimensions, and the errors made of them.

b0 counts components, b1 loops (in the plane: holes), b2 cavities. Foreground and background take
dual neighbourhoods, as one cannot be joined through a corner where the other is:

| image | foreground | background |
|---|---|---|
| (Y, X) | 8 | 4 |
| (Y, X) | 4 | 8 |
| (Z, Y, X) | 26 | 6 |
| (Z, Y, X) | 18 | 6 |
| (Z, Y, X) | 6 | 26 |

Outside the image is background: a cavity or hole that reaches the border is none.

1. The Euler characteristic is a sum over the 2 x 2 x 2 neighbourhoods of the corners of voxels,
   each a look into a table of 256 entries. It adds over chunks.
2. Components of the foreground give b0; those of the background that do not reach the border, b2.
3. b1 = b0 + b2 - Euler characteristic.

Each takes time linear in the voxels. Components do not add over chunks: for a volume in chunks,
b0 and b2 are numbers of components of the whole, which a stitch across faces gives.

Source: dual neighbourhoods and the Euler characteristic of digital images, Kong & Rosenfeld 1989,
doi:10.1016/0734-189X(89)90147-3. Betti errors on windows: the ContextLoss paper, after Hu et al.
2019, arXiv:1906.05404.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from pipeline.arrays.masks import Mask, as_image, label_components, pair_masks, ratio, windows
from pipeline.errors import InputError, ShapeError

_BACKGROUND = {26: 6, 18: 6, 6: 26}
_OF_AXES = {2: (8, 4), 3: (26, 18, 6)}


class Betti(NamedTuple):
    """Betti numbers of a binary image.

    Attributes:
        b0: components.
        b1: loops; in the plane, holes.
        b2: cavities; 0 in the plane.
    """

    b0: int
    b1: int
    b2: int

    @property
    def euler(self) -> int:
        """The Euler characteristic, b0 - b1 + b2."""
        return self.b0 - self.b1 + self.b2


class BettiErrors(NamedTuple):
    """Differences of Betti numbers, each a mean over windows; None without a window.

    Attributes:
        e0, e1, e2: |b0(prediction) - b0(target)|, and the same of b1 and b2.
        e: e0 + e1.
        e0_gt: |b0(prediction and target) - b0(target)|; false foreground does not count, so it
            tells of missed connections and missed objects. The definition is this project's: the
            paper that names this error tells only what it reacts to.
        patches: number of windows.
    """

    e0: float | None
    e1: float | None
    e2: float | None
    e: float | None
    e0_gt: float | None
    patches: int


def betti_numbers(mask: ArrayLike, connectivity: int | None = None) -> Betti:
    """The Betti numbers of an image; an image without voxels has 0 of each.

    Args:
        mask: (Y, X) or (Z, Y, X), bool or integers of which all but 0 are foreground.
        connectivity: of the foreground: 8 (default) or 4; 26 (default), 18 or 6.

    Raises:
        DtypeError: neither boolean nor integer.
        ShapeError: not two or three axes.
        InputError: no such connectivity in so many axes.
    """
    image = np.ascontiguousarray(as_image(mask))
    neighbours = check_connectivity(connectivity, image.ndim)
    if not image.any():
        return Betti(0, 0, 0)
    b0 = label_components(image, neighbours)[1]
    b2 = _count_cavities(image, _BACKGROUND[neighbours]) if image.ndim == 3 else 0
    return Betti(b0, b0 + b2 - euler_characteristic(image, neighbours), b2)


def check_connectivity(connectivity: int | None, axes: int) -> int:
    """The connectivity of the foreground; None is 8 in the plane and 26 in space.

    Raises:
        InputError: no such connectivity in so many axes.
    """
    offered = _OF_AXES[axes]
    if connectivity is None:
        return offered[0]
    if connectivity not in offered:
        raise InputError(
            f"connectivity {connectivity}: the foreground of an image of {axes} axes has "
            f"{' or '.join(map(str, offered))}; the background takes its dual"
        )
    return connectivity


def _count_cavities(image: Mask, neighbours: int) -> int:
    """Components of the background of (Z, Y, X) that do not reach the border."""
    labels, found = label_components(~image, neighbours)
    outside = np.zeros(found + 1, np.bool_)
    for axis, end in itertools.product(range(3), (0, -1)):
        outside[np.take(labels, end, axis)] = True
    return int(found - np.count_nonzero(outside[1:]))


def euler_characteristic(
    mask: ArrayLike,
    connectivity: int | None = None,
    *,
    before: tuple[bool, ...] | None = None,
    after: tuple[bool, ...] | None = None,
) -> int:
    """Components minus loops plus cavities; or a chunk's share, so that chunks add up to it.

    A corner of voxels belongs to the chunk of the voxel on its successor side, and at the far
    border of the image to that of the last voxel. So a chunk is read with one voxel of halo on its
    predecessor sides:

    Args:
        mask: (Y, X) or (Z, Y, X), bool or integers of which all but 0 are foreground.
        connectivity: of the foreground: 8 (default) or 4; 26 (default), 18 or 6.
        before: for each axis, the first plane is such a halo. By default none is.
        after: for each axis, a chunk follows and counts the corners on the common face. By
            default none does.

    Raises:
        DtypeError: neither boolean nor integer.
        ShapeError: not two or three axes, or as many flags; a halo where there is no plane.
        InputError: no such connectivity in so many axes.
    """
    image = as_image(mask)
    neighbours = check_connectivity(connectivity, image.ndim)
    halo, open_end = (
        np.array(flags or (False,) * image.ndim, np.bool_) for flags in (before, after)
    )
    if halo.shape != (image.ndim,) or open_end.shape != (image.ndim,):
        raise ShapeError(f"flags {before} and {after} for an image of {image.ndim} axes")
    if (halo & (np.array(image.shape) == 0)).any():
        raise ShapeError(f"an image of shape {image.shape} does not hold the halo {before}")
    if image.ndim == 2:
        # One voxel thick in space, squares become cubes: nothing closes or opens.
        image, neighbours = image[None], {8: 26, 4: 6}[neighbours]
        halo, open_end = np.append(False, halo), np.append(False, open_end)
    begin, end = halo.astype(np.int64), np.array(image.shape) + 1 - open_end
    return int(_sum_corners(np.ascontiguousarray(image), _corner_table(neighbours), begin, end))


@cache
def _corner_table(neighbours: int) -> NDArray[np.int64]:
    """What a corner adds, by the 8 voxels around it; voxel (dz, dy, dx) is bit 4 dx + 2 dz + dy.

    26: the foreground is a union of closed cubes. A corner owns the cells of which it is the first
    corner: the vertex itself, 3 edges, 3 squares, 1 cube. A cell is there if any of its voxels is.
    6: the dual, where voxels are vertices and a block of 2, 4 or 8 voxels is an edge, square or
    cube if all of its voxels are there.
    18: as 26, but two cubes that meet in nothing but this corner do not meet: it counts twice.
    """
    table = np.zeros(256, np.int64)
    voxels = list(itertools.product((0, 1), repeat=3))
    for code, axes in itertools.product(range(256), voxels):
        of_cell = [v for v in voxels if all(a >= b for a, b in zip(v, axes, strict=True))]
        there = [bool(code >> (4 * dx + 2 * dz + dy) & 1) for dz, dy, dx in of_cell]
        if neighbours == 6:
            table[code] += (-1) ** (3 - sum(axes)) * all(there)
        else:
            table[code] += (-1) ** sum(axes) * any(there)
    if neighbours == 18:
        for bit in range(4):
            table[1 << bit | 1 << (7 - bit)] += 1
    return table


@njit(cache=True, nogil=True)
def _sum_corners(image: np.ndarray, table: np.ndarray, begin: np.ndarray, end: np.ndarray) -> int:
    """Sum of the table over corners from `begin` to before `end`; corner i follows voxel i - 1."""
    nz, ny, nx = image.shape
    nothing = np.zeros(nx, np.bool_)
    total = 0
    for z in range(begin[0], end[0]):
        for y in range(begin[1], end[1]):
            # The four rows around the corners: before and after in z, before and after in y.
            r0 = image[z - 1, y - 1] if z > 0 and y > 0 else nothing
            r1 = image[z - 1, y] if z > 0 and y < ny else nothing
            r2 = image[z, y - 1] if z < nz and y > 0 else nothing
            r3 = image[z, y] if z < nz and y < ny else nothing
            code = 0
            for x in range(nx):
                here = r0[x] | r1[x] << 1 | r2[x] << 2 | r3[x] << 3
                code = code >> 4 | here << 4
                if x >= begin[2]:
                    total += table[code]
            if end[2] > nx:
                total += table[code >> 4]
    return total


def betti_errors(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    patch: int | tuple[int, ...] | None = None,
    connectivity: int | None = None,
    ignore: ArrayLike | None = None,
) -> BettiErrors:
    """Mean differences of Betti numbers over windows that do not overlap.

    Over a whole image that hangs together, a gap seldom changes the number of components; in small
    windows it does. Windows begin at the origin; those cut short by the far border are windows
    like the others and weigh as much. A window of which all voxels are ignored is left out.

    Args:
        prediction, target: (Y, X) or (Z, Y, X), bool or integers (all but 0 is foreground).
        patch: extent of a window in voxels, of each axis or of all; None is the whole image. In
            space (1, Y, X) with the extents of the image judges plane by plane.
        connectivity: of the foreground: 8 (default) or 4; 26 (default), 18 or 6.
        ignore: bool, the same shape: voxels that are background in both masks.

    Raises:
        DtypeError: one is neither boolean nor integer.
        ShapeError: the shapes differ, or have neither two nor three axes.
        InputError: no such connectivity in so many axes; a patch of no extent.
    """
    found, truth, known = pair_masks(prediction, target, ignore)
    neighbours = check_connectivity(connectivity, as_image(truth, "target").ndim)
    sums = np.zeros(4, np.int64)
    patches = 0
    for window in windows(truth.shape, patch):
        if known is None or known[window].any():
            sums += _window_errors(found[window], truth[window], neighbours)
            patches += 1
    e0, e1, e2, e0_gt = (ratio(int(total), patches) for total in sums)
    return BettiErrors(e0, e1, e2, ratio(int(sums[0] + sums[1]), patches), e0_gt, patches)


def _window_errors(found: Mask, truth: Mask, neighbours: int) -> NDArray[np.int64]:
    """e0, e1, e2 and e0_gt of one window."""
    p, t = betti_numbers(found, neighbours), betti_numbers(truth, neighbours)
    kept = label_components(found & truth, neighbours)[1]
    return np.abs(np.array([p.b0 - t.b0, p.b1 - t.b1, p.b2 - t.b2, kept - t.b0], np.int64))
