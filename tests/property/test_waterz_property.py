"""waterz against the exact engine, and what a quantile would promise as a score of the latter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from fractions import Fraction

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import shapes

from pipeline.arrays.agglomerate import agglomerate, fragment_to_segment
from pipeline.arrays.edges import EdgeTable
from pipeline.arrays.fragments import extract_fragments
from pipeline.arrays.labels import SparseMap
from pipeline.arrays.waterz_engine import agglomerate_with_waterz
from pipeline.geometry import Triple

QUICK = settings(deadline=None, max_examples=100, derandomize=True)
A_PROCESS_EACH = settings(deadline=None, max_examples=30, derandomize=True)

Pair = tuple[int, int]
Values = tuple[int, ...]
Contacts = dict[Pair, Values]
Merge = tuple[Fraction, Fraction | None, int, int]
"""Score, score of the next best edge (None if there is none), kept, absorbed."""


# --- Reference: dictionaries that keep every affinity of every contact


def contacts_of(affinities: NDArray, fragments: NDArray[np.uint64]) -> Contacts:
    found: dict[Pair, list[int]] = defaultdict(list)
    for d in range(3):
        here = np.moveaxis(fragments, d, 0)
        stored = np.moveaxis(affinities[d], d, 0)
        touching = (here[1:] != here[:-1]) & (here[1:] != 0) & (here[:-1] != 0)
        sides = (here[1:][touching], here[:-1][touching], stored[1:][touching])
        for a, b, value in zip(*(side.tolist() for side in sides), strict=True):
            found[min(a, b), max(a, b)].append(value)
    return {pair: tuple(values) for pair, values in found.items()}


def mean(values: Values) -> Fraction:
    return Fraction(sum(values), len(values))


def quantile(percent: int) -> Callable[[Values], Fraction]:
    """The value of rank floor(percent * n / 100) + 1 from below."""

    def score(values: Values) -> Fraction:
        return Fraction(sorted(values)[percent * len(values) // 100])

    return score


def merges(contacts: Contacts, score: Callable[[Values], Fraction]) -> list[Merge]:
    """All merges, best first; parallel edges hold the affinities of both."""
    edges = {pair: (score(values), values) for pair, values in contacts.items()}
    done: list[Merge] = []
    while edges:
        ranked = sorted(((s, pair) for pair, (s, _) in edges.items()), reverse=True)[:2]
        best, (kept, absorbed) = ranked[0]
        done.append((best, ranked[1][0] if len(ranked) > 1 else None, kept, absorbed))
        del edges[kept, absorbed]
        for pair in [pair for pair in edges if absorbed in pair]:
            values = edges.pop(pair)[1]
            other = pair[0] if pair[1] == absorbed else pair[1]
            moved = (min(kept, other), max(kept, other))
            values += edges[moved][1] if moved in edges else ()
            edges[moved] = (score(values), values)
    return done


def lookup_of(done: Iterable[Merge], lowest: Fraction | float) -> dict[int, int]:
    """Fragment to segment after the merges down to a score."""
    segment: dict[int, int] = {}
    for score, _, kept, absorbed in done:
        if score < lowest:
            break
        segment = {f: kept if s == absorbed else s for f, s in segment.items()}
        segment[absorbed] = kept
    return segment


def as_dict(lookup: SparseMap) -> dict[int, int]:
    return dict(zip(lookup[0].tolist(), lookup[1].tolist(), strict=True))


# --- The mean


def rounding(contacts: Contacts, done: list[Merge]) -> Fraction:
    """How far two means of waterz can be off together, in affinities of 16 bits.

    A running mean in float32, of values below 1, takes three roundings of at most 2^-24 a face; an
    error made at face j of n weighs j / n in the end, which adds up to 3 / 2 * (n + 1). Falling
    together takes three more each time, at most once a merge, and 1 - mean half a one.
    """
    faces = max(len(values) for values in contacts.values())
    ulps = Fraction(3, 2) * (faces + 1) + 3 * len(done) + Fraction(1, 2)
    return 2 * ulps * Fraction(65536, 2**24)


def is_clear(contacts: Contacts, done: list[Merge], levels: list[float]) -> bool:
    """No two scores compared, and no score and threshold, are closer than waterz can tell."""
    close = rounding(contacts, done)
    ties = any(after is not None and score - after <= close for score, after, *_ in done)
    return not ties and all(
        abs(score - Fraction(level) * 65535) > close for score, *_ in done for level in levels
    )


def distinct(shape: Triple, seed: int) -> NDArray[np.uint16]:
    size = 3 * int(np.prod(shape))
    return (
        np.random.default_rng(seed).permutation(65536)[:size].astype(np.uint16).reshape(3, *shape)
    )


def whole_volume(
    affinities: NDArray[np.uint16], low: int, high: int
) -> tuple[NDArray[np.uint64], EdgeTable]:
    shape = affinities.shape[1:]
    found = extract_fragments(
        affinities, origin=(0, 0, 0), write_shape=shape, volume_shape=shape, low=low, high=high
    )
    return found.labels, found.edges


@A_PROCESS_EACH
@given(
    shapes(max_side=6, min_side=2),
    st.integers(0, 2**32 - 1),
    st.integers(1, 40_000),
    st.integers(40_000, 65_535),
    st.lists(st.floats(0, 1), min_size=1, max_size=4, unique=True),
)
def test_waterz_agrees_with_the_exact_engine(
    shape: Triple, seed: int, low: int, high: int, levels: list[float]
) -> None:
    affinities = distinct(shape, seed)
    fragments, table = whole_volume(affinities, low, high)
    contacts = contacts_of(affinities, fragments)
    assume(contacts)
    done = merges(contacts, mean)
    assume(is_clear(contacts, done, levels))
    history = agglomerate(table, 0.0, 65535)
    found = agglomerate_with_waterz(affinities, fragments, levels)
    for level in levels:
        exact = as_dict(fragment_to_segment(history, level))
        assert exact == lookup_of(done, Fraction(level) * 65535)
        assert as_dict(found[level]) == exact


ISLANDS = 90
LEVELS = [0.85, 0.3, 0.5, 0.7, 0.1]


def islands(seed: int) -> NDArray[np.uint16]:
    """Volumes of (4, 5, 6) one behind the other in z, a plane without affinities between."""
    affinities = distinct((5 * ISLANDS, 5, 6), seed)
    affinities[:, 4::5] = 0
    affinities[0, 5::5] = 0
    return affinities


def test_enough_cases_are_clear_and_in_all_of_them_waterz_agrees() -> None:
    affinities = islands(seed=1)
    fragments, table = whole_volume(affinities, low=2_000, high=64_000)
    history = agglomerate(table, 0.0, 65535)
    exact = {t: as_dict(fragment_to_segment(history, t)) for t in LEVELS}
    found = {
        t: as_dict(lookup)
        for t, lookup in agglomerate_with_waterz(affinities, fragments, LEVELS).items()
    }
    clear = merged = 0
    for island in range(ISLANDS):
        planes = slice(5 * island, 5 * island + 4)
        contacts = contacts_of(affinities[:, planes], fragments[planes])
        done = merges(contacts, mean)
        if not is_clear(contacts, done, LEVELS):
            continue
        clear += 1
        inside = set(fragments[planes].ravel().tolist())
        for level in LEVELS:
            expected = {f: s for f, s in exact[level].items() if f in inside}
            assert expected == lookup_of(done, Fraction(level) * 65535)
            assert {f: s for f, s in found[level].items() if f in inside} == expected
            merged += len(expected)
    print(clear, merged)
    assert clear >= 50
    assert merged >= 1_000
