import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.arrays.labels import IGNORE
from pipeline.arrays.skeleton_mask import tube_skeleton
from pipeline.arrays.thinning import thin
from pipeline.errors import InputError
from pipeline.learning.batch import LossBatch
from pipeline.learning.loss_settings import SkeletonRecallSettings, parse_loss
from pipeline.learning.losses import compute_loss, prepare_sample
from pipeline.learning.losses.skeleton_recall import recall_loss

SPACES = {"2-D": (9, 12), "3-D": (6, 7, 8)}
CHANNELS = {"affinities": lambda space: len(space), "foreground": lambda _: 1}
FORMS = ("affinities", "foreground", "classes")


def blocks(space, seed):
    """Objects of 3 voxels a side, some unknown voxels; class 2 in the second sample alone."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 2, (2, *(n // 3 + 1 for n in space)))
    coarse[1] *= random.integers(1, 3, coarse[1].shape)
    for axis in range(1, coarse.ndim):
        coarse = coarse.repeat(3, axis)
    labels = coarse[(slice(None), *(slice(0, n) for n in space))].astype(np.uint64)
    labels[random.random(labels.shape) < 0.05] = IGNORE
    return labels


def random_batch(form, space, seed=0, dtype=torch.float64):
    labels = blocks(space, seed)
    channels = CHANNELS.get(form, lambda _: 4)(space)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, channels, *space, dtype=dtype, generator=generator) * 2
    return LossBatch.of(logits.requires_grad_(), labels, form)


def reference_tube(mask, radius):
    """The definition, voxel by voxel."""
    places, skeleton = np.argwhere(mask), np.argwhere(thin(mask))
    tube = np.zeros_like(mask)
    for place in places:
        tube[tuple(place)] = (np.abs(skeleton - place).sum(1) <= radius).any()
    return tube


def reference(batch, radius):
    """The formula, channel by channel, with probabilities as torch makes them."""
    classes = batch.form == "classes"
    spread = torch.softmax(batch.logits, 1) if classes else torch.sigmoid(batch.logits)
    losses = []
    for b in range(len(batch.logits)):
        recalls = []
        for c in range(int(classes), batch.logits.shape[1]):
            target = (batch.targets[b, c] > 0).numpy()
            if target.any():
                tube = torch.from_numpy(reference_tube(target, radius))
                recalls.append((spread[b, c] * tube).sum() / tube.sum())
        losses.append(-torch.stack(recalls).mean() if recalls else torch.zeros(()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("dilation", [0, 1, 2])
def test_the_formula(form, space, dilation):
    batch = random_batch(form, space, seed=dilation)
    found = recall_loss(batch, dilation)
    torch.testing.assert_close(found, reference(batch, dilation))
    (gradient,) = torch.autograd.grad(found, batch.logits)
    (expected,) = torch.autograd.grad(reference(batch, dilation), batch.logits)
    torch.testing.assert_close(gradient, expected)
    assert gradient.any()


def test_the_gradient_does_not_depend_on_the_prediction():
    """With respect to the probabilities it is -1 / (|K| sum t) on the tube."""
    labels = np.zeros((1, 5, 9), np.uint64)
    labels[0, 2] = 1
    tube = tube_skeleton(labels[0] > 0, 2)
    for shift in (-2.0, 1.0):
        logits = (torch.randn(1, 1, 5, 9, dtype=torch.float64) + shift).requires_grad_()
        (gradient,) = torch.autograd.grad(
            recall_loss(LossBatch.of(logits, labels, "foreground"), 2), logits
        )
        p = torch.sigmoid(logits.detach())
        expected = torch.from_numpy(tube)[None, None] / -tube.sum() * p * (1 - p)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_perfect_prediction_has_recall_one(form):
    labels = np.zeros((1, 9, 9), np.uint64)
    labels[0, 4, 1:8] = 1  # one voxel wide: the tube must not leave it
    channels = {"affinities": 2, "foreground": 1, "classes": 3}[form]
    batch = LossBatch.of(torch.zeros(1, channels, 9, 9), labels, form)
    perfect = LossBatch.of((batch.targets * 2 - 1) * 100, labels, form)
    assert recall_loss(perfect, 2) == pytest.approx(-1.0)


def test_absent_classes_are_left_out():
    labels = np.zeros((1, 9, 9), np.uint64)
    labels[0, 3:6] = 1
    # Softmax over four equal logits: 1/4 everywhere, so the recall of class 1 is 1/4.
    assert recall_loss(LossBatch.of(torch.zeros(1, 4, 9, 9), labels, "classes"), 1) == -0.25


def test_a_sample_without_skeleton_counts_nothing():
    labels = np.zeros((2, 7, 7), np.uint64)
    labels[1, 2:5] = 1
    both = recall_loss(LossBatch.of(torch.zeros(2, 1, 7, 7), labels, "foreground"), 1)
    assert both == -0.25  # the mean of 0 and -1/2


def test_it_is_added_to_the_inner_loss_with_its_weight():
    batch = random_batch("foreground", (6, 7, 8), dtype=torch.float32)
    settings = parse_loss({"name": "skeleton_recall", "of": "ce", "weight": 3.0, "dilation": 1})
    value = compute_loss(batch, settings)
    base = compute_loss(batch, parse_loss("ce")).total
    own = recall_loss(batch, 1)
    torch.testing.assert_close(value.total, base + 3.0 * own)
    assert value.parts["skeleton_recall_loss"] == own
    assert not value.parts["skeleton_recall_loss"].requires_grad
    assert "voxel_loss" in value.parts


@pytest.mark.parametrize("form", FORMS)
def test_what_the_loader_prepared_is_used(form):
    batch = random_batch(form, (6, 7, 8))
    settings = SkeletonRecallSettings(dilation=1)
    samples = [prepare_sample(one, form, settings) for one in batch.labels]
    prepared = {key: np.stack([one[key] for one in samples]) for key in samples[0]}
    again = LossBatch.of(batch.logits, batch.labels, form, prepared=prepared)
    assert torch.equal(recall_loss(again, 1), recall_loss(batch, 1))
    nothing = {key: np.zeros_like(array) for key, array in prepared.items()}
    other = LossBatch.of(batch.logits, batch.labels, form, prepared=nothing)
    assert recall_loss(other, 1) == 0
    assert recall_loss(other, 2) != 0, "the key holds the dilation"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fill", [-np.inf, np.inf])
def test_infinite_logits(form, fill):
    batch = random_batch(form, (9, 12), dtype=torch.float16)
    logits = torch.full_like(batch.logits, fill).detach().requires_grad_()
    found = recall_loss(LossBatch.of(logits, batch.labels, form), 1)
    found.backward()
    assert found.isfinite()
    assert found.dtype == torch.float32
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("radius", [0, 1, 2, 5])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_tubes(space, radius):
    for seed in range(5):
        mask = blocks(space, seed)[0] == 1
        before = mask.copy()
        tube = tube_skeleton(mask, radius)
        np.testing.assert_array_equal(tube, reference_tube(mask, radius))
        np.testing.assert_array_equal(tube_skeleton(np.asfortranarray(mask), radius), tube)
        np.testing.assert_array_equal(mask, before)
    with pytest.raises(InputError, match="-1"):
        tube_skeleton(mask, -1)


def test_settings():
    settings = parse_loss("skeleton_recall")
    assert (settings.weight, settings.dilation, settings.of.name) == (1.0, 2, "ce_dice")
    with pytest.raises(ValidationError):
        SkeletonRecallSettings(dilation=-1)
