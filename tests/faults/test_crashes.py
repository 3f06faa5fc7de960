"""Kill what you like: the run continues, computes nothing twice, and ends in the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from pipeline.storage.ledger import run_lock

# What tells of times and places; of training, by design, these two alone.
NOT_COMPARED = (
    "ledger", "report.html", "config.yaml", "checkpoint/timing.json", "checkpoint/tensorboard",
)  # fmt: skip
PATIENCE = 240
_ATTENTIVE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from flows.cli import main
main()
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    finish(start("phantom", "--out", folder / "p", "--shape", 32, 48, 64, "--neurons", 3,
                 "--seed", 4, "--serial"))  # fmt: skip
    values = {
        "input": {
            "image": str(folder / "p" / "image.zarr"),
            "labels": str(folder / "p" / "labels.zarr"),
            "skeletons": str(folder / "p" / "swc"),
            "swc": {"unit": "um"},
        },
        "regions": {"train": {"begin": [0, 0, 0], "end": [32, 48, 48]}},
        "ingest": {"block": [32, 32, 32], "chunk": [32, 32, 32], "levels": 1, "mask_sigma": None},
        "network": {"width": 4, "levels": 2, "pool": [[1, 2, 2]]},
        "train": {
            "patch": [16, 16, 16], "batch": 1, "pretrain_steps": 60, "finetune_steps": 20,
            "warmup_steps": 2, "checkpoint_every_steps": 7,
        },
        "predict": {"tile": [32, 32, 32], "context": [4, 4, 4]},
        "predict_block": [32, 32, 32],
        "segment": {
            "block": [16, 16, 16], "tune": False, "low": 0.1, "high": 0.2,
            "thresholds": [0.14, 0.12], "min_voxels": 50,
        },
        "skeletonize": {"block": [16, 24, 24]},
        "execution": {"kind": "local", "workers": 2},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(*arguments) -> subprocess.Popen:
    """The command as the first process of a session of its own."""
    # A shell that starts the tests in the background makes all they start deaf to interrupts.
    command = [sys.executable, "-c", _ATTENTIVE, *map(str, arguments)]
    return subprocess.Popen(
        command, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(process) -> str:
    """Wait for a run that must succeed; nothing of it may be left."""
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert gone(process.pid)
    return said


def session(leader):
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and os.getsid(process.pid) == leader:
                found.append(process)
        except (psutil.Error, ProcessLookupError, PermissionError):
            continue
    return found


def gone(leader, seconds=60):
    """Whether every process of the session has ended; those that have not, end now."""
    end = time.monotonic() + seconds
    while (left := session(leader)) and time.monotonic() < end:
        time.sleep(0.1)
    for process in left:
        process.kill()
    return not left


def lines(run_dir, stage):
    path = run_dir / "ledger" / f"{stage}.jsonl"
    if not path.exists():
        return []
    whole = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in whole]


def blocks_done(run_dir, stage):
    return [line["block"] for line in lines(run_dir, stage) if "block" in line]


def wait_for(condition, process):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "the moment to interrupt did not come"
        time.sleep(0.003)


def finished_ledgers(run_dir):
    return {
        path.name: path.read_bytes()
        for path in (run_dir / "ledger").glob("*.jsonl")
        if b'"finished"' in path.read_bytes()
    }


def results(run_dir):
    found = {}
    for path in run_dir.rglob("*"):
        name = path.relative_to(run_dir)
        # What was being written when the process died lies beside its target, under another name.
        left_over = name.name.startswith(".") and name.name.endswith(".tmp")
        compared = not any(name.is_relative_to(other) for other in NOT_COMPARED)
        if path.is_file() and compared and not left_over:
            found[str(name)] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start("run", inputs, "--run-dir", run_dir, "--serial"))
    found = results(run_dir)
    for name in ("metrics.json", "checkpoint/model.safetensors", "neuroglancer.json"):
        assert found[name]
    assert len([name for name in found if name.startswith("segments.zarr")]) > 3
    return found


MOMENTS = {
    "training": lambda d: (d / "checkpoint" / "state.safetensors").exists(),
    "segmenting": lambda d: len(blocks_done(d, "fragments")) >= 3,
    "late": lambda d: len(blocks_done(d, "skeletonize")) >= 2,
}
LATER = {"training": "predict", "segmenting": "relabel", "late": "project"}


def test_kill_it_three_times(axonloom, inputs, undisturbed, tmp_path):
    """One run, killed in training, in segmentation and in the late stages, and started again."""
    run_dir = tmp_path / "run"
    before: dict[str, bytes] = {}
    for moment, condition in MOMENTS.items():
        process = start("run", inputs, "--run-dir", run_dir)
        wait_for(lambda condition=condition: condition(run_dir), process)
        os.killpg(process.pid, signal.SIGSTOP)
        if moment == "training":
            second = axonloom("run", inputs, "--run-dir", run_dir)
            assert second.code == 1
            assert f"process {process.pid} is writing" in second.err
        process.send_signal(signal.SIGKILL)
        os.killpg(process.pid, signal.SIGCONT)
        process.communicate()
        assert gone(process.pid), "workers outlived their driver"
        assert not lines(run_dir, LATER[moment]), f"too late to be killed while {moment}"
        now = finished_ledgers(run_dir)
        assert before.items() <= now.items(), "a finished stage was touched"
        before = now
    said = finish(start("run", inputs, "--run-dir", run_dir))
    assert "already done" in said
    assert before.items() <= finished_ledgers(run_dir).items()
    for path in sorted((run_dir / "ledger").glob("*.jsonl")):
        done = blocks_done(run_dir, path.stem)
        assert len(done) == len(set(done)), f"{path.stem} computed a block twice"
        assert sorted(done) == list(range(lines(run_dir, path.stem)[0]["blocks"]))
    found = results(run_dir)
    assert sorted(found) == sorted(undisturbed)
    assert [name for name in found if found[name] != undisturbed[name]] == []


def test_an_interrupt_ends_everything_and_says_how_to_go_on(inputs, tmp_path):
    run_dir = tmp_path / "run"
    process = start("run", inputs, "--run-dir", run_dir)
    wait_for(lambda: blocks_done(run_dir, "targets"), process)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl+C does: to all in the foreground
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted; run the same command again to go on" in said
    assert gone(process.pid)
    assert "ingest.jsonl" in finished_ledgers(run_dir)
    with run_lock(run_dir / "ledger"):
        pass  # free again


def test_a_run_that_is_over_is_not_computed_again(axonloom, inputs, undisturbed, tmp_path):
    """Also not by other workers, nor after its folder was moved."""
    run_dir, moved = tmp_path / "run", tmp_path / "moved"
    finish(start("run", inputs, "--run-dir", run_dir, "--serial"))
    run_dir.rename(moved)
    before = finished_ledgers(moved)
    done = axonloom("run", inputs, "--run-dir", moved, "--workers", 3)
    assert done.code == 0, done.err
    assert finished_ledgers(moved) == before
    assert done.err.count("already done") == len(before)
    assert results(moved) == undisturbed
