"""Evaluate: labels at the nodes of the tracings, then scores from tables.

1. `node_labels` reads each chunk that holds nodes once.
2. `baseline` does the same for threshold + connected components of the image: components are made
   and stitched as fragments are, so that the baseline has no seams either.
3. `evaluate` scores both, into metrics.json and neurons.csv.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.bootstrap import bootstrap_intervals
from pipeline.arrays.fragments import LOWER, UPPER, extract_fragments
from pipeline.arrays.metrics import perfect_overall
from pipeline.arrays.relabel import apply_lookup
from pipeline.arrays.stitch import joined_pairs, resolve
from pipeline.arrays.threshold import mask_affinities
from pipeline.errors import DtypeError, ShapeError
from pipeline.geometry import Block, BlockGrid
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.block_tables import predecessor, read_faces, write_record
from pipeline.stages.ingest import round_up, statistics_of
from pipeline.stages.node_labels import (
    chunk_grid,
    gather_node_labels,
    holds_nodes,
    keep_node_labels,
    read_node_labels,
)
from pipeline.stages.renaming import Renaming, check_renaming
from pipeline.stages.run import Run
from pipeline.stages.tracing_scores import scoring_parameters, tracing_scores
from pipeline.stages.truth import (
    check_truth,
    describe_placement,
    located_parameters,
    outside_volume,
)
from pipeline.storage.atomic import write_json, write_text
from pipeline.storage.parquet import write_parquet
from pipeline.storage.source import open_source


def _check(run: Run) -> None:
    check_truth(run)
    check_segments(run)
    check_renaming(run)


def check_segments(run: Run) -> None:
    """Refuse a given segmentation that is none of this volume."""
    foreign = run.foreign("segments")
    if foreign is None:
        return
    segments = open_source(foreign)
    if segments.dtype.kind not in "iub":
        raise DtypeError(f"{foreign}: a segmentation holds integers, got {segments.dtype}")
    if segments.shape != run.shape:
        raise ShapeError(
            f"{foreign}: segments of shape {segments.shape}, but the volume has {run.shape}"
        )


def _grid(run: Run) -> BlockGrid:
    """Blocks of whole chunks of the segments."""
    foreign, extent = run.foreign("segments"), run.config.evaluate.block
    if foreign is not None:
        return chunk_grid(foreign, run.shape, extent)
    return BlockGrid.over(run.shape, round_up(extent, run.config.chunk))


NODE_LABELS = Stage(
    name="node_labels",
    version=3,
    reads=("segments", "source_skeletons"),
    writes=("node_labels",),
    parameters=located_parameters,
    grid=_grid,
    create=lambda run: run.path("node_labels").mkdir(parents=True),
    check=_check,
    wanted=lambda block, run: holds_nodes(run, _grid(run), block),
    process=lambda block, run: read_node_labels(
        "node_labels", run.path("segments"), _grid(run), block, run
    ),
)


def baseline_threshold(run: Run) -> float:
    """As configured, else chosen on the training region, else Otsu's of the whole volume."""
    configured = run.config.evaluate.baseline_threshold
    if configured is not None:
        return configured
    if run.tuned:
        chosen = json.loads(run.path("tuning").read_text()).get("baseline")
        if chosen:
            return float(chosen["threshold"])
    return statistics_of(run).otsu


def _baseline_grid(run: Run) -> BlockGrid:
    # The predecessor side too: affinities are made here, from both of their voxels.
    return BlockGrid.over(run.shape, run.config.segment.block, (1, 1, 1))


def _baseline(block: Block, run: Run) -> BlockResult:
    mask = run.volume("image").read(block.read) >= baseline_threshold(run)
    z, y, x = block.inner.offset
    found = extract_fragments(
        mask_affinities(mask)[:, z:, y:, x:],
        origin=block.write.offset,
        write_shape=block.write.shape,
        volume_shape=run.shape,
        low=255,
        high=255,
    )
    keep_node_labels("baseline", found.labels, _baseline_grid(run), block, run)
    write_record(run.block_file("baseline_faces", block.index), found)
    return BlockResult(stats={"components": len(found.ids)})


def _create_baseline(run: Run) -> None:
    for name in ("baseline", "baseline_faces"):
        run.path(name).mkdir(parents=True)


BASELINE = Stage(
    name="baseline",
    version=3,
    reads=("image", "statistics", "source_skeletons"),
    optional=("tuning",),
    writes=("baseline", "baseline_faces"),
    parameters=lambda run: {
        **located_parameters(run),
        "threshold": run.config.evaluate.baseline_threshold,
    },
    grid=_baseline_grid,
    create=_create_baseline,
    check=check_truth,
    process=_baseline,
)


def _stitched_baseline(run: Run) -> NDArray[np.uint64]:
    grid = _baseline_grid(run)
    pairs = [np.zeros((0, 2), np.uint64)]
    for block in grid:
        for axis in range(3):
            before = predecessor(grid, block, axis)
            if before is None:
                continue
            lower = read_faces(run.block_file("baseline_faces", block.index), LOWER, axis)
            upper = read_faces(run.block_file("baseline_faces", before.index), UPPER, axis)
            pairs.append(joined_pairs(lower[axis, LOWER], upper[axis, UPPER]))
    united = resolve(np.concatenate(pairs))
    return apply_lookup(gather_node_labels("baseline", run), *united)


def _evaluate(_block: Block, run: Run) -> BlockResult:
    found = tracing_scores(run)
    result = found.scores.as_json()
    renaming = Renaming.of(run)
    missing = len(renaming.absent(found.stored))
    result["conventions"] |= describe_placement(run)
    result["conventions"] |= renaming.conventions(found.stored, missing)
    if renaming.lookup is not None:
        result["lookup"] = {"missing_labels": missing}
    outside = outside_volume(run)
    # With those of tracings that are left out.
    result["overall"]["out_of_bounds_nodes"] = sum(outside.nodes.values())
    if outside.left_out:
        result["left_out"] = list(outside.left_out)
    if run.config.input.labels is not None:
        result["voxels"] = json.loads(run.path("label_scores").read_text())
    resamples = run.config.evaluate.bootstrap
    if resamples:
        names = [skeleton.name for skeleton in found.truth]
        scores = found.scores
        drawn = bootstrap_intervals(names, scores.sums, scores.merges, n_resamples=resamples)
        result["intervals"] = drawn.as_json()
    # Where the region to score cuts a tracing into trees, even no error leaves an nERL below 1.
    result["ceiling"] = {"overall": perfect_overall(found.forests, found.outside)}
    if run.config.evaluate.baseline and run.config.input.image is not None:
        plain = found.of_labels(_stitched_baseline(run), run).as_json()
        result["baseline"] = {
            "threshold": baseline_threshold(run),
            "overall": plain["overall"],
            "per_skeleton": plain["per_skeleton"],
        }
    write_json(run.path("metrics"), result)
    write_text(run.path("neurons"), _as_csv(result["per_skeleton"]))
    _write_parquet(run.path("neurons_parquet"), result["per_skeleton"])
    overall = result["overall"]
    told = ("nerl", "edge_accuracy", "splits", "merges_total")
    return BlockResult(stats={name: overall[name] for name in told if overall[name] is not None})


def _as_csv(rows: dict[str, dict[str, Any]]) -> str:
    text = io.StringIO()
    names = list(next(iter(rows.values())))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["skeleton", *names])
    for name, row in rows.items():
        writer.writerow([name, *("" if row[n] is None else row[n] for n in names)])
    return text.getvalue()


def _write_parquet(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    names = next(iter(rows.values()))
    columns = {name: [row[name] for row in rows.values()] for name in names}
    write_parquet(path, {"skeleton": [*rows], **columns})


def _evaluate_parameters(run: Run) -> dict[str, Any]:
    names = {"baseline", "baseline_threshold", "bootstrap"}
    return {**scoring_parameters(run), **run.config.evaluate.model_dump(include=names)}


def _create_evaluate(run: Run) -> None:
    write_json(run.path("metrics"), {})
    for name in ("neurons", "neurons_parquet"):
        write_text(run.path(name), "")


EVALUATE = Stage(
    name="evaluate",
    version=2,
    reads=("node_labels", "source_skeletons"),
    optional=(
        "baseline",
        "baseline_faces",
        "tuning",
        "label_scores",
        "source_lookup",
        "source_excluded",
    ),
    writes=("metrics", "neurons", "neurons_parquet"),
    parameters=_evaluate_parameters,
    grid=one_block,
    create=_create_evaluate,
    check=check_truth,
    process=_evaluate,
)
