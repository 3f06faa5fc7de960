"""Skeletons blockwise: components and cable of the objects, the same bytes whatever interferes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flows.cli import SKELETON_STAGES
from flows.runs import prepare, run_stages
from pipeline.arrays.relabel import apply_lookup
from pipeline.arrays.skeleton import Skeleton
from pipeline.config import parse_config
from pipeline.errors import (
    ConfigError,
    DtypeError,
    InputError,
    ShapeError,
    StageError,
)
from pipeline.stages import plan, skeleton_buckets, skeleton_files, skeleton_fuse, skeleton_join
from pipeline.stages.keys import stage_keys
from pipeline.stages.run import Run
from pipeline.stages.skeleton_join import joined_in, read_joined, skeleton_rows, stage_sums
from pipeline.storage import precomputed_skeletons
from pipeline.storage.precomputed_skeletons import read_areas, read_skeletons
from pipeline.storage.tables import write_table
from workers.runner import Order, StageReport

SHAPE = (48, 64, 56)
SIZE = (400.0, 300.0, 300.0)
BLOCKS = {"whole": SHAPE, "even": (24, 32, 28), "odd": (17, 33, 41), "pencil": (12, 64, 56)}
BRANCHED, RING, PARTED, DOT, PAIR, ALONG, GRAZING = 1, 2**63 + 7, 3, 4, 5, 6, 2**64 - 1
# Of the paths of the thickest tubes: 1.5 radii and 3 voxel edges.
REACH_NM = 1.5 * 2.5 * 300 + 3 * 400
# Files that must not show how they were made.
OUTPUTS = ("skeletons", "segments.csv", "segments.parquet", "swc", "precomputed")
Labels = NDArray[np.uint64]


def draw(labels: Labels, label: int, points: Any, radius: float) -> None:
    """A tube of voxels around a path of straight lines."""
    voxels = np.indices(labels.shape).reshape(3, -1).T
    away = np.full(len(voxels), np.inf)
    corners = np.asarray(points, float)
    for begin, end in pairwise(corners):
        along = end - begin
        share = np.clip((voxels - begin) @ along / (along @ along), 0, 1)
        away = np.minimum(away, np.linalg.norm(voxels - begin - share[:, None] * along, axis=1))
    labels.reshape(-1)[away <= radius] = label


def circle(centre: tuple[float, float, float], radius: float) -> NDArray[np.float64]:
    """A closed path around an axis that is oblique to the blocks."""
    turn = np.linspace(0, 2 * np.pi, 60)
    flat = np.stack([0.3 * np.sin(turn), np.sin(turn), np.cos(turn)], axis=1)
    return np.asarray(centre) + radius * flat


def draw_all() -> Labels:
    labels = np.zeros(SHAPE, np.uint64)
    draw(labels, RING, circle((30, 36, 28), 16), 2.2)
    draw(labels, BRANCHED, [(4, 4, 4), (10, 20, 18), (8, 40, 30), (12, 60, 52)], 2.5)
    draw(labels, BRANCHED, [(10, 20, 18), (9, 12, 48)], 2)
    draw(labels, PARTED, [(40, 4, 3), (43, 50, 8)], 2)
    draw(labels, PARTED, [(20, 58, 2), (30, 60, 30)], 2)
    draw(labels, ALONG, [(0, 6, 50), (47, 8, 51)], 2.2)
    draw(labels, GRAZING, [(22, 32, 6), (25, 33, 52)], 2.5)
    labels[1, 60, 3] = DOT
    labels[1, 1, 54] = labels[2, 2, 55] = PAIR
    return labels


@pytest.fixture(scope="module")
def labels() -> Labels:
    return draw_all()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, labels: Labels) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    store(folder / "labels.zarr", labels)
    return folder


def store(path: Path, values: NDArray[Any]) -> Path:
    array = zarr.create_array(path, shape=values.shape, chunks=(16, 16, 16), dtype=values.dtype)
    array[:] = values
    return path


def values_of(
    directory: Path, segments: Path, section: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    return {
        "run_dir": str(directory),
        "input": {"segments": str(segments), "voxel_size_nm": SIZE},
        "ingest": {"chunk": [32, 32, 32]},
        "skeletonize": {"block": BLOCKS["even"], **section},
        "execution": {"kind": "serial"},
        **more,
    }


def run_with(
    directory: Path, segments: Path, *, order: Order | None = None, **section: Any
) -> tuple[Run, dict[str, StageReport]]:
    """Run the stages of `axonloom skeletonize`; settings of `proofread` and `execution` by name."""
    more = {name: section.pop(name) for name in ("proofread", "execution") if name in section}
    config = parse_config(values_of(directory, segments, section, **more))
    handle, stages = prepare(config, only=SKELETON_STAGES)
    reports = run_stages(handle, stages, order=order)
    return handle, {report.stage: report for report in reports}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: run_with(folder / name, data / "labels.zarr", block=block)[0]
        for name, block in BLOCKS.items()
    }


def contents(directory: Path, parts: tuple[str, ...] = OUTPUTS) -> dict[str, bytes]:
    """The files that a run leaves, by name."""
    files = []
    for part in parts:
        path = directory / part
        found = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        assert found, part
        files += found
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(files)}


def all_joined(run: Run) -> dict[int, Skeleton]:
    return read_joined(run, skeleton_rows(run)["segment"].tolist())


def column(run: Run, name: str) -> dict[int, float]:
    rows = skeleton_rows(run)
    return dict(zip(rows["segment"].tolist(), rows[name].tolist(), strict=True))


def component_counts(labels: Labels) -> dict[int, int]:
    """The connected components (26 neighbours) of each label."""
    ids = np.unique(labels)[1:].tolist()
    return {
        label: int(cc3d.connected_components(labels == np.uint64(label)).max()) for label in ids
    }


def tips_of(skeleton: Skeleton) -> NDArray[np.float64]:
    degree = np.bincount(skeleton.edges.ravel(), minlength=len(skeleton.nodes))
    return skeleton.nodes[degree == 1]


# --- What comes out


@pytest.mark.parametrize("name", BLOCKS)
def test_a_segment_has_as_many_pieces_and_loops_as_its_object(
    runs: dict[str, Run], labels: Labels, name: str
) -> None:
    expected = component_counts(labels)
    assert expected == {
        BRANCHED: 1, RING: 1, PARTED: 2, DOT: 1, PAIR: 1, ALONG: 1, GRAZING: 1
    }  # fmt: skip
    assert column(runs[name], "components") == expected
    loops = column(runs[name], "loops")
    assert loops == {label: int(label == RING) for label in expected}
    tips = column(runs[name], "tips")
    assert (tips[RING], tips[ALONG], tips[PARTED], tips[DOT]) == (0, 2, 4, 0)


@pytest.mark.parametrize("name", [n for n in BLOCKS if n != "whole"])
def test_cable_and_ends_are_those_of_the_whole_volume(runs: dict[str, Run], name: str) -> None:
    whole, cut = all_joined(runs["whole"]), all_joined(runs[name])
    cable, expected = (column(runs[n], "cable_nm") for n in (name, "whole"))
    assert sum(cable.values()) == pytest.approx(sum(expected.values()), rel=0.03)
    for label in whole:
        assert cable[label] == pytest.approx(expected[label], rel=0.05, abs=REACH_NM), label
        ends, others = tips_of(whole[label]) * SIZE, tips_of(cut[label]) * SIZE
        assert len(ends) == len(others), label
        if len(ends):
            # Where a face cuts an end lengthwise, some of it goes with what the face has doubled.
            assert cKDTree(ends).query(others)[0].max() < REACH_NM, "an end that no object has"


@pytest.mark.parametrize("name", BLOCKS)
def test_nodes_lie_in_their_segment_and_edges_are_short(
    runs: dict[str, Run], labels: Labels, name: str
) -> None:
    for label, skeleton in all_joined(runs[name]).items():
        z, y, x = np.floor(skeleton.nodes).astype(int).T
        assert (labels[z, y, x] == np.uint64(label)).all()
        steps = np.abs(skeleton.nodes[skeleton.edges[:, 0]] - skeleton.nodes[skeleton.edges[:, 1]])
        assert steps.max(initial=0) < 3
        assert (skeleton.radii_nm > 0).all()


def test_tables_and_reports_agree_with_the_skeletons(runs: dict[str, Run]) -> None:
    run = runs["odd"]
    joined, report = all_joined(run), stage_sums(run, "join")
    cable = {label: float(s.edge_lengths_nm(SIZE).sum()) for label, s in joined.items()}
    assert column(run, "cable_nm") == pytest.approx(cable)
    assert column(run, "nodes") == {label: len(s.nodes) for label, s in joined.items()}
    assert report["skeletons"] == len(joined)
    assert report["loops_kept"] == 1
    assert report["welded"] > 0
    assert report["dust_removed"] == 0
    assert list(joined) == sorted(joined)
    assert read_joined(run, [RING, DOT]).keys() == {RING, DOT}


# --- The same bytes


def test_order_of_blocks_does_not_show(runs: dict[str, Run], data: Path, tmp_path: Path) -> None:
    shuffled, _ = run_with(tmp_path / "run", data / "labels.zarr", order=Order("shuffled", 5))
    assert contents(shuffled.directory) == contents(runs["even"].directory)


@pytest.mark.slow
def test_workers_do_not_show(runs: dict[str, Run], data: Path, tmp_path: Path) -> None:
    local, _ = run_with(
        tmp_path / "run", data / "labels.zarr", execution={"kind": "local", "workers": 2}
    )
    assert contents(local.directory) == contents(runs["even"].directory)


@pytest.mark.parametrize("sharded", ["no", "yes"])
def test_groups_of_segments_do_not_show(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: str
) -> None:
    # Two buckets, so that each has several segments.
    monkeypatch.setattr(skeleton_buckets, "_FEWEST", 2)
    section = {"cross_sections": True, "section_context": 4, "proofread": {"sharded": sharded}}
    one, _ = run_with(tmp_path / "one", data / "labels.zarr", **section)
    monkeypatch.setattr(skeleton_buckets, "GROUP_NODES", 1)
    many, _ = run_with(tmp_path / "many", data / "labels.zarr", **section)
    parts = [len(list(joined_in(r, bucket))) for r in (one, many) for bucket in (0, 1)]
    assert parts[:2] == [1, 1]
    assert sum(parts[2:]) == 7 > max(parts[2:])
    assert contents(many.directory, OUTPUTS[1:]) == contents(one.directory, OUTPUTS[1:])
    assert stage_sums(many, "join") == pytest.approx(stage_sums(one, "join"))


class Killed(BaseException):
    """Ends a run where it is, as no error of a block does."""


def failing(real: Callable[..., Any], at: int, error: BaseException) -> Callable[..., Any]:
    """Does what `real` does until its call number `at`."""
    calls = iter(range(at))

    def called(*given: Any, **named: Any) -> Any:
        if next(calls, None) is None:
            raise error
        return real(*given, **named)

    return called


ONCE = RuntimeError("once")
INTERRUPTED = {
    "skeletonize": ("pipeline.stages.skeletonize.write_by_bucket", 3, Killed()),
    "join": (f"{skeleton_join.__name__}.summarise_skeletons", 3, Killed()),
    "join, at its table": (f"{skeleton_join.__name__}.write_part", 2, ONCE),
    "skeleton_files": (f"{skeleton_files.__name__}.write_swc", 4, ONCE),
    "skeleton_files, at a skeleton": (
        f"{precomputed_skeletons.__name__}.encode_skeleton",
        5,
        Killed(),
    ),
    "proofread": ("pipeline.stages.proofread.write_segment_properties", 0, ONCE),
}


@pytest.mark.parametrize("where", INTERRUPTED)
def test_what_was_interrupted_goes_on_to_the_same_bytes(
    runs: dict[str, Run],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    stage = where.partition(",")[0]
    target, at, error = INTERRUPTED[where]
    module, _, name = target.rpartition(".")
    with monkeypatch.context() as patch:
        real = getattr(__import__(module, fromlist=[name]), name)
        patch.setattr(target, failing(real, at, error))
        expected = Killed if isinstance(error, Killed) else StageError
        with pytest.raises(expected):
            run_with(tmp_path / "run", data / "labels.zarr", proofread={"sharded": "no"})
    before = Run(tmp_path / "run").ledger(stage).count("done")
    run, reports = run_with(tmp_path / "run", data / "labels.zarr", proofread={"sharded": "no"})
    assert reports[stage].reused >= before
    assert reports[stage].computed > 0
    assert contents(run.directory) == contents(runs["even"].directory)


def test_a_finished_run_computes_nothing(data: Path, tmp_path: Path) -> None:
    run_with(tmp_path / "run", data / "labels.zarr")
    _, reports = run_with(tmp_path / "run", data / "labels.zarr", order=Order("shuffled", 1))
    assert sum(report.computed for report in reports.values()) == 0


# --- Lookups


def split(labels: Labels) -> tuple[Labels, dict[int, int]]:
    """The labels cut into fragments, and the label of each; some ids are of 64 bits."""
    z, y, x = np.indices(labels.shape)
    cells = ((z + y) // 13 * 8 + (x + 3) // 17 + 1).astype(np.uint64)
    codes = np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.uint64)
    pieces = cc3d.connected_components(np.where(labels == 0, 0, codes * np.uint64(1000) + cells))
    known = {}
    fragments = np.zeros(labels.shape, np.uint64)
    for number in range(1, int(pieces.max()) + 1):
        name = number * 10 + (2**63 if number % 3 == 0 else 0)
        fragments[pieces == number] = name
        known[name] = int(labels[pieces == number][0])
    return fragments, known


def write_lookup(path: Path, known: Mapping[int, int]) -> Path:
    pairs = np.array(sorted(known.items()), np.uint64).reshape(-1, 2)
    write_table(path, {"id": pairs[:, 0], "target": pairs[:, 1]})
    return path


@pytest.fixture(scope="module")
def fragments(tmp_path_factory: pytest.TempPathFactory, labels: Labels) -> Path:
    folder = tmp_path_factory.mktemp("fragments")
    found, known = split(labels)
    assert len(known) > 25
    store(folder / "fragments.zarr", found)
    write_lookup(folder / "lookup.arrow", known)
    return folder


def test_a_lookup_gives_what_renamed_labels_give(
    runs: dict[str, Run], fragments: Path, tmp_path: Path
) -> None:
    renamed, _ = run_with(
        tmp_path / "run", fragments / "fragments.zarr", lookup=fragments / "lookup.arrow"
    )
    assert contents(renamed.directory) == contents(runs["even"].directory)


@pytest.mark.parametrize("level", ["segments", "fragments"])
@pytest.mark.parametrize("rule", ["keep", "zero", "raise"])
def test_what_a_lookup_lacks_is_kept_or_goes_or_ends_the_run(
    labels: Labels, fragments: Path, tmp_path: Path, rule: str, level: str
) -> None:
    known = split(labels)[1]
    lacking = [name for name, label in known.items() if label in (ALONG, DOT)]
    for name in lacking:
        del known[name]
    lookup = write_lookup(tmp_path / "lookup.arrow", known)
    section = {"lookup": lookup, "lookup_missing": rule, "level": level}
    if rule == "raise":
        with pytest.raises(StageError, match=r"lookup\.arrow: lacks \d+ fragments of .*zero") as e:
            run_with(tmp_path / "run", fragments / "fragments.zarr", **section)
        assert any(str(name) in str(e.value) for name in lacking)
        return
    run, _ = run_with(tmp_path / "run", fragments / "fragments.zarr", **section)
    rest = {BRANCHED, RING, PARTED, PAIR, GRAZING}
    assert set(column(run, "segment")) == (rest | set(lacking) if rule == "keep" else rest)


def test_a_lookup_to_background_takes_a_segment_out(
    labels: Labels, fragments: Path, tmp_path: Path
) -> None:
    known = {f: 0 if label == RING else label for f, label in split(labels)[1].items()}
    lookup = write_lookup(tmp_path / "lookup.arrow", known)
    for level in ("segments", "fragments"):
        run, _ = run_with(
            tmp_path / level, fragments / "fragments.zarr", lookup=lookup, level=level
        )
        assert set(column(run, "segment")) == {BRANCHED, PARTED, DOT, PAIR, ALONG, GRAZING}


def test_a_lookup_of_nothing_is_the_labels_themselves(
    runs: dict[str, Run], data: Path, tmp_path: Path
) -> None:
    lookup = write_lookup(tmp_path / "lookup.arrow", {})
    run, _ = run_with(tmp_path / "run", data / "labels.zarr", lookup=lookup)
    assert contents(run.directory) == contents(runs["even"].directory)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"lookup_missing": "zero"}, "lookup_missing: zero has no effect without lookup"),
        ({"level": "fragments"}, "level: fragments needs a lookup"),
        (
            {"level": "fragments", "lookup": "l.csv", "cross_sections": True},
            "cross_sections and soma_mask need level: segments",
        ),
        (
            {"level": "fragments", "lookup": "l.csv", "soma_mask": "m.zarr"},
            "cross_sections and soma_mask need level: segments",
        ),
        ({"section_context": 0}, "section_context"),
        ({"lookup": "l.csv", "lookup_missing": "none"}, "lookup_missing"),
    ],
)
def test_contradictions_are_refused(
    data: Path, tmp_path: Path, section: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(values_of(tmp_path / "run", data / "labels.zarr", section))


def test_a_lookup_that_cannot_be_read_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path
) -> None:
    (tmp_path / "twice.csv").write_text("fragment,segment\n1,2\n1,3\n")
    (tmp_path / "odd.dat").write_text("1 2\n")
    for name, message in (
        ("absent.csv", r"absent\.csv: no such file \(skeletonize\.lookup\)"),
        ("twice.csv", "fragment 1 belongs to two segments, 2 and 3"),
        ("odd.dat", r"odd\.dat: expected a lookup as"),
    ):
        with pytest.raises(InputError, match=message):
            run_with(tmp_path / "run", data / "labels.zarr", lookup=tmp_path / name)
    assert not (tmp_path / "run").exists()


# --- Fragments, fused


@pytest.fixture(scope="module")
def fused(
    tmp_path_factory: pytest.TempPathFactory, fragments: Path
) -> dict[str, tuple[Run, dict[str, StageReport]]]:
    folder = tmp_path_factory.mktemp("fused")
    section = {"lookup": fragments / "lookup.arrow", "level": "fragments"}
    return {
        name: run_with(folder / name, fragments / "fragments.zarr", block=block, **section)
        for name, block in BLOCKS.items()
    }


@pytest.mark.parametrize("name", BLOCKS)
def test_fused_fragments_have_the_components_of_their_object(
    fused: dict[str, tuple[Run, dict[str, StageReport]]],
    runs: dict[str, Run],
    labels: Labels,
    name: str,
) -> None:
    run, _ = fused[name]
    assert column(run, "components") == component_counts(labels)
    assert column(run, "loops")[RING] == 1
    cable, expected = column(run, "cable_nm"), column(runs["whole"], "cable_nm")
    assert sum(cable.values()) == pytest.approx(sum(expected.values()), rel=0.08)
    for label, skeleton in all_joined(run).items():
        z, y, x = np.floor(skeleton.nodes).astype(int).T
        assert (labels[z, y, x] == np.uint64(label)).all()


def test_order_and_groups_do_not_show_in_fused_skeletons(
    fused: dict[str, tuple[Run, dict[str, StageReport]]],
    fragments: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    section = {"lookup": fragments / "lookup.arrow", "level": "fragments"}
    path, expected = fragments / "fragments.zarr", fused["even"][0].directory
    shuffled, _ = run_with(tmp_path / "order", path, order=Order("shuffled", 3), **section)
    assert contents(shuffled.directory) == contents(expected)
    monkeypatch.setattr(skeleton_buckets, "GROUP_NODES", 1)
    single, _ = run_with(tmp_path / "groups", path, order=Order("shuffled", 4), **section)
    assert contents(single.directory, OUTPUTS[1:]) == contents(expected, OUTPUTS[1:])


TRACED = {"skeletonize", "skeleton_index", "fragment_join"}
FUSED = {"scatter", "scatter_index", "fuse", "skeleton_files", "proofread", "export", "project"}


def test_another_lookup_looks_at_no_fragment_again(
    labels: Labels, fragments: Path, tmp_path: Path
) -> None:
    path, out = fragments / "fragments.zarr", tmp_path / "run"
    section = {"lookup": fragments / "lookup.arrow", "level": "fragments"}
    run, _ = run_with(out, path, **section)
    before = {name: run.ledger_file(name).stat().st_mtime_ns for name in TRACED}
    pieces = contents(out, ("scratch/skeleton_pieces", "scratch/fragment_skeletons"))
    found, known = split(labels)
    # Two objects in one segment, and one falls apart into its fragments.
    known = {f: 77 if label in (RING, ALONG) else label for f, label in known.items()}
    known |= {f: f for f, label in known.items() if label == BRANCHED}
    lookup = write_lookup(tmp_path / "other.arrow", known)
    section["lookup"] = lookup
    run, reports = run_with(out, path, **section)
    assert {name for name, report in reports.items() if report.computed} == FUSED
    assert {name for name, report in reports.items() if not report.computed} == TRACED
    assert before == {name: run.ledger_file(name).stat().st_mtime_ns for name in TRACED}
    assert contents(out, ("scratch/skeleton_pieces", "scratch/fragment_skeletons")) == pieces
    pairs = np.array(sorted(known.items()), np.uint64)
    renamed = apply_lookup(found, pairs[:, 0].copy(), pairs[:, 1].copy())
    assert column(run, "components") == component_counts(renamed)
    fresh, _ = run_with(tmp_path / "fresh", path, **section)
    assert contents(out) == contents(fresh.directory)


FUSING = {
    "fragment_join": (f"{skeleton_fuse.__name__}.skeleton_columns", 4),
    "scatter": (f"{skeleton_fuse.__name__}.write_by_bucket", 3),
    "fuse": (f"{skeleton_fuse.__name__}.finished_columns", 3),
}


@pytest.mark.parametrize("stage", FUSING)
def test_interrupted_fusing_goes_on_to_the_same_bytes(
    fused: dict[str, tuple[Run, dict[str, StageReport]]],
    fragments: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    section = {"lookup": fragments / "lookup.arrow", "level": "fragments"}
    target, at = FUSING[stage]
    with monkeypatch.context() as patch:
        real = getattr(skeleton_fuse, target.rpartition(".")[2])
        patch.setattr(target, failing(real, at, Killed()))
        with pytest.raises(Killed):
            run_with(tmp_path / "run", fragments / "fragments.zarr", **section)
    run, reports = run_with(tmp_path / "run", fragments / "fragments.zarr", **section)
    assert reports[stage].computed > 0
    assert contents(run.directory) == contents(fused["even"][0].directory)


def test_a_folder_may_go_from_segments_to_fragments_and_back(
    runs: dict[str, Run],
    fused: dict[str, tuple[Run, dict[str, StageReport]]],
    fragments: Path,
    tmp_path: Path,
) -> None:
    section = {"lookup": fragments / "lookup.arrow"}
    path, out = fragments / "fragments.zarr", tmp_path / "run"
    run_with(out, path, **section)
    run_with(out, path, **section, level="fragments")
    assert contents(out) == contents(fused["even"][0].directory)
    run_with(out, path, **section)
    assert contents(out) == contents(runs["even"].directory)


# --- Somata


def star() -> tuple[Labels, NDArray[np.uint8]]:
    """A ball with four neurites, and the ball."""
    labels, ball = np.zeros(SHAPE, np.uint64), np.zeros(SHAPE, np.uint64)
    middle = (24, 32, 28)
    for end in ((2, 32, 28), (24, 2, 30), (26, 62, 26), (44, 40, 52)):
        draw(labels, 9, [middle, end], 2)
    draw(ball, 1, [middle, (24.5, 32, 28)], 7)
    labels[ball != 0] = 9
    return labels, ball.astype(np.uint8)


@pytest.mark.parametrize("name", BLOCKS)
def test_of_a_soma_one_node_is_left_from_which_all_neurites_leave(
    tmp_path: Path, name: str
) -> None:
    labels, ball = star()
    store(tmp_path / "labels.zarr", labels)
    store(tmp_path / "ball.zarr", ball if name == "even" else ball != 0)
    run, _ = run_with(
        tmp_path / "run",
        tmp_path / "labels.zarr",
        block=BLOCKS[name],
        soma_mask=tmp_path / "ball.zarr",
    )
    [skeleton] = all_joined(run).values()
    inside = ball[tuple(np.floor(skeleton.nodes).astype(int).T)] != 0
    assert inside.sum() == 1
    [centre] = np.flatnonzero(inside)
    assert np.linalg.norm(skeleton.nodes[centre] - (24.5, 32.5, 28.5)) < 4
    assert (skeleton.edges == centre).sum() == 4
    assert column(run, "branch_points") == {9: 1}
    assert column(run, "tips") == {9: 4}
    assert stage_sums(run, "join")["somata"] == 1


def test_a_mask_that_does_not_fit_is_refused_before_anything_is_computed(
    data: Path, tmp_path: Path
) -> None:
    store(tmp_path / "small.zarr", np.zeros((48, 64, 55), np.uint8))
    store(tmp_path / "floats.zarr", np.zeros(SHAPE, np.float32))
    for name, error, message in (
        ("small", ShapeError, r"small\.zarr: a mask of somata of \(48, 64, 55\), but the volume"),
        ("floats", DtypeError, r"floats\.zarr: a mask of somata holds integers, got float32"),
        ("absent", InputError, r"absent\.zarr"),
    ):
        with pytest.raises(error, match=message):
            run_with(tmp_path / "run", data / "labels.zarr", soma_mask=tmp_path / f"{name}.zarr")
    assert not (tmp_path / "run").exists()


# --- Cross-sections

CUBE = (300.0, 300.0, 300.0)


def cylinder_areas(
    directory: Path, block: tuple[int, int, int], context: int = 16
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Nodes and areas along a cylinder of 5 voxels' radius about the line z = 22, y = 32."""
    labels = np.zeros(SHAPE, np.uint64)
    z, y, _ = np.indices(SHAPE)
    labels[(z - 22) ** 2 + (y - 32) ** 2 <= 5**2] = 8
    if not (directory / "labels.zarr").exists():
        store(directory / "labels.zarr", labels)
    section = {"block": block, "cross_sections": True, "section_context": context}
    values = values_of(directory / f"{block}-{context}", directory / "labels.zarr", section)
    values["input"]["voxel_size_nm"] = CUBE
    run, stages = prepare(parse_config(values), only=SKELETON_STAGES)
    run_stages(run, stages)
    skeletons = read_skeletons(run.path("skeleton_layer"), CUBE)
    return skeletons[8].nodes, read_areas(run.path("skeleton_layer"))[8]


def test_the_sections_of_a_cylinder_are_its_own(tmp_path: Path) -> None:
    nodes, areas = cylinder_areas(tmp_path, SHAPE)
    middle = np.abs(nodes[:, 2] - 28) < 18
    assert middle.sum() > 30
    discs = np.pi * (5 * 300) ** 2
    assert areas[middle] == pytest.approx(np.full(middle.sum(), discs), rel=0.05)
    others, cut = cylinder_areas(tmp_path, (48, 64, 19))
    away = (np.abs(others[:, 2] - 28) < 18) & (np.abs((others[:, 2] % 19) - 9.5) < 4)
    assert away.sum() > 10
    order = np.argsort(nodes[:, 2])
    expected = np.interp(others[away, 2], nodes[order, 2], areas[order])
    assert cut[away] == pytest.approx(expected, rel=1e-3)


def test_a_section_that_leaves_what_is_read_is_unknown(tmp_path: Path) -> None:
    # The blocks meet in the axis of the cylinder.
    nodes, areas = cylinder_areas(tmp_path, (48, 32, 56), context=1)
    assert np.isnan(areas).all()
    nodes, areas = cylinder_areas(tmp_path, (48, 32, 56), context=7)
    assert np.isfinite(areas[np.abs(nodes[:, 2] - 28) < 18]).all()


def test_of_a_voxel_that_two_blocks_share_the_larger_section_counts(
    data: Path, tmp_path: Path
) -> None:
    """Where one of them knows none, that of the other; of another segment, none."""
    config = parse_config(values_of(tmp_path / "run", data / "labels.zarr", {}))
    places = np.array([[2, 3, 4], [2, 3, 5], [2, 3, 6], [2, 3, 7]]) + 0.5
    edges = np.array([[0, 1], [1, 2], [2, 3]])
    areas = ((3, 5, np.nan, 9), (4, 2, 7, 1))
    pieces = [
        {
            "segment": np.array([RING, RING, RING, DOT], np.uint64),
            "nodes": places,
            skeleton_join.AREAS: np.array(values, np.float32),
        }
        for values in areas
    ]
    skeletons = {RING: Skeleton(str(RING), places, edges)}
    found = skeleton_join.finished_columns(skeletons, pieces, Run(tmp_path, config))
    expected = np.array([4, 5, 7, np.nan], np.float32)
    assert np.array_equal(found[skeleton_join.AREAS], expected, equal_nan=True)
    assert (np.floor(found["nodes"]) == np.floor(places)).all()


def test_sections_of_nothing_but_dust(data: Path, tmp_path: Path) -> None:
    """Buckets, and groups of segments, of which no skeleton is left."""
    section = {"cross_sections": True, "section_context": 2, "method": {"dust_nm": 9000.0}}
    for sharded in ("no", "yes"):
        run, _ = run_with(
            tmp_path / sharded, data / "labels.zarr", proofread={"sharded": sharded}, **section
        )
        left = {BRANCHED, RING, PARTED, ALONG, GRAZING}
        assert set(column(run, "segment")) == left
        assert set(read_skeletons(run.path("skeleton_layer"), SIZE)) == left
        assert stage_sums(run, "join")["dust_removed"] == 2


# --- Keys


@pytest.fixture
def keyed(data: Path, fragments: Path, tmp_path: Path) -> Iterator[Callable[..., dict[str, str]]]:
    """The keys of the stages for some settings of the section skeletonize."""
    (tmp_path / "lookup.csv").write_text("fragment,segment\n1,3\n")
    store(tmp_path / "mask.zarr", np.zeros(SHAPE, np.uint8))

    def keys(**section: Any) -> dict[str, str]:
        for name, file in (("lookup", "lookup.csv"), ("soma_mask", "mask.zarr")):
            if section.get(name):
                section[name] = tmp_path / file
        config = parse_config(values_of(tmp_path / "run", data / "labels.zarr", section))
        run = Run(tmp_path / "run", config)
        return {name: key.key for name, key in stage_keys(run, plan(config)).items()}

    return keys


SEGMENT_STAGES = {"skeletonize", "skeleton_index", "join", "skeleton_files", "proofread"}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before.keys() & after.keys() if before[name] != after[name]}


def touch(path: Path) -> None:
    file = max(p for p in [path, *path.rglob("*")] if p.is_file())
    stamp = file.stat().st_mtime_ns + 1
    os.utime(file, ns=(stamp, stamp))


def test_a_lookup_reaches_what_it_renames(
    keyed: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    every = SEGMENT_STAGES | {"export", "project"}
    plain, renamed = keyed(), keyed(lookup=True)
    assert set(plain) == every
    assert changed(plain, renamed) == every
    assert changed(renamed, keyed(lookup=True, lookup_missing="zero")) == every
    touch(tmp_path / "lookup.csv")
    assert changed(renamed, keyed(lookup=True)) == every


def test_a_lookup_reaches_no_fragment_that_is_traced(
    keyed: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    before = keyed(lookup=True, level="fragments")
    assert set(before) == TRACED | FUSED
    assert changed(before, keyed(lookup=True, level="fragments", lookup_missing="zero")) == FUSED
    touch(tmp_path / "lookup.csv")
    assert changed(before, keyed(lookup=True, level="fragments")) == FUSED


def test_the_level_reaches_the_skeletons(keyed: Callable[..., dict[str, str]]) -> None:
    found = changed(keyed(lookup=True), keyed(lookup=True, level="fragments"))
    assert found == SEGMENT_STAGES - {"join"}


def test_a_mask_of_somata_reaches_the_skeletons(
    keyed: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    masked = keyed(soma_mask=True)
    assert changed(keyed(), masked) == SEGMENT_STAGES
    touch(tmp_path / "mask.zarr")
    assert changed(masked, keyed(soma_mask=True)) == SEGMENT_STAGES


@pytest.mark.parametrize("method", [{"scale": 2.0}, {"dust_nm": 5.0}, {"keep_loops": False}])
def test_the_method_reaches_fragments_too(
    keyed: Callable[..., dict[str, str]], method: dict[str, Any]
) -> None:
    before = keyed(lookup=True, level="fragments")
    after = keyed(lookup=True, level="fragments", method=method)
    assert changed(before, after) == (TRACED | FUSED) - {"export", "project"}
