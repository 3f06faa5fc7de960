from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from pipeline.arrays.labels import IGNORE
from pipeline.errors import DtypeError, ShapeError
from pipeline.learning.batch import LossBatch
from pipeline.learning.targets import affinity_targets

BIG = 2**63 + 3


def reference(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    targets = np.zeros((labels.shape[0], 3, *labels.shape[1:]), np.float32)
    mask = np.zeros(targets.shape, bool)
    for b, d, *v in product(*map(range, (labels.shape[0], 3, *labels.shape[1:]))):
        u = list(v)
        u[d] -= 1
        if u[d] < 0:
            continue
        here, there = int(labels[b, *v]), int(labels[b, *u])
        mask[b, d, *v] = IGNORE not in (here, there)
        targets[b, d, *v] = mask[b, d, *v] and here == there and here != 0
    return targets, mask


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (1, 1, 6, 2)])
def test_equals_a_loop_over_voxels(shape: tuple[int, ...]) -> None:
    ids = np.array([0, 0, 4, BIG, BIG + 1, IGNORE], np.uint64)
    labels = ids[np.random.default_rng(1).integers(0, len(ids), shape)]
    for given in (labels, np.asfortranarray(labels), torch.from_numpy(labels.view(np.int64))):
        targets, mask = affinity_targets(given)
        np.testing.assert_array_equal(targets.numpy(), reference(labels)[0])
        np.testing.assert_array_equal(mask.numpy(), reference(labels)[1])


def test_ids_that_float32_cannot_tell_apart_do_not_join() -> None:
    labels = np.array([2**40, 2**40 + 1], np.uint64).reshape(1, 1, 1, 2)
    assert affinity_targets(labels)[0].sum() == 0


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(B, Z, Y, X\)"):
        affinity_targets(np.zeros((2, 2, 2), np.uint64))
    with pytest.raises(DtypeError, match="uint64"):
        affinity_targets(np.zeros((1, 2, 2, 2), np.int32))
    with pytest.raises(ShapeError, match="want logits"):
        LossBatch.of(torch.zeros(1, 3, 2, 2, 2), np.zeros((1, 2, 2, 3), np.uint64))
