"""What skeletons cost: beside kimimaro alone, by size, by workers, and the memory of a long neuron.

1. Volumes of winding tubes, 1 % foreground, of growing size: seconds inside blocks of tracing and
   joining, as ns a voxel; beside it kimimaro alone on the same blocks, in one process.
2. The largest of them with one and with two workers, start of the workers included.
3. One neuron that winds through 10,648 blocks: peak memory of each worker. Only the stages that
   trace and join are run: what is written afterwards for viewers is not part of the question.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
from chain import scratch, stage_counts, stage_seconds
from measuring import Usage, run_measured
from numpy.typing import NDArray
from printing import print_table, save

from flows.runs import prepare, run_stages
from pipeline.arrays.skeleton_settings import SkeletonSettings, const_nm
from pipeline.config import parse_config
from pipeline.geometry import BlockGrid, Triple
from pipeline.storage.atomic import remove_tree
from pipeline.storage.volume import Volume

VERSION = 2  # of the drawn data; part of the names of what is kept
VOXEL_SIZE_NM = (500.0, 500.0, 500.0)
STAGES = ("skeletonize", "skeleton_index", "join")
FOREGROUND = 0.01
VOXELS_A_NODE = 10.8  # that a node of a tube adds; measured
NODES = 5_000
BALL = [
    (z, y, x)
    for z in range(-1, 2)
    for y in range(-1, 2)
    for x in range(-1, 2)
    if z * z + y * y + x * x <= 2
]
SIDE = 22  # blocks of the neuron's volume along each axis
BLOCK = 64
TARGET, SCALING_TARGET = 80.0, 1.7


def kept_tubes(folder: Path, size: int, seed: int) -> Path:
    """Labels of size^3 with 1 % foreground, made once."""
    from skeleton_metrics import draw_neurons

    path = folder / f"tubes_{size}_seed{seed}_v{VERSION}.zarr"
    if not path.exists():
        shape = (size, size, size)
        every = round(FOREGROUND * size**3 / VOXELS_A_NODE)
        neurons = max(2, every // NODES)
        skeletons, _ = draw_neurons(shape, neurons, every // neurons, seed)
        at = np.concatenate([np.floor(s.nodes).astype(np.int64) for s in skeletons])
        ids = np.repeat(np.arange(1, neurons + 1, dtype=np.uint64), every // neurons)
        last = np.asarray(shape) - 1
        voxels = np.concatenate([np.clip(at + np.array(step), 0, last) for step in BALL])
        _write(path, shape, voxels, np.tile(ids, len(BALL)))
    return path


def kept_neuron(folder: Path) -> Path:
    """One neuron through all of 22^3 blocks of 64^3, made once: a path that turns at every face."""
    path = folder / f"long_neuron_v{VERSION}.zarr"
    if not path.exists():
        corners = [
            (z, y if z % 2 == 0 else SIDE - 1 - y, x if (y + z * SIDE) % 2 == 0 else SIDE - 1 - x)
            for z in range(SIDE)
            for y in range(SIDE)
            for x in range(SIDE)
        ]
        rng = np.random.default_rng(0)
        stops = np.array(corners) * BLOCK + rng.uniform(8, BLOCK - 8, (len(corners), 3))
        steps = np.linspace(0, 1, 2 * BLOCK, endpoint=False)[:, None, None]
        line = (stops[:-1] + (stops[1:] - stops[:-1]) * steps).reshape(-1, 3)
        at = np.unique(np.floor(line).astype(np.int64), axis=0)
        voxels = np.unique(np.concatenate([at + np.array(step) for step in BALL]), axis=0)
        extent = SIDE * BLOCK
        _write(path, (extent,) * 3, voxels, np.full(len(voxels), 7, np.uint64))
    return path


def _write(path: Path, shape: Triple, voxels: NDArray[np.int64], ids: NDArray[np.uint64]) -> None:
    from skeleton_metrics import write_labels

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished.zarr")
    remove_tree(unfinished)
    write_labels(unfinished, shape, voxels, ids, VOXEL_SIZE_NM)
    unfinished.rename(path)


def trace(segments: Path, out: Path, workers: int, block: int) -> None:
    """Run the stages that trace and join, in this process (0) or on local workers."""
    execution: dict[str, Any] = {"kind": "serial"}
    if workers:
        execution = {"kind": "local", "workers": workers}
    config = parse_config(
        {
            "run_dir": out,
            "input": {"segments": segments.resolve()},
            "skeletonize": {"block": [block] * 3},
            "execution": execution,
        }
    )
    run, stages = prepare(config, only=STAGES)
    run_stages(run, stages)


def traced(segments: Path, out: Path, workers: int, block: int = 128) -> Usage:
    """The same in a process of its own, measured."""
    remove_tree(out)
    options = ["--trace", segments, "--out", out, "--workers", workers, "--block", block]
    return run_measured([sys.executable, __file__, *options])


def kimimaro_alone(segments: Path, block: int) -> float:
    """Seconds of processor of kimimaro on the blocks of a volume, faces and reading left out."""
    import kimimaro  # half a second, which the runs that are measured do without

    volume, settings = Volume.open(segments), SkeletonSettings()
    spent = 0.0
    for box in BlockGrid.over(volume.shape, (block,) * 3):
        labels = volume.read(box.write)
        began = time.process_time()
        kimimaro.skeletonize(
            labels.T,
            teasar_params={
                "scale": settings.scale,
                "const": const_nm(settings, VOXEL_SIZE_NM),
                "pdrf_scale": settings.centring_weight,
                "pdrf_exponent": settings.centring_exponent,
                "soma_detection_threshold": settings.soma_detection(VOXEL_SIZE_NM),
                "soma_acceptance_threshold": settings.soma_acceptance(VOXEL_SIZE_NM),
                "soma_invalidation_scale": settings.soma_scale,
                "soma_invalidation_const": settings.soma_const_nm,
            },
            anisotropy=VOXEL_SIZE_NM,
            dust_threshold=0,
            fix_borders=True,
            progress=False,
            parallel=1,
        )
        spent += time.process_time() - began
    return spent


def measure_sizes(folder: Path, sizes: list[int], alone: int) -> list[dict[str, Any]]:
    """One row a size, traced in one process; processor time, less that of a tiny volume.

    What is left is divided among the stages as the seconds inside their blocks are.
    """
    start = _start(folder)
    rows = []
    for size in sizes:
        path = kept_tubes(folder, size, 0)
        with scratch(folder, "skeletons") as out:
            usage = traced(path, out / "run", 0)
            seconds, counts = stage_seconds(out / "run"), stage_counts(out / "run")
        voxels = size**3
        beside = kimimaro_alone(path, 128) if size <= alone else None
        inside = sum(seconds.get(name, 0.0) for name in STAGES)
        spent = usage.cpu - start
        rows.append(
            {
                "size": f"{size}^3",
                "foreground_pct": 100 * _foreground(path) if size <= alone else None,
                **{
                    f"{name}_ns": 1e9 * spent * seconds.get(name, 0.0) / inside / voxels
                    for name in ("skeletonize", "join")
                },
                "all_ns": 1e9 * spent / voxels,
                "kimimaro_ns": 1e9 * beside / voxels if beside is not None else None,
                "ratio": spent / beside if beside else None,
                "peak_gib": usage.driver_peak / 2**30,
                "segments": int(counts.get("join.skeletons", 0)),
            }
        )
    return rows


def _start(folder: Path) -> float:
    """Seconds of processor of the same on a tiny volume, everything compiled before."""
    path = kept_tubes(folder, 48, 0)
    spent = []
    for _ in range(3):
        with scratch(folder, "skeletons") as out:
            spent.append(traced(path, out / "run", 0).cpu)
    return min(spent)


def _foreground(path: Path) -> float:
    volume = Volume.open(path)
    return float((volume.read(volume.roi) != 0).mean())


def measure_workers(folder: Path, size: int, repeats: int) -> list[dict[str, Any]]:
    """Wall time of the whole command with one worker and two, in turns; the least counts."""
    path = kept_tubes(folder, size, 0)
    walls: dict[int, list[float]] = {1: [], 2: []}
    peaks: dict[int, int] = {}
    for _ in range(repeats):
        for workers in walls:
            with scratch(folder, "skeletons") as out:
                usage = traced(path, out / "run", workers)
            walls[workers].append(usage.wall)
            peaks[workers] = max([peaks.get(workers, 0), *usage.worker_peaks])
    return [
        {
            "workers": workers,
            "wall_s": min(walls[workers]),
            "speed": min(walls[1]) / min(walls[workers]),
            "worker_peak_gib": peaks[workers] / 2**30,
        }
        for workers in walls
    ]


def measure_neuron(folder: Path) -> dict[str, Any]:
    """The long neuron on two workers."""
    path = kept_neuron(folder)
    with scratch(folder, "skeletons") as out:
        usage = traced(path, out / "run", 2, BLOCK)
        counts = stage_counts(out / "run")
    return {
        "blocks": SIDE**3,
        "cable_m": counts["join.cable_out_nm"] / 1e9,
        "pieces_nodes": int(counts["skeletonize.nodes"]),
        "seams": int(counts["join.welded"]),
        "skeletons": int(counts["join.skeletons"]),
        "wall_s": usage.wall,
        "worker_peaks_gib": ", ".join(f"{peak / 2**30:.2f}" for peak in usage.worker_peaks),
        "driver_peak_gib": usage.driver_peak / 2**30,
    }


def main() -> None:
    """Measure what was asked for, print tables, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--alone", type=int, default=512, help="largest size for kimimaro alone")
    parser.add_argument("--repeats", type=int, default=2)
    choices = ("sizes", "workers", "neuron")
    parser.add_argument("--only", nargs="+", choices=choices, default=choices)
    parser.add_argument("--trace", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--block", type=int, default=128, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trace:
        trace(options.trace, options.out, options.workers, options.block)
        return
    machine.print_facts()
    figures: dict[str, Any] = {}
    if "sizes" in options.only:
        figures["sizes"] = measure_sizes(options.folder, options.sizes, options.alone)
        _print(f"One process; target {TARGET:.0f} ns/voxel with joins", figures["sizes"])
    if "workers" in options.only:
        figures["workers"] = measure_workers(options.folder, max(options.sizes), options.repeats)
        _print(f"{max(options.sizes)}^3; target {SCALING_TARGET} times", figures["workers"])
    if "neuron" in options.only:
        figures["neuron"] = [measure_neuron(options.folder)]
        _print("One neuron through 10,648 blocks, two workers", figures["neuron"])
    save(options.folder / "figures", "skeleton_speed", figures)


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    print_table(title, list(rows[0]), [list(row.values()) for row in rows])


if __name__ == "__main__":
    main()
