"""Files of a segmentation that are lost or damaged: never another result, always what to do."""

import shutil

import numpy as np
import pytest
import zarr

from flows.runs import prepare, run_stages
from pipeline.config import parse_config
from pipeline.errors import InputError, StageError
from pipeline.storage.ledger import Ledger

STAGES = ("fragments", "stitch", "edges", "agglomerate", "collect", "relabel")
RESULTS = ("fragments.zarr", "segments.zarr", "edges", "history", "lookup")


@pytest.fixture(scope="module")
def affinities(tmp_path_factory):
    rng = np.random.default_rng(0)
    field = rng.integers(0, 256, (3, 5, 6, 12)).repeat(4, 1).repeat(4, 2).repeat(4, 3)
    data = np.clip(field + rng.integers(-60, 61, field.shape), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("affinities") / "affinities.zarr"
    zarr.create_array(path, shape=data.shape, dtype=data.dtype)[:] = data
    return path


def prepared(directory, affinities):
    config = parse_config(
        {
            "run_dir": directory,
            "input": {"affinities": affinities},
            "ingest": {"chunk": [16, 16, 16]},
            "segment": {
                "block": [10, 12, 24], "group": [10, 12, 24], "low": 0.3, "high": 0.9,
                "thresholds": [0.5], "min_voxels": 5,
            },
            "execution": {"kind": "serial"},
        }
    )  # fmt: skip
    return prepare(config, only=STAGES)


def run_all(directory, affinities):
    run, stages = prepared(directory, affinities)
    run_stages(run, stages)
    return run


def results(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for name in RESULTS
        for path in sorted((directory / name).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(affinities, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "run"
    return run_all(directory, affinities)


def forget(run, *stages):
    """As if these stages had not begun."""
    for stage in stages:
        run.ledger_file(stage.name).unlink()
        for artifact in stage.writes:
            shutil.rmtree(run.path(artifact), ignore_errors=True)


# What each table is first read by.
TABLES = {
    "block_records": "stitch",
    "stitch": "edges",
    "block_graphs": "agglomerate",
    "merge_runs": "collect",
    "block_lookups": "collect",
    "segment_sizes": "collect",
    "local_fragments": "relabel",
}


@pytest.mark.parametrize("damage", ["lost", "flipped"])
@pytest.mark.parametrize("artifact", TABLES)
def test_a_lost_or_damaged_table_is_named_and_can_be_made_again(
    whole, affinities, tmp_path, artifact, damage
):
    shutil.copytree(whole.directory, tmp_path / "run")
    run, stages = prepared(tmp_path / "run", affinities)
    first = [stage.name for stage in stages].index(TABLES[artifact])
    forget(run, *stages[first:])
    kind = "c/*/*/*" if artifact == "local_fragments" else "*.arrow"
    victims = [p for p in sorted(run.path(artifact).rglob(kind)) if p.is_file()]
    victim = victims[len(victims) // 2]
    if damage == "lost":
        victim.unlink()
    else:
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 4
        victim.write_bytes(content)
    try:
        run_stages(run, stages)
    except StageError as error:
        message = str(error)
        assert str(run.path(artifact)) in message
        assert "To compute stage" in message
        named = message.split("again remove ")[1].split("; then")[0].split("\n")[0]
        for path in named.split(", "):
            assert str(tmp_path / "run") in path
            shutil.rmtree(path) if (tmp_path / path).is_dir() else (tmp_path / path).unlink()
        run, stages = prepared(tmp_path / "run", affinities)
        run_stages(run, stages)
    else:
        assert damage == "flipped", "a file that is gone was not missed"
    assert results(run.directory) == results(whole.directory)


@pytest.mark.parametrize(
    "name",
    [
        "segments.zarr/0/c/0/0/0",
        "edges/edges.arrow",
        "history/history.arrow",
        "lookup/segments.arrow",
    ],
)
def test_a_finished_run_does_not_say_that_it_is_done_without_its_results(
    whole, affinities, tmp_path, name
):
    shutil.copytree(whole.directory, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    run, stages = prepared(tmp_path / "run", affinities)
    with pytest.raises(StageError, match="is gone"):
        run_stages(run, stages)


def test_segments_that_lost_a_chunk_are_no_input(whole, axonloom, tmp_path):
    shutil.copytree(whole.directory, tmp_path / "run")
    segments = tmp_path / "run" / "segments.zarr"
    arguments = (
        "skeletonize", "--segmentation", segments, "--voxel-size", 400, 400, 400, "--serial",
    )  # fmt: skip
    assert axonloom(*arguments, "--out", tmp_path / "whole").code == 0
    (segments / "0/c/0/0/1").unlink()
    done = axonloom(*arguments, "--out", tmp_path / "holed")
    assert done.code == 2
    assert "chunk (0, 0, 1) is gone" in done.err
    assert not (tmp_path / "holed").exists()


def test_segments_of_an_unfinished_run_are_no_input(whole, affinities, tmp_path):
    shutil.copytree(whole.directory, tmp_path / "run")
    ledger = tmp_path / "run" / "ledger" / "relabel.jsonl"
    lines = [line for line in ledger.read_text().splitlines() if "finished" not in line]
    ledger.write_text("\n".join(lines[:-1]) + "\n")
    assert not Ledger(ledger).complete
    config = parse_config(
        {
            "run_dir": tmp_path / "next",
            "input": {
                "segments": tmp_path / "run" / "segments.zarr", "voxel_size_nm": [400, 400, 400],
            },
        }
    )  # fmt: skip
    with pytest.raises(InputError, match="not finished"):
        prepare(config)
