"""The report of a comparison of losses: one HTML page that needs no network and no other file."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from pipeline.report import comparison_charts as charts
from pipeline.report.chart_style import LIGHT, to_svg
from pipeline.report.comparison_charts import PAGE, Colours, Curves
from pipeline.report.comparison_words import (
    Figure,
    Table,
    figures_of,
    how_tested,
    observations,
    outcome,
    p_text,
    sentences,
    signed,
    verdict,
)
from pipeline.report.layers import label_colours, png
from pipeline.report.quantities import MISSING
from pipeline.report.templates import render_template

ERROR_COLOURS = {
    "right": "#dfe3e8",
    "missed": "#56b4e9",
    "added": "#e69f00",
    "unknown": "#2b323c",
}
"""What a picture of errors is painted in; blue and orange are told apart by all eyes."""
# The largest labels, which by their numbers alone would look alike.
_LARGEST = ("#2ec4b6", "#b79cff", "#ff9b71", "#9be564", "#ff8fab", "#6ea8fe", "#e8d174", "#c08552")
_ERROR_VALUES = {"right": 1, "added": 2, "missed": 3, "unknown": 4}


@dataclass(frozen=True)
class ComparisonData:
    """What the report is made from.

    Attributes:
        name: of the run.
        when: date and time, as shown.
        table: `comparison.json`.
        losses: parameters of each loss, in words.
        facts: name and text of what was compared on.
        warnings: what a reader must know first.
        gains: of each figure and row, the difference of each case to the baseline.
        curves: of each loss.
        pictures: "image" (Y, X) uint8, "truth" (Y, X) uint16, and of each row "segments/ROW"
            (Y, X) uint16 and "errors/ROW" (Y, X) uint8; of one seed. Empty if there are none.
        picture_caption: what the pictures show.
        pixel_aspect: height of a pixel of the pictures in widths.
        commands: to go on with.
    """

    name: str
    when: str
    table: Table
    losses: Mapping[str, str]
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    gains: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)
    pictures: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    picture_caption: str = ""
    pixel_aspect: float = 1.0
    commands: Mapping[str, str] = field(default_factory=dict)


def render_comparison(data: ComparisonData) -> str:
    """The report as one HTML document; equal data give equal text."""
    table = data.table
    return render_template(
        "comparison.html.j2",
        data=data,
        figures=[(f.name, table["figures"][f.key]) for f in figures_of(table)],
        rows=[_row(table, name) for name in table["rows"]],
        every=list(_every(table)),
        tests=how_tested(table),
        outcome=outcome(table),
        sentences=list(sentences(table)),
        charts={
            name: Markup(to_svg(canvas, name)) for name, canvas in draw_charts(data, PAGE).items()
        },
        pictures=_pictures(data),
        legend=ERROR_COLOURS,
    )


def draw_charts(data: ComparisonData, colours: Colours = LIGHT) -> dict[str, Canvas]:
    """The charts that the data allow, by name."""
    table = data.table
    drawn = {
        "figures": charts.figures_chart(table, colours),
        "gains": charts.gains_chart(table, data.gains, colours),
        "trade-offs": charts.scatter_chart(table, colours),
        "curves": charts.curves_chart(data.curves, colours),
        "costs": charts.costs_chart(table, colours),
    }
    return {name: canvas for name, canvas in drawn.items() if canvas is not None}


def _row(table: Table, name: str) -> dict[str, Any]:
    cost = table["costs"]["losses"].get(name)
    return {
        "name": name,
        "baseline": name == table["baseline"],
        "cells": [_cell(table, name, figure) for figure in figures_of(table)],
        "step": "" if cost is None else f"x{cost['ratio']:.2f}",
        "memory": "" if cost is None else f"{cost['extra_bytes'] / 2**20:+.0f}",
    }


def _cell(table: Table, name: str, figure: Figure) -> dict[str, str]:
    entry, digits = table["rows"][name]["figures"][figure.key], figure.digits
    if entry["mean"] is None:
        return {"mean": MISSING, "sd": "", "p": "", "verdict": "", "title": "no figure"}
    seeds = ", ".join(f"seed {seed}: {v:.{digits}f}" for seed, v in entry["seeds"].items())
    p, said, title = "", "", seeds
    if entry["p_adjusted"] is not None:
        said = verdict(entry, table["figures"][figure.key])
        p = f"p {p_text(entry['p_adjusted'])}"
        title += (
            f"; difference {signed(entry['difference'], digits)}, of {observations(entry)} "
            f"{signed(entry['observed'], digits)}; p {p_text(entry['p'])}, adjusted "
            f"{p_text(entry['p_adjusted'])}"
        )
    return {
        "mean": f"{entry['mean']:.{digits}f}",
        "sd": "" if entry["sd"] is None else f"\N{PLUS-MINUS SIGN} {entry['sd']:.{digits}f}",
        "p": p,
        "verdict": said,
        "title": title,
    }


def _every(table: Table) -> Iterator[dict[str, Any]]:
    """All figures, a line each: the means of the rows."""
    for figure, better in table["figures"].items():
        entries = [row["figures"][figure] for row in table["rows"].values()]
        means = [MISSING if e["mean"] is None else f"{e['mean']:.4g}" for e in entries]
        said = [verdict(e, better) for e in entries]
        yield {"name": figure, "better": better, "cells": list(zip(means, said, strict=True))}


def _pictures(data: ComparisonData) -> list[dict[str, Any]]:
    """Captions and pictures: image and truth, then segments and errors of each row."""
    found = data.pictures
    if not found:
        return []
    pairs = [("image and truth", grey(found["image"]), painted(found["truth"]))]
    for name in data.table["rows"]:
        if f"segments/{name}" in found:
            segments, errors = found[f"segments/{name}"], found[f"errors/{name}"]
            pairs.append((name, painted(segments), error_colours(errors)))
    height, width = found["image"].shape
    aspect = f"{width} / {height * data.pixel_aspect:.3f}"
    return [
        {"name": name, "pictures": [_embedded(left), _embedded(right)], "aspect": aspect}
        for name, left, right in pairs
    ]


def _embedded(pixels: NDArray[np.uint8]) -> Markup:
    return Markup("data:image/png;base64,") + base64.b64encode(png(pixels)).decode()


def grey(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(Y, X, 3) uint8."""
    return np.repeat(picture[..., None], 3, axis=2)


def painted(labels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Labels in colours, (Y, X, 3) uint8; background is black."""
    colours = label_colours(labels)
    for label, colour in enumerate(("#000000", *_LARGEST)):
        colours[labels == label] = list(bytes.fromhex(colour[1:]))
    return colours


def error_colours(errors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture of errors in `ERROR_COLOURS`, (Y, X, 3) uint8; background is black."""
    palette = np.zeros((256, 3), np.uint8)
    for name, value in _ERROR_VALUES.items():
        palette[value] = list(bytes.fromhex(ERROR_COLOURS[name][1:]))
    return palette[errors]
