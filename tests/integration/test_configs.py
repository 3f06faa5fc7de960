"""The configurations that come with the project."""

import os
from pathlib import Path

import numpy as np
import pytest

from flows.runs import check
from pipeline.arrays.skeleton_nodes import inside_roi, node_voxels
from pipeline.config import load_config
from pipeline.stages import plan
from pipeline.stages.run import Run
from pipeline.storage.source import open_source

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("AXONLOOM_DATA", ROOT.parent / "shared" / "data"))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_it_is_a_configuration(path):
    config = load_config(path)
    assert config.regions.train is not None
    assert config.regions.score is not None
    assert not config.regions.train.roi.overlaps(config.regions.score.roi)


@pytest.mark.data
@pytest.mark.skipif(not (DATA / "lm_fly_neuron").is_dir(), reason="the fly neuron is not there")
def test_the_fly_neuron_is_ready_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("AXONLOOM_DATA", str(DATA))
    config = load_config(ROOT / "configs" / "fly_neuron.yaml")
    config = config.model_copy(update={"run_dir": tmp_path / "run"})
    check(config, plan(config), replace_output=True)
    assert not (tmp_path / "run").exists()
    run = Run(tmp_path / "run", config)
    [tracing] = run.truth()
    image = open_source(config.input.image).read(run.roi)
    voxels = node_voxels(tracing)
    # The tracing lies on the neuron only if its y axis is turned round and half a voxel is added.
    assert (image[tuple(voxels.T)] > 0).mean() > 0.95
    turned = config.input.swc.model_copy(update={"flip": ()})
    given = config.input.model_copy(update={"swc": turned})
    wrong = Run(tmp_path, config.model_copy(update={"input": given})).truth()[0]
    at = node_voxels(wrong)
    assert (image[tuple(at[inside_roi(at, run.roi)].T)] > 0).mean() < 0.2
    taught = inside_roi(voxels, run.train_roi).sum()
    scored = inside_roi(voxels, run.score_roi).sum()
    assert taught + scored == len(voxels)
    assert np.isclose(taught / len(voxels), 0.29, atol=0.01)
