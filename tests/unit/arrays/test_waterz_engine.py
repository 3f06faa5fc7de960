from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.arrays import waterz_engine
from pipeline.arrays.agglomerate import agglomerate, fragment_to_segment
from pipeline.arrays.edges import EdgeTable
from pipeline.arrays.waterz_engine import agglomerate_with_waterz, merge_cost
from pipeline.arrays.waterz_process import SCORINGS, scoring_function
from pipeline.errors import DtypeError, InputError, ShapeError, StageError

Lookup = dict[int, int]


def as_dict(lookup: tuple[NDArray[np.uint64], NDArray[np.uint64]]) -> Lookup:
    ids, segments = lookup
    assert ids.dtype == segments.dtype == np.uint64
    assert (ids[1:] > ids[:-1]).all()
    assert (segments < ids).all()
    return dict(zip(ids.tolist(), segments.tolist(), strict=True))


def pair(values: list[int], dtype: type = np.uint8) -> tuple[NDArray, NDArray[np.uint64]]:
    """Fragments 1 and 2, left and right, touching at one face per value."""
    affinities = np.zeros((3, 1, len(values), 2), dtype)
    affinities[2, 0, :, 1] = values
    fragments = np.ones((1, len(values), 2), np.uint64)
    fragments[..., 1] = 2
    return affinities, fragments


def chain(*values: int) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """Fragments 1, 2, 3 ... in a row; `values` are the affinities between them."""
    affinities = np.zeros((3, 1, 1, len(values) + 1), np.uint8)
    affinities[2, 0, 0, 1:] = values
    return affinities, np.arange(1, len(values) + 2, dtype=np.uint64).reshape(1, 1, -1)


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise AssertionError(f"a process was started on {folder}")

    monkeypatch.setattr(waterz_engine, "_run", refuse)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


# --- What it gives


def test_thresholds_in_any_order_and_segments_named_by_their_smallest_fragment() -> None:
    affinities, fragments = chain(100, 250, 150)
    found = agglomerate_with_waterz(affinities, fragments, [0.5, 0.9, 0.2, 0.5, 1.0])
    assert list(found) == [0.5, 0.9, 0.2, 1.0]
    assert as_dict(found[1.0]) == {}
    assert as_dict(found[0.9]) == {3: 2}
    assert as_dict(found[0.5]) == {3: 2, 4: 2}
    assert as_dict(found[0.2]) == {2: 1, 3: 1, 4: 1}


def test_the_mean_counts_every_face_between_two_regions() -> None:
    # 1-2 merge first (250). Then 3 touches them with 180 and 0: mean 90. Fragment 0 is background.
    affinities = np.zeros((3, 1, 2, 3), np.uint8)
    fragments = np.array([[[1, 2, 0], [3, 3, 0]]], np.uint64)
    affinities[2, 0, 0, 1] = 250
    affinities[1, 0, 1, :] = 180, 0, 255
    affinities[2, 0, :, 2] = 255  # to the background
    found = agglomerate_with_waterz(affinities, fragments, [91 / 255, 90 / 255])
    assert as_dict(found[91 / 255]) == {2: 1}
    assert as_dict(found[90 / 255]) == {2: 1, 3: 1}


def test_the_first_planes_and_further_channels_are_ignored() -> None:
    affinities = np.full((5, 2, 2, 2), 255, np.uint8)
    fragments = np.arange(1, 9, dtype=np.uint64).reshape(2, 2, 2)
    affinities[0, 1], affinities[1, :, 1], affinities[2, :, :, 1] = 0, 0, 0
    assert as_dict(agglomerate_with_waterz(affinities, fragments, [0.1])[0.1]) == {}
    affinities[1, 1, 1, 0] = 255  # y: voxels (1, 0, 0) and (1, 1, 0)
    assert as_dict(agglomerate_with_waterz(affinities, fragments, [0.1])[0.1]) == {7: 5}


def test_ids_of_any_size() -> None:
    affinities, fragments = chain(255, 0, 255)
    names = np.array([0, 2**63, 7, 2**40, 2**63 - 1], np.uint64)
    found = agglomerate_with_waterz(affinities, names[fragments.astype(int)], [0.5])[0.5]
    assert as_dict(found) == {2**63: 7, 2**63 - 1: 2**40}


def test_inputs_are_not_changed_and_may_be_views() -> None:
    rng = np.random.default_rng(0)
    affinities = rng.integers(0, 65536, (3, 4, 5, 6)).astype(np.uint16)
    fragments = rng.integers(0, 9, (4, 5, 6)).astype(np.uint64)
    kept = affinities.copy(), fragments.copy()
    affinities.setflags(write=False)
    fragments.setflags(write=False)
    expected = agglomerate_with_waterz(affinities, fragments, [0.4])[0.4]
    np.testing.assert_array_equal(affinities, kept[0])
    np.testing.assert_array_equal(fragments, kept[1])
    assert len(expected[0]) > 3
    padded = np.zeros((4, 8, 5, 6), np.uint16)
    padded[:3, ::2] = affinities
    views = padded[:, ::2], np.asfortranarray(fragments)
    assert as_dict(agglomerate_with_waterz(*views, [0.4])[0.4]) == as_dict(expected)


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("shape", [(2, 3, 4), (0, 3, 4)])
def test_without_contacts_nothing_is_started(shape: tuple[int, ...]) -> None:
    affinities = np.full((3, *shape), 255, np.uint8)
    for value in (0, 5):
        found = agglomerate_with_waterz(affinities, np.full(shape, value, np.uint64), [0.5, 0.1])
        assert [as_dict(lookup) for lookup in found.values()] == [{}, {}]


# --- Quantiles


@pytest.mark.parametrize(
    ("scoring", "score"),
    [
        ("quantile_10", 10),  # rank floor(0.4) + 1 of 4
        ("quantile_25", 20),  # rank 2
        ("quantile_50", 30),  # rank 3: the upper median
        ("quantile_75", 200),  # rank 4
        ("quantile_95", 200),
        ("quantile_10_initmax", 200),  # only the largest affinity of a contact counts
        ("quantile_50_initmax", 200),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_quantiles_by_hand(scoring: str, score: int, dtype: type) -> None:
    values = [30, 200, 10, 20]
    affinities, fragments = pair(values if dtype is np.uint8 else [256 * v for v in values], dtype)
    levels = [score / 255, (score + 1) / 255]
    found = agglomerate_with_waterz(affinities, fragments, levels, scoring=scoring)  # type: ignore
    assert [as_dict(found[t]) for t in levels] == [{2: 1}, {}]


def test_a_merged_contact_holds_the_affinities_of_both() -> None:
    # 1-2 merge first; then 3 touches them with {200} and {50, 60}: the upper median is 60.
    affinities = np.zeros((3, 1, 2, 3), np.uint8)
    fragments = np.array([[[1, 2, 2], [3, 3, 3]]], np.uint64)
    affinities[2, 0, 0, 1] = 255
    affinities[1, 0, 1] = 200, 50, 60
    for scoring, score in (("quantile_50", 60), ("quantile_50_initmax", 200)):
        levels = [score / 255, (score + 1) / 255]
        found = agglomerate_with_waterz(affinities, fragments, levels, scoring=scoring)  # type: ignore
        assert [as_dict(found[t]) for t in levels] == [{2: 1, 3: 1}, {2: 1}], scoring


def test_the_scores_offered_are_those_that_the_package_ships() -> None:
    from waterz._prebuilt import agglomerate as shipped

    unsorted = {function for function, bins in shipped.SPECS if bins == "0"}
    by_size = {function for function in unsorted if "Size" in function}  # ignores the affinities
    assert len(by_size) == 1
    ours = {scoring_function(name).replace(" ", "") for name in SCORINGS}
    assert ours == unsorted - by_size
    assert len(ours) == len(SCORINGS) == 37


# --- Thresholds


def many_pairs(values: NDArray) -> tuple[NDArray, NDArray[np.uint64]]:
    """Row 2 k holds two fragments, 2 k + 1 and 2 k + 2, that touch with values[k]."""
    n = len(values)
    affinities = np.zeros((3, 1, 2 * n, 2), values.dtype)
    affinities[2, 0, ::2, 1] = values
    fragments = np.zeros((1, 2 * n, 2), np.uint64)
    fragments[0, ::2] = np.arange(1, 2 * n + 1).reshape(n, 2)
    return affinities, fragments


@pytest.mark.parametrize("scoring", ["mean", "quantile_50", "quantile_95_initmax"])
def test_every_affinity_passes_exactly_the_thresholds_that_it_should(scoring: str) -> None:
    values = np.arange(256, dtype=np.uint8)
    exact = [q / 255 for q in range(0, 256, 5)]
    levels = [0.0, 1.0, 0.3, 0.7, *exact, *(np.nextafter(exact[1:], 0)), *np.nextafter(exact, 1)]
    levels = [float(t) for t in levels if t <= 1]
    found = agglomerate_with_waterz(*many_pairs(values), levels, scoring=scoring)  # type: ignore
    for t in levels:
        assert as_dict(found[t]) == {2 * q + 2: 2 * q + 1 for q in range(256) if q / 255 >= t}, t


def test_every_affinity_of_16_bits_passes_exactly_the_thresholds_that_it_should() -> None:
    values = np.arange(65536, dtype=np.uint16)
    exact = [q / 65535 for q in (0, 1, 2, 255, 256, 257, 12345, 32767, 32768, 54321, 65534, 65535)]
    levels = [0.1, 1e-9, *exact, *np.nextafter(exact[1:], 0), *np.nextafter(exact[:-1], 1)]
    found = agglomerate_with_waterz(*many_pairs(values), levels)
    for t in levels:
        passing = np.flatnonzero(values / 65535 >= t)
        np.testing.assert_array_equal(found[t][0], 2 * passing + 2)
        np.testing.assert_array_equal(found[t][1], 2 * passing + 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_costs_fall_between_neighbouring_means(dtype: type) -> None:
    scale = np.iinfo(dtype).max
    for q in range(1, scale + 1, max(1, scale // 500)):
        cost = np.float32(merge_cost((q - 0.5) / scale, np.dtype(dtype)))
        half = np.float32((q - 0.5) / (scale + 1))  # exact: what waterz holds for this mean
        below = np.nextafter(half, np.float32(0)) - np.float32(2**-24)
        assert np.float32(1 - float(half)) < cost <= np.float32(1 - float(below))


# --- Where waterz rounds


def test_a_mean_of_a_thousand_equal_faces_is_rounded_below_them() -> None:
    """waterz's running mean in float32 drifts: 54320.32 where each affinity is 54321."""
    affinities, fragments = pair([54321] * 1000, np.uint16)
    levels = [t / 65535 for t in (54321, 54320.5, 54320.25)]
    found = agglomerate_with_waterz(affinities, fragments, levels)
    assert [as_dict(found[t]) for t in levels] == [{}, {}, {2: 1}]
    history = agglomerate(EdgeTable(*np.array([[1], [2], [54321000], [1000]])), 0.5, 65535)
    assert as_dict(fragment_to_segment(history, levels[0])) == {2: 1}


def test_scores_closer_than_its_rounding_merge_in_another_order() -> None:
    """1-2 at 54321 (1,000 faces) comes before 1-3 at 54320.5 (two); not so in waterz."""
    affinities = np.zeros((3, 1, 2, 1002), np.uint16)
    fragments = np.ones((1, 2, 1002), np.uint64)
    fragments[0, 1, :1000], fragments[0, 1, 1000:] = 2, 3
    affinities[1, 0, 1] = 54321
    affinities[1, 0, 1, 1000] = 54320
    table = EdgeTable(*np.array([[1, 1, 2], [2, 3, 3], [54321000, 108641, 0], [1000, 2, 1]]))
    threshold = 54300 / 65535
    exact = fragment_to_segment(agglomerate(table, threshold, 65535), threshold)
    assert as_dict(exact) == {2: 1}
    assert as_dict(agglomerate_with_waterz(affinities, fragments, [threshold])[threshold]) == {3: 1}


# --- The process


def test_it_prints_nothing_here(capfd: pytest.CaptureFixture[str], temporary: Path) -> None:
    agglomerate_with_waterz(*chain(10, 200), [0.5])
    assert capfd.readouterr() == ("", "")
    assert list(temporary.iterdir()) == [], "the exchange is gone"


def test_waterz_itself_prints(capfd: pytest.CaptureFixture[str]) -> None:
    """What the process is silenced for."""
    import waterz

    affinities, fragments = chain(10, 200)
    list(waterz.agglomerate(affinities.astype(np.float32), [0.5], fragments=fragments))
    assert "merging until" in capfd.readouterr().out


def dies(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys\n{code}"]


def test_a_process_that_is_killed(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    killed = dies("print('so far', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)")
    monkeypatch.setattr(waterz_engine, "_command", lambda folder: killed)
    with pytest.raises(StageError, match=r"signal 9 .*out of memory(?s:.)*so far"):
        agglomerate_with_waterz(*chain(10, 200), [0.5])
    assert list(temporary.iterdir()) == []


def test_a_process_that_fails(
    monkeypatch: pytest.MonkeyPatch, temporary: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fails = dies(
        "print(*(f'line {k}' for k in range(90)), sep='\\n', file=sys.stderr); sys.exit(3)"
    )
    monkeypatch.setattr(waterz_engine, "_command", lambda folder: fails)
    with pytest.raises(StageError, match="exit code 3") as failure:
        agglomerate_with_waterz(*chain(10, 200), [0.5])
    message = str(failure.value)
    assert "line 89" in message
    assert "line 82" in message
    assert "line 81" not in message
    assert "memory" not in message
    assert list(temporary.iterdir()) == []
    assert capfd.readouterr() == ("", "")


_SHORT_OF_MEMORY = """
import resource, pathlib, numpy, waterz
from pipeline.arrays.waterz_process import run
both = numpy.array([[[1, 2]]], numpy.uint64)
list(waterz.agglomerate(numpy.zeros((3, 1, 1, 2), numpy.float32), [0.5], fragments=both))
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2**23
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
run(pathlib.Path(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_process_short_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    affinities = np.zeros((3, 64, 64, 64), np.uint8)
    fragments = np.arange(1, 64**3 + 1, dtype=np.uint64).reshape(64, 64, 64)
    short = dies(_SHORT_OF_MEMORY)
    monkeypatch.setattr(waterz_engine, "_command", lambda folder: [*short, str(folder)])
    with pytest.raises(StageError, match=r"probably out of memory"):
        agglomerate_with_waterz(affinities, fragments, [0.5])


def test_an_array_that_does_not_fit_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waterz_engine, "_command", lambda _: dies("raise MemoryError('1 TiB')"))
    with pytest.raises(StageError, match=r"exit code 1; probably out of memory(?s:.)*1 TiB"):
        agglomerate_with_waterz(*chain(10, 200), [0.5])


def test_no_compiler_is_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unshipped = "OneMinus<MaxAffinity<RegionGraphType, ScoreValue>>"
    monkeypatch.setattr(waterz_engine, "scoring_function", lambda _: unshipped)
    (tmp_path / "witty.py").write_text("compile_cython = print")  # what waterz would compile with
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StageError, match=r"MaxAffinity.*requires witty"):
        agglomerate_with_waterz(*chain(10, 200), [0.5])


def test_compiled_scores_are_used_whatever_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATERZ_NO_PREBUILT", "1")
    assert as_dict(agglomerate_with_waterz(*chain(10, 200), [0.5])[0.5]) == {3: 2}


def in_a_daemon() -> None:
    assert multiprocessing.current_process().daemon
    assert as_dict(agglomerate_with_waterz(*chain(10, 200), [0.5])[0.5]) == {3: 2}


def test_it_runs_in_a_daemon() -> None:
    """Dask's workers are daemons, which `multiprocessing` forbids to have children."""
    worker = multiprocessing.get_context("spawn").Process(target=in_a_daemon, daemon=True)
    worker.start()
    worker.join()
    assert worker.exitcode == 0


_WAITS = """
import pathlib, subprocess, sys
from pipeline.arrays.waterz_engine import _command
subprocess.run(_command(pathlib.Path(sys.argv[1])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text("{}")
    os.mkfifo(tmp_path / "affinities.npy")
    with subprocess.Popen(
        [sys.executable, "-c", _WAITS, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as worker:
        assert worker.stdout is not None
        affinities = os.open(tmp_path / "affinities.npy", os.O_WRONLY)  # waits for the reader
        worker.kill()
        # A process that has outlived its worker reads the end of the file, and says so.
        in_vain = threading.Timer(20, os.close, [affinities])
        in_vain.start()
        said = worker.stdout.read()  # ends when both have
        in_vain.cancel()
        assert said == b""
        os.close(affinities)


# --- What is refused


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"affinities": np.zeros((3, 1, 1, 3), np.float32)}, DtypeError, "uint8 or uint16"),
        ({"fragments": np.ones((1, 1, 3), np.uint32)}, DtypeError, "uint64, got uint32"),
        ({"fragments": np.ones((1, 1, 3), np.int64)}, DtypeError, "uint64, got int64"),
        ({"fragments": np.ones((1, 3, 1), np.uint64)}, ShapeError, r"\(1, 3, 1\)"),
        ({"fragments": np.ones((1, 3), np.uint64)}, ShapeError, r"\(1, 3\)"),
        ({"affinities": np.zeros((2, 1, 1, 3), np.uint8)}, ShapeError, r"\(2, 1, 1, 3\)"),
        ({"affinities": np.zeros((1, 1, 3), np.uint8)}, ShapeError, r"\(1, 1, 3\)"),
        ({"thresholds": []}, InputError, "no threshold"),
        ({"thresholds": [0.5, 1.01]}, InputError, r"\[0, 1\], got 1.01"),
        ({"thresholds": [-0.1]}, InputError, r"\[0, 1\], got -0.1"),
        ({"thresholds": [float("nan")]}, InputError, r"\[0, 1\], got nan"),
        ({"scoring": "quantile_33"}, InputError, "'quantile_33', and none is compiled.* mean"),
        ({"scoring": "OneMinus<MaxAffinity<RegionGraphType, ScoreValue>>"}, InputError, "MaxAff"),
    ],
)
def test_what_is_refused_before_a_process_is_started(
    change: dict, error: type[Exception], message: str
) -> None:
    affinities, fragments = chain(10, 200)
    call = {"affinities": affinities, "fragments": fragments, "thresholds": [0.5], **change}
    with pytest.raises(error, match=message):
        agglomerate_with_waterz(**call)


@pytest.mark.usefixtures("no_process")
def test_more_fragments_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waterz_engine, "MAX_FRAGMENTS", 2)
    with pytest.raises(InputError, match="3 fragments, waterz is given 2"):
        agglomerate_with_waterz(*chain(10, 200), [0.5])


def test_more_faces_than_its_quantiles_count(monkeypatch: pytest.MonkeyPatch) -> None:
    affinities, fragments = pair([100, 100, 100])  # three faces between fragments
    affinities = np.pad(affinities, ((0, 0), (0, 1), (0, 1), (0, 1)))
    fragments = np.pad(fragments, (0, 1))
    monkeypatch.setattr(waterz_engine, "_MAX_RANK", 3 * 50)
    with pytest.raises(InputError, match=r"touch at 3 faces.* up to 2:"):
        agglomerate_with_waterz(affinities, fragments, [0.3], scoring="quantile_50")
    for scoring in ("mean", "quantile_45"):
        found = agglomerate_with_waterz(affinities, fragments, [0.3], scoring=scoring)  # type: ignore
        assert as_dict(found[0.3]) == {2: 1}


def test_contact_faces_are_voxel_pairs_of_two_fragments() -> None:
    fragments = np.random.default_rng(0).integers(0, 3, (3, 4, 5)).astype(np.uint64)
    expected = 0
    for axis in range(3):
        here = np.moveaxis(fragments, axis, 0)
        expected += int(((here[1:] * here[:-1] > 0) & (here[1:] != here[:-1])).sum())
    assert waterz_engine._contact_faces(fragments) == expected
