"""The scores of a run's segments on its tracings, as several stages need them.

One process that runs these stages one after the other roots the tracings and scores them once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.metrics import Forest, Scores, build_forests, score_forests
from pipeline.arrays.skeleton import Skeleton
from pipeline.stages.node_labels import by_tracing, gather_node_labels
from pipeline.stages.renaming import Renaming, renaming_parameters
from pipeline.stages.run import Run
from pipeline.stages.truth import outside_volume, scored_truth, scoring_options, truth_parameters


@dataclass(frozen=True, eq=False)
class TracingScores:
    """Tracings and how they are scored.

    Attributes:
        truth: the tracings.
        forests: the same, rooted.
        stored: (N,) uint64 labels at all nodes as the volume has them.
        labels: per tracing, the labels that are scored: renamed.
        outside: per tracing, how many nodes lie outside the volume.
        scores: of the labels.
    """

    truth: list[Skeleton]
    forests: list[Forest]
    stored: NDArray[np.uint64]
    labels: list[NDArray[np.uint64]]
    outside: list[int]
    scores: Scores

    def of_labels(self, labels: NDArray[np.uint64], run: Run) -> Scores:
        """The scores of other labels at all nodes, (N,) uint64."""
        parts = by_tracing(labels, run)
        options = scoring_options(run)
        return score_forests(self.forests, parts, run.voxel_size_nm, options, self.outside)


def tracing_scores(run: Run) -> TracingScores:
    """The scores of the segments; kept in memory until something that they depend on changes."""
    files = [run.foreign(name) for name in ("source_lookup", "source_excluded")]
    stamps = tuple(path.stat().st_mtime_ns if path else 0 for path in files)
    ledger = run.ledger_file("node_labels").stat().st_mtime_ns
    return _tracing_scores(run, run.token, run.truth_stamp, ledger, stamps)


@lru_cache(maxsize=1)
def _tracing_scores(
    run: Run, _token: str, _truth: str, _ledger: int, _files: tuple[int, ...]
) -> TracingScores:
    truth, size = scored_truth(run), run.voxel_size_nm
    forests = build_forests(truth, size)
    outside = outside_volume(run).of(truth)
    stored = gather_node_labels("node_labels", run)
    labels = by_tracing(Renaming.of(run).apply(stored), run)
    scores = score_forests(forests, labels, size, scoring_options(run), outside)
    return TracingScores(truth, forests, stored, labels, outside, scores)


def scoring_parameters(run: Run) -> dict[str, Any]:
    """The part of the configuration that the scores of given labels depend on."""
    names = {"repair", "max_gap_nm", "merge_min_nodes", "merge_min_nm"}
    return {
        **truth_parameters(run),
        **run.config.evaluate.model_dump(include=names),
        **renaming_parameters(run),
    }
