"""The choices in scoring, and the text that says how the numbers were made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.errors import InputError


@dataclass(frozen=True)
class ScoringOptions:
    """What may be chosen; the defaults are the paper's.

    Attributes:
        repair: close background gaps between nodes of equal label first.
        max_gap_nm: the longest gap to close, from labelled node to labelled node; None: any.
        merge_min_nodes: a label is on a skeleton if at least so many nodes carry it ...
        merge_min_nm: ... along edges of at least this length in all.
    """

    repair: bool = True
    max_gap_nm: float | None = None
    merge_min_nodes: int = 1
    merge_min_nm: float = 0.0

    def __post_init__(self) -> None:
        if self.max_gap_nm is not None and not 0 <= self.max_gap_nm < math.inf:
            raise InputError(f"max_gap_nm: expected a length or None, got {self.max_gap_nm}")
        if self.merge_min_nodes < 1 or self.merge_min_nodes != int(self.merge_min_nodes):
            raise InputError(f"merge_min_nodes: expected 1 or more, got {self.merge_min_nodes}")
        if not 0 <= self.merge_min_nm < math.inf:
            raise InputError(f"merge_min_nm: expected a length, got {self.merge_min_nm}")


@dataclass(frozen=True)
class RepairEffect:
    """Numbers of nodes that the repair concerned, with the limit on gaps and without."""

    repaired: int
    ambiguous: int
    repaired_unlimited: int
    ambiguous_unlimited: int


def _repair_text(options: ScoringOptions, effect: RepairEffect) -> str:
    if not options.repair:
        return "none: the labels are judged as they are"
    rule = (
        "first, on the labels as given: background nodes on a path between two nodes of equal "
        "label, whose inner nodes are all background, take that label; a node that two or more "
        "labels claim stays background and is counted as ambiguous. Per node, volumes unchanged"
    )
    if options.max_gap_nm is None:
        return f"{rule}. Gaps of any length"
    return (
        f"{rule}. Only paths of at most {float(options.max_gap_nm)} nm, measured between the two "
        f"labelled nodes: {effect.repaired} nodes repaired, {effect.ambiguous} ambiguous; without "
        f"that limit {effect.repaired_unlimited} and {effect.ambiguous_unlimited}"
    )


def describe_conventions(
    options: ScoringOptions, voxel_size_nm: tuple[float, float, float], effect: RepairEffect
) -> dict[str, str]:
    """Every convention behind a set of scores, in words, by topic."""
    tolerance = (
        f"a label is on a skeleton if at least {options.merge_min_nodes} of its nodes carry it, "
        f"along edges of at least {float(options.merge_min_nm)} nm in all"
    )
    size = " x ".join(str(float(s)) for s in voxel_size_nm)
    return {
        "voxel_size_nm": f"{size} (z, y, x); a node's voxel is the floor of its coordinates",
        "repair": _repair_text(options, effect),
        "merge_tolerance": tolerance,
        "splits": (
            "components of equal label along the skeleton - trees with a labelled node; several "
            "roots are no split, a wholly omitted tree counts 0"
        ),
        "splits_per_neuron": "mean of splits over skeletons, weighted with their edges",
        "edges": (
            "omit: an end is background; split: both ends labelled, labels differ; merged: equal "
            "labels, and the label is merging; correct: the rest. Each edge is one of the four"
        ),
        "merges": (
            "merging label: on two or more skeletons; its edges are merged on every skeleton, also "
            "where it falls short of the tolerance. merges_total: sum over merging labels of "
            "(skeletons - 1); merged_pairs: pairs of skeletons that share a merging label; "
            "merged_components: components that carry one. For one skeleton: merging labels on it, "
            "the other skeletons these are on (counted per label in merges_total, once in "
            "merged_pairs), its components that carry one"
        ),
        "percentages": "of the edges, pooled over skeletons, after repair; 0 to 100",
        "edge_accuracy": "100 - (pct_omit + pct_merged); strict: - pct_split too",
        "erl": (
            "per skeleton the sum over components of correct edges of size^2 / size of the "
            "skeleton, nerl that / size of the skeleton; averaged with the sizes as weights. Size "
            "is edges, in *_nm length"
        ),
        "ffn_erl": (
            "Januszewski et al. 2018: without repair; lengths summed by segment, a segment on two "
            f"or more skeletons scores 0 in all. Voxel size {size} nm; {tolerance}. ffn_nerl_nm is "
            "the ratio of sums to the value of a perfect segmentation"
        ),
        "rates": (
            "run_length_nm: length of all edges; split_rate_nm, merge_rate_nm: run length per "
            "split, per merge (merges_total); null without events"
        ),
        "no_edges": "a skeleton without edges scores 0 in every percentage and run length",
    }
