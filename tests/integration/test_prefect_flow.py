"""The Prefect flow on an embedded server: tasks, artifacts, continuing, failing, ending."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

# First: it makes prefect quiet and keeps it off the network, before prefect is imported.
from flows.reconstruct import reconstruct

# isort: split
import psutil
import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ParameterTypeError
from prefect.settings import PREFECT_HOME, temporary_settings
from prefect.states import State
from prefect.testing.utilities import prefect_test_harness
from tiny_run import tiny_values

from flows import embedded_server, publish
from flows.phantom import needs_phantom, on_phantom
from pipeline.config import RunConfig, parse_config
from pipeline.stages import plan
from pipeline.stages.phantom import PHANTOM
from pipeline.stages.run import Run
from workers.runner import StageReport

pytestmark = [
    pytest.mark.slow,
    # Prefect leaves connections to its server for the garbage collector to close.
    pytest.mark.filterwarnings(
        r"ignore:Exception ignored in. <socket\.socket:pytest.PytestUnraisableExceptionWarning"
    ),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncPrefectClient]:
    home = tmp_path_factory.mktemp("home")
    with (
        temporary_settings({PREFECT_HOME: home}),
        prefect_test_harness(server_startup_timeout=120),
        get_client(sync_client=True) as found,
    ):
        yield found
    gc.collect()  # while the warning about prefect's connections is filtered


@dataclasses.dataclass
class Finished:
    config: RunConfig
    state: State[str]


@pytest.fixture(scope="module")
def finished(client: SyncPrefectClient, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One flow run of everything."""
    config = parse_config(tiny_values(tmp_path_factory.mktemp("flow") / "run"))
    return Finished(config, reconstruct(config, return_state=True))


def flow_run_filter(state: State[Any]) -> FlowRunFilter:
    return FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))


def artifacts_of(client: SyncPrefectClient, state: State[Any]) -> dict[str, Any]:
    """Key to artifact, of one flow run."""
    found = client.read_artifacts(flow_run_filter=flow_run_filter(state))
    return {artifact.key: artifact for artifact in found}


def stage_table(client: SyncPrefectClient, state: State[Any]) -> dict[str, dict[str, Any]]:
    rows = json.loads(artifacts_of(client, state)["stages"].data)
    return {row["stage"]: row for row in rows}


def stage_names(config: RunConfig) -> list[str]:
    return ["phantom", *(stage.name for stage in plan(on_phantom(config)))]


def test_the_run_completes_with_report_and_scores(finished: Finished) -> None:
    assert finished.state.is_completed(), finished.state.message
    directory = finished.config.run_dir
    assert finished.state.result() == str(directory / "report.html")
    assert (directory / "report.html").stat().st_size > 10_000
    assert json.loads((directory / "metrics.json").read_text())["overall"]["edges"] > 0


def test_each_stage_is_one_task(client: SyncPrefectClient, finished: Finished) -> None:
    runs = client.read_task_runs(flow_run_filter=flow_run_filter(finished.state))
    names = [run.name for run in sorted(runs, key=lambda run: run.start_time)]
    assert names == [*stage_names(finished.config), "report"]


def test_progress_of_every_stage_ends_at_100(client: SyncPrefectClient, finished: Finished) -> None:
    artifacts = artifacts_of(client, finished.state)
    for name in stage_names(finished.config):
        assert artifacts[f"progress-{name.replace('_', '-')}"].data == 100.0, name


def test_the_table_of_stages_is_what_the_ledgers_say(
    client: SyncPrefectClient, finished: Finished
) -> None:
    table = stage_table(client, finished.state)
    assert list(table) == stage_names(finished.config)
    run = Run(finished.config.run_dir)
    for stage in plan(run.config):
        ledger, row = run.ledger(stage.name), table[stage.name]
        for state in ("done", "empty", "masked", "failed"):
            assert row[state] == ledger.count(state), (stage.name, state)
        assert row["blocks"] == row["done"] + row["empty"] + row["masked"] == len(stage.grid(run))


def test_the_table_of_scores_is_metrics_json(client: SyncPrefectClient, finished: Finished) -> None:
    metrics = json.loads((finished.config.run_dir / "metrics.json").read_text())
    columns = {"this run": metrics, "threshold + components": metrics["baseline"]}
    rows = json.loads(artifacts_of(client, finished.state)["scores"].data)
    assert {row["score"] for row in rows} == set(metrics["overall"])
    for row in rows:
        for column, scores in columns.items():
            expected = scores["overall"][row["score"]]
            assert row[column] == ("-" if expected is None else expected)


def test_report_and_viewer_are_linked(client: SyncPrefectClient, finished: Finished) -> None:
    artifacts = artifacts_of(client, finished.state)
    assert (finished.config.run_dir / "report.html").as_uri() in artifacts["report"].data
    assert f"axonloom view {finished.config.run_dir}" in artifacts["viewer"].data


def test_started_again_it_computes_nothing(client: SyncPrefectClient, finished: Finished) -> None:
    def ledgers() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in finished.config.run_dir.rglob("*.jsonl")}

    before = ledgers()
    state = reconstruct(finished.config, return_state=True)
    assert state.is_completed(), state.message
    assert {row["computed now"] for row in stage_table(client, state).values()} == {0}
    assert ledgers() == before


def test_parameters_are_checked(client: SyncPrefectClient) -> None:
    with pytest.raises(ParameterTypeError, match=r"config\.no_such_key: Extra inputs"):
        reconstruct(config={"no_such_key": 1})


def test_a_phantom_is_made_only_for_want_of_a_volume(tmp_path: Path) -> None:
    config = parse_config(tiny_values(tmp_path))
    assert needs_phantom(config)
    assert not needs_phantom(on_phantom(config))
    assert not needs_phantom(config.model_copy(update={"phantom": None}))


def damaged_copy(image: Path, target: Path) -> tuple[Path, bytes]:
    """A copy of a zarr image with one chunk that cannot be read; the chunk and its right bytes."""
    shutil.copytree(image, target)
    chunk = sorted(target.glob("0/c/*/*/*"))[-1]
    right = chunk.read_bytes()
    rewrite(chunk, b"\xff" * len(right))
    return chunk, right


def rewrite(path: Path, content: bytes) -> None:
    """Other bytes, without a trace in the metadata from which inputs are known."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_failed_block_fails_the_flow_run_and_is_all_that_runs_again(
    client: SyncPrefectClient, finished: Finished, tmp_path: Path
) -> None:
    image = tmp_path / "image.zarr"
    chunk, right = damaged_copy(finished.config.run_dir / "phantom" / "image.zarr", image)
    values = tiny_values(tmp_path / "run")
    del values["phantom"], values["regions"]
    config = parse_config({**values, "input": {"image": str(image)}})

    state = reconstruct(config, return_state=True)
    assert state.is_failed()
    said = state.message or ""
    for part in ("stage ingest: 1 of 4 blocks failed", "block 3 [0:32, 32:48, 32:64]", str(image)):
        assert part in said
    assert f"axonloom run {config.run_dir / 'config.yaml'}" in said
    table = stage_table(client, state)
    assert list(table) == ["ingest"]
    assert (table["ingest"]["done"], table["ingest"]["failed"]) == (3, 1)

    rewrite(chunk, right)
    state = reconstruct(config, return_state=True)
    assert state.is_completed(), state.message
    table = stage_table(client, state)
    assert table["ingest"]["computed now"] == 1
    assert table["pyramid"]["computed now"] == 1


def waited(condition: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def publisher(
    client: SyncPrefectClient, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> publish.StagePublisher:
    """Of a stage with one long block, of which 30 of 120 steps are done."""
    monkeypatch.setattr(publish, "PUBLISH_SECONDS", 0.02)
    stage = dataclasses.replace(PHANTOM, progress=lambda _run: (30, 120))
    return publish.StagePublisher(stage, Run(finished.config.run_dir))


def test_progress_is_renewed_while_a_long_block_runs(
    client: SyncPrefectClient, publisher: publish.StagePublisher
) -> None:
    def shown() -> float:
        key = UUID(str(publisher._artifact))
        return next(float(a.data) for a in client.read_artifacts() if a.id == key)

    @flow
    def probe() -> None:
        with publisher:
            publisher.observe(PHANTOM, StageReport("phantom", blocks=1))
            assert waited(lambda: shown() == 25.0)
            publisher.observe(PHANTOM, StageReport("phantom", blocks=4, done=2))
            assert waited(lambda: shown() == 50.0)
            publisher.observe(PHANTOM, StageReport("phantom", blocks=1, done=1))
        assert shown() == 100.0

    probe()


def test_a_stage_outlives_a_server_that_fails(
    publisher: publish.StagePublisher,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise ConnectionError("gone")

    @flow
    def probe() -> None:
        with publisher:
            monkeypatch.setattr(publish, "update_progress_artifact", refuse)
            publisher.observe(PHANTOM, StageReport("phantom", blocks=2, done=2))

    probe()
    assert "progress of stage phantom was not published: gone" in caplog.text


def test_the_command_is_quiet_and_leaves_no_process(finished: Finished, tmp_path: Path) -> None:
    """With a server of its own, in a home of its own, on what the fixture has computed."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(finished.config.model_dump(mode="json")))
    command = subprocess.Popen(
        [str(Path(sys.executable).with_name("axonloom")), "run", str(path), "--prefect"],
        env=clean_environment(tmp_path / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = command.communicate(timeout=180)
        left = members(command.pid)
    finally:
        for process in members(command.pid):
            process.kill()
    assert command.returncode == 0, err
    assert err == ""
    assert f"report  {finished.config.run_dir / 'report.html'}" in out
    assert left == []
    assert (tmp_path / "home" / "prefect.db").exists()


def clean_environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return {**kept, "PREFECT_HOME": str(home)}


def members(session: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.Error):
            continue
    return found


# A process with a child that looks like an embedded server, and its end.
_OWNER = """
import os, signal, subprocess, sys
from flows.embedded_server import ends_with_this_process
sleeper = "import time; time.sleep(600)"
server = subprocess.Popen(
    [sys.executable, "-c", sleeper, "prefect.server.api.server:create_app"],
    stdout=subprocess.DEVNULL,
)
with ends_with_this_process():
    print(server.pid, flush=True)
    {end}
os._exit(0)
"""
_ENDS = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "terminated": "raise SystemExit(143)",
    "returns": "pass",
}


@pytest.mark.parametrize(("how", "survives"), [("killed", 0), ("terminated", 0), ("returns", 1)])
def test_an_embedded_server_does_not_outlive_its_process(how: str, survives: int) -> None:
    """Unless the flow has ended by itself: then prefect stops the server in its own time."""
    owner = subprocess.run(
        [sys.executable, "-c", _OWNER.format(end=_ENDS[how])],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=60,
        check=False,
    )
    number = int(owner.stdout)
    try:
        if survives:
            assert not waited(lambda: not psutil.pid_exists(number), seconds=1)
        else:
            assert waited(lambda: not psutil.pid_exists(number), seconds=20)
    finally:
        if psutil.pid_exists(number):
            os.kill(number, signal.SIGKILL)


def test_the_real_embedded_server_is_recognised(client: SyncPrefectClient) -> None:
    assert embedded_server._embedded_servers()
