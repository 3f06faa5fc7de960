"""Tracings of people and of a program, scored as if they were segmentations.

1. One mouse neuron: each of four annotators against the consensus. Truth is the consensus; the
   segmentation is a tube around the annotator's tracing, one label. What the annotator missed is
   omitted. In the second table the two change places: what only the annotator has is omitted.
2. Two blocks: corrected tracing against automatic tracing. Truth is the corrected one; each tree of
   the automatic one is a tube with a label of its own. Whether the trees of the corrected tracing
   are neurons or pieces of one that leaves the block is not known, so both are scored: as one
   neuron of several roots, where no label can be a merge, and as a neuron each.

A tube is what `pipeline.arrays.tubes` would rasterise: the voxels whose centre lies within a radius
of the tracing. The neuron spans ten millimetres, so the label of a voxel is computed where a node
of the truth lies, and nowhere else; that both ways give the same is checked on blocks of voxels.
Truth is cut into steps of at most one voxel first: an edge is judged by its two ends.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from printing import save
from scipy.spatial import cKDTree

from pipeline.arrays.metrics import CORRECT, MERGED, OMIT, SPLIT, Scores, build_forest, score
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_nodes import keep_nodes, node_voxels
from pipeline.arrays.tubes import rasterise_edges, tube_edges
from pipeline.geometry import Roi
from pipeline.storage.swc import SwcOptions, read_skeletons

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.collections import LineCollection

ROOT = Path(__file__).resolve().parents[2]
VOXEL_SIZE_NM = (1000.0, 1000.0, 1000.0)
COLOURS = {CORRECT: "tab:blue", OMIT: "tab:red", SPLIT: "tab:orange", MERGED: "tab:purple"}
NAMES = {CORRECT: "correct", OMIT: "omit", SPLIT: "split", MERGED: "merged"}
CHECKED_BLOCKS = 40


def main() -> None:
    """Score all pairs, print tables in markdown, draw a picture of each."""
    options = _options()
    machine.print_facts()
    data, pictures = options.data, options.folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    people = data / "swc_annotators"
    figures = {
        "annotators": _annotators(people, options.radii, pictures, consensus_is_truth=True),
        "consensus": _annotators(people, options.radii, pictures, consensus_is_truth=False),
        "automatic": _automatic(data / "swc_gold_auto_pairs", options.block_radii, pictures),
    }
    save(options.folder / "figures", "real_tracings", figures)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("AXONLOOM_DATA") or ROOT.parent / "shared" / "data"
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--data", type=Path, default=Path(default), help="default: AXONLOOM_DATA")
    parser.add_argument(
        "--radii", type=float, nargs="+", default=[3, 5, 10, 20], help="of annotators' tubes, um"
    )
    parser.add_argument(
        "--block-radii", type=float, nargs="+", default=[2, 4, 8], help="of the blocks', voxels"
    )
    return parser.parse_args()


def densified(skeleton: Skeleton, step: float) -> Skeleton:
    """The same cable with nodes at most `step` voxels apart."""
    a, b = skeleton.nodes[skeleton.edges[:, 0]], skeleton.nodes[skeleton.edges[:, 1]]
    pieces = np.maximum(1, np.ceil(np.linalg.norm(b - a, axis=1) / step)).astype(int)
    nodes, edges, count = [skeleton.nodes], [], len(skeleton.nodes)
    for (first, last), n, p, q in zip(skeleton.edges, pieces, a, b, strict=True):
        new = count + np.arange(n - 1)
        nodes.append(p + (q - p) * (np.arange(1, n) / n)[:, None])
        path = np.concatenate([[first], new, [last]])
        edges.append(np.stack([path[:-1], path[1:]], axis=1))
        count += n - 1
    joined = np.concatenate(edges) if edges else np.zeros((0, 2), np.int64)
    return Skeleton(skeleton.name, np.concatenate(nodes), joined)


def trees(skeleton: Skeleton) -> list[Skeleton]:
    """Each tree of a tracing as a skeleton of its own."""
    forest = build_forest(skeleton, VOXEL_SIZE_NM)
    number = forest.by_node(forest.tree)
    parts = []
    for tree in range(int(number.max()) + 1):
        part = keep_nodes(skeleton, number == tree)
        if part is not None:
            name = f"{skeleton.name}-{tree + 1:03d}"
            parts.append(Skeleton(name, part.nodes, part.edges, part.radii_nm, part.types))
    return parts


def tube_labels(truth: Skeleton, tubes: Sequence[Skeleton], radius: float) -> NDArray[np.uint64]:
    """The label at each node of `truth` in a volume with tubes around `tubes`, labels from 1.

    The distance is that of the voxel's centre to the nearest edge, in voxels, exact; of equally
    near tubes the smaller label wins.
    """
    fine = [densified(t, 1.0) for t in tubes]
    ends = np.concatenate([t.nodes[t.edges] for t in fine])
    label = np.repeat(np.arange(1, len(fine) + 1), [len(t.edges) for t in fine])
    middles = cKDTree(ends.mean(axis=1))
    centres = node_voxels(truth) + 0.5
    found = np.zeros(len(centres), np.uint64)
    bound, _ = middles.query(centres)
    near = np.flatnonzero(bound <= radius + 0.5)  # a piece reaches half a voxel from its middle
    # The nearest piece has its middle within the bound and half of its own length.
    for node, rows in zip(
        near, middles.query_ball_point(centres[near], bound[near] + 0.5 + 1e-9), strict=True
    ):
        rows = np.sort(rows)
        distance = _distances(centres[node], ends[rows])
        if distance.min() <= radius:
            best = label[rows][distance <= distance.min() + 1e-9]
            found[node] = best.min()
    return found


def _distances(point: NDArray[np.float64], ends: NDArray[np.float64]) -> NDArray[np.float64]:
    a, along = ends[:, 0], ends[:, 1] - ends[:, 0]
    length = np.maximum((along**2).sum(axis=1), 1e-300)
    t = np.clip(((point - a) * along).sum(axis=1) / length, 0, 1)
    return np.linalg.norm(point - a - t[:, None] * along, axis=1)


def differing_nodes(
    truth: Skeleton, labels: NDArray[np.uint64], tubes: Sequence[Skeleton], radius: float
) -> tuple[int, int]:
    """Nodes whose label differs from that of rasterised blocks of voxels, and nodes compared."""
    nm = radius * VOXEL_SIZE_NM[0]
    ids = list(range(1, len(tubes) + 1))
    edges = tube_edges(tubes, ids, voxel_size_nm=VOXEL_SIZE_NM, radius_nm=nm, min_radius_nm=nm)
    voxels = node_voxels(truth)
    blocks = np.unique(voxels // 32, axis=0)
    chosen = np.random.default_rng(0).permutation(blocks)[:CHECKED_BLOCKS] * 32
    differing = compared = 0
    for corner in chosen.tolist():
        roi = Roi(tuple(corner), (32, 32, 32))
        inside = ((voxels >= corner) & (voxels < np.array(corner) + 32)).all(axis=1)
        drawn = rasterise_edges(edges, roi)[tuple((voxels[inside] - corner).T)]
        differing += int((drawn != labels[inside]).sum())
        compared += int(inside.sum())
    return differing, compared


def _annotators(
    folder: Path, radii: Sequence[float], pictures: Path, *, consensus_is_truth: bool
) -> list[dict[str, Any]]:
    read = read_skeletons(folder, SwcOptions(voxel_size_nm=VOXEL_SIZE_NM, unit="um"))
    (consensus,) = [s for s in read if s.name == "consensus"]
    rows = []
    for annotator in (s for s in read if s is not consensus):
        truth, tube = (consensus, annotator) if consensus_is_truth else (annotator, consensus)
        fine = densified(truth, 1.0)
        for radius in radii:
            labels = tube_labels(fine, [tube], radius)
            scores = score([fine], [labels], VOXEL_SIZE_NM)
            check = differing_nodes(fine, labels, [tube], radius) if radius == radii[0] else None
            rows.append(_row(annotator.name, radius, scores, check))
        draw([fine], [tube], scores, pictures / f"{truth.name}_by_{tube.name}.png", radii[-1])
    what = "consensus is truth, tubes around" if consensus_is_truth else "tubes around"
    other = "annotators" if consensus_is_truth else "the consensus, truth is each annotator"
    _print_markdown(f"{what} {other}; voxel 1 um, radius in um", rows, "mm")
    return rows


def _automatic(folder: Path, radii: Sequence[float], pictures: Path) -> list[dict[str, Any]]:
    options = SwcOptions(voxel_size_nm=VOXEL_SIZE_NM)
    rows = []
    for path in sorted(folder.glob("*_gold.swc")):
        (gold,) = read_skeletons(path, options)
        (made,) = read_skeletons(path.with_name(path.name.replace("gold", "default")), options)
        neurons, tubes = [densified(t, 1.0) for t in trees(gold)], trees(made)
        name = path.name.removesuffix("_gold.swc")
        for truth, what in (
            ([densified(gold, 1.0)], "one neuron"),
            (neurons, "each tree a neuron"),
        ):
            for radius in radii:
                labels = [tube_labels(t, tubes, radius) for t in truth]
                scores = score(truth, labels, VOXEL_SIZE_NM)
                whole = Skeleton("all", np.concatenate([t.nodes for t in truth]), [])
                check = differing_nodes(whole, np.concatenate(labels), tubes, radius)
                row = f"{name}, {len(neurons)} trees by {len(tubes)}, {what}"
                rows.append(_row(row, radius, scores, check))
            draw(truth, tubes, scores, pictures / f"{name}, {what}.png", radii[-1])
    _print_markdown(
        "corrected tracing is truth, tubes around the automatic; radius in voxels, k: thousands",
        rows,
        "k",
    )
    return rows


def _row(name: str, radius: float, scores: Scores, check: tuple[int, int] | None) -> dict[str, Any]:
    return {"name": name, "radius": radius, "check": check, **scores.overall}


_COLUMNS = {
    "omit %": ("pct_omit", 2), "split %": ("pct_split", 2), "merged %": ("pct_merged", 2),
    "edge accuracy %": ("edge_accuracy", 2), "splits": ("splits", 0),
    "merges": ("merges_total", 0), "nERL": ("nerl_nm", 3), "FFN nERL": ("ffn_nerl_nm", 3),
    "repaired nodes": ("repaired_nodes", 0), "ambiguous": ("ambiguous_nodes", 0),
}  # fmt: skip


def _print_markdown(title: str, rows: Sequence[dict[str, Any]], unit: str) -> None:
    print(f"\n{title}\n")
    names = ["", "radius", f"cable, {unit}", f"ERL, {unit}", *_COLUMNS]
    print("| " + " | ".join(names) + " |")
    print("|---" * len(names) + "|")
    for row in rows:
        cells = [row["name"], f"{row['radius']:g}"]
        cells += [f"{row[key] / 1e6:.2f}" for key in ("run_length_nm", "erl_nm")]
        cells += [f"{row[key]:.{digits}f}" for key, digits in _COLUMNS.values()]
        print("| " + " | ".join(cells) + " |")
    checks = [row["check"] for row in rows if row["check"]]
    differing, compared = (sum(column) for column in zip(*checks, strict=True))
    print(f"\nrasterised blocks: {differing} of {compared} nodes have another label", flush=True)


def draw(
    truth: Sequence[Skeleton],
    tubes: Sequence[Skeleton],
    scores: Scores,
    path: Path,
    radius: float,
) -> None:
    """Projection along z: tubes in grey, truth above them by the class of its edges; and a part."""
    figure, panels = plt.subplots(1, 2, figsize=(18, 9))
    places = np.concatenate([t.nodes for t in truth])
    wrong = np.concatenate(
        [t.nodes[t.edges[c != CORRECT, 0]] for t, c in zip(truth, scores.edge_classes, strict=True)]
    )
    shown = wrong if len(wrong) else places
    middle = shown[np.linalg.norm(shown - np.median(shown, axis=0), axis=1).argmin()]
    width = 0.06 * np.ptp(places, axis=0).max()
    for panel, part in zip(panels, (False, True), strict=True):
        for t in tubes:
            lines = t.nodes[t.edges][:, :, [2, 1]]
            panel.add_collection(
                LineCollection(lines, colors="0.8", linewidths=6 if part else 3, zorder=1)
            )
        for t, classes in zip(truth, scores.edge_classes, strict=True):
            for kind, colour in COLOURS.items():
                lines = t.nodes[t.edges[classes == kind]][:, :, [2, 1]]
                panel.add_collection(
                    LineCollection(lines, colors=colour, linewidths=0.9, zorder=2 + (kind > 0))
                )
        panel.autoscale()
        panel.set_aspect("equal")
        panel.invert_yaxis()
        if part:
            panel.set_xlim(middle[2] - width, middle[2] + width)
            panel.set_ylim(middle[1] + width, middle[1] - width)
    for kind, colour in COLOURS.items():
        panels[0].plot([], [], color=colour, label=NAMES[kind])
    panels[0].legend()
    figure.suptitle(f"{path.stem}, radius {radius:g} voxels")
    figure.savefig(path, dpi=70, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
