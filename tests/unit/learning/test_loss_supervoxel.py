from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pipeline.arrays.labels import IGNORE
from pipeline.learning.critical_edges import critical_edges
from pipeline.learning.losses import LOSSES
from pipeline.learning.losses.supervoxel import sign_weights
from pipeline.learning.settings import LossSettings
from pipeline.learning.targets import LossBatch, affinity_targets

SHAPE = (4, 5, 6)


def batch(
    logits: torch.Tensor, labels: np.ndarray, **settings: object
) -> tuple[torch.Tensor, dict[str, float], torch.Tensor]:
    logits = logits.clone().requires_grad_()
    value = LOSSES["supervoxel"](LossBatch.of(logits, labels, LossSettings(**settings)))  # type: ignore[arg-type]
    value.total.backward()
    assert logits.grad is not None
    return value.total.detach(), value.parts, logits.grad


def random_case(seed: int, samples: int = 2) -> tuple[torch.Tensor, np.ndarray]:
    random = np.random.default_rng(seed)
    ids = np.array([0, 0, 3, 3, 2**63 + 9, IGNORE], np.uint64)
    labels = ids[random.integers(0, len(ids), (samples, *SHAPE))]
    return torch.from_numpy(random.standard_normal((samples, 3, *SHAPE))), labels


def by_hand(logits: torch.Tensor, labels: np.ndarray) -> dict[str, np.ndarray]:
    targets, mask = affinity_targets(labels)
    each = torch.nn.functional.softplus(torch.where(targets > 0, -logits, logits)).numpy()
    found = [critical_edges(one, p) for one, p in zip(labels, (logits > 0).numpy(), strict=True)]
    split, merge = (np.stack(masks) for masks in zip(*found, strict=True))
    return {"each": each, "mask": mask.numpy(), "split": split, "merge": merge}


@pytest.mark.parametrize("normalisation", ["image", "sum"])
def test_closed_form(normalisation: str) -> None:
    logits, labels = random_case(0)
    hand = by_hand(logits, labels)
    count = hand["mask"].sum()
    by = count if normalisation == "image" else 1
    terms = [hand["each"][hand[name]].sum() / by for name in ("split", "merge")]
    voxel = hand["each"][hand["mask"]].sum() / count
    total, parts, _ = batch(
        logits,
        labels,
        alpha=0.3,
        beta=0.8,
        normalisation=normalisation,
        class_balance_bound=1.0,
    )
    assert parts == pytest.approx(
        {"voxel_loss": voxel, "split_loss": terms[0], "merge_loss": terms[1]}, rel=1e-6
    )
    expected = 0.7 * voxel + 0.3 * (0.2 * terms[0] + 0.8 * terms[1])
    assert float(total) == pytest.approx(expected, rel=1e-6)


def test_component_normalisation_adds_the_means_of_components() -> None:
    labels = np.array([1] * 8 + [0] * 3 + [2] * 3, np.uint64).reshape(1, 1, 1, -1)
    logits = torch.full((1, 3, 1, 1, 14), -5.0, dtype=torch.float64)
    logits[0, 2, 0, 0, [1, 2, 6, 7]] = 5.0  # 1 falls into two parts, 2 is missed
    _, parts, _ = batch(logits, labels, normalisation="component", class_balance_bound=1.0)
    wrong, right = np.log1p(np.exp(5.0)), np.log1p(np.exp(-5.0))
    # Edges 3, 4, 5 fill the gap. Object 2 has edges 12, 13 inside and edge 11 at its end.
    assert parts["split_loss"] == pytest.approx(wrong + (2 * wrong + right) / 3, rel=1e-6)
    assert parts["merge_loss"] == 0.0


def test_critical_edges_get_more_gradient_and_others_less() -> None:
    labels = np.ones((1, 1, 1, 8), np.uint64)
    logits = torch.full((1, 3, 1, 1, 8), 2.0, dtype=torch.float64)
    logits[0, 2, 0, 0, 4] = -2.0
    plain = batch(logits, labels, alpha=0.0, class_balance_bound=1.0)[2]
    _, _, topological = batch(logits, labels, alpha=0.5, split_weight=4.0, class_balance_bound=1.0)
    ratio = (topological / plain)[0, 2, 0, 0, 1:]
    expected = torch.full((7,), 0.5, dtype=torch.float64)
    expected[3] = 0.5 + 0.5 * 4.0
    torch.testing.assert_close(ratio, expected)


def test_weights_of_the_signs() -> None:
    assert sign_weights(LossSettings(beta=0.8)) == pytest.approx((0.2, 0.8))
    assert sign_weights(LossSettings(beta=0.8, split_weight=3.0)) == pytest.approx((3.0, 0.8))
    assert sign_weights(LossSettings(merge_weight=0.0)) == pytest.approx((0.5, 0.0))


def test_gradient_in_float64() -> None:
    logits, labels = random_case(3, samples=1)
    logits = logits.sign() * (logits.abs() + 0.1)  # no edge changes sides within the step
    settings = LossSettings(alpha=0.7)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return LOSSES["supervoxel"](LossBatch.of(x, labels, settings)).total

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


def test_samples_do_not_see_each_other() -> None:
    logits, labels = random_case(4)
    both = batch(logits, labels, normalisation="sum", class_balance_bound=1.0, alpha=1.0)
    apart = [
        batch(logits[i : i + 1], labels[i : i + 1], normalisation="sum", class_balance_bound=1.0,
              alpha=1.0)
        for i in range(2)
    ]  # fmt: skip
    assert float(both[0]) == pytest.approx(sum(float(one[0]) for one in apart))
    torch.testing.assert_close(both[2], torch.cat([one[2] for one in apart]))


def test_threads_do_not_show() -> None:
    logits, labels = random_case(5, samples=4)
    with ThreadPoolExecutor(3) as pool:
        pooled = LOSSES["supervoxel"](LossBatch.of(logits, labels, LossSettings(), pool))
    assert torch.equal(pooled.total, batch(logits, labels)[0])


EXTREMES = {
    "background only": (0, None),
    "one object": (1, None),
    "all unknown": (IGNORE, None),
    "nothing predicted": (None, -4.0),
    "everything predicted": (None, 4.0),
    "infinite": (None, float("inf")),
    "minus infinite": (None, float("-inf")),
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("normalisation", ["image", "component", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_extremes_are_finite(name: str, normalisation: str, dtype: torch.dtype, loss: str) -> None:
    label, logit = EXTREMES[name]
    logits, labels = random_case(6)
    if label is not None:
        labels = np.full_like(labels, label)
    if logit is not None:
        logits = torch.full_like(logits, logit)
    logits = logits.to(dtype).requires_grad_()
    settings = LossSettings(normalisation=normalisation)  # type: ignore[arg-type]
    total = LOSSES[loss](LossBatch.of(logits, labels, settings)).total
    total.backward()
    assert total.detach().isfinite()
    assert total.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_labels_are_not_changed() -> None:
    logits, labels = random_case(7)
    before = labels.copy()
    batch(logits, labels)
    np.testing.assert_array_equal(labels, before)
