import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.arrays.labels import IGNORE
from pipeline.learning.batch import LossBatch
from pipeline.learning.loss_settings import ClDiceSettings, CompoundClDiceSettings, parse_loss
from pipeline.learning.losses import compute_loss, prepare_sample
from pipeline.learning.soft_skeleton import (
    skeleton_of_mask,
    soft_skeleton,
    tensor_gradient,
    thin_tensor,
)

SPACES = {"2-D": (8, 9), "3-D": (5, 6, 7), "flat": (1, 6, 7), "line": (5, 1, 1), "voxel": (1, 1, 1)}
FORMS = ("affinities", "foreground", "classes")


def neighbours(place, space, box):
    """A voxel and those around it that exist: 3^D of them, or those along the axes."""
    for step in np.ndindex(*(3,) * len(space)):
        move = np.array(step) - 1
        at = np.array(place) + move
        if (box or np.abs(move).sum() <= 1) and (at >= 0).all() and (at < space).all():
            yield tuple(at)


def pooled(image, valid, box, pick):
    space = image.shape
    out = np.zeros(space)
    for place in np.ndindex(*space):
        if valid[place]:
            out[place] = pick(image[at] for at in neighbours(place, space, box) if valid[at])
    return out


def reference_skeleton(image, valid, iterations):
    """Algorithm 1 of the paper as it is written, one voxel after the other."""
    skeleton = np.zeros(image.shape)
    for step in range(iterations + 1):
        eroded = pooled(image, valid, False, min)
        delta = np.maximum(image - pooled(eroded, valid, True, max), 0) * valid
        skeleton = delta if step == 0 else skeleton + np.maximum(delta - skeleton * delta, 0)
        image = eroded
    return skeleton


def reference_cldice(batch, iterations, smooth=1.0):
    """1 - clDice from the definition, values only."""
    classes = batch.form == "classes"
    logits = batch.logits.detach().double()
    spread = (torch.softmax(logits, 1) if classes else torch.sigmoid(logits)).numpy()
    losses = []
    for b in range(len(logits)):
        each = []
        for c in range(int(classes), logits.shape[1]):
            p, t, valid = spread[b, c], batch.targets[b, c].numpy(), batch.mask[b, c].numpy()
            if not valid.any():
                continue
            p = np.where(valid, p, 0)
            s_p, s_t = (reference_skeleton(image, valid, iterations) for image in (p, t))
            precision = ((s_p * t).sum() + smooth) / (s_p.sum() + smooth)
            recall = ((s_t * p).sum() + smooth) / (s_t.sum() + smooth)
            each.append(1 - 2 * precision * recall / (precision + recall))
        losses.append(np.mean(each) if each else 0.0)
    return np.mean(losses)


def random_batch(form, space, seed=0, dtype=torch.float64):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, (2, *space)).astype(np.uint64)
    labels[random.random(labels.shape) < 0.1] = IGNORE
    channels = {"affinities": len(space), "foreground": 1, "classes": 3}[form]
    logits = torch.from_numpy(random.standard_normal((2, channels, *space)) * 2).to(dtype)
    return LossBatch.of(logits.requires_grad_(), labels, form)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("ties", [False, True])
def test_the_soft_skeleton_is_that_of_the_paper(space, iterations, ties):
    random = np.random.default_rng(iterations)
    values = random.random((2, 1, *space))
    values = np.round(4 * values) / 4 if ties else values
    valid = random.random(values.shape) < 0.85
    found = soft_skeleton(torch.from_numpy(values), torch.from_numpy(valid), iterations)
    for b in range(2):
        expected = reference_skeleton(values[b, 0], valid[b, 0], iterations)
        np.testing.assert_allclose(found[b, 0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("ties", [False, True])
def test_both_ways_agree(space, ties):
    """Compiled loops and tensors, values and gradients, also where neighbours are equal."""
    torch.manual_seed(1)
    values = torch.rand(2, 2, *space, dtype=torch.float64)
    values = (values * 3).round() / 3 if ties else values
    valid = torch.rand(values.shape) < 0.9
    values.requires_grad_()
    found = soft_skeleton(values, valid, 4)
    along = torch.randn_like(found)
    (gradient,) = torch.autograd.grad(found, values, along)
    left, levels = thin_tensor(values, valid, 4)
    torch.testing.assert_close(1 - left, found)
    torch.testing.assert_close(tensor_gradient(levels, left, along), gradient)
    assert not gradient[~valid].any()


@pytest.mark.parametrize("space", [(5, 6), (3, 4, 5)])
def test_the_gradient_of_the_soft_skeleton(space):
    torch.manual_seed(2)
    values = torch.rand(1, 2, *space, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(values.shape) < 0.9
    assert torch.autograd.gradcheck(lambda x: soft_skeleton(x, valid, 3), values)


@pytest.mark.parametrize("space", [(12, 13), (8, 9, 10)])
def test_monai_has_the_same_skeleton_and_gradient(space):
    from monai.losses.cldice import soft_skel

    torch.manual_seed(3)
    values = torch.rand(1, 2, *space, dtype=torch.float64, requires_grad=True)
    along = torch.randn_like(values)
    ours = soft_skeleton(values, torch.ones_like(values, dtype=torch.bool), 10)
    theirs = soft_skel(values, 10)
    torch.testing.assert_close(ours, theirs)
    for pair in zip(
        torch.autograd.grad(ours, values, along),
        torch.autograd.grad(theirs, values, along),
        strict=True,
    ):
        torch.testing.assert_close(*pair)


@pytest.mark.parametrize("space", [(20, 21), (9, 10, 11)])
def test_monai_has_the_same_loss_where_it_can(space):
    """Nothing ignored, one channel; its epsilon in the harmonic mean switched off."""
    from monai.losses import SoftclDiceLoss

    labels = np.zeros((2, *space), np.uint64)
    labels[:, 2:5] = labels[:, :, 4:6] = 1
    logits = torch.randn(2, 1, *space, dtype=torch.float64)
    theirs = SoftclDiceLoss(iter_=4, sigmoid=True, smooth=1e-300)
    batch = LossBatch.of(logits, labels, "foreground")
    settings = ClDiceSettings(share=1.0, iterations=4)
    torch.testing.assert_close(
        compute_loss(batch, settings).total, theirs(logits, batch.targets.double())
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("space", [(8, 9), (4, 5, 6), (1, 6, 7)], ids=str)
def test_the_formula(form, space):
    batch = random_batch(form, space)
    settings = ClDiceSettings(of="ce", share=0.25, iterations=2)
    value = compute_loss(batch, settings)
    expected = reference_cldice(batch, 2)
    assert float(value.parts["cldice_loss"]) == pytest.approx(expected)
    base = compute_loss(batch, parse_loss("ce")).total
    torch.testing.assert_close(value.total, 0.75 * base + 0.25 * value.parts["cldice_loss"])


def test_smooth_by_hand():
    # All voxels alike: erosion and dilation change nothing, both skeletons are empty.
    labels = np.ones((1, 1, 3), np.uint64)
    batch = LossBatch.of(torch.zeros(1, 1, 1, 3), labels, "foreground")
    assert compute_loss(batch, ClDiceSettings(share=1.0)).total == 0
    # The truth is the middle voxel, its own skeleton; p is 1/2 everywhere and has none. So
    # precision is 1, sensitivity (1/2 + smooth) / (1 + smooth).
    labels[..., 0] = labels[..., 2] = 0
    for smooth in (1.0, 0.25):
        sensitivity = (0.5 + smooth) / (1 + smooth)
        batch = LossBatch.of(torch.zeros(1, 1, 1, 3), labels, "foreground")
        found = compute_loss(batch, ClDiceSettings(share=1.0, smooth=smooth)).total
        assert found == pytest.approx(1 - 2 * sensitivity / (1 + sensitivity))


def test_a_perfect_prediction_costs_nothing():
    labels = np.zeros((1, 16, 16), np.uint64)
    labels[0, 3:8, 2:14] = 1
    logits = torch.where(torch.from_numpy(labels[:, None] > 0), 200.0, -200.0)
    batch = LossBatch.of(logits, labels, "foreground")
    assert compute_loss(batch, ClDiceSettings(share=1.0)).total == 0


def test_a_gap_costs_more_than_the_same_number_of_voxels_at_the_rim():
    labels = np.zeros((1, 9, 30), np.uint64)
    labels[0, 3:6] = 1
    whole = torch.where(torch.from_numpy(labels[:, None] > 0), 8.0, -8.0)
    gap, rim = whole.clone(), whole.clone()
    gap[..., 3:6, 14:16] = -8.0
    rim[..., 3, 12:18] = -8.0
    gap, rim = (
        compute_loss(LossBatch.of(x, labels, "foreground"), ClDiceSettings(share=1.0)).total
        for x in (gap, rim)
    )
    assert gap > rim > 0


@pytest.mark.parametrize("form", FORMS)
def test_the_compound(form):
    batch = random_batch(form, (6, 7), seed=5)
    settings = CompoundClDiceSettings(of="ce", share=0.3, dice_share=0.6, iterations=2)
    value = compute_loss(batch, settings)
    classes = form == "classes"
    entropy = (
        -torch.log_softmax(batch.logits, 1) * batch.targets
        if classes
        else F.binary_cross_entropy_with_logits(
            batch.logits, batch.targets.double(), reduction="none"
        )
    )
    entropy = (entropy.sum(1, keepdim=True) if classes else entropy).detach().numpy()
    spread = torch.softmax(batch.logits, 1) if classes else torch.sigmoid(batch.logits)
    each = []
    for b in range(2):
        channels = range(int(classes), batch.logits.shape[1])
        for c in channels:
            valid = batch.mask[b, c].numpy()
            ce = np.where(valid, entropy[b, 0 if classes else c], 0)
            images = spread[b, c].detach().numpy(), batch.targets[b, c].numpy()
            halves = [
                (ce * s).sum() / (s.sum() + 1)
                for s in (reference_skeleton(np.where(valid, i, 0), valid, 2) for i in images)
            ]
            each.append(sum(halves) / 2)
    expected = np.mean(each)
    assert float(value.parts["skeleton_ce_loss"]) == pytest.approx(expected)
    dice = reference_cldice(batch, 2)
    base = float(compute_loss(batch, parse_loss("ce")).total.detach())
    total = 0.7 * base + 0.3 * (0.6 * dice + 0.4 * expected)
    assert float(value.total.detach()) == pytest.approx(total)


def test_the_compound_with_dice_share_one_is_cldice_with_another_base():
    batch = random_batch("foreground", (6, 7))
    one = compute_loss(batch, CompoundClDiceSettings(of="ce_dice", dice_share=1.0, share=0.4))
    other = compute_loss(batch, ClDiceSettings(of="ce_dice", share=0.4))
    torch.testing.assert_close(one.total, other.total)


@pytest.mark.parametrize("name", ["cldice", "compound_cldice"])
@pytest.mark.parametrize("form", FORMS)
def test_gradient_in_float64(name, form):
    batch = random_batch(form, (4, 5), seed=7)
    settings = parse_loss({"name": name, "of": "ce", "iterations": 2})

    def loss(logits):
        return compute_loss(LossBatch.of(logits, batch.labels, form), settings).total

    assert torch.autograd.gradcheck(loss, batch.logits)


@pytest.mark.parametrize("form", FORMS)
def test_what_the_loader_prepared_is_used(form):
    batch = random_batch(form, (5, 6, 7))
    settings = ClDiceSettings(share=1.0, iterations=2)
    samples = [prepare_sample(one, form, settings) for one in batch.labels]
    prepared = {key: np.stack([one[key] for one in samples]) for key in samples[0]}
    again = LossBatch.of(batch.logits, batch.labels, form, prepared=prepared)
    plain = compute_loss(batch, settings).total
    assert torch.equal(compute_loss(again, settings).total, plain)
    nothing = {key: np.zeros_like(array) for key, array in prepared.items()}
    other = LossBatch.of(batch.logits, batch.labels, form, prepared=nothing)
    assert compute_loss(other, settings).total != plain


def test_erosion_goes_on_until_the_image_is_empty():
    """A disc of radius 12 needs more than the 3 iterations that MONAI takes by default."""
    y, x = np.mgrid[-14:15, -14:15]
    disc = y**2 + x**2 <= 144
    every = np.ones_like(disc)
    assert skeleton_of_mask(disc, every, 20)[14, 14]
    assert not skeleton_of_mask(disc, every, 3)[14, 14]
    np.testing.assert_array_equal(
        skeleton_of_mask(disc, every, 20), skeleton_of_mask(disc, every, 200)
    )


def test_settings():
    assert parse_loss("cldice").of.name == "dice"
    assert parse_loss("compound_cldice").of.name == "ce_dice"
    for bad in ({"iterations": 0}, {"smooth": 0.0}, {"share": 1.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            parse_loss({"name": "cldice", **bad})
