"""segmentation-skeleton-metrics 5.9.14 on labels in memory and SWC files in a zip.

It needs that package alone, in an environment of its own (METRICS.md). Imports and figures that it
draws are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from segmentation_skeleton_metrics.datamodules.graph_loading import DataLoader
from segmentation_skeleton_metrics.evaluate import Evaluator
from segmentation_skeleton_metrics.skeleton_metrics import OmitLengthsMetric
from segmentation_skeleton_metrics.utils.img_util import Image
from tifffile import imread


class InMemory(Image):
    """An array as it wants volumes: five axes, two of them in front of length one."""

    def _load_image(self) -> None:
        path = self.img_path
        self.img = (np.load(path) if path.endswith(".npy") else imread(path))[None, None]

    def __getstate__(self) -> dict[str, Any]:
        # Each SWC file takes its loader, and with it the volume, to another process that does not
        # look at it. Volumes of its own classes make that journey; 25 GB on the small data.
        return {**self.__dict__, "img": None}


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What some work gives, and its seconds: wall, and processor with that of its children."""
    began, used = time.monotonic(), _cpu()
    found = work()
    return found, {"wall": time.monotonic() - began, "cpu": _cpu() - used}


def _cpu() -> float:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(r.ru_utime + r.ru_stime for r in map(resource.getrusage, who))


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def main() -> None:
    """Score once; write what it found and what it cost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("labels", type=Path, help="npy or TIFF, (z, y, x)")
    parser.add_argument("tracings", type=Path, help="zip of SWC files; columns z, y, x in voxels")
    parser.add_argument("figures", type=Path, help="JSON to write")
    parser.add_argument("--fragments", type=Path, help="zip of predicted SWC files")
    given = parser.parse_args()
    figures, labels, tracings = given.figures.resolve(), str(given.labels), str(given.tracings)
    OmitLengthsMetric.plot_distributions = lambda *_: None
    image = InMemory(str(Path(labels).resolve()))
    loader = DataLoader(verbose=False)
    tracings = str(Path(tracings).resolve())
    graphs, load = timed(lambda: loader.load_groundtruth(tracings, image))
    fragments = loader.load_fragments(str(given.fragments.resolve()) if given.fragments else None)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        evaluator = Evaluator(folder, verbose=False)
        _, metrics = timed(lambda: evaluator(graphs, fragments))
        table = (Path(folder) / "results.csv").read_text()
    found = {
        "version": version("segmentation-skeleton-metrics"),
        "load": load,
        "metrics": metrics,
        "peak": _peak(),
        "table": table,
        "merging": {name: sorted(g.labels_with_merge) for name, g in graphs.items()},
        "node_labels": {name: [str(v) for v in g.node_label] for name, g in graphs.items()}
        if sum(g.number_of_nodes() for g in graphs.values()) < 10_000
        else {},
    }
    figures.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
