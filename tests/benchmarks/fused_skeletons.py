"""Skeletons fused from those of fragments, beside skeletons of whole segments and the true lines.

Phantoms of neurons are cut into fragments, the Voronoi cells of random voxels inside each neuron,
from larger than a neurite is wide to a dozen voxels. Two lookups: every fragment to its neuron, and
only the contacts that pass a threshold (contacts get random scores). For each, skeletons of the
renamed labels and skeletons fused from the fragments are measured against the same centre lines.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cc3d
import machine
import numpy as np
from numpy.typing import NDArray
from printing import print_table, save
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from pipeline.arrays.labels import SparseMap
from pipeline.arrays.phantom import GrowthSpec, PhantomSpec, grow_neurons, render
from pipeline.arrays.relabel import apply_lookup
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_contacts import Contacts, find_contacts
from pipeline.arrays.skeleton_fuse import fuse_skeletons
from pipeline.arrays.skeleton_join import join_pieces
from pipeline.arrays.skeleton_settings import SkeletonSettings
from pipeline.arrays.skeletons import VoxelSize, skeletonize_block
from pipeline.geometry import Roi, Triple

SETTINGS = SkeletonSettings()
THICK = GrowthSpec(radius_nm=(1_200.0, 1_800.0), thinnest_nm=1_000.0)
PHANTOMS: tuple[tuple[str, VoxelSize, Triple, GrowthSpec], ...] = (
    ("thin", (400.0, 400.0, 400.0), (128, 160, 160), GrowthSpec()),
    ("thin, 3:1", (1200.0, 400.0, 400.0), (64, 160, 160), GrowthSpec()),
    ("thick", (400.0, 400.0, 400.0), (128, 160, 160), THICK),
    ("thick, 3:1", (1200.0, 400.0, 400.0), (64, 160, 160), THICK),
)
FRAGMENT_VOXELS = (1500, 300, 60, 12)
HEADER = (
    "skeletons",
    "cable",
    "components",
    "rings",
    "tips",
    "branchings",
    "off line, median",
    "95 %",
    "line missed, 95 %",
    "radius",
    "ms",
)


@dataclass(frozen=True, eq=False)
class Lines:
    """Points along the true centre lines: place in nm, radius and neuron of each."""

    place: NDArray[np.float64]
    radius_nm: NDArray[np.float64]
    neuron: NDArray[np.int64]
    cable_nm: float


def main() -> None:
    """Measure what was asked for, print tables, keep the figures."""
    options = _options()
    machine.print_facts()
    figures: dict[str, Any] = {}
    for name, size, shape, growth in PHANTOMS:
        if name in options.only:
            figures[name] = measure(name, size, shape, growth, options)
    save(options.folder.resolve() / "figures", "fused_skeletons", figures)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--neurons", type=int, default=8)
    parser.add_argument("--fragment-voxels", type=int, nargs="+", default=FRAGMENT_VOXELS)
    parser.add_argument("--smoothing", type=float, nargs="+", default=(0.0, 0.25))
    parser.add_argument("--threshold", type=float, default=0.25, help="of the second lookup")
    names = [name for name, *_ in PHANTOMS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    return parser.parse_args()


def measure(
    name: str, size: VoxelSize, shape: Triple, growth: GrowthSpec, options: argparse.Namespace
) -> dict[str, Any]:
    """One phantom: a table for each lookup."""
    spec = PhantomSpec(
        shape=shape, voxel_size_nm=size, neurons=options.neurons, seed=options.seed, growth=growth
    )
    neurons = grow_neurons(spec)
    labels = render(spec, neurons, Roi((0, 0, 0), shape))[1]
    lines = points_along(neurons, size, min(size) / 4)
    _skeletons(labels[:8, :8, :8], size)  # loads libraries: not part of any figure
    rows: dict[str, list[list[object]]] = {"neurons": [], "threshold": []}
    rows["neurons"].append(_truth(neurons))
    whole, spent = _timed(lambda: _skeletons(labels, size))
    rows["neurons"].append(_row("whole segments", whole, lines, size, {}, spent))
    for voxels in options.fragment_voxels:
        fragments, neuron_of = cut(labels, voxels, size, options.seed)
        traced, spent = _timed(lambda f=fragments: _skeletons(f, size))
        contacts, more = _timed(
            lambda f=fragments: find_contacts(f, origin=(0, 0, 0), write_shape=shape)
        )
        note = f"{len(traced)} fragments of {voxels} voxels"
        rows["neurons"].append([f"{note}: once", *[None] * 9, 1000 * (spent + more)])
        rows["threshold"].append([note, *[None] * 10])
        passing = some_contacts(contacts, neuron_of, options.threshold, options.seed)
        segments = apply_lookup(fragments, *passing)
        owner = dict(zip(passing[1].tolist(), neuron_of[1].tolist(), strict=True))
        pieces, spent = _timed(lambda s=segments: _skeletons(s, size))
        count = int(cc3d.connected_components(_small(segments), connectivity=26).max())
        row = _row("whole segments", pieces, lines, size, owner, spent)
        rows["threshold"].append([f"{row[0]} ({count} components)", *row[1:]])
        for smoothing in options.smoothing:
            for kind, lookup, of in (("neurons", neuron_of, {}), ("threshold", passing, owner)):
                fused, spent = _timed(
                    lambda t=traced, c=contacts, m=lookup, s=smoothing: fuse_skeletons(
                        t, c, m, voxel_size_nm=size, settings=SETTINGS, smoothing=s
                    )[0]
                )
                title = f"  fused, {voxels} voxels, smoothing {smoothing:g}"
                rows[kind].append(_row(title, fused, lines, size, of, spent))
    for kind, table in rows.items():
        print_table(f"{name}, voxels of {size} nm, lookup: {kind}", HEADER, table)
    return {kind: [dict(zip(HEADER, row, strict=True)) for row in t] for kind, t in rows.items()}


def _timed(work: Any) -> tuple[Any, float]:
    began = time.process_time()
    out = work()
    return out, time.process_time() - began


def _skeletons(labels: NDArray[np.uint64], size: VoxelSize) -> dict[int, Skeleton]:
    pieces = skeletonize_block(labels, origin=(0, 0, 0), voxel_size_nm=size, settings=SETTINGS)
    return join_pieces([pieces], voxel_size_nm=size, settings=SETTINGS)[0]


def cut(
    labels: NDArray[np.uint64], voxels: int, size: VoxelSize, seed: int
) -> tuple[NDArray[np.uint64], SparseMap]:
    """Labels cut into Voronoi cells of about so many voxels, and the label of each fragment.

    A cell that falls apart (6 neighbours) is several fragments.
    """
    rng = np.random.default_rng([seed, voxels])
    at = np.argwhere(labels)
    seeds = at[rng.random(len(at)) < 1 / voxels]
    cell = cKDTree(seeds * size).query(at * np.asarray(size))[1]
    own = labels[tuple(at.T)]
    keys = np.zeros(labels.shape, np.uint32)
    pair = own * np.uint64(len(seeds)) + cell.astype(np.uint64)
    keys[tuple(at.T)] = np.unique(pair, return_inverse=True)[1] + 1
    fragments = np.asarray(cc3d.connected_components(keys, connectivity=6)).astype(np.uint64)
    ids, first = np.unique(fragments[tuple(at.T)], return_index=True)
    return fragments, (ids, own[first])


def some_contacts(
    contacts: Contacts, neuron_of: SparseMap, threshold: float, seed: int
) -> SparseMap:
    """Fragments joined by the contacts inside neurons whose random score passes a threshold."""
    ids, neurons = neuron_of
    one, other = np.searchsorted(ids, contacts.a), np.searchsorted(ids, contacts.b)
    scores = np.random.default_rng([seed, len(contacts)]).random(len(contacts))
    passing = (neurons[one] == neurons[other]) & (scores >= threshold)
    pairs = (one[passing], other[passing])
    graph = coo_array((np.ones(len(pairs[0])), pairs), (len(ids), len(ids)))
    group = connected_components(graph, directed=False)[1]
    first = np.unique(group, return_index=True)[1]
    return ids, ids[first[group]]


def _small(labels: NDArray[np.uint64]) -> NDArray[np.uint32]:
    found = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    return found.astype(np.uint32) if (labels == 0).any() else found.astype(np.uint32) + 1


def points_along(neurons: Sequence[Skeleton], size: VoxelSize, step_nm: float) -> Lines:
    """The edges of all neurons as points no further apart than a step; neuron i is label i + 1."""
    places, radii, owners = [], [], []
    for label, neuron in enumerate(neurons, 1):
        ends, thick = neuron.nodes[neuron.edges] * size, neuron.radii_nm[neuron.edges]
        for (begin, end), (first, last) in zip(ends, thick, strict=True):
            count = 2 + int(np.linalg.norm(end - begin) / step_nm)
            share = np.linspace(0, 1, count)
            places.append(begin + (end - begin) * share[:, None])
            radii.append(first + (last - first) * share)
            owners.append(np.full(count, label))
    cable = sum(float(n.edge_lengths_nm(size).sum()) for n in neurons)
    return Lines(np.concatenate(places), np.concatenate(radii), np.concatenate(owners), cable)


def _degrees(skeleton: Skeleton) -> NDArray[np.int64]:
    return np.bincount(skeleton.edges.ravel(), minlength=len(skeleton.nodes))


def _truth(neurons: Sequence[Skeleton]) -> list[object]:
    degree = np.concatenate([_degrees(n) for n in neurons])
    tips, branchings = int((degree <= 1).sum()), int((degree > 2).sum())
    return ["the true lines", 1.0, len(neurons), 0, tips, branchings, *[None] * 5]


def _row(
    title: str,
    skeletons: dict[int, Skeleton],
    lines: Lines,
    size: VoxelSize,
    owner: dict[int, int],
    seconds: float,
) -> list[object]:
    """One line of the table; lengths in the shortest voxel edge."""
    unit, off, radius = min(size), [], []
    missed = np.full(len(lines.place), np.inf)
    cable, parts, rings, degree = 0.0, 0, 0, []
    trees: dict[int, tuple[cKDTree, NDArray[np.int64]]] = {}
    for label, skeleton in skeletons.items():
        neuron = owner.get(label, label)
        if neuron not in trees:
            own = np.flatnonzero(lines.neuron == neuron)
            trees[neuron] = cKDTree(lines.place[own]), own
        tree, own = trees[neuron]
        place = skeleton.nodes * size
        distance, at = tree.query(place)
        off.append(distance / unit)
        radius.append(skeleton.radii_nm / lines.radius_nm[own[at]])
        missed[own] = np.minimum(missed[own], cKDTree(place).query(lines.place[own])[0])
        cable += float(skeleton.edge_lengths_nm(size).sum())
        degree.append(_degrees(skeleton))
        count = len(skeleton.nodes)
        graph = coo_array((np.ones(len(skeleton.edges)), tuple(skeleton.edges.T)), (count, count))
        components = connected_components(graph, directed=False)[0]
        parts += components
        rings += len(skeleton.edges) - count + components
    degrees, offs = np.concatenate(degree), np.concatenate(off)
    return [
        title,
        cable / lines.cable_nm,
        int(parts),
        int(rings),
        int((degrees <= 1).sum()),
        int((degrees > 2).sum()),
        float(np.median(offs)),
        float(np.percentile(offs, 95)),
        float(np.percentile(missed, 95) / unit),
        float(np.median(np.concatenate(radius))),
        1000 * seconds,
    ]


if __name__ == "__main__":
    main()
