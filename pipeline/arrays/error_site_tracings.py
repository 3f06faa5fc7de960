"""The sites of errors as tracings: what lies between, what is missing, what is joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.arrays.error_site_kernels import MERGE_SITE, SPLIT_SITE, trace_members
from pipeline.arrays.error_sites import Sites
from pipeline.arrays.metrics import Scores
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import Forest, Integers, Labels
from pipeline.threads import map_threads

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
    rows = np.arange(len(sites))
    merged = rows[sites.neuron_a != sites.neuron_b]
    neurons = np.concatenate([sites.neuron_a, sites.neuron_b[merged]])
    rows = np.concatenate([rows, merged])
    order = np.lexsort((rows, neurons))
    sizes = np.bincount(neurons, minlength=len(skeletons))
    groups = np.split(rows[order], np.cumsum(sizes)[:-1])
    by_name = sorted(np.flatnonzero(sizes).tolist(), key=lambda number: skeletons[number].name)
    return map_threads(
        lambda number: _trace(
            skeletons[number],
            forests[number],
            scores.node_labels[number],
            sites,
            groups[number],
        ),
        by_name,
    )


def _trace(
    skeleton: Skeleton, forest: Forest, labels: Labels, sites: Sites, rows: Integers
) -> SiteTracing:
    position = np.empty(len(forest.order), np.int64)
    position[forest.order] = np.arange(len(forest.order))
    kind = sites.kind[rows]
    first = np.where(kind == SPLIT_SITE, sites.node_a[rows], sites.node[rows])
    second = np.where(kind == SPLIT_SITE, sites.node_b[rows], -1)
    # A merge has no position; what -1 leads to is not looked at.
    sizes, members, parent = trace_members(
        labels[forest.order], forest.up, kind, position[first], position[second]
    )
    places = skeleton.nodes[forest.order[members]]
    merged = rows[kind == MERGE_SITE]
    ends = np.stack([sites.end_a_vox[merged], sites.end_b_vox[merged]], axis=1)
    places[members < 0] = ends.reshape(-1, 3)
    child = np.flatnonzero(parent >= 0)
    types = np.repeat(np.array(list(SWC_TYPES.values()))[kind], sizes)
    links = np.stack([child, parent[child]], axis=1)
    return SiteTracing(Skeleton(skeleton.name, places, links, types=types), rows)
