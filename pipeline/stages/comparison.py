"""The comparison of losses: pretrain each seed, fine-tune each loss from it, score, tell.

1. `pretrain` trains one network a seed.
2. `finetune` trains each loss from it. Both score what they trained; rows of a result are the
   segmentation itself, the baseline's after closings, and that of `context` after the paper's
   post-processing.
3. `costs` measures time and memory of a step with each loss.
4. `compare` puts all into one table, with tests against the baseline.

A block of the first two is one training (`comparison_cells`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.arrays.agglomerate import agglomerate, fragment_to_segment
from pipeline.arrays.closing import close_segments
from pipeline.arrays.context_postprocessing import keep_connected
from pipeline.arrays.labels import Labels
from pipeline.arrays.relabel import apply_lookup
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.geometry import Block, BlockGrid
from pipeline.stages import plan
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.candidates import segment_array
from pipeline.stages.comparison_cells import (
    Cell,
    cell_parameters,
    data_parameters,
    finetunings,
    pretrainings,
    steps_made,
    train_cell,
)
from pipeline.stages.comparison_costs import measure_costs, measured_cells
from pipeline.stages.comparison_pictures import (
    Pictures,
    row_pictures,
    truth_pictures,
    write_pictures,
)
from pipeline.stages.comparison_scores import (
    Truth,
    label_components,
    nothing_to_score,
    read_truth,
    score_segments,
)
from pipeline.stages.comparison_table import compare_rows, table_rows
from pipeline.stages.dense_labels import check_truth_labels
from pipeline.stages.dense_truth import holds_truth
from pipeline.stages.prediction import predict_foreground, predict_tissue
from pipeline.stages.run import Run
from pipeline.stages.train import gpu_if
from pipeline.stages.training_volumes import VolumeSource, check_training_runs
from pipeline.stages.truth import check_truth
from pipeline.stages.tune import TUNE, choose_segmentation, tuning_region
from pipeline.storage.atomic import write_json, write_text
from pipeline.storage.fingerprint import digest

if TYPE_CHECKING:
    from pipeline.learning.inference import Predictor

CLOSED = "{} + closing {}"
POSTPROCESSED = "{} + post-processing"
# Raised whenever equal networks give other scores or pictures.
_SCORES = 1
_RESULTS = {"pretrain": "pretrained_results", "finetune": "finetuned_results"}
_BEFORE = ("ingest", "statistics", "placement", "targets")


def comparison_stages(config: RunConfig) -> tuple[Stage, ...]:
    """The stages of `axonloom compare-losses`, producers first.

    Raises:
        ConfigError: nothing to train on.
    """
    before = tuple(stage for stage in plan(config) if stage.name in _BEFORE)
    if not any(stage.name == "targets" for stage in before):
        raise ConfigError(
            "compare-losses trains: name an image, and labels or skeletons to learn from, and no "
            "checkpoint, affinities or segments"
        )
    return (*before, PRETRAIN, FINETUNE, COSTS, COMPARE)


def _cell_grid(count: Callable[[Run], int]) -> Callable[[Run], BlockGrid]:
    """Blocks that are trainings: block i is the i-th cell."""
    return lambda run: BlockGrid.over((count(run), 1, 1), (1, 1, 1))


def _process(cells: Callable[[Run], list[Cell]], stage: str) -> Callable[..., BlockResult]:
    def process(block: Block, run: Run) -> BlockResult:
        cell = cells(run)[block.index]
        summary = train_cell(cell, run)
        result = _scored(cell, run, stage)
        write_json(run.path(_RESULTS[stage]) / f"{block.index:05d}.json", result)
        return BlockResult(stats={"loss": summary["loss"], "steps": summary["steps"]})

    return process


def _scored(cell: Cell, run: Run, stage: str) -> dict[str, Any]:
    """The result of a cell: found beside the network if the same has been scored before."""
    name = f"scores-{digest(_score_description(cell, run, stage))[:12]}"
    path, pictures = cell.folder / f"{name}.json", cell.folder / f"{name}.npz"
    if not path.exists():
        rows, drawn, chosen = _score_cell(cell, run)
        write_pictures(pictures, drawn)
        write_json(path, {"rows": rows, "chosen": chosen})
    kept = json.loads(path.read_text())
    files = {
        "folder": cell.folder.relative_to(run.directory).as_posix(),
        "pictures": pictures.relative_to(run.directory).as_posix(),
    }
    return {"name": cell.name, "seed": cell.seed, **kept, **files}


def _score_description(cell: Cell, run: Run, stage: str) -> dict[str, Any]:
    """What the scores of a trained network depend on."""
    with closing(run.ledger(stage)) as ledger:
        inputs = ledger.header.description["inputs"] if ledger.header else {}
    config = run.config.comparison
    return {
        "version": _SCORES,
        **_score_parameters(run),
        "inputs": {name: key for name, key in inputs.items() if name != "pretrained_results"},
        "closings": config.closing_radii_vox if cell.name == config.baseline else (),
        "name": cell.name,
    }


def _score_cell(cell: Cell, run: Run) -> tuple[dict[str, Any], Pictures, dict[str, Any]]:
    """Scores and pictures of each row that a training gives, and how its segments were made."""
    truth = read_truth(run)
    segments, chosen = _segment(cell, run)
    rows, pictures = {}, truth_pictures(truth, run)
    for name, found in _rows(cell, segments, truth, run):
        rows[name] = score_segments(found, truth, run).as_json()
        drawn = row_pictures(found, truth)
        pictures |= {f"{kind}/{name}": picture for kind, picture in drawn.items()}
    return rows, pictures, chosen


def _rows(cell: Cell, segments: Labels, truth: Truth, run: Run) -> Iterator[tuple[str, Labels]]:
    """Names and segments of the rows."""
    config = run.config.comparison
    yield cell.name, segments
    if cell.name == config.baseline:
        for radius in config.closing_radii_vox:
            yield CLOSED.format(cell.name, radius), _close(segments, radius, truth)
    if cell.start is not None and config.losses[cell.name].name == "context":
        [before] = [c for c in pretrainings(run) if c.folder == cell.start]
        kept = _keep_connected(segments, _segment(before, run)[0], truth)
        yield POSTPROCESSED.format(cell.name), kept


def _segment(cell: Cell, run: Run) -> tuple[Labels, dict[str, Any]]:
    """Segments of the region to score, (Z, Y, X) uint64, and how they were made.

    Foreground is where the probability is at least 1/2; its components are the segments. For
    affinities low, high and threshold are chosen on the region for it, never on what is scored.
    """
    from pipeline.learning.inference import Predictor

    predictor: Predictor = Predictor.load(cell.folder, run.config.predict)
    if run.config.network.output == "foreground":
        mask = predict_foreground(predictor, run, run.score_roi) >= 0.5
        return label_components(mask, run.config.network.dimensions), {"probability": 0.5}
    chosen = choose_segmentation(predict_tissue(predictor, run, tuning_region(run)), run)
    affinities = predict_tissue(predictor, run, run.score_roi)
    fragments, edges = segment_array(affinities, chosen["low"], chosen["high"])
    history = agglomerate(edges, chosen["threshold"], int(np.iinfo(affinities.dtype).max))
    return apply_lookup(fragments, *fragment_to_segment(history, chosen["threshold"])), chosen


def _close(segments: Labels, radius: int, truth: Truth) -> Labels:
    if truth.dimensions == 3:
        return close_segments(segments, radius)
    return np.stack([close_segments(plane, radius) for plane in segments])


def _keep_connected(segments: Labels, pretrained: Labels, truth: Truth) -> Labels:
    """What stays of the segments by the post-processing of ContextLoss."""
    pairs = [(segments, pretrained)]
    if truth.dimensions == 2:
        pairs = list(zip(segments, pretrained, strict=True))
    kept = [keep_connected(now != 0, before != 0) for now, before in pairs]
    mask = kept[0] if truth.dimensions == 3 else np.stack(kept)
    return np.where(mask, segments, np.uint64(0))


def _progress(cells: Callable[[Run], list[Cell]]) -> Callable[[Run], tuple[int, int]]:
    def progress(run: Run) -> tuple[int, int]:
        every = cells(run)
        return steps_made(every), sum(cell.settings.steps for cell in every)

    return progress


def _score_parameters(run: Run) -> dict[str, Any]:
    config = run.config
    return {
        "region": run.score_roi.offset + run.score_roi.shape,
        "validate": tuning_region(run).offset + tuning_region(run).shape,
        "predict": config.predict.model_dump(),
        "evaluate": config.evaluate.model_dump(
            include={"repair", "max_gap_nm", "merge_min_nodes", "merge_min_nm", "out_of_bounds"}
        ),
        "targets": config.targets.model_dump(),
        "swc": config.input.swc.model_dump(),
        "window": config.comparison.window,
    }


def _pretrain_parameters(run: Run) -> dict[str, Any]:
    cells = cell_parameters(pretrainings(run))
    return {**data_parameters(run), **_score_parameters(run), "cells": cells}


def _finetune_parameters(run: Run) -> dict[str, Any]:
    config = run.config.comparison
    return {
        **data_parameters(run),
        **_score_parameters(run),
        "cells": cell_parameters(finetunings(run)),
        **config.model_dump(include={"baseline", "closing_radii_vox"}),
    }


def _truth_artifacts(run: Run) -> tuple[str, ...]:
    """What the region to score is judged by."""
    given = run.config.input
    names = ("labels", "skeletons")
    return ("mask", *(f"source_{name}" for name in names if getattr(given, name) is not None))


def _make_folder(artifact: str) -> Callable[[Run], None]:
    return lambda run: run.path(artifact).mkdir(parents=True)


def _check(run: Run) -> None:
    """Refuse what would fail after hours of training."""
    from pipeline.learning.sampling import check_regions, check_transpose
    from pipeline.learning.train import check_training

    config = run.config
    if config.input.start_from is not None:
        raise ConfigError("compare-losses pretrains by itself: leave input.start_from out")
    for field in ("pretrain_steps", "finetune_steps"):
        if not getattr(config.train, field):
            raise ConfigError(f"compare-losses needs both phases: train.{field} is 0")
    for cell in (*pretrainings(run), *finetunings(run)):
        check_training(cell.settings, config.network)
    check_transpose(config.train.augment, run.voxel_size_nm)
    check_regions([(VolumeSource(run), run.train_roi)], config.train)
    check_training_runs(run)
    if config.network.output == "affinities":
        TUNE.check(run)
    if run.target_source == "labels":
        check_truth_labels(run, run.shape, "the volume")
        if not holds_truth(run, run.score_roi):
            raise nothing_to_score(run)
    if config.input.skeletons is not None:
        check_truth(run)


PRETRAIN = Stage(
    name="pretrain",
    version=1,
    reads=("image", "statistics", "targets"),
    more=_truth_artifacts,
    writes=("pretrained_results",),
    parameters=_pretrain_parameters,
    grid=_cell_grid(lambda run: len(run.config.comparison.seeds)),
    create=_make_folder("pretrained_results"),
    check=_check,
    process=_process(pretrainings, "pretrain"),
    progress=_progress(pretrainings),
    resources=gpu_if(lambda run: run.config.train.device),
)

FINETUNE = Stage(
    name="finetune",
    version=1,
    reads=("image", "statistics", "targets", "pretrained_results"),
    more=_truth_artifacts,
    writes=("finetuned_results",),
    parameters=_finetune_parameters,
    grid=_cell_grid(
        lambda run: len(run.config.comparison.seeds) * len(run.config.comparison.losses)
    ),
    create=_make_folder("finetuned_results"),
    process=_process(finetunings, "finetune"),
    progress=_progress(finetunings),
    resources=gpu_if(lambda run: run.config.train.device),
)


def _costs(_block: Block, run: Run) -> BlockResult:
    costs = measure_costs(run)
    write_json(run.path("loss_costs"), costs)
    return BlockResult(stats={"losses": len(costs["losses"])})


COSTS = Stage(
    name="costs",
    version=1,
    reads=("image", "statistics", "targets", "pretrained_results"),
    writes=("loss_costs",),
    parameters=lambda run: {
        **data_parameters(run),
        "cells": cell_parameters(measured_cells(run)),
        "baseline": run.config.comparison.baseline,
        "cost_steps": run.config.comparison.cost_steps,
    },
    grid=one_block,
    create=lambda run: write_json(run.path("loss_costs"), {}),
    process=_costs,
    resources=gpu_if(lambda run: run.config.train.device),
)


def read_results(run: Run) -> list[dict[str, Any]]:
    """The results of all trainings, in the order of the rows."""
    return [
        json.loads(file.read_text())
        for artifact in _RESULTS.values()
        for file in sorted(run.path(artifact).glob("*.json"))
    ]


def _compare(_block: Block, run: Run) -> BlockResult:
    results = read_results(run)
    costs = json.loads(run.path("loss_costs").read_text())
    cases = "planes" if run.config.network.dimensions == 2 else "windows"
    table = compare_rows(results, run.config.comparison.baseline, costs, cases)
    write_json(run.path("comparison"), table)
    write_text(run.path("comparison_table"), _as_csv(table))
    return BlockResult(stats={"rows": len(table["rows"])})


def _as_csv(table: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in table_rows(table):
        writer.writerow(["" if value is None else value for value in row])
    return text.getvalue()


def _create_compare(run: Run) -> None:
    write_json(run.path("comparison"), {})
    write_text(run.path("comparison_table"), "")


COMPARE = Stage(
    name="compare",
    version=1,
    reads=("pretrained_results", "finetuned_results", "loss_costs"),
    writes=("comparison", "comparison_table"),
    parameters=lambda run: {"baseline": run.config.comparison.baseline},
    grid=one_block,
    create=_create_compare,
    process=_compare,
)
