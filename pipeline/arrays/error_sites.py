"""Where a segmentation went wrong: every split, merge and omission along skeletons, with its place.

The counts agree with the scores: split sites of a neuron are its `splits`, merge sites of all
labels `merges_total`, and each edge that is omitted belongs to one omission.

1. splits: each stretch of background and the labelled nodes around it (`nearest_labelled`);
2. omissions: the same stretches, as what is missing (`background_stretches`);
3. merges: for each label on several neurons, the nodes at which these come closest;
4. one table, the most cable first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.error_site_kernels import MERGE_SITE, OMISSION_SITE, SPLIT_SITE
from pipeline.arrays.error_site_rows import (
    Columns,
    VoxelSize,
    merge_rows,
    name_ranks,
    omission_rows,
    split_rows,
    walk_of,
)
from pipeline.arrays.metrics import SPLIT, Scores
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import Floats, Forest, Integers, Labels
from pipeline.errors import InputError, ShapeError
from pipeline.geometry import Triple
from pipeline.threads import map_threads

__all__ = [
    "EXTENTS",
    "KINDS",
    "MERGE_SITE",
    "OMISSION_SITE",
    "SPLIT_SITE",
    "Sites",
    "find_sites",
]

KINDS = ("split", "merge", "omission")
"""What `SPLIT_SITE`, `MERGE_SITE` and `OMISSION_SITE` in `Sites.kind` stand for."""

EXTENTS = ("tree", "dangling", "inside")
"""Of an omission with no, one, and two or more labelled ends."""


@dataclass(frozen=True, eq=False)
class Sites:
    """The n sites of errors, the most cable first; each array has a row a site.

    A *split* lies between two components of one tree that follow each other, with nothing or only
    background between them. Where more than two meet around one stretch of background, the
    shortest paths that join them all are taken (a minimum spanning tree), so a tree has a split
    less than it has components. A *merge* lies between two neurons with one label; of more than
    two, those are paired that come closest (a minimum spanning tree). An *omission* is a maximal
    connected stretch of background nodes. All after repair.

    a comes before b: at splits and omissions by label, then z, y, x; at merges by the neurons'
    names.

    Attributes:
        names: of all skeletons, as given.
        kind: uint8, an index into `KINDS`.
        neuron_a: int64, an index into `names`.
        neuron_b: the other neuron of a merge, else the same.
        label_a: uint64, at end a; 0 where an omission has no such end.
        label_b: at end b; a merge has one label, given twice.
        node_a: int64, the node at end a, an index into the skeleton's nodes; -1 where there is
            none. An omission has as ends the labelled nodes beside it, of more than two those of
            the longest components.
        node_b: the node at end b, of neuron b.
        node: int64, of an omission the node of it that is nearest to the middle of its longest
            path, labelled ends included; -1 at splits and merges.
        edge: int64, of a split without background between the edge; else -1.
        position_vox: (n, 3) z, y, x: of a split the middle of its path, of a merge the middle
            between the two nodes, of an omission its `node`.
        position_nm: (n, 3) the same in nanometres.
        end_a_vox: (n, 3) z, y, x of node a; the position where there is none.
        end_b_vox: (n, 3) of node b.
        gap_nm: of a split the length of its path (exact to 2^-17 nm an edge), of a merge the
            distance between the nodes, of an omission 0.
        background_nodes: int64, along the path of a split; in an omission; 0 at a merge.
        labelled_ends: int64, how many labelled nodes border an omission; else 2.
        cable_a_nm: length of the component at end a; of a merge, of the edges of neuron a that
            carry the label at both ends.
        cable_b_nm: the same at end b.
        cable_nm: what is lost: of a split the shorter of the two components, of a merge both
            sides, of an omission the edges with an end in it.
    """

    names: tuple[str, ...]
    kind: NDArray[np.uint8]
    neuron_a: Integers
    neuron_b: Integers
    label_a: Labels
    label_b: Labels
    node_a: Integers
    node_b: Integers
    node: Integers
    edge: Integers
    position_vox: Floats
    position_nm: Floats
    end_a_vox: Floats
    end_b_vox: Floats
    gap_nm: Floats
    background_nodes: Integers
    labelled_ends: Integers
    cable_a_nm: Floats
    cable_b_nm: Floats
    cable_nm: Floats

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def site(self) -> Integers:
        """(n,) the number of each site, from 1: its rank by cable."""
        return np.arange(1, len(self) + 1)

    @property
    def extent(self) -> list[str]:
        """Of each omission one of `EXTENTS`, of other sites an empty text."""
        place = np.minimum(self.labelled_ends, 2).tolist()
        omitted = (self.kind == OMISSION_SITE).tolist()
        return [EXTENTS[p] if o else "" for p, o in zip(place, omitted, strict=True)]


def find_sites(
    skeletons: Sequence[Skeleton],
    forests: Sequence[Forest],
    scores: Scores,
    voxel_size_nm: VoxelSize,
) -> Sites:
    """Every split, merge and omission, the most cable first.

    The table does not depend on the order of skeletons, nodes and edges, but for the indices of
    these: ties are broken by kind, names, coordinates and labels. (Two nodes of a skeleton at the
    same place with the same label are told apart by their order.)

    Args:
        skeletons: as they were scored.
        forests: of `build_forest`, one per skeleton.
        scores: of `score_forests` with these forests, or of `score` with these skeletons.
        voxel_size_nm: z, y, x.

    Raises:
        ShapeError: skeletons, forests and scores do not belong together.
        InputError: a voxel size that is not positive.
    """
    _check_input(skeletons, forests, scores, voxel_size_nm)
    wrong = [
        number
        for number, (labels, classes) in enumerate(
            zip(scores.node_labels, scores.edge_classes, strict=True)
        )
        if (labels == 0).any() or (classes == SPLIT).any()
    ]

    def along(number: int) -> tuple[Columns, Columns]:
        walk = walk_of(number, skeletons[number], forests[number], scores)
        return split_rows(walk), omission_rows(walk)

    parts = [_no_sites(), *(part for pair in map_threads(along, wrong) for part in pair)]
    parts.append(merge_rows(skeletons, forests, scores, voxel_size_nm))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns["position_nm"] = columns["position_vox"] * np.asarray(voxel_size_nm, np.float64)
    names = tuple(s.name for s in skeletons)
    order = _order(columns, name_ranks(names))
    return Sites(names, **{name: values[order] for name, values in columns.items()})


def moved_sites(sites: Sites, offset: Triple, voxel_size_nm: VoxelSize) -> Sites:
    """The same sites in coordinates in which the volume's first voxel is at `offset`, z, y, x."""
    by = np.asarray(offset, np.float64)
    if not by.any():
        return sites
    moved = {name: getattr(sites, name) + by for name in ("end_a_vox", "end_b_vox")}
    position = sites.position_vox + by
    nm = position * np.asarray(voxel_size_nm, np.float64)
    return replace(sites, position_vox=position, position_nm=nm, **moved)


def _check_input(
    skeletons: Sequence[Skeleton],
    forests: Sequence[Forest],
    scores: Scores,
    voxel_size_nm: VoxelSize,
) -> None:
    if len(voxel_size_nm) != 3 or not all(0 < size < math.inf for size in voxel_size_nm):
        raise InputError(f"voxel size: expected three positive lengths (nm), got {voxel_size_nm}")
    if not len(skeletons) == len(forests) == len(scores.node_labels):
        raise ShapeError(
            f"{len(skeletons)} skeletons, {len(forests)} forests, scores of "
            f"{len(scores.node_labels)}; expected those that were scored"
        )
    for s, forest, labels, classes in zip(
        skeletons, forests, scores.node_labels, scores.edge_classes, strict=True
    ):
        nodes = (len(s.nodes), len(forest.order), len(labels))
        if forest.name != s.name or len(set(nodes)) > 1 or len(s.edges) != len(classes):
            raise ShapeError(
                f"skeleton {s.name} with {nodes[0]} nodes and {len(s.edges)} edges: its forest is "
                f"{forest.name} with {nodes[1]} nodes, its scores have {nodes[2]} nodes and "
                f"{len(classes)} edges; pass skeletons, forests and scores in one order"
            )


def _no_sites() -> Columns:
    places = {"position_vox", "end_a_vox", "end_b_vox"}
    kinds: dict[str, type] = {"kind": np.uint8, "label_a": np.uint64, "label_b": np.uint64}
    columns: Columns = {}
    for field in fields(Sites):
        real = field.name.endswith("_nm")
        if field.name in places:
            columns[field.name] = np.zeros((0, 3))
        elif field.name not in ("names", "position_nm"):
            columns[field.name] = np.zeros(0, kinds.get(field.name, float if real else np.int64))
    return columns


def _order(columns: Columns, ranks: Integers) -> Integers:
    """The order of the sites: cable, then what is the same however nodes are numbered."""
    keys = [
        -columns["cable_nm"],
        columns["kind"],
        ranks[columns["neuron_a"]],
        ranks[columns["neuron_b"]],
        *columns["position_vox"].T,
        columns["label_a"],
        columns["label_b"],
        *columns["end_a_vox"].T,
        *columns["end_b_vox"].T,
        columns["gap_nm"],
        columns["background_nodes"],
        columns["labelled_ends"],
        columns["cable_a_nm"],
        columns["cable_b_nm"],
    ]
    # Few sites are alike in the first keys: only these are told apart by the others.
    order = np.lexsort(keys[3::-1])
    alike = np.ones(max(len(order) - 1, 0), np.bool_)
    for key in keys[:4]:
        alike &= key[order[1:]] == key[order[:-1]]
    tied = np.flatnonzero(np.concatenate([alike, [False]]) | np.concatenate([[False], alike]))
    group = np.cumsum(np.concatenate([[True], ~alike]))[tied] if len(tied) else tied
    rows = order[tied]
    rest = [key[rows] for key in keys[4:]]
    order[tied] = rows[np.lexsort([*rest[::-1], group])]
    return order
