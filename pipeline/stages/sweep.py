"""Sweep: the scores of any number of thresholds, from tables.

1. `fragment_labels` reads the chunks of the fragments that hold nodes of tracings, each once.
2. `contingency` reads fragments and dense labels, each box once, and counts what they share.
3. `sweep` walks down the merge history. From one threshold to the next it renames the labels at
   the nodes and the rows of the table, and scores them: no voxel is read for a threshold.

The fragments are those of a finished segmentation, a foreign input of this run. Scores are those of
its segments before small ones are dropped (`min_voxels`): the history knows nothing of sizes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.agglomerate import MergeHistory, fragment_to_segment
from pipeline.arrays.contingency import (
    VoxelScores,
    describe_voxel_conventions,
    rename_fragments,
    score_contingency,
)
from pipeline.arrays.labels import SparseMap
from pipeline.arrays.metrics import Scores, score_forests
from pipeline.arrays.relabel import apply_lookup
from pipeline.arrays.skeleton_forest import build_forest
from pipeline.config import RunConfig
from pipeline.errors import DataError, DtypeError, InputError
from pipeline.geometry import Block, BlockGrid
from pipeline.report.sweep_chart import as_png, as_svg, draw_sweep
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.dense_labels import check_truth_labels
from pipeline.stages.dense_truth import (
    holds_scored,
    read_overlap,
    scored_labels_parameters,
    write_overlap,
)
from pipeline.stages.history import HISTORY_COLUMNS, history_reach, read_history
from pipeline.stages.label_placement import about_outside
from pipeline.stages.node_labels import (
    chunk_grid,
    gather_node_labels,
    holds_nodes,
    read_node_labels,
)
from pipeline.stages.run import Run
from pipeline.stages.truth import (
    check_truth,
    describe_placement,
    located_parameters,
    outside_volume,
    scored_truth,
    scoring_options,
    truth_parameters,
)
from pipeline.storage.atomic import replacing, write_json, write_text
from pipeline.storage.source import open_source
from pipeline.storage.volume import Volume

# Work is cut into boxes of whole chunks of about this extent.
_EXTENT = 256
# Steps from the lower end of the history to 1, where no thresholds are asked for.
_STEPS = 20


def sweep_stages(config: RunConfig) -> tuple[Stage, ...]:
    """The stages for what is given: tracings, dense labels or both."""
    nodes = (FRAGMENT_LABELS,) if config.input.skeletons is not None else ()
    voxels = (CONTINGENCY,) if config.input.labels is not None else ()
    return (*nodes, *voxels, SWEEP)


def _fragments(run: Run) -> Volume:
    path = run.path("source_fragments")
    source = open_source(path)
    if not isinstance(source, Volume) or source.channels is not None or source.dtype != np.uint64:
        raise DtypeError(f"{path}: expected fragments as zarr (z, y, x) of uint64")
    return source


def _grid(run: Run) -> BlockGrid:
    _fragments(run)
    return chunk_grid(run.path("source_fragments"), run.shape, (_EXTENT,) * 3)


# --- labels at nodes


def _fragment_labels(block: Block, run: Run) -> BlockResult:
    return read_node_labels("fragment_labels", run.path("source_fragments"), _grid(run), block, run)


def _check_nodes(run: Run) -> None:
    _fragments(run)
    check_truth(run)


FRAGMENT_LABELS = Stage(
    name="fragment_labels",
    version=3,
    reads=("source_fragments", "source_skeletons"),
    writes=("fragment_labels",),
    parameters=located_parameters,
    grid=_grid,
    create=lambda run: run.path("fragment_labels").mkdir(parents=True),
    check=_check_nodes,
    wanted=lambda block, run: holds_nodes(run, _grid(run), block),
    process=_fragment_labels,
)


# --- voxels shared with dense labels


def _contingency(block: Block, run: Run) -> BlockResult:
    return write_overlap("contingency", block, run.path("source_fragments"), run)


def _check_labels(run: Run) -> None:
    check_truth_labels(run, _fragments(run).shape, "the segmentation")


CONTINGENCY = Stage(
    name="contingency",
    version=1,
    reads=("source_fragments", "source_labels"),
    writes=("contingency",),
    parameters=scored_labels_parameters,
    grid=_grid,
    create=lambda run: run.path("contingency").mkdir(parents=True),
    check=_check_labels,
    wanted=holds_scored,
    process=_contingency,
)


# --- the walk down the history


def sweep_thresholds(run: Run) -> tuple[float, ...]:
    """As configured, else evenly from the lower end of the history to 1; rising."""
    configured = run.config.sweep.thresholds
    if configured is not None:
        return configured
    lowest = history_reach(run.path("source_history"))
    steps = np.linspace(lowest, 1.0, _STEPS + 1)[1:].round(6).tolist()
    return tuple(sorted({lowest, *steps}))


def successive_lookups(
    history: MergeHistory, thresholds: Sequence[float]
) -> Iterator[tuple[float, SparseMap]]:
    """The thresholds, highest first, each with what it makes of the segments of the one before.

    Each merge is in one lookup: a walk down costs little more than its lowest threshold alone.
    """
    for threshold in sorted(set(thresholds), reverse=True):
        lookup = fragment_to_segment(history, threshold)
        # Every merge absorbs one region, which never comes again.
        history = _without_first(history, len(lookup[0]))
        yield threshold, lookup


def _without_first(history: MergeHistory, merges: int) -> MergeHistory:
    arrays = {name: getattr(history, name)[merges:] for name in HISTORY_COLUMNS}
    return MergeHistory(**arrays, threshold=history.threshold, scale=history.scale)


class _NodeJudge:
    """Scores the labels at the nodes, which it renames from threshold to threshold."""

    def __init__(self, run: Run) -> None:
        truth = scored_truth(run)
        self.size, self.options = run.voxel_size_nm, scoring_options(run)
        self.forests = [build_forest(skeleton, self.size) for skeleton in truth]
        beyond = outside_volume(run)
        self.outside = beyond.of(truth)
        self.every_outside = sum(beyond.nodes.values())
        self.left_out = list(beyond.left_out)
        self.warnings = list(about_outside(beyond, run))
        self.ends = np.cumsum([len(skeleton.nodes) for skeleton in truth])
        self.labels = gather_node_labels("fragment_labels", run)
        self.conventions: dict[float, dict[str, str]] = {}

    def _score(self, labels: NDArray[np.uint64]) -> Scores:
        parts = np.split(labels, self.ends[:-1])
        return score_forests(self.forests, parts, self.size, self.options, self.outside)

    def step(self, threshold: float, lookup: SparseMap) -> dict[str, Any]:
        """The overall measures after the merges of a lookup."""
        self.labels = apply_lookup(self.labels, *lookup)
        scores = self._score(self.labels)
        self.conventions[threshold] = scores.conventions
        # With those of tracings that are left out.
        return dict(scores.overall) | {"out_of_bounds_nodes": self.every_outside}

    def perfect(self) -> dict[str, Any]:
        """The measures of a segmentation without errors."""
        counts = np.diff(self.ends, prepend=0)
        own = np.arange(1, len(counts) + 1, dtype=np.uint64)
        return dict(self._score(np.repeat(own, counts)).overall)


class _VoxelJudge:
    """Scores the table of fragments and dense labels, which it renames in the same way."""

    def __init__(self, run: Run) -> None:
        self.table = read_overlap("contingency", run)
        if not len(self.table):
            raise DataError(
                f"{run.path('source_labels')}: no voxel has a label other than 0 and 2^64 - 1 in "
                f"{run.score_roi}; give dense labels of the scored box, or leave --labels out"
            )

    def step(self, lookup: SparseMap) -> VoxelScores:
        """The scores after the merges of a lookup."""
        self.table = rename_fragments(self.table, *lookup)
        return score_contingency(self.table)


def _sweep(_block: Block, run: Run) -> BlockResult:
    given = run.config.input
    nodes = _NodeJudge(run) if given.skeletons is not None else None
    voxels = _VoxelJudge(run) if given.labels is not None else None
    history = read_history(run.path("source_history"))
    rows: list[dict[str, Any]] = []
    for threshold, lookup in successive_lookups(history, sweep_thresholds(run)):
        row: dict[str, Any] = {"threshold": threshold}
        if nodes is not None:
            row["overall"] = nodes.step(threshold, lookup)
        if voxels is not None:
            row["voxels"] = voxels.step(lookup)
        rows.append(row)
    best = best_thresholds(rows)
    result: dict[str, Any] = {
        "best": best,
        "rows": rows[::-1],
        "recorded_down_to": history.threshold,
        "conventions": dict(_CONVENTIONS),
    }
    if nodes is not None:
        result["ceiling"] = {"overall": nodes.perfect()}
        result["conventions"] |= _REPAIR_COUNTS | nodes.conventions[best["nerl"]["threshold"]]
        result["conventions"] |= describe_placement(run)
        result |= {"left_out": nodes.left_out} if nodes.left_out else {}
        result |= {"warnings": nodes.warnings} if nodes.warnings else {}
    if voxels is not None:
        result["conventions"] |= describe_voxel_conventions()
    _write(result, run)
    return BlockResult(stats={"thresholds": len(rows), "merges": len(history)})


def best_thresholds(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The best rows by normalized ERL and by VOI, of equal ones that of the highest threshold."""
    best = {}
    if "overall" in rows[0]:
        row = max(rows, key=lambda r: (round(r["overall"]["nerl"], 9), r["threshold"]))
        best["nerl"] = {"threshold": row["threshold"], "nerl": row["overall"]["nerl"]}
    if "voxels" in rows[0]:
        row = min(rows, key=lambda r: (round(r["voxels"]["voi"], 9), -r["threshold"]))
        best["voi"] = {"threshold": row["threshold"], "voi": row["voxels"]["voi"]}
    return best


_CONVENTIONS = {
    "best": (
        "highest normalized ERL, lowest VOI; of equal ones the highest threshold. Chosen on what "
        "is scored here: to publish a score, choose on other data"
    ),
    "thresholds": "fragments are merged while the mean affinity of their contact is at least this",
    "small_segments": "none are dropped: min_voxels of the segmentation is not applied",
}
_REPAIR_COUNTS = {
    "repair_counts": "where the text on repair states numbers, they are those of the best nerl"
}


def _write(result: dict[str, Any], run: Run) -> None:
    write_json(run.path("sweep"), result)
    write_text(run.path("sweep_table"), _as_csv(result["rows"]))
    ceiling = result["ceiling"]["overall"]["nerl"] if "ceiling" in result else None
    figure = draw_sweep(result["rows"], result["best"], ceiling)
    write_text(run.path("sweep_drawing"), as_svg(figure))
    with replacing(run.path("sweep_picture")) as temporary:
        temporary.write_bytes(as_png(figure))


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    flat = [
        {"threshold": row["threshold"], **row.get("overall", {}), **row.get("voxels", {})}
        for row in rows
    ]
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _check_sweep(run: Run) -> None:
    given = run.config.input
    if given.skeletons is None and given.labels is None:
        raise InputError("sweep: give --skeletons, --labels or both: there is nothing to score by")
    path = run.path("source_history")
    reach, lowest = history_reach(path), min(sweep_thresholds(run))
    if lowest < reach:
        raise InputError(
            f"threshold {lowest} lies below {reach}, down to which {path} was recorded: what "
            "merges there is not known. To record more, segment again with a lower threshold "
            f"beside the present one, as in axonloom segment ... --threshold {reach} "
            f"--threshold {lowest} (the first one makes the segments)"
        )


def _sweep_parameters(run: Run) -> dict[str, Any]:
    parameters: dict[str, Any] = {"thresholds": sweep_thresholds(run)}
    if run.config.input.skeletons is not None:
        names = {"repair", "max_gap_nm", "merge_min_nodes", "merge_min_nm"}
        parameters |= truth_parameters(run)
        parameters |= run.config.evaluate.model_dump(include=names)
    return parameters


def _create_sweep(run: Run) -> None:
    for name in SWEEP.writes:
        write_text(run.path(name), "")


SWEEP = Stage(
    name="sweep",
    version=2,
    reads=("source_history",),
    optional=("source_skeletons", "fragment_labels", "contingency"),
    writes=("sweep", "sweep_table", "sweep_picture", "sweep_drawing"),
    parameters=_sweep_parameters,
    grid=one_block,
    create=_create_sweep,
    check=_check_sweep,
    process=_sweep,
)
