"""What every loss of the table promises, whatever it computes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from math import inf

import numpy as np
import pytest
import torch

from pipeline.arrays.labels import IGNORE
from pipeline.learning.batch import LossBatch
from pipeline.learning.loss_settings import LossSettings, parse_loss
from pipeline.learning.losses import LOSSES, compute_loss, prepare_sample

SPACES = {"2-D": (9, 11), "3-D": (5, 6, 7)}
VARIANTS: tuple[object, ...] = (
    *LOSSES,
    {"name": "scnp", "of": "ce", "with_plain": True},
    {"name": "scnp", "of": "supervoxel"},
    {"name": "supervoxel", "critical": "voxels", "mode": "global"},
)
CASES = [
    pytest.param(parse_loss(loss), form, space, id=f"{loss}-{form}-{space}".replace(" ", ""))
    for loss in VARIANTS
    for form in ("affinities", "foreground", "classes")
    for space in SPACES
    if parse_loss(loss).problem(form, len(space)) is None
]


def channels(form: str, space: tuple[int, ...]) -> int:
    return {"affinities": len(space), "foreground": 1, "classes": 3}[form]


def random_case(
    form: str, space: tuple[int, ...], seed: int = 0, samples: int = 2
) -> tuple[torch.Tensor, np.ndarray]:
    """Smooth random objects with some unknown voxels, and logits that follow them in part."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 3, (samples, *(n // 3 + 1 for n in space)))
    labels = coarse
    for axis in range(1, labels.ndim):
        labels = labels.repeat(3, axis)
    labels = labels[(slice(None), *(slice(0, n) for n in space))].astype(np.uint64)
    if form != "classes":
        labels = np.where(labels == 2, np.uint64(2**63 + 5), labels)
    labels[random.random(labels.shape) < 0.1] = IGNORE
    logits = random.standard_normal((samples, channels(form, space), *space)) * 2
    return torch.from_numpy(logits), np.ascontiguousarray(labels)


def loss_and_gradient(
    logits: torch.Tensor, labels: np.ndarray, form: str, settings: LossSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.detach().clone().requires_grad_()
    total = compute_loss(LossBatch.of(logits, labels, form), settings).total  # type: ignore[arg-type]
    total.backward()
    assert logits.grad is not None
    return total.detach(), logits.grad


@pytest.mark.parametrize(("settings", "form", "space"), CASES)
class TestEveryLoss:
    def test_a_batch_is_the_mean_of_its_samples(self, settings, form, space):
        logits, labels = random_case(form, SPACES[space], samples=3)
        total, gradient = loss_and_gradient(logits, labels, form, settings)
        apart = [
            loss_and_gradient(logits[i : i + 1], labels[i : i + 1], form, settings)
            for i in range(3)
        ]
        torch.testing.assert_close(total, torch.stack([one for one, _ in apart]).mean())
        torch.testing.assert_close(gradient, torch.cat([g for _, g in apart]) / 3)
        assert gradient.abs().sum() > 0

    def test_what_is_ignored_has_no_influence(self, settings, form, space):
        logits, labels = random_case(form, SPACES[space])
        _, mask = (
            LossBatch.of(logits, labels, form).targets,
            LossBatch.of(logits, labels, form).mask,
        )
        spoilt = logits.clone()
        spoilt[~mask] = (
            torch.tensor([float("nan"), float("inf"), -float("inf")])
            .repeat(int((~mask).sum()))[: int((~mask).sum())]
            .to(spoilt)
        )
        plain, spoilt = (loss_and_gradient(x, labels, form, settings) for x in (logits, spoilt))
        assert torch.equal(plain[0], spoilt[0])
        assert torch.equal(plain[1], spoilt[1])
        assert not plain[1][~mask].any()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_extremes_are_finite(self, settings, form, space, dtype):
        for label, logit in product((None, 0, 1, IGNORE), (None, 30.0, -30.0, inf, -inf)):
            logits, labels = random_case(form, SPACES[space])
            if label is not None:
                labels = np.full_like(labels, label)
            if logit is not None:
                logits = torch.full_like(logits, logit)
            total, gradient = loss_and_gradient(logits.to(dtype), labels, form, settings)
            case = f"all labels {label}, all logits {logit}"
            assert total.isfinite(), case
            assert total.dtype == torch.float32, case
            assert gradient.dtype == dtype, case
            assert gradient.isfinite().all(), case
            if label == IGNORE:
                assert total == 0, case
                assert not gradient.any(), case

    def test_the_same_again_and_on_threads_and_prepared(self, settings, form, space):
        logits, labels = random_case(form, SPACES[space], seed=2, samples=3)
        before = labels.copy()
        first = loss_and_gradient(logits, labels, form, settings)
        again = loss_and_gradient(logits, labels, form, settings)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        samples = [prepare_sample(one, form, settings) for one in labels]
        prepared = {key: np.stack([one[key] for one in samples]) for key in samples[0]}
        with ThreadPoolExecutor(2) as pool:
            batch = LossBatch.of(logits, labels, form, prepared=prepared, pool=pool)
            torch.testing.assert_close(compute_loss(batch, settings).total, first[0])
        np.testing.assert_array_equal(labels, before)

    def test_a_single_voxel(self, settings, form, space):
        shape = (1,) * len(SPACES[space])
        logits = torch.zeros(1, channels(form, shape), *shape)
        labels = np.ones((1, *shape), np.uint64)
        total, gradient = loss_and_gradient(logits, labels, form, settings)
        assert total.isfinite()
        assert gradient.isfinite().all()

    def test_strided_labels(self, settings, form, space):
        logits, labels = random_case(form, SPACES[space])
        flipped = np.ascontiguousarray(labels[..., ::-1])[..., ::-1]
        strided = np.asfortranarray(labels)
        expected = loss_and_gradient(logits, labels, form, settings)[0]
        for other in (flipped, strided):
            assert torch.equal(loss_and_gradient(logits, other, form, settings)[0], expected)

    def test_gradient_in_float64(self, settings, form, space):
        shape = (3, 4) if space == "2-D" else (2, 3, 3)
        logits, labels = random_case(form, shape, seed=3, samples=1)
        spread = torch.linspace(-3.0, 3.0, logits.numel(), dtype=torch.float64)
        order = torch.randperm(logits.numel(), generator=torch.Generator().manual_seed(1))
        # Distinct and not near 0: no minimum and no mistake changes within the step.
        logits = (spread + 0.05 * spread.sign())[order].reshape(logits.shape)

        def loss(x: torch.Tensor) -> torch.Tensor:
            return compute_loss(LossBatch.of(x, labels, form), settings).total

        assert torch.autograd.gradcheck(loss, logits.requires_grad_())
