"""Pictures that lie over each other: image, affinities, segments and lines, as PNG files.

All layers of one projection cover the same extent, so a page can stack them without alignment.
The pictures are laid out as an orthogonal view: along z rows are y and columns x; along y rows
are z and columns x; along x rows are y and columns **z**, so that it continues the first to the
right.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from pipeline.report.facts import LineSet
from pipeline.report.projections import ProjectionGrid

VIEWS = {0: (1, 2), 1: (0, 2), 2: (1, 0)}
"""Axis of projection to the axes that run down and to the right in its picture."""

TRACING_COLOUR = "#f4ff52"
"""Of the truth: lighter than every segment, and of a hue that none of them has."""

REGION_COLOURS = ("#4cc9f0", "#ff9f5a", "#c9a2ff", "#7bd88f")

_NO_METADATA: Any = {"Software": None}
_LINE_PIXELS = 1600
_SKELETON_WIDTH, _TRACING_WIDTH = 7.5, 1.8


def oriented(picture: NDArray[Any], axis: int) -> NDArray[Any]:
    """A projection along `axis` turned the way it is shown."""
    return picture.T if axis == 2 else picture


def png(rgba: NDArray[np.uint8]) -> bytes:
    """(rows, columns, 3 or 4) uint8 as a PNG file; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    imsave(buffer, rgba, format="png", metadata=_NO_METADATA, pil_kwargs={"optimize": True})
    return buffer.getvalue()


def contrast_limits(picture: NDArray[Any]) -> tuple[float, float]:
    """1st and 99.8th percentile of a projection, or its range where these are equal."""
    finite = picture[np.isfinite(picture)] if picture.dtype.kind == "f" else picture
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(finite, (1, 99.8)))
    if low >= high:
        low, high = float(finite.min()), float(finite.max())
    return low, high if high > low else low + 1


def image_png(picture: NDArray[Any], axis: int) -> bytes:
    """A projection of the image in grey, black and white at its `contrast_limits`."""
    low, high = contrast_limits(picture)
    values = np.nan_to_num(picture.astype(np.float64), nan=low, posinf=high, neginf=low)
    grey = np.clip((values - low) / (high - low), 0, 1)
    # A gamma of 0.8 lifts thin, dim processes off the background.
    levels = np.rint(255 * grey**0.8).astype(np.uint8)
    return png(np.repeat(oriented(levels, axis)[..., None], 3, axis=2))


def affinity_png(picture: NDArray[Any], axis: int, highest: int) -> bytes:
    """A projection of affinities from 0 (black) to `highest` (pale yellow), colour map magma."""
    share = oriented(picture, axis).astype(np.float64) / highest
    return png(np.rint(255 * colormaps["magma"](np.clip(share, 0, 1))[..., :3]).astype(np.uint8))


def segment_png(picture: NDArray[Any], axis: int) -> bytes:
    """A projection of labels in the colours of their ids; background is transparent."""
    labels = oriented(picture, axis)
    rgba = np.zeros((*labels.shape, 4), np.uint8)
    rgba[..., :3] = label_colours(labels)
    rgba[..., 3] = 255
    rgba[labels == 0] = 0
    return png(rgba)


def label_colours(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """(..., 3) sRGB colour of each label: a function of the id alone, the same in every report.

    Lightness and chroma stay in a narrow band (OKLCH: 0.66-0.82 and 0.10-0.15), so that no segment
    stands out by chance, and the hues around the colour of the tracings are left out.

    Source: Ottosson 2020, "A perceptual color space for image processing" (OKLab).
    """
    mixed = _scramble(np.asarray(labels).astype(np.uint64))
    parts = [(mixed >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32)]
    hue_share, light_share, chroma_share = (p / 65536 for p in parts)
    hue = np.deg2rad(140 + 270 * hue_share)  # leaves out 50 to 140 degrees: yellow
    chroma = 0.10 + 0.05 * chroma_share
    lightness = 0.66 + 0.16 * light_share
    return _oklab_to_srgb(lightness, chroma * np.cos(hue), chroma * np.sin(hue))


def label_hex(labels: NDArray[Any]) -> list[str]:
    """`label_colours` of a row of labels as "#rrggbb"."""
    return ["#" + bytes(colour).hex() for colour in label_colours(labels)]


def _scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: neighbouring ids get unrelated colours (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _oklab_to_srgb(
    lightness: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]
) -> NDArray[np.uint8]:
    cones = (
        lightness + 0.3963377774 * a + 0.2158037573 * b,
        lightness - 0.1055613458 * a - 0.0638541728 * b,
        lightness - 0.0894841775 * a - 1.2914855480 * b,
    )
    l, m, s = (c**3 for c in cones)  # noqa: E741
    linear = np.stack(
        [
            4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
            -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
            -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s,
        ],
        axis=-1,
    ).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


def extent_vox(grid: ProjectionGrid, axis: int) -> tuple[int, int]:
    """Voxels that the picture along `axis` spans downwards and to the right, whole pixels."""
    down, right = (grid.pixels[d] * grid.factors[d] for d in VIEWS[axis])
    return down, right


def extent_nm(grid: ProjectionGrid, axis: int) -> tuple[float, float]:
    """Nanometres that the picture along `axis` spans downwards and to the right."""
    down, right = (
        n * grid.voxel_size_nm[d] for n, d in zip(extent_vox(grid, axis), VIEWS[axis], strict=True)
    )
    return down, right


def line_pixels(grid: ProjectionGrid, axis: int) -> tuple[int, int]:
    """Rows and columns of a line layer: one scale for the three views, square pixels."""
    longest = max(max(extent_nm(grid, a)) for a in VIEWS)
    rows, columns = (max(1, round(_LINE_PIXELS * e / longest)) for e in extent_nm(grid, axis))
    return rows, columns


def line_png(lines: LineSet, axis: int, grid: ProjectionGrid) -> bytes:
    """Lines on a transparent ground: broad in their segments' colours, or thin as tracings.

    A tracing drawn over skeletons leaves them visible on both sides.
    """
    rows, columns = line_pixels(grid, axis)
    down, right = extent_vox(grid, axis)
    row_axis, column_axis = VIEWS[axis]
    scale = np.array([columns / right, rows / down])
    points = lines.ends[:, :, [column_axis, row_axis]] * scale
    colours: Any = TRACING_COLOUR
    ids = np.zeros(len(points), np.uint64) if lines.ids is None else lines.ids
    points, ids = _visible(points, ids)
    if lines.ids is not None:
        colours = label_colours(ids) / 255
    figure = Figure(figsize=(columns / 100, rows / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, columns), ylim=(rows, 0))
    axes.set_axis_off()
    figure.patch.set_facecolor((0, 0, 0, 0))
    width = (_TRACING_WIDTH if lines.ids is None else _SKELETON_WIDTH) * 0.72  # points
    axes.add_collection(
        LineCollection(
            list(points), colors=colours, linewidths=width, capstyle="round", snap=False
        ),
        autolim=False,
    )
    canvas.draw()
    return png(np.asarray(canvas.buffer_rgba()))


def _visible(
    points: NDArray[np.float64], ids: NDArray[np.uint64]
) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
    """Lines without those that another of the same id hides: ends in the same pixels.

    Ten million edges become as many as the picture can show.
    """
    # A line seen from its end would not be drawn at all: half a pixel makes it a dot.
    dot = (points[:, 0] == points[:, 1]).all(axis=1)
    points[dot, 1, 0] += 0.5
    cells = np.rint(points).astype(np.int64).reshape(-1, 4)
    # One hash per line instead of rows of five numbers: sorting takes a tenth of the time.
    keys = _scramble(ids)
    for column in cells.T:
        keys = _scramble(keys ^ column.astype(np.uint64))
    _, first = np.unique(keys, return_index=True)
    first.sort()
    return points[first], ids[first]
