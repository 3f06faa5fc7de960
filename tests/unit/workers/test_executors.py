"""Blocks on Dask: the same reports as in one process, a bounded window, workers that die."""

import os
import time
from pathlib import Path

import dask.config
import pytest
from distributed import Future, LocalCluster

from pipeline.config import ExecutionConfig, PhantomConfig, RunConfig, save_config
from pipeline.errors import ConfigError, StageError
from pipeline.geometry import BlockGrid
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.keys import stage_keys
from pipeline.stages.run import Run
from pipeline.storage.ledger import Mark
from workers.executors import AHEAD, DaskExecutor, SerialExecutor, local_client, make_executor
from workers.runner import Order, run_stage

WORKERS = 2


@pytest.fixture(scope="module")
def executor():
    found = make_executor(ExecutionConfig(kind="local", workers=WORKERS))
    yield found
    found.close()


def marks_of(executor, task, indices, name="test", resources=None):
    found = executor.map(task, indices, name=name, resources=resources or {})
    return {mark.block: mark for mark in found if mark is not None}


def square(index):
    return Mark(index, "done", stats={"square": index**2})


@pytest.fixture
def run(tmp_path):
    config = RunConfig(phantom=PhantomConfig(shape=(16, 16, 120)), run_dir=tmp_path / "run")
    (tmp_path / "run").mkdir()
    save_config(config, tmp_path / "run" / "config.yaml")
    return Run(tmp_path / "run")


def stage_of(process, name="squares"):
    # Sent to the workers by value: they cannot import a test.
    return Stage(
        name=name,
        version=1,
        reads=(),
        writes=("edges",) if name == "squares" else ("history",),
        parameters=lambda _run: {},
        grid=lambda run: BlockGrid.over(run.shape, (16, 16, 4)),
        create=lambda run: run.path("edges" if name == "squares" else "history").mkdir(),
        process=process,
    )


def go(stage, run, executor, **options):
    return run_stage(stage, run, stage_keys(run, [stage])[stage.name], executor, **options)


# --- the protocol


@pytest.mark.parametrize("count", [0, 1, 50])
def test_every_block_comes_once(executor, count):
    expected = {i: square(i) for i in range(count)}
    assert marks_of(executor, square, range(count)) == expected
    assert marks_of(SerialExecutor(), square, range(count)) == expected


def test_serial_and_dask_give_the_same_report(executor, run, tmp_path):
    def process(block, run):
        if block.index % 7 == 3:
            raise ValueError(f"no luck with {block.index}")
        if block.index % 5 == 0:
            return BlockResult("empty")
        (run.path("edges") / f"{block.index}.txt").write_text("x" * block.index)
        return BlockResult(stats={"index": block.index})

    other = Run(tmp_path / "other")
    other.directory.mkdir()
    save_config(run.config, other.directory / "config.yaml")
    found = []
    for where, how in ((run, SerialExecutor()), (other, executor)):
        reports = []
        with pytest.raises(StageError) as caught:
            go(stage_of(process), where, how, order=Order("shuffled", 3), progress=reports.append)
        last = reports[-1]
        counts = (last.done, last.empty, last.failed, last.computed, last.reused, last.blocks)
        failures = {mark.block: mark.error for mark in last.failures}
        marks = {m.block: (m.state, m.stats) for m in where.ledger("squares").marks.values()}
        files = {p.name: p.read_bytes() for p in where.path("edges").iterdir()}
        headline = str(caught.value).splitlines()[0]
        found.append((counts, failures, marks, files, headline))
    assert found[0] == found[1]
    assert found[0][0] == (21, 5, 4, 30, 0, 30)


def test_an_error_that_cannot_travel_is_a_failed_block(executor):
    class LocalError(Exception):
        def __init__(self, a, b):
            super().__init__(a)

    def task(index):
        if index == 2:
            raise LocalError(1, 2)
        return square(index)

    found = marks_of(executor, task, range(5))
    assert found[2].state == "failed"
    assert found[2].error
    assert [found[i].state for i in (0, 1, 3, 4)] == ["done"] * 4


def test_no_more_than_a_window_of_blocks_is_in_flight(executor, monkeypatch):
    received, highest, submit = [], [], executor.client.submit

    def counting(*args, **kwargs):
        future = submit(*args, **kwargs)
        submitted.append(future.key)
        highest.append(len(submitted) - len(received))
        return future

    submitted = []
    monkeypatch.setattr(executor.client, "submit", counting)
    for mark in executor.map(square, iter(range(200)), name="window", resources={}):
        if mark is not None:
            received.append(mark)
    assert len(received) == len(set(submitted)) == 200
    assert max(highest) == AHEAD * WORKERS


def test_indices_are_drawn_as_they_are_needed(executor):
    drawn = []

    def indices():
        for index in range(10_000):
            drawn.append(index)
            yield index

    outcomes = executor.map(square, indices(), name="lazy", resources={})
    assert next(mark for mark in outcomes if mark is not None).state == "done"
    outcomes.close()
    assert len(drawn) <= 2 * AHEAD * WORKERS


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_nothing_is_held_after_a_stage(executor):
    marks_of(executor, square, range(30))
    assert until(lambda: not executor.client.futures)
    held = "lambda dask_scheduler: len(dask_scheduler.tasks)"
    assert until(lambda: executor.client.run_on_scheduler(eval(held)) == 0)


def test_closing_early_cancels_what_waits(executor, tmp_path):
    def slow(index):
        time.sleep(0.2)
        (tmp_path / str(index)).touch()
        return Mark(index, "done")

    outcomes = executor.map(slow, range(100), name="slow", resources={})
    next(mark for mark in outcomes if mark is not None)
    outcomes.close()
    assert until(lambda: not executor.client.processing() or not any(
        executor.client.processing().values()))  # fmt: skip
    ran = len(list(tmp_path.iterdir()))
    assert ran <= 1 + 2 * WORKERS, "those that ran when it was closed end; none begins"


def test_a_cancelled_block_is_a_failed_block(executor):
    def slow(index):
        time.sleep(0.3)
        return Mark(index, "done")

    outcomes = executor.map(slow, range(8), name="cancelled", resources={})
    first = next(outcomes)
    client = executor.client
    client.cancel([Future(key, client) for key in client.futures if "cancelled-" in key])
    marks = [mark for mark in (first, *outcomes) if mark is not None]
    assert {mark.block for mark in marks} == set(range(8)), "each block has an outcome"
    failed = [mark for mark in marks if mark.state == "failed"]
    assert failed
    assert all("cancelled" in str(mark.error) for mark in failed)


# --- resources and schedulers that are not there


def test_a_resource_that_nobody_offers_is_refused_at_once(executor):
    with pytest.raises(ConfigError, match=r"no worker offers {'GPU': 1.0}.*2 workers"):
        list(executor.map(square, range(3), name="gpu", resources={"GPU": 1.0}))
    assert len(marks_of(executor, square, range(3))) == 3


def test_a_resource_that_is_offered_is_used():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0",
            resources={"GPU": 1},
        ) as cluster
    ):  # fmt: skip
        found = make_executor(ExecutionConfig(kind="address", address=cluster.scheduler_address))
        try:
            assert len(marks_of(found, square, range(3), resources={"GPU": 1.0})) == 3
            with pytest.raises(ConfigError, match="no worker offers"):
                marks_of(found, square, range(3), resources={"GPU": 2.0})
        finally:
            found.close()
        assert cluster.status.name == "running", "a cluster that was not ours stays"


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://x"])
def test_a_scheduler_that_does_not_answer_is_an_error_of_the_configuration(address):
    found = make_executor(ExecutionConfig(kind="address", address=address))
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ConfigError, match="scheduler"),
    ):
        marks_of(found, square, range(3))
    found.close()


# --- workers that die


@pytest.fixture
def own_executor():
    """Not the shared one: what dies here must not be missed elsewhere."""
    clients = []

    def connect():
        # One death more than this and the block is blamed; the default of 3 only takes longer.
        with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
            clients.append(local_client(1))
        return clients[-1]

    found = DaskExecutor(connect)
    found.clients = clients
    yield found
    found.close()


def test_a_block_that_kills_its_worker_fails_by_name_and_the_next_stage_runs(run, own_executor):
    def process(block, run):
        if block.index == 5:
            os._exit(1)
        (run.path("edges") / f"{block.index}.txt").write_text("x")
        return BlockResult()

    with pytest.raises(StageError) as caught:
        go(stage_of(process), run, own_executor)
    message = str(caught.value)
    assert "stage squares: 1 of 30 blocks failed" in message
    assert "block 5 [0:16, 0:16, 20:24]: KilledWorker" in message
    assert len(list(run.path("edges").iterdir())) == 29

    def harmless(block, run):
        (run.path("history") / f"{block.index}.txt").write_text("y")
        return BlockResult()

    report = go(stage_of(harmless, "next"), run, own_executor)
    assert report.done == 30
    assert len(own_executor.clients) == 2, "a cluster whose workers were killed is made anew"

    def mended(block, run):
        (run.path("edges") / f"{block.index}.txt").write_text("x")
        return BlockResult()

    report = go(stage_of(mended), run, own_executor)
    assert (report.computed, report.reused) == (1, 29)


def test_a_worker_that_dies_once_costs_no_block(tmp_path, own_executor):
    def task(index, marker=str(tmp_path / "died")):
        if index == 3 and not Path(marker).exists():
            Path(marker).touch()
            os._exit(1)
        return Mark(index, "done")

    found = marks_of(own_executor, task, range(12))
    assert (tmp_path / "died").exists()
    assert [found[i].state for i in range(12)] == ["done"] * 12
