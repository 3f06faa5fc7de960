"""`axonloom run`: what is done is not computed again, what changed is, and nothing else."""

import json
import shutil

import numpy as np
import pytest
import yaml
import zarr

from flows.runs import check, open_stages, prepare, run_stages
from pipeline.arrays.labels import affinities_from_labels
from pipeline.arrays.phantom import grow_neurons, render
from pipeline.arrays.phantom_spec import PhantomSpec
from pipeline.config import load_config
from pipeline.errors import RunLockedError, StageError
from pipeline.geometry import Roi
from pipeline.stages import plan
from pipeline.stages.ingest import PYRAMID
from pipeline.storage.ledger import run_lock
from pipeline.storage.swc import write_swc
from pipeline.storage.volume import Volume
from workers.runner import Order

SPEC = PhantomSpec((32, 48, 64), (1000.0, 400.0, 400.0), 3, 4)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    neurons = grow_neurons(SPEC)
    image, labels = render(SPEC, neurons, Roi((0, 0, 0), SPEC.shape))
    (folder / "swc").mkdir()
    for neuron in neurons:
        path = folder / "swc" / f"{neuron.name}.swc"
        write_swc(path, neuron, voxel_size_nm=SPEC.voxel_size_nm, unit="voxel")
    for name, data in (("image", image), ("affinities", affinities_from_labels(labels))):
        array = zarr.create_array(folder / f"{name}.zarr", shape=data.shape, dtype=data.dtype)
        array[:] = data
    return folder


def values_of(inputs, run_dir):
    return {
        "run_dir": str(run_dir),
        "input": {
            "image": str(inputs / "image.zarr"),
            "affinities": str(inputs / "affinities.zarr"),
            "skeletons": str(inputs / "swc"),
            "voxel_size_nm": list(SPEC.voxel_size_nm),
        },
        "ingest": {"chunk": [32, 32, 32], "levels": 1},
        "segment": {"block": [17, 29, 40], "tune": False, "low": 0.5, "high": 0.9},
        "skeletonize": {"block": [20, 32, 40]},
        "execution": {"kind": "serial"},
    }


def save(path, values):
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """One run that is over; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("finished")
    config = load_config(save(folder / "config.yaml", values_of(inputs, folder / "run")))
    run, stages = prepare(config)
    reports = run_stages(run, stages)
    assert all(report.complete == report.blocks for report in reports)
    return folder / "run"


@pytest.fixture
def run_dir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def run_only(run, stages, *names):
    with open_stages(run, stages) as run_one:
        return [run_one(stage, lambda *_: None) for stage in stages if stage.name in names]


def ledgers(run_dir):
    return {path.stem: path.read_bytes() for path in (run_dir / "ledger").glob("*.jsonl")}


def results(run_dir, *names):
    return {
        str(path.relative_to(run_dir)): path.read_bytes()
        for name in names
        for path in sorted((run_dir / name).rglob("*"))
        if path.is_file()
    }


def test_perfect_affinities_give_perfect_scores(axonloom, inputs, run_dir, tmp_path):
    config = save(tmp_path / "config.yaml", values_of(inputs, run_dir))
    done = axonloom("run", config)
    assert done.code == 0, done.err
    overall = json.loads((run_dir / "metrics.json").read_text())["overall"]
    assert (overall["splits"], overall["merges_total"]) == (0, 0)
    assert overall["nerl"] == pytest.approx(1.0)
    assert "normalized ERL" in done.out
    assert (run_dir / "report.html").stat().st_size > 1000


def test_a_run_that_is_over_computes_nothing(axonloom, inputs, run_dir, tmp_path):
    before = ledgers(run_dir)
    config = save(tmp_path / "config.yaml", values_of(inputs, run_dir))
    done = axonloom("run", config)
    assert done.code == 0, done.err
    assert done.err.count("already done") == len(before) == len(plan(load_config(config)))
    assert ledgers(run_dir) == before
    done = axonloom("run", run_dir / "config.yaml", "--workers", 2)
    assert done.code == 0, "the configuration beside the outputs continues the run"
    assert ledgers(run_dir) == before
    status = axonloom("status", run_dir)
    assert status.code == 0
    assert status.out.count("complete") == len(before)


def test_a_changed_parameter_computes_what_depends_on_it(axonloom, inputs, run_dir, tmp_path):
    before = ledgers(run_dir)
    values = values_of(inputs, run_dir)
    values["segment"]["min_voxels"] = 100
    done = axonloom("run", save(tmp_path / "config.yaml", values))
    assert done.code == 0, done.err
    after = ledgers(run_dir)
    kept = {name for name in before if after[name] == before[name]}
    assert kept == {
        "ingest", "statistics", "pyramid", "placement", "fragments", "stitch", "edges",
        "agglomerate", "baseline",
    }  # fmt: skip


def test_a_changed_block_gives_the_same_files(axonloom, inputs, run_dir, tmp_path):
    names = ("fragments.zarr", "segments.zarr", "edges", "history", "lookup", "image.zarr")
    before = results(run_dir, *names)
    values = values_of(inputs, run_dir)
    values["segment"]["block"] = [32, 16, 23]
    done = axonloom("run", save(tmp_path / "config.yaml", values))
    assert done.code == 0, done.err
    assert results(run_dir, *names) == before
    scores = json.loads((run_dir / "metrics.json").read_text())
    assert scores["overall"]["splits"] == 0


def test_what_lay_inside_a_replaced_output_is_made_again(inputs, run_dir, tmp_path):
    """The pyramid lies in the image. Another image begins, is given up, and the first returns."""
    level = Volume.open(run_dir / "image.zarr").level(1)
    expected = level.read(level.roi)
    assert expected.any()
    values = values_of(inputs, run_dir)
    other = values | {"input": values["input"] | {"voxel_size_nm": [900.0, 400.0, 400.0]}}
    run, stages = prepare(load_config(save(tmp_path / "other.yaml", other)))
    run_only(run, stages, "ingest")
    run, stages = prepare(load_config(save(tmp_path / "config.yaml", values)))
    run_stages(run, stages)
    level = Volume.open(run_dir / "image.zarr").level(1)
    np.testing.assert_array_equal(level.read(level.roi), expected)
    assert run.ledger(PYRAMID.name).complete
    assert (run_dir / "precomputed" / "skeletons" / "info").exists()


def test_one_stage_is_not_run_on_the_output_of_other_parameters(inputs, run_dir, tmp_path):
    values = values_of(inputs, run_dir)
    values["segment"]["low"] = 0.6
    run, stages = prepare(load_config(save(tmp_path / "config.yaml", values)))
    with pytest.raises(StageError, match="stage fragments holds the output of other parameters"):
        run_only(run, stages, "stitch")
    run_only(run, stages, "fragments", "stitch")


def test_a_stage_without_its_input_is_refused(inputs, tmp_path):
    config = load_config(save(tmp_path / "config.yaml", values_of(inputs, tmp_path / "run")))
    run, stages = prepare(config)
    with pytest.raises(StageError, match="stage fragments is incomplete: 0 of 8 blocks"):
        run_only(run, stages, "stitch")


def test_checking_writes_nothing(inputs, tmp_path):
    config = load_config(save(tmp_path / "config.yaml", values_of(inputs, tmp_path / "run")))
    check(config, plan(config), replace_output=False)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_second_writer_changes_nothing(axonloom, inputs, run_dir, tmp_path):
    before = (run_dir / "config.yaml").read_bytes()
    values = values_of(inputs, run_dir) | {"name": "another"}
    with run_lock(run_dir / "ledger"):
        done = axonloom("run", save(tmp_path / "config.yaml", values))
    assert done.code == 1
    assert "is writing to this run" in done.err
    assert (run_dir / "config.yaml").read_bytes() == before
    with run_lock(run_dir / "ledger"), pytest.raises(RunLockedError):
        prepare(load_config(tmp_path / "config.yaml"))


def test_the_order_of_blocks_does_not_show(inputs, finished, tmp_path):
    run, stages = prepare(
        load_config(save(tmp_path / "config.yaml", values_of(inputs, tmp_path / "run")))
    )
    run_stages(run, stages, order=Order("shuffled", 5))
    names = [path.name for path in finished.iterdir()]
    names = [name for name in names if name not in ("ledger", "config.yaml", "report.html")]
    assert len(names) > 10
    for name in names:
        path = finished / name
        if path.is_file():
            assert (tmp_path / "run" / name).read_bytes() == path.read_bytes(), name
        else:
            assert results(run.directory, name) == results(finished, name), name


def test_a_run_that_was_moved_goes_on_where_it_is(axonloom, inputs, run_dir, finished):
    before = ledgers(run_dir)
    for target in (run_dir / "config.yaml", run_dir):
        done = axonloom("run", target)
        assert done.code == 0, done.err
        assert ledgers(run_dir) == before
    assert not (run_dir / "run").exists()


def test_a_lost_chunk_is_an_error_and_not_zeros(axonloom, inputs, run_dir, tmp_path):
    values = values_of(inputs, run_dir)
    lost = next(path for path in (run_dir / "image.zarr/0/c").rglob("*") if path.is_file())
    content = lost.read_bytes()
    lost.unlink()
    values["ingest"]["low_percentile"] = 2.0
    del values["input"]["affinities"], values["input"]["skeletons"]
    # The statistics come from tables; the pyramid of the changed number of levels needs voxels.
    values["ingest"]["levels"] = 2
    config = save(tmp_path / "config.yaml", values)
    done = axonloom("run", config)
    assert done.code == 1
    assert "image.zarr: chunk (" in done.err
    assert "is gone" in done.err
    assert "ledger/ingest.jsonl" in done.err
    lost.write_bytes(content)
    done = axonloom("run", config)
    assert done.code == 0, done.err


def test_another_number_of_levels_computes_the_pyramid_alone(axonloom, inputs, run_dir, tmp_path):
    before = ledgers(run_dir)
    values = values_of(inputs, run_dir)
    values["ingest"]["levels"] = 0
    assert axonloom("run", save(tmp_path / "a.yaml", values)).code == 0
    assert not (run_dir / "image.zarr" / "1").exists()
    after = ledgers(run_dir)
    assert {name for name in before if before[name] != after[name]} == {"pyramid"}
    assert axonloom("run", save(tmp_path / "b.yaml", values_of(inputs, run_dir))).code == 0
    levels = json.loads((run_dir / "image.zarr/zarr.json").read_text())
    assert len(levels["attributes"]["ome"]["multiscales"][0]["datasets"]) == 2
    volume = Volume.open(run_dir / "image.zarr").level(1)
    assert volume.read(volume.roi).any()


def test_scores_of_an_earlier_configuration_are_not_shown(axonloom, inputs, run_dir, tmp_path):
    values = values_of(inputs, run_dir)
    del values["input"]["skeletons"]
    done = axonloom("run", save(tmp_path / "config.yaml", values))
    assert done.code == 0, done.err
    assert "normalized ERL" not in done.out
    assert "nERL" not in done.out
    report = (run_dir / "report.html").read_text()
    assert "neuron_001" not in report


def test_a_network_is_not_used_on_images_made_otherwise(axonloom, inputs, tmp_path):
    from pipeline.learning.checkpoint import save_model
    from pipeline.learning.model import UNet
    from pipeline.learning.settings import NetworkSettings, TrainSettings

    network = UNet(NetworkSettings(width=2, levels=2))
    save_model(tmp_path / "net", network, TrainSettings(), {}, normalisation="something else")
    given = ["--image", inputs / "image.zarr", "--voxel-size", 1000, 400, 400]
    done = axonloom(
        "predict", *given, "--checkpoint", tmp_path / "net", "--out", tmp_path / "o", "--serial"
    )
    assert done.code == 2
    assert "in which something else" in done.err
    assert not (tmp_path / "o").exists()
