"""`axonloom skeletonize`: what other readers find in its files, after a kill, and on bad input."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from numpy.typing import NDArray
from typer.testing import CliRunner

import flows.cli as cli
from pipeline.arrays.skeleton import Skeleton
from pipeline.arrays.skeleton_summary import SUMMARY_TYPES
from pipeline.stages.run import Run
from pipeline.stages.skeleton_join import read_joined, skeleton_rows
from pipeline.storage import precomputed_skeletons
from pipeline.storage.swc import SwcOptions, read_skeletons
from pipeline.storage.tables import write_table

SHAPE = (40, 60, 52)
SIZE = (500.0, 300.0, 200.0)
BLOCK = (20, 33, 26)
RING, BENT, PARTED, DOT = 2**63 + 11, 7, 300, 2
OUTPUTS = ("skeletons", "segments.csv", "segments.parquet", "swc", "precomputed")
Labels = NDArray[np.uint64]


def draw(labels: Labels, label: int, points: Any, radius: float) -> None:
    """A tube of voxels around a path of straight lines."""
    voxels = np.indices(labels.shape).reshape(3, -1).T
    for begin, end in pairwise(np.asarray(points, float)):
        along = end - begin
        share = np.clip((voxels - begin) @ along / (along @ along), 0, 1)
        away = np.linalg.norm(voxels - begin - share[:, None] * along, axis=1)
        labels.reshape(-1)[away <= radius] = label


def draw_all() -> Labels:
    labels = np.zeros(SHAPE, np.uint64)
    turn = np.linspace(0, 2 * np.pi, 60)
    around = np.stack(
        [20 + 8 * np.sin(turn), 30 + 16 * np.sin(turn), 26 + 16 * np.cos(turn)], axis=1
    )
    draw(labels, RING, around, 2)
    draw(labels, BENT, [(4, 4, 4), (8, 50, 10), (36, 56, 46)], 2)
    draw(labels, PARTED, [(34, 4, 4), (36, 4, 48)], 2)
    draw(labels, PARTED, [(4, 54, 40), (6, 30, 48)], 2)
    labels[30, 12, 10] = DOT
    return labels


def store(path: Path, values: NDArray[Any]) -> Path:
    array = zarr.create_array(path, shape=values.shape, chunks=(16, 16, 16), dtype=values.dtype)
    array[:] = values
    return path


@pytest.fixture(scope="module")
def labels() -> Labels:
    return draw_all()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, labels: Labels) -> Path:
    return store(tmp_path_factory.mktemp("labels") / "labels.zarr", labels)


def arguments(segmentation: Path, out: Path, *more: object) -> list[str]:
    """Of a run in this process; what is given twice is taken from `more`."""
    given: list[object] = ["skeletonize", "--segmentation", segmentation, "--out", out]
    given += ["--voxel-size", *SIZE, "--block", *BLOCK, "--serial", *more]
    return [str(value) for value in given]


def skeletonize(segmentation: Path, out: Path, *more: object) -> Run:
    done = CliRunner().invoke(cli.app, arguments(segmentation, out, *more), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return Run(out.resolve())


def with_config(segmentation: Path, run_dir: Path, **sections: Any) -> Run:
    """What no option says."""
    from flows.runs import prepare, run_stages
    from pipeline.config import parse_config

    values = {
        "run_dir": str(run_dir),
        "input": {"segments": str(segmentation), "voxel_size_nm": SIZE},
        "skeletonize": {"block": BLOCK},
        "execution": {"kind": "serial"},
        **sections,
    }
    run, stages = prepare(parse_config(values), only=cli.SKELETON_STAGES)
    run_stages(run, stages)
    return run


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Run:
    return skeletonize(data, tmp_path_factory.mktemp("plain") / "out")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Run:
    folder = tmp_path_factory.mktemp("sharded") / "out"
    return with_config(data, folder, proofread={"sharded": "yes", "swc_unit": "nm"})


def joined(run: Run) -> dict[int, Skeleton]:
    return read_joined(run, skeleton_rows(run)["segment"].tolist())


def table(run: Run) -> dict[int, dict[str, Any]]:
    """The rows of segments.parquet, which are those of segments.csv."""
    rows = pq.read_table(run.directory / "segments.parquet").to_pylist()
    with (run.directory / "segments.csv").open(newline="") as file:
        texts = list(csv.DictReader(file))
    assert [{name: str(value) for name, value in row.items()} for row in rows] == texts
    return {row["segment"]: row for row in rows}


def contents(directory: Path) -> dict[str, bytes]:
    files = []
    for part in OUTPUTS:
        path = directory / part
        files += [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    assert len(files) > len(OUTPUTS)
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(files)}


def lines_of(skeleton: Skeleton) -> NDArray[np.float64]:
    """(E, 6) the edges as the places of their ends, sorted: whatever the order of the nodes."""
    ends = skeleton.nodes[skeleton.edges].round(4) + 0.0
    return np.array(sorted([*min(p, p[::-1])] for p in ends.tolist())).reshape(-1, 6)


# --- Read back by others


@pytest.mark.parametrize("name", ["plain", "sharded"])
def test_cloud_volume_reads_what_was_joined(
    request: pytest.FixtureRequest, labels: Labels, name: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)
        from cloudvolume import CloudVolume

    run: Run = request.getfixturevalue(name)
    volume = CloudVolume(f"file://{run.directory}/precomputed", progress=False)
    assert (volume.skeleton.meta.info.get("sharding") is not None) == (name == "sharded")
    expected = joined(run)
    assert set(expected) == {RING, BENT, PARTED, DOT}
    for label, skeleton in expected.items():
        found = volume.skeleton.get(label)
        nodes = found.vertices[:, ::-1] / SIZE
        assert nodes == pytest.approx(skeleton.nodes, abs=1e-4)
        assert (found.edges == skeleton.edges).all()
        assert found.radius == pytest.approx(skeleton.radii_nm.astype(np.float32))
        z, y, x = np.floor(nodes).astype(int).T
        assert (labels[z, y, x] == np.uint64(label)).all()
    assert (volume[:][..., 0].transpose() == labels).all()


@pytest.mark.parametrize("name", ["plain", "sharded"])
def test_the_readers_of_the_project_give_the_skeletons_back(
    request: pytest.FixtureRequest, name: str
) -> None:
    run: Run = request.getfixturevalue(name)
    expected = joined(run)
    layer = precomputed_skeletons.read_skeletons(run.path("skeleton_layer"), SIZE)
    assert list(layer) == list(expected)
    for label, skeleton in layer.items():
        assert skeleton.nodes == pytest.approx(expected[label].nodes, abs=1e-4)
        assert (skeleton.edges == expected[label].edges).all()
        assert skeleton.radii_nm == pytest.approx(expected[label].radii_nm, rel=1e-6)
    unit = "um" if name == "plain" else "nm"
    swc = read_skeletons(run.path("swc"), SwcOptions(voxel_size_nm=SIZE, unit=unit))
    assert {s.name for s in swc} == {str(label) for label in expected}
    for skeleton in swc:
        other = expected[int(skeleton.name)]
        order, same = (np.lexsort(s.nodes.round(4).T) for s in (skeleton, other))
        assert np.abs(skeleton.nodes[order] - other.nodes[same]).max() < 1e-6
        assert skeleton.radii_nm[order] == pytest.approx(other.radii_nm[same])
        if skeleton.name != str(RING):
            assert lines_of(skeleton) == pytest.approx(lines_of(other))


def test_a_ring_is_kept_where_the_format_allows_it(plain: Run) -> None:
    rows, skeletons = table(plain), joined(plain)
    assert {label: row["loops"] for label, row in rows.items()} == {
        RING: 1, BENT: 0, PARTED: 0, DOT: 0
    }  # fmt: skip
    assert (rows[RING]["tips"], rows[RING]["components"]) == (0, 1)
    assert (rows[PARTED]["components"], rows[DOT]["nodes"]) == (2, 1)
    ring = skeletons[RING]
    assert len(ring.edges) == len(ring.nodes)
    roots = {}
    for label in skeletons:
        lines = (plain.path("swc") / f"{label}.swc").read_text().splitlines()
        notes = [line for line in lines if line.startswith("#")]
        assert notes[:2] == [f"# segment {label}", "# unit um"]
        assert ("# loops opened: 1" in notes) == (label == RING)
        parents = [int(line.split()[6]) for line in lines if not line.startswith("#")]
        assert all(parent < row for row, parent in enumerate(parents, start=1))
        roots[label] = parents.count(-1)
    assert roots == {RING: 1, BENT: 1, PARTED: 2, DOT: 1}
    [opened] = [
        s
        for s in read_skeletons(plain.path("swc"), SwcOptions(voxel_size_nm=SIZE, unit="um"))
        if s.name == str(RING)
    ]
    assert len(opened.edges) == len(ring.edges) - 1
    assert {tuple(row) for row in lines_of(opened)} < {tuple(row) for row in lines_of(ring)}


def test_the_table_measures_in_nanometres(plain: Run, labels: Labels) -> None:
    rows = table(plain)
    path = np.diff([(4, 4, 4), (8, 50, 10), (36, 56, 46)], axis=0) * SIZE
    # The tube goes on for a radius beyond both ends.
    cable = np.linalg.norm(path, axis=1).sum()
    assert cable < rows[BENT]["cable_nm"] < cable + 2 * 2 * 500 + 500
    for label, row in rows.items():
        places = np.argwhere(labels == np.uint64(label))
        low, high = places.min(0), places.max(0) + 1
        begin, end = ([row[f"{side}_{a}_vox"] for a in "zyx"] for side in ("begin", "end"))
        for inside in (np.array(begin) - low, high - np.array(end)):
            assert ((inside >= 0) & (inside < 4)).all(), label


def test_the_other_tracer_draws_the_same_neurites(data: Path, plain: Run, tmp_path: Path) -> None:
    theirs = table(skeletonize(data, tmp_path / "out", "--tracer", "kimimaro"))
    assert joined(Run(tmp_path / "out")).keys() == joined(plain).keys()
    for label, row in table(plain).items():
        same = ("components", "tips", "branch_points", "loops")
        assert [theirs[label][name] for name in same] == [row[name] for name in same], label
        assert theirs[label]["cable_nm"] == pytest.approx(row["cable_nm"], rel=0.05, abs=1000)


def test_the_swc_unit_changes_the_swc_and_nothing_else(
    data: Path, plain: Run, tmp_path: Path
) -> None:
    run = skeletonize(data, tmp_path / "out", "--swc-unit", "nm")
    found, expected = contents(run.directory), contents(plain.directory)
    assert found.keys() == expected.keys()
    differing = {name for name in found if found[name] != expected[name]}
    assert differing == {f"swc/{label}.swc" for label in (RING, BENT, PARTED, DOT)}


# --- The same bytes

KILLED = """
import os, signal
from pipeline.stages import {module}
plain, seen = {module}.{name}, []
def called(*given, **named):
    seen.append(given)
    if len(seen) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*given, **named)
{module}.{name} = called
from flows.cli import main
main()
"""


@pytest.mark.parametrize(
    ("module", "name", "at", "stage"),
    [
        ("skeleton_join", "finished_columns", 3, "join"),
        ("skeleton_files", "write_swc", 3, "skeleton_files"),
    ],
)
def test_a_killed_command_goes_on_to_the_same_bytes(
    data: Path, plain: Run, tmp_path: Path, module: str, name: str, at: int, stage: str
) -> None:
    out, root = tmp_path / "out", Path(__file__).parents[2]
    code = KILLED.format(module=module, name=name, at=at)
    killed = subprocess.run(
        [sys.executable, "-c", code, *arguments(data, out)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (out / "segments.csv").exists()
    assert Run(out).ledger(stage).count("done") > 0
    run = skeletonize(data, out, "--order", "shuffled", "--seed", 3)
    assert contents(run.directory) == contents(plain.directory)


def test_a_lookup_gives_what_renamed_labels_give(
    data: Path, labels: Labels, plain: Run, tmp_path: Path
) -> None:
    """Fragments are slabs of the objects, some with ids of 64 bits."""
    codes = np.unique(labels, return_inverse=True)[1].reshape(SHAPE) * 10
    pieces = cc3d.connected_components(np.where(labels == 0, 0, codes + np.indices(SHAPE)[2] // 11))
    fragments = pieces.astype(np.uint64) << np.uint64(58)
    fragments[pieces != 0] |= np.uint64(5)
    ids, first = np.unique(fragments, return_index=True)
    lookup = {"id": ids[1:], "target": labels.reshape(-1)[first][1:]}
    write_table(tmp_path / "lookup.arrow", lookup)
    store(tmp_path / "fragments.zarr", fragments)
    given = ("--lookup", tmp_path / "lookup.arrow")
    run = skeletonize(tmp_path / "fragments.zarr", tmp_path / "out", *given)
    assert contents(run.directory) == contents(plain.directory)
    fused = skeletonize(
        tmp_path / "fragments.zarr", tmp_path / "fused", *given, "--level", "fragments"
    )
    for name in ("components", "loops"):
        found = {label: row[name] for label, row in table(fused).items()}
        assert found == {label: row[name] for label, row in table(plain).items()}, name


# --- Bad input

Axonloom = Callable[..., Any]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--voxel-size", 1000, 10, 10), "the longest edge is 100 times the shortest"),
        (("--voxel-size", 0.5, 0.2, 0.2), "give nanometres, not micrometres"),
        (("--voxel-size", 0, 10, 10), "expected positive numbers"),
        (("--block", 0, 16, 16), "expected positive numbers for z, y, x, got [0, 16, 16]"),
        (("--lookup", "absent.csv"), "absent.csv: no such file"),
        (("--lookup-missing", "zero"), "lookup_missing: zero has no effect without lookup"),
        (("--level", "fragments"), "level: fragments needs a lookup"),
        (("--level", "pieces"), "skeletonize.level"),
        (("--soma-mask", "absent.zarr"), "absent.zarr"),
        (("--scale", -1), "skeletonize.method.scale"),
        (("--const-nm", 1), "every voxel would be a tip"),
        (("--tick-nm", 5), "no side branch is as short"),
        (("--tracer", "teasar"), "skeletonize.method.tracer"),
        (("--soma-nm", 5), "every neurite would count as a soma"),
        (("--swc-unit", "mm"), "proofread.swc_unit"),
        (("--order", "random"), "expected grid or shuffled"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    axonloom: Axonloom, data: Path, tmp_path: Path, more: tuple[object, ...], message: str
) -> None:
    found = axonloom(*arguments(data, tmp_path / "out", *more))
    assert found.code == 2
    assert message in " ".join(found.err.split())
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(axonloom: Axonloom, data: Path) -> None:
    found = axonloom(*arguments(data, Path("/proc/axonloom/out")))
    assert found.code == 2
    assert "/proc/axonloom/out: the folder for the output cannot be made" in found.err


@pytest.mark.parametrize("kind", [np.float32, np.bool_])
def test_a_segmentation_holds_integers(axonloom: Axonloom, tmp_path: Path, kind: type) -> None:
    path = store(tmp_path / "s.zarr", np.ones(SHAPE, kind))
    found = axonloom(*arguments(path, tmp_path / "out"))
    assert found.code == 2
    assert f"s.zarr: a segmentation holds integers, got {np.dtype(kind)}" in found.err
    assert not (tmp_path / "out").exists()


def test_a_voxel_size_is_needed(axonloom: Axonloom, data: Path, tmp_path: Path) -> None:
    found = axonloom("skeletonize", "--segmentation", data, "--out", tmp_path / "out", "--serial")
    assert found.code == 2
    assert "the voxel size is unknown" in found.err
    assert "--voxel-size Z Y X" in found.err


def test_a_missing_segmentation_is_named(axonloom: Axonloom, tmp_path: Path) -> None:
    found = axonloom(*arguments(tmp_path / "none.zarr", tmp_path / "out"))
    assert found.code == 2
    assert "none.zarr" in found.err


def test_what_a_lookup_lacks_can_end_the_run(
    axonloom: Axonloom, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "lookup.csv").write_text(f"fragment,segment\n{BENT},1\n{RING},2\n{DOT},3\n")
    given = ("--lookup", tmp_path / "lookup.csv", "--lookup-missing", "raise")
    found = axonloom(*arguments(data, tmp_path / "out", *given))
    assert found.code == 1
    assert f"lacks 1 fragments of {data}, among them [{PARTED}]" in found.err
    assert not (tmp_path / "out" / "segments.csv").exists()


def test_other_parameters_need_to_be_meant(axonloom: Axonloom, data: Path, tmp_path: Path) -> None:
    skeletonize(data, tmp_path / "out")
    before = contents(tmp_path / "out")
    found = axonloom(*arguments(data, tmp_path / "out", "--scale", 3))
    assert found.code == 2
    assert "for other parameters (changed: scale); give --overwrite" in " ".join(found.err.split())
    assert contents(tmp_path / "out") == before
    assert axonloom(*arguments(data, tmp_path / "out", "--scale", 3, "--overwrite")).code == 0


@pytest.mark.parametrize("mode", ["auto", "yes"])
def test_of_a_volume_of_background_come_tables_without_rows(tmp_path: Path, mode: str) -> None:
    path = store(tmp_path / "labels.zarr", np.zeros(SHAPE, np.uint64))
    sections = {"skeletonize": {"block": BLOCK, "cross_sections": True, "section_context": 2}}
    run = with_config(path, tmp_path / "out", proofread={"sharded": mode}, **sections)
    header, *rows = (run.directory / "segments.csv").read_text().splitlines()
    assert (header, rows) == (",".join(SUMMARY_TYPES), [])
    assert pq.read_table(run.directory / "segments.parquet").num_rows == 0
    assert list(run.path("swc").iterdir()) == []
    layer = run.path("skeleton_layer")
    assert [p.name for p in layer.iterdir()] == ["info"]
    assert precomputed_skeletons.read_skeletons(layer, SIZE) == {}


def test_of_background_under_a_lookup_nothing_is_left(data: Path, tmp_path: Path) -> None:
    (tmp_path / "lookup.csv").write_text("fragment,segment\n1,1\n")
    given = ("--lookup", tmp_path / "lookup.csv", "--lookup-missing", "zero")
    for level in ("segments", "fragments"):
        run = skeletonize(data, tmp_path / level, *given, "--level", level)
        assert table(run) == {}
        assert list(run.path("swc").iterdir()) == []


def test_an_object_that_fills_the_volume_is_limited_and_counted(tmp_path: Path) -> None:
    path = store(tmp_path / "labels.zarr", np.full(SHAPE, 2**64 - 1, np.uint64))
    run = skeletonize(path, tmp_path / "out")
    [row] = table(run).values()
    assert row["segment"] == 2**64 - 1
    assert (row["components"], row["loops"]) == (1, 0)
    marks = run.ledger("skeletonize").marks.values()
    assert [mark.stats["limited"] for mark in marks] == [1] * 8
    # Each voxel in one block, and again where a block is traced to the seam with its successors.
    counted = sum(mark.stats["limited_voxels"] for mark in marks)
    assert np.prod(SHAPE) <= counted <= 1.1 * np.prod(SHAPE)


def test_small_objects_are_left_out_by_their_size(data: Path, plain: Run, tmp_path: Path) -> None:
    run = skeletonize(data, tmp_path / "out", "--min-voxels", 2)
    assert set(table(run)) == {RING, BENT, PARTED}
    stats = [mark.stats for mark in run.ledger("skeletonize").marks.values()]
    assert sum(s.get("skipped", 0) for s in stats) == 1
    expected = {name: data for name, data in contents(plain.directory).items() if "swc/" in name}
    del expected[f"swc/{DOT}.swc"]
    found = contents(run.directory)
    assert {name: found[name] for name in found if "swc/" in name} == expected
