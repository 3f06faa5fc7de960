"""What skeleton metrics cost, beside the package of the Allen Institute, and where values differ.

1. 50 neurons of 5,000 nodes, labels of 400^3 in memory: metrics from labels at nodes.
2. 1,000 neurons of 10,000 nodes, labels of 1024^3 in a zarr: the whole command `axonloom evaluate`.
3. segmentation-skeleton-metrics on the data of 1, and on the demo that it ships.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
from chain import AXONLOOM, scratch, stage_counts, stage_seconds
from measuring import run_measured
from numpy.typing import NDArray
from printing import print_table, save

from pipeline.arrays.metrics import build_forest, labels_at_nodes, score
from pipeline.arrays.skeleton import Skeleton
from pipeline.geometry import BlockGrid, Roi, Triple
from pipeline.storage.atomic import remove_tree
from pipeline.storage.source import open_source
from pipeline.storage.swc import SwcOptions, read_skeletons
from pipeline.storage.volume import Volume

VERSION = 1  # of the drawn data; part of the names of what is kept
PACKAGE = "segmentation-skeleton-metrics"
PINNED = f"{PACKAGE}==5.9.14"
UNDECLARED = ("tqdm", "pandas", "scipy", "matplotlib", "tifffile")  # imported, not all declared
VOXEL_SIZE_NM = (1000.0, 1000.0, 1000.0)
SMALL = ((400, 400, 400), 50, 5_000)
LARGE = ((1024, 1024, 1024), 1_000, 10_000)
SMALL_TARGET, LARGE_TARGET, MEMORY_TARGET = 0.4, 15.0, 4 * 2**30
CHUNK = (64, 64, 64)

_BRANCH = 100  # nodes of a branch
_RUN = 250  # nodes of a branch order after which the label may change


def main() -> None:
    """Measure what was asked for, print tables, keep the figures."""
    options = _options()
    machine.print_facts()
    figures: dict[str, Any] = {}
    folder = options.folder.resolve()
    python = _environment(folder) if "allen" in options.only else None
    if "small" in options.only:
        figures["small"] = measure_small(folder, options, python)
    if "large" in options.only:
        figures["large"] = measure_large(folder, options)
    if python is not None:
        figures["demo"] = compare_demo(folder, python)
    save(folder / "figures", "skeleton_metrics", figures)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="alternating; the least counts")
    parser.add_argument("--workers", type=int, help="processes of the command; default: --serial")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=("small", "large", "allen"),
        default=("small", "large", "allen"),
    )
    return parser.parse_args()


def draw_neurons(
    shape: Triple, neurons: int, nodes: int, seed: int
) -> tuple[list[Skeleton], list[NDArray[np.uint64]]]:
    """Random branched walks, nodes at voxel centres, and the label that each node is to have.

    Each branch begins at a random node of the earlier ones and turns slowly. Along it stretches
    change label: most keep the neuron's own, some have one of their own, none, or a neighbour's.
    """
    rng = np.random.default_rng([seed, *shape, neurons, nodes])
    skeletons, labels = [], []
    for number in range(neurons):
        index = np.arange(nodes)
        begins = rng.integers(0, np.maximum(1, index[::_BRANCH]))
        parent = np.where(index % _BRANCH == 0, np.repeat(begins, _BRANCH)[:nodes], index - 1)
        place = _walks(rng, np.asarray(shape), begins, nodes)
        edges = np.stack([index[1:], parent[1:]], axis=1)
        skeletons.append(Skeleton(f"neuron{number:04d}", np.floor(place) + 0.5, edges))
        labels.append(_stretches(rng, number, neurons, nodes))
    return skeletons, labels


def _walks(
    rng: np.random.Generator, extent: NDArray, begins: NDArray, nodes: int
) -> NDArray[np.float64]:
    place = np.empty((nodes, 3))
    place[0] = rng.uniform(0, extent - 1)
    for branch, begin in enumerate(begins):
        heading = rng.normal(size=3) + np.cumsum(0.15 * rng.normal(size=(_BRANCH, 3)), axis=0)
        step = 1.3 * heading / np.linalg.norm(heading, axis=1, keepdims=True)
        here = slice(branch * _BRANCH, min(nodes, (branch + 1) * _BRANCH))
        place[here] = (place[begin] + np.cumsum(step, axis=0))[: here.stop - here.start]
        folded = np.abs(place[here]) % (2 * (extent - 1))  # off the walls of the volume
        place[here] = np.minimum(folded, 2 * (extent - 1) - folded)
    return place


def _stretches(
    rng: np.random.Generator, number: int, neurons: int, nodes: int
) -> NDArray[np.uint64]:
    cut = np.cumsum(rng.random(nodes) < 1 / _RUN)
    count = int(cut[-1]) + 1
    own = np.full(count, number + 1)
    fresh = 10_000 + number * 1_000 + np.arange(count)
    other = 1 + rng.integers(0, neurons, count)
    kind = rng.random(count)
    chosen = np.where(
        kind < 0.80, own, np.where(kind < 0.90, fresh, np.where(kind < 0.97, 0, other))
    )
    return chosen[cut].astype(np.uint64)


def paint(
    skeletons: Sequence[Skeleton], labels: Sequence[NDArray[np.uint64]], shape: Triple
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Voxels (n, 3) and labels of thin tubes: each node with its six face neighbours, clipped."""
    at = np.concatenate([np.floor(s.nodes).astype(np.int64) for s in skeletons])
    steps = np.concatenate([np.zeros((1, 3), int), np.eye(3, dtype=int), -np.eye(3, dtype=int)])
    # Nodes last, so that they keep their labels where another's neighbour would take them.
    voxels = np.concatenate([np.clip(at + step, 0, np.array(shape) - 1) for step in steps[::-1]])
    return voxels, np.tile(np.concatenate(labels), len(steps))


def kept_small(folder: Path, seed: int) -> tuple[Path, Path]:
    """(npy of labels, zip of SWC files with columns z, y, x), made once."""
    shape, neurons, nodes = SMALL
    name = f"metrics_{neurons}x{nodes}_seed{seed}_v{VERSION}"
    volume, tracings = folder / f"{name}.npy", folder / f"{name}.zip"
    if not (volume.exists() and tracings.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        skeletons, labels = draw_neurons(shape, neurons, nodes, seed)
        dense = np.zeros(shape, np.uint64)
        voxels, values = paint(skeletons, labels, shape)
        dense[tuple(voxels.T)] = values
        np.save(volume, dense)
        write_zip(tracings, skeletons)
    return volume, tracings


def kept_large(folder: Path, seed: int) -> tuple[Path, Path]:
    """(zarr of labels, zip of SWC files), made once, box by box."""
    shape, neurons, nodes = LARGE
    name = f"metrics_{neurons}x{nodes}_seed{seed}_v{VERSION}"
    path, tracings = folder / f"{name}.zarr", folder / f"{name}.zip"
    if not (path.exists() and tracings.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        skeletons, labels = draw_neurons(shape, neurons, nodes, seed)
        unfinished = folder / f"{name}.unfinished.zarr"
        remove_tree(unfinished)
        write_labels(unfinished, shape, *paint(skeletons, labels, shape))
        write_zip(tracings, skeletons)
        remove_tree(path)
        unfinished.rename(path)
    return path, tracings


def write_labels(
    path: Path,
    shape: Triple,
    voxels: NDArray,
    values: NDArray[np.uint64],
    voxel_size_nm: tuple[float, float, float] = VOXEL_SIZE_NM,
) -> None:
    """A zarr with these values at these voxels (n, 3), of several the last; made box by box."""
    volume = Volume.create(
        path, shape, np.uint64, chunks=CHUNK, voxel_size_nm=voxel_size_nm, compressor="zstd-plain"
    )
    grid = BlockGrid.over(shape, tuple(2 * c for c in CHUNK))
    index = np.ravel_multi_index(tuple((voxels // grid.block_shape).T), grid.cells)
    order = np.argsort(index, kind="stable")
    ends = np.searchsorted(index[order], np.arange(len(grid) + 1))
    for block in grid:
        rows = order[ends[block.index] : ends[block.index + 1]]
        if len(rows):
            box = np.zeros(block.write.shape, np.uint64)
            box[tuple((voxels[rows] - block.write.offset).T)] = values[rows]
            volume.write(block.write, box)


def write_zip(path: Path, skeletons: Sequence[Skeleton]) -> None:
    """SWC files with columns z, y, x in voxels; the archive is there only when it is whole."""
    unfinished = path.with_suffix(".unfinished")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for skeleton in skeletons:
            parent = np.full(len(skeleton.nodes), -1)
            parent[skeleton.edges[:, 0]] = skeleton.edges[:, 1] + 1
            rows = [
                f"{i + 1} 2 {z:.1f} {y:.1f} {x:.1f} 1 {p}"
                for i, ((z, y, x), p) in enumerate(
                    zip(skeleton.nodes.tolist(), parent.tolist(), strict=True)
                )
            ]
            archive.writestr(f"{skeleton.name}.swc", "\n".join(rows) + "\n")
    unfinished.rename(path)


def measure_small(folder: Path, options: argparse.Namespace, python: Path | None) -> dict[str, Any]:
    """Ours and theirs in turn, on the same arrays and files."""
    volume, tracings = kept_small(folder, options.seed)
    dense = np.load(volume)
    swc = SwcOptions(voxel_size_nm=VOXEL_SIZE_NM, axes="zyx")
    score(*_tiny(), VOXEL_SIZE_NM)  # compiles, or loads what was compiled
    ours: dict[str, list[float]] = defaultdict(list)
    theirs: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.repeats):
        marks = [time.process_time()]
        skeletons = read_skeletons(tracings, swc)
        marks.append(time.process_time())
        labels = [labels_at_nodes(s, dense)[0] for s in skeletons]
        marks.append(time.process_time())
        scores = score(skeletons, labels, VOXEL_SIZE_NM)
        marks.append(time.process_time())
        for name, seconds in zip(("tracings", "labels", "metrics"), np.diff(marks), strict=True):
            ours[name].append(float(seconds))
        if python is not None:
            found = run_allen(python, volume, tracings, folder / "allen.json")
            theirs["load"].append(found["load"]["cpu"])
            theirs["metrics"].append(found["metrics"]["cpu"])
            theirs["peak"].append(found["peak"])
    mine = {name: min(seconds) for name, seconds in ours.items()}
    figures: dict[str, Any] = {"ours": ours, "allen": theirs, "overall": scores.overall}
    rows = [
        ["read the SWC files", mine["tracings"], None, None],
        ["labels at the nodes", mine["labels"], None, None],
        ["metrics from labels at nodes", mine["metrics"], None, SMALL_TARGET],
        ["all", sum(mine.values()), None, None],
    ]
    if theirs:
        load, metrics = min(theirs["load"]), min(theirs["metrics"])
        rows[1][2] = f"{load:.2f} with SWC"
        rows[2][2], rows[3][2] = metrics, load + metrics
        figures["ratio"] = {
            "metrics": metrics / mine["metrics"], "all": (load + metrics) / sum(mine.values())
        }  # fmt: skip
    title = "50 neurons x 5,000 nodes, 400^3 uint64 in memory: seconds of processor"
    print_table(title, ["", "axonloom", PACKAGE, "target"], rows)
    if theirs:
        ratio = figures["ratio"]
        print(f"times ours: metrics {ratio['metrics']:.0f}, all {ratio['all']:.0f}\n", flush=True)
    return figures


def _tiny() -> tuple[list[Skeleton], list[NDArray[np.uint64]]]:
    pair = Skeleton("a", np.zeros((3, 3)), np.array([[1, 0], [2, 1]]))
    return [pair], [np.array([1, 0, 1], np.uint64)]


def measure_large(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The command in a process of its own, on a volume that is not in memory."""
    volume, tracings = kept_large(folder, options.seed)
    made = Volume.open(volume)
    stored = sum(1 for file in volume.rglob("c/**/*") if file.is_file())
    figures: dict[str, Any] = {"runs": []}
    best = None
    for _ in range(options.repeats):
        with scratch(folder, "evaluate") as out:
            command: list[object] = [AXONLOOM, "evaluate", "--segmentation", volume]
            command += ["--skeletons", tracings]
            command += ["--out", out, "--axes", "zyx"]
            command += ["--serial"] if options.workers is None else ["--workers", options.workers]
            usage = run_measured(command)
            counts = stage_counts(out)
            seconds = stage_seconds(out)
        figures["runs"].append({"usage": vars(usage), "counts": counts, "stages": seconds})
        if best is None or usage.cpu < best[0].cpu:
            best = usage, counts, seconds
    assert best is not None
    usage, counts, seconds = best
    rows = [
        ["processor, whole command", f"{usage.cpu:.1f} s", f"{LARGE_TARGET:.0f} s"],
        ["wall", f"{usage.wall:.1f} s", None],
        *[[f"  inside blocks of {name}", f"{s:.1f} s", None] for name, s in seconds.items()],
        ["peak memory", _gib(usage.driver_peak), _gib(MEMORY_TARGET)],
        *[["peak memory of a worker", _gib(p), _gib(MEMORY_TARGET)] for p in usage.worker_peaks],
        ["chunks of the volume", len(BlockGrid.over(made.shape, made.chunks)), None],
        ["chunks stored", stored, None],
        ["chunks with nodes", chunks_with_nodes(tracings, made.chunks), None],
        ["chunks read", int(counts.get("node_labels.chunks", -1)), None],
        ["nodes labelled", int(counts.get("node_labels.nodes", -1)), None],
    ]  # fmt: skip
    title = "1,000 neurons x 10,000 nodes, labels of 1024^3 in a zarr: axonloom evaluate"
    print_table(title, ["", "found", "target"], rows)
    figures["table"] = rows
    return figures


def chunks_with_nodes(tracings: Path, chunks: Triple) -> int:
    """How many chunks hold a node, counted from the tracings alone."""
    swc = SwcOptions(voxel_size_nm=VOXEL_SIZE_NM, axes="zyx")
    found: set[tuple[int, ...]] = set()
    for skeleton in read_skeletons(tracings, swc):
        found.update(map(tuple, np.unique(skeleton.nodes // chunks, axis=0).astype(int).tolist()))
    return len(found)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _environment(folder: Path) -> Path | None:
    """The interpreter of an environment that has the package; None, and why, if there is none."""
    home = folder / "allen_environment"
    python = home / "bin" / "python"
    probe = [python, "-c", f"from importlib.metadata import version; version({PACKAGE!r})"]
    steps = [
        [sys.executable, "-m", "venv", "--clear", home],
        [python, "-m", "pip", "install", "--quiet", PINNED, *UNDECLARED],
        [
            python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE, PINNED,
            "--dest", home / "source",
        ],
    ]  # fmt: skip
    ready = python.exists() and not subprocess.run(probe, capture_output=True).returncode
    for step in [] if ready and list((home / "source").glob("*.gz")) else steps:
        done = subprocess.run(list(map(str, step)), capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or "nothing said").splitlines()[-1]
            print(f"{PINNED}: not available: {said}\n", flush=True)
            return None
    return python


def run_allen(
    python: Path, labels: Path, tracings: Path, figures: Path, fragments: Path | None = None
) -> dict[str, Any]:
    """The package on one volume, in its own environment."""
    script = Path(__file__).with_name("allen_metrics.py")
    extra = ["--fragments", fragments] if fragments else []
    run_measured([python, script, labels, tracings, figures, *extra])
    return json.loads(figures.read_text())


# How the package defines its columns, from its source; each explains a difference to ours.
_REASONS = {
    "SWC Run Length": "sum of edge lengths: the same",
    "# Splits": "edges between two labels + omitted pieces without a leaf; ours counts components",
    "% Split Edges": "an edge from a label to background is split, and omit too",
    "% Omit Edges": "after its repair, which also fills dangling ends that touch one label only",
    "% Merged Edges": "labels with more than 50 nodes on two tracings; ours 1 node, and edges",
    "ERL": "divides by labelled length; of a label only the component of its first node counts",
    "Normalized ERL": "that over the length of the tracing",
    "Edge Accuracy": "100 - split - omit - merged; ours counts split edges as right",
}
_OURS = {
    "SWC Run Length": "run_length_nm", "# Splits": "splits", "% Split Edges": "pct_split",
    "% Omit Edges": "pct_omit", "% Merged Edges": "pct_merged", "ERL": "erl_nm",
    "Normalized ERL": "nerl_nm", "Edge Accuracy": "edge_accuracy",
}  # fmt: skip
_TOLERANCE = {"ERL": 0.0051, "Normalized ERL": 0.000051, "Edge Accuracy": 0.0051}  # it rounds


def compare_demo(folder: Path, python: Path) -> dict[str, Any]:
    """The demo of the package: its values, ours, and its definitions computed from our tables."""
    demo = _unpack_demo(folder)
    image, tracings = demo / "pred_segmentation.tif", demo / "target_swcs.zip"
    found = run_allen(python, image, tracings, folder / "demo.json", demo / "pred_swcs.zip")
    theirs = {row[""]: row for row in csv.DictReader(io.StringIO(found["table"]))}
    skeletons = read_skeletons(tracings, SwcOptions(voxel_size_nm=(1.0, 1.0, 1.0), axes="zyx"))
    source = open_source(image)
    dense = source.read(Roi((0, 0, 0), source.shape))
    raw = [labels_at_nodes(s, dense)[0] for s in skeletons]
    scores = score(skeletons, raw, (1.0, 1.0, 1.0))
    filled = [filled_labels(s, values) for s, values in zip(skeletons, raw, strict=True)]
    merging = {name: {int(v) for v in labels} for name, labels in found["merging"].items()}
    rebuilt = {
        s.name: departing_measures(s, values, merging[s.name])
        for s, values in zip(skeletons, filled, strict=True)
    }
    same_labels = sum(
        [str(v) for v in values.tolist()] == found["node_labels"][s.name]
        for s, values in zip(skeletons, filled, strict=True)
    )
    print(f"labels after its repair, rebuilt from ours: equal in {same_labels} of {len(filled)}")
    rows = []
    for column, why in _REASONS.items():
        values = {name: float(row[column]) for name, row in theirs.items()}
        limit = _TOLERANCE.get(column, 1e-6)
        ours = {name: float(scores.per_skeleton[name][_OURS[column]] or 0) for name in values}
        agree = sum(abs(values[n] - ours[n]) <= limit for n in values)
        explained = sum(abs(values[n] - rebuilt[n][column]) <= limit for n in values)
        mean = _mean if column != "# Splits" else lambda v, _: sum(v.values())
        weights = {name: float(row["SWC Run Length"]) for name, row in theirs.items()}
        rows.append([
            column, mean(values, weights), mean(ours, weights), agree,
            mean({n: rebuilt[n][column] for n in values}, weights), explained, why,
        ])  # fmt: skip
    header = ["", "it says", "ours", "agree", "its definition from our tables", "agree", "why"]
    title = f"its demo, {len(theirs)} tracings; means weighted by length, splits in all"
    print_table(title, header, rows)
    merges = sum(float(row["# Merges"] or 0) for row in theirs.values())
    print(
        f"# Merges: it says {merges:.0f}, from the geometry of predicted skeletons, not from labels"
        f" at nodes; ours {scores.overall['merges_total']} merging labels x (tracings - 1)\n"
    )
    return {"table": rows, "same_labels": same_labels, "ours": scores.as_json(), "theirs": theirs}


def _mean(values: dict[str, float], weights: dict[str, float]) -> float:
    return sum(v * weights[n] for n, v in values.items()) / sum(weights.values())


def _unpack_demo(folder: Path) -> Path:
    demo = folder / "allen_demo"
    (archive,) = (folder / "allen_environment" / "source").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            if "/demo/data/" in member.name and member.isfile():
                member.name = Path(member.name).name
                packed.extract(member, demo, filter="data")
    return demo


def _gaps(skeleton: Skeleton, labels: NDArray[np.uint64]) -> list[tuple[set[int], set[int]]]:
    """Connected sets of background nodes, and the labels that each touches."""
    near = _neighbours(skeleton)
    left = set(np.flatnonzero(labels == 0).tolist())
    found = []
    while left:
        piece, touched, todo = set(), set(), [left.pop()]
        while todo:
            node = todo.pop()
            piece.add(node)
            for other in near[node]:
                if labels[other]:
                    touched.add(int(labels[other]))
                elif other in left:
                    left.discard(other)
                    todo.append(other)
        found.append((piece, touched))
    return found


def _neighbours(skeleton: Skeleton) -> dict[int, list[int]]:
    near: dict[int, list[int]] = defaultdict(list)
    for a, b in skeleton.edges.tolist():
        near[a].append(b)
        near[b].append(a)
    return near


def filled_labels(skeleton: Skeleton, labels: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The package's repair: background that touches one label only takes it, dangling or not."""
    filled = labels.copy()
    for piece, touched in _gaps(skeleton, labels):
        if len(touched) == 1:
            filled[list(piece)] = touched.pop()
    return filled


def departing_measures(
    skeleton: Skeleton, labels: NDArray[np.uint64], merging: set[int]
) -> dict[str, float]:
    """The package's columns by its definitions, from labels after its repair."""
    near = _neighbours(skeleton)
    a, b = labels[skeleton.edges].T
    count = len(skeleton.edges)
    length = skeleton.edge_lengths_nm((1.0, 1.0, 1.0))
    inner = [p for p, _ in _gaps(skeleton, labels) if all(len(near[n]) != 1 for n in p)]
    split, omit = int((a != b).sum()), int(((a == 0) | (b == 0)).sum())
    merged = sum(int((labels == label).sum()) - 1 for label in merging)
    runs = {}
    forest = build_forest(skeleton, (1.0, 1.0, 1.0))
    for label in np.unique(labels[labels > 0]).tolist():
        piece = _piece(near, labels, int(np.flatnonzero(labels == label)[0]))
        inside = np.isin(skeleton.edges, list(piece)).all(axis=1)
        runs[label] = float(length[inside].sum())
    whole = float(forest.length_nm.sum())
    squares = sum(run**2 for label, run in runs.items() if label not in merging)
    erl = round(squares / sum(runs.values()), 2) if sum(runs.values()) else 0.0
    percent = {"split": 100 * split / count, "omit": 100 * omit / count}
    percent["merged"] = 100 * merged / count
    return {
        "SWC Run Length": whole,
        "# Splits": int(((a != b) & (a > 0) & (b > 0)).sum()) + len(inner),
        "% Split Edges": percent["split"],
        "% Omit Edges": percent["omit"],
        "% Merged Edges": percent["merged"],
        "ERL": erl,
        "Normalized ERL": round(erl / whole, 4),
        "Edge Accuracy": round(100 - sum(percent.values()), 2),
    }


def _piece(near: dict[int, list[int]], labels: NDArray[np.uint64], start: int) -> set[int]:
    piece, todo = {start}, [start]
    while todo:
        for other in near[todo.pop()]:
            if other not in piece and labels[other] == labels[start]:
                piece.add(other)
                todo.append(other)
    return piece


if __name__ == "__main__":
    main()
