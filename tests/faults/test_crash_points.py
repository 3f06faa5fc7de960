"""A run may end before any write, or in the middle of one: the next run ends in the same bytes.

Writes are seen where they leave the process. Python tells an audit hook of every file or folder
that it makes, renames or removes; native code and files that stay open tell nothing, so chunks of
volumes, Arrow files and lines of ledgers are watched at the functions that write them. A test at
the end holds the writes that were seen against the files that are there.

A killed process leaves what was on disk before its next write. So one run, whose folder is
photographed before each write, gives every state that a kill can leave; after one write is before
the next. An interrupt is another matter: what the code does on its way out is done.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow
import pytest
import zarr

from flows.runs import prepare, run_stages
from pipeline.config import parse_config
from pipeline.stages import plan
from pipeline.storage.ledger import COMPLETE, Ledger
from pipeline.storage.volume import Volume
from workers.runner import Order, StageReport

# Five blocks in a row, the first one empty: groups and groups of groups. Two boxes of output.
SHAPE = (2, 3, 300)
SECTION: dict[str, Any] = {
    "block": (2, 3, 60), "group": (2, 3, 180), "low": 0.4, "high": 0.9, "thresholds": (0.6, 0.5),
    "min_voxels": 3,
}  # fmt: skip
ARTIFACTS = {"fragments", "segments", "edges", "history", "lookup"}
# The one file that a write that was cut short leaves for good: it belongs to no stage.
LEFT_OVER = re.compile(r"\.config\.yaml\.[0-9a-f]{8}\.tmp")
# Names of files that are written before they are renamed, here and in zarr.
UNFINISHED = re.compile(r"\.[0-9a-f]+\.(tmp|partial)$")


# --- watching writes


@dataclass(frozen=True)
class Write:
    """One write to the watched folder, named relative to it."""

    kind: str
    path: str
    target: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.path}" + (f" to {self.target}" if self.target else "")


class Watch:
    """Calls `before` ahead of every write below `folder`, whichever thread it comes from."""

    active: Watch | None = None
    listening = False

    def __init__(self, folder: Path, before: Callable[[Write], None]) -> None:
        self.folder, self.before = str(folder), before
        self._lock, self._patches = threading.RLock(), ExitStack()

    def __enter__(self) -> Watch:
        if not Watch.listening:  # for the life of the process, but deaf while nothing is watched
            sys.addaudithook(
                lambda event, values: Watch.active and Watch.active.hear(event, values)
            )
            Watch.listening = True
        for owner, name, kind in (
            (Volume, "write", "chunks"),
            (Ledger, "_append", "line"),
            (pyarrow, "OSFile", "arrow"),
        ):
            self._patches.enter_context(patch.object(owner, name, self._told(owner, name, kind)))
        Watch.active = self
        return self

    def __exit__(self, *_error: object) -> None:
        Watch.active = None
        self._patches.close()

    def _told(self, owner: Any, name: str, kind: str) -> Callable[..., Any]:
        real = getattr(owner, name)

        def told(first: Any, *rest: Any, **options: Any) -> Any:
            if kind != "arrow" or rest[:1] != ("rb",):
                self.note(kind, str(getattr(first, "path", first)))
            return real(first, *rest, **options)

        return told

    def hear(self, event: str, values: tuple[Any, ...]) -> None:
        if event in ("os.rename", "os.link"):
            self.note(event, os.fsdecode(values[0]), os.fsdecode(values[1]))
        elif event in ("os.remove", "os.rmdir"):
            path = _absolute(values[0], values[1])
            if os.path.lexists(path):
                self.note(event, path)
        elif event == "os.mkdir":
            path = _absolute(values[0], values[2])
            if not os.path.lexists(path) and os.path.lexists(os.path.dirname(path)):
                self.note(event, path)
        elif event == "open" and values[2] & (os.O_CREAT | os.O_TRUNC):
            path = "" if isinstance(values[0], int) else os.fsdecode(values[0])
            if values[2] & os.O_TRUNC or not os.path.lexists(path):
                self.note(event, path)

    def note(self, kind: str, path: str, target: str = "") -> None:
        if (path + "/").startswith(self.folder + "/"):
            names = (os.path.relpath(p, self.folder) if p else "" for p in (path, target))
            with self._lock:
                self.before(Write(kind, *names))


def _absolute(path: Any, folder: int) -> str:
    """`shutil.rmtree` names files by a descriptor of their folder."""
    name = os.fsdecode(path)
    return name if folder == -1 else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)


# --- states of a folder

Photo = dict[str, bytes | None]
"""Every file with its content, and every folder."""


def photograph(folder: Path) -> Photo:
    found: Photo = {}
    for where, _, names in os.walk(folder):
        found[os.path.relpath(where, folder)] = None
        for name in names:
            path = Path(where, name)
            if path.exists():  # another thread may just have renamed it
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def restore(photo: Photo, folder: Path) -> None:
    """Make the folder what it was; what has not changed is left alone."""
    present = photograph(folder)
    for name in sorted(present.keys() - photo.keys(), reverse=True):  # files before their folder
        remove = Path.rmdir if present[name] is None else Path.unlink
        remove(folder / name)
    for name, content in photo.items():
        if name in present and content == present[name]:
            continue
        if content is None:
            (folder / name).mkdir(parents=True)
        else:
            (folder / name).write_bytes(content)


def cut_short(write: Write, before: Photo, after: Photo) -> Iterator[Photo]:
    """What there is if the process dies in the middle of a write that is not done at once."""
    grown = sorted(n for n, data in after.items() if data is not None and data != before.get(n))
    if write.kind == "chunks":
        # Chunks are written one by one, each as a lock file that is renamed.
        missing = grown[len(grown) // 2 :]
        half = {n: data for n, data in after.items() if n not in missing}
        half |= {n: before[n] for n in missing if n in before}
        yield half
        for name in missing[:1]:
            yield half | {f"{name}.__lock": after[name][: len(after[name]) // 2]}
    elif write.kind in ("open", "arrow", "line"):
        for name in grown:
            old, new = before.get(name) or b"", after[name]
            kept = len(old) if new.startswith(old) else 0
            # A line without its end may be cut where it can be read all the same.
            whole = write.kind == "line" and len(new) % 2
            yield after | {name: new[: len(new) - 1 if whole else (kept + len(new)) // 2]}


@dataclass
class Recording:
    """Every write of a run, and the folder before each and at the end."""

    writes: list[Write]
    photos: list[Photo]

    @classmethod
    def of(cls, folder: Path, action: Callable[[], object]) -> Recording:
        writes, photos = list[Write](), list[Photo]()

        def before(write: Write) -> None:
            writes.append(write)
            photos.append(photograph(folder))

        with Watch(folder, before):
            action()
        return cls(writes, [*photos, photograph(folder)])

    def states(self) -> list[tuple[str, Photo]]:
        """Every state that a kill can leave, with its name; none twice."""
        known = {}
        for name, state in self._states():
            # What an unfinished file holds makes no other state.
            plain = ((n, "" if UNFINISHED.search(n) else data) for n, data in state.items())
            identity = frozenset((UNFINISHED.sub("", n), data) for n, data in plain)
            known.setdefault(identity, (name, state))
        return list(known.values())

    def _states(self) -> Iterator[tuple[str, Photo]]:
        pairs = itertools.pairwise(self.photos)
        for number, (write, (before, after)) in enumerate(zip(self.writes, pairs, strict=True)):
            # Before a file is begun, and with a piece of it beside where it is to be: to save time
            # just the second.
            if write.kind not in ("open", "arrow") or not UNFINISHED.search(write.path):
                yield f"before write {number}, {write}", before
            for state in cut_short(write, before, after):
                yield f"in write {number}, {write}", state
        yield "after the last write", self.photos[-1]


def spread(states: list[tuple[str, Photo]], at_most: int) -> list[tuple[str, Photo]]:
    """So many of the states, from first to last."""
    count = min(at_most, len(states))
    return [states[i * len(states) // count] for i in range(count)]


# --- running


@pytest.fixture(scope="module")
def affinities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype(np.uint8)
    data[..., :61] = 0
    path = tmp_path_factory.mktemp("input") / "affinities.zarr"
    zarr.create_array(path, shape=data.shape, dtype=data.dtype)[:] = data
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of this file's runs lie, one after the other: the path is a part of a run."""
    return tmp_path_factory.mktemp("crash") / "run"


@pytest.fixture(autouse=True, scope="module")
def small_and_quick() -> Iterator[None]:
    """Tables are cut as those of a large volume are, and nothing waits for the disk.

    Processes die here, the power stays on: what was written is there without being flushed.
    """
    with pytest.MonkeyPatch.context() as each:
        each.setattr(os, "fsync", lambda _descriptor: None)
        cut_tables(each)
        yield


def cut_tables(each: pytest.MonkeyPatch) -> None:
    """Slabs of ids of one plane."""
    each.setattr("pipeline.stages.id_slabs._SLAB_VOXELS", SHAPE[1] * SHAPE[2])
    each.setattr("pipeline.stages.id_slabs._SLAB_PLANES", 1)


def segment(
    out: Path, affinities: Path, order: Order | None = None, **changes: Any
) -> list[StageReport]:
    """Run all that leads from the affinities to the results, as a process that begins."""
    forget()
    config = parse_config(
        {
            "run_dir": out,
            "input": {"affinities": affinities},
            "segment": SECTION | changes,
            "execution": {"kind": "serial"},
        }
    )
    wanted, names = set(ARTIFACTS), []
    for stage in reversed(plan(config)):
        if wanted & set(stage.writes):
            names.append(stage.name)
            wanted |= {*stage.reads, *stage.optional}
    run, stages = prepare(config, only=names)
    return run_stages(run, stages, order=order)


def forget() -> None:
    """Empty every cache of the project: a new process has none."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("pipeline", "workers", "flows"):
            for value in list(vars(module).values()):
                if callable(getattr(value, "cache_clear", None)):
                    value.cache_clear()


def results(photo: Photo) -> Photo:
    """All but the ledger, which tells of time, and what was left over."""
    return {
        name: content
        for name, content in photo.items()
        if name.split("/")[0] != "ledger" and not LEFT_OVER.fullmatch(name.split("/")[-1])
    }


@pytest.fixture(scope="module")
def undisturbed(affinities: Path, folder: Path) -> Callable[..., Photo]:
    """The results of a run that nothing disturbs, with the usual settings or changed ones."""
    known: dict[str, Photo] = {}

    def of(**changes: Any) -> Photo:
        if str(changes) not in known:
            restore({}, folder)
            segment(folder, affinities, **changes)
            known[str(changes)] = results(photograph(folder))
        return known[str(changes)]

    return of


def differences(found: Photo, expected: Photo) -> list[str]:
    names = sorted(found.keys() | expected.keys())
    return [n for n in names if n not in found or n not in expected or found[n] != expected[n]]


def ledgers(photo: Photo) -> dict[str, list[dict[str, Any]]]:
    """The whole lines of each ledger."""
    return {
        name: [json.loads(line) for line in content.split(b"\n")[:-1]]
        for name, content in photo.items()
        if content is not None and name.endswith(".jsonl")
    }


def done_again(before: Photo, after: Photo, reports: Sequence[StageReport]) -> list[str]:
    """What the ledgers tell of blocks that were done before the run and done once more by it."""
    found, old, new = [], ledgers(before), ledgers(after)
    for name, lines in new.items():
        marks = [line["block"] for line in lines if line.get("state") in COMPLETE]
        if sorted(marks) != list(range(lines[0]["blocks"])):
            found.append(f"{name} marks blocks {marks}")
        kept = old.get(name, [])
        if kept and kept[0] == lines[0] and kept != lines[: len(kept)]:
            found.append(f"{name} began anew")
    for report in reports:
        lines = old.get(f"ledger/{report.stage}.jsonl", [])
        same = lines and lines[0] == new[f"ledger/{report.stage}.jsonl"][0]
        marked = sum(line.get("state") in COMPLETE for line in lines) if same else 0
        if (report.reused, report.computed) != (marked, report.blocks - marked):
            found.append(f"{report.stage}: {marked} blocks marked, {report.reused} reused")
    return found


def faults(
    state: Photo, folder: Path, expected: Photo, action: Callable[[], list[StageReport]]
) -> list[str]:
    """What is wrong after `action` went on from `state`; nothing, one hopes."""
    restore(state, folder)
    try:
        reports = action()
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    after = photograph(folder)
    return differences(results(after), expected) + done_again(state, after, reports)


# --- killed anywhere

# What lies in the folder before the run that is killed: nothing, or the results of other settings.
EARLIER: dict[str, dict[str, Any] | None] = {
    "nothing": None,
    "other blocks": {"block": (2, 2, 150), "low": 0.3},
    "other threshold": {"thresholds": (0.7,), "min_voxels": 0},
}


@pytest.fixture(scope="module")
def recorded(affinities: Path, folder: Path) -> Callable[[str], Recording]:
    """A run, from its first write to its last, on top of what was there before."""
    known: dict[str, Recording] = {}

    def of(earlier: str) -> Recording:
        if earlier not in known:
            restore({}, folder)
            changes = EARLIER[earlier]
            if changes is not None:
                segment(folder, affinities, **changes)
            order = Order("shuffled", 4)
            known[earlier] = Recording.of(folder, lambda: segment(folder, affinities, order))
        return known[earlier]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("earlier", EARLIER)
def test_killed_at_any_write_it_ends_in_the_same_bytes(
    affinities, folder, undisturbed, recorded, earlier
):
    """Every state of a run in an empty folder, some of one that replaces results."""
    expected, states = undisturbed(), recorded(earlier).states()
    wrong = {}
    for name, state in states if earlier == "nothing" else spread(states, 30):
        found = faults(state, folder, expected, lambda: segment(folder, affinities))
        if found:
            wrong[name] = found
    assert wrong == {}


@pytest.mark.slow
@pytest.mark.parametrize("earlier", ["other blocks", "other threshold"])
def test_killed_while_it_replaces_results_it_can_go_back_to_them(
    affinities, folder, undisturbed, recorded, earlier
):
    changes = EARLIER[earlier]
    expected, states = undisturbed(**changes), recorded(earlier).states()
    half_gone = [(name, state) for name, state in states if "os.rem" in name or "os.rmdir" in name]
    wrong = {}
    for name, state in [*spread(half_gone, 12), *spread(states, 5)]:
        restore(state, folder)
        segment(folder, affinities, **changes)
        found = differences(results(photograph(folder)), expected)
        if found:
            wrong[name] = found
    assert wrong == {}


# --- interrupted anywhere


class Interrupt(BaseException):
    """Nothing in the project may catch this."""


def interrupted(folder: Path, after: int, action: Callable[[], object]) -> bool:
    """Whether `action` was interrupted before its write number `after`."""
    writes = itertools.count()

    def before(write: Write) -> None:
        if next(writes) == after:
            raise Interrupt(f"before {write}")

    try:
        with Watch(folder, before):
            action()
    except Interrupt:
        return True
    assert next(writes) <= after, "somebody caught the interrupt"
    return False


@pytest.mark.slow
def test_interrupted_at_any_write_it_ends_in_the_same_bytes(affinities, folder, undisturbed):
    expected = undisturbed()
    wrong = {}
    for number in itertools.count(0, 5):
        restore({}, folder)
        if not interrupted(folder, number, lambda: segment(folder, affinities)):
            break
        state = photograph(folder)
        found = faults(state, folder, expected, lambda: segment(folder, affinities))
        if found:
            wrong[number] = found
    assert number > 100
    assert wrong == {}


@pytest.mark.parametrize("patience", [40, 55])
def test_interrupted_again_and_again_it_gets_there(affinities, folder, undisturbed, patience):
    """No attempt may do more than so many writes; each goes on from the one before."""
    expected = undisturbed()
    restore({}, folder)
    attempts = 1
    while interrupted(folder, patience, lambda: segment(folder, affinities)):
        attempts += 1
        assert attempts < 20
    assert attempts > 2
    after = photograph(folder)
    assert differences(results(after), expected) == []
    assert done_again({}, after, []) == []


# --- real processes


def die_before_write(number: int, folder: str, affinities: str) -> None:
    """The life of a process: segment, and be killed before a write. Below 0 it lives on."""
    writes = itertools.count()

    def before(_write: Write) -> None:
        if next(writes) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as each, Watch(Path(folder), before):
        cut_tables(each)
        segment(Path(folder), Path(affinities))


@pytest.mark.slow
def test_three_processes_are_killed_and_a_fourth_ends_in_the_same_bytes(
    affinities, folder, undisturbed
):
    expected = undisturbed()
    restore({}, folder)
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    for number in (47, 41, 33, -1):
        before = photograph(folder)
        values = number, str(folder), str(affinities)
        ended = subprocess.run(
            [sys.executable, "-c", f"import test_crash_points as t; t.die_before_write{values}"],
            env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert ended.returncode == (0 if number < 0 else -signal.SIGKILL), ended.stderr
        assert differences(before, photograph(folder)), "it did nothing"
    after = photograph(folder)
    assert differences(results(after), expected) == []
    assert done_again({}, after, []) == []


# --- the watch itself


def test_no_file_came_to_be_unseen(recorded):
    """Each file at the end was the object of a write, and the run has all kinds of them."""
    recording = recorded("nothing")
    seen = {name for write in recording.writes for name in (write.path, write.target)}
    volumes = tuple(f"{write.path}/0/c/" for write in recording.writes if write.kind == "chunks")
    end = recording.photos[-1]
    files = [name for name, content in end.items() if content is not None]
    assert [name for name in files if name not in seen and not name.startswith(volumes)] == []
    assert {write.kind for write in recording.writes} >= {
        "os.mkdir", "os.rename", "open", "chunks", "line", "arrow",
    }  # fmt: skip
    over = recorded("other blocks")
    assert {write.kind for write in over.writes} >= {"os.remove", "os.rmdir"}


def test_the_run_is_worth_killing(recorded):
    recording = recorded("nothing")
    lines = ledgers(recording.photos[-1])
    states = {line.get("state") for stage in lines.values() for line in stage}
    assert {"done", "empty"} <= states
    assert [name for name, stage in lines.items() if stage[0]["blocks"] < 2] == []
    halves = [name for name, _ in recording.states() if name.startswith("in write")]
    assert len(halves) > 50
    assert len(recording.states()) > 150
    chunks = [write for write in recording.writes if write.kind == "chunks"]
    assert len(chunks) >= 5
