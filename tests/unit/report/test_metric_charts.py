"""Pictures of the metrics: their texts, what they mark, and that nothing runs over the edge."""

from __future__ import annotations

import io
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axis import Tick
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from pipeline.arrays.metric_curves import MetricCurves, metric_curves
from pipeline.arrays.metrics import ScoringOptions, build_forest, score_forests
from pipeline.arrays.paired import Comparison, compare
from pipeline.arrays.skeleton import Skeleton
from pipeline.report.metric_charts import comparison_chart, curves_chart, verdict_of
from pipeline.report.sweep_chart import as_png, as_svg

VOXEL = (1000.0, 300.0, 300.0)


def chain(name: str, count: int) -> Skeleton:
    nodes = np.zeros((count, 3))
    nodes[:, 2] = np.arange(count)
    index = np.arange(1, count)
    return Skeleton(name, nodes, np.stack([index, index - 1], axis=1))


def labels_of(sizes: list[int], fresh: float, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    result = []
    for number, count in enumerate(sizes):
        values = np.full(count, number + 1, np.uint64)
        for i in range(1, count):
            draw = random.random()
            values[i] = values[i - 1] if draw > fresh else random.integers(0, 60)
        result.append(values)
    return result


def comparison(neurons: int = 12) -> Comparison:
    sizes = [30 + 25 * i for i in range(neurons)]
    forests = [build_forest(chain(f"n{i:02}", n), VOXEL) for i, n in enumerate(sizes)]
    a, b = (
        score_forests(forests, labels_of(sizes, fresh, seed), VOXEL).as_json()
        for fresh, seed in ((0.03, 1), (0.008, 2))
    )
    return compare(a, b, n_resamples=200)


def curves(sizes: tuple[int, ...] = (200, 300), **options: object) -> MetricCurves:
    forests = [build_forest(chain(f"n{i}", n), VOXEL) for i, n in enumerate(sizes)]
    labels = labels_of(list(sizes), 0.2, 3)
    return metric_curves(forests, labels, VOXEL, ScoringOptions(**options))


CHARTS = {
    "comparison": lambda: comparison_chart(comparison(), "plain <threshold> & $x_1", "network"),
    "comparison, long names": lambda: comparison_chart(comparison(), "a" * 80, "b" * 80),
    "comparison, one neuron": lambda: comparison_chart(comparison(1)),
    "curves": lambda: curves_chart(curves()),
    "curves, many events": lambda: curves_chart(curves((2000, 900))),
    "curves, no repair": lambda: curves_chart(curves(repair=False)),
    "curves, one edge": lambda: curves_chart(curves((2,))),
    "curves, nothing": lambda: curves_chart(curves((1,))),
}


def shown_texts(figure: Figure) -> list[Text]:
    FigureCanvasAgg(figure).draw()
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text()]


@pytest.mark.parametrize("name", CHARTS)
def test_pictures_are_drawn_and_repeat(name):
    figure, again = CHARTS[name](), CHARTS[name]()
    png, svg = as_png(figure), as_svg(figure)
    assert (as_png(again), as_svg(again)) == (png, svg)
    picture = imread(io.BytesIO(png), format="png")
    assert 600 < picture.shape[0] < 1300
    assert picture[..., :3].min() < 0.3
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "#0102" not in svg  # stand-in colours


@pytest.mark.parametrize("name", CHARTS)
def test_nothing_runs_over_the_edge(name):
    figure = CHARTS[name]()
    picture = imread(io.BytesIO(as_png(figure)), format="png")[..., :3]
    for edge in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]):
        assert (edge == 1).all()
    # Labels of ticks beyond the ends of an axis exist without being drawn.
    ticks = {id(label) for t in figure.findobj(Tick) for label in (t.label1, t.label2)}
    texts = [text for text in shown_texts(figure) if id(text) not in ticks]
    assert len(texts) >= 8
    width, height = figure.bbox.size
    for text in texts:
        box = text.get_window_extent()
        assert min(box.x0, box.y0) > 0, text
        assert box.x1 < width, text
        assert box.y1 < height, text


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in shown_texts(figure)]


def test_comparison_names_axes_figures_and_neurons():
    found = comparison()
    texts = words(comparison_chart(found, "first", "second"))
    assert {"A: first", "B: second"} <= set(texts)
    assert any(t.startswith("ERL (µm)") for t in texts)
    assert any("12 neurons" in t and "95 % interval" in t for t in texts)
    nerl = [pair["nerl"] for pair in found.per_neuron.values()]
    better = sum(b > a for a, b in nerl)
    assert f"better in B: {better}" in texts
    difference = found.figures["pct_split"].difference
    assert any(t.startswith(f"{difference:+.2f}  p ") for t in texts)


def test_equal_neurons_are_neither_better_nor_worse():
    skeletons = [chain("a", 9), chain("b", 5)]
    forests = [build_forest(skeleton, VOXEL) for skeleton in skeletons]
    same = score_forests(forests, labels_of([9, 5], 0.3, 1), VOXEL).as_json()
    texts = words(comparison_chart(compare(same, same, n_resamples=50)))
    assert {"better in B: 0", "worse in B: 0", "equal: 2"} <= set(texts)


def test_verdicts_follow_the_adjusted_p_value():
    found = comparison().figures["pct_split"]
    clear = replace(found, p_adjusted=0.049, difference=-1.0)
    assert verdict_of(clear) == "better"
    assert verdict_of(replace(clear, difference=1.0)) == "worse"
    assert verdict_of(replace(clear, difference=1.0, better="high")) == "better"
    assert verdict_of(replace(clear, p_adjusted=0.05)) == ""
    assert verdict_of(replace(clear, p_adjusted=None)) == ""


def test_a_dot_for_each_neuron_and_a_bar_for_each_interval():
    found = comparison()
    figure = comparison_chart(found)
    left, *others = figure.axes
    dots = [np.asarray(c.get_offsets()) for c in left.collections]
    assert sorted(map(tuple, np.concatenate(dots).tolist())) == sorted(
        row["nerl"] for row in found.per_neuron.values()
    )
    for axes, key in zip(others, ("nerl", "nerl_nm", "ffn_nerl_nm"), strict=False):
        bar, dot = axes.collections
        ends = bar.get_segments()[0][:, 0]
        assert tuple(ends) == (found.figures[key].low, found.figures[key].high)
        assert dot.get_offsets()[0][0] == found.figures[key].difference


def test_curves_say_the_units_and_every_value():
    texts = words(curves_chart(curves()))
    assert {
        "merge tolerance (nodes)",
        "merge tolerance (µm of cable)",
        "longest gap closed (µm)",
        "share of edges (%)",
        "0.25",
        "200",
        "any",
    } <= set(texts)
    assert "longest gap closed (µm)" not in words(curves_chart(curves(repair=False)))


def test_curves_show_the_figures():
    found = curves()
    figure = curves_chart(found)
    gaps = [row for row in found.rows if row["option"] == "max_gap_nm"]
    line = figure.axes[2].lines[0]
    assert line.get_ydata().tolist() == [row["overall"]["nerl"] for row in gaps]
    merges = figure.axes[6].lines[1]
    nodes = [row for row in found.rows if row["option"] == "merge_min_nodes"]
    assert merges.get_ydata().tolist() == [row["overall"]["merges_total"] for row in nodes]
