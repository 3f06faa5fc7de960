"""Minimum spanning trees between the neurons of a label, against Kruskal over all pairs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays import closest_neurons
from pipeline.arrays.closest_neurons import spanning_pairs

SPLITS = {
    "labels": (1 << 19, 1 << 16),
    "threads": (1, 1),
    "mixed": (60, 1),
    "shares": (1 << 19, 50),
}


def kruskal(points, neuron, label, priority, labels) -> set[tuple[int, int]]:
    """Pairs by distance, then the neurons' priorities, then coordinates, then index."""
    found = set()
    for number in range(labels):
        chosen = np.flatnonzero(label == number).tolist()
        pairs = []
        for i, j in product(chosen, chosen):
            if priority[neuron[i]] < priority[neuron[j]]:
                gap = float(((points[i] - points[j]) ** 2) @ np.ones(3))
                names = (priority[neuron[i]], priority[neuron[j]])
                pairs.append((gap, *names, *points[i].tolist(), *points[j].tolist(), i, j))
        team = {int(neuron[i]): int(neuron[i]) for i in chosen}
        for *_, i, j in sorted(pairs):
            a, b = team[int(neuron[i])], team[int(neuron[j])]
            if a != b:
                found.add((i, j))
                team = {k: b if v == a else v for k, v in team.items()}
    return found


def draw(seed: int):
    rng = np.random.default_rng(seed)
    count, neurons, labels = rng.integers(2, 160), rng.integers(2, 9), rng.integers(1, 4)
    kind = rng.integers(4)
    if kind == 0:
        points = rng.integers(0, 5, (count, 3)) * np.array([40.0, 9.0, 7.0])
    elif kind == 1:
        points = rng.normal(0, 10, (count, 3)).round(2)
    elif kind == 2:
        points = rng.integers(0, 300, (count, 1)) * np.array([[0.0, 1.0, 0.0]])
    else:
        points = np.zeros((count, 3))
    neuron = rng.integers(0, neurons, count).astype(np.int32)
    if kind == 1:
        points = points + neuron[:, None] * rng.choice([0.0, 4.0, 64.0])
    label = rng.integers(0, labels, count).astype(np.int32)
    shared = [n for n in range(labels) if len(set(neuron[label == n].tolist())) > 1]
    kept = np.isin(label, shared)
    renamed = np.searchsorted(shared, label[kept]).astype(np.int32)
    return points[kept], neuron[kept], renamed, rng.permutation(neurons), len(shared)


@pytest.mark.parametrize("split", SPLITS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_the_pairs_are_those_of_kruskal(split, seed):
    case = draw(seed)
    _, neuron, label, priority, _ = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closest_neurons, "_MANY_POINTS", SPLITS[split][0])
        patch.setattr(closest_neurons, "_SHARE_POINTS", SPLITS[split][1])
        first, second = spanning_pairs(*case)
    assert (np.diff(label[first]) >= 0).all()
    found = set()
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        found.add((a, b) if priority[neuron[a]] < priority[neuron[b]] else (b, a))
    assert len(found) == len(first)
    assert found == kruskal(*case)


def test_larger_labels_agree_however_they_are_shared_out(monkeypatch):
    rng = np.random.default_rng(0)
    points = np.cumsum(rng.normal(0, 1, (20_000, 3)), axis=0).round(1)
    neuron = (np.arange(20_000) // 500 % 23).astype(np.int32)
    label = (np.arange(20_000) % 3 // 2).astype(np.int32)
    case = points, neuron, label, rng.permutation(23), 2
    found = []
    for many, share in SPLITS.values():
        monkeypatch.setattr(closest_neurons, "_MANY_POINTS", many)
        monkeypatch.setattr(closest_neurons, "_SHARE_POINTS", share)
        pairs = [sorted(pair) for pair in zip(*spanning_pairs(*case), strict=True)]
        found.append(sorted(map(tuple, pairs)))
    assert len(found[0]) == 44
    assert all(other == found[0] for other in found)


def test_no_labels():
    none = np.zeros(0, np.int32)
    first, second = spanning_pairs(np.zeros((0, 3)), none, none, np.arange(3), 0)
    assert (len(first), len(second), first.dtype) == (0, 0, np.int64)
