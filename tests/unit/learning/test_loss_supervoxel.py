from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pipeline.arrays.labels import IGNORE
from pipeline.learning.batch import LossBatch
from pipeline.learning.critical import critical_components
from pipeline.learning.critical_decoded import number_critical_decoded
from pipeline.learning.critical_edges import critical_edges
from pipeline.learning.loss_settings import SupervoxelSettings
from pipeline.learning.losses.supervoxel import sign_weights, supervoxel
from pipeline.learning.targets import affinity_targets

SHAPE = (4, 5, 6)


def batch(
    logits: torch.Tensor, labels: np.ndarray, **settings: object
) -> tuple[torch.Tensor, dict[str, float], torch.Tensor]:
    logits = logits.clone().requires_grad_()
    value = supervoxel(LossBatch.of(logits, labels), SupervoxelSettings(**settings))  # type: ignore[arg-type]
    value.total.backward()
    assert logits.grad is not None
    parts = {name: float(part) for name, part in value.parts.items()}
    return value.total.detach(), parts, logits.grad


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
    logits, labels = random_case(0, samples=1)
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
    assert sign_weights(SupervoxelSettings(beta=0.8)) == pytest.approx((0.2, 0.8))
    assert sign_weights(SupervoxelSettings(beta=0.8, split_weight=3.0)) == pytest.approx((3.0, 0.8))
    assert sign_weights(SupervoxelSettings(merge_weight=0.0)) == pytest.approx((0.5, 0.0))


def test_gradient_in_float64() -> None:
    logits, labels = random_case(3, samples=1)
    logits = logits.sign() * (logits.abs() + 0.1)  # no edge changes sides within the step
    settings = SupervoxelSettings(alpha=0.7)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return supervoxel(LossBatch.of(x, labels), settings).total

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


def test_samples_do_not_see_each_other() -> None:
    logits, labels = random_case(4)
    both = batch(logits, labels, normalisation="sum", class_balance_bound=1.0, alpha=1.0)
    apart = [
        batch(logits[i : i + 1], labels[i : i + 1], normalisation="sum", class_balance_bound=1.0,
              alpha=1.0)
        for i in range(2)
    ]  # fmt: skip
    assert float(both[0]) == pytest.approx(sum(float(one[0]) for one in apart) / 2)
    torch.testing.assert_close(both[2], torch.cat([one[2] for one in apart]) / 2)


def test_threads_do_not_show() -> None:
    logits, labels = random_case(5, samples=4)
    with ThreadPoolExecutor(3) as pool:
        pooled = supervoxel(LossBatch.of(logits, labels, pool=pool), SupervoxelSettings())
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
def test_extremes_are_finite(name: str, normalisation: str, dtype: torch.dtype) -> None:
    label, logit = EXTREMES[name]
    logits, labels = random_case(6)
    if label is not None:
        labels = np.full_like(labels, label)
    if logit is not None:
        logits = torch.full_like(logits, logit)
    logits = logits.to(dtype).requires_grad_()
    settings = SupervoxelSettings(normalisation=normalisation)  # type: ignore[arg-type]
    total = supervoxel(LossBatch.of(logits, labels), settings).total
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


@pytest.mark.parametrize("mode", ["linear", "local", "global"])
@pytest.mark.parametrize("space", [(7, 8), (4, 5, 6)])
def test_foreground_takes_critical_voxels(mode: str, space: tuple[int, ...]) -> None:
    random = np.random.default_rng(8)
    ids = np.array([0, 0, 3, 2**63 + 9, IGNORE], np.uint64)
    labels = ids[random.integers(0, len(ids), (1, *space))]
    logits = torch.from_numpy(random.standard_normal((1, 1, *space)))
    settings = SupervoxelSettings(mode=mode, class_balance_bound=1.0)  # type: ignore[arg-type]
    value = supervoxel(LossBatch.of(logits, labels, "foreground"), settings)
    ignored = labels[0] == IGNORE
    each = torch.nn.functional.softplus(
        torch.where(torch.from_numpy((labels != 0)[:, None]), -logits, logits)
    ).numpy()[0, 0]
    target = np.where(ignored, np.uint64(0), labels[0])
    for sign, name in (("negative", "split_loss"), ("positive", "merge_loss")):
        mask, count = critical_components(
            target, logits[0, 0].numpy() > 0, mode=mode, sign=sign, ignore=ignored
        )  # type: ignore[arg-type]
        assert count
        expected = each[mask].sum() / (~ignored).sum()
        assert float(value.parts[name]) == pytest.approx(expected, rel=1e-6)


def decoded_by_hand(labels: np.ndarray, positive: np.ndarray) -> list[np.ndarray]:
    """Critical edges by the published form, voxel by voxel."""
    targets, mask = (t[0].numpy() > 0 for t in affinity_targets(labels[None]))
    masks = []
    images = []
    for edges in (targets & mask, positive & mask):
        names = {tuple(v): 0 for v in np.ndindex(labels.shape)}
        groups: list[set] = []
        for d, *here in np.argwhere(edges):
            there = list(here)
            there[d] -= 1
            ends = {tuple(here), tuple(there)}
            meeting = [g for g in groups if g & ends]
            groups = [g for g in groups if g not in meeting] + [ends.union(*meeting)]
        for number, group in enumerate(groups, start=1):
            names |= dict.fromkeys(group, number)
        images.append(np.array(list(names.values())).reshape(labels.shape))
    for sign in ("negative", "positive"):
        voxels, _ = critical_components(*images, connectivity=2 * labels.ndim, sign=sign)  # type: ignore[arg-type]
        carried = np.zeros_like(mask)
        for d, *here in np.argwhere(mask):
            there = list(here)
            there[d] -= 1
            carried[(d, *here)] = voxels[tuple(here)] or voxels[tuple(there)]
        masks.append(carried)
    return masks


@pytest.mark.parametrize("space", [(6, 7), (3, 4, 5)])
@pytest.mark.parametrize("seed", range(6))
def test_decoded_form_carries_critical_voxels_to_edges(space: tuple[int, ...], seed: int) -> None:
    random = np.random.default_rng(seed)
    ids = np.array([0, 3, 3, 2**63 + 9, IGNORE], np.uint64)
    labels = ids[random.integers(0, len(ids), space)]
    positive = random.random((len(space), *space)) < 0.4
    found = number_critical_decoded(labels, positive)
    for ours, slow in zip(found, decoded_by_hand(labels, positive), strict=True):
        np.testing.assert_array_equal(ours > 0, slow)


def test_decoded_form_is_blind_to_objects_that_touch() -> None:
    labels = np.array([[1, 1, 1, 2, 2, 2]], np.uint64)[None]
    logits = torch.full((1, 2, 1, 6), 3.0, dtype=torch.float64)
    edges, voxels = (
        supervoxel(LossBatch.of(logits, labels), SupervoxelSettings(critical=critical))
        for critical in ("edges", "voxels")
    )  # type: ignore[arg-type]
    assert float(edges.parts["merge_loss"]) > 0
    assert float(voxels.parts["merge_loss"]) == 0
