"""Gathering what a run left behind into its report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.notices import notices
from flows.site_rows import site_facts
from flows.skeleton_facts import has_skeletons, skeleton_facts
from flows.status import StageStatus, agglomeration_levels, run_status
from pipeline.errors import InputError
from pipeline.geometry import Roi
from pipeline.report.facts import (
    InputFacts,
    LabelScoreFacts,
    LineSet,
    OutputFile,
    ProjectionFacts,
    Scope,
    ScoreFacts,
    SegmentFacts,
    SegmentRow,
    StageFacts,
    ThresholdFacts,
    TrainingPhase,
)
from pipeline.report.page import ReportData, render_report
from pipeline.stages import plan
from pipeline.stages.fragments import fragments_grid
from pipeline.stages.project import projection_grid, projections
from pipeline.stages.run import Run
from pipeline.stages.skeleton_buckets import bucket_grid
from pipeline.stages.skeleton_join import longest_segments, read_joined, skeleton_rows
from pipeline.storage.atomic import write_text
from pipeline.storage.tables import read_table

LARGEST = 20
# Skeletons that the pictures show, those with most cable; more would hide one another.
DRAWN = 2000
_OUTPUTS = {
    "metrics.json": "scores",
    "neurons.csv": "scores of each tracing",
    "neurons.parquet": "the same, for other programs",
    "curves.png": "scores over merge tolerance and largest gap",
    "sites.parquet": "each split, merge and omission, with its place",
    "sites": "the same as annotation layers for Neuroglancer and as SWC",
    "label_scores.json": "scores against dense labels",
    "segments.zarr": "segments, OME-NGFF",
    "fragments.zarr": "fragments before agglomeration",
    "affinities.zarr": "affinities",
    "image.zarr": "the image with its pyramid",
    "precomputed": "segments and skeletons for Neuroglancer",
    "swc": "skeleton of each segment, SWC",
    "segments.csv": "cable, branch points, tips, components, loops and box of each segment",
    "segments.parquet": "the same, for other programs",
    "neuroglancer.json": "viewer state",
    "checkpoint": "the trained network",
    "history": "merge history: any threshold without voxels",
    "config.yaml": "the configuration, resolved",
}
_LIBRARIES = ("axonloom", "torch", "numpy", "numba", "zarr", "tensorstore", "kimimaro")
_VERSIONS: dict[Scope, tuple[str, ...]] = {
    "run": _LIBRARIES,
    "evaluation": ("axonloom", "numpy", "numba", "zarr", "tensorstore"),
    "skeletons": tuple(name for name in _LIBRARIES if name != "torch"),
}


def write_report(run: Run, *, scope: Scope = "run") -> Path:
    """Write report.html into the run directory; parts that the run has not made are left out.

    Args:
        run: that has begun.
        scope: what the run did: everything, or nothing but score a given segmentation, or make its
            skeletons.

    Raises:
        InputError: the run has no stage that began.
    """
    planned = {stage.name: stage for stage in plan(run.config)}
    # What an earlier configuration left behind says nothing about this one.
    stages = [s for s in run_status(run.directory, list(planned)) if s.stage in planned]
    if not stages:
        raise InputError(f"{run.directory}: no stage of this run has begun")
    complete = {s.stage for s in stages if s.state == "complete"}
    has_scores = "evaluate" in complete
    skeletons = skeleton_facts(run) if has_skeletons(run, complete) else None
    data = ReportData(
        name=run.config.name,
        when=datetime.now().strftime("%Y-%m-%d %H:%M"),
        source=_source(run),
        commands=_commands(run, scope),
        versions={name: version(name) for name in _VERSIONS[scope]},
        wall_seconds=_wall_seconds(run, stages),
        projections=_projections(run, complete) if "project" in complete else None,
        training=list(_training(run)) if "train" in complete else [],
        stages=[_stage(s, planned[s.stage].grid is bucket_grid) for s in stages],
        levels=agglomeration_levels(run.directory) if "agglomerate" in complete else [],
        foreground_share=_foreground(run) if "fragments" in complete else None,
        scores=_scores(run) if has_scores else None,
        label_scores=_label_scores(run) if "label_scores" in complete else None,
        curves=run.path("curves_drawing").read_bytes() if "curves" in complete else None,
        sites=site_facts(run) if "sites" in complete else None,
        threshold=_threshold(run) if "tune" in complete else None,
        segments=_segments(run) if skeletons and "collect" in complete else None,
        skeletons=skeletons,
        outputs=list(_outputs(run.directory)),
        warnings=[*notices(run), *(skeletons.warnings if skeletons else ())],
        scope=scope,
    )
    path = run.directory / "report.html"
    write_text(path, render_report(data))
    return path


def _commands(run: Run, scope: Scope) -> dict[str, str]:
    viewable = scope != "evaluation" and run.path("viewer_state").exists()
    folder = run.directory
    commands = {
        "resume": f"axonloom run {folder / 'config.yaml'}" if scope == "run" else None,
        "view": f"axonloom view {folder}" if viewable else None,
        "status": f"axonloom status {folder}",
        "compare": f"axonloom compare {folder} OTHER_SCORES --out COMPARED"
        if scope == "evaluation"
        else None,
    }
    return {purpose: command for purpose, command in commands.items() if command is not None}


def _source(run: Run) -> InputFacts:
    given = run.config.input
    path = given.image or given.affinities or given.segments
    return InputFacts(str(path), run.shape, str(run.source.dtype), run.voxel_size_nm)


def _wall_seconds(run: Run, stages: list[StageStatus]) -> float:
    """Time of the workers, shared between them: what an undisturbed run takes at the least."""
    workers = run.config.execution.workers if run.config.execution.kind == "local" else 1
    spread = sum(sum(s.block_seconds) / min(workers, max(1, len(s.block_seconds))) for s in stages)
    return float(spread)


def _stage(status: StageStatus, by_bucket: bool) -> StageFacts:
    return StageFacts(
        name=status.stage,
        total=status.blocks,
        done=status.done,
        empty=status.empty,
        masked=status.masked,
        failed=status.failed,
        wall_seconds=sum(status.block_seconds),
        # Buckets hold segments: they have no voxels of their own.
        voxels=None if by_bucket else status.voxels * (status.done + status.empty) // status.blocks,
        block_seconds=list(status.block_seconds),
    )


def _foreground(run: Run) -> NDArray[np.float64]:
    grid = fragments_grid(run)
    share = np.full(grid.cells, np.nan)
    for mark in run.ledger("fragments").marks.values():
        if mark.state in ("done", "empty"):
            share[grid[mark.block].position] = mark.stats.get("foreground_share", 0.0)
    return share


def _projections(run: Run, complete: set[str]) -> ProjectionFacts:
    pictures: dict[str, Any] = dict(projections(run))
    skeletons = None
    if has_skeletons(run, complete):
        joined = read_joined(run, longest_segments(run, DRAWN))
        skeletons = LineSet.of(list(joined.values()), list(joined))
    tracings = LineSet.of(run.truth()) if run.config.input.skeletons is not None else None
    regions: dict[str, list[Roi]] = {}
    for name, region in (
        ("trained", run.config.regions.train),
        ("scored", run.config.regions.score),
    ):
        if region is not None:
            regions[name] = [region.roi]
    affinity_max = 255
    if "affinities" in pictures and run.volume("affinities").dtype == np.uint16:
        affinity_max = 65535
    return ProjectionFacts(
        grid=projection_grid(run),
        image=pictures.get("image"),
        affinities=pictures.get("affinities"),
        affinity_max=affinity_max,
        segments=pictures.get("segments"),
        skeletons=skeletons,
        tracings=tracings,
        regions=regions,
    )


_TERMS = {"loss": "total", "voxel_loss": "voxel", "split_loss": "split", "merge_loss": "merge"}


def _training(run: Run) -> Iterator[TrainingPhase]:
    log = run.path("checkpoint") / "log.jsonl"
    if not log.exists():
        return
    records = [json.loads(line) for line in log.read_text().splitlines()]
    for phase, rows in groupby(records, key=lambda record: record["phase"]):
        of_phase = list(rows)
        terms = {
            label: [np.nan if row[name] is None else row[name] for row in of_phase]
            for name, label in _TERMS.items()
            if any(row.get(name) is not None for row in of_phase)
        }
        yield TrainingPhase(
            name=phase,
            steps=[row["step"] for row in of_phase],
            terms=terms,
            learning_rate=[row["lr"] for row in of_phase],
        )


def _scores(run: Run) -> ScoreFacts:
    metrics = json.loads(run.path("metrics").read_text())
    baseline = metrics.get("baseline")
    ceiling = metrics["ceiling"]["overall"]["nerl"]
    score = run.config.regions.score
    return ScoreFacts(
        run=metrics,
        baseline=baseline,
        baseline_name=(
            f"image >= {baseline['threshold']:.4g}, connected components" if baseline else ""
        ),
        run_intervals=_intervals(metrics),
        scored_on=(f"voxels {score.roi}" if score else "the whole volume")
        + f"; without errors the normalized ERL would be {ceiling:.3f}"
        + _not_held_out(run),
        trained_on=_trained_on(run),
        renamed=renamings(metrics),
    )


def renamings(metrics: Mapping[str, Any]) -> list[str]:
    """What became of the labels before they were scored, in words: lookup and exclusions."""
    conventions = metrics["conventions"]
    return [conventions[name] for name in ("lookup", "excluded") if name in conventions]


def _intervals(metrics: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Bounds of the figures that have both."""
    figures = metrics.get("intervals", {}).get("figures", {})
    return {
        name: (found["low"], found["high"])
        for name, found in figures.items()
        if found["low"] is not None and found["high"] is not None
    }


def _trained_on(run: Run) -> str:
    if "train" not in {stage.name for stage in plan(run.config)}:
        return "nothing in this run"
    learned = run.config.regions.train
    return f"voxels {learned.roi}" if learned else "the whole volume"


def _not_held_out(run: Run) -> str:
    """A warning where what is scored was learned from or chosen on."""
    trained = "train" in {stage.name for stage in plan(run.config)}
    used = {
        "training": run.train_roi if trained else None,
        "validation": run.validate_roi if run.tuned else None,
    }
    for name, roi in used.items():
        if roi is not None and roi.overlaps(run.score_roi):
            return f"; the {name} region overlaps it, so nothing here is held out"
    return ""


def _label_scores(run: Run) -> LabelScoreFacts:
    found = json.loads(run.path("label_scores").read_text())
    given = run.config.evaluate.compare_segments
    return LabelScoreFacts(
        run=found["segments"],
        reference=found.get("reference"),
        conventions=found["conventions"],
        scored_on=f"voxels {found['region']}"
        + (f"; reference: {given}" if given else "")
        + _not_held_out(run),
    )


_METRIC_NAMES = {"nerl": "normalized ERL", "voi": "VOI (bits, lower is better)"}


def _threshold(run: Run) -> ThresholdFacts:
    tuning = json.loads(run.path("tuning").read_text())
    curve, metric = tuning["curve"], tuning["metric"]
    return ThresholdFacts(
        thresholds=[row["threshold"] for row in curve],
        scores={f"low {tuning['low']}, high {tuning['high']}": [row[metric] for row in curve]},
        chosen=tuning["threshold"],
        metric=_METRIC_NAMES[metric],
        data="the validation region" if run.config.regions.validation else "the training region",
    )


def _segments(run: Run) -> SegmentFacts:
    table = read_table(run.path("lookup") / "segments.arrow")
    traced = skeleton_rows(run)
    order = np.argsort(-table["voxels"].astype(np.int64), kind="stable")[:LARGEST]
    rows = []
    for index in order:
        at = np.flatnonzero(traced["segment"] == table["id"][index])
        rows.append(
            SegmentRow(
                id=int(table["id"][index]),
                voxels=int(table["voxels"][index]),
                cable_nm=float(traced["cable_nm"][at[0]]) if len(at) else None,
                branch_points=int(traced["branch_points"][at[0]]) if len(at) else None,
            )
        )
    return SegmentFacts(sizes=table["voxels"].astype(np.float64), largest=rows)


def _outputs(directory: Path) -> Iterator[OutputFile]:
    for name, what in _OUTPUTS.items():
        path = directory / name
        if path.exists():
            yield OutputFile(name, what, _size(path))


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
