"""The report page: valid, self-contained, escaped, complete, and the same for equal data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from pipeline.arrays.skeleton import Skeleton
from pipeline.geometry import Roi
from pipeline.report.facts import (
    InputFacts,
    LabelScoreFacts,
    LevelFacts,
    LineSet,
    OutputFile,
    ProjectionFacts,
    ScoreFacts,
    SegmentFacts,
    SegmentRow,
    SkeletonFacts,
    SkeletonRow,
    StageFacts,
    ThresholdFacts,
    TrainingPhase,
)
from pipeline.report.next_steps import next_steps
from pipeline.report.page import ReportData, render_report
from pipeline.report.projections import ProjectionGrid
from pipeline.report.quantities import MISSING
from pipeline.report.score_tables import nerl_pairs, score_rows, tracing_rows
from pipeline.report.skeleton_tables import work_tables

EVIL = '<script>alert("x")</script>&\'"{{ 7 * 7 }}</style>'
SECTIONS = {
    "next", "run", "projections", "training", "stages", "scores", "segments", "skeletons", "files",
}  # fmt: skip
VOID = {"meta", "input", "br", "img", "link", "hr"}


class Page(HTMLParser):
    """Tags with attributes and texts; fails on tags that do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def attributes(self, name: str) -> Iterator[str]:
        return (a[name] or "" for _, a in self.tags if name in a)


def metrics(nerl: float | None = 0.8, **more: Any) -> dict[str, Any]:
    overall = {"edges": 1000, "nerl": nerl, "erl_nm": 1234_000.0, "pct_omit": 0.2, **more}
    return {
        "overall": overall,
        "per_skeleton": {
            "good": {"nerl": 0.9, "run_length_nm": 5e6, "splits": 1},
            "unscored": {"nerl": None},
            "bad": {"nerl": 0.1},
        },
        "conventions": {"repair": "none was done", "merge_tolerance": "1 node"},
    }


def projections() -> ProjectionFacts:
    grid = ProjectionGrid((6, 12, 9), (40.0, 8.0, 8.0))
    rng = np.random.default_rng(0)
    pictures = [tuple(rng.integers(0, 9, grid.picture(a)) for a in range(3)) for _ in "abc"]
    image, affinities, segments = ([p.astype(np.uint64) for p in group] for group in pictures)
    tracing = Skeleton("a", np.array([[1, 2, 3], [4, 9, 8]], float), np.array([[1, 0]]))
    return ProjectionFacts(
        grid,
        tuple(image),
        tuple(affinities),
        255,
        tuple(segments),
        LineSet.of([tracing], [7]),
        LineSet.of([tracing]),
        {"scored": [Roi((0, 0, 0), (6, 12, 4))], "trained": [Roi((1, 2, 5), (5, 10, 4))]},
    )


def skeletons(**more: Any) -> SkeletonFacts:
    return SkeletonFacts(
        [4e6, 0.0, 1e3],
        branch_points=17,
        tips=31,
        components=5,
        loops=2,
        longest=[SkeletonRow(2**63 + 7, 1234, 4e6, 16, 29, 3, 2, 2600.0)],
        traced={"components": 41, "limited": 3, "limited_voxels": 5678},
        joined={
            "welded": 23, "gaps_joined": 4, "doubled_nm": 900.0, "ticks_removed": 6,
            "ticks_nm": 7e3, "cable_in_nm": 6e6, "cable_out_nm": 5e6,
        },
        **more,
    )  # fmt: skip


def full() -> ReportData:
    steps = np.arange(0, 100, 10)
    return ReportData(
        name="block 7",
        when="2031-05-04 12:00 UTC",
        source=InputFacts("/data/a.zarr", (6, 12, 9), "uint16", (40.0, 8.0, 8.0)),
        commands={"made with": "loom make", "resume": "loom resume", "view": "loom view"},
        versions={"axonloom": "1.2.3", "python": "3.11"},
        wall_seconds=3725.0,
        neurons=12,
        projections=projections(),
        training=[TrainingPhase("pretrain", steps, {"voxel": 1 / (steps + 1)}, steps * 1e-5)],
        stages=[
            StageFacts("predict", 8, 4, 2, 2, 0, 60.0, 648, [1.0, 2.0, 9.0]),
            StageFacts("stitch", 1, 1, wall_seconds=0.5),
        ],
        foreground_share=np.linspace(0, 0.1, 8).reshape(2, 2, 2),
        scores=ScoreFacts(
            metrics(), metrics(0.5), run_intervals={"nerl": (0.7, 0.9)}, scored_on="the left half"
        ),
        threshold=ThresholdFacts([0.2, 0.4, 0.6], {"this run": [0.5, 0.8, 0.7]}, 0.4),
        segments=SegmentFacts([5, 50, 500], [SegmentRow(2**63 + 5, 500, 9e5, 3)]),
        skeletons=skeletons(),
        outputs=[OutputFile("scores/metrics.json", "the scores", 4096)],
    )


@cache
def full_html() -> str:
    return render_report(full())


def test_every_section_is_there_with_and_without_data():
    for html in (full_html(), render_report(ReportData("empty"))):
        page = Page(html)
        assert set(page.attributes("id")) >= SECTIONS
        targets = [h[1:] for h in page.attributes("href") if h.startswith("#")]
        assert set(targets) >= SECTIONS
        ids = list(page.attributes("id"))
        assert len(ids) == len(set(ids))
        assert set(targets) <= set(ids)


def test_missing_parts_are_said_to_be_missing_and_full_ones_are_not():
    empty = Page(render_report(ReportData("empty")))
    missing = [a for _, a in empty.tags if a.get("class") == "missing"]
    assert len(missing) >= 10
    assert not [t for t, a in empty.tags if t == "svg"]
    assert "No projections were made." in empty.text
    whole = Page(full_html())
    assert not [a for _, a in whole.tags if a.get("class") == "missing"]
    charts = [a for t, a in whole.tags if t == "svg" and a.get("class") == "chart"]
    assert len(charts) == 7


@pytest.mark.parametrize(
    "part",
    [
        "source", "commands", "versions", "wall_seconds", "neurons", "projections", "training",
        "stages", "foreground_share", "scores", "threshold", "segments", "skeletons",
        "outputs",
    ],
)  # fmt: skip
def test_any_one_part_may_be_missing_or_be_the_only_one(part):
    # Pictures take long to draw, and no other part looks at them.
    data = replace(full(), projections=None)
    Page(render_report(replace(data, **{part: getattr(ReportData("x"), part)})))
    Page(render_report(replace(ReportData("x"), **{part: getattr(full(), part)})))


@pytest.mark.parametrize("layer", ["image", "affinities", "segments", "skeletons", "tracings"])
def test_any_layer_may_be_missing(layer):
    data = replace(full(), projections=replace(projections(), **{layer: None}))
    page = Page(render_report(data))
    assert f"Not in this run: {layer}." in page.text
    assert f"show-{layer}" not in set(page.attributes("id"))


def test_parts_that_hold_nothing_are_missing_too():
    data = replace(
        full(),
        projections=ProjectionFacts(ProjectionGrid((2, 2, 2), (1.0, 1.0, 1.0))),
        training=[TrainingPhase("a", [], {})],
        foreground_share=np.full((1, 2, 2), np.nan),
        scores=ScoreFacts({"overall": {}, "per_skeleton": {}, "conventions": {}}),
        threshold=ThresholdFacts([0.5], {"this run": [None]}),
        segments=SegmentFacts([]),
        skeletons=SkeletonFacts([]),
        stages=[StageFacts("predict", 0)],
    )
    page = Page(render_report(data))
    assert "No projections were made." in page.text
    assert "There is no segment." in page.text
    assert "0 segments have a skeleton" in page.text
    assert "No skeleton has cable." in page.text
    assert "No baseline was scored." in page.text


def test_nothing_is_loaded_from_elsewhere():
    html = full_html()
    page = Page(html)
    assert not {t for t, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base"}
    for name in ("src", "href", "action", "data", "srcset"):
        assert not [v for v in page.attributes(name) if re.match(r"(?i)\s*(\w+:)?//|http", v)]
    assert not re.search(r"(?i)https?://|@import", html)
    assert set(re.findall(r"url\((\w+:|#)", html)) <= {"data:", "#"}
    policy = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_texts_of_the_user_are_escaped():
    steps = [0, 1, 2]
    data = replace(
        full(),
        name=EVIL,
        when=EVIL,
        source=InputFacts(EVIL, (6, 12, 9), EVIL, (40.0, 8.0, 8.0)),
        commands={EVIL: EVIL, "view": EVIL},
        versions={EVIL: EVIL},
        projections=replace(projections(), regions={EVIL: [Roi((0, 0, 0), (1, 1, 1))]}),
        training=[TrainingPhase(EVIL, steps, {EVIL: [3.0, 2.0, 1.0]})],
        stages=[StageFacts(EVIL, 4, 1, failed=1, block_seconds=[1.0])],
        scores=ScoreFacts(
            {
                "overall": {"nerl": 0.5},
                "per_skeleton": {EVIL: {"nerl": 0.5}},
                "conventions": {EVIL: EVIL},
            },
            metrics(),
            EVIL,
            scored_on=EVIL,
            trained_on=EVIL,
        ),
        threshold=ThresholdFacts([0.1, 0.2], {EVIL: [0.1, 0.2], "b": [0.1, 0.1]}, 0.1, EVIL, EVIL),
        outputs=[OutputFile(EVIL, EVIL), OutputFile("javascript:alert(1)"), OutputFile("//evil/x")],
    )
    html = render_report(data)
    page = Page(html)
    assert "<script" not in html.lower()
    assert html.count("</style>") == 1
    assert EVIL in page.text  # not lost, and Jinja did not run what it held
    links = [v for v in page.attributes("href") if not v.startswith("#")]
    assert "javascript%3Aalert%281%29" in links
    assert "evil/x" in links
    assert all(":" not in link for link in links if not link.startswith("data:"))


def test_equal_data_give_equal_pages():
    assert render_report(full()) == full_html()


def test_head_shows_the_first_answers():
    text = Page(full_html()).text
    for part in ("block 7", "12", "3 segments", "0.800", "plain baseline 0.500", "1 h 02 min"):
        assert part in text
    assert "6 x 12 x 9, uint16, 648 voxels" in text
    assert "240 nm x 96 nm x 72 nm" in text


def test_pictures_are_embedded_for_three_views_in_physical_proportions():
    html = full_html()
    for layer in ("image", "affinities", "segments", "skeletons", "tracings"):
        for axis in range(3):
            assert re.search(
                rf"\.l-{layer}-{axis}{{background-image:url\(data:image/png;base64,", html
            )
    # z, y, x span 240, 96 and 72 nm: along z 72 wide and 96 high, along y 72 and 240.
    assert "aspect-ratio:72.0/96.0" in html
    assert "aspect-ratio:72.0/240.0" in html
    assert "aspect-ratio:240.0/96.0" in html


def test_scale_bar_and_regions_lie_right():
    page = Page(full_html())
    widths = {v for v in page.attributes("style") if v.startswith("width:") and "%" in v}
    assert "width:13.889%" in widths  # 10 nm of 72 nm
    boxes = [a for t, a in page.tags if t == "rect" and "stroke" in a]
    found = {tuple(int(a[k] or 0) for k in ("x", "y", "width", "height")) for a in boxes}
    # The trained region z 1:6, y 2:12, x 5:9 along z, along y and along x.
    assert found >= {(5, 2, 4, 10), (5, 1, 4, 5), (1, 2, 5, 10)}


def test_scores_stand_side_by_side_with_the_sense_of_the_difference():
    facts = ScoreFacts(
        metrics(0.8, pct_split=2.0, merges_total=3, edge_accuracy=90.0),
        metrics(0.5, pct_split=1.5, merges_total=3, edge_accuracy=None),
        run_intervals={"erl_nm": (1e6, 2e6)},
    )
    rows = {row["name"]: row for row in score_rows(facts)}
    assert rows["Normalized ERL"]["change"] == "+0.300"
    assert rows["Normalized ERL"]["verdict"] == "better"
    assert (rows["Split edges"]["change"], rows["Split edges"]["verdict"]) == ("+0.50", "worse")
    assert (rows["Merges"]["change"], rows["Merges"]["verdict"]) == ("0", "")
    assert (rows["Edge accuracy"]["baseline"], rows["Edge accuracy"]["change"]) == (
        MISSING,
        MISSING,
    )
    assert rows["ERL"]["run"] == "1,234.0"
    assert rows["ERL"]["run_interval"] == "1,000.0 to 2,000.0"


def test_tracings_come_worst_first_and_pairs_need_both():
    rows = tracing_rows(ScoreFacts(metrics(), metrics()))
    assert [row["name"] for row in rows] == ["bad", "good", "unscored"]
    assert nerl_pairs(rows) == [(0.1, 0.1), (0.9, 0.9)]
    assert nerl_pairs(tracing_rows(ScoreFacts(metrics()))) == []
    text = Page(full_html()).text
    assert text.index("bad 0.100") < text.index("good 0.900") < text.index("unscored")


def test_stage_table_counts_and_rates():
    data = replace(
        full(),
        projections=None,
        stages=[StageFacts("predict", 100, 60, 20, 10, 4, 2.0, 5000, [1.0])],
    )
    text = Page(render_report(data)).text
    assert "predict incomplete 60 20 10 4 100 2.0 s 1.0 s 2.5k" in text


def test_the_largest_segments_are_the_first_twenty():
    rows = [SegmentRow(i, 1000 - i) for i in range(1, 31)][::-1]
    text = Page(
        render_report(replace(full(), projections=None, segments=SegmentFacts([7] * 30, rows)))
    ).text
    assert f"1 999 {MISSING} {MISSING} 2 998" in text
    assert "20 980" in text
    assert "21 979" not in text


def advice(data: ReportData) -> list[tuple[str, bool]]:
    return [(step.text, step.urgent) for step in next_steps(data)]


def test_missing_blocks_come_first_with_the_command_that_resumes():
    data = replace(full(), stages=[StageFacts("edges", 9, 5, failed=1)])
    step = next_steps(data)[0]
    assert step.urgent
    assert step.command == "loom resume"
    assert "edges: 1 failed; edges: 3 not finished" in step.text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"pct_omit": 5.0, "pct_split": 2.0}, "5.0 % of the tracings' edges lie on background"),
        ({"pct_split": 3.0}, "3.0 % of the tracings' edges join two segments"),
        ({"pct_merged": 3.0}, "in segments that hold more than one neuron"),
        ({"out_of_bounds_nodes": 100}, "100 nodes of the tracings lie outside"),
        ({"nerl": 0.4}, "plain baseline scores higher (normalized ERL 0.500 against 0.400)"),
    ],
)
def test_advice_follows_the_largest_error(more, said):
    data = replace(full(), scores=ScoreFacts(metrics(**more), metrics(0.5)))
    assert any(said in text for text, _ in advice(data))
    assert not any(said in text for text, _ in advice(full()))


def test_advice_without_scores_and_at_the_end_of_a_sweep():
    assert any("Nothing was scored" in t for t, _ in advice(replace(full(), scores=None)))
    edge = replace(full(), threshold=ThresholdFacts([0.2, 0.4, 0.6], {"a": [1, 2, 3]}, 0.6))
    assert any("at the end of those tried" in t for t, _ in advice(edge))
    assert not any("at the end" in t for t, _ in advice(full()))


def test_the_levels_of_the_agglomeration_are_told():
    levels = [LevelFacts(0, 8, 1000, 250, 600, 180), LevelFacts(1, 1, 250, 0, 90, 250)]
    html = render_report(replace(full(), levels=levels))
    assert "Agglomeration, level by level" in html
    assert ">25.0<" in html
    assert "level by level" not in full_html()


def test_scores_against_labels_stand_beside_the_reference():
    found = LabelScoreFacts(
        {"voi": 1.25, "voi_split": 0.5, "voi_merge": 0.75, "ari": 0.5, "voxels": 1234},
        {"voi": 1.5, "ari": 0.75},
        {"voi": "in <bits>"},
        "voxels [80:120]",
    )
    text = Page(render_report(ReportData("a", label_scores=found))).text
    assert "Scored on voxels [80:120]" in text
    assert "VOI bits, split + merge 1.250 1.500 \N{MINUS SIGN}0.250 better" in text
    assert (
        "Adjusted Rand index 1 is best, chance is 0 0.500 0.750 \N{MINUS SIGN}0.250 worse" in text
    )
    assert "Labelled voxels 1,234" in text
    assert "in <bits>" in text
    assert "neither tracings nor dense labels" not in text
    assert "neither tracings nor dense labels" in Page(render_report(ReportData("a"))).text
    none = LabelScoreFacts(None, scored_on="voxels [0:1]")
    text = Page(render_report(ReportData("a", label_scores=none))).text
    assert "No labelled voxel in voxels [0:1]: the labels score nothing." in text


def test_an_evaluation_leaves_out_what_belongs_to_a_reconstruction():
    source = InputFacts("/data/a.zarr", (6, 12, 9), "uint16", (40.0, 8.0, 8.0))
    found = metrics(0.3, out_of_bounds_nodes=50, pct_merged=9.0)
    scores = ScoreFacts(
        found,
        run_intervals={"nerl": (0.2, 0.4)},
        trained_on="nothing in this run",
        renamed=["labels renamed by a lookup of 3 rows", "2 segments <left> out"],
    )
    told = "50 of 1,000 nodes of the tracings lie outside the volume: count as background."
    data = ReportData(
        "a", source=source, scores=scores, wall_seconds=2.0, warnings=[told], scope="evaluation"
    )
    page = Page(render_report(data))
    assert not [a for _, a in page.tags if a.get("class") == "missing"] or "No stages" in page.text
    assert set(page.attributes("id")) & SECTIONS == {"next", "run", "stages", "scores", "files"}
    links = {h for h in page.attributes("href") if h.startswith("#")}
    assert links == {"#next", "#run", "#stages", "#scores", "#files"}
    assert "tracings 3 1,000 edges normalized ERL 0.300 95 %: 0.200 to 0.400" in page.text
    assert "Labels labels renamed by a lookup of 3 rows 2 segments <left> out Metric" in page.text
    for foreign in ("Trained on", "baseline", "difference", "threshold", "voxels/s"):
        assert foreign not in page.text, foreign
    steps = [step.text for step in next_steps(data)]
    assert steps[0] == told
    assert [s.count("50") for s in steps] == [1, 0, 0], "the number is told once"
    assert steps[2].startswith("9.0 % of the tracings' edges lie in segments")
    assert "The merges among the sites" in steps[2]
    whole = Page(render_report(replace(data, scope="run")))
    assert "Trained on nothing in this run" in whole.text
    assert set(whole.attributes("id")) >= SECTIONS


def test_an_evaluation_beside_another_segmentation_shows_both():
    labels = LabelScoreFacts({"voi": 1.0}, {"voi": 1.5})
    scores = ScoreFacts(metrics(), metrics(0.5), "plain threshold")
    data = ReportData("a", scores=scores, label_scores=labels, scope="evaluation")
    page = Page(render_report(data))
    assert "Metric this segmentation plain threshold difference" in page.text
    assert "Metric this segmentation reference difference" in page.text


def skeletons_only(**more: Any) -> ReportData:
    shown = replace(projections(), image=None, affinities=None, tracings=None, regions={})
    return ReportData(
        "a",
        source=InputFacts("/data/a.zarr", (6, 12, 9), "uint64", (40.0, 8.0, 8.0)),
        commands={"view": "loom view"},
        wall_seconds=2.0,
        projections=shown,
        stages=[StageFacts("join", 16, 16, wall_seconds=2.0)],
        skeletons=skeletons(**more),
        outputs=[OutputFile("swc")],
        scope="skeletons",
    )


def test_a_report_of_skeletons_leaves_out_what_belongs_to_a_run():
    page = Page(render_report(skeletons_only(notes=["2 loops are <opened>."])))
    here = SECTIONS - {"training", "scores", "segments"}
    assert set(page.attributes("id")) & SECTIONS == here
    nav = {h for h in page.attributes("href") if h.startswith("#") and h[1:] in SECTIONS}
    assert nav == {f"#{name}" for name in here}
    missing = [a for _, a in page.tags if a.get("class") == "missing"]
    assert len(missing) == 1, "block times, which this stage has not"
    assert "skeletons 3 5 components cable 4 mm 31 tips branch points 17 2 loops" in page.text
    assert "compute time 2.0 s 324 voxels/s" in page.text
    for foreign in ("scored", "baseline", "Affinities", "brightest", "Not in this run", "torch"):
        assert foreign not in page.text, foreign
    assert "2 loops are <opened>." in page.text


def test_next_steps_of_skeletons_are_its_warnings_and_the_viewer():
    data = skeletons_only()
    assert [s.text for s in next_steps(data)] == ["Look at the result in the viewer."]
    told = replace(data, warnings=["3 components fill the block."])
    assert [s.urgent for s in next_steps(told)] == [True, False]
    assert "Nothing was scored" in next_steps(replace(data, scope="run"))[0].text


def test_without_an_image_segments_are_shown_dimmed_below_their_skeletons():
    def shown(html: str) -> tuple[set[str], bool]:
        inputs = [a for t, a in Page(html).tags if t == "input"]
        return {a["id"] or "" for a in inputs if "checked" in a}, 'class="viewer bare"' in html

    assert shown(render_report(skeletons_only())) == ({"show-segments", "show-skeletons"}, True)
    lines = {"show-image", "show-skeletons", "show-tracings", "show-regions"}
    assert shown(full_html()) == (lines, False)


def test_the_section_of_skeletons_tells_what_tracing_and_joining_did():
    text = Page(full_html()).text
    assert "3 segments have a skeleton, with 4 mm of cable in all, 17 branch points, 31" in text
    assert "half of them have at most 1 µm of cable" in text
    assert "1 segment of single nodes, without cable, not shown" in text
    assert "limited to the ways to the faces of their block 3 voxels of those limited 5,678" in text
    assert "cable of the pieces 6 mm seams joined: nodes that blocks share 23 gaps joined 4" in text
    assert "ticks removed 6 7 µm dust removed" in text
    assert "cable joined 5 mm cable after smoothing 4 mm" in text
    assert f"{2**63 + 7} 1,234 4 mm 16 29 3 2 2.6 µm" in text
    assert "Fusing" not in text


def test_fusing_is_told_after_the_joining_of_fragments():
    did = {"joints": 77, "longest_joint_nm": 4710.0, "cable_out_nm": 4.5e6}
    tables = work_tables(skeletons(fused=did))
    assert [t.title for t in tables] == [
        "Tracing",
        "Joining fragments across blocks",
        "Fusing fragments by the lookup",
    ]
    fused = {row.what: row for row in tables[2].rows}
    assert fused["contacts tied"].count == 77
    assert fused["longest tie"].cable_nm == 4710.0
    assert fused["cable after smoothing"].cable_nm == 4_001_000.0
    assert [table.has_cable for table in tables] == [False, True, True]
