"""The runner on small stages: counts, failures, retries, a crash between any two steps."""

import errno
import json
import random
from contextlib import suppress
from dataclasses import replace as changed

import pytest

import workers.runner
from pipeline.config import PhantomConfig, RunConfig, save_config
from pipeline.errors import DataError, InputError, OutputExistsError, StageError
from pipeline.geometry import BlockGrid
from pipeline.stages.base import BlockResult, Stage
from pipeline.stages.keys import stage_keys
from pipeline.stages.run import Run
from pipeline.storage.ledger import Ledger, Mark
from workers.executors import SerialExecutor
from workers.runner import CIRCUIT, Order, StageReport, require_complete, run_stage

SHAPE, BLOCK, BLOCKS = (16, 16, 100), (16, 16, 4), 25


class Crash(BaseException):
    """The process ends here: nothing in the project may catch this."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(workers.runner, "delay_seconds", lambda _attempt: 0.0)


def new_run(directory) -> Run:
    directory.mkdir(parents=True, exist_ok=True)
    config = RunConfig(phantom=PhantomConfig(shape=SHAPE), run_dir=directory)
    save_config(config, directory / "config.yaml")
    return Run(directory)


@pytest.fixture
def run(tmp_path):
    return new_run(tmp_path / "run")


def write_square(block, run):
    path = run.path("edges") / f"{block.index:03d}.txt"
    path.write_text(f"{block.index**2}\n" * 50)
    return BlockResult(stats={"square": block.index**2})


def make_stage(process=write_square, factor=1, **more):
    return Stage(
        name="squares",
        version=1,
        reads=(),
        writes=("edges",),
        parameters=lambda _run: {"factor": factor},
        grid=lambda run: BlockGrid.over(run.shape, BLOCK),
        create=lambda run: run.path("edges").mkdir(),
        process=process,
        **more,
    )


def key_of(stage, run):
    return stage_keys(run, [stage])[stage.name]


def go(stage, run, **options):
    return run_stage(stage, run, key_of(stage, run), SerialExecutor(), **options)


def failing(indices, error=ValueError, calls=None):
    def process(block, run):
        if calls is not None:
            calls.append(block.index)
        if block.index in indices:
            raise error(f"no luck with {block.index}")
        return write_square(block, run)

    return process


def files(run):
    folder = run.path("edges")
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = new_run(tmp_path_factory.mktemp("undisturbed") / "run")
    go(make_stage(), run)
    found = files(run)
    assert len(found) == BLOCKS
    return found


# --- counts


def test_counts_say_what_became_of_every_block(run):
    def process(block, run):
        return BlockResult("empty") if block.index % 5 == 0 else write_square(block, run)

    stage = make_stage(process, wanted=lambda block, _run: block.index % 3 != 0)
    report = go(stage, run)
    masked = len(range(0, BLOCKS, 3))
    empty = len([i for i in range(0, BLOCKS, 5) if i % 3])
    assert (report.masked, report.empty, report.failed) == (masked, empty, 0)
    assert report.done == BLOCKS - masked - empty
    assert report.complete == report.blocks == BLOCKS
    assert (report.computed, report.reused) == (BLOCKS - masked, 0)
    assert report.voxels == 16 * 16 * 100
    ledger = run.ledger("squares")
    assert ledger.complete
    assert ledger.finished
    assert ledger.marks[1].stats == {"square": 1}


def test_a_second_call_reuses_every_block(run):
    calls = []
    stage = make_stage(failing((), calls=calls), wanted=lambda block, _run: block.index != 3)
    go(stage, run)
    before = run.ledger("squares").path.read_bytes()
    report = go(stage, run)
    assert len(calls) == BLOCKS - 1
    assert (report.computed, report.reused, report.complete) == (0, BLOCKS, BLOCKS)
    assert run.ledger("squares").path.read_bytes() == before


def test_a_complete_stage_asks_nothing_of_the_executor(run):
    class NoExecutor:
        def map(self, *_args, **_options):
            raise AssertionError("a cluster would be started for nothing")

    stage = make_stage()
    go(stage, run)
    report = run_stage(stage, run, key_of(stage, run), NoExecutor())
    assert report.reused == BLOCKS


def test_progress_is_told_of_every_block(run):
    seen = []
    go(make_stage(), run, progress=lambda report: seen.append(report.done))
    assert sorted(set(seen)) == list(range(BLOCKS + 1))
    assert seen == sorted(seen)


def test_any_order_gives_the_same_files(run, undisturbed):
    calls = []
    go(make_stage(failing((), calls=calls)), run, order=Order("shuffled", 7))
    assert calls != sorted(calls)
    assert sorted(calls) == list(range(BLOCKS))
    assert files(run) == undisturbed


# --- failures


def test_a_failed_block_is_named_and_the_others_finish(run):
    with pytest.raises(StageError) as caught:
        go(make_stage(failing({7})), run)
    message = str(caught.value)
    assert "stage squares: 1 of 25 blocks failed" in message
    assert "block 7 [0:16, 0:16, 28:32]: ValueError: no luck with 7 (test_runner.py:" in message
    assert "kept" in message
    assert len(files(run)) == BLOCKS - 1
    ledger = run.ledger("squares")
    assert ledger.count("done") == BLOCKS - 1
    assert ledger.marks[7].state == "failed"
    assert not ledger.complete
    assert not ledger.finished


def test_many_failures_are_counted_and_the_first_named(run):
    with pytest.raises(StageError) as caught:
        go(make_stage(failing(set(range(0, BLOCKS, 2)))), run)
    message = str(caught.value)
    assert "13 of 25 blocks failed" in message
    assert "and 8 more" in message
    assert "stopped" not in message


def test_ten_failures_in_a_row_stop_the_stage(run):
    calls, reports = [], []
    with pytest.raises(StageError, match="stopped after 10 in a row"):
        go(make_stage(failing(set(range(5, BLOCKS)), calls=calls)), run, progress=reports.append)
    assert CIRCUIT == 10
    assert calls == list(range(15))
    last = reports[-1]
    assert (last.done, last.failed, last.stopped_early) == (5, 10, True)


def test_nine_in_a_row_do_not(run):
    bad = {i for i in range(BLOCKS) if i % 10 != 9}
    calls = []
    with pytest.raises(StageError, match="23 of 25"):
        go(make_stage(failing(bad, calls=calls)), run)
    assert calls == list(range(BLOCKS))


def test_the_executor_is_closed_when_the_circuit_opens_or_progress_fails(run):
    class Watched(SerialExecutor):
        closed = 0

        def map(self, task, indices, **options):
            try:
                yield from super().map(task, indices, **options)
            finally:
                self.closed += 1

    executor, stage = Watched(), make_stage(failing(set(range(BLOCKS))))
    key = key_of(stage, run)
    with pytest.raises(StageError) as caught:
        run_stage(stage, run, key, executor)
    # Not only when the error, and the frames that it holds, are forgotten.
    assert caught.value.__traceback__ is not None
    assert executor.closed == 1
    executor, stage = Watched(), make_stage()

    def broken(report: StageReport):
        if report.done:
            raise RuntimeError("the display broke")

    with pytest.raises(RuntimeError):
        run_stage(stage, run, key_of(stage, run), executor, progress=broken)
    assert executor.closed == 1


def test_an_error_before_the_block_begins_is_a_failed_block_too(run):
    def unreadable(_run):
        raise DataError("the volume's metadata cannot be read")

    mark = workers.runner.run_block(changed(make_stage(), grid=unreadable), run, 3, tries=1)
    assert (mark.block, mark.state) == (3, "failed")
    assert "the volume's metadata cannot be read" in str(mark.error)


# --- retries


def sometimes(error, times, calls):
    def process(block, run):
        calls.append(block.index)
        if calls.count(block.index) <= times:
            raise error
        return write_square(block, run)

    return process


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "bad sector"), ConnectionError("reset"), TimeoutError()], ids=repr
)
def test_what_may_pass_is_tried_again(run, undisturbed, error):
    calls = []
    report = go(make_stage(sometimes(error, 2, calls)), run)
    assert report.done == BLOCKS
    assert report.failed == 0
    assert len(calls) == 3 * BLOCKS
    assert files(run) == undisturbed


def test_but_not_for_ever(run):
    calls = []
    with pytest.raises(StageError, match=r"OSError: .*bad sector"):
        go(make_stage(sometimes(OSError(errno.EIO, "bad sector"), 99, calls)), run)
    assert calls == [i for i in range(10) for _ in range(3)], "tries: 3, then the circuit opens"


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), FileNotFoundError("x"), PermissionError("x"), MemoryError(), DataError("x"),
     InputError("x")],
    ids=repr,
)  # fmt: skip
def test_what_cannot_pass_is_tried_once(run, error):
    calls = []
    with pytest.raises(StageError):
        go(make_stage(sometimes(error, 1, calls)), run)
    assert calls == list(range(10))


# --- resuming


@pytest.mark.parametrize("seed", range(4))
def test_half_of_the_blocks_fail_and_the_next_run_computes_just_those(run, undisturbed, seed):
    bad = set(random.Random(seed).sample(range(BLOCKS), BLOCKS // 2))
    with suppress(StageError):
        go(make_stage(failing(bad)), run, order=Order("shuffled", seed))
    ledger = run.ledger("squares")
    missing = set(range(BLOCKS)) - {m.block for m in ledger.marks.values() if m.state == "done"}
    assert bad <= missing or ledger.count("failed") == CIRCUIT
    calls = []
    report = go(make_stage(failing((), calls=calls)), run)
    assert set(calls) == missing
    assert (report.computed, report.reused) == (len(missing), BLOCKS - len(missing))
    assert files(run) == undisturbed


def test_a_failure_that_was_mended_is_not_told_again(run):
    with pytest.raises(StageError):
        go(make_stage(failing({2, 3})), run)
    with pytest.raises(StageError, match="1 of 25 blocks failed"):
        go(make_stage(failing({3})), run)
    assert run.ledger("squares").marks[2].state == "done"


# --- other parameters, other people's files


def test_a_changed_parameter_removes_and_computes_again(run):
    go(make_stage(), run)
    (run.path("edges") / "left over.txt").write_text("old")
    calls = []
    report = go(make_stage(failing((), calls=calls), factor=2), run)
    assert calls == list(range(BLOCKS))
    assert report.reused == 0
    assert len(files(run)) == BLOCKS


def test_another_version_computes_again(run):
    go(make_stage(), run)
    report = go(changed(make_stage(), version=2), run)
    assert report.computed == BLOCKS


def test_replacing_can_be_refused_and_the_change_is_named(run):
    go(make_stage(), run)
    before, ledger = files(run), run.ledger("squares").path.read_bytes()
    with pytest.raises(OutputExistsError, match=r"changed: factor.*--overwrite"):
        go(make_stage(factor=2), run, replace=False)
    narrow = changed(make_stage(), grid=lambda run: BlockGrid.over(run.shape, (16, 16, 8)))
    with pytest.raises(OutputExistsError, match="changed: block"):
        go(narrow, run, replace=False)
    with pytest.raises(OutputExistsError, match="an earlier version of axonloom"):
        go(changed(make_stage(), version=2), run, replace=False)
    assert files(run) == before
    assert run.ledger("squares").path.read_bytes() == ledger
    assert go(make_stage(), run, replace=False).reused == BLOCKS


@pytest.mark.parametrize("replace", [True, False])
def test_what_no_run_has_made_is_never_removed(run, replace):
    run.path("edges").mkdir()
    (run.path("edges") / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExistsError, match="no run of axonloom has made it"):
        go(make_stage(), run, replace=replace)
    assert (run.path("edges") / "thesis.txt").read_text() == "years of work"
    assert run.ledger("squares").header is None


def test_output_that_is_gone_is_not_taken_for_done(run):
    go(make_stage(), run)
    for path in run.path("edges").iterdir():
        path.unlink()
    run.path("edges").rmdir()
    with pytest.raises(StageError, match=r"it is gone.*squares\.jsonl"):
        go(make_stage(), run)
    run.ledger("squares").path.unlink()
    assert go(make_stage(), run).computed == BLOCKS


def test_an_incomplete_stage_is_not_built_upon(run):
    stage = make_stage()
    key = key_of(stage, run)
    with pytest.raises(StageError, match="0 of 25 blocks"):
        require_complete(stage, run, key)
    with pytest.raises(StageError):
        go(make_stage(failing({4})), run)
    with pytest.raises(StageError, match=r"24 of 25 blocks \(failed: 1\)"):
        require_complete(stage, run, key)
    go(stage, run)
    require_complete(stage, run, key)
    other = make_stage(factor=3)
    with pytest.raises(StageError, match="changed: factor"):
        require_complete(other, run, key_of(other, run))


def test_what_was_added_to_an_output_goes_away_with_it(run, monkeypatch):
    added = Stage(
        name="added",
        version=1,
        reads=("edges",),
        writes=("history",),
        within=("edges",),
        parameters=lambda _run: {},
        grid=lambda run: BlockGrid.over(run.shape, run.shape),
        create=lambda run: run.path("history").mkdir(),
        process=lambda _block, run: (
            (run.path("edges") / "added.txt").write_text("+") and BlockResult()
        ),
    )
    monkeypatch.setattr(workers.runner, "STAGES", (added,))

    def both(factor, *, stop=False):
        first = make_stage(factor=factor)
        keys = stage_keys(run, [first, added])
        run_stage(first, run, keys["squares"], SerialExecutor())
        if not stop:
            run_stage(added, run, keys["added"], SerialExecutor())

    both(1)
    both(2, stop=True)
    assert not run.ledger("added").complete
    both(1)
    assert (run.path("edges") / "added.txt").exists(), "its ledger had the same key all along"


# --- crashes


def crash_at(monkeypatch, target, name, *, after=0, before=False):
    """Let the call number `after` of a function end the process: before it acts, or once it has."""
    original, calls = getattr(target, name), []

    def crashing(*args, **kwargs):
        calls.append(1)
        if len(calls) <= after:
            return original(*args, **kwargs)
        if not before:
            original(*args, **kwargs)
        raise Crash(name)

    monkeypatch.setattr(target, name, crashing)


def half_created(run):
    run.path("edges").mkdir()
    (run.path("edges") / "half.txt").write_text("half")
    raise Crash("create")


def half_written(block, run):
    if block.index == 11:
        (run.path("edges") / "011.txt").write_text("12")
        raise Crash("write")
    return write_square(block, run)


def tear(run, keep):
    path = run.ledger("squares").path
    content = path.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    path.write_bytes(content[: last + keep])


CRASHES = {
    "before the header": lambda m: crash_at(m, Ledger, "begin", before=True),
    "after the header": lambda m: crash_at(m, Ledger, "begin"),
    "old outputs removed": lambda m: crash_at(m, workers.runner, "remove_tree"),
    "before ready": lambda m: crash_at(m, Ledger, "set_ready", before=True),
    "after ready": lambda m: crash_at(m, Ledger, "set_ready"),
    "before the first mark": lambda m: crash_at(m, Ledger, "mark", before=True),
    "between write and mark": lambda m: crash_at(m, Ledger, "mark", after=9, before=True),
    "after a mark": lambda m: crash_at(m, Ledger, "mark", after=9),
    "before the last mark": lambda m: crash_at(m, Ledger, "mark", after=24, before=True),
    "before finished": lambda m: crash_at(m, Ledger, "set_finished", before=True),
    "after finished": lambda m: crash_at(m, Ledger, "set_finished"),
}


@pytest.mark.parametrize("old", [False, True], ids=["new run", "over old output"])
@pytest.mark.parametrize("where", CRASHES)
def test_a_crash_between_any_two_steps_costs_nothing_but_time(run, undisturbed, where, old):
    if old:
        go(make_stage(factor=9), run)
        (run.path("edges") / "of factor 9.txt").write_text("must not survive")
    with pytest.MonkeyPatch.context() as patched:
        CRASHES[where](patched)
        with pytest.raises(Crash):
            go(make_stage(), run)
    marked = {m.block for m in run.ledger("squares").marks.values()}
    if not run.ledger("squares").holds(key_of(make_stage(), run).key):
        marked = set()
    calls = []
    report = go(make_stage(failing((), calls=calls)), run)
    assert set(calls) == set(range(BLOCKS)) - marked
    assert report.complete == BLOCKS
    assert files(run) == undisturbed


@pytest.mark.parametrize(
    "stage",
    [changed(make_stage(), create=half_created), make_stage(half_written)],
    ids=["create", "write"],
)
def test_what_was_half_made_is_made_anew(run, undisturbed, stage):
    with pytest.raises(Crash):
        go(stage, run)
    go(make_stage(), run)
    assert files(run) == undisturbed


@pytest.mark.parametrize("keep", [0, 1, 10, -1])
def test_a_torn_line_is_a_block_that_is_not_done(run, undisturbed, keep):
    with pytest.MonkeyPatch.context() as patched:
        crash_at(patched, Ledger, "mark", after=12)
        with pytest.raises(Crash):
            go(make_stage(), run)
    tear(run, keep if keep >= 0 else 30)
    calls = []
    go(make_stage(failing((), calls=calls)), run)
    assert calls == list(range(12, BLOCKS))
    assert files(run) == undisturbed
    lines = run.ledger("squares").path.read_text().splitlines()
    assert [json.loads(line).get("block") for line in lines[2:-1]] == list(range(BLOCKS))


def test_a_crash_at_every_mark_one_after_the_other(run, undisturbed):
    """Each attempt dies right after one more block: 25 crashes, each block computed once."""
    calls = []
    for _ in range(BLOCKS):
        with pytest.MonkeyPatch.context() as patched:
            crash_at(patched, Ledger, "mark")
            with pytest.raises(Crash):
                go(make_stage(failing((), calls=calls)), run)
    assert go(make_stage(), run).reused == BLOCKS
    assert calls == list(range(BLOCKS))
    assert files(run) == undisturbed


def test_marks_of_a_report_are_those_of_the_ledger(run):
    report = StageReport("squares", 3)
    for mark in (Mark(0, "done"), Mark(1, "empty"), Mark(2, "failed", error="e")):
        report.add(mark)
    assert (report.done, report.empty, report.failed, report.complete) == (1, 1, 1, 2)
    assert report.failures == [Mark(2, "failed", error="e")]
