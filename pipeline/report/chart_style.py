"""How charts look: colours, fonts, and the SVG that stands inside the report.

matplotlib knows no CSS variables. Charts are drawn in stand-in colours, which `to_svg` replaces by
the page's variables (`--ink`, `--muted`, `--grid`, `--c1` to `--c6`), so that one chart serves
light and dark.
"""

from __future__ import annotations

import io
import re
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

CURVES = 6
DASHES = ("solid", "dashed", "dotted", "dashdot", "solid", "dashed")
"""Line style of each curve: told apart without colours, too."""

INK, MUTED, GRID = "#010101", "#010102", "#010103"
CURVE = tuple(f"#0102{i:02d}" for i in range(1, CURVES + 1))
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {
    colour: f"--c{i}" for i, colour in enumerate(CURVE, start=1)
}
LIGHT = {INK: "#171b22", MUTED: "#5c6675", GRID: "#dfe3e9"} | dict(
    zip(CURVE, ("#0b62a4", "#c4501b", "#0a7f5a", "#8a4fa3", "#946800", "#5b6470"), strict=True)
)
"""The colours of the light page, for pictures that stand alone."""

STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "svg.fonttype": "none",
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element that can stand in a page beside others.

    Without prologue, metadata and namespaces, with ids that begin with `name`, a width that
    follows the page, and the page's colours.
    """
    buffer = io.StringIO()
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    with rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    opening, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    body = body.replace("xlink:href", "href")
    body = re.sub(
        r"(fill|stroke): ?(#[0-9a-f]{6})\b",
        lambda m: f"{m[1]}: var({_VARIABLES[m[2]]})" if m[2] in _VARIABLES else m[0],
        body,
    )
    label = name.replace("-", " ")
    return f'<svg class="chart" {box[0]} role="img" aria-label="{label} chart">{body}'
