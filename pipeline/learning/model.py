"""The network: a small U-Net from one image channel to logits of affinities or of foreground.

There is no normalisation layer: a voxel's output depends on the voxels in its receptive field and
on nothing else, so the tile that computes it does not show (`receptive_radius` says how far that
reaches), and samples of a batch do not see each other. What normalisation would do for training is
done on the weights: every kernel is used with mean 0 and the variance that keeps that of its input,
times a gain per channel that is learned, and residual blocks begin near the identity. Without it,
activations grew in training and the loss jumped; with it, twice the rate of learning is stable.

Source: Brock, De, Smith 2021, "Characterizing signal propagation to close the performance gap in
unnormalized ResNets" (scaled weight standardisation).

Pooling and unpooling are convolutions whose stride is their extent. They cost 1 % of the
arithmetic and, unlike max pooling, have deterministic gradients on GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ShapeError
from pipeline.geometry import Triple, triple
from pipeline.learning.settings import NetworkSettings

CONVOLUTIONS_PER_BLOCK = 2
_LEAK = 0.1  # slope of the activation below zero
_TINY = 1e-6  # kernels whose elements are all alike


def pool_factors(settings: NetworkSettings) -> tuple[Triple, ...]:
    """The pooling factors between successive levels, `levels - 1` of them."""
    given = settings.pool[: settings.levels - 1]
    return given + given[-1:] * (settings.levels - 1 - len(given))


def stride(settings: NetworkSettings) -> Triple:
    """Voxels of the input per voxel of the deepest level: an input's extent is a multiple of it."""
    factors = [*accumulate(pool_factors(settings), _product, initial=(1, 1, 1))]
    return factors[-1]


def receptive_radius(settings: NetworkSettings) -> Triple:
    """The largest distance, per axis in voxels, from an output voxel to an input voxel it sees.

    Exact for the architecture: the worst case over all positions of a voxel within the stride.
    """
    return triple(tuple(_radius_along(settings, axis) for axis in range(3)))


def _product(a: Triple, b: Triple) -> Triple:
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]


def _radius_along(settings: NetworkSettings, axis: int) -> int:
    factors = [factor[axis] for factor in pool_factors(settings)]
    reach = CONVOLUTIONS_PER_BLOCK * (settings.kernel[axis] // 2)
    radius = 0
    for position in range(stride(settings)[axis]):
        first, last = _seen(position, position, factors, reach)
        radius = max(radius, position - first, last - position)
    return radius


def _seen(first: int, last: int, factors: list[int], reach: int) -> tuple[int, int]:
    """The interval of a level's input that its outputs `first` to `last` depend on."""
    if not factors:
        return first - reach, last + reach
    first, last = first - reach, last + reach  # the decoder's block
    deep = _seen(first // factors[0], last // factors[0], factors[1:], reach)
    first, last = min(first, deep[0] * factors[0]), max(last, (deep[1] + 1) * factors[0] - 1)
    return first - reach, last + reach  # the encoder's block


class _Convolution(nn.Conv3d):
    """A convolution whose kernels have mean 0 and a variance of gain^2 over their inputs."""

    def __init__(self, channels_in: int, channels: int, kernel: Triple, **options: Any) -> None:
        super().__init__(channels_in, channels, kernel, **options)
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.standardised(), self.bias)

    def standardised(self) -> Tensor:
        """The kernels as they are used, float32."""
        variance, mean = torch.var_mean(self.weight, (1, 2, 3, 4), correction=0, keepdim=True)
        scale = torch.rsqrt(variance * _inputs(self) + _TINY) * self.gain.view(-1, 1, 1, 1, 1)
        return (self.weight - mean) * scale


class _Block(nn.Module):
    """Two convolutions; a residual connection where the channels agree."""

    def __init__(self, channels_in: int, channels: int, kernel: Triple) -> None:
        super().__init__()
        padding = triple(tuple(extent // 2 for extent in kernel))
        # Kernels of mean 0 on the image itself would not see how bright it is, only how it changes.
        first = nn.Conv3d if channels_in == 1 else _Convolution
        self.first = first(channels_in, channels, kernel, padding=padding)
        self.second = _Convolution(channels, channels, kernel, padding=padding)
        self.residual = channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.leaky_relu(self.first(x), _LEAK, inplace=True))
        return F.leaky_relu(x + y if self.residual else y, _LEAK, inplace=True)


class UNet(nn.Module):
    """Logits of the nearest-neighbour affinities of an image, or of its foreground.

    Input (B, 1, Z, Y, X), output (B, C, Z, Y, X), C = `settings.channels`. Of three affinities
    channel d joins a voxel to its predecessor along axis d; in two dimensions the channels are
    those of y and x, and planes do not see each other. Z, Y and X are multiples of
    `stride(settings)`.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        widths = [settings.width * 2**level for level in range(settings.levels)]
        pools = pool_factors(settings)
        steps = list(zip(widths, widths[1:], pools, strict=False))
        self.encoders = nn.ModuleList(
            _Block(1 if level == 0 else width, width, settings.kernel)
            for level, width in enumerate(widths)
        )
        self.downs = nn.ModuleList(_Convolution(a, b, f, stride=f) for a, b, f in steps)
        self.ups = nn.ModuleList(nn.ConvTranspose3d(b, a, f, stride=f) for a, b, f in steps)
        self.decoders = nn.ModuleList(_Block(a, a, settings.kernel) for a in widths[:-1])
        self.head = nn.Conv3d(settings.width, settings.channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of a batch.

        Raises:
            ShapeError: not one channel, or an extent that is no multiple of the stride.
        """
        self._check(image)
        x, skips = image, []
        for level, encoder in enumerate(self.encoders):
            x = encoder(x)
            if level < len(self.downs):
                skips.append(x)
                x = self.downs[level](x)
        for level in reversed(range(len(self.decoders))):
            x = self.decoders[level](self.ups[level](x) + skips[level])
        return self.head(x)

    def _check(self, image: Tensor) -> None:
        if image.ndim != 5 or image.shape[1] != 1:
            raise ShapeError(f"expected an image (B, 1, Z, Y, X), got {tuple(image.shape)}")
        steps = stride(self.settings)
        if any(n % s for n, s in zip(image.shape[2:], steps, strict=True)):
            raise ShapeError(
                f"image extent {tuple(image.shape[2:])} must be a multiple of the network's "
                f"stride {steps}"
            )


def initialise(model: UNet, seed: int) -> None:
    """Draw the weights from `seed`, the same on every device.

    Every kernel keeps the variance of its input; the second convolution of a residual block and
    the head start at a tenth of that, so that blocks start near the identity and all outputs
    near 1/2.
    """
    generator = torch.Generator().manual_seed(seed)
    small = {id(block.second) for block in _blocks(model) if block.residual} | {id(model.head)}
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
                gain = (2.0 / (1.0 + _LEAK**2)) ** 0.5 * (0.1 if id(layer) in small else 1.0)
                deviation = gain / _inputs(layer) ** 0.5
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * deviation)
                if isinstance(layer, _Convolution):
                    layer.gain.fill_(gain)
                assert layer.bias is not None
                layer.bias.zero_()


def _blocks(model: UNet) -> Iterable[_Block]:
    return (layer for layer in model.modules() if isinstance(layer, _Block))


def _inputs(layer: nn.Conv3d | nn.ConvTranspose3d) -> int:
    """Number of input values that add up in one output value."""
    if isinstance(layer, nn.ConvTranspose3d):
        return layer.in_channels  # stride = extent: each output voxel gets one kernel element
    return layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1] * layer.kernel_size[2]
