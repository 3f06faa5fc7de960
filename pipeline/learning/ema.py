"""The running mean of the weights, which is what is validated and saved.

After step s (from 0) the mean keeps the share min(decay, (1 + s) / (10 + s)) of what it was: the
first, bad weights are soon forgotten.

Source: Polyak & Juditsky 1992, doi:10.1137/0330046, as an exponential mean; the growing decay is
that of TensorFlow's ExponentialMovingAverage.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor

from pipeline.learning.model import UNet


class AveragedWeights:
    """A copy of a network that follows its weights; with decay 0 it is the network itself."""

    def __init__(self, source: UNet, decay: float) -> None:
        self._source, self._decay = source, decay
        self.model = deepcopy(source).requires_grad_(False).eval() if decay else source

    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 0."""
        if self.model is self._source:
            return
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            pairs = zip(self.model.parameters(), self._source.parameters(), strict=True)
            for mean, new in pairs:
                mean.lerp_(new, 1.0 - decay)

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the mean; each tensor keeps its memory layout.

        With another layout, vectorised loops would round other elements than before.
        """
        with torch.no_grad():
            for name, mean in self.model.named_parameters():
                mean.copy_(weights[name])

    def copy(self) -> dict[str, Tensor]:
        """The mean by name, on the CPU, not changed by further updates."""
        return {name: mean.detach().cpu().clone() for name, mean in self.model.named_parameters()}
