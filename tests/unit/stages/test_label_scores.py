"""Scores against dense labels in a run, and thresholds that are chosen by them."""

import json
from itertools import product

import numpy as np
import pytest

from flows.launch import print_label_scores
from flows.runs import check, prepare, run_stages
from pipeline.arrays.agglomerate import agglomerate, fragment_to_segment
from pipeline.arrays.contingency import count_contingency, score_contingency
from pipeline.arrays.labels import IGNORE, affinities_from_labels
from pipeline.arrays.relabel import apply_lookup
from pipeline.config import load_config, parse_config
from pipeline.errors import ConfigError, DtypeError, InputError, ShapeError
from pipeline.report.facts import LabelScoreFacts
from pipeline.report.score_tables import label_score_rows
from pipeline.stages import plan
from pipeline.stages.candidates import segment_array
from pipeline.stages.dense_truth import holds_truth
from pipeline.stages.run import Run
from pipeline.stages.tune import THRESHOLDS
from pipeline.storage.source import read_labels
from workers.runner import Order

SHAPE = (12, 20, 30)
SCORE = {"begin": [2, 3, 5], "end": [11, 17, 30]}
BOX = (slice(2, 11), slice(3, 17), slice(5, 30))
STAGES = ("label_overlap", "reference_overlap", "label_scores")


def objects():
    """Boxes of 4 x 5 x 6 voxels, each a label of its own, two planes of background."""
    z, y, x = np.indices(SHAPE)
    labels = 1 + z // 4 * 100 + y // 5 * 10 + x // 6
    labels[:, :, 14:16] = 0
    return labels.astype(np.uint64)


@pytest.fixture
def volumes(tmp_path):
    """One archive of all: truth, segments that split and merge it, and noisy affinities."""
    truth = objects()
    rng = np.random.default_rng(0)
    segments = truth.copy()
    segments[truth == 11] = 1
    segments[:, 8, :] += np.uint64(1000)
    other = np.where(rng.random(SHAPE) < 0.1, 0, truth)
    perfect = affinities_from_labels(truth)
    noise = rng.integers(0, 120, perfect.shape)
    affinities = np.where(perfect > 0, 255 - noise, noise).astype(np.uint8)
    signed = truth.astype(np.int64)
    signed[truth == 1] = -1
    np.savez(
        tmp_path / "v.npz",
        truth=truth,
        segments=segments,
        other=other,
        signed=signed,
        small=truth[1:],
        real=truth.astype(np.float32),
        nothing=np.zeros(SHAPE, np.uint8),
        image=rng.integers(0, 255, SHAPE, np.uint8),
    )
    import zarr

    array = zarr.create_array(tmp_path / "a.zarr", shape=affinities.shape, dtype=np.uint8)
    array[:] = affinities
    return tmp_path, truth, segments, other, affinities


def values(folder, chunk=8, **given):
    return {
        "run_dir": str(folder / "run"),
        "input": {
            "segments": str(folder / "v.npz/segments"),
            "labels": str(folder / "v.npz/truth"),
            "voxel_size_nm": [9, 9, 9],
            **given,
        },
        "regions": {"score": SCORE},
        "ingest": {"chunk": [chunk] * 3},
        "evaluate": {"compare_segments": str(folder / "v.npz/other")},
        "execution": {"kind": "serial"},
    }


def scored(config, only=STAGES, order=None):
    run, stages = prepare(parse_config(config), only=only)
    run_stages(run, stages, order=order)
    return run, json.loads(run.path("label_scores").read_text())


def direct(segments, truth):
    """The scores of two arrays at once."""
    known = truth != IGNORE
    found, wanted = segments[known] != 0, truth[known] != 0
    return {
        **score_contingency(count_contingency(segments, truth)),
        "accuracy": np.mean(found == wanted),
        "dice": 2 * np.sum(found & wanted) / (np.sum(found) + np.sum(wanted)),
        "background_voxels": np.sum(~wanted),
    }


def test_the_scores_are_those_of_the_region_at_once(volumes):
    folder, truth, segments, other, _ = volumes
    _, found = scored(values(folder))
    assert found["segments"] == direct(segments[BOX], truth[BOX])
    assert found["reference"] == direct(other[BOX], truth[BOX])
    assert found["segments"]["voi_merge"] > 0
    assert found["segments"]["voi_split"] > 0
    assert found["reference"]["omitted_voxels"] > 0
    assert "bits" in found["conventions"]["voi"]


def test_blocks_and_their_order_do_not_show(volumes, monkeypatch):
    from pipeline.stages import relabel

    folder = volumes[0]
    texts = set()
    for extent in (4, 8, 16, 256):
        monkeypatch.setattr(relabel, "_OUTPUT_EXTENT", extent)
        config = values(folder, chunk=4) | {"run_dir": str(folder / f"run{extent}")}
        run, _ = scored(config, order=Order("shuffled", extent))
        blocks = len([b for b in run.ledger("label_overlap").marks.values() if b.state == "done"])
        assert (blocks > 1) == (extent < 256)
        texts.add(run.path("label_scores").read_text())
    assert len(texts) == 1


def test_ignored_labels_and_other_background_are_left_out(volumes):
    folder, truth, segments, _, _ = volumes
    config = values(folder, labels=str(folder / "v.npz/signed"))
    config["targets"] = {"ignore_labels": [-1, 212], "background_labels": [103]}
    _, found = scored(config)
    known = truth.copy()
    known[np.isin(truth, [1, 212])] = IGNORE
    known[truth == 103] = 0
    assert found["segments"] == direct(segments[BOX], known[BOX])


def test_labels_to_learn_from_alone_score_nothing_and_say_so(volumes, capsys):
    folder = volumes[0]
    run, found = scored(values(folder, labels=str(folder / "v.npz/nothing")))
    assert found["segments"] is None
    assert found["reference"] is None
    print_label_scores(run.directory)
    assert "no labelled voxel in [2:11, 3:17, 5:30]" in capsys.readouterr().out


def test_what_runs(volumes):
    folder = volumes[0]

    def planned(**given):
        config = values(folder, **given)
        if given.get("labels", True) is None:
            config["evaluate"] = {}
        return [stage.name for stage in plan(parse_config(config)) if stage.name in STAGES]

    assert planned() == list(STAGES)
    assert planned(labels=None) == []
    config = values(folder)
    config["evaluate"] = {}
    names = [stage.name for stage in plan(parse_config(config))]
    assert "label_scores" in names
    assert "reference_overlap" not in names
    assert "tune" not in names, "segments are given"


@pytest.mark.parametrize(
    ("member", "error", "message"),
    [
        ("small", ShapeError, r"v\.npz/small: labels of shape \(11, 20, 30\), but the volume has"),
        ("real", DtypeError, r"v\.npz/real: labels must be integers, got float32"),
        ("absent", InputError, "no array named 'absent'"),
    ],
)
@pytest.mark.parametrize("which", ["labels", "compare"])
def test_unusable_labels_are_refused_before_anything_runs(volumes, member, error, message, which):
    folder = volumes[0]
    path = str(folder / "v.npz" / member)
    config = values(folder, **({"labels": path} if which == "labels" else {}))
    if which == "compare":
        config["evaluate"]["compare_segments"] = path
    with pytest.raises(error, match=message):
        scored(config)
    assert not (folder / "run").exists()


def test_a_reference_needs_labels(volumes):
    with pytest.raises(ConfigError, match=r"compare_segments needs input\.labels"):
        parse_config(values(volumes[0], labels=None))


def test_a_reference_that_the_run_would_write_is_refused(volumes):
    folder = volumes[0]
    given = {"affinities": str(folder / "a.zarr"), "segments": None}
    config = values(folder, **given)
    config["evaluate"]["compare_segments"] = str(folder / "run" / "segments.zarr")
    parsed = parse_config(config)
    (folder / "run" / "segments.zarr").mkdir(parents=True)
    with pytest.raises(InputError, match=r"evaluate\.compare_segments .* lie in one another"):
        check(parsed, [s for s in plan(parsed) if s.name == "relabel"], replace_output=True)


def test_paths_are_relative_to_the_configuration(tmp_path):
    text = "input: {labels: d/v.npz/truth}\nevaluate: {compare_segments: ../v.npz/other}\n"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "v.npz").write_bytes(b"")
    (tmp_path / "v.npz").write_bytes(b"")
    (tmp_path / "in" / "c.yaml").write_text(text)
    config = load_config(tmp_path / "in" / "c.yaml")
    assert config.input.labels == tmp_path / "in" / "d" / "v.npz" / "truth"
    assert config.evaluate.compare_segments == tmp_path / "v.npz" / "other"


def test_the_terminal_shows_both(volumes, capsys):
    run, found = scored(values(volumes[0]))
    print_label_scores(run.directory)
    text = capsys.readouterr().out
    assert "this run" in text
    assert "reference" in text
    for name in ("voi", "voi_split", "voi_merge", "ari", "adapted_rand_error"):
        for column in ("segments", "reference"):
            assert f"{found[column][name]:,.4g}" in text


def test_the_rows_of_the_report():
    facts = LabelScoreFacts({"voi": 1.25, "ari": 0.5, "voxels": 7}, {"voi": 1.5, "ari": 0.75})
    rows = {row["name"]: row for row in label_score_rows(facts)}
    assert rows["VOI"]["run"] == "1.250"
    assert rows["VOI"]["baseline"] == "1.500"
    assert rows["VOI"]["verdict"] == "better"
    assert rows["Adjusted Rand index"]["verdict"] == "worse"
    assert rows["Labelled voxels"]["verdict"] == ""


# --- thresholds chosen by labels


def tuned(folder, box, **more):
    config = values(folder, affinities=str(folder / "a.zarr"), segments=None)
    begin, end = [s.start for s in box], [s.stop for s in box]
    config["regions"] = {"validation": {"begin": begin, "end": end}, **more}
    run, stages = prepare(parse_config(config), only=["tune"])
    run_stages(run, stages)
    return json.loads(run.path("tuning").read_text())


def test_the_choice_has_the_lowest_voi_of_all(volumes):
    folder, truth, _, _, affinities = volumes
    box = (slice(0, 6), slice(0, 20), slice(0, 30))
    found = tuned(folder, box)
    best = None
    lows = sorted({row["low"] for row in found["candidates"]})
    highs = sorted({row["high"] for row in found["candidates"]})
    for low, high in product(lows, highs):
        fragments, edges = segment_array(affinities[(slice(None), *box)], low, high)
        history = agglomerate(edges, min(THRESHOLDS), 255)
        for threshold in THRESHOLDS:
            labels = apply_lookup(fragments, *fragment_to_segment(history, threshold))
            voi = direct(labels, truth[box])["voi"]
            rank = (-round(voi, 9), threshold, low, high)
            best = rank if best is None else max(best, rank)
    assert found["metric"] == "voi"
    assert (found["threshold"], found["low"], found["high"]) == best[1:]
    assert found["voi"] == pytest.approx(-best[0], abs=1e-9)
    assert len(found["candidates"]) == len(lows) * len(highs) * len(THRESHOLDS)
    assert "baseline" not in found
    vois = {round(row["voi"], 6) for row in found["candidates"]}
    assert len(vois) > 10, "there is something to choose between"


def test_what_lies_outside_the_validation_region_does_not_matter(volumes):
    folder, truth, _, _, _ = volumes
    box = (slice(0, 6), slice(0, 20), slice(0, 30))
    before = tuned(folder, box)
    with np.load(folder / "v.npz") as members:
        arrays = dict(members)
    arrays["truth"] = truth.copy()
    arrays["truth"][6:] = 7
    np.savez(folder / "v.npz", **arrays)
    assert tuned(folder, box, score=SCORE) == before


def test_the_validation_region_is_that_of_training_unless_named(volumes):
    config = values(volumes[0])
    run = Run(volumes[0] / "run", parse_config(config))
    assert run.validate_roi == run.roi
    config["regions"] = {"train": {"begin": [0, 0, 0], "end": [4, 4, 4]}}
    run = Run(volumes[0] / "run", parse_config(config))
    assert run.validate_roi == run.train_roi
    config["regions"]["validation"] = {"begin": [4, 0, 0], "end": [5, 4, 4]}
    run = Run(volumes[0] / "run", parse_config(config))
    assert run.validate_roi.offset == (4, 0, 0)
    config["regions"]["validation"]["end"] = [99, 4, 4]
    run = Run(volumes[0] / "run", parse_config(config))
    with pytest.raises(InputError, match=r"regions\.validation .* leaves the volume"):
        _ = run.validate_roi


def test_a_region_without_labels_chooses_nothing(volumes):
    folder = volumes[0]
    with pytest.raises(InputError, match=r"v\.npz/truth: segment\.tune needs labels"):
        tuned(folder, (slice(0, 12), slice(0, 20), slice(14, 16)))
    assert not (folder / "run").exists()


def test_a_single_labelled_voxel_is_found(volumes, monkeypatch):
    from pipeline.stages import dense_truth

    folder = volumes[0]
    labels = np.zeros(SHAPE, np.uint8)
    labels[11, 19, 29] = 3
    np.savez(folder / "one.npz", labels=labels)
    run = Run(folder / "run", parse_config(values(folder, labels=str(folder / "one.npz/labels"))))
    for voxels in (1, 1300, 10**9):
        monkeypatch.setattr(dense_truth, "_SLAB_VOXELS", voxels)
        assert holds_truth(run, run.roi)
    np.savez(folder / "one.npz", labels=np.where(labels, 0, labels))
    assert not holds_truth(run, run.roi)


def test_the_segmentation_that_was_chosen_is_the_one_that_is_scored(volumes):
    """Affinities and labels in, chosen thresholds and scores out."""
    folder, truth, _, _, _ = volumes
    config = values(folder, affinities=str(folder / "a.zarr"), segments=None)
    config["regions"] = {"validation": {"begin": [0, 0, 0], "end": [6, 20, 30]}, "score": SCORE}
    config["segment"] = {"block": [8, 8, 8]}
    names = [stage.name for stage in plan(parse_config(config))]
    only = names[: names.index("relabel") + 1] + list(STAGES)
    run, found = scored(config, only=only)
    segments = read_labels(run.path("segments"), run.roi)
    assert found["segments"] == direct(segments[BOX], truth[BOX])
    assert found["segments"]["voi"] < 0.5
