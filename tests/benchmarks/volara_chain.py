"""volara 1.0.5 on the same volume: fragments, their affinities, a lookup, relabelling.

It needs volara alone, in an environment of its own (README.md). Everything runs in this process, so
its processor time is that of the work; imports are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from funlib.geometry import Coordinate, Roi
from funlib.persistence import open_ds
from volara.blockwise import AffAgglom, ExtractFrags, GraphMWS, Relabel
from volara.datasets import Affs, Labels
from volara.dbs import SQLite
from volara.lut import LUT

# Ours: channel d joins a voxel to its predecessor along axis d.
PREDECESSORS = [Coordinate(-1, 0, 0), Coordinate(0, -1, 0), Coordinate(0, 0, -1)]


def tasks(affinities: Path, low: float, block: Coordinate, context: Coordinate) -> list:
    """The four tasks of a segmentation, with low as the border between merge and split."""
    found = Affs(
        store=affinities / "0",
        neighborhood=PREDECESSORS,
        voxel_size=Coordinate(1, 1, 1),
        offset=Coordinate(0, 0, 0),
        axis_names=["c^", "z", "y", "x"],
        units=["", "", ""],
    )
    graph = SQLite(path=Path("fragments.db"), edge_attrs={"affinity": "float"})
    fragments = Labels(store=Path("labels.zarr/fragments"))
    segments = Labels(store=Path("labels.zarr/segments"))
    lut = LUT(path=Path("lut.npz"))
    whole = Roi((0, 0, 0), found.array("r").roi.shape)
    return [
        ExtractFrags(
            db=graph, affs_data=found, frags_data=fragments, block_size=block, context=context,
            bias=[-low] * 3, filter_fragments=low / 2,
        ),
        AffAgglom(
            db=graph, affs_data=found, frags_data=fragments, block_size=block, context=context,
            scores={"affinity": PREDECESSORS},
        ),
        GraphMWS(db=graph, lut=lut, weights={"affinity": (1, -low)}, roi=whole),
        Relabel(lut=lut, frags_data=fragments, seg_data=segments, block_size=block),
    ]  # fmt: skip


def main() -> None:
    """Run the four tasks one after the other and print what each cost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("affinities", type=Path, help="zarr made by volumes.py")
    parser.add_argument("out", type=Path, help="folder for its output; emptied first")
    parser.add_argument("--low", type=float, default=0.5)
    parser.add_argument("--block", type=int, nargs=3, default=(128, 128, 128))
    parser.add_argument("--context", type=int, nargs=3, default=(8, 8, 8))
    given = parser.parse_args()
    affinities = given.affinities.resolve()
    shutil.rmtree(given.out, ignore_errors=True)
    given.out.mkdir(parents=True)
    os.chdir(given.out)  # its logs and marks go to the current folder
    shape = json.loads((affinities / "0" / "zarr.json").read_text())["shape"][1:]
    voxels = shape[0] * shape[1] * shape[2]
    cpu: dict[str, float] = {}
    wall: dict[str, float] = {}
    for task in tasks(affinities, given.low, Coordinate(given.block), Coordinate(given.context)):
        began, used = time.monotonic(), time.process_time()
        if not task.run_blockwise(multiprocessing=False):
            sys.exit(f"{task.task_type} failed")
        cpu[task.task_type] = time.process_time() - used
        wall[task.task_type] = time.monotonic() - began
    fragments, segments = count("labels.zarr/fragments"), count("labels.zarr/segments")
    print(f"\nvolara {version('volara')}, {voxels:,} voxels, {fragments:,} fragments, {segments:,}")
    print(f"segments, block {tuple(given.block)}, context {tuple(given.context)}")
    for name, seconds in [*cpu.items(), ("all", sum(cpu.values()))]:
        whole = wall.get(name, sum(wall.values()))
        print(
            f"  {name:14} {seconds:8.1f} s of CPU {whole:8.1f} s wall "
            f"{seconds / voxels * 1e9:8.0f} ns/voxel"
        )
    found = {"version": version("volara"), "voxels": voxels, "cpu": cpu, "wall": wall}
    found |= {"fragments": fragments, "segments": segments}
    Path("figures.json").write_text(json.dumps(found))


def count(labels: str) -> int:
    """Different labels of a volume, without background."""
    ids = np.unique(open_ds(Path(labels))[:])
    return int(np.count_nonzero(ids))


if __name__ == "__main__":
    main()
