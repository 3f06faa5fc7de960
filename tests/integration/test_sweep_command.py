"""`axonloom sweep`: each row is what segmenting and scoring at that threshold gives."""

import csv
import json
import shutil

import numpy as np
import pytest
import yaml
import zarr

from pipeline.arrays.contingency import count_contingency, score_contingency
from pipeline.arrays.labels import affinities_from_labels
from pipeline.arrays.phantom import grow_neurons, render
from pipeline.arrays.phantom_spec import PhantomSpec
from pipeline.geometry import Roi
from pipeline.storage.ledger import Ledger
from pipeline.storage.swc import write_swc
from pipeline.storage.volume import Volume

SPEC = PhantomSpec((44, 70, 90), (1000.0, 400.0, 400.0), 6, 5)
LOWEST = 0.3
THRESHOLDS = (0.3, 0.45, 0.6)
SEGMENT = ("--low", 0.3, "--high", 0.9, "--block", 22, 35, 45, "--serial")
SIZE = ("--voxel-size", *SPEC.voxel_size_nm)


def save(path, data, **options):
    array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, **options)
    array[:] = data
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Worn affinities of touching neurons, their labels and tracings."""
    folder = tmp_path_factory.mktemp("sweep")
    neurons = grow_neurons(SPEC)
    labels = render(SPEC, neurons, Roi((0, 0, 0), SPEC.shape))[1]
    perfect = affinities_from_labels(labels).astype(np.int64)
    # Random walls, so that neurites break at some thresholds and join others at lower ones.
    rng = np.random.default_rng(5)
    noise = rng.integers(-120, 121, perfect.shape)
    walls = 70 * rng.random((3, 11, 18, 23)).repeat(4, 1).repeat(4, 2).repeat(4, 3)
    walls = walls[:, : SPEC.shape[0], : SPEC.shape[1], : SPEC.shape[2]]
    affinities = np.clip(perfect * 0.8 + walls + noise, 0, 255).astype(np.uint8)
    save(folder / "a.zarr", affinities, chunks=(3, 32, 32, 32))
    save(folder / "labels.zarr", labels.astype(np.uint64), chunks=(20, 20, 20))
    (folder / "swc").mkdir()
    for neuron in neurons:
        path = folder / "swc" / f"{neuron.name}.swc"
        write_swc(path, neuron, voxel_size_nm=SPEC.voxel_size_nm, unit="voxel")
    return folder


@pytest.fixture
def segmented(axonloom, data):
    """The folder of a segmentation; those of equal thresholds are made once."""

    def of(*thresholds, **options):
        out = data / "_".join(map(str, ("seg", *thresholds, *options.values())))
        if not out.exists():
            asked = [word for t in thresholds for word in ("--threshold", t)]
            more = [w for name, v in options.items() for w in (f"--{name.replace('_', '-')}", v)]
            done = axonloom("segment", "--affinities", data / "a.zarr", "--out", out,
                            *SEGMENT, *SIZE, *asked, *more)  # fmt: skip
            assert done.code == 0, done.err
        return out

    return of


@pytest.fixture
def sweep(axonloom, data, tmp_path):
    """Run a sweep and read its rows."""

    def run(segmentation, *options, out=tmp_path / "out", given=("skeletons", "labels")):
        inputs = {"skeletons": data / "swc", "labels": data / "labels.zarr"}
        words = [word for name in given for word in (f"--{name}", inputs[name])]
        done = axonloom("sweep", segmentation, *words, "--out", out, "--serial", *options)
        assert done.code == 0, done.err
        return done, json.loads((out / "sweep.json").read_text())

    return run


def asked(*thresholds):
    return [word for t in thresholds for word in ("--threshold", t)]


def array(path):
    volume = Volume.open(path)
    return volume.read(volume.roi)


OPTIONS = {
    "as they come": (),
    "without repair, with a tolerance": ("--no-repair", "--merge-min-nodes", 2),
    "moved beyond the volume": ("--offset", 3, -9, 30.5, "--out-of-bounds", "drop", "--flip", "y"),
    "short gaps": ("--max-gap-nm", 2000, "--merge-min-nm", 900, "--flip", "z"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_row_is_what_evaluate_says(axonloom, data, segmented, sweep, tmp_path, case):
    options = OPTIONS[case]
    _, found = sweep(segmented(LOWEST), *asked(*THRESHOLDS), *options)
    assert [row["threshold"] for row in found["rows"]] == list(THRESHOLDS)
    conventions = {}
    for row in found["rows"]:
        out = tmp_path / f"scores_{row['threshold']}"
        done = axonloom(
            "evaluate", "--segmentation", segmented(row["threshold"]) / "segments.zarr",
            "--skeletons", data / "swc", "--out", out, "--serial", *options,
        )  # fmt: skip
        assert done.code == 0, done.err
        metrics = json.loads((out / "metrics.json").read_text())
        assert row["overall"] == metrics["overall"]
        assert found["ceiling"] == metrics["ceiling"]
        conventions[row["threshold"]] = metrics["conventions"]
    best = found["best"]["nerl"]["threshold"]
    assert {k: found["conventions"][k] for k in conventions[best]} == conventions[best]
    assert len({json.dumps(row["overall"]) for row in found["rows"]}) == 3


def test_tracings_left_out_are_listed_and_told(data, segmented, sweep, tmp_path):
    swc = tmp_path / "tracings"
    swc.mkdir()
    first = sorted((data / "swc").glob("*.swc"))[0]
    (swc / first.name).write_text(first.read_text())
    (swc / "far.swc").write_text("1 2 200 1 1 1 -1\n2 2 201 1 1 1 1\n")
    for rule, names in (("drop", ["far"]), ("zero", None)):
        done, found = sweep(
            segmented(LOWEST), "--skeletons", swc, *asked(0.5), "--out-of-bounds", rule,
            given=("labels",), out=tmp_path / rule,
        )  # fmt: skip
        assert found.get("left_out") == names
        assert found["rows"][0]["overall"]["out_of_bounds_nodes"] >= 2
        assert "nodes of the tracings lie outside the volume" in done.out
        assert ("Not scored, because wholly outside: far." in done.out) == (rule == "drop")


def test_a_row_has_the_voxel_scores_of_the_dense_arrays(data, segmented, sweep):
    _, found = sweep(segmented(LOWEST), *asked(*THRESHOLDS))
    labels = array(data / "labels.zarr")
    for row in found["rows"]:
        segments = array(segmented(row["threshold"]) / "segments.zarr")
        assert row["voxels"] == score_contingency(count_contingency(segments, labels))
        assert row["voxels"]["voxels"] == np.count_nonzero(labels)
    assert len({row["voxels"]["voi"] for row in found["rows"]}) == 3
    assert max(row["voxels"]["voi_merge"] for row in found["rows"]) > 0


def test_workers_do_not_show(segmented, sweep, tmp_path):
    _, serial = sweep(segmented(LOWEST), *asked(*THRESHOLDS))
    inputs = tmp_path / "workers"
    _, workers = sweep(segmented(LOWEST), *asked(*THRESHOLDS), "--workers", 2, out=inputs)
    assert workers == serial
    for name in ("sweep.json", "sweep.csv", "sweep.png", "sweep.svg"):
        assert (inputs / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_what_the_user_sees(segmented, sweep, tmp_path):
    done, found = sweep(segmented(LOWEST))
    thresholds = [row["threshold"] for row in found["rows"]]
    assert (thresholds[0], thresholds[-1], len(thresholds)) == (LOWEST, 1.0, 21)
    lines = done.out.splitlines()
    for name, kind in (("nerl", "nERL"), ("voi", "VOI")):
        chosen = found["best"][name]["threshold"]
        marked = [line.split()[0] for line in lines if kind in line.split()[-2:]
                  or f"{kind}," in line.split()]  # fmt: skip
        assert f"{chosen:.6g}" in marked
        part = {"nerl": "overall", "voi": "voxels"}[name]
        values = {row["threshold"]: row[part][name] for row in found["rows"]}
        top = max(values.values()) if name == "nerl" else min(values.values())
        assert values[chosen] == found["best"][name][name] == pytest.approx(top)
    for name in ("sweep.json", "sweep.csv", "sweep.png", "sweep.svg"):
        assert name in done.out
    assert max(map(len, done.out.splitlines()[:24])) <= 80
    rows = list(csv.DictReader((tmp_path / "out" / "sweep.csv").read_text().splitlines()))
    assert len(rows) == 21
    for row, expected in zip(rows, found["rows"], strict=True):
        flat = {"threshold": expected["threshold"], **expected["overall"], **expected["voxels"]}
        assert row == {k: "" if v is None else str(v) for k, v in flat.items()}
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "axonloom" not in done.err


def test_a_second_sweep_into_the_same_folder_reads_no_voxel(
    axonloom, data, segmented, sweep, tmp_path, monkeypatch
):
    _, first = sweep(segmented(LOWEST), *asked(0.3, 0.6))

    def read(volume, roi):
        raise AssertionError(f"{volume.path} is read at {roi}")

    monkeypatch.setattr(Volume, "read", read)
    command = ("sweep", segmented(LOWEST), "--skeletons", data / "swc", "--labels",
               data / "labels.zarr", "--out", tmp_path / "out", "--serial",
               "--thresholds", "0.4:0.8:0.1")  # fmt: skip
    done = axonloom(*command)
    assert done.code == 2
    assert "thresholds" in done.err
    assert "--overwrite" in done.err
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == first
    done, second = sweep(segmented(LOWEST), "--thresholds", "0.4:0.8:0.1", "--overwrite")
    assert [row["threshold"] for row in second["rows"]] == [0.4, 0.5, 0.6, 0.7, 0.8]
    assert second["rows"][2] == first["rows"][1]
    assert done.err.count("already done") == 2
    done, again = sweep(segmented(LOWEST), "--thresholds", "0.4:0.8:0.1")
    assert again == second
    assert done.err.count("already done") == 3


@pytest.mark.parametrize("given", ["skeletons", "labels"])
def test_one_kind_of_truth_is_enough(segmented, sweep, given):
    done, found = sweep(segmented(LOWEST), *asked(0.5), given=(given,))
    assert set(found["rows"][0]) == {"threshold", {"skeletons": "overall"}.get(given, "voxels")}
    assert ("nERL" in done.out) == (given == "skeletons")
    assert ("VOI" in done.out) == (given == "labels")


def test_a_run_directory(axonloom, data, sweep, tmp_path):
    """With a threshold that the run has chosen itself."""
    values = {
        "run_dir": str(tmp_path / "run"),
        "input": {
            "affinities": str(data / "a.zarr"),
            "skeletons": str(data / "swc"),
            "voxel_size_nm": SPEC.voxel_size_nm,
        },
        "segment": {"block": [22, 35, 45], "tune_max_voxels": 80_000},
        "ingest": {"chunk": [32, 32, 32]},
        "execution": {"kind": "serial"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    done = axonloom("run", tmp_path / "run.yaml")
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    _, found = sweep(tmp_path / "run", out=tmp_path / "run" / "sweep")
    chosen = json.loads((tmp_path / "run" / "tuning.json").read_text())["threshold"]
    assert found["rows"][0]["threshold"] == found["recorded_down_to"] == chosen
    assert found["rows"][0]["overall"] == metrics["overall"]


def test_small_segments_are_spoken_of(segmented, sweep):
    plain, without = sweep(segmented(LOWEST), *asked(0.5))
    folder = segmented(LOWEST, min_voxels=40)
    said, filtered = sweep(folder, *asked(0.5), "--overwrite")
    assert filtered["rows"] == without["rows"]
    assert "below 40 voxels" in said.out
    assert "below" not in plain.out
    assert "min_voxels" in filtered["conventions"]["small_segments"]


# --- refused before anything is computed


@pytest.fixture
def refused(axonloom, data, tmp_path):
    def check(segmentation, *words, options=("--skeletons", "swc"), out=tmp_path / "never"):
        before = sorted(tmp_path.rglob("*"))
        given = [data / w if isinstance(w, str) and (data / w).exists() else w for w in options]
        done = axonloom("sweep", segmentation, "--out", out, "--serial", *given)
        assert done.code == 2, (done.code, done.err)
        assert done.err.startswith("error: "), done.err
        assert done.out == ""
        for word in words:
            assert word in done.err, (word, done.err)
        assert sorted(tmp_path.rglob("*")) == before

    return check


def test_bad_requests(refused, data, segmented, tmp_path):
    folder = segmented(LOWEST)
    swc = ("--skeletons", "swc")
    refused(folder, "0.2", "down to which", "--threshold 0.3 --threshold 0.2",
            options=(*swc, "--threshold", 0.5, "--threshold", 0.2))  # fmt: skip
    refused(folder, "[0, 1]", options=(*swc, "--threshold", 1.5))
    refused(folder, "FROM:TO:STEP", options=(*swc, "--thresholds", "0.3-0.9"))
    refused(folder, "--skeletons", "--labels", options=())
    refused(folder, "no node lies", options=(*swc, "--offset", 0, 0, 5000))
    refused(folder, "absent.swc", options=("--skeletons", data / "absent.swc"))
    small = save(tmp_path / "small.zarr", np.zeros((44, 70, 89), np.uint8))
    refused(folder, "(44, 70, 89)", "(44, 70, 90)", options=("--labels", small))
    fractions = save(tmp_path / "float.zarr", np.zeros(SPEC.shape, np.float32))
    refused(folder, "float32", options=("--labels", fractions))
    refused(folder, "the segmentation itself", out=folder)
    assert (folder / "config.yaml").read_text().count("affinities: /") == 1


def test_what_is_no_segmentation(refused, segmented, tmp_path):
    refused(tmp_path / "absent", "absent", "axonloom segment")
    refused(segmented(LOWEST) / "segments.zarr", "fragments.zarr", "expected the output folder")


@pytest.fixture
def copied(segmented, tmp_path):
    return shutil.copytree(segmented(LOWEST), tmp_path / "copy")


def test_a_segmentation_without_history(refused, copied):
    (copied / "history" / "history.arrow").unlink()
    refused(copied, "no merge history", "mean affinity")


def test_a_damaged_history(axonloom, data, copied, tmp_path):
    (copied / "history" / "history.arrow").write_bytes(b"ARROW1 and no more")
    done = axonloom("sweep", copied, "--skeletons", data / "swc", "--out", tmp_path / "never")
    assert done.code == 1
    assert "history.arrow: missing or damaged table" in done.err
    assert not (tmp_path / "never").exists()


def test_an_unfinished_segmentation(refused, copied):
    path = copied / "ledger" / "relabel.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    blocks = [line for line in lines if '"block"' in line]
    path.write_text("".join(line for line in lines if line not in blocks[-1:]))
    refused(copied, "stage relabel is not finished", "axonloom status")
    path.unlink()
    refused(copied, "stage relabel is not finished")


def test_a_segmentation_begun_anew(refused, axonloom, data, copied, monkeypatch):
    """Its history is of other parameters than its fragments."""
    from pipeline.stages import STAGES

    [relabel] = [stage for stage in STAGES if stage.name == "relabel"]

    def fail(_block, _run):
        raise KeyError("on purpose")

    monkeypatch.setitem(relabel.__dict__, "process", fail)
    done = axonloom("segment", "--affinities", data / "a.zarr", "--out", copied, *SEGMENT, *SIZE,
                    "--high", 0.8, "--threshold", LOWEST, "--overwrite")  # fmt: skip
    assert done.code == 1
    refused(copied, "stage relabel is not finished")
    # As it would be after a crash just before relabel: its ledger is the old one.
    old = data / f"seg_{LOWEST}" / "ledger" / "relabel.jsonl"
    shutil.copy(old, copied / "ledger" / "relabel.jsonl")
    refused(copied, "run again since with other parameters")


def test_a_lost_chunk(refused, copied):
    chunk = max(p for p in (copied / "fragments.zarr").rglob("c/*/*/*") if p.is_file())
    chunk.unlink()
    refused(copied, "fragments.zarr", "is gone")


def test_what_the_segmentation_was_made_from_may_be_gone(sweep, copied):
    """Terabytes of affinities are the first to be removed."""
    config = copied / "config.yaml"
    config.write_text(config.read_text().replace("a.zarr", "removed.zarr"))
    _, found = sweep(copied, *asked(0.5))
    assert found["rows"][0]["threshold"] == 0.5
    assert Ledger(copied / "ledger" / "collect.jsonl").complete
