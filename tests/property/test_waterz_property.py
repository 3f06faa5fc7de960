"""waterz against the exact engine, and what a quantile would promise as a score of the latter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

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
    assert clear >= 50
    assert merged >= 1_000, "fragments in segments, over all thresholds"


# --- Quantiles


@A_PROCESS_EACH
@given(
    shapes(max_side=4),
    st.integers(0, 2**32 - 1),
    st.sampled_from([10, 25, 50, 75, 95]),
    st.booleans(),
)
def test_waterz_merges_by_quantiles_as_defined(
    shape: Triple, seed: int, percent: int, initmax: bool
) -> None:
    """Distinct affinities, of 8 bits: a quantile is one of them, so no two contacts ever tie."""
    rng = np.random.default_rng(seed)
    affinities = rng.permutation(256)[: 3 * int(np.prod(shape))].astype(np.uint8).reshape(3, *shape)
    fragments = rng.integers(0, 12, shape).astype(np.uint64)
    contacts = contacts_of(affinities, fragments)
    if initmax:
        contacts = {pair: (max(values),) for pair, values in contacts.items()}
    done = merges(contacts, quantile(percent))
    assert all(after is None or after < score for score, after, *_ in done)
    levels = sorted({0.0, *(float(score) / 255 for score, *_ in done)})
    scoring: Any = f"quantile_{percent}{'_initmax' if initmax else ''}"
    found = agglomerate_with_waterz(affinities, fragments, levels, scoring=scoring)
    for level in levels:
        assert as_dict(found[level]) == lookup_of(done, Fraction(round(level * 255)))


values = st.lists(st.integers(0, 255), min_size=1, max_size=12).map(tuple)


@QUICK
@given(values, values, st.integers(0, 99))
def test_a_quantile_of_two_contacts_lies_between_theirs(a: Values, b: Values, percent: int) -> None:
    """What exact delayed merging needs of a score, for any percentage, any histograms.

    Proof. Let n be the faces, p = floor(Q n / 100) + 1 the rank, q the quantile of each of the two.
    At least p_1 + p_2 affinities are <= max(q_1, q_2), and floor(s) + floor(t) >= floor(s + t) - 1,
    so p_1 + p_2 is at least the rank of the union: its quantile is no larger. At most
    p_1 - 1 + p_2 - 1 are below min(q_1, q_2), and floor(s) + floor(t) <= floor(s + t), so its
    quantile is no smaller.
    """
    score = quantile(percent)
    low, high = sorted((score(a), score(b)))
    assert low <= score(a + b) <= high


def test_an_interpolated_quantile_does_not() -> None:
    one = np.array([0, 100])
    assert np.percentile(one, 75) == 75
    assert np.percentile(np.concatenate([one, one]), 75) == 100


# Merging in pieces: the rules of exact agglomeration, with any score and any rule for keys.
KeyRule = Callable[[Pair, Pair], Pair]
Keyed = dict[Pair, tuple[Values, Pair]]


def merge_down(
    edges: Keyed,
    score: Callable[[Values], Fraction],
    threshold: int,
    key_rule: KeyRule,
    frozen: Iterable[int] = (),
) -> tuple[Keyed, dict[int, int]]:
    """Best first, ties to the smallest key; an edge with a frozen end freezes both and waits.

    When edges fall together, `key_rule` says which of their two keys stays: min or max. Returns the
    edges that are left and, for every absorbed region, what keeps it.
    """
    held = set(frozen)
    edges, waiting, parents = dict(edges), set[Pair](), dict[int, int]()

    def rank(pair: Pair) -> tuple[Fraction, Pair]:
        return -score(edges[pair][0]), edges[pair][1]

    while ready := [p for p in edges if p not in waiting and score(edges[p][0]) >= threshold]:
        best = min(ready, key=rank)
        if held.intersection(best):
            held.update(best)
            waiting.add(best)
            continue
        kept, absorbed = best
        parents[absorbed] = kept
        del edges[best]
        for pair in [pair for pair in edges if absorbed in pair]:
            found, key = edges.pop(pair)
            other = pair[0] if pair[1] == absorbed else pair[1]
            moved = (min(kept, other), max(kept, other))
            if moved in edges:
                found, key = found + edges[moved][0], key_rule(key, edges[moved][1])
            edges[moved] = (found, key)
    return edges, parents


def at_once(contacts: Contacts, *rules: Any) -> dict[int, int]:
    return merge_down({pair: (v, pair) for pair, v in contacts.items()}, *rules)[1]


def in_pieces(contacts: Contacts, inside: set[int], *rules: Any) -> dict[int, int]:
    """First what one block can know, the contacts of `inside`, then the rest."""
    edges: Keyed = {pair: (v, pair) for pair, v in contacts.items()}
    known = {pair: edge for pair, edge in edges.items() if inside.issuperset(pair)}
    border = {end for pair in edges for end in pair if not inside.issuperset(pair)}
    left, parents = merge_down(known, *rules, frozen=border & inside)
    rest = {pair: edge for pair, edge in edges.items() if pair not in known}
    return parents | merge_down(left | rest, *rules)[1]


def roots(parents: dict[int, int]) -> dict[int, int]:
    found = {}
    for region in parents:
        root = region
        while root in parents:
            root = parents[root]
        found[region] = root
    return found


def test_with_smallest_keys_quantiles_cannot_be_merged_in_pieces() -> None:
    """(1, 4) falls together with (1, 2): the upper median is 100 still, and its key now (1, 2), so
    it overtakes (1, 3). A mean would have fallen below 100. The block of 1 to 4 cannot know:
    2 and 4 meet outside. With the largest key no edge ever overtakes.
    """
    contacts: Contacts = {
        (1, 2): (50,),
        (1, 3): (100,),
        (1, 4): (100,),
        (3, 4): (10, 10),
        (2, 5): (200,),
        (4, 5): (200,),
    }
    upper_median = quantile(50)
    assert roots(at_once(contacts, upper_median, 60, min)) == {2: 1, 4: 1, 5: 1}
    assert roots(in_pieces(contacts, {1, 2, 3, 4}, upper_median, 60, min)) == {3: 1, 4: 2, 5: 2}
    assert roots(at_once(contacts, upper_median, 60, max)) == {3: 1, 4: 2, 5: 2}
    assert roots(in_pieces(contacts, {1, 2, 3, 4}, upper_median, 60, max)) == {3: 1, 4: 2, 5: 2}


@settings(QUICK, max_examples=300)
@given(
    st.dictionaries(
        st.tuples(st.integers(1, 6), st.integers(1, 6)).filter(lambda pair: pair[0] < pair[1]),
        st.lists(st.sampled_from([10, 50, 100, 200]), min_size=1, max_size=3).map(tuple),
        max_size=15,
    ),
    st.sets(st.integers(1, 6)),
    st.sampled_from([(mean, min), (quantile(25), max), (quantile(50), max), (quantile(75), max)]),
    st.sampled_from([10, 30, 60, 100]),
)
def test_means_and_with_largest_keys_quantiles_can_be_merged_in_pieces(
    contacts: Contacts, inside: set[int], rule: tuple[Any, KeyRule], threshold: int
) -> None:
    score, key_rule = rule
    whole = at_once(contacts, score, threshold, key_rule)
    pieces = in_pieces(contacts, inside, score, threshold, key_rule)
    assert roots(pieces) == roots(whole)
