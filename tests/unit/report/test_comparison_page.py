"""The report of a comparison of losses, and its table on the terminal."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from flows.comparison_table import table_blocks
from pipeline.report.chart_style import CURVE, INK, LIGHT
from pipeline.report.comparison_charts import PAGE, figures_chart, gains_chart
from pipeline.report.comparison_page import (
    ComparisonData,
    draw_charts,
    error_colours,
    painted,
    render_comparison,
)
from pipeline.report.comparison_pictures import draw_pictures
from pipeline.report.sweep_chart import as_png
from pipeline.stages.comparison_table import case_differences, compare_rows

ROWS = ("pretrained", "base", "base + closing 1", "<b>odd</b>")


def results() -> list[dict[str, Any]]:
    """One row is better in each of 12 windows, one has no Dice at all."""
    rng = np.random.default_rng(0)
    found = []
    for seed in (0, 3):
        base = rng.random(12)
        rows = {}
        for number, name in enumerate(ROWS):
            values = [float(v) for v in base + (0.1 * number - 0.1)]
            dice = None if number == 2 else float(np.mean(values))
            rows[name] = {
                "overall": {"dice": dice, "fpr": 0.1 * seed, "cldice": 0.2, "splits": 4.0},
                "cases": {"dice": [None] * 12 if dice is None else values, "fpr": [0.1] * 12},
            }
        found.append({"seed": seed, "rows": rows})
    return found


def data(**other: Any) -> ComparisonData:
    cost = {"ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0, "extra_bytes": 0.0}
    costs = {
        "losses": {"base": cost, "<b>odd</b>": {**cost, "ratio": 1.25, "extra_bytes": -3.0e6}},
        "patch": [8, 8, 8], "batch": 2, "threads": 1,
    }  # fmt: skip
    table = compare_rows(results(), "base", costs)
    return ComparisonData(
        name="a & b",
        when="today",
        table=table,
        losses={"base": "ce"},
        gains=case_differences(results(), "base"),
        **other,
    )


def pictures() -> dict[str, np.ndarray]:
    labels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    errors = (labels % 5).astype(np.uint8)
    shown = {f"segments/{n}": labels for n in ROWS} | {f"errors/{n}": errors for n in ROWS}
    return {"image": errors * 20, "truth": labels, **shown}


def test_the_page_tells_everything_and_escapes() -> None:
    steps = np.arange(5.0)
    page = render_comparison(
        data(
            warnings=["take <care>"],
            curves={"base": (steps, np.stack([steps, steps + 1]))},
            pictures=pictures(),
            picture_caption="Seed 0.",
        )
    )
    assert "<b>odd</b>" not in page
    assert "take &lt;care&gt;" in page
    assert "a &amp; b" in page
    assert page.count("data:image/png;base64,") == 2 * 5
    assert len(re.findall(r'<svg class="chart"', page)) == 5
    assert "x1.25" in page
    assert "seed 0: " in page
    assert "12 windows" in page
    assert not set(PAGE) & set(re.findall(r"#[0-9a-f]{6}", page)), "stand-in colours are left"


def test_the_page_without_pictures_curves_and_costs() -> None:
    plain = data()
    table = {**plain.table, "costs": {"losses": {}}}
    page = render_comparison(ComparisonData("a", "b", table, {}))
    for words in ("No pictures were kept", "No training curves", "No costs", "no row to compare"):
        assert words in page


def test_marks_of_better_and_worse() -> None:
    page = render_comparison(data())
    rows = re.findall(r"<tr.*?</tr>", page, flags=re.DOTALL)
    [odd] = [row for row in rows if 'class="name">&lt;b&gt;odd' in row]
    [before] = [row for row in rows if 'class="name">pretrained' in row]
    assert re.search(r'class="n better" title="[^"]*">', odd)
    assert 'class="n worse"' in before
    assert "better" not in before


def test_equal_data_give_equal_pages_and_pictures() -> None:
    assert render_comparison(data()) == render_comparison(data())
    first, second = (as_png(draw_charts(data())["figures"]) for _ in range(2))
    assert first == second


def test_charts_keep_the_order_of_the_rows_and_use_the_given_colours() -> None:
    table = data().table
    chart = figures_chart(table, LIGHT)
    labels = [text.get_text() for text in chart.axes[0].get_yticklabels()]
    assert labels == list(ROWS)
    assert chart.axes[0].get_yticklabels()[1].get_fontweight() == "bold"
    assert chart.axes[0].get_ylim()[0] > chart.axes[0].get_ylim()[1], "the first is on top"
    assert LIGHT[CURVE[0]] != CURVE[0]
    assert PAGE[INK] == INK


def test_gains_without_cases_are_not_drawn() -> None:
    assert gains_chart(data().table, {}, LIGHT) is None
    assert gains_chart(data().table, {"dice": {"pretrained": [0.1]}}, LIGHT) is not None


def test_pictures_stand_alone() -> None:
    canvas = draw_pictures(data(pictures=pictures(), pixel_aspect=2.0))
    shown = [axes.get_title() for axes in canvas.axes if axes.get_title()]
    assert shown[:4] == ["image", "truth", "pretrained", "pretrained: errors"]
    assert len(shown) == 2 + 2 * len(ROWS)


def test_colours_of_labels_and_errors() -> None:
    labels = np.array([[0, 1, 2, 30]], np.uint16)
    colours = painted(labels)
    assert colours.shape == (1, 4, 3)
    assert colours[0, 0].tolist() == [0, 0, 0]
    assert len({tuple(c) for c in colours[0].tolist()}) == 4
    shown = error_colours(np.array([[0, 1, 2, 3, 4]], np.uint8))
    assert shown[0].tolist() == [
        [0, 0, 0], [0xDF, 0xE3, 0xE8], [0xE6, 0x9F, 0x00], [0x56, 0xB4, 0xE9], [0x2B, 0x32, 0x3C]
    ]  # fmt: skip


@pytest.mark.parametrize("width", [20, 45, 80, 300])
def test_no_figure_of_the_table_is_cut_off(width: int) -> None:
    table = data().table
    blocks = list(table_blocks(table, width))
    text = " ".join(line for block in blocks for line in block)
    for name, row in table["rows"].items():
        assert sum(line.startswith(name) for block in blocks for line in block) >= len(blocks)
        for figure, digits in (("dice", 3), ("splits", 1)):
            mean = row["figures"][figure]["mean"]
            assert mean is None or f"{mean:.{digits}f}±" in text
    assert "x1.25" in text
    assert "-3" in text
    for block in blocks:
        assert len(block) == 1 + len(table["rows"])
        if width >= 45:
            assert max(map(len, block)) <= width
    assert (len(blocks) == 1) == (width == 300)
