"""`axonloom train --config` and `predict --config`: what they keep of the file."""

from pathlib import Path

import pytest
import yaml

import flows.launch
from pipeline.config import RunConfig, load_config

VALUES = {
    "name": "another",
    "run_dir": "elsewhere",
    "input": {
        "image": "other.zarr",
        "labels": "other_labels.zarr",
        "voxel_size_nm": [30, 20, 10],
        "swc": {"axes": "zyx", "unit": "um"},
        "training_runs": ["before"],
        "start_from": "network",
    },
    "phantom": {"neurons": 1},
    "regions": {"train": {"begin": [0, 0, 0], "end": [8, 8, 8]}},
    "ingest": {"mask_sigma": None},
    "targets": {"shell_nm": 5.0},
    "network": {"width": 4},
    "train": {"batch": 3, "loss": {"finetune": {"name": "scnp", "of": "dice"}}},
    "predict": {"tile": [32, 32, 32], "device": "cpu", "flips": "yx"},
    "predict_block": [32, 64, 64],
    "segment": {"tune": False},
    "skeletonize": {"block": [32, 32, 32]},
    "evaluate": {"merge_min_nodes": 2, "compare_segments": "others.zarr"},
    "execution": {"kind": "local", "workers": 5},
}


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "a.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    return path


@pytest.fixture
def resolve(axonloom, monkeypatch, tmp_path):
    """The configuration that a command would run; nothing is run."""

    def run(*arguments) -> RunConfig:
        found = []
        monkeypatch.setattr(flows.launch, "launch", lambda config, *_, **__: found.append(config))
        done = axonloom(*arguments, "--out", tmp_path / "out")
        assert done.code == 0, done.err
        [config] = found
        assert (config.name, config.run_dir) == ("out", tmp_path / "out")
        return config

    return run


def test_train_keeps_all_but_what_belongs_to_the_other_image(resolve, settings, tmp_path):
    truth = tmp_path / "a.swc"
    config = resolve("train", "--image", "i.zarr", "--skeletons", truth, "--config", settings)
    given, base = config.input, load_config(settings)
    assert given.image == Path("i.zarr").resolve()
    assert (given.labels, given.skeletons) == (None, truth)
    assert given.start_from == settings.parent / "network"
    assert given.training_runs == (settings.parent / "before",)
    assert (given.swc, given.voxel_size_nm) == (base.input.swc, (30.0, 20.0, 10.0))
    for section in set(RunConfig.model_fields) - {"name", "run_dir", "input", "phantom"}:
        if section != "evaluate":
            assert getattr(config, section) == getattr(base, section), section
    assert config.phantom is None
    assert (config.evaluate.merge_min_nodes, config.evaluate.compare_segments) == (2, None)


def test_predict_keeps_what_prediction_depends_on(resolve, settings):
    arguments = ["predict", "--image", "i.zarr", "--checkpoint", "net", "--config", settings]
    config, base = resolve(*arguments), load_config(settings)
    assert config.input.checkpoint == Path("net").resolve()
    assert (config.input.start_from, config.input.training_runs) == (None, ())
    assert config.input.voxel_size_nm == (30.0, 20.0, 10.0)
    for section in ("ingest", "network", "predict", "predict_block", "execution"):
        assert getattr(config, section) == getattr(base, section), section
    assert config.regions == RunConfig().regions


def test_options_are_stronger_than_the_file(resolve, settings):
    arguments = ["predict", "--image", "i.zarr", "--checkpoint", "net", "--config", settings]
    options = ["--voxel-size", 1, 2, 3, "--device", "cuda", "--block", 8, 8, 8, "--serial"]
    config = resolve(*arguments, *options)
    assert config.input.voxel_size_nm == (1.0, 2.0, 3.0)
    assert (config.predict.device, config.predict.flips) == ("cuda", "yx")
    assert (config.predict_block, config.execution.kind) == ((8, 8, 8), "serial")
    arguments = ["train", "--image", "i.zarr", "--labels", "l.zarr", "--config", settings]
    config = resolve(*arguments, "--voxel-size", 1, 2, 3, "--workers", 3)
    assert config.input.voxel_size_nm == (1.0, 2.0, 3.0)
    assert config.execution.workers == 3


def test_without_a_file_there_are_defaults(resolve):
    default = RunConfig()
    config = resolve("train", "--image", "i.zarr", "--labels", "l.zarr")
    assert (config.train, config.execution) == (default.train, default.execution)
    config = resolve("predict", "--image", "i.zarr", "--checkpoint", "net")
    assert (config.predict, config.predict_block) == (default.predict, default.predict_block)
