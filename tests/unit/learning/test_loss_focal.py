from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.arrays.labels import IGNORE
from pipeline.learning.batch import LossBatch
from pipeline.learning.loss_settings import CrossEntropySettings, FocalSettings, parse_loss
from pipeline.learning.losses.cross_entropy import cross_entropy
from pipeline.learning.losses.focal import focal

FORMS = ["affinities", "foreground", "classes"]
SPACES = [(5, 6), (3, 4, 5)]


def random_batch(form: str, space: tuple[int, ...], seed: int = 0) -> LossBatch:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, (2, *space)).astype(np.uint64)
    labels[random.random(labels.shape) < 0.2] = IGNORE
    channels = {"affinities": len(space), "foreground": 1, "classes": 3}[form]
    logits = torch.from_numpy(random.standard_normal((2, channels, *space)) * 3)
    return LossBatch.of(logits, labels, form)  # type: ignore[arg-type]


def by_hand(batch: LossBatch, gamma: float, weight: float | None) -> float:
    losses = []
    for z, t, m in zip(batch.logits, batch.targets, batch.mask, strict=True):
        if batch.form == "classes":
            q, foreground = (torch.softmax(z, 0) * t).sum(0)[m[0]], t[0][m[0]] == 0
        else:
            p, foreground = torch.sigmoid(z[m]), t[m] > 0
            q = torch.where(foreground, p, 1 - p)
        a = 1.0 if weight is None else torch.where(foreground, weight, 1 - weight)
        losses.append(float((-a * (1 - q) ** gamma * q.log()).mean()))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("weight", [None, 0.25, 0.0, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_formula(
    form: str, space: tuple[int, ...], gamma: float, weight: float | None
) -> None:
    batch = random_batch(form, space)
    value = focal(batch, FocalSettings(gamma=gamma, foreground_weight=weight))
    assert value.total.dtype == torch.float64
    assert float(value.total) == pytest.approx(by_hand(batch, gamma, weight), rel=1e-7)
    assert {name: part.item() for name, part in value.parts.items()} == {
        "voxel_loss": value.total.item()
    }


def test_two_voxels_by_hand() -> None:
    logits = torch.tensor([math.log(9.0), math.log(4.0)]).view(1, 1, 1, 2)
    labels = np.array([7, 0], np.uint64).reshape(1, 1, 2)
    batch = LossBatch.of(logits, labels, "foreground")
    right, wrong = -(0.1**2) * math.log(0.9), -(0.8**2) * math.log(0.2)
    assert float(focal(batch, FocalSettings()).total) == pytest.approx((right + wrong) / 2)
    weighted = focal(batch, FocalSettings(foreground_weight=0.25)).total
    assert float(weighted) == pytest.approx((0.25 * right + 0.75 * wrong) / 2)


@pytest.mark.parametrize("form", FORMS)
def test_without_focus_it_is_the_cross_entropy(form: str) -> None:
    batch = random_batch(form, (4, 5, 6))
    plain = cross_entropy(batch, CrossEntropySettings(class_balance_bound=1.0)).total
    torch.testing.assert_close(focal(batch, FocalSettings(gamma=0.0)).total, plain)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("form", FORMS)
def test_gradient_in_float64(form: str, gamma: float) -> None:
    batch = random_batch(form, (2, 3, 4))

    def loss(x: torch.Tensor) -> torch.Tensor:
        settings = FocalSettings(gamma=gamma, foreground_weight=0.3)
        return focal(LossBatch.of(x, batch.labels, batch.form), settings).total

    assert torch.autograd.gradcheck(loss, batch.logits.clone().requires_grad_())


@pytest.mark.parametrize("gamma", [0.0, 0.25, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("logit", [float("inf"), 3e38, 60.0, 30.0])
@pytest.mark.parametrize("form", ["foreground", "classes"])
def test_saturated_logits_are_finite_and_pushed_back(form: str, logit: float, gamma: float) -> None:
    """The power of 1 - softmax, taken as such, has a NaN for gradient here if gamma is below 1."""
    labels = np.array([0, 1], np.uint64).reshape(1, 1, 2)  # the first wrong, the second right
    values = torch.tensor([logit, logit]).view(1, 1, 1, 2)
    logits = torch.cat([-values, values], 1) if form == "classes" else values
    logits = logits.requires_grad_()
    total = focal(LossBatch.of(logits, labels, form), FocalSettings(gamma=gamma)).total  # type: ignore[arg-type]
    total.backward()
    assert logits.grad is not None
    assert total.detach().isfinite()
    wrong, right = logits.grad[0, -1, 0].tolist()
    assert wrong == pytest.approx(0.5)
    assert right == pytest.approx(0.0, abs=1e-6 if gamma else 1e-7)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_float32(dtype: torch.dtype, form: str) -> None:
    channels = {"affinities": 3, "foreground": 1, "classes": 2}[form]
    logits = torch.zeros(1, channels, 64, 64, 64, dtype=dtype, requires_grad=True)
    labels = np.zeros((1, 64, 64, 64), np.uint64)
    total = focal(LossBatch.of(logits, labels, form), FocalSettings()).total  # type: ignore[arg-type]
    total.backward()
    assert total.dtype == torch.float32
    assert float(total.detach()) == pytest.approx(0.25 * math.log(2.0), rel=1e-5)
    assert logits.grad is not None
    assert logits.grad.dtype == dtype


def test_settings() -> None:
    assert parse_loss("focal") == FocalSettings(gamma=2.0, foreground_weight=None)
    for wrong in ({"gamma": -1.0}, {"foreground_weight": 1.5}, {"alpha": 0.25}):
        with pytest.raises(ValueError, match="loss focal"):
            parse_loss({"name": "focal", **wrong})
