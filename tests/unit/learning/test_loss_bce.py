from __future__ import annotations

import math

import pytest
import torch

from pipeline.learning.losses.bce import bce_loss, class_weights, edge_bce

INF, NAN = float("inf"), float("nan")


def random_case(seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 2, 3, 4, generator=generator, dtype=torch.float64).to(dtype)
    targets = (torch.rand(logits.shape, generator=generator) < 0.3).float()
    mask = torch.rand(logits.shape, generator=generator) < 0.7
    return logits, targets, mask


def test_equals_the_formula() -> None:
    logits, targets, mask = random_case(0, torch.float64)
    weights = torch.rand(logits.shape, dtype=torch.float64)
    p = torch.sigmoid(logits)
    each = -(targets * p.log() + (1 - targets) * (1 - p).log()) * weights
    torch.testing.assert_close(
        bce_loss(logits, targets, mask, weights), each[mask].sum() / int(mask.sum())
    )


def test_gradient_in_float64() -> None:
    logits, targets, mask = random_case(1, torch.float64)
    weights = class_weights(targets, mask, 4.0).double()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: bce_loss(x, targets, mask, weights), logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_are_float32(dtype: torch.dtype) -> None:
    logits = torch.full((1, 3, 64, 64, 64), -3.0, dtype=dtype, requires_grad=True)
    targets, mask = torch.zeros(logits.shape), torch.ones(logits.shape, dtype=torch.bool)
    loss = bce_loss(logits, targets, mask)
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(math.log1p(math.exp(-3.0)), rel=1e-4)
    assert logits.grad is not None
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("logit", [INF, -INF, 3e38, -3e38, 50.0, -50.0])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_extreme_logits_are_finite_and_pushed_back(logit: float, target: float) -> None:
    logits = torch.tensor([logit, 0.0], requires_grad=True)
    targets, mask = torch.tensor([target, 1.0]), torch.tensor([True, True])
    loss = bce_loss(logits, targets, mask)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert logits.grad is not None
    right = (logit > 0) == (target == 1.0)
    expected = 0.0 if right else (0.5 if logit > 0 else -0.5)
    assert float(logits.grad[0]) == pytest.approx(expected, abs=1e-12)
    assert float(logits.grad[1]) == pytest.approx(-0.25)


def test_what_masked_edges_hold_has_no_influence() -> None:
    logits, targets, mask = random_case(2, torch.float32)
    plain = logits.clone().requires_grad_()
    spoilt = logits.clone()
    spoilt[~mask] = torch.tensor([NAN, INF, -INF]).repeat(int((~mask).sum()))[: int((~mask).sum())]
    spoilt.requires_grad_()
    losses = [bce_loss(x, targets, mask) for x in (plain, spoilt)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    assert plain.grad is not None
    assert spoilt.grad is not None
    assert torch.equal(plain.grad, spoilt.grad)
    assert not spoilt.grad[~mask].any()


def test_a_nan_that_counts_is_not_hidden() -> None:
    logits = torch.tensor([NAN, 0.0])
    assert bce_loss(logits, torch.zeros(2), torch.tensor([True, True])).isnan()
    assert edge_bce(logits, torch.zeros(2), torch.tensor([True, True]))[1].isfinite()


def test_no_valid_edge_gives_zero() -> None:
    logits = torch.randn(1, 3, 2, 2, 2, requires_grad=True)
    nothing = torch.zeros(logits.shape, dtype=torch.bool)
    loss = bce_loss(logits, torch.zeros(logits.shape), nothing)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_classes_are_balanced_up_to_the_bound() -> None:
    targets, mask = torch.zeros(101), torch.ones(101, dtype=torch.bool)
    targets[:10] = 1.0
    mask[100] = False
    weights = class_weights(targets, mask, 100.0)
    assert float(weights[:10].sum()) == pytest.approx(50.0)
    assert float(weights[10:100].sum()) == pytest.approx(50.0)
    bounded = class_weights(targets, mask, 2.0)
    assert bounded[0] == 2.0
    assert float(bounded[50]) == pytest.approx(50.0 / 90.0)
    assert torch.equal(class_weights(targets, mask, 1.0), torch.ones(101))
    for constant in (torch.zeros(101), torch.ones(101)):
        assert torch.equal(class_weights(constant, mask, 8.0), torch.ones(101))
