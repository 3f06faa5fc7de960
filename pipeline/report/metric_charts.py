"""Pictures of the skeleton metrics: two segmentations beside each other, and what conventions do.

They stand alone, in the colours of the light page. What colours tell, shapes tell too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from pipeline.arrays.metric_curves import CurveRow, MetricCurves
from pipeline.arrays.paired import Comparison, FigureComparison
from pipeline.arrays.paired_documents import EQUAL, counted
from pipeline.report.chart_style import CURVE, DASHES, INK, LIGHT, MUTED, STYLE
from pipeline.report.comparison_words import SIGNIFICANT, signed
from pipeline.report.quantities import short

_RIGHT, _LEFT = "\N{RIGHTWARDS ARROW}", "\N{LEFTWARDS ARROW}"
_BLUE, _ORANGE = LIGHT[CURVE[0]], LIGHT[CURVE[1]]
_NAME_ROOM = 34
# Counts beyond this spread need a logarithmic axis to show the small ones too.
_LINEAR_COUNTS = 50

# Key, name with unit, factor from the stored value, decimals.
_DIFFERENCES = (
    ("nerl", "normalized ERL, edges", 1.0, 3),
    ("nerl_nm", "normalized ERL, length", 1.0, 3),
    ("ffn_nerl_nm", "FFN ERL, normalized", 1.0, 3),
    ("erl_nm", "ERL (µm)", 1e-3, 1),
    ("edge_accuracy", "edge accuracy (%)", 1.0, 2),
    ("edge_accuracy_strict", "edge accuracy, strict (%)", 1.0, 2),
    ("pct_omit", "omitted edges (%)", 1.0, 2),
    ("pct_split", "split edges (%)", 1.0, 2),
    ("pct_merged", "merged edges (%)", 1.0, 2),
    ("splits_per_neuron", "splits per neuron", 1.0, 2),
)


def comparison_chart(comparison: Comparison, name_a: str = "A", name_b: str = "B") -> Figure:
    """Normalized ERL of each neuron in B over A, and the differences of figures with intervals."""
    shown = [each for each in _DIFFERENCES if comparison.figures[each[0]].difference is not None]
    a, b = _clip(name_a), _clip(name_b)
    with rc_context(_light_style()):
        figure = Figure(figsize=(11, 5.6), layout="constrained", facecolor="white")
        grid = figure.add_gridspec(max(1, len(shown)), 2, width_ratios=(1.15, 1))
        _draw_neurons(figure.add_subplot(grid[:, 0]), comparison, a, b)
        cells = [figure.add_subplot(grid[line, 1]) for line in range(len(shown))]
        names = list(comparison.per_neuron)
        for axes, each in zip(cells, shown, strict=True):
            _draw_difference(axes, each, comparison.figures[each[0]])
        cells[0].set_title(
            f"B minus A, {counted(names)}: 95 % interval, p (Holm); arrow: better",
            fontsize=9,
            color=LIGHT[INK],
        )
    return figure


def _draw_neurons(axes: Axes, comparison: Comparison, a: str, b: str) -> None:
    """A dot for each neuron, its area by its edges; above the line B is better."""
    names = list(comparison.per_neuron)
    pairs = np.array([comparison.per_neuron[n]["nerl"] for n in names], np.float64)
    edges = np.array([comparison.edges[n] for n in names], np.float64)
    area = 14 + 120 * edges / max(1.0, float(edges.max()))
    axes.plot([0, 1], [0, 1], color=LIGHT[MUTED], linewidth=0.9, linestyle=(0, (4, 3)))
    equal = np.isclose(pairs[:, 0], pairs[:, 1], rtol=EQUAL, atol=0.0)
    higher = pairs[:, 1] > pairs[:, 0]
    for rows, colour, marker, word in (
        (higher & ~equal, _BLUE, "o", "better in B"),
        (~higher & ~equal, _ORANGE, "X", "worse in B"),
        (equal, LIGHT[MUTED], "s", "equal"),
    ):
        axes.scatter(
            pairs[rows, 0], pairs[rows, 1], s=area[rows], color=colour, marker=marker, alpha=0.6,
            linewidths=0, clip_on=False, label=f"{word}: {int(rows.sum())}",
        )  # fmt: skip
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), box_aspect=1)
    axes.set_xlabel(f"A: {a}" if a != "A" else "A")
    axes.set_ylabel(f"B: {b}" if b != "B" else "B")
    axes.grid()
    axes.set_title(
        "normalized ERL of each neuron; area: edges", fontsize=9, loc="left", color=LIGHT[INK]
    )
    legend = axes.legend(
        frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, handletextpad=0.2
    )
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set(sizes=[36])


def _draw_difference(
    axes: Axes, each: tuple[str, str, float, int], figure: FigureComparison
) -> None:
    """One figure on an axis of its own, 0 in the middle."""
    _, name, factor, digits = each
    assert figure.difference is not None
    value = figure.difference * factor
    colour, marker = _LOOKS[verdict_of(figure)]
    ends = [value]
    if figure.low is not None and figure.high is not None:
        ends += [figure.low * factor, figure.high * factor]
        axes.hlines(0, ends[1], ends[2], color=colour, linewidth=1.8)
    axes.scatter([value], [0], s=34, color=colour, marker=marker, zorder=3, linewidths=0)
    axes.axvline(0, color=LIGHT[MUTED], linewidth=0.9, linestyle=(0, (4, 3)))
    reach = 1.15 * max(map(abs, ends)) or 1.0
    axes.set(xlim=(-reach, reach), ylim=(-1, 1), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
    axes.tick_params(axis="x", labelsize=7, pad=1, length=2)
    arrow = _RIGHT if figure.better == "high" else _LEFT
    texts = (
        (-0.02, f"{name} {arrow}", "right"),
        (1.02, _told(figure, value, digits), "left"),
    )
    for x, text, side in texts:
        axes.annotate(
            text, (x, 0.5), xycoords="axes fraction", ha=side, va="center", fontsize=8,
            color=LIGHT[INK],
        )  # fmt: skip


def verdict_of(figure: FigureComparison) -> Literal["better", "worse", ""]:
    """Whether B differs from A by the adjusted p-value, and to which side."""
    p, difference = figure.p_adjusted, figure.difference
    if p is None or not difference or p >= SIGNIFICANT:
        return ""
    return "better" if (difference > 0) == (figure.better == "high") else "worse"


_LOOKS = {"better": (_BLUE, "o"), "worse": (_ORANGE, "X"), "": (LIGHT[MUTED], "s")}


def _told(figure: FigureComparison, value: float, digits: int) -> str:
    p = "" if figure.p_adjusted is None else f"  p {figure.p_adjusted:.2g}"
    return f"{signed(value, digits)}{p}"


@dataclass(frozen=True)
class _Panel:
    """A row of axes: what it shows of the overall figures."""

    label: str
    curves: Mapping[str, str]
    counts: bool = False


_PANELS = (
    _Panel(
        "normalized ERL", {"nerl": "edges", "nerl_nm": "length", "ffn_nerl_nm": "FFN, no repair"}
    ),
    _Panel(
        "share of edges (%)",
        {"edge_accuracy": "accuracy", "pct_merged": "merged", "pct_omit": "omitted"},
    ),
    _Panel("events", {"splits": "splits", "merges_total": "merges"}, True),
)
# Option, axis, factor from the stored value.
_OPTIONS = (
    ("merge_min_nodes", "merge tolerance (nodes)", 1.0),
    ("merge_min_nm", "merge tolerance (µm of cable)", 1e-3),
    ("max_gap_nm", "longest gap closed (µm)", 1e-3),
)
_ANY = "any"


def curves_chart(curves: MetricCurves) -> Figure:
    """Overall figures over each convention; a column for each that has rows."""
    by_option = {name: [r for r in curves.rows if r["option"] == name] for name, *_ in _OPTIONS}
    shown = [each for each in _OPTIONS if by_option[each[0]]]
    with rc_context(_light_style()):
        figure = Figure(
            figsize=(1.4 + 3.4 * max(1, len(shown)), 7.2), layout="constrained", facecolor="white"
        )
        cells = figure.subplots(
            len(_PANELS), max(1, len(shown)), squeeze=False, sharey="row", sharex="col"
        )
        for column, (name, label, factor) in enumerate(shown):
            rows = by_option[name]
            for line, panel in enumerate(_PANELS):
                _draw_curves(cells[line, column], panel, rows)
                _value_axis(cells[line, column], rows, factor)
            cells[-1, column].set_xlabel(label)
        for line, panel in enumerate(_PANELS):
            cells[line, 0].set_ylabel(panel.label)
            cells[line, -1].legend(
                frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.6
            )
            if panel.counts:
                _count_axis(cells[line].tolist())
            else:
                cells[line, 0].set_ylim(*((0, 1.04) if line == 0 else (-2, 104)))
    return figure


def _draw_curves(axes: Axes, panel: _Panel, rows: Sequence[CurveRow]) -> None:
    for index, (key, name) in enumerate(panel.curves.items()):
        y = np.array([row["overall"][key] for row in rows], np.float64)
        axes.plot(
            np.arange(len(rows)), y, color=LIGHT[CURVE[index]], linestyle=DASHES[index],
            marker="os^"[index], markersize=3.5, label=name,
        )  # fmt: skip
    axes.grid(axis="y")


def _value_axis(axes: Axes, rows: Sequence[CurveRow], factor: float) -> None:
    """Values stand at equal steps: they begin with 0 and end without a limit."""
    texts = [_ANY if row["value"] is None else f"{row['value'] * factor:g}" for row in rows]
    axes.set_xticks(np.arange(len(rows)), texts)
    axes.xaxis.set_minor_locator(NullLocator())


def _count_axis(cells: Sequence[Axes]) -> None:
    """One for the row: its axes share it."""
    lines = [np.asarray(line.get_ydata(), np.float64) for axes in cells for line in axes.lines]
    top = max((float(line.max()) for line in lines), default=0.0)
    if top > _LINEAR_COUNTS:
        cells[0].set_yscale("symlog", linthresh=1)
        cells[0].set_ylim(-0.3, 3 * top)
    else:
        cells[0].set_ylim(-0.04 * max(1.0, top), 1.08 * max(1.0, top))
        cells[0].yaxis.set_major_locator(MaxNLocator(5, integer=True))
    cells[0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))


def _light_style() -> Any:
    return {k: LIGHT.get(v, v) if isinstance(v, str) else v for k, v in STYLE.items()}


def _clip(text: str) -> str:
    return text if len(text) <= _NAME_ROOM else text[: _NAME_ROOM - 1] + "\N{HORIZONTAL ELLIPSIS}"
