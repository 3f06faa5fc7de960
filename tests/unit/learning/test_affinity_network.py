from __future__ import annotations

import pytest
import torch

from pipeline.errors import ShapeError
from pipeline.learning.model import UNet, initialise, pool_factors, receptive_radius, stride
from pipeline.learning.settings import NetworkSettings

NETWORKS = {
    "one level": NetworkSettings(width=2, levels=1),
    "two levels": NetworkSettings(width=2, levels=2),
    "pool by three": NetworkSettings(width=2, levels=2, pool=((3, 1, 2),)),
    "anisotropic": NetworkSettings(
        width=2, levels=3, pool=((1, 2, 2), (2, 2, 2)), kernel=(1, 3, 3)
    ),
    "default depth": NetworkSettings(width=2, levels=3),
}


def network(settings: NetworkSettings, seed: int = 0) -> UNet:
    model = UNet(settings)
    initialise(model, seed)
    return model


def reach_along(model: UNet, axis: int) -> int:
    """The largest distance at which an input voxel has influence, by the gradient of outputs."""
    steps = stride(model.settings)
    radius = receptive_radius(model.settings)[axis] + steps[axis]
    shape = [steps[0], steps[1], steps[2]]
    shape[axis] = -(-(2 * radius + steps[axis]) // steps[axis]) * steps[axis] + 2 * steps[axis]
    image = torch.randn(1, 1, *shape, dtype=torch.float64, requires_grad=True)
    output = model.double()(image)
    first = (shape[axis] // 2) // steps[axis] * steps[axis]
    reach = 0
    for position in range(first, first + steps[axis]):
        (gradient,) = torch.autograd.grad(
            output.select(axis + 2, position).sum(), image, retain_graph=True
        )
        seen = gradient.abs().sum(dim=[a for a in (0, 1, 2, 3, 4) if a != axis + 2]).nonzero()
        assert seen.min() > 0, "the image is too small to tell"
        assert seen.max() < shape[axis] - 1, "the image is too small to tell"
        reach = max(reach, position - int(seen.min()), int(seen.max()) - position)
    return reach


@pytest.mark.parametrize("name", NETWORKS)
def test_receptive_radius_is_what_gradients_reach(name: str) -> None:
    torch.manual_seed(0)
    settings = NETWORKS[name]
    found = tuple(reach_along(network(settings), axis) for axis in range(3))
    assert found == receptive_radius(settings)


def test_stride_is_the_product_of_the_pooling_factors() -> None:
    assert stride(NETWORKS["anisotropic"]) == (2, 4, 4)
    assert stride(NETWORKS["one level"]) == (1, 1, 1)
    deep = NetworkSettings(levels=4, pool=((1, 2, 2), (2, 2, 2)))
    assert pool_factors(deep) == ((1, 2, 2), (2, 2, 2), (2, 2, 2))
    assert stride(deep) == (4, 8, 8)


def test_a_shift_by_the_stride_shifts_the_output() -> None:
    settings = NetworkSettings(width=3, levels=2)
    model = network(settings).double()
    image = torch.randn(1, 1, 30, 30, 30, dtype=torch.float64)
    step, radius = 2, max(receptive_radius(settings))
    whole = model(image)[..., radius + step : -radius, radius:-radius, radius:-radius]
    part = model(image[:, :, step:])[..., radius:-radius, radius:-radius, radius:-radius]
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)


def test_weights_come_from_the_seed_alone() -> None:
    settings = NetworkSettings(width=2, levels=2)
    torch.manual_seed(5)
    first = network(settings, 3).state_dict()
    torch.manual_seed(6)
    again, other = network(settings, 3).state_dict(), network(settings, 4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_untrained_logits_are_small_and_not_constant() -> None:
    torch.manual_seed(0)
    logits = network(NetworkSettings(width=8))(torch.randn(1, 1, 32, 32, 32))
    assert logits.shape == (1, 3, 32, 32, 32)
    assert 0.01 < float(logits.detach().std()) < 0.5


@pytest.mark.parametrize("shape", [(1, 1, 8, 8, 6), (1, 2, 8, 8, 8), (1, 8, 8, 8)])
def test_inputs_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"stride|expected an image"):
        network(NetworkSettings(width=2))(torch.zeros(shape))


def convolutions(model: UNet) -> list[torch.nn.Module]:
    return [layer for layer in model.modules() if hasattr(layer, "standardised")]


def test_kernels_are_used_with_mean_0_and_the_variance_of_their_gain() -> None:
    model = network(NetworkSettings(width=4, levels=3))
    for layer in convolutions(model):
        with torch.no_grad():
            layer.weight.mul_(7.0).add_(3.0)  # neither shows
            layer.gain.copy_(torch.linspace(0.5, 2.0, len(layer.gain)))
        kernels = layer.standardised().detach().flatten(1)
        torch.testing.assert_close(kernels.mean(1), torch.zeros(len(kernels)), atol=1e-4, rtol=0)
        inputs = kernels.shape[1]
        torch.testing.assert_close(kernels.var(1, correction=0) * inputs, layer.gain.detach() ** 2)
    assert len(convolutions(model)) == 5 * 2 - 1 + 2, "all but the first, the ups and the head"


def test_kernels_of_equal_elements_stay_finite() -> None:
    model = network(NetworkSettings(width=2, levels=2))
    with torch.no_grad():
        for layer in convolutions(model):
            layer.weight.fill_(3.0)
    output = model(torch.randn(1, 1, 4, 4, 4))
    output.sum().backward()
    assert output.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_brightness_is_seen() -> None:
    model = network(NetworkSettings(width=4, levels=2))
    dark, bright = (model(torch.full((1, 1, 8, 8, 8), level)) for level in (0.0, 1.0))
    assert (dark - bright).abs().max() > 1e-3


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    model = network(NetworkSettings(width=4, levels=2))
    images = torch.randn(3, 1, 8, 8, 8) * torch.tensor([1.0, 50.0, 0.01]).view(3, 1, 1, 1, 1)
    together = model(images)
    for index, image in enumerate(images):
        torch.testing.assert_close(model(image[None])[0], together[index])
