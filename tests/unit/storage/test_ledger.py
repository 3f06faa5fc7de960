import json
import multiprocessing

import pytest

from pipeline.errors import DataError, RunLockedError
from pipeline.storage.ledger import Header, Ledger, Mark, run_lock


def header(key="k", blocks=3):
    return Header("stage", key, blocks, {"grid": [[0, 0, 0], [1, 1, 1], [1, 1, 1]]})


def begun(path, key="k"):
    ledger = Ledger(path)
    ledger.begin(header(key))
    ledger.set_ready()
    return ledger


def test_what_was_marked_is_read_again(tmp_path):
    ledger = begun(tmp_path / "s.jsonl")
    ledger.mark(Mark(0, "done", 1.5, {"voxels": 7}))
    ledger.mark(Mark(1, "failed", error="ValueError: no"))
    ledger.close()
    again = Ledger(tmp_path / "s.jsonl")
    assert again.marks[0] == Mark(0, "done", 1.5, {"voxels": 7})
    assert again.marks[1].error == "ValueError: no"
    assert again.holds("k")
    assert not again.holds("other")
    assert not again.complete


def test_the_last_mark_of_a_block_counts(tmp_path):
    ledger = begun(tmp_path / "s.jsonl")
    ledger.mark(Mark(1, "failed", error="x"))
    for block, state in enumerate(["done", "empty", "masked"]):
        ledger.mark(Mark(block, state))
    ledger.close()
    again = Ledger(tmp_path / "s.jsonl")
    assert again.complete
    assert again.count("failed") == 0


def test_outputs_count_only_after_ready(tmp_path):
    ledger = Ledger(tmp_path / "s.jsonl")
    ledger.begin(header())
    assert not Ledger(tmp_path / "s.jsonl").holds("k")
    ledger.set_ready()
    assert Ledger(tmp_path / "s.jsonl").holds("k")
    ledger.close()


def test_begin_forgets_another_key(tmp_path):
    ledger = begun(tmp_path / "s.jsonl", "old")
    ledger.mark(Mark(0, "done"))
    ledger.begin(header("new"))
    again = Ledger(tmp_path / "s.jsonl")
    assert not again.marks
    assert not again.holds("old")


def test_a_torn_last_line_is_cut_off_at_every_byte(tmp_path):
    ledger = begun(tmp_path / "s.jsonl")
    ledger.mark(Mark(0, "done"))
    ledger.close()
    whole = (tmp_path / "s.jsonl").read_bytes()
    ledger.mark(Mark(1, "done"))
    ledger.close()
    longer = (tmp_path / "s.jsonl").read_bytes()
    for end in range(len(whole), len(longer)):
        path = tmp_path / f"{end}.jsonl"
        path.write_bytes(longer[:end])
        torn = Ledger(path)
        assert set(torn.marks) == {0}
        torn.mark(Mark(2, "done"))
        torn.close()
        assert set(Ledger(path).marks) == {0, 2}


def test_damage_in_the_middle_is_an_error(tmp_path):
    ledger = begun(tmp_path / "s.jsonl")
    ledger.mark(Mark(0, "done"))
    ledger.close()
    lines = (tmp_path / "s.jsonl").read_bytes().splitlines(keepends=True)
    lines[1] = b'{"event": "rea\n'
    (tmp_path / "s.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(DataError, match="line 2 is damaged"):
        Ledger(tmp_path / "s.jsonl")


def test_lines_are_plain_json(tmp_path):
    ledger = begun(tmp_path / "s.jsonl")
    ledger.mark(Mark(0, "done", 0.25))
    ledger.close()
    last = (tmp_path / "s.jsonl").read_text().splitlines()[-1]
    assert json.loads(last) == {"block": 0, "state": "done", "seconds": 0.25}


def _hold(folder, ready, leave):
    with run_lock(folder):
        ready.set()
        leave.wait(20)


def test_a_second_process_is_kept_out(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "ledger", ready, leave))
    process.start()
    try:
        assert ready.wait(60)
        with pytest.raises(RunLockedError, match=str(process.pid)), run_lock(tmp_path / "ledger"):
            pass
    finally:
        leave.set()
        process.join(20)
    with run_lock(tmp_path / "ledger"):
        pass
