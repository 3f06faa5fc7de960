"""The floor under the chain: reading its affinities and writing its labels, and nothing else."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.geometry import BlockGrid
from pipeline.storage.volume import Volume

_BOX = (256, 256, 256)
_COPIED_BYTES = 2**28


def _cpu_of(work: Callable[[], object]) -> float:
    """Seconds of processor, of all threads of this process."""
    used = time.process_time()
    work()
    return time.process_time() - used


def copy_bytes_per_second() -> float:
    """Bytes that one core copies in a second, the best of five."""
    source = np.ones(_COPIED_BYTES, np.uint8)
    target = np.empty_like(source)
    target[:] = 0  # touch the pages before the clock runs
    return _COPIED_BYTES / min(_cpu_of(lambda: np.copyto(target, source)) for _ in range(5))


def read_cost(path: Path) -> float:
    """Seconds of processor to read a volume once, in boxes of whole chunks."""
    volume = Volume.open(path)
    grid = BlockGrid.over(volume.shape, _BOX)
    volume.read(grid[0].write)  # open it before the clock runs
    return sum(_cpu_of(lambda roi=block.write: volume.read(roi)) for block in grid)


def write_cost(path: Path, out: Path) -> float:
    """Seconds of processor to write the voxels of a volume into an equal one at `out`."""
    source = Volume.open(path)
    target = Volume.create(
        out, source.shape, source.dtype, chunks=source.chunks, voxel_size_nm=source.voxel_size_nm
    )
    total = 0.0
    for number, block in enumerate(BlockGrid.over(source.shape, _BOX)):
        data = source.read(block.write)
        if number == 0:
            target.write(block.write, data)
        # A box without labels is not written by the chain either.
        if data.any():
            total += _cpu_of(lambda roi=block.write, data=data: target.write(roi, data))
    return total


def stored_bytes(path: Path) -> int:
    """Bytes of the files of a volume."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def main() -> None:
    """Measure the floor of one finished run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("affinities", type=Path)
    parser.add_argument("run", type=Path, help="finished run with fragments.zarr, segments.zarr")
    parser.add_argument("scratch", type=Path, help="where the labels are written again")
    parser.add_argument("figures", type=Path, help="JSON to write")
    given = parser.parse_args()
    labels = [given.run / f"{name}.zarr" for name in ("fragments", "segments")]
    labels = [path for path in labels if path.exists()]
    given.scratch.mkdir(parents=True)
    figures = {
        "copy_bytes_per_second": copy_bytes_per_second(),
        "read": read_cost(given.affinities),
        "write": sum(write_cost(path, given.scratch / path.name) for path in labels),
        "read_bytes": stored_bytes(given.affinities),
        "written_bytes": sum(map(stored_bytes, labels)),
        "label_volumes": len(labels),
    }
    given.figures.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
