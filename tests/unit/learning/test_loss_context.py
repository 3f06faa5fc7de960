from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.arrays.labels import IGNORE
from pipeline.arrays.thinning import thin
from pipeline.learning.batch import LossBatch
from pipeline.learning.loss_settings import ContextSettings, LossSettings, parse_loss
from pipeline.learning.losses import compute_loss, prepare_sample
from pipeline.learning.losses.context import context_mask

FORMS = ("affinities", "foreground", "classes")
SPACES = {"2-D": (12, 14), "3-D": (6, 8, 9)}


def nearer(first, second, within, voxel_size):
    """All distances between all voxels."""
    found = np.zeros_like(within)
    voxel_size = np.array(voxel_size, float)
    places = np.argwhere(within) * voxel_size
    near = [
        np.square(places[:, None] - np.argwhere(s) * voxel_size).sum(2).min(1, initial=np.inf)
        for s in (first, second)
    ]
    found[within] = near[0] < near[1] - 1e-9
    return found


def reference_mask(batch):
    """M from the text: two distance transforms per half, per channel."""
    classes = batch.form == "classes"
    logits = batch.logits.detach()
    mask = np.zeros(batch.mask.shape, bool)
    for b, c in np.ndindex(*logits.shape[:2]):
        if classes and c == 0:
            continue
        valid = batch.mask[b, c].numpy()
        wanted = batch.targets[b, c].numpy() > 0
        chosen = logits[b].argmax(0) == c if classes else logits[b, c] > 0
        chosen = chosen.numpy() & valid
        for one, other in ((wanted, chosen), (chosen, wanted)):
            line = thin(one)
            half = nearer(line & ~other, line & other, one, batch.voxel_size)
            mask[b, slice(None) if classes else c] |= half
    return mask


def random_batch(form, space, seed=0, voxel_size=None):
    """Objects of 3 voxels a side, and a prediction that is wrong in cubes of two."""
    random = np.random.default_rng(seed)

    def coarse(size, highest):
        found = random.integers(0, highest + 1, (3, *(n // size + 1 for n in space)))
        for axis in range(1, found.ndim):
            found = found.repeat(size, axis)
        return found[(slice(None), *(slice(0, n) for n in space))]

    labels = coarse(3, 2).astype(np.uint64)
    labels[random.random(labels.shape) < 0.05] = IGNORE
    channels = {"affinities": len(space), "foreground": 1, "classes": 3}[form]
    probe = LossBatch.of(torch.zeros(3, channels, *space), labels, form)
    wrong = torch.from_numpy(coarse(2, 4) == 0)[:, None]
    logits = (probe.targets * 4 - 2) * torch.where(wrong, -1, 1)
    logits = logits + torch.from_numpy(random.standard_normal(logits.shape)) * 0.3
    return LossBatch.of(logits.requires_grad_(), labels, form, voxel_size=voxel_size)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("size", [(1, 1, 1), (40, 8, 8), (1, 2.5, 0.7)], ids=str)
def test_the_mask_is_that_of_the_definition(form, space, size):
    for seed in range(3):
        batch = random_batch(form, space, seed, voxel_size=size[-len(space) :])
        found = context_mask(batch).numpy()
        np.testing.assert_array_equal(found, reference_mask(batch))
        assert 0 < found.sum() < batch.mask.sum()
        assert not (found & ~batch.mask.numpy()).any()


def bar(predicted):
    """A bar of 3 x 21 voxels, predicted where told; the mask as an image."""
    labels = np.zeros((1, 7, 21), np.uint64)
    labels[0, 2:5] = 1
    logits = torch.where(torch.from_numpy(predicted), 5.0, -5.0)[None, None]
    return context_mask(LossBatch.of(logits, labels, "foreground"))[0, 0].numpy(), labels[0] == 1


class TestByHand:
    def test_no_mistake(self):
        predicted = np.zeros((7, 21), bool)
        predicted[2:5] = True
        assert not bar(predicted)[0].any()

    def test_nothing_predicted_is_the_whole_object(self):
        found, label = bar(np.zeros((7, 21), bool))
        np.testing.assert_array_equal(found, label)

    def test_a_gap_with_its_context(self):
        """The skeleton is the middle row; columns 8 to 12 of it are missed.

        Half-way between missed and found voxels of the middle row nothing lies, so the mask is the
        bar's columns 8 to 12 in all three rows, and not the rim that is missed elsewhere.
        """
        predicted = np.zeros((7, 21), bool)
        predicted[2:5] = True
        predicted[3, 8:13] = False
        predicted[4, :8] = False
        found, label = bar(predicted)
        expected = np.zeros_like(found)
        expected[2:5, 8:13] = True
        assert thin(label)[3, 5:16].all(), "the premise"
        # What is predicted lies in the label: there is no false half.
        np.testing.assert_array_equal(found, expected)

    def test_a_false_connection(self):
        predicted = np.zeros((7, 21), bool)
        predicted[2:5] = True
        predicted[5:, 10] = True  # a spur out of the bar
        found, label = bar(predicted)
        assert not (found & ~predicted).any()
        assert found[6, 10]
        np.testing.assert_array_equal(found & ~label, predicted & ~label)

    def test_a_tie_is_not_in_the_mask(self):
        labels = np.ones((1, 1, 3), np.uint64)
        skeleton = np.array([[[[True, False, True]]]])
        logits = torch.tensor([5.0, 5.0, -5.0]).view(1, 1, 1, 3)
        batch = LossBatch.of(logits, labels, "foreground", prepared={"skeleton": skeleton})
        assert context_mask(batch).flatten().tolist() == [False, False, True]


def slow_pixel_loss(batch, chosen, dice_share):
    """CE and Dice on chosen elements of a sigmoid form, by sums."""
    losses = []
    for b in range(len(batch.logits)):
        inside = chosen[b]
        if not inside.any():
            losses.append(torch.zeros((), dtype=torch.float64))
            continue
        p, t = torch.sigmoid(batch.logits[b]), batch.targets[b].double()
        ce = -(t * p.log() + (1 - t) * (1 - p).log())[inside].mean()
        dice = [
            1 - (2 * (p * t)[c][i].sum() + 1e-5) / (p[c][i].sum() + t[c][i].sum() + 1e-5)
            for c, i in enumerate(inside)
            if i.any()
        ]
        losses.append((1 - dice_share) * ce + dice_share * torch.stack(dice).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("form", ["affinities", "foreground"])
def test_the_formula(form):
    batch = random_batch(form, (12, 14), seed=4)
    settings = ContextSettings(gamma=0.2, dice_share=0.3)
    value = compute_loss(batch, settings)
    critical = torch.from_numpy(reference_mask(batch))
    expected = 0.8 * slow_pixel_loss(batch, batch.mask, 0.3)
    expected = expected + 0.2 * slow_pixel_loss(batch, critical, 0.3)
    torch.testing.assert_close(value.total, expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(value.total, batch.logits)
    (other,) = torch.autograd.grad(expected, batch.logits)
    torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-7)
    parts = value.parts
    torch.testing.assert_close(
        parts["context_loss"], slow_pixel_loss(batch, critical, 0.3).detach(), rtol=1e-5, atol=1e-6
    )
    assert "voxel_loss" in parts


def test_the_inner_loss_sees_the_mask_alone():
    """For classes too: the pixel loss is asked twice, the second time with M as its mask."""
    from pipeline.learning.losses.context import context

    batch = random_batch("classes", (12, 14), seed=1)
    seen: list[tuple[LossBatch, LossSettings]] = []

    def inner(part, settings):
        seen.append((part, settings))
        return compute_loss(part, settings)

    context(batch, ContextSettings(dice_share=0.25), inner=inner)
    assert [settings.name for _, settings in seen] == ["ce_dice", "ce_dice"]
    assert all(settings.dice_share == 0.25 for _, settings in seen)
    assert torch.equal(seen[0][0].mask, batch.mask)
    np.testing.assert_array_equal(seen[1][0].mask.numpy(), reference_mask(batch))
    assert not seen[1][0].targets[~seen[1][0].mask].any()


def test_without_mistakes_the_context_costs_nothing():
    labels = np.zeros((1, 9, 9), np.uint64)
    labels[0, 3:6] = 1
    logits = torch.where(torch.from_numpy(labels[:, None] > 0), 2.0, -2.0)
    value = compute_loss(LossBatch.of(logits, labels, "foreground"), ContextSettings())
    assert value.parts["context_loss"] == 0
    pixel = compute_loss(LossBatch.of(logits, labels, "foreground"), parse_loss("ce_dice")).total
    torch.testing.assert_close(value.total, 0.9 * pixel)


@pytest.mark.parametrize("form", FORMS)
def test_what_the_loader_prepared_is_used_and_threads_agree(form):
    batch = random_batch(form, (6, 8, 9))
    samples = [prepare_sample(one, form, ContextSettings()) for one in batch.labels]
    prepared = {key: np.stack([one[key] for one in samples]) for key in samples[0]}
    with ThreadPoolExecutor(2) as pool:
        again = replace(batch, prepared=prepared, pool=pool)
        assert torch.equal(context_mask(again), context_mask(batch))
    nothing = {key: np.zeros_like(array) for key, array in prepared.items()}
    assert not torch.equal(context_mask(replace(batch, prepared=nothing)), context_mask(batch))


def test_ignored_voxels_are_no_mistakes():
    labels = np.zeros((1, 7, 21), np.uint64)
    labels[0, 2:5] = 1
    labels[0, 2:5, 8:13] = IGNORE
    labels[0, :, 18:] = IGNORE
    logits = torch.where(torch.from_numpy(labels[:, None] == 1), 5.0, -5.0)
    for fill in (-5.0, 5.0, float("nan")):  # whatever is predicted there
        logits[torch.from_numpy(labels[:, None] == IGNORE)] = fill
        assert not context_mask(LossBatch.of(logits, labels, "foreground")).any()


def test_settings():
    settings = parse_loss("context")
    assert (settings.gamma, settings.dice_share, settings.finetune_share) == (0.1, 0.5, 0.05)
    with pytest.raises(ValueError, match="gamma"):
        parse_loss({"name": "context", "gamma": 0.5})
