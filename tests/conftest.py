"""Fixtures of the whole tree; its place also puts `strategies` on the path."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.cli import main


@dataclass(frozen=True)
class Finished:
    """What a command left: exit code and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def axonloom(monkeypatch, capfd):
    """Run the command line in this process; an error that is not told as a message fails the test."""

    def run(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["axonloom", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = 0 if end.code is None else int(end.code)
        said = capfd.readouterr()
        return Finished(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def axonloom_process():
    """Start the command line as a process of its own session."""

    def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *map(str, arguments)],
            start_new_session=True, text=True, **options,
        )  # fmt: skip

    return start


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The folder of the repository."""
    return Path(__file__).resolve().parents[1]
