"""Constrained MALIS against counting every pair of voxels by itself."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.labels import IGNORE
from pipeline.errors import ShapeError
from pipeline.learning.batch import LossBatch
from pipeline.learning.loss_settings import MalisSettings
from pipeline.learning.losses import compute_loss
from pipeline.learning.maximin import share_maximin_pairs
from pipeline.learning.targets import affinity_targets


def edges_and_mask(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    targets, mask = affinity_targets(labels[None])
    return targets[0].numpy() > 0, mask[0].numpy()


def count_maximin_pairs(
    labels: np.ndarray, logits: np.ndarray, targets: np.ndarray, mask: np.ndarray
) -> list[np.ndarray]:
    """The shares as arrays like the logits."""
    dense = []
    for edges, shares in share_maximin_pairs(labels, logits, targets, mask):
        dense.append(np.zeros(logits.shape, np.float32))
        dense[-1].flat[edges] = shares
        assert len(np.unique(edges)) == len(edges)
        assert (shares > 0).all()
    return dense


def joined_by(order: list, voxels: int) -> dict[tuple[int, int], int]:
    """For each pair of voxels the edge whose joining first connects them; sets, no union-find."""
    groups = [{v} for v in range(voxels)]
    found: dict[tuple[int, int], int] = {}
    for edge, a, b in order:
        if groups[a] is groups[b]:
            continue
        if edge is not None:
            for u in groups[a]:
                for v in groups[b]:
                    found[min(u, v), max(u, v)] = edge
        union = groups[a] | groups[b]
        for v in union:
            groups[v] = union
    return found


def pairs_one_by_one(labels: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    targets, mask = edges_and_mask(labels)
    steps = [int(np.prod(labels.shape[d + 1 :])) for d in range(labels.ndim)]
    flat = [
        (e, e % labels.size, e % labels.size - steps[e // labels.size])
        for e in np.argsort(-logits.reshape(-1), kind="stable")
        if mask.reshape(-1)[e]
    ]
    inside = [row for row in flat if targets.reshape(-1)[row[0]]]
    outside = [row for row in flat if not targets.reshape(-1)[row[0]]]
    ids = labels.reshape(-1)
    positive, negative = np.zeros(logits.size), np.zeros(logits.size)
    for edge in joined_by(inside, labels.size).values():
        positive[edge] += 1
    beforehand = [(None, a, b) for _, a, b in inside]
    for (u, v), edge in joined_by(beforehand + outside, labels.size).items():
        known = ids[u] not in (0, IGNORE) and ids[v] not in (0, IGNORE)
        negative[edge] += known and ids[u] != ids[v]
    shares = [p / max(p.sum(), 1) for p in (positive, negative)]
    return shares[0].reshape(logits.shape), shares[1].reshape(logits.shape)


SHAPES = st.sampled_from([(5, 6), (1, 7), (3, 3, 4), (2, 1, 5), (1, 1, 1)])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    shape=SHAPES,
    ids=st.sampled_from([[0, 1], [1, 2, 3], [0, 0, 5, 2**63 + 1, IGNORE], [0], [4]]),
    levels=st.sampled_from([3, 1000]),
    seed=st.integers(0, 10**6),
)
def test_equals_counting_pair_by_pair(shape, ids, levels, seed) -> None:
    random = np.random.default_rng(seed)
    labels = random.choice(np.array(ids, np.uint64), shape)
    logits = (random.integers(-levels, levels + 1, (len(shape), *shape)) / 7).astype(np.float32)
    found = count_maximin_pairs(labels, logits, *edges_and_mask(labels))
    for ours, slow in zip(found, pairs_one_by_one(labels, logits), strict=True):
        np.testing.assert_allclose(ours, slow, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_ties_in_a_wide_background(seed: int) -> None:
    """Background is joined in several rounds, and the order of equal edges holds in each."""
    random = np.random.default_rng(seed)
    shape = (15, 14) if seed % 2 else (6, 7, 6)
    labels = np.zeros(shape, np.uint64)
    labels.flat[random.choice(labels.size, 9, replace=False)] = np.arange(1, 10)
    logits = random.integers(0, 2, (len(shape), *shape)).astype(np.float32)
    found = count_maximin_pairs(labels, logits, *edges_and_mask(labels))
    for ours, slow in zip(found, pairs_one_by_one(labels, logits), strict=True):
        np.testing.assert_allclose(ours, slow, rtol=1e-6, atol=1e-9)


def test_order_of_extreme_logits() -> None:
    labels = np.array([[1, 0, 0, 0, 2]], np.uint64)
    for weakest in (np.float32("-inf"), np.float32(-1e-30), np.float32(0.0)):
        logits = np.full((2, 1, 5), 1e-30, np.float32)
        logits[1, 0, 3] = weakest
        logits[1, 0, 1] = np.inf
        _, negative = count_maximin_pairs(labels, logits, *edges_and_mask(labels))
        assert negative[1, 0, 3] == 1.0


def test_zeros_of_both_signs_tie() -> None:
    labels = np.array([[1, 0, 2]], np.uint64)
    logits = np.zeros((2, 1, 3), np.float32)
    logits[1, 0, 1] = -0.0
    _, negative = count_maximin_pairs(labels, logits, *edges_and_mask(labels))
    assert negative[1, 0, 2] == 1.0, "the later edge joins last"


def test_loss_by_hand() -> None:
    labels = np.array([[1, 1, 1, 0, 2, 2]], np.uint64)[None]
    logits = torch.zeros(1, 2, 1, 6, dtype=torch.float64)
    logits[0, 1, 0, 1:] = torch.tensor([2.0, -1.0, 0.5, -0.5, 1.0])
    settings = MalisSettings(share=1.0)
    value = compute_loss(LossBatch.of(logits, labels), settings)
    p = torch.sigmoid(logits[0, 1, 0])
    # Object 1: the edge at 1 joins one pair, that at 2 the other two; object 2 has one pair.
    split = ((1 - p[1]) ** 2 + 2 * (1 - p[2]) ** 2 + (1 - p[5]) ** 2) / 4
    assert float(value.total) == pytest.approx(float(0.5 * split + 0.5 * p[4] ** 2))
    mixed = compute_loss(LossBatch.of(logits, labels), MalisSettings(share=0.25, of="ce"))
    base = compute_loss(LossBatch.of(logits, labels), MalisSettings().of)
    assert float(mixed.total) == pytest.approx(float(0.75 * base.total + 0.25 * value.total))
    assert set(mixed.parts) == {"voxel_loss", "malis_loss"}


def test_shares_add_up_to_one() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, (6, 7, 8)).astype(np.uint64).repeat(3, 0).repeat(3, 2)
    logits = random.standard_normal((3, *labels.shape)).astype(np.float32)
    for shares in count_maximin_pairs(labels, logits, *edges_and_mask(labels)):
        assert shares.sum() == pytest.approx(1.0, rel=1e-4)


def test_many_scattered_parts_of_many_labels() -> None:
    """Chains of labels move and merge: one label in many components."""
    random = np.random.default_rng(1)
    labels = random.integers(0, 6, (12, 12)).astype(np.uint64)
    logits = random.standard_normal((2, 12, 12)).astype(np.float32)
    found = count_maximin_pairs(labels, logits, *edges_and_mask(labels))
    for ours, slow in zip(found, pairs_one_by_one(labels, logits), strict=True):
        np.testing.assert_allclose(ours, slow, rtol=1e-6, atol=1e-9)
    ids = labels.reshape(-1)
    different = sum(bool(a and b and a != b) for a, b in combinations(ids, 2))
    assert different > 1000


def test_shapes_that_disagree_are_named() -> None:
    labels = np.zeros((2, 3), np.uint64)
    with pytest.raises(ShapeError, match=r"\(2, 2, 3\)"):
        count_maximin_pairs(labels, np.zeros((3, 2, 3), np.float32), *edges_and_mask(labels))
