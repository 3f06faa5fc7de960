"""The running mean of the weights, against the recurrence written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.learning.ema import AveragedWeights
from pipeline.learning.model import UNet, initialise
from pipeline.learning.settings import NetworkSettings


def network() -> UNet:
    model = UNet(NetworkSettings(width=2, levels=1))
    initialise(model, 0)
    return model


@pytest.mark.parametrize("decay", [0.05, 0.3, 1.0])
def test_the_mean_follows_the_recurrence(decay: float) -> None:
    model = network()
    averaged = AveragedWeights(model, decay)
    mean = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    for step in range(12):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * step)
        averaged.update(step)
        kept = min(decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            mean[name] = kept * mean[name] + (1 - kept) * parameter.detach().double()
    for name, value in averaged.copy().items():
        np.testing.assert_allclose(value, mean[name], rtol=1e-5)
    assert not any(p.requires_grad for p in averaged.model.parameters())


def test_without_decay_it_is_the_network_itself() -> None:
    model = network()
    averaged = AveragedWeights(model, 0.0)
    averaged.update(0)
    assert averaged.model is model
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_copy_does_not_change_and_comes_back() -> None:
    model = network()
    averaged = AveragedWeights(model, 0.5)
    before = averaged.copy()
    kept = {name: value.clone() for name, value in before.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    averaged.update(0)
    assert all(torch.equal(before[name], kept[name]) for name in kept)
    assert not torch.equal(averaged.copy()["head.weight"], kept["head.weight"])
    averaged.put(kept)
    assert all(torch.equal(value, kept[name]) for name, value in averaged.copy().items())
