"""The run report: one HTML page that needs no network and no other file."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from pipeline.geometry import Roi
from pipeline.report import figures, layers
from pipeline.report.chart_style import CURVES, DASHES
from pipeline.report.facts import (
    InputFacts,
    OutputFile,
    ProjectionFacts,
    ReportData,
    ScoreFacts,
    SegmentFacts,
    SkeletonFacts,
    StageFacts,
    ThresholdFacts,
)
from pipeline.report.next_steps import next_steps
from pipeline.report.quantities import (
    MISSING,
    decimal,
    duration,
    length,
    scale_bar_nm,
    short,
)
from pipeline.report.score_tables import (
    convention_rows,
    label_score_rows,
    nerl_pairs,
    number,
    overall,
    score_rows,
    tracing_rows,
)
from pipeline.report.skeleton_tables import work_tables
from pipeline.report.templates import render_template

__all__ = ["ReportData", "render_report"]

_LAYERS = ("image", "affinities", "segments", "skeletons", "tracings")
_PANELS = ("image", "affinities", "segments")
_EXPLAINED = {
    "image": "Image: contrast from the 1st to the 99.8th percentile.",
    "affinities": "Affinities: mean of the three directions, black is 0, pale yellow 1.",
    "segments": "Segments: each pixel shows the segment at its brightest labelled voxel; a "
    "segment's colour comes from its id and is the same in every report.",
}
_WITHOUT_IMAGE = (
    "Segments: of those behind a pixel the one of the largest id; a segment's colour comes from "
    "its id and is the same in every report."
)
_VIEW_NAMES = {0: "along z", 1: "along y", 2: "along x"}
_SMALL_PICTURE = 400


def render_report(data: ReportData) -> str:
    """The report as one HTML document; equal data give equal text.

    Parts without data are said to be missing in one line. All texts of the user are escaped.
    """
    return render_template(
        "template.html.j2",
        data=data,
        tiles=list(_tiles(data)),
        facts=list(_input_facts(data.source)) if data.source else [],
        steps=next_steps(data),
        projections=_projections(data.projections) if data.projections else None,
        training=_training(data),
        stages=[_stage_row(s) for s in data.stages],
        stage_charts=_stage_charts(data),
        scores=_scores(data.scores) if data.scores else None,
        label_rows=label_score_rows(data.label_scores) if data.label_scores else None,
        threshold=_threshold(data.threshold) if data.threshold else None,
        segments=_segments(data.segments) if data.segments else None,
        skeletons=_skeletons(data.skeletons) if data.skeletons else None,
        curves=base64.b64encode(data.curves).decode() if data.curves else None,
        outputs=[_output(o) for o in data.outputs],
    )


def _tiles(data: ReportData) -> Iterator[dict[str, str]]:
    """The figures that answer the first questions: how many, how good, how long."""
    if data.scope == "skeletons":
        yield from _skeleton_tiles(data.skeletons)
        yield {"name": "compute time", "value": duration(data.wall_seconds), "note": _rate(data)}
        return
    count = data.neurons
    if data.scope == "evaluation":
        yield _tracings_tile(data.scores)
    elif count is not None:
        yield {"name": "neurons", "value": decimal(count), "note": _segment_note(data.segments)}
    elif data.segments is not None:
        yield {"name": "segments", "value": decimal(len(data.segments.sizes)), "note": ""}
    else:
        yield {"name": "neurons", "value": MISSING, "note": "not counted"}
    yield _score_tile(data, "nerl", "normalized ERL", 3)
    yield _score_tile(data, "edge_accuracy", "edge accuracy, %", 1)
    # An evaluation reads a small part of the voxels.
    rate = "" if data.scope == "evaluation" else _rate(data)
    yield {"name": "compute time", "value": duration(data.wall_seconds), "note": rate}


def _rate(data: ReportData) -> str:
    if data.source is None or not data.wall_seconds:
        return ""
    return f"{short(math.prod(data.source.shape) / data.wall_seconds)} voxels/s"


def _skeleton_tiles(facts: SkeletonFacts | None) -> Iterator[dict[str, str]]:
    names = ("skeletons", "cable", "branch points")
    if facts is None:
        yield from ({"name": name, "value": MISSING, "note": "none made"} for name in names)
        return
    parts = f"{decimal(facts.components)} components"
    values = {
        "skeletons": (decimal(len(facts.cable_nm)), parts),
        "cable": (length(float(np.sum(facts.cable_nm))), f"{decimal(facts.tips)} tips"),
        "branch points": (decimal(facts.branch_points), f"{decimal(facts.loops)} loops"),
    }
    for name, (value, note) in values.items():
        yield {"name": name, "value": value, "note": note}


def _tracings_tile(scores: ScoreFacts | None) -> dict[str, str]:
    if scores is None:
        return {"name": "tracings", "value": MISSING, "note": "no tracings scored"}
    edges = decimal(number(overall(scores.run).get("edges")))
    count = decimal(len(scores.run.get("per_skeleton") or {}))
    return {"name": "tracings", "value": count, "note": f"{edges} edges"}


def _segment_note(segments: SegmentFacts | None) -> str:
    return f"{decimal(len(segments.sizes))} segments" if segments else ""


def _score_tile(data: ReportData, key: str, name: str, digits: int) -> dict[str, str]:
    scores = data.scores
    if scores is None:
        return {"name": name, "value": MISSING, "note": "no tracings scored"}
    value = number(overall(scores.run).get(key))
    low, high = scores.run_intervals.get(key, (None, None))
    evaluation = data.scope == "evaluation"
    note = "" if evaluation else "no baseline"
    if low is not None and evaluation:
        note = f"95 %: {decimal(low, digits)} to {decimal(high, digits)}"
    if scores.baseline is not None:
        note = f"{scores.baseline_name} {decimal(overall(scores.baseline).get(key), digits)}"
    return {"name": name, "value": decimal(value, digits), "note": note}


def _input_facts(source: InputFacts) -> Iterator[tuple[str, str]]:
    """Name and value of what is known of the input."""
    yield "Input", source.path
    shape = " x ".join(f"{n:,}" for n in source.shape)
    yield "Shape (z, y, x)", f"{shape}, {source.dtype}, {short(math.prod(source.shape))} voxels"
    yield "Voxel size (z, y, x)", " x ".join(f"{s:g}" for s in source.voxel_size_nm) + " nm"
    extents = [n * s for n, s in zip(source.shape, source.voxel_size_nm, strict=True)]
    yield "Physical size", " x ".join(length(e) for e in extents)


# Projections


def _projections(facts: ProjectionFacts) -> dict[str, Any]:
    """Style rules that hold the pictures, the three views, and which layers there are."""
    pictures = {
        (layer, axis): data for axis in layers.VIEWS for layer, data in _layer_pngs(facts, axis)
    }
    present = [layer for layer in _LAYERS if (layer, 0) in pictures]
    colours = dict(zip(facts.regions, layers.REGION_COLOURS * len(facts.regions), strict=False))
    lined = any(layer in present for layer in ("skeletons", "tracings"))
    bare = "image" not in present
    shown = {"image", "skeletons", "tracings"} | ({"segments"} if bare or not lined else set())
    explained = {**_EXPLAINED, "segments": _WITHOUT_IMAGE} if bare else _EXPLAINED
    panels = [layer for layer in _PANELS if layer in present]
    return {
        "rules": Markup("\n").join(
            Markup(".l-{}-{}{{background-image:url(data:image/png;base64,{})}}").format(
                layer, axis, base64.b64encode(data).decode()
            )
            for (layer, axis), data in pictures.items()
        ),
        "views": {axis: _view(facts, axis, present, colours) for axis in layers.VIEWS},
        "layers": [(layer, layer in shown) for layer in present],
        # A single picture is the same as the first of those over each other.
        "panels": panels if len(panels) > 1 or not lined else [],
        "explained": [explained[layer] for layer in panels],
        "bare": bare,
        "missing": [layer for layer in _LAYERS if layer not in present],
        "regions": list(colours.items()),
        "tracing_colour": layers.TRACING_COLOUR,
        "swatches": layers.label_hex(np.arange(1, 6)),
    }


def _layer_pngs(facts: ProjectionFacts, axis: int) -> Iterator[tuple[str, bytes]]:
    """The layers of one view, from the lowest to the highest."""
    if facts.image is not None:
        yield "image", layers.image_png(facts.image[axis], axis)
    if facts.affinities is not None:
        strength = facts.affinities[axis]
        yield "affinities", layers.affinity_png(strength, axis, facts.affinity_max)
    if facts.segments is not None:
        yield "segments", layers.segment_png(facts.segments[axis], axis)
    if facts.skeletons is not None:
        yield "skeletons", layers.line_png(facts.skeletons, axis, facts.grid)
    if facts.tracings is not None:
        yield "tracings", layers.line_png(facts.tracings, axis, facts.grid)


def _view(
    facts: ProjectionFacts, axis: int, present: Sequence[str], colours: Mapping[str, str]
) -> dict[str, Any]:
    down_nm, right_nm = layers.extent_nm(facts.grid, axis)
    rows, columns = layers.extent_vox(facts.grid, axis)
    bar_nm = scale_bar_nm(right_nm)
    return {
        "axis": axis,
        "name": _VIEW_NAMES[axis],
        "axes": tuple("zyx"[d] for d in layers.VIEWS[axis]),
        "width_nm": right_nm,
        "height_nm": down_nm,
        "layers": present,
        "pixelated": max(facts.grid.picture(axis)) < _SMALL_PICTURE,
        "bar_percent": f"{100 * bar_nm / right_nm:.3f}",
        "bar": length(bar_nm),
        "rows": rows,
        "columns": columns,
        "regions": [
            (name, colours[name], _rectangle(roi, axis))
            for name, rois in facts.regions.items()
            for roi in rois
        ],
    }


def _rectangle(roi: Roi, axis: int) -> dict[str, int]:
    row, column = layers.VIEWS[axis]
    return {
        "x": roi.offset[column],
        "y": roi.offset[row],
        "width": roi.shape[column],
        "height": roi.shape[row],
    }


# Training, stages


def _legend(names: Sequence[str]) -> list[tuple[str, int, str]]:
    """Name, number of the colour and line style of each curve of a chart."""
    count = CURVES
    return [(n, i % count + 1, DASHES[i % count]) for i, n in enumerate(names)]


def _training(data: ReportData) -> dict[str, Any] | None:
    if not any(len(phase.steps) for phase in data.training):
        return None
    return {
        "chart": Markup(figures.training_curves(data.training)),
        "legend": _legend(figures.training_terms(data.training)),
    }


def _stage_row(stage: StageFacts) -> dict[str, Any]:
    rate = None
    if stage.voxels and stage.wall_seconds:
        rate = stage.voxels / stage.wall_seconds
    median = float(np.median(stage.block_seconds)) if len(stage.block_seconds) else None
    total = max(stage.total, 1)
    counts = {n: getattr(stage, n) for n in ("done", "empty", "masked", "failed")}
    return {
        "stage": stage,
        "rate": MISSING if rate is None else short(rate),
        "median": duration(median),
        "shares": [(name, f"{100 * count / total:.2f}") for name, count in counts.items() if count],
        "complete": stage.failed == 0 and stage.missing <= 0,
    }


def _stage_charts(data: ReportData) -> dict[str, Any]:
    seconds = {s.name: s.block_seconds for s in data.stages if np.isfinite(s.block_seconds).any()}
    share = data.foreground_share
    known = share is not None and np.isfinite(share).any()
    return {
        "seconds": Markup(figures.block_seconds_chart(seconds)) if seconds else None,
        "map": Markup(figures.block_map(share)) if share is not None and known else None,
    }


# Scores, segments, files


def _scores(facts: ScoreFacts) -> dict[str, Any]:
    rows = tracing_rows(facts)
    pairs = nerl_pairs(rows)
    return {
        "rows": score_rows(facts),
        "skeletons": rows,
        "pairs": Markup(figures.score_pairs_chart(pairs, facts.baseline_name)) if pairs else None,
        "conventions": convention_rows(facts),
        "with_baseline": facts.baseline is not None,
    }


def _threshold(facts: ThresholdFacts) -> dict[str, Any] | None:
    values = [v for curve in facts.scores.values() for v in curve]
    if not len(facts.thresholds) or all(number(v) is None for v in values):
        return None
    return {
        "chart": Markup(figures.threshold_chart(facts)),
        "legend": _legend(list(facts.scores)) if len(facts.scores) > 1 else [],
    }


def _segments(facts: SegmentFacts) -> dict[str, Any]:
    sizes = np.asarray(facts.sizes, np.int64)
    rows = sorted(facts.largest, key=lambda row: (-row.voxels, row.id))[:20]
    colours = layers.label_hex(np.array([row.id for row in rows], np.uint64))
    return {
        "count": len(sizes),
        "total": int(sizes.sum()),
        "median": float(np.median(sizes)) if len(sizes) else None,
        "largest_share": 100 * int(sizes.max()) / int(sizes.sum()) if sizes.sum() else None,
        "chart": Markup(figures.segment_size_chart(sizes)) if len(sizes) else None,
        "rows": list(zip(rows, colours, strict=True)),
    }


def _skeletons(facts: SkeletonFacts) -> dict[str, Any]:
    cable = np.asarray(facts.cable_nm, np.float64)
    some = cable[cable > 0]
    colours = layers.label_hex(np.array([row.id for row in facts.longest], np.uint64))
    return {
        "count": len(cable),
        "cable_nm": float(cable.sum()),
        "median_nm": float(np.median(cable)) if len(cable) else None,
        "without_cable": len(cable) - len(some),
        "chart": Markup(figures.cable_chart(some)) if len(some) else None,
        "work": work_tables(facts),
        "rows": list(zip(facts.longest, colours, strict=True)),
    }


def _output(output: OutputFile) -> dict[str, Any]:
    # Quoting turns ":" into "%3A": a path can never become a link to another scheme or host.
    link = quote(output.path.lstrip("/"))
    return {"file": output, "link": link}
