"""How the chain grows with the volume: time a voxel should stay, memory of a worker too.

Each size is generated blockwise and segmented by `axonloom segment --workers 2`. Processor time is
that of all processes; memory is the high water mark of each worker and of the driver.
"""

from __future__ import annotations

import csv
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine
import matplotlib
from chain import TINY_VOXELS, ChainRun, common_options, run_chain, run_start, scratch
from matplotlib import pyplot as plt
from printing import print_table, save
from volumes import describe, kept_volume

MIB = 2**20


def measure_sizes(
    folder: Path, sizes: list[int], workers: int, repeat: int, block: Any, seed: int
) -> tuple[ChainRun, dict[int, list[ChainRun]]]:
    """The runs of each size, and the cheapest start (the tiny volume), all in turns."""
    starts: list[ChainRun] = []
    runs: dict[int, list[ChainRun]] = {size: [] for size in sizes}
    with scratch(folder, "sizes") as out:
        run_start(folder, out / "tiny", None)  # fills numba's cache
        for size in sizes:
            path, shares = kept_volume(folder, (size,) * 3, seed)
            print(f"{size}^3: {describe(shares)}", flush=True)
            for _ in range(repeat):
                starts.append(run_start(folder, out / "tiny", workers))
                runs[size].append(run_chain(path, out / "run", workers, block))
    print()
    return min(starts, key=lambda run: run.usage.cpu), runs


def figures_of(start: ChainRun, runs: dict[int, list[ChainRun]]) -> list[dict[str, Any]]:
    """One row for each size; times are the least of its runs, peaks the greatest."""
    rows = []
    for size, several in runs.items():
        best = min(several, key=lambda run: run.usage.cpu)
        wall = min(run.usage.wall for run in several)
        voxels = size**3
        without = best.usage.cpu - start.usage.cpu
        workers = [peak for run in several for peak in run.usage.worker_peaks]
        rows.append(
            {
                "size": size,
                "voxels": voxels,
                "cpu_s": best.usage.cpu,
                "cpu_without_start_s": without,
                "cpu_ns_per_voxel": best.usage.cpu / voxels * 1e9,
                "cpu_without_start_ns_per_voxel": without / (voxels - TINY_VOXELS) * 1e9,
                "wall_s": wall,
                "wall_ns_per_voxel": wall / voxels * 1e9,
                "driver_mib": max(run.usage.driver_peak for run in several) / MIB,
                "worker_mib": max(workers, default=0) / MIB,
                **{f"{name}_s": seconds for name, seconds in best.stages.items()},
            }
        )
    return rows


def print_sizes(start: ChainRun, rows: list[dict[str, Any]], stages: list[str]) -> None:
    """Two tables: the whole, and the stages."""
    columns = {
        "size": "size", "cpu_s": "CPU s", "cpu_without_start_s": "without start",
        "cpu_ns_per_voxel": "CPU ns/voxel", "cpu_without_start_ns_per_voxel": "without start",
        "wall_s": "wall s", "wall_ns_per_voxel": "wall ns/voxel", "driver_mib": "driver MiB",
        "worker_mib": "worker MiB",
    }  # fmt: skip
    first: list[object] = ["start", start.usage.cpu, 0, None, None, start.usage.wall, None]
    first += [start.usage.driver_peak / MIB, max(start.usage.worker_peaks, default=0) / MIB]
    table = [first, *([f"{row['size']}^3", *[row[c] for c in list(columns)[1:]]] for row in rows)]
    print_table("Growth with the volume", list(columns.values()), table)
    table = [
        [f"{row['size']}^3", *(row[f"{name}_s"] / row["voxels"] * 1e9 for name in stages)]
        for row in rows
    ]
    print_table("Seconds inside blocks as ns/voxel (wall)", ["size", *stages], table)


def draw(rows: list[dict[str, Any]], stages: list[str], path: Path) -> None:
    """Time against voxels with a line of slope 1, and memory against voxels."""
    voxels = [row["voxels"] for row in rows]
    figure, (times, memory) = plt.subplots(1, 2, figsize=(12, 5))
    times.loglog(voxels, [row["cpu_s"] for row in rows], "o-", label="CPU, all processes")
    # Of the smallest volume nothing is left beyond the start, within its noise: no point there.
    without = [s if (s := row["cpu_without_start_s"]) > 0 else math.nan for row in rows]
    times.loglog(voxels, without, "o-", label="CPU without start")
    times.loglog(voxels, [row["wall_s"] for row in rows], "s-", label="wall")
    for name in stages:
        times.loglog(voxels, [row[f"{name}_s"] for row in rows], ".--", alpha=0.6, label=name)
    slope = [without[-1] * v / voxels[-1] for v in voxels]
    times.loglog(voxels, slope, "k:", label="slope 1")
    times.set(xlabel="voxels", ylabel="seconds", title="time")
    times.legend(fontsize=8)
    memory.semilogx(voxels, [row["worker_mib"] for row in rows], "o-", label="largest worker")
    memory.semilogx(voxels, [row["driver_mib"] for row in rows], "s-", label="driver")
    memory.set(xlabel="voxels", ylabel="MiB", title="peak memory of a process", ylim=(0, None))
    memory.legend()
    for axes in (times, memory):
        axes.grid(True, which="both", alpha=0.2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """The rows for a spreadsheet."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Measure, print, write CSV, JSON and the picture."""
    parser = common_options(__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=2, help="runs of each size")
    given = parser.parse_args()
    if min(given.sizes) < 1:
        sys.exit("--sizes: voxels along an edge, at least 1")
    matplotlib.use("Agg")
    machine.print_facts()
    sizes = sorted(set(given.sizes))
    start, runs = measure_sizes(
        given.folder, sizes, given.workers, given.repeat, given.block, given.seed
    )
    rows = figures_of(start, runs)
    stages = list(runs[sizes[-1]][0].stages)
    print_sizes(start, rows, stages)
    folder = given.folder / "figures"
    save(folder, "size_scaling", {"start": asdict(start), "rows": rows, "facts": machine.facts()})
    write_csv(rows, folder / "size_scaling.csv")
    draw(rows, stages, folder / "size_scaling.png")
    print(f"picture: {folder / 'size_scaling.png'}")


if __name__ == "__main__":
    main()
