"""Peak memory of a worker above its idle level, in bytes a voxel of its block.

For each blockwise stage a fresh process, with the environment that workers get, does what a worker
does: it imports everything, runs the stage on the tiny volume, and what it holds then is its idle
level. Then it runs the stage on every block of the volume, and the kernel keeps the high water mark
of each. The default volume is eight blocks, so every block has neighbours.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import machine
from chain import run_chain, run_start, scratch
from measuring import high_water_mark, reset_high_water_mark, resident, run_measured
from printing import print_table, save
from volumes import describe, kept_volume

TARGET = 24.0  # bytes a voxel of the block
VOLARA, WATERZ = 110.0, "7-64"


def measure_stage(stage: str, tiny: Path, run: Path, figures: Path) -> None:
    """Run one stage of two finished runs again, in this process, and write what it held."""
    import flows.launch  # noqa: F401  what a worker has loaded
    import workers.executors  # noqa: F401
    from pipeline.stages import STAGES
    from pipeline.stages.run import Run

    chosen = next(found for found in STAGES if found.name == stage)
    # A stage gives the same bytes when it is run again, so a finished run can be measured.
    small = Run(tiny)
    for block in chosen.grid(small):
        chosen.process(block, small)
    idle = resident()
    big, blocks = Run(run), []
    for block in chosen.grid(big):
        reset_high_water_mark()
        before = resident()
        chosen.process(block, big)
        peak = high_water_mark()
        blocks.append({"voxels": block.write.size, "peak": peak, "before": before})
    figures.write_text(json.dumps({"idle": idle, "blocks": blocks}))


def worker_environment() -> dict[str, str]:
    """What the executor sets for its workers: how malloc gives memory back decides the peak."""
    from workers import executors

    return {name: str(value) for name, value in executors._WORKER_ENVIRONMENT.items()}


def print_stages(found: dict[str, dict[str, Any]]) -> None:
    """The table: the block with the highest mark counts."""
    rows = []
    for stage, figures in found.items():
        idle = figures["idle"]
        top = max(figures["blocks"], key=lambda block: block["peak"])
        above = top["peak"] - idle
        first = figures["blocks"][0]
        mib = [value / 2**20 for value in (idle, top["peak"], above)]
        once, worst = (first["peak"] - idle) / first["voxels"], above / top["voxels"]
        rows.append([stage, len(figures["blocks"]), *mib, once, worst, worst / TARGET])
    header = ["stage", "blocks", "idle MiB", "peak MiB", "above MiB"]
    header += ["first block, B/voxel", "B/voxel", f"of {TARGET:g} (target)"]
    print_table("Peak memory of a worker above idle, a voxel of the block", header, rows)
    print(f"for comparison: volara {VOLARA:g} B/voxel, waterz {WATERZ} (design figures)\n")


def main() -> None:
    """Measure and print; with --child, measure one stage in this process."""
    if sys.argv[1:2] == ["--child"]:
        stage, *paths = sys.argv[2:]
        return measure_stage(stage, *map(Path, paths))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--size", type=int, default=512, help="edge of the volume, voxels")
    parser.add_argument("--block", type=int, nargs=3, default=(256, 256, 256))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="*", default=["fragments", "edges", "relabel"])
    given = parser.parse_args()
    machine.print_facts()
    path, shares = kept_volume(given.folder, (given.size,) * 3, given.seed)
    print(f"volume: {describe(shares)}")
    print(f"block {tuple(given.block)}\n", flush=True)
    found: dict[str, dict[str, Any]] = {}
    with scratch(given.folder, "memory") as folder:
        run_start(given.folder, folder / "tiny", None)
        run_chain(path, folder / "run", None, given.block)
        for stage in given.stages:
            figures = folder / f"{stage}.json"
            child = [sys.executable, __file__, "--child", stage]
            run_measured(
                [*child, folder / "tiny", folder / "run", figures],
                environment=worker_environment(),
            )
            found[stage] = json.loads(figures.read_text())
    print_stages(found)
    save(given.folder / "figures", f"worker_memory_{given.size}", found)
    return None


if __name__ == "__main__":
    main()
