"""The command line as a fixture. (That this file lies here also puts `strategies` on the path.)"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from flows.cli import main


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit code and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def axonloom(monkeypatch, capfd) -> Callable[..., Finished]:
    """Run the command line in this process; an error without a message of ours fails the test."""

    def run(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["axonloom", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        said = capfd.readouterr()
        return Finished(code, said.out, said.err)

    return run
