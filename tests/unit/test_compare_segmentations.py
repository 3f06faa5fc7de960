"""The comparison of two scored segmentations: files, messages and the table on the terminal."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.compare_segmentations import compare_segmentations, read_metrics, tell_comparison
from pipeline.arrays.metrics import ScoringOptions, score
from pipeline.arrays.paired import COMPARED
from pipeline.arrays.skeleton import Skeleton
from pipeline.errors import InputError

A = {"a": [1, 1, 1, 2, 2, 0, 9], "b": [3, 3, 9, 9, 9], "c": [4] * 12, "only, a": [7, 7]}
B = {"a": [1, 1, 1, 1, 1, 1, 1], "b": [3, 3, 3, 3, 10], "c": [4] * 6 + [6] * 6}
FILES = {
    "comparison.json", "comparison.csv", "comparison_neurons.csv", "comparison.png",
    "comparison.svg",
}  # fmt: skip


def write_scores(folder: Path, rows: dict[str, list[int]], **options: Any) -> Path:
    skeletons = []
    for name, row in rows.items():
        nodes = np.zeros((len(row), 3))
        nodes[:, 2] = np.arange(len(row))
        index = np.arange(1, len(row))
        skeletons.append(Skeleton(name, nodes, np.stack([index, index - 1], axis=1)))
    labels = [np.array(row, np.uint64) for row in rows.values()]
    scores = score(skeletons, labels, (400.0, 160.0, 80.0), ScoringOptions(**options))
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(scores.as_json()))
    return folder


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return write_scores(tmp_path / "first", A), write_scores(tmp_path / "second", B)


def test_files_of_a_comparison(two, tmp_path):
    done = compare_segmentations(*two, tmp_path / "out" / "deep")
    assert {path.name for path in done.folder.iterdir()} == FILES
    content = json.loads((done.folder / "comparison.json").read_text())
    assert (content["a"], content["b"]) == tuple(map(str, two))
    assert content["neurons"]["only_a"] == ["only, a"]
    assert content["figures"]["nerl"]["a"] == done.comparison.figures["nerl"].a
    assert (done.folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "A: first" in (done.folder / "comparison.svg").read_text()


def test_tables_of_a_comparison(two, tmp_path):
    done = compare_segmentations(*two, tmp_path / "out")
    with (done.folder / "comparison.csv").open() as file:
        figures = {row["figure"]: row for row in csv.DictReader(file)}
    assert tuple(figures) == COMPARED
    nerl = done.comparison.figures["nerl"]
    assert float(figures["nerl"]["difference"]) == nerl.difference
    assert int(figures["nerl"]["neurons_worse"]) == nerl.neurons_worse == 1
    with (done.folder / "comparison_neurons.csv").open() as file:
        neurons = {row["neuron"]: row for row in csv.DictReader(file)}
    assert list(neurons) == ["a", "b", "c"]
    assert neurons["c"]["edges"] == "11"
    assert float(neurons["c"]["nerl_difference"]) == 50 / 121 - 1
    assert neurons["c"]["split_rate_nm_a"] == neurons["c"]["split_rate_nm_difference"] == ""


def test_equal_input_gives_equal_bytes_and_replaces_what_was_there(two, tmp_path):
    first = compare_segmentations(*two, tmp_path / "out", n_resamples=100).folder
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    (first / "comparison.csv").write_text("old")
    files = two[0] / "metrics.json", two[1] / "metrics.json"
    compare_segmentations(*two, first, n_resamples=100)
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    compare_segmentations(*files, first, n_resamples=100)
    assert (first / "comparison.csv").read_bytes() == before["comparison.csv"]
    assert (first / "comparison.png").read_bytes() == before["comparison.png"]


def test_seed_and_resamples_are_handed_on(two, tmp_path):
    done = compare_segmentations(*two, tmp_path / "out", n_resamples=50, seed=8)
    method = json.loads((done.folder / "comparison.json").read_text())["method"]
    assert (method["n_resamples"], method["seed"]) == (50, 8)


def test_what_is_told(two, tmp_path, capsys):
    tell_comparison(compare_segmentations(*two, tmp_path / "out"))
    told = capsys.readouterr().out
    assert "3 neurons in both" in told
    assert "nERL" in told
    assert "95 % interval" in told
    assert "splits 3 in A, 2 in B; merges 1 in A, 0 in B" in told
    assert "note: 1 neuron only in A, not compared: only, a" in told
    assert "comparison.json" in told
    lines = {line.split("  ")[0]: line for line in told.splitlines()}
    assert lines["merged (%)"].rstrip().endswith("1/0/2")
    assert "-9.52" in lines["merged (%)"]


def test_segmentations_of_one_name_are_told_apart(tmp_path):
    a = write_scores(tmp_path / "x" / "run", A)
    b = write_scores(tmp_path / "y" / "run", B)
    done = compare_segmentations(a, b, tmp_path / "out")
    svg = (done.folder / "comparison.svg").read_text()
    assert "A: x/run" in svg
    assert "B: y/run" in svg
    same = compare_segmentations(a, a, tmp_path / "same")
    assert all(figure.p == 1 for figure in same.comparison.figures.values())


def test_folders_without_scores_are_refused(two, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"empty: no metrics\.json in it; expected the result"):
        compare_segmentations(two[0], empty, out)
    with pytest.raises(InputError, match="absent: no such file or folder"):
        compare_segmentations(tmp_path / "absent", two[1], out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n", r"metrics\.json is still empty: the evaluation has not finished"),
        ('{"overall": {', r"metrics\.json: no JSON"),
        ("\xff\xfe", r"metrics\.json: no JSON"),
        ("[1, 2]", r"metrics\.json: no scores of neurons"),
        ('{"voi": 1.5}', r"metrics\.json: no scores of neurons"),
    ],
)
def test_half_written_and_foreign_files_are_refused(text, message, two, tmp_path):
    (two[1] / "metrics.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        compare_segmentations(*two, tmp_path / "out")
    with pytest.raises(InputError, match=message):
        read_metrics(two[1] / "metrics.json")
    assert not (tmp_path / "out").exists()


def test_scores_that_are_not_alike_are_refused_unless_allowed(two, tmp_path):
    other = write_scores(tmp_path / "other", B, merge_min_nodes=4)
    with pytest.raises(InputError, match="merge_tolerance"):
        compare_segmentations(two[0], other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = compare_segmentations(two[0], other, tmp_path / "out", allow_differences=True)
    assert "merge_tolerance" in done.comparison.differing


def test_no_common_neuron_and_a_file_as_folder_are_refused(two, tmp_path):
    other = write_scores(tmp_path / "other", {"z": [1, 1]})
    with pytest.raises(InputError, match="no neuron in common"):
        compare_segmentations(two[0], other, tmp_path / "out")
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="out is a file; expected a folder"):
        compare_segmentations(*two, tmp_path / "out")
