"""Charts and picture layers: valid files of the right size, right content, equal bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from pipeline.arrays.skeleton import Skeleton
from pipeline.report import figures, layers, quantities
from pipeline.report.facts import LineSet, ThresholdFacts, TrainingPhase
from pipeline.report.projections import ProjectionGrid

GRID = ProjectionGrid((10, 30, 20), (40.0, 8.0, 8.0))


def pixels(data: bytes) -> np.ndarray:
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return np.rint(255 * imread(io.BytesIO(data), format="png")).astype(np.uint8)


def phases() -> list[TrainingPhase]:
    steps = np.arange(0, 5000, 10)
    decay = np.exp(-steps / 2000)
    return [
        TrainingPhase("pretrain", steps, {"voxel": decay}, decay * 1e-3),
        TrainingPhase("fine $x_1 & <tune>", steps, {"voxel": decay, "split": decay / 3}, None),
    ]


CHARTS: dict[str, Callable[[], str]] = {
    "training": lambda: figures.training_curves(phases()),
    "training, one step": lambda: figures.training_curves([TrainingPhase("a", [0], {"v": [1.0]})]),
    "training, diverged": lambda: figures.training_curves(
        [TrainingPhase("a", [0, 1, 2], {"v": [1.0, np.nan, np.inf]})]
    ),
    "training, nothing finite": lambda: figures.training_curves(
        [TrainingPhase("a", [0, 1], {"v": [np.nan, np.nan]}, [1e-3, 0.0])]
    ),
    "training, a phase without steps": lambda: figures.training_curves(
        [*phases(), TrainingPhase("empty", [], {})]
    ),
    "seconds": lambda: figures.block_seconds_chart(
        {"predict": np.geomspace(0.1, 30, 200), "stitch": [3.0], "zero": [0.0, 0.0], "none": []}
    ),
    "seconds, all equal": lambda: figures.block_seconds_chart({"a": [2.0, 2.0]}),
    "map": lambda: figures.block_map(np.array([[[0.1, np.nan], [0.3, 0.0]]])),
    "map, one block": lambda: figures.block_map(np.zeros((1, 1, 1))),
    "map, many blocks": lambda: figures.block_map(np.random.default_rng(1).random((20, 90, 70))),
    "map, a row of blocks": lambda: figures.block_map(np.ones((1, 1, 300)) * 0.5),
    "threshold": lambda: figures.threshold_chart(
        ThresholdFacts([0.5, 0.1, 0.9], {"run": [0.8, 0.3, None]}, 0.5)
    ),
    "threshold, one": lambda: figures.threshold_chart(ThresholdFacts([0.5], {"run": [0.8]}, 0.5)),
    "sizes": lambda: figures.segment_size_chart([1, 1, 1, 50, 10_000_000_000]),
    "sizes, one": lambda: figures.segment_size_chart([7]),
    "cable": lambda: figures.cable_chart([500.0, 1e3, 1e3, 5e6, 3e9]),
    "cable, one": lambda: figures.cable_chart([1234.5]),
    "cable, many": lambda: figures.cable_chart(np.full(5000, 2e4)),
    "pairs": lambda: figures.score_pairs_chart([(0.1, 0.4), (1.0, 1.0)], "plain <baseline>"),
}


@pytest.mark.parametrize("name", CHARTS)
def test_charts_are_svg_elements_that_repeat(name):
    first = CHARTS[name]()
    assert CHARTS[name]() == first
    root = ElementTree.fromstring(first)
    assert root.tag == "svg"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert 300 < width < 1000
    assert 50 < height < 800
    assert not re.search(r"<metadata|<style|http|xlink|#0[12]0[0-9]0[0-9]|nan", first)


def test_ids_of_charts_differ_and_all_references_resolve():
    charts = [CHARTS[name]() for name in ("training", "seconds", "map", "threshold", "sizes")]
    ids = [re.findall(r'\bid="([^"]+)"', chart) for chart in charts]
    assert len({i for some in ids for i in some}) == sum(map(len, ids))
    for chart, own in zip(charts, ids, strict=True):
        used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', chart)
        assert used
        assert {a or b for a, b in used} <= set(own)


def test_a_map_of_many_blocks_stays_small():
    assert len(CHARTS["map, many blocks"]()) < 120_000


def texts(svg: str) -> list[str]:
    return [t.text for t in ElementTree.fromstring(svg).iter("text") if t.text]


def test_phases_follow_each_other_when_their_steps_start_again():
    svg = figures.training_curves(phases())
    assert "fine $x_1 & <tune>" in texts(svg)  # escaped in the file, and no formula
    assert "10k" in texts(svg)
    assert figures.training_terms(phases()) == ["voxel", "split"]


def test_colours_are_variables_of_the_page():
    svg = figures.training_curves(phases())
    assert "stroke: var(--c1)" in svg
    assert "stroke: var(--c2)" in svg
    assert "fill: var(--muted)" in svg


def test_the_chosen_threshold_is_marked():
    facts = ThresholdFacts([0.1, 0.2, 0.4], {"run": [0.5, 0.7, 0.6]}, 0.2, "nERL")
    assert "chosen: 0.2" in texts(figures.threshold_chart(facts))
    unmarked = ThresholdFacts([0.1, 0.2, 0.4], {"run": [0.5, 0.7, 0.6]}, None, "nERL")
    assert not any("chosen" in text for text in texts(figures.threshold_chart(unmarked)))


def test_image_layer_has_contrast_and_the_orientation_of_its_view():
    picture = np.zeros((10, 30), np.uint16)
    picture[2, 25] = 4000
    shown = pixels(layers.image_png(picture, 2))
    assert shown.shape[:2] == (30, 10)  # along x: y runs down, z to the right
    assert shown[25, 2, 0] == 255
    assert shown[..., 0].sum() == 255
    assert pixels(layers.image_png(picture, 1)).shape[:2] == (10, 30)


@pytest.mark.parametrize(
    "picture",
    [
        np.full((4, 5), 7, np.uint8),
        np.full((4, 5), np.nan, np.float32),
        np.array([[np.inf, -np.inf, np.nan, 1.0, 2.0]]),
    ],
)
def test_images_without_contrast_are_drawn(picture):
    assert pixels(layers.image_png(picture, 0)).shape[:2] == picture.shape


def test_affinities_reach_from_black_to_pale_yellow():
    shown = pixels(layers.affinity_png(np.array([[0, 255]], np.uint16), 0, 255))[..., :3]
    assert shown[0, 0].max() < 10
    assert shown[0, 1].min() > 150
    full = pixels(layers.affinity_png(np.array([[65535]], np.uint16), 0, 65535))[..., :3]
    np.testing.assert_array_equal(full[0, 0], shown[0, 1])


def test_segments_have_the_colour_of_their_id_and_no_background():
    labels = np.array([[0, 5, 2**63 + 1], [5, 0, 6]], np.uint64)
    shown = pixels(layers.segment_png(labels, 0))
    assert shown[0, 0, 3] == 0
    assert shown[0, 1, 3] == 255
    np.testing.assert_array_equal(shown[0, 1], shown[1, 0])
    np.testing.assert_array_equal(shown[1, 2, :3], layers.label_colours(np.array([6]))[0])


def test_label_colours_are_many_bright_and_keep_off_the_tracings():
    colours = layers.label_colours(np.arange(1, 5000, dtype=np.uint64)).astype(int)
    assert len(np.unique(colours, axis=0)) > 3000
    assert (colours @ [0.2126, 0.7152, 0.0722]).min() > 90
    tracing = np.array([int(layers.TRACING_COLOUR[i : i + 2], 16) for i in (1, 3, 5)])
    assert np.abs(colours - tracing).max(axis=1).min() > 50


def test_label_colours_stay_the_same_from_release_to_release():
    assert layers.label_hex(np.array([1, 2], np.uint64)) == ["#64b6e9", "#43a3d0"]


def lines(ids: list[int] | None) -> LineSet:
    """A line along x at y = 15, z = 5, from x = 2 to x = 18."""
    nodes = np.array([[5, 15, 2], [5, 15, 10], [5, 15, 18]], float)
    return LineSet.of([Skeleton("a", nodes, np.array([[1, 0], [2, 1]]))], ids)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_line_layers_cover_the_extent_of_the_pictures(axis):
    rows, columns = layers.line_pixels(GRID, axis)
    shown = pixels(layers.line_png(lines([3]), axis, GRID))
    assert shown.shape == (rows, columns, 4)
    down, right = layers.extent_nm(GRID, axis)
    assert rows / columns == pytest.approx(down / right, rel=0.02)


def test_lines_lie_where_their_voxels_are_shown():
    rows, columns = layers.line_pixels(GRID, 0)
    shown = pixels(layers.line_png(lines([3]), 0, GRID))
    drawn = np.argwhere(shown[..., 3] > 128)
    margin = 6
    assert abs(drawn[:, 0].mean() - rows * 15 / 30) < 1.5
    assert abs(drawn[:, 1].min() - columns * 2 / 20) < margin
    assert abs(drawn[:, 1].max() - columns * 18 / 20) < margin
    side = np.argwhere(pixels(layers.line_png(lines([3]), 2, GRID))[..., 3] > 128)
    side_rows, side_columns = layers.line_pixels(GRID, 2)
    assert abs(side[:, 0].mean() - side_rows * 15 / 30) < margin
    assert abs(side[:, 1].mean() - side_columns * 5 / 10) < margin


def test_skeletons_have_their_segments_colour_and_tracings_are_thinner():
    skeleton = pixels(layers.line_png(lines([3]), 0, GRID))
    tracing = pixels(layers.line_png(lines(None), 0, GRID))
    solid = skeleton[skeleton[..., 3] == 255]
    np.testing.assert_array_equal(np.median(solid[:, :3], axis=0), layers.label_colours(3))
    assert 0 < (tracing[..., 3] > 128).sum() < 0.5 * (skeleton[..., 3] > 128).sum()


def test_no_lines_give_an_empty_layer():
    assert not pixels(layers.line_png(LineSet.of([]), 0, GRID))[..., 3].any()
    assert not pixels(layers.line_png(LineSet.of([], []), 0, GRID))[..., 3].any()


def test_layers_repeat():
    labels = np.arange(600, dtype=np.uint64).reshape(30, 20)
    assert layers.segment_png(labels, 0) == layers.segment_png(labels, 0)
    assert layers.line_png(lines([3]), 1, GRID) == layers.line_png(lines([3]), 1, GRID)
    assert b"Software" not in layers.segment_png(labels, 0)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (quantities.decimal(1234567.891, 1), "1,234,567.9"),
        (quantities.decimal(-0.0004, 2), "0.00"),
        (quantities.decimal(None), quantities.MISSING),
        (quantities.decimal(float("nan"), 2), quantities.MISSING),
        (quantities.short(0), "0"),
        (quantities.short(999.9), "1k"),
        (quantities.short(999_999), "1M"),
        (quantities.short(46_080_000), "46.1M"),
        (quantities.short(2.5e16), "25,000T"),
        (quantities.duration(None), quantities.MISSING),
        (quantities.duration(0.0451), "45 ms"),
        (quantities.duration(59.97), "1 min 00 s"),
        (quantities.duration(3599.6), "1 h 00 min"),
        (quantities.duration(11531), "3 h 12 min"),
        (quantities.duration(200_000), "2 d 7 h"),
        (quantities.file_size(850), "850 B"),
        (quantities.file_size(999_700), "1 MB"),
        (quantities.file_size(8_340_000_000_000), "8.34 TB"),
        (quantities.length(748.0), "748 nm"),
        (quantities.length(999.7), "1 µm"),
        (quantities.length(1_200_000.0), "1.2 mm"),
        (quantities.length(4.2e9), "4,200 mm"),
        (quantities.scale_bar_nm(598_400.0), 100_000.0),
        (quantities.scale_bar_nm(8.0), 2.0),
    ],
)
def test_quantities(found, expected):
    assert found == expected
