"""The stages of a sweep on a small volume made by hand: what they read, keep and find."""

import dataclasses
import json

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import edge_tables

from flows.runs import begin, run_stages
from flows.sweep import parse_thresholds
from pipeline.arrays.agglomerate import MergeHistory, agglomerate, fragment_to_segment
from pipeline.arrays.contingency import count_contingency, score_contingency
from pipeline.arrays.labels import IGNORE
from pipeline.arrays.metrics import labels_at_nodes, score
from pipeline.arrays.relabel import apply_lookup
from pipeline.config import parse_config
from pipeline.errors import DataError, DtypeError, InputError, ShapeError
from pipeline.geometry import BlockGrid, Roi
from pipeline.report.sweep_chart import as_png, as_svg, draw_sweep
from pipeline.stages import sweep as stages
from pipeline.stages.history import HISTORY_COLUMNS, history_reach, read_history
from pipeline.stages.keys import stage_keys
from pipeline.stages.merge_runs import write_run, write_whole_history
from pipeline.stages.node_labels import rows_by_block
from pipeline.stages.run import Run
from pipeline.stages.sweep import (
    best_thresholds,
    successive_lookups,
    sweep_stages,
    sweep_thresholds,
)
from pipeline.storage.tables import read_table, write_long_table, write_table
from pipeline.storage.volume import Volume
from workers.runner import Order

PROPERTY = settings(deadline=None, derandomize=True, max_examples=50)
SHAPE = (20, 30, 40)
CHUNKS = (8, 8, 8)
NM = (1000.0, 400.0, 200.0)


def a_tracing(places):
    rows = [f"{i} 2 {x} {y} {z} 1 {i - 1 or -1}" for i, (z, y, x) in enumerate(places, start=1)]
    return "\n".join(rows) + "\n"


# One along x, one that turns and has its last node outside.
SWC = {
    "a": a_tracing([(3.5, 3.5, x) for x in range(1, 40, 2)]),
    "b": a_tracing([(z, 17, 21.5) for z in range(1, 20)] + [(19, y, 22) for y in range(16, 2, -2)]
                   + [(19, 2, 55)]),
}  # fmt: skip


# --- the history on disk


def a_history(scores=((9, 1), (8, 1), (5, 1)), threshold=0.01):
    """3 into 2, 2 into 1, 9 into 7, and so on."""
    kept, absorbed = [2, 1, 7, 5, 5][: len(scores)], [3, 2, 9, 6, 7][: len(scores)]
    total, count = np.array(scores, np.uint64).reshape(-1, 2).T
    columns = [np.array(c, np.uint64) for c in (kept, absorbed, kept, absorbed)]
    return MergeHistory(total, count, *columns, threshold, 255)


def write_history(path, history):
    run = path.with_name("run.arrow")
    write_run(run, history)
    write_whole_history(path, [run])
    run.unlink()


def same_history(a, b):
    for field in dataclasses.fields(MergeHistory):
        one, other = getattr(a, field.name), getattr(b, field.name)
        np.testing.assert_array_equal(one, other)
        assert np.asarray(one).dtype == np.asarray(other).dtype, field.name


@pytest.mark.parametrize("scores", [((9, 1), (8, 1), (5, 1)), ()])
def test_a_history_comes_back(tmp_path, scores):
    history = a_history(scores)
    write_history(tmp_path / "history.arrow", history)
    same_history(read_history(tmp_path / "history.arrow"), history)
    assert history_reach(tmp_path / "history.arrow") == 0.01


@pytest.mark.parametrize("cuts", [(), (0, 1), (1, 2, 3)])
def test_a_history_in_batches_comes_back(tmp_path, monkeypatch, cuts):
    monkeypatch.setattr("pipeline.storage.tables._BATCH_ROWS", 2)
    history = a_history() if cuts else a_history(())
    columns = {name: getattr(history, name) for name in HISTORY_COLUMNS}
    parts = [
        {name: values[begin:end] for name, values in columns.items()}
        for begin, end in zip((0, *cuts), (*cuts, len(history)), strict=True)
    ]
    like = dict.fromkeys(HISTORY_COLUMNS, np.uint64)
    path = tmp_path / "h.arrow"
    write_long_table(path, parts, like, {"threshold": 0.01, "scale": 255})
    same_history(read_history(path), history)
    for threshold in (1.0, 0.02, 0.01):
        found = fragment_to_segment(read_history(path), threshold)
        np.testing.assert_array_equal(found, fragment_to_segment(history, threshold))


def test_what_is_no_history_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"absent\.arrow"):
        read_history(tmp_path / "absent.arrow")
    with pytest.raises(DataError, match=r"absent\.arrow"):
        history_reach(tmp_path / "absent.arrow")
    write_table(tmp_path / "other.arrow", {"kept": np.zeros(1, np.uint64)}, {"scale": 255})
    with pytest.raises(DataError, match=r"not a merge history.*absorbed"):
        read_history(tmp_path / "other.arrow")
    with pytest.raises(DataError, match="threshold"):
        history_reach(tmp_path / "other.arrow")


# --- the walk down


@PROPERTY
@given(edge_tables(), st.lists(st.floats(0.25, 1.0), min_size=1, max_size=6))
def test_lookups_one_after_the_other_are_those_of_each_threshold(table, thresholds):
    history = agglomerate(table, 0.25)
    fragments = np.unique(np.concatenate([table.u, table.v, np.array([0, 77], np.uint64)]))
    labels, merges = fragments, 0
    seen = []
    for threshold, lookup in successive_lookups(history, [*thresholds, 0.25]):
        labels = apply_lookup(labels, *lookup)
        expected = apply_lookup(fragments, *fragment_to_segment(history, threshold))
        np.testing.assert_array_equal(labels, expected)
        merges += len(lookup[0])
        seen.append(threshold)
    assert seen == sorted({*thresholds, 0.25}, reverse=True)
    assert merges == len(history), "each merge is in one lookup"


def test_a_threshold_beyond_the_history_is_refused():
    with pytest.raises(InputError, match=r"down to 0\.01"):
        list(successive_lookups(a_history(), [0.5, 0.005]))


# --- rows by block


@PROPERTY
@given(
    st.tuples(*(st.integers(1, 9) for _ in range(3))),
    st.tuples(*(st.integers(1, 4) for _ in range(3))),
    st.integers(0, 20),
    st.integers(0, 2**32 - 1),
)
def test_every_voxel_is_in_its_block(shape, block, count, seed):
    voxels = np.random.default_rng(seed).integers(0, shape, (count, 3))
    grid = BlockGrid(Roi((0, 0, 0), shape), block)
    found = rows_by_block(voxels, grid)
    assert sorted(np.concatenate([np.zeros(0, int), *found.values()])) == list(range(count))
    for index, rows in found.items():
        assert len(rows)
        for voxel in voxels[rows]:
            assert grid[index].write.contains(Roi(tuple(map(int, voxel)), (1, 1, 1)))


# --- which thresholds


def test_spans_of_thresholds():
    assert parse_thresholds(None) is None
    assert parse_thresholds("0.2:0.4:0.1") == (0.2, 0.3, 0.4), "0.3, not 0.30000000000000004"
    assert parse_thresholds("0.2:0.9:0.05")[-1] == 0.9
    assert len(parse_thresholds("0.2:0.9:0.05")) == 15
    assert parse_thresholds("0.5:0.5:0.1") == (0.5,)
    assert parse_thresholds("0:1:0.4", [0.3, 0.8]) == (0.0, 0.3, 0.4, 0.8)
    assert parse_thresholds(None, [0.7, 0.3, 0.7]) == (0.3, 0.7)


@pytest.mark.parametrize(
    "text",
    ["", "0.2", "0.2:0.9", "0.2:0.9:x", "0.2:0.9:0", "0.2:0.9:-0.1", "0.9:0.2:0.1", "0.2:1.9:0.1",
     "-0.2:0.9:0.1", "nan:0.9:0.1", "0.2:0.9:nan", "0.2:0.9:inf", "0:1:1e-9", "1:2:3:4"],
)  # fmt: skip
def test_other_spans_are_refused(text):
    with pytest.raises(InputError, match="--thresholds"):
        parse_thresholds(text)


def row(threshold, nerl=None, voi=None):
    found = {"threshold": threshold}
    if nerl is not None:
        found["overall"] = {"nerl": nerl}
    if voi is not None:
        found["voxels"] = {"voi": voi}
    return found


def test_the_best_threshold_is_the_most_cautious_of_equals():
    rows = [row(0.2, 0.5, 1.0), row(0.3, 0.7, 0.6), row(0.4, 0.7 - 1e-12, 0.6), row(0.5, 0.6, 0.9)]
    for given_rows in (rows, rows[::-1]):
        best = best_thresholds(given_rows)
        assert best["nerl"]["threshold"] == 0.4
        assert best["voi"] == {"threshold": 0.4, "voi": 0.6}
    assert set(best_thresholds([row(0.2, nerl=0.0)])) == {"nerl"}
    assert set(best_thresholds([row(0.2, voi=0.0)])) == {"voi"}


# --- the stages


def made_up_fragments():
    """Boxes of 4 x 5 x 6 voxels; some are background."""
    rng = np.random.default_rng(1)
    boxes = np.arange(1, 5 * 6 * 7 + 1).reshape(5, 6, 7)
    boxes[rng.random(boxes.shape) < 0.2] = 0
    return boxes.repeat(4, 0).repeat(5, 1).repeat(6, 2)[:, :, : SHAPE[2]].astype(np.uint64)


def made_up_history(fragments):
    """Merges of neighbouring ids in any order, some at equal scores."""
    ids = np.unique(fragments[fragments > 0]).tolist()
    rng = np.random.default_rng(3)
    region = {i: i for i in ids}
    kept, absorbed = [], []
    for at in rng.permutation(len(ids) - 1)[:140].tolist():
        low, high = sorted((region[ids[at]], region[ids[at + 1]]))
        region = {i: low if r == high else r for i, r in region.items()}
        kept.append(low)
        absorbed.append(high)
    total = np.sort(rng.integers(60, 250, 140))[::-1]
    columns = (total, np.ones(140), kept, absorbed, kept, absorbed)
    return MergeHistory(*(np.array(c, np.uint64) for c in columns), 0.2, 255)


@pytest.fixture
def given_files(tmp_path):
    folder = tmp_path / "given"
    fragments = made_up_fragments()
    volume = Volume.create(
        folder / "fragments.zarr", SHAPE, np.uint64, chunks=CHUNKS, voxel_size_nm=NM
    )
    volume.write(volume.roi, fragments)
    write_history(folder / "history.arrow", made_up_history(fragments))
    truth = np.zeros(SHAPE, np.uint32)
    truth[2:9, 3:20, 5:30], truth[12:, 10:, :25] = 4, 9
    array = zarr.create_array(folder / "labels.zarr", shape=SHAPE, dtype=np.uint32, chunks=CHUNKS)
    array[:] = truth
    (folder / "swc").mkdir()
    for name, text in SWC.items():
        (folder / "swc" / f"{name}.swc").write_text(text)
    return folder


def config_of(folder, out, *, labels=True, skeletons=True, thresholds=(0.3, 0.5, 0.8), **sections):
    inputs = {"fragments": folder / "fragments.zarr", "history": folder / "history.arrow"}
    inputs |= {"labels": folder / "labels.zarr"} if labels else {}
    inputs |= {"skeletons": folder / "swc"} if skeletons else {}
    return parse_config(
        {
            "run_dir": out,
            "input": inputs | sections.pop("input", {}),
            "sweep": {"thresholds": thresholds},
            "execution": {"kind": "serial"},
            **sections,
        }
    )


def swept(config, **options):
    run = begin(config, sweep_stages(config))
    run_stages(run, sweep_stages(config), **options)
    return run, json.loads(run.path("sweep").read_text())


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr(stages, "draw_sweep", lambda *_: None)
    monkeypatch.setattr(stages, "as_png", lambda _: b"png")
    monkeypatch.setattr(stages, "as_svg", lambda _: "svg")


@pytest.fixture
def reads(monkeypatch):
    """The boxes that are read from each volume."""
    found = {}
    plain = Volume.read

    def read(volume, roi):
        found.setdefault(volume.path.name, []).append(roi)
        return plain(volume, roi)

    monkeypatch.setattr(Volume, "read", read)
    return found


def expected_rows(run, thresholds, labels, region=slice(None)):
    """From the dense arrays, one threshold at a time."""
    fragments, truth = made_up_fragments(), run.truth()
    history = made_up_history(fragments)
    out = [int((np.floor(s.nodes) >= SHAPE).any(axis=1).sum()) for s in truth]
    for threshold in thresholds:
        segments = apply_lookup(fragments, *fragment_to_segment(history, threshold))
        at_nodes = [labels_at_nodes(s, segments)[0] for s in truth]
        found = count_contingency(segments[region], labels[region].astype(np.uint64))
        yield {
            "threshold": threshold,
            "overall": dict(score(truth, at_nodes, NM, None, out).overall),
            "voxels": score_contingency(found),
        }


def dense_labels(folder):
    return zarr.open_array(folder / "labels.zarr", mode="r")[:]


@pytest.mark.usefixtures("no_picture")
def test_rows_equal_those_of_the_dense_arrays(given_files, tmp_path):
    run, found = swept(config_of(given_files, tmp_path / "out"))
    expected = list(expected_rows(run, (0.3, 0.5, 0.8), dense_labels(given_files)))
    assert found["rows"] == expected
    assert len({json.dumps(r["overall"]) for r in expected}) == 3, "the thresholds differ"
    assert len({json.dumps(r["voxels"]) for r in expected}) == 3
    assert found["rows"][0]["overall"]["out_of_bounds_nodes"] == 1
    assert found["ceiling"]["overall"]["nerl"] == pytest.approx(1.0)
    assert found["recorded_down_to"] == 0.2
    assert "repair" in found["conventions"]
    assert "adapted_rand" in found["conventions"]


@pytest.mark.parametrize("extent", [8, 16])
def test_blocks_and_their_order_do_not_show(given_files, tmp_path, monkeypatch, extent):
    _, whole = swept(config_of(given_files, tmp_path / "whole"))
    monkeypatch.setattr(stages, "_EXTENT", extent)
    run, cut = swept(config_of(given_files, tmp_path / "cut"), order=Order("shuffled", 3))
    assert len(run.ledger("contingency").marks) > 10
    assert cut == whole
    for name in ("sweep.json", "sweep.csv", "sweep.png", "sweep.svg"):
        one, other = tmp_path / "whole" / name, tmp_path / "cut" / name
        assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.parametrize("extent", [8, 256])
@pytest.mark.usefixtures("no_picture")
def test_only_chunks_with_nodes_are_read_and_each_once(
    given_files, tmp_path, monkeypatch, reads, extent
):
    monkeypatch.setattr(stages, "_EXTENT", extent)
    run, _ = swept(config_of(given_files, tmp_path / "out", labels=False))
    boxes = reads.pop("fragments.zarr")
    assert not reads
    nodes = np.concatenate([np.floor(s.nodes).astype(int) for s in run.truth()])
    nodes = nodes[(nodes < SHAPE).all(axis=1)]
    cells = {tuple(map(int, cell)) for cell in nodes // CHUNKS}
    assert sorted(tuple(o // c for o, c in zip(b.offset, CHUNKS, strict=True)) for b in boxes) == (
        sorted(cells)
    )
    assert 5 < len(cells) < 20
    done = [m for m in run.ledger("fragment_labels").marks.values() if m.state == "done"]
    assert sum(m.stats["chunks"] for m in done) == len(cells)
    assert sum(m.stats["nodes"] for m in done) == len(nodes) == 46


@pytest.mark.parametrize("extent", [8, 16, 256])
@pytest.mark.usefixtures("no_picture")
def test_no_voxel_is_read_twice_for_a_table(given_files, tmp_path, monkeypatch, reads, extent):
    monkeypatch.setattr(stages, "_EXTENT", extent)
    swept(config_of(given_files, tmp_path / "out", skeletons=False))
    truth = dense_labels(given_files)
    for name in ("fragments.zarr", "labels.zarr"):
        seen = np.zeros(SHAPE, int)
        for box in reads[name]:
            seen[box.slices] += 1
        assert seen.max() == 1, name
        assert (seen[truth > 0] == 1).all(), name
        # Fragments are read only where there is truth at all.
        assert (name == "labels.zarr") == bool((seen == 1).all()) or extent == 256


@pytest.mark.usefixtures("no_picture")
def test_a_second_sweep_reads_no_voxel(given_files, tmp_path, monkeypatch):
    run, first = swept(config_of(given_files, tmp_path / "out"))
    marks = {n: run.ledger(n).path.read_bytes() for n in ("fragment_labels", "contingency")}

    def read(volume, roi):
        raise AssertionError(f"{volume.path} is read at {roi}")

    monkeypatch.setattr(Volume, "read", read)
    wanted = (0.25, 0.5, 1.0)
    run, second = swept(config_of(given_files, tmp_path / "out", thresholds=wanted))
    assert [row["threshold"] for row in second["rows"]] == list(wanted)
    assert second["rows"][1] == first["rows"][1]
    assert {n: run.ledger(n).path.read_bytes() for n in marks} == marks
    changed = config_of(given_files, tmp_path / "out", evaluate={"repair": False})
    assert swept(changed)[1]["conventions"]["repair"].startswith("none")


@pytest.mark.usefixtures("no_picture")
def test_another_segmentation_is_read_again(given_files, tmp_path, reads):
    swept(config_of(given_files, tmp_path / "out"))
    volume = Volume.open(given_files / "fragments.zarr")
    volume.write(volume.roi, np.zeros(SHAPE, np.uint64))
    reads.clear()
    _, found = swept(config_of(given_files, tmp_path / "out"))
    assert reads["fragments.zarr"]
    assert found["rows"][0]["overall"]["pct_omit"] == 100.0
    assert found["rows"][0]["voxels"]["omitted_voxels"] == found["rows"][0]["voxels"]["voxels"]


@pytest.mark.usefixtures("no_picture")
def test_a_region_to_score_cuts_nodes_and_voxels(given_files, tmp_path, reads):
    region = {"begin": [0, 5, 0], "end": [18, 25, 33]}
    config = config_of(given_files, tmp_path / "out", regions={"score": region})
    run, found = swept(config)
    box = run.score_roi
    labels = dense_labels(given_files)
    assert all(box.contains(roi) for roi in reads["labels.zarr"])
    expected = list(expected_rows(run, (0.3, 0.5, 0.8), labels, box.slices))
    assert [r["voxels"] for r in found["rows"]] == [r["voxels"] for r in expected]
    assert 10 < found["rows"][0]["overall"]["edges"] < 40


@pytest.mark.parametrize("part", ["overall", "voxels"])
def test_tracings_or_labels_alone(given_files, tmp_path, part):
    alone = {"labels": part == "voxels", "skeletons": part == "overall"}
    _, found = swept(config_of(given_files, tmp_path / "out", **alone))
    _, both = swept(config_of(given_files, tmp_path / "both"))
    assert [set(row) for row in found["rows"]] == [{"threshold", part}] * 3
    assert [row[part] for row in found["rows"]] == [row[part] for row in both["rows"]]
    assert set(found["best"]) == {{"overall": "nerl", "voxels": "voi"}[part]}
    assert ("repair" in found["conventions"]) == (part == "overall")
    assert ("voi" in found["conventions"]) == (part == "voxels")
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 1000


@pytest.mark.usefixtures("no_picture")
def test_labels_alone_need_no_voxel_size(given_files, tmp_path):
    volume = Volume.create(
        tmp_path / "fragments.zarr", SHAPE, np.uint64, chunks=CHUNKS, voxel_size_nm=None
    )
    volume.write(volume.roi, made_up_fragments())
    given_size = {"fragments": tmp_path / "fragments.zarr"}
    config = config_of(given_files, tmp_path / "out", skeletons=False, input=given_size)
    assert len(swept(config)[1]["rows"]) == 3
    with pytest.raises(InputError, match="voxel size"):
        swept(config_of(given_files, tmp_path / "more", input=given_size))


@pytest.mark.usefixtures("no_picture")
def test_voxels_to_ignore_are_left_out(given_files, tmp_path):
    labels = dense_labels(given_files).astype(np.uint64)
    labels[14:17] = IGNORE
    array = zarr.open_array(tmp_path / "labels.zarr", mode="w", shape=SHAPE, dtype=np.uint64)
    array[:] = labels
    config = config_of(
        given_files, tmp_path / "out", input={"labels": tmp_path / "labels.zarr"}, skeletons=False
    )
    run, found = swept(config)
    table = count_contingency(made_up_fragments(), labels)
    assert found["rows"][0]["voxels"]["voxels"] == int(((labels > 0) & (labels < IGNORE)).sum())
    lookup = fragment_to_segment(made_up_history(made_up_fragments()), 0.5)
    stored = read_table(run.block_file("contingency", 0))
    assert list(stored["voxels"]) == list(table.voxels)
    segments = apply_lookup(made_up_fragments(), *lookup)
    assert found["rows"][1]["voxels"] == score_contingency(count_contingency(segments, labels))


@pytest.mark.usefixtures("no_picture")
def test_labels_without_any_label_fail_with_a_reason(given_files, tmp_path):
    array = zarr.open_array(tmp_path / "labels.zarr", mode="w", shape=SHAPE, dtype=np.uint8)
    array[:] = 0
    given_labels = {"labels": tmp_path / "labels.zarr"}
    config = config_of(given_files, tmp_path / "out", skeletons=False, input=given_labels)
    run = begin(config, sweep_stages(config))
    with pytest.raises(Exception, match=r"labels\.zarr: no voxel has a label other than 0"):
        run_stages(run, sweep_stages(config))


def test_default_thresholds_reach_over_the_history(given_files, tmp_path):
    config = config_of(given_files, tmp_path / "out", thresholds=None)
    values = sweep_thresholds(Run(tmp_path / "out", config))
    assert (values[0], values[-1], len(values)) == (0.2, 1.0, 21)
    assert list(values) == sorted(values)
    np.testing.assert_allclose(np.diff(values), 0.04, atol=1e-6)
    history = dataclasses.replace(made_up_history(made_up_fragments()), threshold=1.0)
    write_history(given_files / "history.arrow", history)
    assert sweep_thresholds(Run(tmp_path / "out", config)) == (1.0,)


# --- keys


def keys_of(config):
    run = Run(config.run_dir.resolve(), config)
    return {n: k.key for n, k in stage_keys(run, sweep_stages(config)).items()}


KEYS = {
    "thresholds": ({"thresholds": (0.4,)}, {"sweep"}),
    "repair": ({"evaluate": {"repair": False}}, {"sweep"}),
    "merge tolerance": ({"evaluate": {"merge_min_nodes": 3}}, {"sweep"}),
    "baseline": ({"evaluate": {"baseline": False}}, set()),
    "out of bounds": ({"evaluate": {"out_of_bounds": "drop"}}, {"sweep"}),
    "tracings": ({"input": {"swc": {"offset": [0, 0, 1]}}}, {"fragment_labels", "sweep"}),
    "region": (
        {"regions": {"score": {"begin": [0, 0, 0], "end": [9, 9, 9]}}},
        {"fragment_labels", "contingency", "sweep"},
    ),
    "segmentation parameters": ({"segment": {"low": 0.1}}, set()),
}  # fmt: skip


@pytest.mark.parametrize("case", KEYS)
def test_a_change_reaches_what_depends_on_it(given_files, tmp_path, case):
    changed, expected = KEYS[case]
    before = keys_of(config_of(given_files, tmp_path / "out"))
    after = keys_of(config_of(given_files, tmp_path / "out", **changed))
    assert {name for name in before if before[name] != after[name]} == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fragments.zarr", {"fragment_labels", "contingency", "sweep"}),
        ("history.arrow", {"sweep"}),
        ("labels.zarr", {"contingency", "sweep"}),
        ("swc", {"fragment_labels", "sweep"}),
    ],
)
def test_a_touched_input_reaches_what_reads_it(given_files, tmp_path, name, expected):
    before = keys_of(config_of(given_files, tmp_path / "out"))
    path = given_files / name
    if path.is_dir():
        (path / "more").write_text("x")
    else:
        path.write_bytes(path.read_bytes())
    after = keys_of(config_of(given_files, tmp_path / "out"))
    assert {n for n in before if before[n] != after[n]} == expected


# --- refused before anything is computed


def test_bad_input_is_refused_first(given_files, tmp_path):
    def refused(kind, match, **options):
        config = config_of(given_files, tmp_path / "out", **options)
        with pytest.raises(kind, match=match):
            begin(config, sweep_stages(config))
        assert not (tmp_path / "out").exists()

    refused(InputError, r"0\.1 lies below 0\.2.*--threshold 0\.2 --threshold 0\.1",
            thresholds=(0.5, 0.1))  # fmt: skip
    refused(InputError, "--skeletons, --labels", labels=False, skeletons=False)
    outside = {"swc": {"offset": [1000, 0, 0]}}
    refused(InputError, "no node", input=outside)
    for name, data, kind, match in (
        ("float.zarr", np.zeros(SHAPE, np.float32), DtypeError, "float32"),
        ("small.zarr", np.zeros((20, 30, 39), np.uint8), ShapeError, r"\(20, 30, 39\)"),
        ("channels.zarr", np.zeros((3, *SHAPE), np.uint8), ShapeError, "3 channels"),
    ):
        array = zarr.create_array(tmp_path / name, shape=data.shape, dtype=data.dtype)
        array[:] = data
        refused(kind, match, input={"labels": tmp_path / name})
    refused(DtypeError, "fragments as zarr", input={"fragments": given_files / "labels.zarr"})
    refused(DataError, "labels.zarr.*missing or damaged",
            input={"history": given_files / "labels.zarr" / "zarr.json"})  # fmt: skip


@pytest.mark.parametrize("values", [(), (0.5, 1.5), (-0.1,), (float("nan"),)])
def test_thresholds_of_the_configuration_are_checked(given_files, tmp_path, values):
    with pytest.raises(InputError, match=r"sweep\.thresholds"):
        config_of(given_files, tmp_path / "out", thresholds=values)


# --- the picture


OVERALL = {"nerl": 0.5, "edge_accuracy": 90.0, "edge_accuracy_strict": 80.0}
VOXELS = {"voi_split": 0.1, "voi_merge": 0.2, "voi": 0.3, "ari": 0.5, "adapted_rand_error": 0.4}


def chart_rows(parts, splits=(3, 3000)):
    for threshold, n in zip((0.2, 0.6), splits, strict=True):
        overall = {**OVERALL, "splits": n, "merges_total": 0}
        whole = {"threshold": threshold, "overall": overall, "voxels": VOXELS}
        yield {name: whole[name] for name in ("threshold", *parts)}


@pytest.mark.parametrize(
    ("parts", "best", "panels"),
    [(("overall",), ["nerl"], 3), (("voxels",), ["voi"], 2), (("overall", "voxels"), None, 5)],
)
def test_the_picture_has_a_panel_for_each_kind_of_score(parts, best, panels):
    marks = {name: {"threshold": 0.2} for name in best or ("nerl", "voi")}
    rows = list(chart_rows(parts))
    figure = draw_sweep(rows, marks, 0.9 if "overall" in parts else None)
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(shown) == panels
    for axes in shown:
        assert [t.get_text() for t in axes.texts] in (["best nERL: 0.2"], ["best VOI: 0.2"])
        assert list(axes.lines[0].get_xdata()) == [0.2, 0.6]
    assert as_png(figure) == as_png(draw_sweep(rows, marks, 0.9 if "overall" in parts else None))
    text = as_svg(figure)
    assert text.startswith("<?xml")
    assert "agglomeration threshold" in text
    assert "#0102" not in text, "stand-in colours of the report"


@pytest.mark.parametrize(("splits", "scale"), [((3, 3000), "symlog"), ((0, 9), "linear")])
def test_counts_have_an_axis_that_shows_them(splits, scale):
    figure = draw_sweep(list(chart_rows(["overall"], splits)), {"nerl": {"threshold": 0.6}})
    axes = figure.axes[2]
    assert axes.get_ylabel() == "events"
    assert axes.get_yscale() == scale


def test_one_threshold_can_be_drawn():
    rows = list(chart_rows(["overall", "voxels"]))[:1]
    best = {"nerl": {"threshold": 0.2}, "voi": {"threshold": 0.2}}
    assert as_png(draw_sweep(rows, best)).startswith(b"\x89PNG")
