"""Affinities of any size to measure on: thin curved tubes in the noise that a network leaves.

About 1 % of the voxels lie in tubes, some of which touch. Elsewhere the affinities are what a
sigmoid leaves: most 0, the others small, alike among neighbours; in 44 % of the voxels one of the
three is above 0, so no voxel can be skipped for being zero.

A voxel is a function of the seed, the volume's shape and its place, so boxes are made in any order
and never held together. The tubes alone are held: 40 bytes for each voxel of centre line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import machine
import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.geometry import Block, BlockGrid, Roi, Triple
from pipeline.storage.atomic import remove_tree
from pipeline.storage.volume import Volume

VERSION = 1  # of the voxels; part of the names of kept volumes
CHUNK = (64, 64, 64)
BOX = (128, 128, 128)
VOXEL_SIZE_NM = (400.0, 400.0, 400.0)
FOREGROUND = 0.01
LOW = 128  # the integer affinity that counts as foreground in the printed shares

_LENGTH = 512  # steps of a tube, one voxel each
_THINNEST, _THICKEST = 2.0, 4.0
_REACH = 5  # more than the largest radius
_KNOT = 24  # steps between the places where a tube may grow dim

# The noise: two octaves of smooth noise and white noise, cut so that 44 % of the voxels have some.
_COARSE, _FINE = 16, 4
_WEIGHTS = (0.40, 0.35, 0.25)
_CUT = 0.581
_STRONGEST = 60.0


@dataclass(frozen=True)
class Tubes:
    """The centre lines, a sample for each voxel of length; samples of a tube follow each other.

    Attributes:
        position: (n, 3) float64, z, y, x in voxels.
        radius: (n,) float64, voxels.
        tube: (n,) int32, from 1.
        strength: (n,) float64, affinity at the centre, less than 1 where the tube is dim.
    """

    position: NDArray[np.float64]
    radius: NDArray[np.float64]
    tube: NDArray[np.int32]
    strength: NDArray[np.float64]


@dataclass
class Shares:
    """What was written.

    Attributes:
        voxels: in all.
        foreground: voxels with an affinity of at least one half.
        above_zero: voxels with an affinity above 0.
        stored_bytes: of the chunks, compressed.
    """

    voxels: int = 0
    foreground: int = 0
    above_zero: int = 0
    stored_bytes: int = 0


def draw_tubes(shape: Triple, seed: int) -> Tubes:
    """Random curved tubes that fill 1 % of the volume; each sixth runs along the one before it."""
    rng = np.random.default_rng([seed, *shape])
    extent = np.array(shape, np.float64)
    area = np.pi * np.mean(np.linspace(_THINNEST, _THICKEST, 100) ** 2)
    # Tubes overlap a little, and the rim of a tube is lost where it is dim.
    wanted = 1.10 * FOREGROUND * extent.prod() / area
    tubes = max(1, round(wanted / min(_LENGTH, 2 * min(shape))))
    steps = max(2, round(wanted / tubes))
    position = _walk(rng, extent, tubes, steps)
    radius = rng.uniform(_THINNEST, _THICKEST, (tubes, 1)) * np.ones((1, steps))
    for follower in range(5, tubes, 6):
        _follow(rng, position, radius, follower)
    np.clip(position, 0, extent - 1, out=position)
    knots = rng.uniform(size=(tubes, steps // _KNOT + 2))
    at = np.arange(steps) / _KNOT
    quiet = np.stack([np.interp(at, np.arange(knots.shape[1]), row) for row in knots])
    strength = 1 - 0.6 * np.clip((0.25 - quiet) / 0.25, 0, 1)
    number = np.repeat(np.arange(1, tubes + 1, dtype=np.int32), steps)
    return Tubes(position.reshape(-1, 3), radius.ravel(), number, strength.ravel())


def _walk(
    rng: np.random.Generator, extent: NDArray[np.float64], tubes: int, steps: int
) -> NDArray[np.float64]:
    """(tubes, steps, 3): walks that turn slowly and bounce off the walls of the volume."""
    place = rng.uniform(0, extent - 1, (tubes, 3))
    heading = rng.normal(size=(tubes, 3))
    heading /= np.linalg.norm(heading, axis=1, keepdims=True)
    path = np.empty((tubes, steps, 3))
    for step in range(steps):
        path[:, step] = place
        heading += 0.12 * rng.normal(size=(tubes, 3))
        heading /= np.linalg.norm(heading, axis=1, keepdims=True)
        outside = (place + heading < 0) | (place + heading > extent - 1)
        heading[outside] *= -1
        place = np.clip(place + heading, 0, extent - 1)
    return path


def _follow(
    rng: np.random.Generator,
    position: NDArray[np.float64],
    radius: NDArray[np.float64],
    follower: int,
) -> None:
    """Lay a tube beside the one before it: they touch, part and touch again."""
    aside = rng.normal(size=3)
    aside /= np.linalg.norm(aside)
    steps = position.shape[1]
    gap = 1.5 + 2.5 * np.sin(np.arange(steps) / 30.0 + rng.uniform(0, 6))
    away = radius[follower] + radius[follower - 1] + gap
    position[follower] = position[follower - 1] + away[:, None] * aside


class Sampler:
    """Affinities of any box of one volume."""

    def __init__(self, shape: Triple, seed: int) -> None:
        self.shape = shape
        self.seed = np.uint64(seed)
        self.tubes = draw_tubes(shape, seed)
        # Samples in cells of a box, for finding those near a box without looking at all.
        cells = BlockGrid.over(shape, BOX).cells
        cell = (self.tubes.position // np.array(BOX)).astype(np.int64)
        flat = np.ravel_multi_index(tuple(cell.T), cells)
        self._order = np.argsort(flat, kind="stable")
        self._first = np.searchsorted(flat[self._order], np.arange(np.prod(cells) + 1))
        self._grid = BlockGrid.over(shape, BOX)

    def box(self, roi: Roi) -> NDArray[np.uint8]:
        """(3, z, y, x) uint8 affinities of `roi`; channel d joins a voxel to its predecessor."""
        near = self._near(roi)
        grown = tuple(n + 1 for n in roi.shape)  # with the predecessors
        owner, closeness = np.zeros(grown, np.int32), np.zeros(grown, np.float32)
        begin = np.array(roi.offset, np.int64) - 1
        tubes = self.tubes
        _draw(
            tubes.position[near], tubes.radius[near], tubes.tube[near], tubes.strength[near],
            begin, owner, closeness,
        )  # fmt: skip
        out = np.zeros((3, *roi.shape), np.uint8)
        _fill(owner, closeness, begin, self.seed, out)
        return out

    def _near(self, roi: Roi) -> NDArray[np.int64]:
        """The samples whose tube may reach `roi` or the plane before it, in their order."""
        reach = (_REACH + 1,) * 3
        around = roi.grow(reach)
        found = [
            self._order[self._first[block.index] : self._first[block.index + 1]]
            for block in self._grid.overlapping(around)
        ]
        near = np.sort(np.concatenate(found))
        position = self.tubes.position[near]
        inside = (position >= around.offset) & (position < around.end)
        return near[inside.all(axis=1)]


@njit(cache=True, nogil=True)
def _draw(
    position: np.ndarray,
    radius: np.ndarray,
    tube: np.ndarray,
    strength: np.ndarray,
    begin: np.ndarray,
    owner: np.ndarray,
    closeness: np.ndarray,
) -> None:
    """Give each voxel to the tube whose centre line is nearest, in radii.

    `closeness` becomes the affinity at the voxel: less towards the rim, less where the tube is dim.
    """
    best = np.full(owner.shape, np.float32(2.0), np.float32)
    lower, upper = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for k in range(radius.size):
        r = radius[k]
        for axis in range(3):
            lower[axis] = max(0, int(np.ceil(position[k, axis] - r)) - begin[axis])
            upper[axis] = min(
                owner.shape[axis], int(np.floor(position[k, axis] + r)) - begin[axis] + 1
            )
        for z in range(lower[0], upper[0]):
            dz = z + begin[0] - position[k, 0]
            for y in range(lower[1], upper[1]):
                dy = y + begin[1] - position[k, 1]
                for x in range(lower[2], upper[2]):
                    dx = x + begin[2] - position[k, 2]
                    away = np.float32((dz * dz + dy * dy + dx * dx) / (r * r))
                    if away <= 1 and away < best[z, y, x]:
                        best[z, y, x] = away
                        owner[z, y, x] = tube[k]
                        closeness[z, y, x] = strength[k] * (1 - 0.25 * away * away)


@njit(cache=True, nogil=True)
def mix_bits(value: np.uint64) -> np.uint64:
    """64 bits that look random, from 64 bits (the finaliser of splitmix64)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True)
def place_bits(seed: np.uint64, z: int, y: int, x: int) -> np.uint64:
    """64 random bits of a place."""
    place = (np.uint64(z) << np.uint64(42)) ^ (np.uint64(y) << np.uint64(21)) ^ np.uint64(x)
    return mix_bits(place + (seed + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


@njit(cache=True, nogil=True)
def smooth_row(seed: np.uint64, period: int, z: int, y: int, x0: int, out: np.ndarray) -> None:
    """Smooth noise in [0, 1) along a row: random at each `period`-th voxel, linear between."""
    unit = 1.0 / 2.0**64
    cz, fz = z // period, (z % period) / period
    cy, fy = y // period, (y % period) / period
    left, right = 0.0, 0.0
    for k in range(out.size):
        x = x0 + k
        cx, rest = x // period, x % period
        if k == 0 or rest == 0:
            for side in range(2):
                knot = 0.0
                for corner in range(4):
                    dz, dy = corner >> 1, corner & 1
                    weight = (fz if dz else 1 - fz) * (fy if dy else 1 - fy)
                    knot += weight * (place_bits(seed, cz + dz, cy + dy, cx + side) * unit)
                if side:
                    right = knot
                else:
                    left = knot
        out[k] = left + (right - left) * rest / period


@njit(cache=True, nogil=True)
def _fill(
    owner: np.ndarray, closeness: np.ndarray, begin: np.ndarray, seed: np.uint64, out: np.ndarray
) -> None:
    """The three affinities of each voxel; `owner` and `closeness` begin one voxel earlier."""
    _, depth, height, width = out.shape
    coarse, fine = np.empty(width), np.empty(width)
    for z in range(depth):
        for y in range(height):
            gz, gy, gx = begin[0] + 1 + z, begin[1] + 1 + y, begin[2] + 1
            smooth_row(seed + np.uint64(1), _COARSE, gz, gy, gx, coarse)
            smooth_row(seed + np.uint64(2), _FINE, gz, gy, gx, fine)
            for x in range(width):
                smooth = _WEIGHTS[0] * coarse[x] + _WEIGHTS[1] * fine[x]
                bits = place_bits(seed, gz, gy, gx + x)
                here = owner[z + 1, y + 1, x + 1]
                for axis in range(3):
                    pz, py, px = z + (axis != 0), y + (axis != 1), x + (axis != 2)
                    white = ((bits >> np.uint64(21 * axis)) & np.uint64(0x1FFFFF)) / 2097152.0
                    there = owner[pz, py, px]
                    if here == 0 and there == 0:
                        above = smooth + _WEIGHTS[2] * white - _CUT
                        if above > 0:
                            strength = above / (1 - _CUT)
                            out[axis, z, y, x] = np.uint8(
                                min(40.0, 1.0 + _STRONGEST * strength * strength)
                            )
                    elif here == there:
                        near = min(closeness[z + 1, y + 1, x + 1], closeness[pz, py, px])
                        out[axis, z, y, x] = np.uint8(255 * near * (1 - 0.04 * white) + 0.5)
                    elif here != 0 and there != 0:
                        out[axis, z, y, x] = np.uint8(30 + 80 * white)
                    else:
                        out[axis, z, y, x] = np.uint8(8 + 60 * white * white)
    for axis in range(3):
        if begin[axis] < 0:  # no predecessor on the volume's first plane
            if axis == 0:
                out[0, 0] = 0
            elif axis == 1:
                out[1, :, 0] = 0
            else:
                out[2, :, :, 0] = 0


def kept_volume(folder: Path, shape: Triple, seed: int = 0) -> tuple[Path, Shares]:
    """The affinities of (shape, seed) in `folder`, made there unless they lie there already."""
    name = f"affinities_{'x'.join(map(str, shape))}_seed{seed}_v{VERSION}"
    path, note = folder / f"{name}.zarr", folder / f"{name}.json"
    if not (path.exists() and note.exists()):
        remove_tree(path)
        shares = make_volume(path, shape, seed)
        note.write_text(json.dumps(asdict(shares)))
    return path, Shares(**json.loads(note.read_text()))


def make_volume(path: Path, shape: Triple, seed: int = 0) -> Shares:
    """As `write_volume`, but `path` is there only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.stem + ".unfinished.zarr")
    remove_tree(unfinished)
    shares = write_volume(unfinished, shape, seed)
    unfinished.rename(path)
    return shares


def write_volume(path: Path, shape: Triple, seed: int = 0) -> Shares:
    """Write affinities (3, z, y, x) uint8 box by box, one thread for each core."""
    volume = Volume.create(
        path, shape, np.uint8, chunks=CHUNK, voxel_size_nm=VOXEL_SIZE_NM, channels=3,
        compressor="lz4",
    )  # fmt: skip
    sampler = Sampler(shape, seed)
    total = Shares(voxels=volume.roi.size)

    def write(block: Block) -> tuple[int, int]:
        box = sampler.box(block.write)
        volume.write(block.write, box)
        strongest = box.max(axis=0)
        return int((strongest >= LOW).sum()), int(np.count_nonzero(strongest))

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for foreground, above_zero in threads.map(write, BlockGrid.over(shape, BOX)):
            total.foreground += foreground
            total.above_zero += above_zero
    total.stored_bytes = sum(file.stat().st_size for file in _chunk_files(path))
    return total


def _chunk_files(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("c/**/*") if file.is_file())


def describe(shares: Shares) -> str:
    """One line on a volume."""
    voxels = shares.voxels
    return (
        f"{voxels:,} voxels, {100 * shares.foreground / voxels:.2f} % foreground, "
        f"{100 * shares.above_zero / voxels:.1f} % with an affinity above 0, "
        f"{shares.stored_bytes / voxels:.2f} bytes a voxel stored (of 3)"
    )


def main() -> None:
    """Make one volume."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="the zarr to make; must not exist")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("Z", "Y", "X"), default=(512,) * 3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.out.exists():
        sys.exit(f"{given.out} exists already")
    machine.print_facts()
    began, used = time.monotonic(), time.process_time()
    shares = make_volume(given.out, tuple(given.shape), given.seed)
    print(describe(shares))
    print(f"{time.monotonic() - began:.1f} s, {time.process_time() - used:.1f} s of CPU")


if __name__ == "__main__":
    main()
