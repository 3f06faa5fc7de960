"""deploy/prefect.yaml against a real server and worker: deployed, scheduled, run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psutil
import pytest
import yaml
from tiny_run import tiny_values

from flows.phantom import needs_phantom, on_phantom
from pipeline.config import parse_config
from pipeline.stages import STAGES, plan

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deploy" / "prefect.yaml"


def with_schedule(text: str) -> str:
    """The file with the commented example of a schedule made real."""
    head, marker, example = text.partition("    # schedules:\n")
    assert marker, "deploy/prefect.yaml holds no example of a schedule"
    return head + re.sub(r"^    # ", "    ", marker + example, flags=re.MULTILINE)


def test_the_defaults_run_every_stage() -> None:
    [deployment] = yaml.safe_load(FILE.read_text())["deployments"]
    config = parse_config(deployment["parameters"]["config"])
    assert needs_phantom(config)
    # A phantom comes without the segmentations, or fragments and lookups, that these read.
    foreign = {"reference_overlap", "label_placement"}
    foreign |= {"fragment_join", "scatter", "scatter_index", "fuse"}
    assert plan(on_phantom(config)) == tuple(s for s in STAGES if s.name not in foreign)
    for region in (config.regions.train, config.regions.score):
        assert region is not None
        assert config.phantom is not None
        assert all(end <= size for end, size in zip(region.end, config.phantom.shape, strict=True))


def test_nothing_is_fetched() -> None:
    values = yaml.safe_load(FILE.read_text())
    assert [list(step) for step in values["pull"]] == [
        ["prefect.deployments.steps.set_working_directory"]
    ]
    assert "pull" not in values["deployments"][0]


class Server:
    """A Prefect server on a free port of this machine, with a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.api = f"http://127.0.0.1:{self.port}/api"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        self.environment = {
            **kept,
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
        }

    def command(self, *arguments: str, timeout: float = 120) -> str:
        """What `prefect ARGUMENTS` says; it must succeed."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def ask(self, path: str, query: dict[str, Any] | None = None) -> Any:
        """The answer of the API."""
        request = urllib.request.Request(
            f"{self.api}/{path}",
            data=None if query is None else json.dumps(query).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    @contextlib.contextmanager
    def background(self, name: str, *arguments: str) -> Iterator[Path]:
        """`prefect ARGUMENTS` while the block runs; its log. It ends with all its descendants."""
        log = self.folder / f"{name}.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments],
                cwd=ROOT,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield log
            finally:
                end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything it has started, politely first."""
    try:
        # A worker puts each flow run in a session of its own: its group would not reach them.
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=5)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=10)
    psutil.wait_procs(alive, timeout=10)


def wait_for(condition: Callable[[], bool], what: str, log: Path, seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"{what} after {seconds} s:\n{log.read_text()[-4000:]}"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the pool and the deployment of deploy/prefect.yaml: tiny, and with its schedule."""
    folder = tmp_path_factory.mktemp("prefect")
    found = Server(folder)

    def healthy() -> bool:
        with contextlib.suppress(OSError):
            return bool(found.ask("health"))
        return False

    values = yaml.safe_load(with_schedule(FILE.read_text()))
    values["deployments"][0]["parameters"] = {"config": tiny_values(folder / "run")}
    file = folder / "prefect.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    arguments = ("server", "start", "--host", "127.0.0.1", "--port", str(found.port))
    with found.background("server", *arguments) as log:
        wait_for(healthy, "no server", log)
        found.command("work-pool", "create", "--type", "process", "axonloom")
        found.command("--no-prompt", "deploy", "--all", "--prefect-file", str(file))
        yield found


@pytest.mark.slow
def test_the_schedule_makes_runs(server: Server) -> None:
    query = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}

    def runs() -> list[dict[str, Any]]:
        return list(server.ask("flow_runs/filter", query))

    wait_for(lambda: len(runs()) >= 2, "no scheduled runs", server.folder / "server.log", 60)
    for run in runs():
        assert run["auto_scheduled"]
        when = datetime.fromisoformat(run["expected_start_time"].replace("Z", "+00:00"))
        there = when.astimezone(ZoneInfo("Europe/Berlin"))
        assert (there.hour, there.minute) == (2, 0)


@pytest.mark.slow
def test_the_parameters_are_a_form_and_checked(server: Server) -> None:
    deployment = server.ask("deployments/name/reconstruct/reconstruct")
    form = deployment["parameter_openapi_schema"]
    shown = form["definitions"]["TrainSettings"]["properties"]
    assert "pretrain_steps" in shown
    assert deployment["enforce_parameter_schema"]
    with pytest.raises(AssertionError, match="no_such_key"):
        server.command(
            *("deployment", "run", "reconstruct/reconstruct"),
            *("--params", json.dumps({"config": {"no_such_key": 1}})),
        )


@pytest.mark.slow
def test_the_deployment_runs_to_the_report(server: Server) -> None:
    with server.background("worker", "worker", "start", "--pool", "axonloom") as log:
        watch = ("--watch", "--watch-timeout", "200")
        try:
            server.command("deployment", "run", "reconstruct/reconstruct", *watch, timeout=240)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            raise AssertionError(log.read_text()[-6000:]) from error
    completed = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    assert len(server.ask("flow_runs/filter", completed)) == 1
    run = server.folder / "run"
    assert (run / "report.html").stat().st_size > 10_000
    assert json.loads((run / "metrics.json").read_text())["overall"]["edges"] > 0
