"""`axonloom evaluate`: the same bytes for every chunking, block and order, and after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from typer.testing import CliRunner

import flows.cli as cli
from pipeline.arrays.contingency import count_contingency, score_contingency
from pipeline.arrays.metrics import labels_at_nodes, score
from pipeline.errors import InputError, StageError
from pipeline.stages.run import Run
from pipeline.storage.swc import SwcOptions, read_skeletons
from pipeline.storage.tables import write_table

SHAPE = (40, 50, 60)
SIZE = (200.0, 100.0, 50.0)
FILES = ("metrics.json", "neurons.csv", "neurons.parquet", "sites.parquet")
CHUNKINGS = ((40, 50, 60), (16, 16, 16), (7, 50, 9), (40, 5, 31))


def walk(rng: np.random.Generator, count: int) -> str:
    """A random tree in the volume; a few nodes may leave it."""
    at = rng.uniform(0.2, 0.8, 3) * SHAPE[::-1]
    places, rows = [at], [f"1 2 {at[0]:.3f} {at[1]:.3f} {at[2]:.3f} 1 -1"]
    for node in range(2, count + 1):
        parent = int(rng.integers(max(1, node - 6), node))
        at = places[parent - 1] + rng.normal(0, 2.5, 3)
        places.append(at)
        rows.append(f"{node} 2 {at[0]:.3f} {at[1]:.3f} {at[2]:.3f} 1 {parent}")
    return "\n".join(rows) + "\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(3)
    (folder / "swc").mkdir()
    for name in "abc":
        (folder / "swc" / f"{name}.swc").write_text(walk(rng, 150))
    z, y, x = np.indices(SHAPE)
    # Slabs of 9 planes, one of them of ids beyond 2^53, with holes.
    labels = ((z // 9) * 10 + (y // 20) + 1).astype(np.uint64)
    labels[labels == 21] = 2**63 + 5
    labels[(x % 11) < 3] = 0
    np.save(folder / "labels.npy", labels)
    for number, chunks in enumerate(CHUNKINGS):
        array = zarr.create_array(
            folder / f"s{number}.zarr", shape=SHAPE, chunks=chunks, dtype=np.uint64
        )
        array[:] = labels
    truth = zarr.create_array(folder / "truth.zarr", shape=SHAPE, chunks=(20,) * 3, dtype="u8")
    truth[:] = np.where(x % 11 == 5, 0, z // 12 + 1)
    return folder


def evaluate(data: Path, out: Path, *more: str, number: int = 0) -> dict:
    arguments = [
        "evaluate", "--segmentation", str(data / f"s{number}.zarr"),
        "--skeletons", str(data / "swc"), "--voxel-size", *map(str, SIZE),
        "--out", str(out), "--serial", *more,
    ]  # fmt: skip
    done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads((out / "metrics.json").read_text())


def contents(out: Path) -> dict[str, bytes]:
    files = [out / name for name in FILES]
    files += [p for p in sorted((out / "sites").rglob("*")) if p.is_file()]
    assert len(files) > len(FILES)
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    evaluate(data, out)
    return out


def test_the_scores_are_those_of_the_arrays(data: Path, whole: Path) -> None:
    labels = np.load(data / "labels.npy")
    truth = read_skeletons(data / "swc", SwcOptions(voxel_size_nm=SIZE, volume_shape=SHAPE))
    at_nodes = [labels_at_nodes(s, labels) for s in truth]
    outside = [int((~inside).sum()) for _, inside in at_nodes]
    expected = score(truth, [found for found, _ in at_nodes], SIZE, out_of_bounds=outside)
    found = json.loads((whole / "metrics.json").read_text())
    assert found["overall"] == expected.as_json()["overall"]
    assert found["per_skeleton"] == expected.as_json()["per_skeleton"]
    assert found["overall"]["splits"] > 4 < found["overall"]["merges_total"]
    rows = pq.read_table(whole / "neurons.parquet").to_pylist()
    assert [row.pop("skeleton") for row in rows] == ["a", "b", "c"]
    assert rows == list(found["per_skeleton"].values())


@pytest.mark.parametrize("number", range(1, len(CHUNKINGS)))
def test_chunks_blocks_and_order_do_not_show(
    data: Path, whole: Path, tmp_path: Path, number: int
) -> None:
    block = [str(9 + 7 * number)] * 3
    evaluate(
        data, tmp_path, "--block", *block, "--order", "shuffled", "--seed", str(number),
        number=number,
    )  # fmt: skip
    assert len(Run(tmp_path).ledger("node_labels").marks) > 1
    assert contents(tmp_path) == contents(whole)


def test_only_chunks_with_nodes_are_read_and_each_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.stages import node_labels

    read: list[tuple[int, ...]] = []
    plain = node_labels.read_labels

    def counted(path, box):
        read.append(box.offset)
        return plain(path, box)

    monkeypatch.setattr(node_labels, "read_labels", counted)
    evaluate(data, tmp_path, "--block", "20", "20", "20", number=1)
    options = SwcOptions(voxel_size_nm=SIZE, volume_shape=SHAPE)
    nodes = np.concatenate([np.floor(s.nodes) for s in read_skeletons(data / "swc", options)])
    inside = nodes[((nodes >= 0) & (nodes < SHAPE)).all(1)]
    expected = {tuple(int(v) // 16 * 16 for v in node) for node in inside}
    assert sorted(read) == sorted(expected)
    assert len(expected) < 3 * 4 * 4
    stats = [mark.stats for mark in Run(tmp_path).ledger("node_labels").marks.values()]
    assert sum(s.get("chunks", 0) for s in stats) == len(expected)
    assert sum(s.get("nodes", 0) for s in stats) == len(inside)


KILLED = """
import os, signal, sys
from pipeline.stages import node_labels
plain, seen = node_labels.read_labels, []
def read(path, box):
    seen.append(box)
    if len(seen) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(path, box)
node_labels.read_labels = read
from flows.cli import main
main()
"""


def test_a_killed_evaluation_goes_on_to_the_same_bytes(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = [
        "evaluate", "--segmentation", str(data / "s1.zarr"), "--skeletons", str(data / "swc"),
        "--voxel-size", *map(str, SIZE), "--out", str(out), "--serial", "--block", "16", "16", "16",
    ]  # fmt: skip
    root = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "metrics.json").exists()
    done = sum(1 for mark in Run(out).ledger("node_labels").marks.values() if mark.state == "done")
    assert done > 0
    evaluate(data, out, "--block", "16", "16", "16", number=1)
    assert contents(out) == contents(whole)


def test_a_lookup_and_exclusions_are_applied_without_reading_voxels(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    labels = np.load(data / "labels.npy")
    ids = np.unique(labels)[1:]
    targets = np.where(ids < 20, np.uint64(7), np.where(ids < 30, np.uint64(9), ids))
    changed = ids != targets
    lookup, excluded = tmp_path / "lookup.arrow", tmp_path / "excluded.txt"
    write_table(lookup, {"id": ids[changed], "target": targets[changed]})
    excluded.write_text("# artefacts\n9\n\n43\n")
    out = tmp_path / "out"
    evaluate(data, out)
    before = {p: p.stat().st_mtime_ns for p in (out / "scratch/node_labels").rglob("*.arrow")}
    found = evaluate(
        data, out, "--lookup", str(lookup), "--exclude-ids", str(excluded), "--overwrite"
    )
    after = {p: p.stat().st_mtime_ns for p in (out / "scratch/node_labels").rglob("*.arrow")}
    assert before == after
    renamed = targets[np.searchsorted(ids, labels).clip(max=len(ids) - 1)]
    renamed[(labels == 0) | np.isin(renamed, [9, 43])] = 0
    truth = read_skeletons(data / "swc", SwcOptions(voxel_size_nm=SIZE, volume_shape=SHAPE))
    expected = score(truth, [labels_at_nodes(s, renamed)[0] for s in truth], SIZE).as_json()
    for key, value in expected["overall"].items():
        assert key == "out_of_bounds_nodes" or found["overall"][key] == value, key
    assert "labels that it does not name keep their id" in found["conventions"]["lookup"]
    assert found["conventions"]["excluded"].startswith("2 segments count as background")
    assert found["overall"] != json.loads((whole / "metrics.json").read_text())["overall"]


@pytest.mark.parametrize("missing", ["keep", "zero", "raise"])
def test_what_becomes_of_labels_that_a_lookup_lacks(
    data: Path, whole: Path, tmp_path: Path, missing: str
) -> None:
    lookup = tmp_path / "lookup.csv"
    lookup.write_text("fragment,segment\n1,500\n2,500\n")
    arguments = ("--lookup", str(lookup), "--lookup-missing", missing)
    if missing == "raise":
        with pytest.raises(Exception, match="the lookup lacks"):
            evaluate(data, tmp_path / "out", *arguments)
        return
    found = evaluate(data, tmp_path / "out", *arguments)
    before = json.loads((whole / "metrics.json").read_text())["overall"]["pct_omit"]
    assert (found["overall"]["pct_omit"] > before + 10) == (missing == "zero")


def test_what_a_lookup_lacks_is_told_once_and_not_as_kept_where_it_is_excluded(
    data: Path, tmp_path: Path
) -> None:
    (tmp_path / "lookup.csv").write_text("fragment,segment\n1,500\n2,500\n")
    (tmp_path / "excluded.txt").write_text("0\n11\n500\n999\n")
    lookup = ("--lookup", str(tmp_path / "lookup.csv"))
    excluded = ("--exclude-ids", str(tmp_path / "excluded.txt"))
    arguments = [
        "evaluate", "--segmentation", str(data / "s0.zarr"), "--skeletons", str(data / "swc"),
        "--voxel-size", *map(str, SIZE), "--serial", "--no-curves", *lookup, *excluded,
    ]  # fmt: skip
    truth = read_skeletons(data / "swc", SwcOptions(voxel_size_nm=SIZE, volume_shape=SHAPE))
    labels = np.load(data / "labels.npy")
    nodes = np.concatenate([labels_at_nodes(s, labels)[0] for s in truth])
    missing = len(set(nodes.tolist()) - {0, 1, 2})
    named, eleven = int(np.isin(nodes, (1, 2)).sum()), int((nodes == 11).sum())
    assert min(named, eleven) > 0
    cases = {
        "keep": ("keep their id, 1 of them being excluded", named + eleven),
        "zero": ("count as background", named),
    }
    for fate, (words, hit) in cases.items():
        out = tmp_path / fate
        more = ("--lookup-missing", fate, "--out", str(out))
        done = CliRunner().invoke(cli.app, [*arguments, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        told = f"{missing} labels that it does not name {words}"
        left = f"3 segments count as background: {hit} nodes lie on them"
        metrics = json.loads((out / "metrics.json").read_text())
        assert metrics["conventions"]["lookup"].endswith(told)
        assert metrics["conventions"]["excluded"] == left
        assert metrics["lookup"] == {"missing_labels": missing}
        report = (out / "report.html").read_text()
        for line in (told, left):
            assert done.output.count(line) == 1
            assert line in report


@pytest.mark.parametrize("missing", ["keep", "zero"])
def test_what_is_without_effect_is_refused(data: Path, tmp_path: Path, missing: str) -> None:
    with pytest.raises(InputError, match=f"--lookup-missing {missing} has no effect without"):
        evaluate(data, tmp_path / "out", "--lookup-missing", missing)
    with pytest.raises(InputError, match="--ignore-label is about true labels"):
        evaluate(data, tmp_path / "out", "--ignore-label", "3")
    assert not (tmp_path / "out").exists()


def test_a_negative_label_is_named_and_nothing_looks_whole(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    labels = np.load(data / "labels.npy").astype(np.int64)
    labels[labels < 0] = 77
    labels[20:24, 20:25, 5:40] = -4
    array = zarr.create_array(tmp_path / "s0.zarr", shape=SHAPE, chunks=(20,) * 3, dtype="i8")
    array[:] = labels
    (tmp_path / "swc").mkdir()
    (tmp_path / "swc" / "a.swc").write_text("1 2 8 22 22 1 -1\n2 2 9 23 23 1 1\n")
    message = (
        r"s0\.zarr: a label is negative: -4 at voxel \(20, 20, 5\) .* 300 such voxels in the box"
    )
    with pytest.raises(StageError, match=message):
        evaluate(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "metrics.json").exists()
    # Beside the scores of an earlier evaluation.
    evaluate(data, tmp_path / "out", "--overwrite")
    with pytest.raises(StageError, match=message):
        evaluate(tmp_path, tmp_path / "out", "--overwrite")
    arguments = ["compare", str(whole), str(tmp_path / "out"), "--out", str(tmp_path / "c")]
    with pytest.raises(InputError, match="of an earlier evaluation in this folder"):
        CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert not (tmp_path / "c").exists()


def test_a_configuration_that_is_no_runs_is_not_replaced(data: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: 1\n")
    with pytest.raises(InputError, match=r"config\.yaml is not of a run of axonloom"):
        evaluate(data, tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "mine: 1\n"
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_a_report_of_an_evaluation_holds_what_belongs_to_one(whole: Path) -> None:
    report = (whole / "report.html").read_text().split("</style>")[1]
    for foreign in (
        "Trained on", "baseline", "Projections", "No training", "No segmentation", "not counted",
        "axonloom run", "threshold curve", "the network", "voxels/s", "torch",
    ):  # fmt: skip
        assert foreign not in report, foreign
    for own in ("axonloom evaluation", '<div class="name">tracings</div>', "axonloom compare"):
        assert own in report, own
    assert "The merges among the sites" in report


def test_a_translation_in_the_metadata_is_told_and_not_used(data: Path, tmp_path: Path) -> None:
    steps = [
        {"type": "scale", "scale": list(SIZE)},
        {"type": "translation", "translation": [600.0, 0.0, -75.0]},
    ]
    axes = [{"name": n, "type": "space", "unit": "nanometer"} for n in "zyx"]
    group = zarr.create_group(tmp_path / "s0.zarr", zarr_format=3)
    group.create_array("0", shape=SHAPE, chunks=(16,) * 3, dtype="u8")[:] = np.load(
        data / "labels.npy"
    )
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    (tmp_path / "swc").mkdir()
    (tmp_path / "swc" / "a.swc").write_text("1 2 300 500 1000 1 -1\n2 2 400 600 1100 1 1\n")
    told = {}
    for unit, offset in (("nm", ()), ("nm", ("--offset", "-3", "0", "1.5")), ("voxel", ())):
        out = tmp_path / f"{unit}{len(offset)}"
        if unit == "voxel":
            (tmp_path / "swc" / "a.swc").write_text("1 2 5 5 5 1 -1\n2 2 6 6 6 1 1\n")
        evaluate(tmp_path, out, "--swc-unit", unit, *offset)
        told[unit, offset] = json.loads((out / "label_placement.json").read_text())["warning"]
    first, *others = told.values()
    assert "put its first voxel at 3, 0, -1.5 voxels (z, y, x), which is not used" in first
    assert "set --offset -3 0 1.5 (" in first
    assert not any("first voxel" in (text or "") for text in others)


def test_scores_of_voxels_come_with_labels(data: Path, tmp_path: Path) -> None:
    found = evaluate(data, tmp_path, "--labels", str(data / "truth.zarr"))["voxels"]["segments"]
    labels, truth = np.load(data / "labels.npy"), zarr.open(data / "truth.zarr")[:]
    expected = score_contingency(count_contingency(labels, truth))
    assert {key: found[key] for key in expected} == expected
    tp = int(((labels != 0) & (truth != 0)).sum())
    assert found["accuracy"] == float(((labels != 0) == (truth != 0)).mean())
    assert found["dice"] == 2 * tp / int((labels != 0).sum() + (truth != 0).sum())
    assert found["background_voxels"] == int((truth == 0).sum())


def test_tracings_that_run_the_other_way_are_told(data: Path, tmp_path: Path) -> None:
    """Segments only where the mirrored tracings are."""
    options = SwcOptions(voxel_size_nm=SIZE, volume_shape=SHAPE, flip=("y",))
    labels = np.zeros(SHAPE, np.uint64)
    for number, skeleton in enumerate(read_skeletons(data / "swc", options), start=1):
        voxels = np.floor(skeleton.nodes).astype(int)
        inside = voxels[((voxels >= 0) & (voxels < SHAPE)).all(1)]
        labels[tuple(inside.T)] = number
    array = zarr.create_array(tmp_path / "s0.zarr", shape=SHAPE, chunks=(16,) * 3, dtype="u8")
    array[:] = labels
    (tmp_path / "swc").symlink_to(data / "swc")
    evaluate(tmp_path, tmp_path / "out")
    warning = json.loads((tmp_path / "out" / "label_placement.json").read_text())["warning"]
    assert "lie on labelled voxels" in warning
    assert "flip: [y]" in warning
    evaluate(tmp_path, tmp_path / "right", "--flip", "y")
    told = json.loads((tmp_path / "right" / "label_placement.json").read_text())
    assert "labelled voxels" not in (told["warning"] or "")
    assert told["share"] > 0.9


def test_two_evaluations_are_compared(data: Path, whole: Path, tmp_path: Path) -> None:
    excluded = tmp_path / "excluded.txt"
    excluded.write_text("31\n32\n")
    evaluate(data, tmp_path / "b", "--exclude-ids", str(excluded))
    arguments = ["compare", str(whole), str(tmp_path / "b"), "--out", str(tmp_path / "c")]
    done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "c" / "comparison.json").read_text())
    omit = found["figures"]["pct_omit"]
    a, b = (
        json.loads((folder / "metrics.json").read_text())["overall"]["pct_omit"]
        for folder in (whole, tmp_path / "b")
    )
    assert (omit["a"], omit["b"]) == (a, b)
    assert b > a
    assert (tmp_path / "c" / "comparison.png").stat().st_size > 1000


@pytest.mark.parametrize("rule", ["zero", "drop"])
def test_nodes_outside_are_counted_and_told_whatever_becomes_of_them(
    data: Path, tmp_path: Path, rule: str
) -> None:
    (tmp_path / "swc").mkdir()
    inside = "1 2 5 5 5 1 -1\n2 2 6 6 6 1 1\n3 2 7 7 7 1 2\n"
    (tmp_path / "swc" / "half.swc").write_text(inside + "4 2 7 7 -3 1 3\n5 2 7 7 -4 1 4\n")
    (tmp_path / "swc" / "far.swc").write_text("1 2 500 5 5 1 -1\n2 2 501 5 5 1 1\n")
    (tmp_path / "s0.zarr").symlink_to(data / "s0.zarr")
    found = evaluate(tmp_path, tmp_path / "out", "--out-of-bounds", rule)
    assert found["overall"]["out_of_bounds_nodes"] == 4
    assert found["per_skeleton"]["half"]["out_of_bounds_nodes"] == 2
    assert found["overall"]["edges"] == {"zero": 5, "drop": 2}[rule]
    assert found.get("left_out") == {"zero": None, "drop": ["far"]}[rule]
    told = json.loads((tmp_path / "out" / "label_placement.json").read_text())["warning"]
    assert "4 of 7 nodes of the tracings lie outside the volume" in told
    assert ("not scored, because wholly outside: far" in told) == (rule == "drop")


def test_scores_under_other_placements_are_not_compared(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    found = evaluate(data, tmp_path / "b", "--flip", "y")
    assert found["conventions"]["tracings"].endswith("axes that run backwards: y")
    arguments = ["compare", str(whole), str(tmp_path / "b"), "--out", str(tmp_path / "c")]
    with pytest.raises(InputError, match="tracings"):
        CliRunner().invoke(cli.app, arguments, catch_exceptions=False)


def test_sites_lie_where_the_format_puts_the_volume(tmp_path: Path) -> None:
    """A precomputed volume that begins at (3000, 2000, 1000), tracings in the same coordinates."""
    import tensorstore as ts

    begin, shape = (3000, 2000, 1000), (12, 16, 20)
    store = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": str(tmp_path / "s0.zarr") + "/"},
            "multiscale_metadata": {
                "type": "segmentation", "data_type": "uint64", "num_channels": 1,
            },
            "scale_metadata": {
                "size": shape[::-1], "voxel_offset": begin[::-1], "resolution": SIZE[::-1],
                "encoding": "raw", "chunk_size": [8, 8, 8],
            },
            "create": True,
        }
    ).result()  # fmt: skip
    labels = np.ones(shape, np.uint64)
    labels[:, 8:] = 2
    store[...] = labels.transpose(2, 1, 0)[..., None]
    (tmp_path / "swc").mkdir()
    rows = [f"{i} 2 1005.5 {2000.5 + i} 3005.5 1 {i - 1 or -1}" for i in range(1, 15)]
    (tmp_path / "swc" / "a.swc").write_text("\n".join(rows))
    found = evaluate(tmp_path, tmp_path / "out")
    assert (found["overall"]["splits"], found["overall"]["omit_edges"]) == (1, 0)
    (site,) = pq.read_table(tmp_path / "out" / "sites.parquet").to_pylist()
    place = [site[f"{axis}_vox"] for axis in "zyx"]
    assert place == [3005.5, 2008.0, 1005.5]
    nm = [site[f"{axis}_nm"] for axis in "zyx"]
    assert nm == [p * s for p, s in zip(place, SIZE, strict=True)]
    info = json.loads((tmp_path / "out" / "sites/annotations/splits/info").read_text())
    assert info["upper_bound"] == [1020, 2016, 3012]
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "s0.zarr").symlink_to(tmp_path / "s0.zarr")
    (tmp_path / "again" / "swc").symlink_to(tmp_path / "out" / "sites" / "swc")
    again = evaluate(tmp_path / "again", tmp_path / "again" / "out", "--swc-unit", "um")
    assert again["overall"]["splits"] == 1


def test_true_labels_of_which_nothing_is_known_are_left_out(data: Path, tmp_path: Path) -> None:
    truth = zarr.open(data / "truth.zarr")[:].astype(np.int32)
    truth[truth == 2] = -1
    array = zarr.create_array(tmp_path / "t.zarr", shape=SHAPE, chunks=(20,) * 3, dtype="i4")
    array[:] = truth
    found = evaluate(
        data, tmp_path / "out", "--labels", str(tmp_path / "t.zarr"), "--ignore-label", "-1"
    )["voxels"]["segments"]
    labels = np.load(data / "labels.npy")
    known = np.where(truth < 0, 0, truth).astype(np.uint64)
    assert found["voi"] == score_contingency(count_contingency(labels, known))["voi"]
    assert found["accuracy"] == float(((labels != 0) == (truth != 0))[truth >= 0].mean())


SWC = "1 2 5 5 5 1 -1\n2 2 25 25 25 1 1\n"
BAD = {
    "malformed": (SWC + "3 2 a 5 5 1 1\n", (), r"t\.swc, line 3"),
    "cycle": ("1 2 5 5 5 1 2\n2 2 6 6 6 1 1\n", (), "its own ancestor"),
    "missing parent": (SWC + "3 2 5 5 5 1 9\n", (), r"line 3: node 3 has parent 9"),
    "not finite": ("1 2 nan 5 5 1 -1\n", (), "line 1: coordinates .* not finite"),
    "nothing": ("# no node\n", (), "no nodes"),
    "outside": ("1 2 500 500 500 1 -1\n", (), "no node lies in the volume"),
    "unit": ("1 2 0 0 0 1 -1\n2 2 9999 9999 9999 1 1\n", (), "ten times larger"),
    "floats": (SWC, ("real.zarr",), "a segmentation holds integers, got float32"),
    "no volume": (SWC, ("absent.zarr",), "no such file or folder"),
    "no lookup": (SWC, ("s0.zarr", "--lookup", "absent.csv"), "absent.csv: no such file"),
    "bad ids": (SWC, ("s0.zarr", "--exclude-ids", "ids.txt"), r"ids\.txt, line 2"),
    "axes": (SWC, ("s0.zarr", "--axes", "xxy"), "input.swc.axes"),
    "endless gap": (SWC, ("s0.zarr", "--max-gap-nm", "inf"), "evaluate.max_gap_nm"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_is_made(
    data: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, options, message = BAD[case]
    volume, *more = options or ("s0.zarr",)
    (tmp_path / "t.swc").write_text(text)
    (tmp_path / "ids.txt").write_text("7\nseven\n")
    real = zarr.create_array(tmp_path / "real.zarr", shape=SHAPE, dtype=np.float32)
    real[:] = 0
    monkeypatch.chdir(tmp_path)
    place = tmp_path if volume == "real.zarr" else data
    arguments = [
        "evaluate", "--segmentation", str(place / volume), "--skeletons", "t.swc", "--out", "out",
        "--voxel-size", *map(str, SIZE), "--serial", *more,
    ]  # fmt: skip
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert not (tmp_path / "out").exists()
