"""What stands beside the report of a comparison of losses: its charts and examples as files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch
from numpy.typing import NDArray

from pipeline.report.chart_style import INK, LIGHT
from pipeline.report.comparison_page import (
    ERROR_COLOURS,
    ComparisonData,
    draw_charts,
    error_colours,
    grey,
    painted,
)
from pipeline.report.sweep_chart import as_png, as_svg

_ACROSS = 6


def chart_files(data: ComparisonData) -> Iterator[tuple[str, bytes]]:
    """Name and content of the PNG and the SVG file of each chart, and of the examples."""
    drawn = draw_charts(data)
    if data.pictures:
        drawn["examples"] = draw_pictures(data)
    for name, canvas in drawn.items():
        canvas.set_facecolor("white")
        yield f"{name}.png", as_png(canvas)
        yield f"{name}.svg", as_svg(canvas).encode()


def draw_pictures(data: ComparisonData) -> Canvas:
    """Image and truth, then of each row the segments and the errors."""
    found = data.pictures
    shown = [("image", grey(found["image"])), ("truth", painted(found["truth"]))]
    for name in data.table["rows"]:
        if f"segments/{name}" in found:
            shown.append((name, painted(found[f"segments/{name}"])))
            shown.append((f"{name}: errors", error_colours(found[f"errors/{name}"])))
    lines = -(-len(shown) // _ACROSS)
    height, width = found["image"].shape
    tall = 1.8 * height * data.pixel_aspect / width + 0.25
    with rc_context({"font.size": 8, "text.parse_math": False, "svg.fonttype": "none"}):
        canvas = Canvas(figsize=(11, lines * tall + 0.3), layout="constrained")
        cells = canvas.subplots(lines, _ACROSS, squeeze=False).ravel().tolist()
        for axes in cells:
            axes.set_axis_off()
        for axes, (name, pixels) in zip(cells, shown, strict=False):
            _show(axes, name, pixels, data.pixel_aspect)
        canvas.legend(
            handles=[
                Patch(facecolor=colour, edgecolor=LIGHT[INK], linewidth=0.5, label=name)
                for name, colour in ERROR_COLOURS.items()
            ],
            loc="outside lower center", ncols=4, frameon=False,
        )  # fmt: skip
    return canvas


def _show(axes: Axes, name: str, pixels: NDArray[Any], aspect: float) -> None:
    axes.imshow(pixels, interpolation="nearest", aspect=aspect)
    axes.set_title(name if len(name) <= 34 else name[:33] + "\N{HORIZONTAL ELLIPSIS}", fontsize=7.5)
