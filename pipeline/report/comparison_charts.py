"""Charts of a comparison of losses. Rows stand in the order of the configuration, never by result.

Every chart is drawn in given colours: the page's variables (`PAGE`), or those of the light page for
pictures that stand alone (`LIGHT`). What colours tell, shapes tell too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from pipeline.report.chart_style import CURVE, CURVES, INK, LIGHT, MUTED, STYLE
from pipeline.report.comparison_words import Figure, Table, figures_of, verdict

Colours = Mapping[str, str]
PAGE: Colours = {colour: colour for colour in LIGHT}
"""Stand-in colours, which `to_svg` replaces by those of the page."""

Curves = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Of each loss the steps, (N,), and its value for each seed, (seeds, N)."""

_ACROSS = 3
_MARKERS = "osD^vP*Xhd<>"
_SHAPES = {"better": "D", "worse": "X", "unclear": "s", "": "o"}
_PAIRS = (("fpr", "cldice"), ("dice", "betti_e"), ("voi", "nerl"), ("splits", "merges_total"))
_BINS = 60
_STEPS = [1, 2, 2.5, 5, 10]


def verdict_colours(colours: Colours) -> dict[str, str]:
    """Blue and orange are told apart by all eyes."""
    named = {"better": CURVE[0], "worse": CURVE[1], "unclear": CURVE[3], "": MUTED}
    return {name: colours[colour] for name, colour in named.items()}


def figures_chart(table: Table, colours: Colours) -> Canvas:
    """A panel for each figure: a dot for each seed, mean and standard deviation of each row.

    The band is the baseline's standard deviation.
    """
    names = list(table["rows"])

    def draw(axes: Axes, figure: Figure) -> None:
        entries = [table["rows"][name]["figures"][figure.key] for name in names]
        base = entries[names.index(table["baseline"])]
        if base["mean"] is not None:
            _baseline(axes, base["mean"], base["sd"] or 0.0, colours)
        for place, (name, entry) in enumerate(zip(names, entries, strict=True)):
            said = verdict(entry, table["figures"][figure.key])
            colour = verdict_colours(colours)[said]
            if name == table["baseline"]:
                colour = colours[INK]
            _spread(axes, place, entry, colour, _SHAPES[said])
        _title(axes, figure, table["figures"][figure.key])

    return _panels(figures_of(table), names, table["baseline"], draw, colours)


def _baseline(axes: Axes, mean: float, sd: float, colours: Colours) -> None:
    axes.axvspan(mean - sd, mean + sd, color=colours[MUTED], alpha=0.13, linewidth=0)
    axes.axvline(mean, color=colours[MUTED], linewidth=0.9, linestyle=(0, (4, 3)))


def _spread(axes: Axes, place: int, entry: Mapping[str, Any], colour: str, shape: str) -> None:
    values = list(entry["seeds"].values())
    if not values:
        return
    if entry["sd"] is not None:
        ends = entry["mean"] - entry["sd"], entry["mean"] + entry["sd"]
        axes.hlines(place, *ends, color=colour, linewidth=1.6)
    low = np.full(len(values), place + 0.27)
    axes.scatter(values, low, s=9, color=colour, alpha=0.6, linewidths=0)
    axes.scatter([entry["mean"]], [place], s=30, color=colour, marker=shape, zorder=3, linewidths=0)


def gains_chart(
    table: Table, gains: Mapping[str, Mapping[str, Sequence[float]]], colours: Colours
) -> Canvas | None:
    """A panel for each figure: a dot for each case, its difference to the baseline; the mean."""
    names = [name for name in table["rows"] if name != table["baseline"]]
    shown = [f for f in figures_of(table) if any(len(v) for v in gains.get(f.key, {}).values())]
    if not shown or not names:
        return None

    def draw(axes: Axes, figure: Figure) -> None:
        axes.axvline(0, color=colours[MUTED], linewidth=0.9, linestyle=(0, (4, 3)))
        for place, name in enumerate(names):
            said = verdict(table["rows"][name]["figures"][figure.key], table["figures"][figure.key])
            values = np.asarray(gains[figure.key].get(name, ()), np.float64)
            if not len(values):
                continue
            colour = verdict_colours(colours)[said]
            places = place + 0.3 * _spread_out(len(values))
            axes.scatter(values, places, s=11, color=colour, alpha=0.45, linewidths=0)
            mean = float(values.mean())
            axes.scatter([mean], [place], s=34, color=colour, marker=_SHAPES[said], zorder=3,
                         edgecolors=colours[INK], linewidths=0.7)  # fmt: skip
        _title(axes, figure, table["figures"][figure.key])

    return _panels(shown, names, None, draw, colours)


def _spread_out(count: int) -> NDArray[np.float64]:
    """Places in -1 to 1 that keep neighbours apart: equal input gives equal places."""
    return np.asarray(2.0 * (np.arange(count) * 0.6180339887498949 % 1.0) - 1.0, np.float64)


def _panels(
    figures: Sequence[Figure],
    names: Sequence[str],
    baseline: str | None,
    draw: Callable[[Axes, Figure], None],
    colours: Colours,
) -> Canvas:
    lines = -(-len(figures) // _ACROSS)
    with rc_context(_style(colours)):
        canvas = Canvas(figsize=(11, lines * (0.75 + 0.25 * len(names))), layout="constrained")
        cells = canvas.subplots(lines, _ACROSS, sharey=True, squeeze=False).ravel().tolist()
        for axes, figure in zip(cells, figures, strict=False):
            draw(axes, figure)
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=_STEPS))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.4g}"))
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.margins(x=0.08)
            _room(axes)
        for axes in cells[len(figures) :]:
            axes.set_axis_off()
        for axes in cells[::_ACROSS]:
            _name_rows(axes, names, baseline, colours)
    return canvas


def _room(axes: Axes) -> None:
    """Points that are all alike get an axis of round numbers."""
    points = [x for dots in axes.collections for x in _offsets(dots)]
    if points and max(points) - min(points) <= 1e-9:
        axes.set_xlim(points[0] - 0.5, points[0] + 0.5)


def _offsets(dots: Any) -> list[float]:
    if not isinstance(dots, PathCollection):
        return []  # lines and bands
    return [float(x) for x in np.asarray(dots.get_offsets(), np.float64)[:, 0]]


def _name_rows(axes: Axes, names: Sequence[str], baseline: str | None, colours: Colours) -> None:
    axes.set_yticks(range(len(names)), [_clip(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    for text, name in zip(axes.get_yticklabels(), names, strict=True):
        text.set_color(colours[INK])
        text.set_fontweight("bold" if name == baseline else "normal")


def _title(axes: Axes, figure: Figure, better: str) -> None:
    arrow = "\N{RIGHTWARDS ARROW}" if better == "high" else "\N{LEFTWARDS ARROW}"
    axes.set_title(f"{figure.name}   {arrow} better", fontsize=9, loc="left")


def scatter_chart(table: Table, colours: Colours) -> Canvas | None:
    """Figures of topology over figures of voxels: means of the rows, seeds as small dots."""
    known = {figure.key: figure for figure in figures_of(table)}
    pairs = [pair for pair in _PAIRS if set(pair) <= set(known)][:_ACROSS]
    if not pairs:
        return None
    with rc_context(_style(colours)):
        canvas = Canvas(figsize=(11, 3.9), layout="constrained")
        cells = canvas.subplots(1, len(pairs), squeeze=False).ravel().tolist()
        for axes, pair in zip(cells, pairs, strict=True):
            for number, row in enumerate(table["rows"].values()):
                x, y = (row["figures"][key] for key in pair)
                _point(axes, x, y, number, colours)
            for key, name, place in zip(pair, ("x", "y"), (0, 1), strict=True):
                better = "more" if table["figures"][key] == "high" else "less"
                text = f"{known[key].name} ({better} is better)"
                (axes.set_xlabel if place == 0 else axes.set_ylabel)(text)
                axes.locator_params(axis=name, nbins=5)
            axes.grid()
            axes.margins(0.1)
        _legend(canvas, list(table["rows"]), colours)
    return canvas


def _point(
    axes: Axes, x: Mapping[str, Any], y: Mapping[str, Any], number: int, colours: Colours
) -> None:
    colour, marker = colours[CURVE[number % CURVES]], _MARKERS[number % len(_MARKERS)]
    both = [seed for seed in x["seeds"] if seed in y["seeds"]]
    seeds = [x["seeds"][s] for s in both], [y["seeds"][s] for s in both]
    axes.scatter(*seeds, s=12, color=colour, marker=marker, alpha=0.4, linewidths=0)
    if x["mean"] is not None and y["mean"] is not None:
        axes.scatter([x["mean"]], [y["mean"]], s=62, color=colour, marker=marker, linewidths=0)


def _legend(canvas: Canvas, names: Sequence[str], colours: Colours) -> None:
    handles = [
        Line2D([], [], linestyle="", color=colours[CURVE[i % CURVES]], markersize=7,
               markeredgewidth=0, marker=_MARKERS[i % len(_MARKERS)], label=_clip(name))
        for i, name in enumerate(names)
    ]  # fmt: skip
    canvas.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)


def curves_chart(curves: Curves, colours: Colours) -> Canvas | None:
    """The loss over the steps of fine-tuning, a panel each: mean over the seeds, and their range.

    Losses have scales of their own: their curves cannot be compared with one another.
    """
    if not curves:
        return None
    lines = -(-len(curves) // _ACROSS)
    with rc_context(_style(colours)):
        canvas = Canvas(figsize=(11, 2.0 * lines + 0.2), layout="constrained")
        cells = canvas.subplots(lines, _ACROSS, sharex=True, squeeze=False).ravel().tolist()
        for axes, (name, (steps, values)) in zip(cells, curves.items(), strict=False):
            _curve(axes, steps, values, colours)
            axes.set_title(_clip(name), fontsize=9, loc="left", color=colours[INK])
        for axes in cells[len(curves) :]:
            axes.set_axis_off()
        for axes in cells[max(0, len(curves) - _ACROSS) : len(curves)]:
            axes.set_xlabel("step of fine-tuning")
            axes.tick_params(axis="x", labelbottom=True)
    return canvas


def _curve(
    axes: Axes, steps: NDArray[np.float64], values: NDArray[np.float64], colours: Colours
) -> None:
    parts = np.array_split(np.arange(len(steps)), min(len(steps), _BINS))
    x = np.array([steps[p].mean() for p in parts])
    y = np.stack([values[:, p].mean(axis=1) for p in parts], axis=1)
    if len(y) > 1:
        band = y.min(axis=0), y.max(axis=0)
        axes.fill_between(x, *band, color=colours[CURVE[0]], alpha=0.18, linewidth=0)
    axes.plot(x, y.mean(axis=0), color=colours[CURVE[0]], marker="o" if len(x) == 1 else "")
    axes.grid(axis="y")
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=_STEPS))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def costs_chart(table: Table, colours: Colours) -> Canvas | None:
    """Time of a step over the baseline's, with quartiles, and memory above the baseline's."""
    costs = table["costs"].get("losses") or {}
    if not costs:
        return None
    names = list(costs)
    with rc_context(_style(colours)):
        canvas = Canvas(figsize=(11, 0.9 + 0.27 * len(names)), layout="constrained")
        time, memory = canvas.subplots(1, 2, sharey=True)
        time.axvline(1, color=colours[MUTED], linewidth=0.9, linestyle=(0, (4, 3)))
        memory.axvline(0, color=colours[MUTED], linewidth=0.9, linestyle=(0, (4, 3)))
        for place, cost in enumerate(costs.values()):
            colour = colours[CURVE[0]]
            time.hlines(place, cost["ratio_low"], cost["ratio_high"], color=colour, linewidth=1.6)
            time.scatter([cost["ratio"]], [place], s=30, color=colour, zorder=3, linewidths=0)
            memory.barh(place, cost["extra_bytes"] / 2**20, height=0.5, color=colour, alpha=0.75)
        time.set_xlabel(f"time of a step, in steps of {_clip(table['baseline'])}")
        memory.set_xlabel(f"peak memory above {_clip(table['baseline'])}, MiB")
        for axes in (time, memory):
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
            axes.yaxis.set_minor_locator(NullLocator())
        _name_rows(time, names, table["baseline"], colours)
    return canvas


def _style(colours: Colours) -> Any:
    return {
        name: colours.get(value, value) if isinstance(value, str) else value
        for name, value in STYLE.items()
    }


def _clip(text: str, room: int = 30) -> str:
    return text if len(text) <= room else text[: room - 1] + "\N{HORIZONTAL ELLIPSIS}"
