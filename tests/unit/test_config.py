import pytest
import yaml

from pipeline.config import load_config, parse_config, save_config
from pipeline.errors import ConfigError


def test_defaults_are_a_configuration():
    config = parse_config({})
    assert config.segment.low <= config.segment.high


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"segmet": {}}, "segmet: unknown key"),
        ({"segment": {"lwo": 0.3}}, "segment.lwo: unknown key"),
        ({"segment": {"low": 0.9, "high": 0.5}}, "low 0.9 is above high 0.5"),
        ({"segment": {"thresholds": [1.5]}}, r"thresholds in \[0, 1\]"),
        ({"segment": {"block": [0, 4, 4]}}, "expected positive numbers"),
        ({"segment": {"block": [4, 4]}}, "segment.block"),
        ({"ingest": {"low_percentile": 50, "high_percentile": 10}}, "must be below"),
        ({"regions": {"train": {"begin": [0, 0, 0], "end": [0, 1, 1]}}}, "begin < end"),
        ({"execution": {"kind": "address"}}, "go together"),
        ({"network": {"width": -1}}, "network.width"),
        (
            {"targets": {"ignore_labels": [0, 4], "background_labels": [4, 1]}},
            r"ignore_labels and background_labels both name \[4\]",
        ),
        (
            {"targets": {"grow_nm": 5, "grow_fraction": 0.5, "grow_threshold": 3}},
            "exclude each other",
        ),
        ({"targets": {"grow_fraction": 0.5}}, "set grow_nm too"),
        ({"targets": {"grow_threshold": 9}}, "grow_threshold is set, but nothing grows"),
        ({"targets": {"grow_nm": -1}}, "targets.grow_nm"),
        ({"targets": {"grow_nm": float("inf")}}, "targets.grow_nm"),
        ({"targets": {"grow_nm": 5, "grow_fraction": 1.5}}, "targets.grow_fraction"),
        ({"targets": {"sampled_share": 1.5}}, "targets.sampled_share"),
        ({"targets": {"sampled_seed": -1}}, "targets.sampled_seed"),
        ({"targets": {"background": "none"}}, "targets.background"),
        ({"evaluate": {"lookup_missing": "zero"}}, "has no effect without evaluate.lookup"),
        ({"input": {"swc": {"offset": [1e300, 0, 0]}}}, "input.swc.offset"),
        ([], "expected a mapping"),
    ],
)
def test_contradictions_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(values)


def test_every_problem_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_config({"a": 1, "segment": {"b": 2}})
    assert "a: unknown key" in str(caught.value)
    assert "segment.b: unknown key" in str(caught.value)


def test_a_check_of_ours_speaks_for_itself():
    with pytest.raises(ConfigError) as caught:
        parse_config({"segment": {"block": [0, 4, 4]}})
    line = str(caught.value).splitlines()[1]
    assert line == "  segment.block: expected positive numbers for z, y, x, got [0, 4, 4]"


def test_the_default_for_labels_that_a_lookup_lacks_may_be_written_down():
    assert parse_config({"evaluate": {"lookup_missing": "keep"}}).evaluate.lookup is None


def test_input_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("input: {image: data/a.tif}\nrun_dir: out\n")
    config = load_config(tmp_path / "c.yaml")
    assert config.input.image == tmp_path / "data" / "a.tif"
    assert str(config.run_dir) == "out"


def test_variables_are_replaced(tmp_path, monkeypatch):
    path = tmp_path / "c.yaml"
    path.write_text("input: {image: '${DATA_X:-/d}/a.tif'}\nname: ${NAME_X}\n")
    with pytest.raises(ConfigError, match="NAME_X is not set"):
        load_config(path)
    monkeypatch.setenv("NAME_X", "n")
    assert str(load_config(path).input.image) == "/d/a.tif"
    monkeypatch.setenv("DATA_X", "/e")
    assert str(load_config(path).input.image) == "/e/a.tif"


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "c.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "c.yaml")


def test_the_resolved_configuration_is_the_same(tmp_path):
    config = parse_config({"segment": {"low": 0.3}, "input": {"swc": {"flip": ["y"]}}})
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config
    assert "min_voxels" in yaml.safe_load((tmp_path / "c.yaml").read_text())["segment"]
