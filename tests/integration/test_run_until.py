"""`axonloom run --until`: a run that is prepared for others to train on."""

import yaml
from tiny_run import tiny_values


def save(path, values):
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_run_stops_where_it_is_told_and_another_learns_from_it(axonloom, tmp_path):
    values = tiny_values(tmp_path / "first")
    config = save(tmp_path / "first.yaml", values)
    done = axonloom("run", config, "--until", "targets")
    assert done.code == 0, done.err
    ledgers = {path.stem for path in (tmp_path / "first" / "ledger").glob("*.jsonl")}
    assert {"ingest", "statistics", "targets"} <= ledgers
    assert not ledgers & {"train", "predict", "fragments"}
    assert not (tmp_path / "first" / "report.html").exists()

    values = tiny_values(tmp_path / "second")
    values["phantom"]["seed"] = 4
    values["input"] = {"training_runs": ["first"]}
    second = save(tmp_path / "second.yaml", values)
    done = axonloom("run", second, "--until", "train")
    assert done.code == 0, done.err
    assert (tmp_path / "second" / "checkpoint" / "model.safetensors").exists()

    given = tmp_path / "second" / "phantom"
    arguments = ["--image", given / "image.zarr", "--labels", given / "labels.zarr"]
    settings = ["--config", second, "--out", tmp_path / "third", "--serial"]
    done = axonloom("train", *arguments, *settings)
    assert done.code == 0, done.err
    resolved = yaml.safe_load((tmp_path / "third" / "config.yaml").read_text())
    assert resolved["input"]["training_runs"] == [str(tmp_path / "first")]
    networks = [
        tmp_path / name / "checkpoint" / "model.safetensors" for name in ("second", "third")
    ]
    assert networks[0].read_bytes() == networks[1].read_bytes()


def test_a_stage_that_the_run_has_not_is_refused(axonloom, tmp_path):
    config = save(tmp_path / "c.yaml", tiny_values(tmp_path / "run"))
    done = axonloom("run", config, "--until", "sweep")
    assert done.code == 2
    assert "--until sweep: this configuration runs ingest, statistics" in done.err
    assert not (tmp_path / "run").exists()
    done = axonloom("run", config, "--until", "targets", "--prefect")
    assert done.code == 2
    assert "--until and --prefect" in done.err
