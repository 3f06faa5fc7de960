from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from pipeline.arrays.labels import IGNORE
from pipeline.learning.batch import LossBatch
from pipeline.learning.loss_settings import CrossEntropySettings
from pipeline.learning.losses.cross_entropy import (
    class_weights,
    cross_entropy,
    element_cross_entropy,
)

INF, NAN = float("inf"), float("nan")
PLAIN = CrossEntropySettings(class_balance_bound=1.0)
FORMS = ["affinities", "foreground", "classes"]
SPACES = [(5, 6), (3, 4, 5)]


def random_case(
    form: str, space: tuple[int, ...], seed: int = 0, samples: int = 3
) -> tuple[torch.Tensor, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, (samples, *space)).astype(np.uint64)
    labels[0, 0] = IGNORE  # samples of different numbers of valid elements
    labels[random.random(labels.shape) < 0.2] = IGNORE
    channels = {"affinities": len(space), "foreground": 1, "classes": 3}[form]
    return torch.from_numpy(random.standard_normal((samples, channels, *space)) * 3), labels


def batch_of(logits: torch.Tensor, labels: np.ndarray, form: str) -> LossBatch:
    return LossBatch.of(logits, labels, form)  # type: ignore[arg-type]


def one_row(logits: list[float], labels: list[int]) -> LossBatch:
    """Foreground of one row of voxels."""
    z = torch.tensor(logits).view(1, 1, 1, -1).requires_grad_()
    return batch_of(z, np.array(labels, np.uint64).reshape(1, 1, -1), "foreground")


def gradient_of(batch: LossBatch, settings: CrossEntropySettings = PLAIN) -> torch.Tensor:
    total = cross_entropy(batch, settings).total
    assert total.detach().isfinite()
    (gradient,) = torch.autograd.grad(total, batch.logits)
    return gradient.flatten()


def by_hand(batch: LossBatch, bound: float) -> float:
    """Sample by sample, element by element."""
    losses = []
    for z, t, m in zip(batch.logits, batch.targets, batch.mask, strict=True):
        if batch.form == "classes":
            q = (torch.softmax(z, 0) * t).sum(0)[m[0]]
            losses.append(float(-q.log().mean()))
            continue
        p, t = torch.sigmoid(z[m]), t[m]
        each = -(t * p.log() + (1 - t) * (1 - p).log())
        ratio = [min(max(len(t) / (2 * max(int((t == k).sum()), 1)), 1 / bound), bound)
                 for k in (0, 1)]  # fmt: skip
        losses.append(float((each * torch.where(t > 0, ratio[1], ratio[0])).mean()))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("bound", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_formula(form: str, space: tuple[int, ...], bound: float) -> None:
    batch = batch_of(*random_case(form, space), form)
    value = cross_entropy(batch, CrossEntropySettings(class_balance_bound=bound))
    assert float(value.total) == pytest.approx(by_hand(batch, bound), rel=1e-6)
    assert {*value.parts} == {"voxel_loss"}
    assert value.parts["voxel_loss"] == value.total


@pytest.mark.parametrize("form", FORMS)
def test_elements_are_weighted_and_zero_where_nothing_counts(form: str) -> None:
    batch = batch_of(*random_case(form, (3, 4, 5)), form)
    plain, counted = element_cross_entropy(batch)
    shape = (3, 1, 3, 4, 5) if form == "classes" else tuple(batch.logits.shape)
    assert plain.shape == counted.shape == shape
    assert torch.equal(counted, batch.mask[:, : shape[1]])
    assert not plain[~counted].any()
    assert (plain[counted] > 0).all()
    balanced, _ = element_cross_entropy(batch, 2.0)
    weights = 1.0 if form == "classes" else class_weights(batch.targets, batch.mask, 2.0)
    torch.testing.assert_close(balanced, plain * weights)


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_gradient_in_float64(form: str, space: tuple[int, ...]) -> None:
    logits, labels = random_case(form, space, samples=2)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return cross_entropy(batch_of(x, labels, form), CrossEntropySettings()).total

    assert loss(logits).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_are_float32(dtype: torch.dtype, form: str) -> None:
    labels = np.zeros((1, 64, 64, 64), np.uint64)
    channels = {"affinities": 3, "foreground": 1, "classes": 2}[form]
    logits = torch.full((1, channels, 64, 64, 64), -3.0, dtype=dtype)
    if form == "classes":
        logits[:, 0] = 0.0
    logits.requires_grad_()
    loss = cross_entropy(batch_of(logits, labels, form), CrossEntropySettings()).total
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(math.log1p(math.exp(-3.0)), rel=1e-5)
    assert logits.grad is not None
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("logit", [INF, -INF, 3e38, -3e38, 50.0, -50.0])
@pytest.mark.parametrize("label", [0, 1])
def test_extreme_logits_are_finite_and_pushed_back(logit: float, label: int) -> None:
    gradient = gradient_of(one_row([logit, 0.0], [label, 1]))
    right = (logit > 0) == (label == 1)
    expected = 0.0 if right else (0.5 if logit > 0 else -0.5)
    assert gradient.tolist() == pytest.approx([expected, -0.25], abs=1e-12)


@pytest.mark.parametrize("logit", [INF, 3e38, 50.0])
def test_extreme_logits_of_classes_are_pushed_back(logit: float) -> None:
    logits = torch.tensor([logit, 0.0, -logit]).view(1, 3, 1, 1).requires_grad_()
    batch = batch_of(logits, np.full((1, 1, 1), 2, np.uint64), "classes")
    assert gradient_of(batch).tolist() == pytest.approx([1.0, 0.0, -1.0])


@pytest.mark.parametrize("form", FORMS)
def test_what_the_mask_leaves_out_has_no_influence(form: str) -> None:
    logits, labels = random_case(form, (3, 4, 5))
    batch = batch_of(logits.float().requires_grad_(), labels, form)
    out = ~batch.mask
    spoilt = batch.logits.detach().clone()
    spoilt[out] = torch.tensor([NAN, INF, -INF]).repeat(int(out.sum()))[: int(out.sum())]
    other = dataclasses.replace(batch, logits=spoilt.requires_grad_())
    first, second = (gradient_of(b, CrossEntropySettings()) for b in (batch, other))
    assert torch.equal(first, second)
    assert not first[out.flatten()].any()
    totals = [cross_entropy(b, CrossEntropySettings()).total for b in (batch, other)]
    assert torch.equal(*totals)


def test_targets_outside_the_mask_do_not_count() -> None:
    """A mask may be narrower than the labels: a loss may be computed on part of a batch."""
    batch = one_row([1.0, -1.0, 2.0, 3.0], [1, 0, 0, 1])
    part = torch.tensor([True, True, True, False]).view(1, 1, 1, 4)
    narrow = cross_entropy(dataclasses.replace(batch, mask=part), CrossEntropySettings())
    without = cross_entropy(one_row([1.0, -1.0, 2.0], [1, 0, 0]), CrossEntropySettings())
    assert narrow.total.item() == pytest.approx(without.total.item())


@pytest.mark.parametrize("bound", [1.0, 4.0])
def test_a_nan_that_counts_is_not_hidden(bound: float) -> None:
    batch = one_row([NAN, 0.0], [0, 1])
    assert cross_entropy(batch, CrossEntropySettings(class_balance_bound=bound)).total.isnan()
    assert element_cross_entropy(batch, bound)[0].isnan().flatten().tolist() == [True, False]


@pytest.mark.parametrize("form", FORMS)
def test_no_valid_element_gives_zero(form: str) -> None:
    logits, labels = random_case(form, (2, 3, 4), samples=2)
    labels[1] = IGNORE
    one = float(cross_entropy(batch_of(logits[:1], labels[:1], form), PLAIN).total)
    batch = batch_of(logits.requires_grad_(), labels, form)
    assert cross_entropy(batch, PLAIN).total.item() == pytest.approx(one / 2)
    labels[0] = IGNORE
    batch = batch_of(logits, labels, form)
    assert cross_entropy(batch, PLAIN).total.item() == 0.0
    assert not gradient_of(batch).any()


def test_classes_are_balanced_up_to_the_bound() -> None:
    targets, mask = torch.zeros(1, 101), torch.ones(1, 101, dtype=torch.bool)
    targets[0, :10] = 1.0
    mask[0, 100] = False
    weights = class_weights(targets, mask, 100.0)[0]
    assert float(weights[:10].sum()) == pytest.approx(50.0)
    assert float(weights[10:100].sum()) == pytest.approx(50.0)
    assert weights[100] == 0.0
    bounded = class_weights(targets, mask, 2.0)[0]
    assert bounded[0] == 2.0
    assert float(bounded[50]) == pytest.approx(50.0 / 90.0)
    assert class_weights(1 - targets, mask, 1.25)[0, 50] == pytest.approx(0.8)
    assert torch.equal(class_weights(targets, mask, 1.0), mask.float())
    for constant in (torch.zeros(1, 101), torch.ones(1, 101)):
        assert torch.equal(class_weights(constant, mask, 8.0), mask.float())


def test_samples_are_balanced_one_by_one() -> None:
    targets, mask = torch.zeros(3, 1, 2, 10), torch.ones(3, 1, 2, 10, dtype=torch.bool)
    targets[0, 0, 0] = 1.0
    targets[1, 0, 0, :5] = 1.0
    weights = class_weights(targets, mask, 8.0)
    assert torch.equal(weights[0], torch.ones(1, 2, 10))
    assert weights[1, 0, 0, 0] == 2.0
    assert weights[1, 0, 1, 0] == pytest.approx(10 / 15)
    assert torch.equal(weights[2], torch.ones(1, 2, 10))


def test_several_classes_are_not_balanced() -> None:
    batch = batch_of(*random_case("classes", (4, 5)), "classes")
    totals = [
        cross_entropy(batch, CrossEntropySettings(class_balance_bound=bound)).total
        for bound in (1.0, 8.0)
    ]
    assert torch.equal(*totals)
