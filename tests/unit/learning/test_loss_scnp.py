from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays.labels import IGNORE
from pipeline.errors import ConfigError, DtypeError, ShapeError
from pipeline.learning.batch import LossBatch, LossValue
from pipeline.learning.loss_settings import (
    CrossEntropySettings,
    DiceSettings,
    LossSettings,
    ScnpSettings,
    parse_loss,
)
from pipeline.learning.losses import compute_loss
from pipeline.learning.losses.scnp import (
    _find_with_numba,
    _find_with_torch,
    penalize_logits,
    scnp,
)

INF, NAN = float("inf"), float("nan")


def slow_places(
    logits: np.ndarray, target: np.ndarray, mask: np.ndarray, window: tuple[int, ...]
) -> np.ndarray:
    """From the definition, voxel by voxel; (V, *space)."""
    places = np.empty(logits.shape, np.int64)
    space = logits.shape[1:]
    for v in range(len(logits)):
        for i in np.ndindex(space):
            at = i
            if mask[(v, *i)]:
                box = [
                    range(max(0, c - w // 2), min(n, c + w // 2 + 1))
                    for c, w, n in zip(i, window, space, strict=True)
                ]
                same = [
                    j for j in itertools.product(*box)
                    if mask[(v, *j)] and target[(v, *j)] == target[(v, *i)]
                ]  # fmt: skip
                sign = -1.0 if target[(v, *i)] else 1.0
                bad = [sign * float(logits[(v, *j)]) for j in same]
                bad = [INF if np.isnan(b) else b for b in bad]
                at = same[int(np.argmax(bad))]  # the first of several
            places[(v, *i)] = np.ravel_multi_index(at, space)
    return places


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
    """(V, *space) float32 logits with ties, infinities and zeros of both signs."""
    axes = draw(st.sampled_from([2, 3]))
    space = draw(st.tuples(*[st.integers(1, 9 if axes == 2 else 5)] * axes))
    window = draw(st.tuples(*[st.sampled_from([1, 3, 5, 7])] * axes))
    shape = (draw(st.integers(1, 2)), *space)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    special = np.array([0.0, -0.0, 1.5, -1.5, INF, -INF, 2e4, -2e4, 3e38, -3e38, 1e-42, NAN])
    logits = random.choice(special[: draw(st.sampled_from([2, 4, 12]))], shape)
    logits = np.where(random.random(shape) < draw(st.sampled_from([0.0, 0.5, 1.0])), logits,
                      random.standard_normal(shape)).astype(np.float32)  # fmt: skip
    target = random.random(shape) < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    mask = random.random(shape) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return logits, target, mask, window


@given(cases())
@settings(deadline=None, derandomize=True, max_examples=150)
def test_both_ways_find_what_the_definition_says(case) -> None:
    logits, target, mask, window = case
    expected = slow_places(logits, target, mask, window)
    tensors = [torch.from_numpy(x) for x in (logits, target, mask)]
    reach = tuple(min(w // 2, n - 1) for w, n in zip(window, logits.shape[1:], strict=True))
    for find in (_find_with_numba, _find_with_torch):
        np.testing.assert_array_equal(find(*tensors, reach).numpy(), expected)


@given(cases(), st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_values_are_copied_and_gradients_added_up(case, dtype) -> None:
    logits, target, mask, window = case
    z = torch.from_numpy(logits)[None].to(dtype)
    places = slow_places(z[0].double().numpy(), target, mask, window).reshape(len(logits), -1)
    z.requires_grad_()
    found = penalize_logits(
        z, torch.from_numpy(target)[None].float(), window, mask=torch.from_numpy(mask)[None]
    )
    flat = z.detach()[0].flatten(1)
    expected = torch.stack([row[place] for row, place in zip(flat, places, strict=True)])
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.detach()[0].flatten(1), expected, rtol=0, atol=0, equal_nan=True
    )
    gradient = torch.arange(z.numel()).view(z.shape) % 5.0  # sums are exact
    if dtype in (torch.float32, torch.float64):
        gradient += 2.0**-12
    found.backward(gradient.to(dtype))
    sums = np.zeros(places.shape)
    for row, place, g in zip(sums, places, gradient[0].flatten(1).numpy(), strict=True):
        np.add.at(row, place, g)
    assert z.grad is not None
    assert z.grad.dtype == dtype
    np.testing.assert_array_equal(z.grad[0].flatten(1).double().numpy(), sums)


def test_a_row_by_hand() -> None:
    logits = torch.tensor([4.0, 1.0, 3.0, -7.0, -9.0, -2.0, 5.0]).view(1, 1, 1, 7)
    logits.requires_grad_()
    target = torch.tensor([1, 1, 1, 0, 0, 0, 1]).view(1, 1, 1, 7)
    found = penalize_logits(logits, target)
    assert found.flatten().tolist() == [1.0, 1.0, 1.0, -7.0, -2.0, -2.0, 5.0]
    found.backward(torch.tensor([1.0, 2, 3, 4, 5, 6, 7]).view(found.shape))
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == [0.0, 6.0, 0.0, 4.0, 0.0, 11.0, 7.0]


def test_a_diagonal_neighbour_counts_across_the_other_class() -> None:
    logits = torch.tensor([[2.0, 0.5], [0.7, -3.0]]).view(1, 1, 2, 2)
    target = torch.tensor([[1, 0], [0, 1]]).view(1, 1, 2, 2)
    found = penalize_logits(logits, target)
    assert torch.equal(found.flatten(), torch.tensor([-3.0, 0.7, 0.7, -3.0]))


def test_ties_fall_to_the_first_in_c_order() -> None:
    logits = torch.zeros(1, 1, 3, 3, requires_grad=True)
    found = penalize_logits(logits, torch.ones(logits.shape))
    found[0, 0, 1, 1].backward()
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == [1.0] + [0.0] * 8


@pytest.mark.parametrize("logit", [-2e4, 2e4, -INF, INF])
def test_large_logits_of_the_other_class_do_no_harm(logit: float) -> None:
    """Multiplied by a large number in place of a mask, such a logit would win the comparison."""
    logits = torch.full((1, 1, 3, 3, 3), 1.0)
    target = torch.ones(logits.shape)
    logits[0, 0, 1, 1, 1], target[0, 0, 1, 1, 1] = logit, 0.0
    assert torch.equal(penalize_logits(logits, target), logits)
    assert torch.equal(penalize_logits(logits, 1 - target), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("values", "target"), [((INF, NAN), 0.0), ((-INF, -NAN), 1.0)])
def test_nan_is_as_bad_as_infinity(
    values: tuple[float, float], target: float, dtype: torch.dtype
) -> None:
    first = torch.tensor(values, dtype=dtype).view(1, 1, 1, 2)
    goal = torch.full(first.shape, target)
    assert torch.equal(penalize_logits(first, goal), first[..., :1].expand(first.shape))
    assert penalize_logits(first.flip(3), goal).isnan().all()


def test_gradients_are_summed_in_float32() -> None:
    logits = torch.ones(1, 1, 3, 3, 3, dtype=torch.bfloat16)
    logits[0, 0, 1, 1, 1] = -1.0
    logits.requires_grad_()
    gradient = torch.full(logits.shape, 2.0**-8, dtype=torch.bfloat16)
    gradient[0, 0, 0, 0, 0] = 1.0  # to which bfloat16 can add no 2**-8
    penalize_logits(logits, torch.ones(logits.shape)).backward(gradient)
    assert logits.grad is not None
    assert float(logits.grad[0, 0, 1, 1, 1]) == 1.0 + 26 * 2.0**-8


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 3, 3, 4)])
def test_gradient_in_float64(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randperm(torch.Size(shape).numel(), generator=generator).double().view(shape)
    target = torch.rand(shape, generator=generator) < 0.5
    mask = torch.rand(shape, generator=generator) < 0.8
    assert torch.autograd.gradcheck(
        lambda x: penalize_logits(x, target, mask=mask), (logits / 10).requires_grad_()
    )


def test_a_nan_outside_the_mask_has_no_influence_and_one_inside_shows() -> None:
    logits, target = torch.zeros(1, 1, 1, 5), torch.ones(1, 1, 1, 5)
    logits[..., 2] = NAN
    known = ~logits.isnan()
    found = penalize_logits(logits, target, mask=known)
    assert found.isnan().flatten().tolist() == [False, False, True, False, False]
    assert not found[known].any()
    shown = penalize_logits(logits, target).isnan().flatten().tolist()
    assert shown == [False, True, True, True, False]
    wide = penalize_logits(logits.double(), target).isnan().flatten().tolist()
    assert wide == shown


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_and_channels_stay_apart(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 2, 4, 5, 6, generator=generator).to(dtype)
    target = (torch.rand(logits.shape, generator=generator) < 0.5).float()
    found = penalize_logits(logits, target)
    for i, c in itertools.product(range(3), range(2)):
        part = (slice(i, i + 1), slice(c, c + 1))
        assert torch.equal(found[part], penalize_logits(logits[part], target[part]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strided_tensors_and_other_types_of_target(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator).to(dtype)
    target = torch.rand(logits.shape, generator=generator) < 0.5
    mask = torch.rand(logits.shape, generator=generator) < 0.8
    expected = penalize_logits(logits, target, mask=mask)
    before = logits.clone()
    for arrange in (
        lambda x: x.to(memory_format=torch.channels_last_3d),
        lambda x: x.transpose(2, 4).contiguous().transpose(2, 4),
        lambda x: x.repeat_interleave(2, 4)[..., ::2],
    ):
        strided = arrange(logits).requires_grad_()
        found = penalize_logits(strided, arrange(target), mask=arrange(mask))
        assert torch.equal(found, expected)
        found.sum().backward()
        assert strided.grad is not None
        assert float(strided.grad.sum()) == logits.numel()
    for kind in (torch.int64, torch.uint8, torch.float16, torch.float64):
        assert torch.equal(penalize_logits(logits, target.to(kind), mask=mask), expected)
    assert torch.equal(logits, before)
    one = penalize_logits(logits, target, 1)
    assert torch.equal(one, logits)
    assert one.data_ptr() != logits.data_ptr()


def test_a_mask_that_is_one_for_all_channels() -> None:
    logits, target = torch.arange(18.0).view(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    mask[..., 2, 2] = False
    expected = penalize_logits(logits, target, mask=mask.repeat(1, 2, 1, 1))
    assert torch.equal(penalize_logits(logits, target, mask=mask.expand(logits.shape)), expected)
    assert expected[0, 0, 1, 1] == 7.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0, 1, 3, 3), (1, 2, 0, 3), (1, 1, 2, 3, 0)])
def test_nothing_gives_nothing(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits = torch.zeros(shape, dtype=dtype, requires_grad=True)
    found = penalize_logits(logits, torch.zeros(shape))
    assert found.shape == shape
    found.sum().backward()


def test_windows_per_axis() -> None:
    logits = torch.zeros(1, 1, 5, 5, 5)
    logits[0, 0, 2, 2, 2] = 1.0
    found = penalize_logits(logits, torch.zeros(logits.shape), (1, 3, 5))
    where = torch.nonzero(found[0, 0])
    assert where.min(0).values.tolist() == [2, 1, 0]
    assert where.max(0).values.tolist() == [2, 3, 4]
    assert int(found.sum()) == 1 * 3 * 5
    same = penalize_logits(logits, torch.zeros(logits.shape), np.array([1, 3, 5]))
    assert torch.equal(found, same)


def test_what_cannot_be_penalised_is_refused() -> None:
    logits, target = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    for window in (2, 0, -3, (3, 4), 3.0, (3.0, 3.0)):
        with pytest.raises(ConfigError, match="odd"):
            penalize_logits(logits, target, window)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="each of the 2 axes"):
        penalize_logits(logits, target, (3, 3, 3))
    with pytest.raises(ShapeError, match=r"\(B, C, Y, X\)"):
        penalize_logits(logits[0], target[0])
    with pytest.raises(ShapeError, match="target"):
        penalize_logits(logits, target[..., :3])
    with pytest.raises(ShapeError, match="mask"):
        penalize_logits(logits, target, mask=torch.ones(1, 1, 4, 3, dtype=torch.bool))
    with pytest.raises(DtypeError, match="bool"):
        penalize_logits(logits, target, mask=target)
    with pytest.raises(DtypeError, match="floating"):
        penalize_logits(target.long(), target)


def random_batch(form: str, space: tuple[int, ...], seed: int = 0) -> LossBatch:
    random = np.random.default_rng(seed)
    channels = {"affinities": len(space), "foreground": 1, "classes": 3}[form]
    labels = random.integers(0, 3, (2, *space)).astype(np.uint64)
    labels[random.random(labels.shape) < 0.15] = IGNORE
    logits = torch.from_numpy(random.standard_normal((2, channels, *space)) * 3)
    return LossBatch.of(logits, labels, form)  # type: ignore[arg-type]


def slowly_penalised(batch: LossBatch, window: tuple[int, ...]) -> np.ndarray:
    arrays = [x.flatten(0, 1).numpy() for x in (batch.logits, batch.targets, batch.mask)]
    places = slow_places(*arrays, window).reshape(len(arrays[0]), -1)
    flat = arrays[0].reshape(len(places), -1)
    return np.take_along_axis(flat, places, 1).reshape(batch.logits.shape)


@pytest.mark.parametrize("space", [(6, 7), (3, 4, 5)])
@pytest.mark.parametrize("form", ["affinities", "foreground", "classes"])
def test_cross_entropy_of_the_penalised_logits(form: str, space: tuple[int, ...]) -> None:
    batch = random_batch(form, space)
    z = slowly_penalised(batch, (3,) * len(space))
    t, mask = batch.targets.numpy(), batch.mask.numpy()
    if form == "classes":
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        each, mask = -np.log((p * t).sum(1, keepdims=True) + ~mask[:, :1]), mask[:, :1]
    else:
        p = 1 / (1 + np.exp(-z))
        each = -np.where(t > 0, np.log(p), np.log(1 - p))
    expected = np.mean([e[m].mean() for e, m in zip(each, mask, strict=True)])
    of = CrossEntropySettings(class_balance_bound=1.0)
    value = scnp(batch, ScnpSettings(of=of), compute_loss)
    assert float(value.total) == pytest.approx(expected)
    assert {name: float(part) for name, part in value.parts.items()} == {
        "voxel_loss": pytest.approx(expected)
    }


def test_the_paper_gradient_at_a_gap_of_forty() -> None:
    """Cross entropy as log(softmax + 1e-15) would have next to no gradient there."""
    logits = torch.zeros(1, 2, 1, 1)
    logits[0, 0], logits[0, 1] = 40.0, 0.0
    logits.requires_grad_()
    batch = LossBatch.of(logits, np.ones((1, 1, 1), np.uint64), "classes")
    compute_loss(batch, parse_loss({"name": "scnp", "of": "ce"})).total.backward()
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([1.0, -1.0])


@pytest.mark.parametrize("of", [CrossEntropySettings(), DiceSettings()], ids=["ce", "dice"])
def test_the_plain_loss_is_added(of: LossSettings) -> None:
    batch = random_batch("affinities", (4, 5, 6))
    plain = float(compute_loss(batch, of).total)
    penalised = scnp(batch, ScnpSettings(of=of), compute_loss)
    both = scnp(batch, ScnpSettings(of=of, with_plain=True), compute_loss)
    assert float(both.total) == pytest.approx(plain + float(penalised.total))
    assert float(both.parts["plain_loss"]) == pytest.approx(plain)
    assert both.parts["penalised_loss"] == penalised.total
    assert {*both.parts} == {*penalised.parts, "plain_loss", "penalised_loss"}
    assert not both.parts["plain_loss"].requires_grad


def test_the_loss_inside_sees_nothing_but_other_logits() -> None:
    batch = dataclasses.replace(random_batch("foreground", (5, 6, 7)), prepared={"a": np.ones(1)})
    seen: list[tuple[LossBatch, LossSettings]] = []

    def inner(given: LossBatch, settings: LossSettings) -> LossValue:
        seen.append((given, settings))
        return LossValue(given.logits.sum(), {})

    scnp(batch, ScnpSettings(window=(1, 3, 5), of=DiceSettings()), inner)
    ((given, of),) = seen
    assert of == DiceSettings()
    np.testing.assert_array_equal(given.logits, slowly_penalised(batch, (1, 3, 5)))
    assert dataclasses.replace(given, logits=batch.logits) == batch


def test_settings() -> None:
    assert parse_loss({"name": "scnp", "window": [1, 3, 3]}).window == (1, 3, 3)  # type: ignore[attr-defined]
    for window in (4, [3, 4], [3], [3, 3, 3, 3], 0):
        with pytest.raises(ValueError, match="window"):
            parse_loss({"name": "scnp", "window": window})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 9, 10, 11, generator=generator).round(decimals=1)
    target = torch.rand(logits.shape, generator=generator) < 0.5
    mask = torch.rand(logits.shape, generator=generator) < 0.9
    here, there = logits.clone().requires_grad_(), logits.cuda().requires_grad_()
    found = penalize_logits(there, target.cuda(), mask=mask.cuda())
    expected = penalize_logits(here, target, mask=mask)
    assert torch.equal(found.cpu(), expected)
    weights = torch.randint(0, 8, logits.shape, generator=generator).float()
    found.backward(weights.cuda())
    expected.backward(weights)
    assert here.grad is not None
    assert there.grad is not None
    assert torch.equal(there.grad.cpu(), here.grad)
