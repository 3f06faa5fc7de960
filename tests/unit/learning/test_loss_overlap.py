from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.arrays.labels import IGNORE
from pipeline.learning.batch import LossBatch
from pipeline.learning.loss_settings import (
    CeDiceSettings,
    CrossEntropySettings,
    DiceSettings,
    TverskySettings,
    parse_loss,
)
from pipeline.learning.losses.cross_entropy import cross_entropy
from pipeline.learning.losses.overlap import ce_dice, dice, dice_loss, tversky

FORMS = ["affinities", "foreground", "classes"]
SPACES = [(5, 6), (3, 4, 5)]
SMOOTH = 1e-5


def random_batch(form: str, space: tuple[int, ...], seed: int = 0) -> LossBatch:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, (2, *space)).astype(np.uint64)
    labels[random.random(labels.shape) < 0.2] = IGNORE
    channels = {"affinities": len(space), "foreground": 1, "classes": 3}[form]
    logits = torch.from_numpy(random.standard_normal((2, channels, *space)) * 3)
    return LossBatch.of(logits, labels, form)  # type: ignore[arg-type]


def foreground(logits: list[float], labels: list[int]) -> LossBatch:
    z = torch.tensor(logits).view(1, 1, 1, -1).requires_grad_()
    return LossBatch.of(z, np.array(labels, np.uint64).reshape(1, 1, -1), "foreground")


def sums(batch: LossBatch) -> list[list[tuple[float, float, float]]]:
    """True positives, false positives and false negatives: per sample, per channel that counts."""
    found = []
    for z, t, m in zip(batch.logits, batch.targets, batch.mask, strict=True):
        p = torch.softmax(z, 0) if batch.form == "classes" else torch.sigmoid(z)
        each = []
        for c in range(1 if batch.form == "classes" else 0, len(z)):
            if m[c].any():
                q, y = p[c][m[c]].numpy(), t[c][m[c]].numpy()
                each.append(((q * y).sum(), (q * (1 - y)).sum(), ((1 - q) * y).sum()))
        found.append(each)
    return found


def mean(batch: LossBatch, alpha: float, beta: float, smooth: float) -> float:
    samples = [
        np.mean([1 - (tp + smooth) / (tp + alpha * fp + beta * fn + smooth) for tp, fp, fn in each])
        for each in sums(batch)
    ]
    return float(np.mean(samples))


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_dice_equals_the_formula(form: str, space: tuple[int, ...]) -> None:
    batch = random_batch(form, space)
    value = dice(batch, DiceSettings())
    expected = mean(batch, 0.5, 0.5, SMOOTH / 2)
    assert value.total.dtype == torch.float64
    assert float(value.total) == pytest.approx(expected, rel=1e-9)
    assert value.parts == {"dice_loss": value.total}
    assert torch.equal(dice_loss(batch), value.total)


@pytest.mark.parametrize("weights", [(0.3, 0.7), (0.5, 0.5), (1.0, 0.0), (0.0, 2.0)])
@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_tversky_equals_the_formula(
    form: str, space: tuple[int, ...], weights: tuple[float, float]
) -> None:
    batch = random_batch(form, space)
    settings = TverskySettings(false_positives=weights[0], false_negatives=weights[1])
    value = tversky(batch, settings)
    assert float(value.total) == pytest.approx(mean(batch, *weights, SMOOTH), rel=1e-9)
    assert value.parts == {"tversky_loss": value.total}


def test_by_hand() -> None:
    batch = foreground([np.log(3.0), np.log(3.0), 0.0, 0.0], [5, 0, 2, 0])
    # p = 0.75, 0.75, 0.5, 0.5: TP 1.25, FP 1.25, FN 0.75
    assert dice(batch, DiceSettings()).total.item() == pytest.approx(1 - 2.5 / 4.5, abs=1e-5)
    expected = 1 - 1.25 / (1.25 + 0.3 * 1.25 + 0.7 * 0.75)
    assert tversky(batch, TverskySettings()).total.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_cross_entropy_and_dice(form: str, share: float) -> None:
    batch = random_batch(form, (4, 5, 6))
    value = ce_dice(batch, CeDiceSettings(dice_share=share))
    voxel = float(cross_entropy(batch, CrossEntropySettings(class_balance_bound=1.0)).total)
    overlap = float(dice_loss(batch))
    assert float(value.total) == pytest.approx((1 - share) * voxel + share * overlap)
    assert {name: float(part) for name, part in value.parts.items()} == {
        "voxel_loss": pytest.approx(voxel),
        "dice_loss": pytest.approx(overlap),
    }


@pytest.mark.parametrize("loss", ["dice", "tversky", "ce_dice"])
@pytest.mark.parametrize("form", FORMS)
def test_gradient_in_float64(form: str, loss: str) -> None:
    batch = random_batch(form, (2, 3, 4))
    function = {"dice": dice, "tversky": tversky, "ce_dice": ce_dice}[loss]

    def total(x: torch.Tensor) -> torch.Tensor:
        return function(LossBatch.of(x, batch.labels, batch.form), parse_loss(loss)).total  # type: ignore[operator]

    assert torch.autograd.gradcheck(total, batch.logits.clone().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_float32(dtype: torch.dtype) -> None:
    """Half of 128 x 64 x 64 voxels sums up to more than float16 holds."""
    labels = np.zeros((1, 128, 64, 64), np.uint64)
    labels[:, :64] = 3
    logits = torch.zeros(1, 1, 128, 64, 64, dtype=dtype, requires_grad=True)
    batch = LossBatch.of(logits, labels, "foreground")
    for total in (dice_loss(batch), tversky(batch, TverskySettings()).total):
        assert total.dtype == torch.float32
        assert float(total.detach()) == pytest.approx(0.5, rel=1e-6)
        logits.grad = None
        total.backward()
        assert logits.grad is not None
        assert logits.grad.dtype == dtype


def test_background_is_no_class_of_its_own() -> None:
    labels = np.array([0, 0, 1, 2], np.uint64).reshape(1, 1, 4)
    logits = torch.zeros(1, 3, 1, 4)
    for voxel, guess in enumerate((0, 0, 1, 1)):  # class 2 is missed
        logits[0, guess, 0, voxel] = 50.0
    found = dice_loss(LossBatch.of(logits, labels, "classes"))
    assert float(found) == pytest.approx((1 - 2 / 3 + 1) / 2, abs=1e-4)


def test_a_channel_without_valid_elements_is_left_out() -> None:
    """One plane has no edges along z: the loss is that of its y and x."""
    labels = np.array([[[[1, 1, 0], [1, 2, 2]]]], np.uint64)
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 1, 2, 3, generator=random)
    volume = LossBatch.of(logits, labels)
    plane = LossBatch.of(logits[:, 1:, 0], labels[:, 0])
    assert not volume.mask[:, 0].any()
    torch.testing.assert_close(dice_loss(volume), dice_loss(plane))
    totals = [tversky(batch, TverskySettings()).total for batch in (volume, plane)]
    torch.testing.assert_close(*totals)


@pytest.mark.parametrize("logit", [-float("inf"), -30.0, 0.0, 30.0, float("inf")])
@pytest.mark.parametrize("label", [0, 1])
def test_constant_patches(logit: float, label: int) -> None:
    batch = foreground([logit] * 1000, [label] * 1000)
    for total in (dice_loss(batch), tversky(batch, TverskySettings()).total):
        (gradient,) = torch.autograd.grad(total, batch.logits)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() <= 0.51
        right = label == (logit > 0) and logit != 0
        if logit:
            assert float(total.detach()) == pytest.approx(0.0 if right else 1.0, abs=1e-4)
    (gradient,) = torch.autograd.grad(ce_dice(batch, CeDiceSettings()).total, batch.logits)
    pushed = float(gradient.abs().sum())
    assert pushed < 1e-4 if right else pushed > 0.2


def test_no_valid_element_gives_zero() -> None:
    batch = foreground([1.0, float("nan")], [IGNORE, IGNORE])
    for total in (dice_loss(batch), tversky(batch, TverskySettings()).total):
        assert float(total.detach()) == 0.0
        assert not torch.autograd.grad(total, batch.logits)[0].any()


@pytest.mark.parametrize("form", FORMS)
def test_what_the_mask_leaves_out_has_no_influence(form: str) -> None:
    """A mask narrower than the labels included: a loss may be computed on part of a batch."""
    batch = random_batch(form, (3, 4, 5))
    mask = batch.mask.clone()
    mask[:, :, 0] = False
    narrow = dataclasses.replace(batch, mask=mask)
    logits = batch.logits.clone()
    logits[~mask] = float("nan")
    spoilt = dataclasses.replace(narrow, logits=logits.requires_grad_())
    for total in (dice_loss, lambda b: tversky(b, TverskySettings()).total):
        assert torch.equal(total(narrow), total(spoilt))
        (gradient,) = torch.autograd.grad(total(spoilt), logits)
        assert gradient.isfinite().all()
        assert not gradient[~mask].any()
    assert float(dice_loss(narrow)) == pytest.approx(mean(narrow, 0.5, 0.5, SMOOTH / 2))
