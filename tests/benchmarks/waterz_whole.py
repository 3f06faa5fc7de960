"""waterz on a whole array in memory: watershed, region graph and mean affinity agglomeration.

It needs numpy and waterz alone, so it can run in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import waterz


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))


def main() -> None:
    """Segment once and write what it cost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("affinities", type=Path, help="npy, (3, z, y, x) uint8")
    parser.add_argument("figures", type=Path, help="JSON to write")
    parser.add_argument("--low", type=float, default=0.5)
    parser.add_argument("--high", type=float, default=0.95)
    parser.add_argument("--threshold", type=float, default=0.5, help="least mean affinity")
    given = parser.parse_args()
    # Quotients, not a table of float16 or a product with 1/255: as near to ours as float32 goes.
    affinities = np.load(given.affinities).astype(np.float32)
    affinities /= np.float32(255)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began, used = time.monotonic(), time.process_time()
    found = waterz.agglomerate(
        affinities, [1 - given.threshold], aff_threshold_low=given.low,
        aff_threshold_high=given.high,
    )  # fmt: skip
    segments = next(iter(found))
    figures = {
        "version": version("waterz"),
        "cpu": time.process_time() - used,
        "wall": time.monotonic() - began,
        "peak_above_input": _memory("VmHWM") - before,
        "segments": int(np.unique(segments).size - 1),
    }
    given.figures.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
