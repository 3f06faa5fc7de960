"""Candidates of a segmentation: low, high and threshold, and what they are judged by.

Every pair of `low` and `high` is segmented once in memory; the merge history then serves every
threshold. Judges are tracings (normalized ERL) or dense labels (VOI).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.agglomerate import agglomerate, fragment_to_segment
from pipeline.arrays.contingency import count_contingency, rename_fragments, score_contingency
from pipeline.arrays.fragments import extract_fragments
from pipeline.arrays.labels import Affinities, SparseMap, quantised_threshold
from pipeline.arrays.metrics import score_forests
from pipeline.arrays.relabel import apply_lookup
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_forest import build_forest
from pipeline.arrays.skeleton_nodes import labels_at_nodes
from pipeline.geometry import Roi, Triple, triple
from pipeline.stages.dense_labels import read_roles
from pipeline.stages.run import Run
from pipeline.stages.truth import scoring_options

Row = dict[str, float]
JudgeLookup = Callable[[SparseMap], Row]


class Judge(Protocol):
    """What candidates are judged by.

    Attributes:
        roi: where they are judged.
        metric: the figure that decides; +1 in `sense` if more is better, else -1.
    """

    roi: Roi
    metric: ClassVar[str]
    sense: ClassVar[int]

    def look(self, fragments: NDArray[np.uint64]) -> JudgeLookup:
        """How to score what the lookup of a threshold makes of these fragments of the region."""


class TracingJudge:
    """Normalized ERL of tracings, which are rooted once."""

    metric: ClassVar[str] = "nerl"
    sense: ClassVar[int] = +1
    _FIGURES = ("nerl", "splits", "merges_total", "pct_omit", "edge_accuracy")

    def __init__(self, run: Run, roi: Roi, skeletons: list[Skeleton]) -> None:
        """The skeletons lie in the box."""
        self.roi = roi
        self._skeletons, self._size = skeletons, run.voxel_size_nm
        self._forests = [build_forest(s, run.voxel_size_nm) for s in skeletons]
        self._options = scoring_options(run)

    def look(self, fragments: NDArray[np.uint64]) -> JudgeLookup:
        """Segments are judged by their labels at the nodes."""
        nodes = self._at_nodes(fragments)
        return lambda lookup: self._score([apply_lookup(n, *lookup) for n in nodes])

    def score(self, labels: NDArray[np.uint64]) -> Row:
        """Figures of labels of the region."""
        return self._score(self._at_nodes(labels))

    def _at_nodes(self, labels: NDArray[np.uint64]) -> list[NDArray[np.uint64]]:
        return [labels_at_nodes(s, labels, self.roi.offset)[0] for s in self._skeletons]

    def _score(self, node_labels: list[NDArray[np.uint64]]) -> Row:
        overall = score_forests(self._forests, node_labels, self._size, self._options).overall
        return {name: float(overall[name] or 0) for name in self._FIGURES}


class LabelJudge:
    """VOI beside dense labels."""

    metric: ClassVar[str] = "voi"
    sense: ClassVar[int] = -1
    _FIGURES = ("voi", "voi_split", "voi_merge", "ari")

    def __init__(self, run: Run, roi: Roi) -> None:
        """Reads the labels of the box."""
        self.roi = roi
        self._truth = read_roles(run, roi)

    def look(self, fragments: NDArray[np.uint64]) -> JudgeLookup:
        """Segments are judged by the voxels that they share with the labels."""
        table = count_contingency(fragments, self._truth)

        def judge(lookup: SparseMap) -> Row:
            scores = score_contingency(rename_fragments(table, *lookup))
            return {name: float(scores[name]) for name in self._FIGURES}

        return judge


def score_candidates(
    affinities: Affinities,
    judge: Judge,
    lows: Sequence[float],
    highs: Sequence[float],
    thresholds: Sequence[float],
) -> Iterator[Row]:
    """A row for each candidate: "low", "high", "threshold" and what the judge says.

    Args:
        affinities: (3, *shape) of the judge's region.
        judge: gives the figures.
        lows, highs, thresholds: all combinations are tried, the last varying fastest.
    """
    scale = int(np.iinfo(affinities.dtype).max)
    for low, high in product(lows, highs):
        fragments, edges = segment_array(affinities, low, high)
        history = agglomerate(edges, min(thresholds), scale)
        score = judge.look(fragments)
        for threshold in thresholds:
            scores = score(fragment_to_segment(history, threshold))
            yield {"low": low, "high": high, "threshold": threshold, **scores}


def best_candidate(rows: Iterable[Row], judge: Judge) -> Row:
    """The best row; of equal ones the most cautious: highest threshold, then low, then high."""
    return max(
        rows,
        key=lambda row: (
            judge.sense * round(row[judge.metric], 9),
            row["threshold"],
            row["low"],
            row["high"],
        ),
    )


def segment_array(
    affinities: Affinities, low: float, high: float
) -> tuple[NDArray[np.uint64], Any]:
    """Fragments of a whole array, and the table of their contacts."""
    shape: Triple = triple(affinities.shape[1:])
    found = extract_fragments(
        affinities,
        origin=(0, 0, 0),
        write_shape=shape,
        volume_shape=shape,
        low=quantised_threshold(low, affinities.dtype),
        high=quantised_threshold(high, affinities.dtype),
    )
    return found.labels, found.edges
