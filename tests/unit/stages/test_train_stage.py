"""The train stage on a phantom: several processes, validation, another network to start from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zarr

from flows.runs import prepare, run_stages
from pipeline.arrays.labels import affinities_from_labels
from pipeline.arrays.phantom import grow_neurons, render
from pipeline.arrays.phantom_spec import PhantomSpec
from pipeline.config import parse_config
from pipeline.errors import ConfigError, InputError, StageError
from pipeline.geometry import Roi
from pipeline.learning.checkpoint import load_model, save_model
from pipeline.learning.distributed import Group
from pipeline.learning.model import UNet, initialise
from pipeline.learning.settings import TrainSettings
from pipeline.learning.state import state_facts
from pipeline.stages import plan, validate
from pipeline.stages.ingest import normalisation_note
from pipeline.stages.keys import stage_keys
from pipeline.stages.run import Run
from pipeline.stages.train_process import LOG, main
from pipeline.stages.validate import Validation, validation_truth
from pipeline.storage.swc import write_swc

SPEC = PhantomSpec((32, 48, 64), (1000.0, 400.0, 400.0), 3, 3)
BEFORE = ("ingest", "statistics", "pyramid", "targets", "train")
Values = dict[str, Any]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    neurons = grow_neurons(SPEC)
    image, labels = render(SPEC, neurons, Roi((0, 0, 0), SPEC.shape))
    (folder / "swc").mkdir()
    for neuron in neurons:
        path = folder / "swc" / f"{neuron.name}.swc"
        write_swc(path, neuron, voxel_size_nm=SPEC.voxel_size_nm, unit="voxel")
    for name, data in (("image", image), ("labels", labels)):
        array = zarr.create_array(folder / f"{name}.zarr", shape=data.shape, dtype=data.dtype)
        array[:] = data
    return folder


def values_of(inputs: Path, run_dir: Path, **train: Any) -> Values:
    return {
        "run_dir": str(run_dir),
        "input": {
            "image": str(inputs / "image.zarr"),
            "labels": str(inputs / "labels.zarr"),
            "voxel_size_nm": list(SPEC.voxel_size_nm),
        },
        "ingest": {"chunk": [32, 32, 32], "block": [32, 32, 32], "levels": 0},
        "network": {"width": 2, "levels": 2, "pool": [[1, 2, 2]]},
        "train": {
            "patch": [8, 16, 16], "batch": 2, "pretrain_steps": 4, "finetune_steps": 2,
            "warmup_steps": 2, "precision": "fp32", "threads": 1, "checkpoint_every_steps": 2,
            "tensorboard": False, "device": "cpu", **train,
        },
        "predict": {"tile": [16, 32, 32], "context": [4, 8, 8], "device": "cpu"},
        "execution": {"kind": "serial"},
    }  # fmt: skip


def go(values: Values, *only: str) -> Run:
    run, stages = prepare(parse_config(values), only=only or BEFORE)
    run_stages(run, stages)
    return run


def records(run: Run, name: str = "log.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path("checkpoint") / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def single(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return go(values_of(inputs, tmp_path_factory.mktemp("single") / "run"))


# --- several processes


@pytest.fixture(scope="module")
def double(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return go(values_of(inputs, tmp_path_factory.mktemp("double") / "run", processes=2))


@pytest.mark.slow
def test_two_processes_do_what_one_does(single: Run, double: Run) -> None:
    """In float32 they differ by rounding alone, which six steps let grow to less than 1e-4."""
    ours, theirs = records(double), records(single)
    assert [r["step"] for r in ours] == list(range(6))
    for name in ("loss", "voxel_loss", "gradient_norm", "lr"):
        found = [r[name] for r in ours]
        np.testing.assert_allclose(found, [r[name] for r in theirs], rtol=1e-4)
    a, b = (load_model(run.path("checkpoint")).model.state_dict() for run in (double, single))
    for name, value in a.items():
        np.testing.assert_allclose(value, b[name], rtol=1e-3, atol=1e-5, err_msg=name)
    assert not list(double.path("checkpoint").glob(".*"))


# One of two processes; both give up in their fourth step.
STOPPED = """
import os, sys
from datetime import timedelta
from pathlib import Path
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
from torch import distributed
from pipeline.learning.training import Training
from pipeline.stages.run import Run
from pipeline.stages.train import train_run

rank, store, run_directory, folder = sys.argv[1:]
distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=int(rank), world_size=2,
    timeout=timedelta(seconds=300),
)
counted = Training.count_step

def count_step(self):
    counted(self)
    if self.step == 4:
        os._exit(7)

Training.count_step = count_step
train_run(Run(Path(run_directory)), Path(folder))
"""


@pytest.mark.slow
def test_processes_that_a_user_starts_resume_to_the_same_bytes(double: Run, tmp_path: Path) -> None:
    """They find a state of step 2, and a log that ran ahead of it."""
    folder = tmp_path / "halves"
    places = [str(tmp_path / "store"), str(double.directory), str(folder)]
    root = Path(__file__).parents[3]
    started = [
        subprocess.Popen([sys.executable, "-c", STOPPED, str(rank), *places], cwd=root)
        for rank in range(2)
    ]
    assert [process.wait() for process in started] == [7, 7]
    assert len((folder / "log.jsonl").read_text().splitlines()) == 3
    assert state_facts(folder)["step"] == 2
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
        "--nproc-per-node", "2", "-m", "pipeline.stages.train_process", *places[1:],
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, cwd=root, stdin=subprocess.DEVNULL)
    assert done.returncode == 0
    for name in ("model.safetensors", "model.json", "log.jsonl"):
        expected = (double.path("checkpoint") / name).read_bytes()
        assert (folder / name).read_bytes() == expected, name


def test_a_batch_that_cannot_be_shared_is_refused(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch 3 .* processes 2"):
        parse_config(values_of(inputs, tmp_path, processes=2, batch=3))


@pytest.mark.slow
def test_a_failing_process_is_told_with_the_end_of_its_log(inputs: Path, tmp_path: Path) -> None:
    values = values_of(inputs, tmp_path / "run", processes=2, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(
        StageError, match=r"training with 2 processes failed: DataError: "
    ) as caught:
        go(values)
    assert "sample 1: volume 0" in str(caught.value) or "not finite" in str(caught.value)
    assert LOG in str(caught.value)
    assert not (tmp_path / "run" / "checkpoint" / "model.json").exists()


def test_another_number_of_processes_is_refused() -> None:
    with pytest.raises(InputError, match=r"train.processes is 2, but 1 were started"):
        Group.of(TrainSettings(processes=2))


DRIVER = """
import sys
from pathlib import Path
from pipeline.stages.run import Run
from pipeline.stages.train_process import train_in_processes
train_in_processes(Run(Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(inputs: Path, tmp_path: Path) -> None:
    values = values_of(inputs, tmp_path / "run", processes=2, pretrain_steps=10**6)
    run = go(values, *BEFORE[:-1])
    root = Path(__file__).parents[3]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(run.directory)], cwd=root)
    log = run.path("checkpoint") / "log.jsonl"
    try:
        wait_for(lambda: log.exists() and log.stat().st_size > 0)
        children = psutil.Process(driver.pid).children(recursive=True)
        assert len(children) >= 3
    finally:
        driver.kill()
        driver.wait()
    wait_for(lambda: not any(is_alive(child) for child in children))


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(true: Any) -> None:
    for _ in range(1200):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def test_the_module_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["only one"]) == 2
    assert "torchrun --nnodes" in capsys.readouterr().err


# --- validation


def test_the_best_network_becomes_the_result(inputs: Path, tmp_path: Path) -> None:
    values = values_of(inputs, tmp_path / "run", validate_every_steps=2, tensorboard=True)
    run = go(values)
    found = records(run, "validation.jsonl")
    assert [r["step"] for r in found] == [1, 3, 5]
    names = "step score low high threshold nerl splits merges_total pct_omit edge_accuracy best"
    assert all(set(r) == set(names.split()) for r in found)
    best = max(found, key=lambda r: (r["score"], r["step"]))
    note = load_model(run.path("checkpoint")).note
    assert note["facts"]["chosen"] == {"step": best["step"], "score": best["score"]}
    assert note["voxel_size_nm"] == list(SPEC.voxel_size_nm)
    assert note["config"]["train"]["validate_every_steps"] == 2
    assert "run_dir" not in note["config"]


def test_a_network_is_judged_by_the_region_alone(inputs: Path, tmp_path: Path) -> None:
    """By labels first, which are drawn as centre lines; then by the tracings."""
    values = values_of(inputs, tmp_path / "run", validate_every_steps=2)
    values["regions"] = {"validation": {"begin": [0, 0, 0], "end": [32, 48, 32]}}
    run = go(values, *BEFORE[:3])
    lines = validation_truth(run)
    assert len(lines) > 0
    labels = zarr.open_array(inputs / "labels.zarr")[:]
    for line in lines:
        at = np.floor(line.nodes).astype(int)
        assert at[:, 2].max() < 32
        assert (labels[tuple(at.T)] == int(line.name)).all()
    network = UNet(run.config.network)
    initialise(network, 0)
    judge = Validation(run)
    first = judge(network)
    assert 0 <= first["score"] <= 1
    assert judge(network) == first
    values["input"]["skeletons"] = str(inputs / "swc")
    traced = go(values, *BEFORE[:3])
    names = {line.name for line in validation_truth(traced)}
    assert names <= {path.stem for path in (inputs / "swc").iterdir()}


def test_perfect_affinities_score_one(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = values_of(inputs, tmp_path / "run", validate_every_steps=2)
    values["input"]["skeletons"] = str(inputs / "swc")
    run = go(values, *BEFORE[:3])
    labels = zarr.open_array(inputs / "labels.zarr")[:]
    monkeypatch.setattr(
        validate, "predict_tissue", lambda *_: affinities_from_labels(labels.astype(np.uint64))
    )
    found = Validation(run)(UNet(run.config.network))
    assert found["score"] == pytest.approx(1.0)
    assert (found["threshold"], found["low"], found["high"]) == (0.8, 0.7, 0.98)


def test_a_region_without_truth_is_refused_before_anything_is_computed(
    inputs: Path, tmp_path: Path
) -> None:
    values = values_of(inputs, tmp_path / "run", validate_every_steps=2)
    labels = zarr.open_array(inputs / "labels.zarr")[:]
    empty = np.argwhere(labels == 0)[0].tolist()
    values["regions"] = {"validation": {"begin": empty, "end": [n + 1 for n in empty]}}
    with pytest.raises(InputError, match=r"labels.zarr: no voxel in the validation region"):
        go(values)
    values["input"]["skeletons"] = str(inputs / "swc")
    with pytest.raises(InputError, match=r"swc: .*holds no node.*train.validate_every_steps to 0"):
        go(values)
    assert not (tmp_path / "run").exists()


# --- beginning with another network


def saved_network(
    folder: Path, run: Run, seed: int = 5, note: str | None = None, **network: Any
) -> Path:
    model = UNet(run.config.network.model_copy(update=network))
    initialise(model, seed)
    save_model(
        folder, model, TrainSettings(), {}, normalisation=note or normalisation_note(run),
        voxel_size_nm=run.voxel_size_nm,
    )  # fmt: skip
    return folder


def test_training_begins_with_the_weights_given(single: Run, inputs: Path, tmp_path: Path) -> None:
    start = saved_network(tmp_path / "start", single)
    values = values_of(inputs, tmp_path / "run", learning_rate=1e-9, weight_decay=0)
    values["input"]["start_from"] = str(start)
    run = go(values)
    found, given = (load_model(p).model.state_dict() for p in (run.path("checkpoint"), start))
    for name, value in found.items():
        np.testing.assert_allclose(value, given[name], atol=1e-6)
    before = stage_keys(run, plan(run.config))["train"].key
    saved_network(start, single, seed=6)
    assert stage_keys(run, plan(run.config))["train"].key != before


@pytest.mark.parametrize(
    ("changes", "voxels", "message"),
    [
        ({}, None, r"trained on images in which percentiles 2.0 and .*; in this run percentiles 1"),
        ({"width": 4}, 1.0, r"network.width is 4 there, 2 here"),
        ({"output": "foreground"}, 1.0, r"network.output is 'foreground' there, 'affinities' here"),
        ({}, 1.6, r"along y they differ by a factor of 1.6, more than 1.5"),
    ],
)
def test_another_network_to_start_from_is_refused(
    single: Run, inputs: Path, tmp_path: Path, changes: Values, voxels: float | None, message: str
) -> None:
    other = None if voxels else normalisation_note(single).replace("1.0", "2.0")
    start = saved_network(tmp_path / "start", single, note=other, **changes)
    values = values_of(inputs, tmp_path / "run")
    values["input"] |= {"start_from": str(start), "voxel_size_nm": [1000, 400 * (voxels or 1), 400]}
    with pytest.raises(
        InputError, match=f"start: this network cannot be used to start from.*{message}"
    ):
        go(values)
    assert not (tmp_path / "run").exists()


def test_a_start_for_no_training_is_refused(inputs: Path, tmp_path: Path) -> None:
    values = values_of(inputs, tmp_path / "run")
    values["input"] |= {"start_from": "a", "checkpoint": "b"}
    with pytest.raises(ConfigError, match="give one"):
        parse_config(values)


# --- networks that do not suit the image, and those of other kinds


def test_a_network_of_other_voxels_is_refused_by_predict(
    single: Run, inputs: Path, tmp_path: Path
) -> None:
    values = values_of(inputs, tmp_path / "run")
    values["input"] |= {"checkpoint": str(single.path("checkpoint")), "voxel_size_nm": [300] * 3}
    with pytest.raises(
        InputError, match=r"on this image: its voxels were \(1000.0, 400.0, 400.0\)"
    ):
        go(values, "ingest", "statistics", "predict")


def test_a_network_of_volumes_is_refused_on_a_plane(
    single: Run, inputs: Path, tmp_path: Path
) -> None:
    plane = zarr.create_array(tmp_path / "plane.zarr", shape=(1, 48, 64), dtype=np.uint16)
    plane[:] = zarr.open_array(inputs / "image.zarr")[16:17]
    values = values_of(inputs, tmp_path / "run")
    values["input"] = {
        "image": str(tmp_path / "plane.zarr"), "voxel_size_nm": list(SPEC.voxel_size_nm),
        "checkpoint": str(single.path("checkpoint")),
    }  # fmt: skip
    with pytest.raises(
        InputError, match=r"network.dimensions is 3 there, .* the image is one plan"
    ):
        go(values, "ingest", "statistics", "predict")


def test_a_network_of_another_kind_than_asked_for_is_refused_by_predict(
    single: Run, inputs: Path, tmp_path: Path
) -> None:
    values = values_of(inputs, tmp_path / "run")
    values["input"] |= {"checkpoint": str(single.path("checkpoint"))}
    values["network"]["output"] = "foreground"
    with pytest.raises(InputError, match=r"has network.output: affinities, .* asks for foreground"):
        go(values, "ingest", "statistics", "predict")


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("output", ["affinities", "foreground"])
def test_networks_of_every_kind_are_trained_and_used(
    inputs: Path, tmp_path: Path, output: str, dimensions: int
) -> None:
    values = values_of(inputs, tmp_path / "run", pretrain_steps=1, finetune_steps=1)
    values["train"]["loss"] = {"finetune": "ce"}
    values["network"] |= {"output": output, "dimensions": dimensions}
    if dimensions == 2:
        values["network"] |= {"kernel": [1, 3, 3]}
        with pytest.raises(InputError, match=r"set train.patch to \[1, 16, 16\]"):
            go(values)
        values["train"]["patch"] = [1, 16, 16]
    run = go(values, *BEFORE, "predict")
    affinities = run.volume("affinities")
    found = affinities.read(affinities.roi)
    assert found.shape == (3, *SPEC.shape)
    assert found[1:].any()
    assert found[0].any() == (dimensions == 3)


def test_a_loss_that_does_not_suit_the_network_is_refused(inputs: Path, tmp_path: Path) -> None:
    values = values_of(inputs, tmp_path / "run", loss={"finetune": "malis"})
    values["network"]["output"] = "foreground"
    with pytest.raises(InputError, match=r"train.loss.finetune .* malis is not defined for foreg"):
        go(values)
