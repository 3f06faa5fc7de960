"""Charts of the run report, as SVG to stand inside an HTML page.

Colours are CSS variables of the page (see `chart_style`); texts stay texts. Equal input gives equal
bytes: no dates, and ids that come from the chart's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from pipeline.report.chart_style import CURVE, CURVES, DASHES, GRID, INK, MUTED, STYLE, to_svg
from pipeline.report.facts import Numbers, ThresholdFacts, TrainingPhase
from pipeline.report.quantities import duration, length, short

_POINTS_PER_CURVE = 140
# A map of more blocks than this is embedded as a picture: a shape each would be megabytes.
_MAP_SHAPES = 400
# Of more segments in a bin than this, single ones would not be seen on a linear axis.
_LINEAR_COUNTS = 100


def training_curves(phases: Sequence[TrainingPhase]) -> str:
    """Loss terms over steps, the learning rate below, phases marked.

    Phases stand one after the other, also if their step numbers start again. Long curves are drawn
    as the mean of about 140 bins over the range of each bin. Curves are coloured in the order of
    `training_terms`. A loss that is positive throughout has a logarithmic axis.
    """
    with_rate = any(p.learning_rate is not None and len(p.steps) for p in phases)
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 4.2 if with_rate else 3.3), layout="constrained")
        rows = figure.subplots(
            2 if with_rate else 1, 1, sharex=True, squeeze=False,
            height_ratios=[3, 1] if with_rate else [1],
        )[:, 0]  # fmt: skip
        loss, last = rows[0], rows[-1]
        starts = _phase_starts(phases)
        for index, name in enumerate(training_terms(phases)):
            for phase, start in zip(phases, starts, strict=True):
                _curve(loss, _shifted(phase, start), phase.terms.get(name, ()), index)
        if with_rate:
            for phase, start in zip(phases, starts, strict=True):
                if phase.learning_rate is not None:
                    _curve(last, _shifted(phase, start), phase.learning_rate, 5, band=False)
            _value_axis(last, "learning rate", 4)
        _value_axis(loss, "loss", 8)
        _mark_phases(list(rows), phases, starts)
        last.set_xlabel("step")
        last.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
        return to_svg(figure, "training")


def training_terms(phases: Iterable[TrainingPhase]) -> list[str]:
    """Names of the loss terms of all phases, in order of appearance, without repetition."""
    return list(dict.fromkeys(name for phase in phases for name in phase.terms))


def _phase_starts(phases: Sequence[TrainingPhase]) -> list[float]:
    """What to add to the steps of each phase, so that none begins before another has ended."""
    starts, end = [], 0.0
    for phase in phases:
        steps = np.asarray(phase.steps, np.float64)
        shift = end if len(steps) and steps[0] < end else 0.0
        starts.append(shift)
        end = float(steps[-1]) + shift if len(steps) else end
    return starts


def _shifted(phase: TrainingPhase, start: float) -> NDArray[np.float64]:
    return np.asarray(phase.steps, np.float64) + start


def _curve(
    axes: Axes, steps: NDArray[np.float64], values: Numbers, index: int, band: bool = True
) -> None:
    """One curve as the mean of its bins, over the faint range of each bin."""
    y = np.asarray(values, np.float64)
    size = min(len(steps), len(y))
    finite = np.flatnonzero(np.isfinite(y[:size]))
    if not len(finite):
        return
    bins = np.array_split(finite, min(len(finite), _POINTS_PER_CURVE))
    x, mean, low, high = np.array(
        [(steps[b].mean(), y[b].mean(), y[b].min(), y[b].max()) for b in bins]
    ).T
    colour = CURVE[index % CURVES]
    if band and len(finite) > len(bins):
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    marker = "o" if len(bins) == 1 else ""
    axes.plot(x, mean, color=colour, linestyle=DASHES[index % CURVES], marker=marker)


def _value_axis(axes: Axes, label: str, ticks: int) -> None:
    """Logarithmic if all that is drawn is positive and spans more than a factor of four."""
    axes.set_ylabel(label)
    axes.grid(axis="y")
    values = np.array([y for line in axes.lines for y in np.asarray(line.get_ydata(), np.float64)])
    if len(values) and values.min() > 0 and values.max() > 4 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        subs = (1, 2, 5) if ticks > 4 and values.max() < 1000 * values.min() else (1,)
        axes.yaxis.set_major_locator(LogLocator(10, subs=subs, numticks=ticks))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(ticks // 2 + 1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def _mark_phases(
    rows: Sequence[Axes], phases: Sequence[TrainingPhase], starts: Sequence[float]
) -> None:
    """A name above each phase and every second one shaded."""
    spans = [
        (p.name, float(p.steps[0]) + s, float(p.steps[-1]) + s)
        for p, s in zip(phases, starts, strict=True)
        if len(p.steps)
    ]
    if not spans:
        return
    whole = max(spans[-1][2] - spans[0][1], 1e-9)
    for number, (name, begin, end) in enumerate(spans):
        for axes in rows:
            if number % 2:
                axes.axvspan(begin, end, color=MUTED, alpha=0.07, linewidth=0)
            if number:
                axes.axvline(begin, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        room = max(3, int(130 * (end - begin) / whole))
        rows[0].annotate(
            _clip(name, room), (begin, 1), (3, 4), xycoords=rows[0].get_xaxis_transform(),
            textcoords="offset points", color=INK, fontweight="bold", fontsize=8.5,
        )  # fmt: skip
    rows[-1].set_xlim(spans[0][1] - 0.005 * whole, spans[-1][2] + 0.005 * whole)


def _clip(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "\N{HORIZONTAL ELLIPSIS}"


def block_seconds_chart(seconds: Mapping[str, Numbers]) -> str:
    """How long blocks took: a histogram per stage over one logarithmic axis, medians marked."""
    known = {name: _positive(values) for name, values in seconds.items()}
    known = {name: values for name, values in known.items() if len(values)}
    low = min(values.min() for values in known.values())
    high = max(values.max() for values in known.values())
    edges = np.geomspace(low / 1.15, high * 1.15, 49)
    with rc_context(STYLE):
        figure = Figure(figsize=(5.5, 0.8 + 0.36 * len(known)), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.01, hspace=0)  # type: ignore[union-attr,call-arg]
        rows = figure.subplots(len(known), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, values) in zip(rows, known.items(), strict=True):
            counts, _ = np.histogram(values, edges)
            axes.stairs(counts, edges, fill=True, color=CURVE[0], alpha=0.75)
            axes.axvline(float(np.median(values)), color=CURVE[1], linewidth=1.4)
            axes.set_ylim(0, max(counts.max(), 1) * 1.05)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.set_ylabel(_clip(name, 16), rotation=0, ha="right", va="center", color=INK)
            axes.tick_params(axis="x", length=0 if axes is not rows[-1] else 3)
        rows[-1].set_xscale("log")
        _decades(rows[-1], edges[0], edges[-1], _seconds)
        rows[-1].set_xlim(edges[0], edges[-1])
        rows[-1].set_xlabel("time per block")
        return to_svg(figure, "block-seconds")


def _seconds(value: float) -> str:
    return duration(value).replace(".0 s", " s")


def _positive(values: Numbers) -> NDArray[np.float64]:
    """The finite values; zeros, which a logarithmic axis has no place for, become 0.1 ms."""
    array = np.asarray(values, np.float64)
    return np.maximum(array[np.isfinite(array)], 1e-4)


def _decades(axes: Axes, low: float, high: float, text: Any) -> None:
    """About five ticks on a logarithmic x axis, named by `text`."""
    decades = np.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(10, subs=subs, numticks=7))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: text(v)))


def block_map(share: NDArray[np.float64]) -> str:
    """Foreground share of the blocks seen from above and from the front: the mean over the others.

    Blocks of which nothing is known (NaN) stay empty.
    """
    views = [("y", "x", _known_mean(share, 0)), ("z", "x", _known_mean(share, 1))]
    top = np.nanmax([np.nanmax(v) if np.isfinite(v).any() else 0.0 for *_, v in views])
    top = float(top) if top > 0 else 1.0
    with rc_context(STYLE):
        figure = Figure(figsize=(5.5, 3.2), dpi=200, layout="constrained")
        cells = figure.subplots(1, 2, width_ratios=[1, 1])
        mesh: Any = None
        for axes, (down, right, values) in zip(cells, views, strict=True):
            rows, columns = values.shape
            many = values.size > _MAP_SHAPES
            mesh = axes.pcolormesh(
                np.arange(columns + 1), np.arange(rows + 1), np.ma.masked_invalid(values),
                vmin=0, vmax=top, cmap="viridis", linewidth=0.3,
                edgecolors="none" if many else GRID, rasterized=many,
            )  # fmt: skip
            axes.set(xlim=(0, columns), ylim=(rows, 0), aspect=_cell_aspect(rows, columns))
            axes.set_xlabel(f"block along {right}")
            axes.set_ylabel(f"block along {down}")
            axes.set_title(f"mean over {'z' if down == 'y' else 'y'}", fontsize=9, color=INK)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(5, integer=True))
        bar = figure.colorbar(mesh, ax=list(cells), location="bottom", aspect=40, pad=0.04)
        bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))
        bar.outline.set_visible(False)
        bar.set_label("foreground")
        return to_svg(figure, "block-map")


def _cell_aspect(rows: int, columns: int) -> Any:
    """Square blocks, unless that would leave a strip too thin to see."""
    return "equal" if 1 / 4 <= rows / columns <= 4 else "auto"


def _known_mean(share: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    known = np.isfinite(share)
    count = known.sum(axis=axis)
    total = np.where(known, share, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def threshold_chart(facts: ThresholdFacts) -> str:
    """Scores over agglomeration thresholds, the chosen one marked."""
    x = np.asarray(facts.thresholds, np.float64)
    order = np.argsort(x, kind="stable")
    with rc_context(STYLE):
        figure = Figure(figsize=(5.5, 2.9), layout="constrained")
        axes = figure.subplots()
        for index, values in enumerate(facts.scores.values()):
            y = np.array([np.nan if v is None else float(v) for v in values])
            dashes = DASHES[index % CURVES]
            colour = CURVE[index % CURVES]
            axes.plot(x[order], y[order], color=colour, linestyle=dashes, marker="o", markersize=3)
        if facts.chosen is not None:
            axes.axvline(facts.chosen, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            right = facts.chosen > (x.min() + x.max()) / 2
            axes.annotate(
                f"chosen: {facts.chosen:.3g}", (facts.chosen, 1), (-5 if right else 5, -4),
                xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                ha="right" if right else "left", va="top", color=INK, fontsize=8.5,
            )  # fmt: skip
        axes.margins(y=0.15)
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("agglomeration threshold")
        axes.set_ylabel(facts.metric)
        return to_svg(figure, "threshold")


def score_pairs_chart(pairs: Sequence[tuple[float, float]], baseline_name: str) -> str:
    """Normalized ERL of each tracing: baseline to the right, this run upwards.

    Above the dashed line this run is better.
    """
    x, y = np.asarray(pairs, np.float64).reshape(-1, 2).T
    with rc_context(STYLE):
        figure = Figure(figsize=(5.5, 2.9), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        size = 26 if len(x) <= 100 else 10
        axes.scatter(x, y, s=size, color=CURVE[0], alpha=0.75, linewidths=0)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.grid()
        axes.set_xlabel(_clip(baseline_name, 40))
        axes.set_ylabel("this run")
        return to_svg(figure, "score-pairs")


def segment_size_chart(sizes: Numbers) -> str:
    """Distribution of segment sizes: segments per bin of voxels, logarithmic in both."""
    values = np.maximum(np.asarray(sizes, np.float64), 1)
    # Whole numbers: narrower bins than one voxel would stay empty.
    edges = np.unique(np.floor(np.geomspace(values.min(), values.max() + 1, 41)))
    counts, _ = np.histogram(values, edges)
    with rc_context(STYLE):
        figure = Figure(figsize=(5.5, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.stairs(counts, edges, baseline=0.5, fill=True, color=CURVE[0], alpha=0.75)
        axes.set_ylim(0.5, max(2, counts.max() * 1.6))
        axes.set_xlim(edges[0], edges[-1])
        _decades(axes, edges[0], edges[-1], short)
        axes.yaxis.set_major_locator(LogLocator(10, numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
        axes.grid(axis="y")
        axes.set_xlabel("voxels in a segment")
        axes.set_ylabel("segments")
        return to_svg(figure, "segment-sizes")


def cable_chart(cable_nm: Numbers) -> str:
    """Distribution of cable: segments per bin of cable, the bins logarithmic.

    Args:
        cable_nm: of each segment, positive, one at least.
    """
    values = np.asarray(cable_nm, np.float64)
    bins = int(np.clip(2 * np.sqrt(len(values)), 8, 40))
    edges = np.geomspace(values.min() / 1.15, values.max() * 1.15, bins + 1)
    counts, _ = np.histogram(values, edges)
    with rc_context(STYLE):
        figure = Figure(figsize=(5.5, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.stairs(counts, edges, fill=True, color=CURVE[0], alpha=0.75)
        axes.axvline(float(np.median(values)), color=CURVE[1], linewidth=1.4)
        axes.set_xlim(edges[0], edges[-1])
        _decades(axes, edges[0], edges[-1], length)
        if counts.max() > _LINEAR_COUNTS:
            axes.set_yscale("symlog", linthresh=1)
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_ylim(0, counts.max() * (1.6 if counts.max() > _LINEAR_COUNTS else 1.08))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
        axes.grid(axis="y")
        axes.set_xlabel("cable of a segment")
        axes.set_ylabel("segments")
        return to_svg(figure, "cable")
