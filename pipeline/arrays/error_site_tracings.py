"""The sites of errors as tracings: what lies between, what is missing, what is joined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.arrays.error_site_kernels import background_stretches, path_between
from pipeline.arrays.error_site_rows import MERGE_SITE, SPLIT_SITE, walk_of
from pipeline.arrays.error_sites import Sites
from pipeline.arrays.metrics import Scores
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import Floats, Forest, Integers

SWC_TYPES = {"split": 10, "merge": 11, "omission": 12}
"""The structure type that marks each kind; SWC leaves the numbers from 7 on to its users."""


@dataclass(frozen=True, eq=False)
class SiteTracing:
    """The sites of one neuron.

    Attributes:
        skeleton: a tree for each site, named as the neuron: of a split the path between its ends,
            of an omission its nodes and the labelled ones beside it, of a merge the line between
            the two neurons. `types` are those of `SWC_TYPES`.
        sites: (T,) the site that each tree shows, an index into the table; ascending.
    """

    skeleton: Skeleton
    sites: Integers


def trace_sites(
    skeletons: Sequence[Skeleton], forests: Sequence[Forest], scores: Scores, sites: Sites
) -> list[SiteTracing]:
    """A tracing for each neuron that has a site, by name; a merge is shown on both of its neurons.

    The arguments are those of `find_sites` and its result.
    """
    of_neuron: dict[int, list[int]] = defaultdict(list)
    for row, pair in enumerate(zip(sites.neuron_a.tolist(), sites.neuron_b.tolist(), strict=True)):
        for number in set(pair):
            of_neuron[number].append(row)
    by_name = sorted(of_neuron, key=lambda number: skeletons[number].name)
    return [
        _trace(number, skeletons[number], forests[number], scores, sites, of_neuron[number])
        for number in by_name
    ]


def _trace(
    number: int, skeleton: Skeleton, forest: Forest, scores: Scores, sites: Sites, rows: list[int]
) -> SiteTracing:
    position = np.empty(len(forest.order), np.int64)
    position[forest.order] = np.arange(len(forest.order))
    stretches = _Stretches(number, skeleton, forest, scores)
    kinds = list(SWC_TYPES.values())
    nodes, edges, types = [np.zeros((0, 3))], [np.zeros((0, 2), np.int64)], []
    count = 0
    for row in rows:
        kind = int(sites.kind[row])
        if kind == MERGE_SITE:
            places: Floats = np.stack([sites.end_a_vox[row], sites.end_b_vox[row]])
            links = np.array([[1, 0]])
        else:
            if kind == SPLIT_SITE:
                ends = position[sites.node_a[row]], position[sites.node_b[row]]
                members = np.sort(path_between(forest.up, *ends))
            else:
                members = stretches.around(position[sites.node[row]])
            places = skeleton.nodes[forest.order[members]]
            links = _links(forest, members)
        nodes.append(places)
        edges.append(links + count)
        types += [kinds[kind]] * len(places)
        count += len(places)
    traced = Skeleton(
        skeleton.name, np.concatenate(nodes), np.concatenate(edges), types=np.array(types)
    )
    return SiteTracing(traced, np.array(rows, np.int64))


def _links(forest: Forest, members: Integers) -> Integers:
    """Edges (child, parent) among ascending positions, as indices into these."""
    parent = forest.up[members]
    at = np.minimum(np.searchsorted(members, parent), len(members) - 1)
    child = np.flatnonzero((parent >= 0) & (members[at] == parent))
    return np.stack([child, at[child]], axis=1)


class _Stretches:
    """The positions of each background stretch of a skeleton and of the labelled nodes beside."""

    def __init__(self, number: int, skeleton: Skeleton, forest: Forest, scores: Scores) -> None:
        walk = walk_of(number, skeleton, forest, scores)
        self.stretch, _ = background_stretches(walk.labels, walk.nodes, forest.up, walk.length)
        child = np.flatnonzero(forest.up >= 0)
        own, above = self.stretch[child], self.stretch[forest.up[child]]
        inside = np.flatnonzero(self.stretch >= 0)
        labelled = np.concatenate(
            [forest.up[child][(own >= 0) & (above < 0)], child[(own < 0) & (above >= 0)]]
        )
        beside = np.concatenate([own[(own >= 0) & (above < 0)], above[(own < 0) & (above >= 0)]])
        members = np.concatenate([inside, labelled])
        groups = np.concatenate([self.stretch[inside], beside])
        order = np.lexsort((members, groups))
        self._members = members[order]
        self._ends = np.cumsum(np.bincount(groups))

    def around(self, position: int) -> Integers:
        """Ascending positions of the stretch that holds a position, and those beside it."""
        number = self.stretch[position]
        start = self._ends[number - 1] if number else 0
        return self._members[start : self._ends[number]]
