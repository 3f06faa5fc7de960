"""Several processes that train one network together, each with its share of every batch.

The train stage starts them itself where `train.processes` is above 1, on this machine. On several
machines that see the same files, start them yourself, when the stages before are done, with as many
processes in all as `train.processes` says:

    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:PORT \\
        -m pipeline.stages.train_process RUN_DIR FOLDER

The network goes to FOLDER, where a further call resumes; a run then takes it as `input.checkpoint`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pipeline
from pipeline.errors import BlockError, PipelineError
from pipeline.stages.run import Run
from pipeline.stages.train import train_run

LOG = "processes.log"
_TAIL_LINES = 30
_CAUSE = "axonloom: "
_GUARDED = "AXONLOOM_GUARDED"
_END_SECONDS = 10.0


def train_in_processes(run: Run) -> dict[str, Any]:
    """Train with `train.processes` processes on this machine, and wait for them.

    Returns:
        As `pipeline.learning.train.train`.

    Raises:
        BlockError: a process failed; tells its error, and the end of the log.
    """
    directory = run.path("checkpoint")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOG
    count = run.config.train.processes
    with path.open("wb") as log:
        # They read their input to its end: it ends when this process does, however that happens.
        process = subprocess.Popen(
            _command(count, run.directory, directory),
            env=_environment(run),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            code = process.wait()
        finally:
            _end(process)
    if code != 0:
        lines = path.read_text(errors="replace").splitlines()
        causes = [line.partition(_CAUSE)[2] for line in lines if line.startswith(_CAUSE)]
        cause = causes[0] if causes else f"exit code {code}"
        tail = "\n".join(lines[-_TAIL_LINES:])
        raise BlockError(f"training with {count} processes failed: {cause}\n{path} ends:\n{tail}")
    from pipeline.learning.train import summary

    return summary(directory)


def _command(count: int, run_directory: Path, directory: Path) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run",
        "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(count),
        "-m", "pipeline.stages.train_process", str(run_directory), str(directory),
    ]  # fmt: skip


def _environment(run: Run) -> dict[str, str]:
    here = str(Path(pipeline.__file__).resolve().parents[1])
    found = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    # All on this machine: nothing goes over its network.
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(found),
        "OMP_NUM_THREADS": str(run.config.train.threads),
        "GLOO_SOCKET_IFNAME": loopback,
        "TORCHELASTIC_LOG_LEVEL": "WARNING",
        _GUARDED: "1",
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing running: first ask, then kill."""
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _guard() -> None:
    """End this process when the one that started all of them ends."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: Sequence[str]) -> int:
    """One process among several; torchrun says which."""
    if len(arguments) != 2 or "LOCAL_RANK" not in os.environ:
        print(__doc__, file=sys.stderr)
        return 2
    if os.environ.get(_GUARDED):
        _guard()
    from pipeline.learning.distributed import joined

    run = Run(Path(arguments[0]).resolve())
    try:
        with joined(run.config.train.device):
            train_run(run, Path(arguments[1]).resolve())
    except PipelineError as error:
        print(f"{_CAUSE}{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
