"""What the scores of skeletons are made of: counts that add up, and the measures they give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

Measures = dict[str, float | int | None]


@dataclass(frozen=True)
class Sums:
    """What is counted on one skeleton; each field adds up over skeletons.

    `square_*` are sums over components of correct edges of their squared size (edges or nm); a
    `share` is that over the size of the skeleton.
    """

    edges: int
    correct: int
    omit: int
    split: int
    merged: int
    splits: int
    weighted_splits: int
    merged_components: int
    repaired: int
    ambiguous: int
    outside: int
    square_edges: int
    share_edges: float
    length_nm: float
    square_length: float
    square_nm: float
    share_nm: float
    ffn_square_nm: float


def ratio(part: float, whole: float) -> float:
    """part / whole; 0 where there is no edge or no length to divide by."""
    return part / whole if whole else 0.0


def add_sums(sums: Sequence[Sums]) -> Sums:
    """The sums of all skeletons together; floats are rounded once, whatever the order."""
    total: dict[str, Any] = {}
    for field in fields(Sums):
        column = [getattr(each, field.name) for each in sums]
        total[field.name] = math.fsum(column) if isinstance(column[0], float) else sum(column)
    return Sums(**total)


def measures(sums: Sums, merges_total: int, merging_labels: int, merged_pairs: int) -> Measures:
    """The measures of one skeleton or, from added sums, of all: weights are edges or lengths."""
    edges, length = sums.edges, sums.length_nm
    return {
        "edges": edges,
        "correct_edges": sums.correct,
        "omit_edges": sums.omit,
        "split_edges": sums.split,
        "merged_edges": sums.merged,
        "splits": sums.splits,
        "merges_total": merges_total,
        "merging_labels": merging_labels,
        "merged_pairs": merged_pairs,
        "merged_components": sums.merged_components,
        "pct_omit": ratio(100 * sums.omit, edges),
        "pct_split": ratio(100 * sums.split, edges),
        "pct_merged": ratio(100 * sums.merged, edges),
        "edge_accuracy": ratio(100 * (sums.correct + sums.split), edges),
        "edge_accuracy_strict": ratio(100 * sums.correct, edges),
        "erl": ratio(sums.square_edges, edges),
        "nerl": ratio(sums.share_edges, edges),
        "erl_nm": ratio(sums.square_nm, length),
        "nerl_nm": ratio(sums.share_nm, length),
        "ffn_erl_nm": ratio(sums.ffn_square_nm, length),
        "ffn_nerl_nm": ratio(sums.ffn_square_nm, sums.square_length),
        "split_rate_nm": length / sums.splits if sums.splits else None,
        "merge_rate_nm": length / merges_total if merges_total else None,
        "run_length_nm": length,
        "ambiguous_nodes": sums.ambiguous,
        "out_of_bounds_nodes": sums.outside,
        "repaired_nodes": sums.repaired,
    }
