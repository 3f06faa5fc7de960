"""How right skeletons are, and whether blocks show: phantoms, real labels, rasterised tracings.

1. Phantoms, isotropic and not, with true centre lines: the whole volume as one block beside four
   blockings. Per object the components must be those of the object; an end at a face of a block
   that is no end of the skeleton of the whole is counted; cable is compared with the whole, nodes
   with the true centre line.
2. Real dense labels in two blockings.
3. Real tracings drawn as tubes: cable and branch points against the tracing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cc3d
import machine
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from printing import print_table, save
from scipy.spatial import cKDTree

from pipeline.arrays.phantom import PhantomSpec, grow_neurons, render
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_join import JoinReport, join_pieces
from pipeline.arrays.skeleton_nodes import keep_nodes
from pipeline.arrays.skeleton_settings import SkeletonSettings
from pipeline.arrays.skeleton_smooth import smooth_nodes
from pipeline.arrays.skeletons import SkeletonPieces, context_vox, skeletonize_block
from pipeline.arrays.tubes import rasterise_edges, tube_edges
from pipeline.geometry import BlockGrid, Roi, Triple
from pipeline.storage.swc import SwcOptions, read_skeletons

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.collections import LineCollection

VoxelSize = tuple[float, float, float]
ROOT = Path(__file__).resolve().parents[2]
PHANTOMS: dict[str, VoxelSize] = {
    "isotropic": (500.0, 500.0, 500.0), "2.5 to 1": (1000.0, 400.0, 400.0)
}  # fmt: skip
SHAPE: Triple = (128, 256, 256)
BLOCKINGS: tuple[Triple, ...] = ((64, 64, 64), (128, 128, 128), (57, 83, 101), (128, 41, 256))
CORTEX_NM: VoxelSize = (40.0, 32.0, 32.0)
TUBE_NM = 400.0
# Voxels: an end so near to a face may be one that the face has made; another end is the same end
# within so many.
NEAR_FACE, SAME_END = 3.0, 8.0


@dataclass(frozen=True, eq=False)
class Drawn:
    """A volume and its skeletons in one blocking."""

    skeletons: dict[int, Skeleton]
    report: JoinReport
    block: Triple


def skeletonize(
    labels: NDArray[np.uint64], block: Triple, size: VoxelSize, settings: SkeletonSettings
) -> Drawn:
    """All blocks one after the other, then the join."""
    grid = BlockGrid(Roi((0, 0, 0), labels.shape), block, (0, 0, 0), (1, 1, 1))
    whole = Roi((0, 0, 0), labels.shape)
    pieces: list[SkeletonPieces] = []
    for b in grid:
        seen = b.write.grow(context_vox(size)).intersect(whole)
        pieces.append(
            skeletonize_block(
                np.ascontiguousarray(labels[seen.slices]),
                origin=seen.offset,
                voxel_size_nm=size,
                settings=settings,
                block=b.write.relative_to(seen),
            )
        )
    skeletons, report = join_pieces(pieces, voxel_size_nm=size, settings=settings)
    smooth = {
        k: replace(s, nodes=smooth_nodes(s.nodes, s.edges, settings.smooth_rounds))
        for k, s in skeletons.items()
    }
    return Drawn(smooth, report, block)


def cable(skeleton: Skeleton, size: VoxelSize) -> float:
    """Nanometres."""
    return float(skeleton.edge_lengths_nm(size).sum())


def degrees(skeleton: Skeleton) -> NDArray[np.int64]:
    """(N,) edges at each node."""
    return np.bincount(skeleton.edges.reshape(-1), minlength=len(skeleton.nodes))


def branch_points(skeleton: Skeleton) -> int:
    """Nodes with three edges or more."""
    return int((degrees(skeleton) > 2).sum())


def tips(skeleton: Skeleton) -> NDArray[np.float64]:
    """(T, 3) voxels."""
    return skeleton.nodes[degrees(skeleton) <= 1]


def components(skeleton: Skeleton) -> int:
    """Connected components, rings counted as one."""
    parent = list(range(len(skeleton.nodes)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in skeleton.edges.tolist():
        parent[root(a)] = root(b)
    return len({root(node) for node in range(len(parent))})


def object_components(labels: NDArray[np.uint64]) -> dict[int, int]:
    """Per label the number of its 26-connected components."""
    found = cc3d.connected_components(labels, connectivity=26)
    pairs = np.unique(np.stack([labels.ravel(), found.ravel().astype(np.uint64)]), axis=1)
    ids, counts = np.unique(pairs[0][pairs[0] > 0], return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def ends_at_faces(found: Drawn, whole: Mapping[int, Skeleton], shape: Triple) -> int:
    """Ends near an inner face of a block that no end of the skeleton of the whole is near to."""
    count = 0
    for label, skeleton in found.skeletons.items():
        ends = tips(skeleton)
        away = np.full(len(ends), np.inf)
        for axis in range(3):
            faces = np.arange(found.block[axis], shape[axis], found.block[axis]) + 0.5
            if len(faces):
                gap = np.abs(ends[:, [axis]] - faces[None]).min(axis=1)
                away = np.minimum(away, gap)
        near = ends[away <= NEAR_FACE]
        if len(near):
            known = tips(whole[label]) if label in whole else np.zeros((0, 3))
            gaps = cKDTree(known).query(near)[0] if len(known) else np.full(len(near), np.inf)
            count += int((gaps > SAME_END).sum())
    return count


def to_centre(skeleton: Skeleton, truth: Skeleton, voxel: float, size: VoxelSize) -> NDArray:
    """(N,) distance of the nodes to the true centre line, in units of the longest voxel edge."""
    a, b = truth.nodes[truth.edges[:, 0]], truth.nodes[truth.edges[:, 1]]
    steps = np.linspace(0, 1, 9)[:, None, None]
    line = ((a + (b - a) * steps).reshape(-1, 3)) * size
    return cKDTree(line).query(skeleton.nodes * size)[0] / voxel


def phantoms(options: argparse.Namespace, settings: SkeletonSettings) -> list[dict[str, Any]]:
    """One row a phantom and blocking."""
    rows = []
    for name, size in PHANTOMS.items():
        for seed in range(options.seeds):
            spec = PhantomSpec(shape=SHAPE, voxel_size_nm=size, neurons=20, seed=seed)
            truth = grow_neurons(spec)
            labels = render(spec, truth, Roi((0, 0, 0), SHAPE))[1]
            whole = skeletonize(labels, SHAPE, size, settings)
            for block in (SHAPE, *BLOCKINGS):
                found = skeletonize(labels, block, size, settings)
                rows.append(
                    {"phantom": name, "seed": seed, **_row(found, whole, labels, truth, size)}
                )
            _draw(options.folder, f"skeletons_{name.split()[0]}_{seed}", labels, whole.skeletons)
    return rows


def _row(
    found: Drawn,
    whole: Drawn,
    labels: NDArray[np.uint64],
    truth: list[Skeleton],
    size: VoxelSize,
) -> dict[str, Any]:
    expected = object_components(labels)
    own = {label: components(s) for label, s in found.skeletons.items()}
    lengths = {label: cable(s, size) for label, s in whole.skeletons.items()}
    ratios = [cable(s, size) / lengths[label] for label, s in found.skeletons.items()]
    total = sum(cable(s, size) for s in found.skeletons.values()) / sum(lengths.values())
    real = sum(cable(s, size) for s in truth)
    away = [to_centre(s, truth[label - 1], max(size), size) for label, s in found.skeletons.items()]
    distance = np.concatenate(away)
    return {
        "block": " x ".join(map(str, found.block)),
        "objects": len(expected),
        "other_components": sum(own.get(k, 0) != n for k, n in expected.items()),
        "ends_at_faces": ends_at_faces(found, whole.skeletons, labels.shape),
        "cable_pct": 100 * (total - 1),
        "worst_object_pct": 100 * max((abs(r - 1) for r in ratios), default=0.0),
        "of_truth": sum(cable(s, size) for s in found.skeletons.values()) / real,
        "median_vox": float(np.median(distance)),
        "p95_vox": float(np.quantile(distance, 0.95)),
        "branch_points": sum(branch_points(s) for s in found.skeletons.values()),
        "true_branch_points": sum(branch_points(s) for s in truth),
        "loops": sum(len(s.edges) - len(s.nodes) + own[k] for k, s in found.skeletons.items()),
    }


def cortex(options: argparse.Namespace, settings: SkeletonSettings) -> list[dict[str, Any]]:
    """Dense labels of mouse cortex: the whole and two blockings."""
    stored = np.load(options.data / "labels_mouse_cortex" / "labels.npz")["labels"]
    labels = np.ascontiguousarray(stored.transpose(2, 1, 0)).astype(np.uint64)
    expected = object_components(labels)
    whole = skeletonize(labels, labels.shape, CORTEX_NM, settings)
    lengths = {label: cable(s, CORTEX_NM) for label, s in whole.skeletons.items()}
    rows = []
    for found in (
        whole,
        *(skeletonize(labels, b, CORTEX_NM, settings) for b in ((128, 128, 128), (100, 90, 110))),
    ):
        own = {label: components(s) for label, s in found.skeletons.items()}
        shared = [k for k in found.skeletons if lengths.get(k, 0) > 5000]
        ratios = [cable(found.skeletons[k], CORTEX_NM) / lengths[k] for k in shared]
        rows.append(
            {
                "block": " x ".join(map(str, found.block)),
                "objects": len(expected),
                "other_components": sum(own.get(k, 0) != n for k, n in expected.items()),
                "ends_at_faces": ends_at_faces(found, whole.skeletons, labels.shape),
                "cable_pct": 100
                * (
                    sum(cable(s, CORTEX_NM) for s in found.skeletons.values())
                    / sum(lengths.values())
                    - 1
                ),
                "median_object_pct": 100 * float(np.median(np.abs(np.array(ratios) - 1))),
                "branch_points": sum(branch_points(s) for s in found.skeletons.values()),
                "loops": sum(
                    len(s.edges) - len(s.nodes) + own[k] for k, s in found.skeletons.items()
                ),
            }
        )
    return rows


def tracings(options: argparse.Namespace, settings: SkeletonSettings) -> list[dict[str, Any]]:
    """Real tracings drawn as tubes into volumes that fit; the whole and a blocking."""
    given = [
        (options.data / "swc_fly_pn", SwcOptions(voxel_size_nm=(8.0, 8.0, 8.0)), 150.0),
        (
            options.data / "swc_mouse_projection",
            SwcOptions(voxel_size_nm=(1e3, 1e3, 1e3), unit="um"),
            4_000.0,
        ),
    ]
    rows = []
    for folder, swc, voxel_nm in given:
        for tracing in read_skeletons(folder, swc)[: options.tracings]:
            rows += list(_traced(tracing, swc, voxel_nm, settings, options))
    return rows


def _traced(
    tracing: Skeleton,
    swc: SwcOptions,
    voxel_nm: float,
    settings: SkeletonSettings,
    options: argparse.Namespace,
) -> Iterable[dict[str, Any]]:
    """The tracing scaled to voxels of `voxel_nm`, cut to a box, drawn, and traced again."""
    size = (voxel_nm,) * 3
    nodes = tracing.nodes * np.asarray(swc.voxel_size_nm) / voxel_nm
    nodes = nodes - nodes.min(axis=0) + 6
    extent = np.minimum(np.ceil(nodes.max(axis=0)).astype(int) + 6, options.largest)
    # Of one that does not fit, the part around its middle node.
    begin = np.clip(np.median(nodes, axis=0) - extent / 2, 0, nodes.max(axis=0) + 6 - extent)
    nodes = nodes - np.floor(begin)
    scaled = Skeleton(tracing.name, nodes, tracing.edges)
    cut = keep_nodes(scaled, ((nodes > 4) & (nodes < extent - 4)).all(axis=1))
    assert cut is not None
    shape: Triple = tuple(int(n) for n in extent)  # type: ignore[assignment]
    edges = tube_edges(
        [cut], [1], voxel_size_nm=size, radius_nm=1.6 * voxel_nm, min_radius_nm=1.6 * voxel_nm
    )
    labels = rasterise_edges(edges, Roi((0, 0, 0), shape))
    for block in (shape, (128, 128, 128), (64, 64, 64)):
        found = skeletonize(labels, block, size, settings)
        traced = found.skeletons[1]
        yield {
            "tracing": tracing.name,
            "voxel_um": voxel_nm / 1000,
            "shape": " x ".join(map(str, shape)),
            "block": "whole" if block == shape else " x ".join(map(str, block)),
            "cable_mm": cable(cut, size) / 1e6,
            "of_tracing": cable(traced, size) / cable(cut, size),
            "branch_points": branch_points(cut),
            "found": branch_points(traced),
            "median_vox": float(np.median(to_centre(traced, cut, voxel_nm, size))),
            "components": components(cut),
            "found_components": components(traced),
            "object_components": object_components(labels)[1],
        }
    _draw(options.folder, f"skeletons_{tracing.name}", labels, found.skeletons)


def _draw(
    folder: Path, name: str, labels: NDArray[np.uint64], skeletons: Mapping[int, Skeleton]
) -> None:
    """The skeletons over the maximum projection along z."""
    figure, axes = plt.subplots(figsize=(10, 10 * labels.shape[1] / labels.shape[2]))
    axes.imshow(labels.max(axis=0) > 0, cmap="gray_r", vmax=3, extent=(
        0, labels.shape[2], labels.shape[1], 0
    ))  # fmt: skip
    for label, skeleton in skeletons.items():
        lines = skeleton.nodes[skeleton.edges][:, :, :0:-1]
        colour = plt.get_cmap("tab20")(label % 20)
        axes.add_collection(LineCollection(lines, colors=[colour], linewidths=1))
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(pictures / f"{name}.png", dpi=110)
    plt.close(figure)


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        print_table(title, list(rows[0]), [list(row.values()) for row in rows])


def main() -> None:
    """Measure what was asked for, print tables, keep the figures, draw pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("AXONLOOM_DATA") or ROOT.parent / "shared" / "data"
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--data", type=Path, default=Path(default), help="default: AXONLOOM_DATA")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tracings", type=int, default=2, help="of each folder")
    parser.add_argument("--largest", type=int, default=320, help="voxels of a side of a tracing")
    choices = ("phantoms", "cortex", "tracings")
    parser.add_argument("--only", nargs="+", choices=choices, default=choices)
    options = parser.parse_args()
    machine.print_facts()
    settings, figures = SkeletonSettings(), {}
    measures = {"phantoms": phantoms, "cortex": cortex, "tracings": tracings}
    for name in options.only:
        figures[name] = measures[name](options, settings)
        _print(name, figures[name])
    save(options.folder / "figures", "skeleton_accuracy", figures)


if __name__ == "__main__":
    main()
