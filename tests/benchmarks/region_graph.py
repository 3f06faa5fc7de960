"""Agglomeration of a large region graph on one core: seconds of processor and peak memory.

The graph is a lattice of fragments, each touching its six neighbours; by default 272^3, which are
20 million fragments and 60 million edges. Fragments know their place, scores change smoothly in
space, and walls of low scores bound the components ("neurons"); `--giant` leaves the walls out.

Rows are a function of the seed and the place, so any box of the lattice can give its own: the boxes
of a grid add up to the whole table, and none of them needs more memory than its rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
from chain import scratch
from measuring import high_water_mark, reset_high_water_mark, resident, run_measured
from numba import njit
from numpy.typing import NDArray
from printing import print_table, save
from volumes import mix_bits, place_bits, smooth_row

from pipeline.arrays.agglomerate import agglomerate, fragment_to_segment
from pipeline.arrays.edges import EdgeTable
from pipeline.geometry import Roi, Triple

TARGET_SECONDS, TARGET_BYTES = 120.0, 8e9
VOLARA_MICROSECONDS = "12-20"  # an edge, for writing and reading the graph alone
PITCH = 16  # voxels of the volume between two fragments
CELL = 24  # fragments along the edge of a neuron
_SMOOTH = 8  # fragments over which scores change


@dataclass(frozen=True)
class Lattice:
    """A region graph that is never held whole.

    Attributes:
        shape: fragments along z, y, x.
        seed: other scores and other neurons.
        giant: no walls between neurons: one component holds nearly everything.
    """

    shape: Triple
    seed: int = 0
    giant: bool = False

    @property
    def roi(self) -> Roi:
        """The whole lattice."""
        return Roi((0, 0, 0), self.shape)

    @property
    def volume_shape(self) -> Triple:
        """Voxels of the volume that the fragments would fill."""
        z, y, x = self.shape
        return z * PITCH, y * PITCH, x * PITCH

    def ids(self, box: Roi) -> NDArray[np.uint64]:
        """(n,) uint64, the fragments of a box in C order, increasing."""
        axes = [np.arange(o, e, dtype=np.uint64) for o, e in zip(box.offset, box.end, strict=True)]
        z, y, x = np.meshgrid(*axes, indexing="ij")
        return self._id(z, y, x).ravel()

    def _id(
        self, z: NDArray[np.uint64], y: NDArray[np.uint64], x: NDArray[np.uint64]
    ) -> NDArray[np.uint64]:
        # 1 + the smallest linear voxel index, as of every fragment of the project.
        _, height, width = (np.uint64(n) for n in self.volume_shape)
        pitch, one = np.uint64(PITCH), np.uint64(1)
        found: NDArray[np.uint64] = ((z * pitch * height + y * pitch) * width + x * pitch) + one
        return found

    def positions(self, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
        """(n, 3) int64, place in the lattice, z, y, x, of each id."""
        places = np.unravel_index((ids - np.uint64(1)).astype(np.int64), self.volume_shape)
        return np.stack(places, axis=1) // PITCH

    def rows(self, box: Roi) -> EdgeTable:
        """The edges that a box owns, canonical: those to the predecessors of its fragments.

        Memory: 32 bytes a row, about three rows a fragment.
        """
        owned = 0
        for axis in range(3):
            across = box.size // box.shape[axis]
            owned += across * (box.shape[axis] - (box.offset[axis] == 0))
        columns = np.empty((4, owned), np.uint64)
        _fill_rows(
            np.array(self.shape, np.int64), np.array(box.offset, np.int64),
            np.array(box.end, np.int64), np.uint64(self.seed), self.giant, columns,
        )  # fmt: skip
        return EdgeTable(*columns)


def lattice(shape: Triple, seed: int = 0, *, giant: bool = False) -> tuple[EdgeTable, NDArray]:
    """A whole region graph at once.

    Args:
        shape: fragments along z, y, x.
        seed: of the scores.
        giant: see `Lattice`.

    Returns:
        The edge table, and (n, 3) int64 places in the lattice of its fragments, by increasing id.
        `Lattice` gives the same a box at a time.
    """
    graph = Lattice(shape, seed, giant)
    return graph.rows(graph.roi), graph.positions(graph.ids(graph.roi))


@njit(cache=True, nogil=True)
def _fill_rows(
    shape: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    seed: np.uint64,
    giant: bool,
    columns: np.ndarray,
) -> None:
    """Rows by increasing predecessor, then fragment: along x, then y, then z."""
    at = 0
    width = end[2] - begin[2] + 1
    neuron = np.zeros((2, 2, width + 1), np.uint64)  # of this place and its successors
    smooth = np.empty(width)
    step = np.array([PITCH * shape[1] * PITCH * shape[2] * PITCH, PITCH * shape[2] * PITCH, PITCH])
    for z in range(max(0, begin[0] - 1), end[0]):
        for y in range(max(0, begin[1] - 1), end[1]):
            x0 = max(0, begin[2] - 1)
            if not giant:
                for dz in range(2):
                    for dy in range(2):
                        for k in range(end[2] - x0):
                            neuron[dz, dy, k] = _neuron(seed, z + dz, y + dy, x0 + k)
            smooth_row(seed, _SMOOTH, z, y, x0, smooth)
            inside_z, inside_y = z >= begin[0], y >= begin[1]
            for x in range(x0, end[2]):
                k = x - x0
                inside_x = x >= begin[2]
                here = np.uint64(1 + z * step[0] + y * step[1] + x * step[2])
                place = place_bits(seed + np.uint64(7), z, y, x)
                for axis in (2, 1, 0):
                    dz, dy, dx = axis == 0, axis == 1, axis == 2
                    owned = (
                        (inside_z or dz) and (inside_y or dy) and (inside_x or dx)
                        and z + dz < end[0] and y + dy < end[1] and x + dx < end[2]
                    )  # fmt: skip
                    if not owned:
                        continue
                    bits = mix_bits(place + np.uint64(axis + 1))
                    count = np.uint64(20) + (bits >> np.uint64(32)) % np.uint64(200)
                    jitter = (bits & np.uint64(0xFFFFFF)) / 16777216.0
                    score = 0.30 + 0.55 * smooth[k] + 0.15 * jitter
                    if not giant and neuron[0, 0, k] != neuron[int(dz), int(dy), k + dx]:
                        score = 0.10 + 0.30 * jitter
                    columns[0, at] = here
                    columns[1, at] = here + np.uint64(step[axis])
                    columns[2, at] = np.uint64(score * 255 * count + 0.5)
                    columns[3, at] = count
                    at += 1


@njit(cache=True, nogil=True)
def _neuron(seed: np.uint64, z: int, y: int, x: int) -> np.uint64:
    """The neuron of a place: that of the nearest centre, one centre to a cell."""
    best, found = np.inf, np.uint64(0)
    unit = 1.0 / 2097152.0
    for cz in range(z // CELL - 1, z // CELL + 2):
        for cy in range(y // CELL - 1, y // CELL + 2):
            for cx in range(x // CELL - 1, x // CELL + 2):
                bits = place_bits(seed + np.uint64(3), cz + 1, cy + 1, cx + 1)
                dz = (cz + (bits & np.uint64(0x1FFFFF)) * unit) * CELL - z
                dy = (cy + ((bits >> np.uint64(21)) & np.uint64(0x1FFFFF)) * unit) * CELL - y
                dx = (cx + ((bits >> np.uint64(42)) & np.uint64(0x1FFFFF)) * unit) * CELL - x
                away = dz * dz + dy * dy + dx * dx
                if away < best:
                    best, found = away, bits
    return found


def measure(shape: Triple, seed: int, giant: bool, threshold: float, figures: Path) -> None:
    """Agglomerate in this process and write what it took."""
    warm, _ = lattice((4, 5, 6), seed, giant=giant)
    fragment_to_segment(agglomerate(warm, threshold), threshold)
    bare, began = resident(), time.process_time()
    graph = Lattice(shape, seed, giant)
    table = graph.rows(graph.roi)
    made = time.process_time() - began
    held = resident()
    reset_high_water_mark()
    began, clock = time.process_time(), time.monotonic()
    history = agglomerate(table, threshold)
    merged = time.process_time() - began
    _, segments = fragment_to_segment(history, threshold)
    found = {
        "fragments": graph.roi.size,
        "edges": len(table),
        "made": made,
        "agglomerate": merged,
        "lookup": time.process_time() - began - merged,
        "wall": time.monotonic() - clock,
        "bare": bare,
        "held": held,
        "peak": high_water_mark(),
        "passing": float(np.mean(table.affinity_sum / table.face_count / 255 >= threshold)),
        "merges": len(history),
        "largest": 1 + int(np.unique(segments, return_counts=True)[1].max(initial=0)),
    }
    figures.write_text(json.dumps(found))


def print_figures(found: dict[str, Any], threshold: float) -> None:
    """The table of one run."""
    segments = found["fragments"] - found["merges"]
    print(
        f"{found['fragments']:,} fragments, {found['edges']:,} edges, "
        f"{100 * found['passing']:.0f} % of them at least {threshold}; {found['merges']:,} merges, "
        f"{segments:,} segments, the largest of {found['largest']:,} fragments\n"
    )
    # The target is for 60 million edges; a smaller graph may use its share.
    share = found["edges"] / 6e7
    seconds = found["agglomerate"] + found["lookup"]
    above = found["peak"] - found["bare"]
    rows: list[list[object]] = [
        ["making the table, s of CPU (not counted)", found["made"], None],
        ["agglomerate, s of CPU", found["agglomerate"], None],
        ["lookup, s of CPU", found["lookup"], None],
        ["both", seconds, seconds / (TARGET_SECONDS * share)],
        ["microseconds an edge", seconds / found["edges"] * 1e6, None],
        ["wall of both, s", found["wall"], None],
        ["peak of the process, GB", found["peak"] / 1e9, None],
        ["of it the table and the work, GB", above / 1e9, above / (TARGET_BYTES * share)],
        ["the table alone, bytes an edge", 32, None],
        ["the work, bytes an edge", (found["peak"] - found["held"]) / found["edges"], None],
    ]
    print_table("Agglomeration on one core", ["", "", "of the target's share"], rows)
    print(
        f"target {TARGET_SECONDS:g} s and {TARGET_BYTES / 1e9:g} GB for 60 million edges; "
        f"volara {VOLARA_MICROSECONDS} us an edge for graph I/O alone\n"
    )


def main() -> None:
    """Measure in a process of its own and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--shape", type=int, nargs=3, default=(272, 272, 272), help="fragments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--giant", action="store_true", help="one giant component")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape = tuple(given.shape)
    if given.child:
        measure(shape, given.seed, given.giant, given.threshold, given.child)
        return
    machine.print_facts()
    with scratch(given.folder, "graph") as folder:
        folder.mkdir(parents=True)
        figures = folder / "figures.json"
        run_measured([sys.executable, *sys.argv, "--child", figures])
        found = json.loads(figures.read_text())
    print_figures(found, given.threshold)
    name = f"region_graph_{'x'.join(map(str, shape))}{'_giant' if given.giant else ''}"
    save(given.folder / "figures", name, found)


if __name__ == "__main__":
    main()
