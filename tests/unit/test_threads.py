"""Work on threads: order, errors, how many."""

import threading

import pytest

from pipeline.threads import map_threads, usable_threads


def test_results_come_in_the_order_of_the_items():
    assert map_threads(lambda x: x * x, range(50), threads=4) == [x * x for x in range(50)]
    assert map_threads(lambda x: x, [], threads=4) == []


def test_several_threads_work_and_one_stays_here():
    meet = threading.Barrier(3, timeout=10)
    seen = map_threads(lambda _: (meet.wait(), threading.get_ident())[1], range(3), threads=3)
    assert len(set(seen)) == 3
    here = map_threads(lambda _: threading.get_ident(), range(3), threads=1)
    assert set(here) == {threading.get_ident()}


def test_the_first_error_ends_it():
    began = []

    def fail(item):
        began.append(item)
        raise KeyError(item)

    with pytest.raises(KeyError, match="0"):
        map_threads(fail, range(1000), threads=2)
    assert len(began) < 1000


@pytest.mark.parametrize(("told", "expected"), [("3", 3), ("1", 1)])
def test_the_usual_variable_says_how_many(monkeypatch, told, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert usable_threads() == expected


@pytest.mark.parametrize("told", ["", "0", "many", "-2"])
def test_without_a_number_all_processors_are_used(monkeypatch, told):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert usable_threads() >= 1
