"""The picture of a threshold sweep: scores over the agglomeration threshold, the best one marked.

It stands alone, unlike the charts of the report: its colours are those of the light page.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.report.chart_style import CURVE, DASHES, INK, LIGHT, MUTED, STYLE
from pipeline.report.quantities import short

# Counts beyond this spread need a logarithmic axis to show the small ones too.
_LINEAR_COUNTS = 50
_NAMES = {"nerl": "nERL", "voi": "VOI"}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Panel:
    """One set of axes: the part of a row that it shows, and the curves there."""

    part: str
    label: str
    curves: Mapping[str, str]
    best: str
    counts: bool = False


_PANELS = (
    _Panel("overall", "normalized ERL", {"nerl": ""}, "nerl"),
    _Panel(
        "overall",
        "edge accuracy (%)",
        {"edge_accuracy": "split edges right", "edge_accuracy_strict": "split edges wrong"},
        "nerl",
    ),
    _Panel("overall", "events", {"splits": "splits", "merges_total": "merges"}, "nerl", True),
    _Panel(
        "voxels",
        "variation of information (bits)",
        {"voi_split": "split", "voi_merge": "merge", "voi": "sum"},
        "voi",
    ),
    _Panel(
        "voxels",
        "Rand scores",
        {"ari": "adjusted Rand index", "adapted_rand_error": "adapted Rand error"},
        "voi",
    ),
)


def draw_sweep(
    rows: Sequence[Row], best: Mapping[str, Row], ceiling: float | None = None
) -> Figure:
    """The figure of a sweep; panels whose scores are not there are left out.

    Args:
        rows: by rising threshold: "threshold", and "overall" (skeletons), "voxels" or both.
        best: "nerl", "voi" or both: the row's threshold under "threshold".
        ceiling: normalized ERL without errors, drawn as a line.
    """
    panels = [panel for panel in _PANELS if panel.part in rows[0]]
    style = {name: _light(value) for name, value in STYLE.items()} | {"legend.fontsize": 8.5}
    with rc_context(style):
        lines = -(-len(panels) // 2)
        figure = Figure(figsize=(9.5, 0.3 + 2.5 * lines), layout="constrained", facecolor="white")
        cells = figure.subplots(lines, 2, sharex=True, squeeze=False).ravel().tolist()
        for axes, panel in zip(cells, panels, strict=False):
            _draw(axes, panel, rows, best, ceiling if panel.label == "normalized ERL" else None)
        for axes in cells[len(panels) :]:
            axes.set_axis_off()
        for axes in cells[max(0, len(panels) - 2) : len(panels)]:
            axes.set_xlabel("agglomeration threshold")
            axes.tick_params(axis="x", labelbottom=True)
        cells[0].xaxis.set_major_locator(MaxNLocator(6))
        cells[0].xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
    return figure


def _light(value: Any) -> Any:
    return LIGHT.get(value, value) if isinstance(value, str) else value


def _draw(
    axes: Axes, panel: _Panel, rows: Sequence[Row], best: Mapping[str, Row], ceiling: float | None
) -> None:
    x = np.array([row["threshold"] for row in rows], np.float64)
    for index, (key, name) in enumerate(panel.curves.items()):
        y = np.array([row[panel.part][key] for row in rows], np.float64)
        axes.plot(
            x, y, color=LIGHT[CURVE[index]], linestyle=DASHES[index], marker="o", markersize=3,
            label=name,
        )  # fmt: skip
    if ceiling is not None:
        colour = LIGHT[MUTED]
        axes.axhline(ceiling, color=colour, linewidth=1, linestyle="dotted", label="without errors")
    axes.margins(y=0.12)
    axes.grid(axis="y")
    axes.set_ylabel(panel.label)
    if panel.counts:
        _count_axis(axes)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    _mark(axes, panel.best, float(best[panel.best]["threshold"]), x)
    if any(panel.curves.values()) or ceiling is not None:
        axes.legend(frameon=False, loc="best", handlelength=2.6)


def _count_axis(axes: Axes) -> None:
    top = max(float(np.max(np.asarray(line.get_ydata(), np.float64))) for line in axes.lines)
    if top > _LINEAR_COUNTS:
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(-0.3, 3 * top)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))


def _mark(axes: Axes, measure: str, threshold: float, x: np.ndarray) -> None:
    axes.axvline(threshold, color=LIGHT[INK], linewidth=1, linestyle=(0, (4, 3)))
    right = threshold > (x.min() + x.max()) / 2
    axes.annotate(
        f"best {_NAMES[measure]}: {threshold:.4g}", (threshold, 1), (-5 if right else 5, 1),
        xycoords=axes.get_xaxis_transform(), textcoords="offset points",
        ha="right" if right else "left", va="bottom", color=LIGHT[INK], fontsize=8.5,
    )  # fmt: skip


def as_png(figure: Figure) -> bytes:
    """The figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def as_svg(figure: Figure) -> str:
    """The figure as an SVG file; equal figures give equal bytes."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "sweep", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return buffer.getvalue()
