from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from pipeline.arrays.labels import IGNORE
from pipeline.errors import DataError, DtypeError, ShapeError
from pipeline.learning.batch import LossBatch
from pipeline.learning.targets import affinity_targets, make_targets

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
        affinity_targets(np.zeros((2, 2), np.uint64))
    with pytest.raises(DtypeError, match="uint64"):
        affinity_targets(np.zeros((1, 2, 2, 2), np.int32))
    with pytest.raises(ShapeError, match="want logits"):
        LossBatch.of(torch.zeros(1, 3, 2, 2, 2), np.zeros((1, 2, 2, 3), np.uint64))
    with pytest.raises(ShapeError, match="foreground of 2-D labels have 1 channels, got 2"):
        make_targets(np.zeros((1, 2, 2), np.uint64), "foreground", 2)
    with pytest.raises(ShapeError, match="classes of 2-D labels have at least 2 channels, got 1"):
        make_targets(np.zeros((1, 2, 2), np.uint64), "classes", 1)
    for shape in ((0, 2, 2, 2), (1, 0, 2, 2)):
        with pytest.raises(ShapeError, match="at least one sample and one voxel"):
            LossBatch.of(torch.zeros(shape[0], 3, *shape[1:]), np.zeros(shape, np.uint64))
    with pytest.raises(DataError, match=r"0 \.\. 2, got 3"):
        make_targets(np.full((1, 2, 2), 3, np.uint64), "classes", 3)
    with pytest.raises(DataError, match=f"got {2**63}"):
        make_targets(np.full((1, 2, 2), 2**63, np.uint64), "classes", 3)


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 3, 4, 5)])
def test_every_form_voxel_by_voxel(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    labels = random.choice(np.array([0, 0, 1, 1, 2, IGNORE], np.uint64), shape)
    axes = len(shape) - 1
    forms = (("affinities", axes), ("foreground", 1), ("classes", 3))
    found = {form: make_targets(labels, form, channels) for form, channels in forms}  # type: ignore[arg-type]
    for place in np.ndindex(shape):
        sample, voxel = place[0], place[1:]
        label = int(labels[place])
        known = label != IGNORE
        target, mask = (t[(sample, 0, *voxel)] for t in found["foreground"])
        assert (bool(target), bool(mask)) == (known and label > 0, known)
        for channel in range(3):
            target, mask = (t[(sample, channel, *voxel)] for t in found["classes"])
            assert (bool(target), bool(mask)) == (label == channel, known)
        for axis in range(axes):
            before = tuple(v - (a == axis) for a, v in enumerate(voxel))
            other = int(labels[(sample, *before)]) if before[axis] >= 0 else int(IGNORE)
            counts = known and other != IGNORE
            target, mask = (t[(sample, axis, *voxel)] for t in found["affinities"])
            assert (bool(target), bool(mask)) == (counts and label == other > 0, counts)
