"""Same-class neighbour penalisation (SCNP): any loss, of every logit's worst neighbour.

Each logit z_i of a channel is replaced by that of the worst classified element of its own class in
a window around it, itself included, and another loss is computed from the result:

    z~_i = min of z_j over the window's j with y_j = 1    where y_i = 1
           max of z_j over the window's j with y_j = 0    where y_i = 0

    L(z~), or L(z) + L(z~)

Channels are penalised one by one, with their 0/1 targets; softmax, where the classes share one,
comes after. So a loss of several classes takes -log softmax(z~)[class], from logits. What looks at
the prediction as a whole, such as the critical components of the supervoxel loss, sees z~ too.

Where the paper is silent:

    border      the window is clipped to the patch.
    ignored     elements outside the mask are in no window, and keep their own logit.
    gradient    a logit gets the sum over all places that it was copied to, added in float32.
    ties        the first in C order of the tied elements is the one that is copied. NaN counts as
                an infinitely bad logit.
    window      w voxels along each axis whatever the voxels' size: the paper finds w best near the
                width of the structures in voxels. Name one extent per axis where voxels are
                anisotropic. Default 3. It harms objects of a few hundred voxels.

The paper multiplies the logits of the other class by a large kappa before pooling; a negative
background logit times kappa then wins the minimum. Here they are left out of the comparison, so
that logits of any size and infinite ones do no harm.

A box is the product of its axes, so pooling is one pass of w comparisons per axis, for both classes
at once (a path from i to j may lead through the other class). On the CPU, a pass compares 64-bit
integers that hold the order of a float32 above its place, and keeps no more than w planes; other
devices and float64 take the same steps in torch.

Source: Valverde et al.: "Towards High-Quality Image Segmentation: Improving Topology Accuracy by
Penalizing Neighbor Pixels", arXiv:2603.18671, equation 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.errors import ConfigError, DtypeError, ShapeError
from pipeline.learning.batch import LossBatch, LossValue
from pipeline.learning.loss_settings import LossSettings, ScnpSettings

_LOW = np.int64(0xFFFFFFFF)
_INFINITY = np.int64(0x7F800000)  # bits of a float32
_MAGNITUDE = np.int64(0x7FFFFFFF)
_NOTHING = np.int64(-(2**63))  # below the key of every float


def scnp(
    batch: LossBatch,
    settings: ScnpSettings,
    inner: Callable[[LossBatch, LossSettings], LossValue],
) -> LossValue:
    """The loss `settings.of` of the penalised logits, by `inner`; parts are those of that loss.

    With the plain logits' loss added, further parts are the two summands.
    """
    worst = penalize_logits(batch.logits, batch.targets, settings.window, mask=batch.mask)
    penalised = inner(dataclasses.replace(batch, logits=worst), settings.of)
    if not settings.with_plain:
        return penalised
    plain = inner(batch, settings.of)
    summands = {"plain_loss": plain.total.detach(), "penalised_loss": penalised.total.detach()}
    return LossValue(plain.total + penalised.total, {**penalised.parts, **summands})


def penalize_logits(
    logits: Tensor,
    target: Tensor,
    window: int | Sequence[int] | NDArray[np.integer] = 3,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Every logit's worst neighbour of its own class: z~ as the module defines it.

    Args:
        logits: (B, C, *space) floating, space (Y, X) or (Z, Y, X); neither changed nor shared.
        target: (B, C, *space), 0 or 1 in any type: one-hot or multi-label.
        window: extent of the neighbourhood in voxels, odd; or one for each axis of space.
        mask: (B, C, *space) bool, False where the target is unknown; none: known everywhere.

    Returns:
        (B, C, *space) in the type of the logits, each value equal to one of them. Not twice
        differentiable.

    Raises:
        ShapeError, DtypeError: the tensors disagree, or are not as above; as many windows as axes
            were expected.
        ConfigError: a window is even or not positive.
    """
    _check(logits, target, mask)
    reach = _reach(window, tuple(logits.shape[2:]))
    known = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask
    shape = (logits.shape[:2].numel(), *logits.shape[2:])
    find = _find_with_numba if _suits_numba(logits) else _find_with_torch
    with torch.no_grad():
        z, y, m = (x.reshape(shape).contiguous() for x in (logits, target > 0, known))
        places = find(z, y, m, reach).flatten(1)
    worst: Tensor = _Copied.apply(logits, places)
    return worst


def _check(logits: Tensor, target: Tensor, mask: Tensor | None) -> None:
    if logits.ndim not in (4, 5):
        raise ShapeError(
            f"expected logits (B, C, Y, X) or (B, C, Z, Y, X), got {tuple(logits.shape)}"
        )
    if not logits.is_floating_point():
        raise DtypeError(f"expected floating logits, got {logits.dtype}")
    for name, other in (("target", target), ("mask", mask)):
        if other is not None and other.shape != logits.shape:
            raise ShapeError(
                f"expected a {name} of the logits' shape {tuple(logits.shape)}, got "
                f"{tuple(other.shape)}"
            )
    if mask is not None and mask.dtype != torch.bool:
        raise DtypeError(f"expected a bool mask, got {mask.dtype}")


def _reach(
    window: int | Sequence[int] | NDArray[np.integer], space: tuple[int, ...]
) -> tuple[int, ...]:
    """Voxels to either side of the centre along each axis, no more than there are."""
    several = isinstance(window, Sequence | np.ndarray)
    windows: tuple[Any, ...] = tuple(window) if several else (window,) * len(space)  # type: ignore[arg-type]
    if len(windows) != len(space):
        raise ShapeError(
            f"expected one window, or one for each of the {len(space)} axes, got {windows}"
        )
    if not all(isinstance(w, int | np.integer) and w > 0 and w % 2 for w in windows):
        raise ConfigError(f"a window must be odd and at least 1 along each axis, got {window}")
    return tuple(min(int(w) // 2, max(n - 1, 0)) for w, n in zip(windows, space, strict=True))


class _Copied(torch.autograd.Function):
    """Every element takes the value at its place; a value's gradient is the sum over its copies."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        flat = logits.reshape(places.shape)
        if places.dtype == torch.int64:
            return flat.gather(1, places).view(logits.shape)
        values = _copy(flat.float().contiguous().numpy(), places.numpy())
        return torch.from_numpy(values).to(logits.dtype).view(logits.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        (gradient,) = gradients
        wide = gradient if gradient.dtype == torch.float64 else gradient.float()
        total = _sum_of_copies(wide.reshape(places.shape).contiguous(), places)
        return total.to(gradient.dtype).view(gradient.shape), None


def _sum_of_copies(gradient: Tensor, places: Tensor) -> Tensor:
    """(V, N): at each place, the sum of the gradients of its copies, always in the same order."""
    if places.dtype == torch.int32:
        return torch.from_numpy(_add_up(gradient.numpy(), places.numpy()))
    total = torch.zeros_like(gradient)
    if not gradient.is_cuda:
        return total.scatter_add_(1, places, gradient)
    # `scatter_add_` adds in any order there; this sorts first.
    rows = torch.arange(len(places), device=places.device)[:, None].expand_as(places)
    return total.index_put_((rows, places), gradient, accumulate=True)


def _suits_numba(logits: Tensor) -> bool:
    """Keys hold a float32, which takes the shorter types exactly, and 32 bits of place."""
    return (
        logits.device.type == "cpu"
        and logits.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and logits.shape[2:].numel() < 2**31
    )


def _find_with_torch(
    logits: Tensor, target: Tensor, known: Tensor, reach: tuple[int, ...]
) -> Tensor:
    """Where each element's worst neighbour lies, (V, *space) int64: flat index in its volume.

    Args:
        logits, target, known: (V, *space); target and known bool.
        reach: voxels to either side, along each axis of space.
    """
    badness = torch.where(target, -logits, logits)
    badness = badness.masked_fill(badness.isnan(), float("inf"))
    space = target.shape[1:]
    own = torch.arange(space.numel(), device=target.device).view(space)
    of_class = torch.stack([known & ~target, known & target])
    worst = torch.where(of_class, badness, float("-inf"))
    place = torch.where(of_class, own, -1)
    for axis in reversed(range(len(space))):  # x first: ties fall to the first in C order
        worst, place = _worst_along(worst, place, axis + 2, reach[axis])
    return torch.where(known, torch.where(target, place[1], place[0]), own)


def _worst_along(worst: Tensor, place: Tensor, dim: int, reach: int) -> tuple[Tensor, Tensor]:
    """The maximum over a window along one axis and its place, the first of several.

    Place -1 marks where there is none.
    """
    best, at = torch.full_like(worst, float("-inf")), torch.full_like(place, -1)
    for shift in range(-reach, reach + 1):
        extent = worst.shape[dim] - abs(shift)
        here, there = max(0, -shift), max(0, shift)
        b, a = best.narrow(dim, here, extent), at.narrow(dim, here, extent)
        other, other_place = worst.narrow(dim, there, extent), place.narrow(dim, there, extent)
        better = (other > b) | (a < 0)
        b.copy_(torch.where(better, other, b))
        a.copy_(torch.where(better, other_place, a))
    return best, at


def _find_with_numba(
    logits: Tensor, target: Tensor, known: Tensor, reach: tuple[int, ...]
) -> Tensor:
    """As `_find_with_torch`, int32."""
    shape = tuple(target.shape)
    # A plane is a stack of rows: what it calls y is the kernel's z.
    deep = shape if len(shape) == 4 else (shape[0], shape[1], 1, shape[2])
    z, y, x = reach if len(reach) == 3 else (reach[0], 0, reach[1])
    bits = logits.float().numpy().view(np.int32)
    places = _worst_places(
        bits.reshape(deep), target.numpy().reshape(deep), known.numpy().reshape(deep), z, y, x
    )
    return torch.from_numpy(places.reshape(shape))


@njit(cache=True, nogil=True)
def _worst_places(
    bits: NDArray[np.int32],
    target: NDArray[np.bool_],
    known: NDArray[np.bool_],
    reach_z: int,
    reach_y: int,
    reach_x: int,
) -> NDArray[np.int32]:
    """Plane by plane: pool along x and y, keep the planes of a window, pool along z.

    All (V, Z, Y, X); `bits` are those of float32 logits. Rows hold the keys of one class, a gap as
    wide as the reach, and the keys of the other, so that one sweep pools both.
    """
    volumes, nz, ny, nx = bits.shape
    places = np.empty(bits.shape, np.int32)
    keys = np.full(2 * nx + 3 * reach_x, _NOTHING)
    rows = np.empty((ny, 2 * nx + reach_x), np.int64)
    ring = np.empty((2 * reach_z + 1, *rows.shape), np.int64)
    for v in range(volumes):
        for z in range(nz + reach_z):
            if z < nz:
                for y in range(ny):
                    start = (z * ny + y) * nx
                    _key_row(bits[v, z, y], target[v, z, y], known[v, z, y], start, reach_x, keys)
                    _pool_x(keys, reach_x, rows[y])
                _pool_y(rows, reach_y, ring[z % len(ring)])
            done = z - reach_z
            if done >= 0:
                _pool_z(ring, reach_z, done, nz, target[v, done], known[v, done], places[v, done])
    return places


@njit(cache=True, nogil=True)
def _key_row(
    bits: NDArray[np.int32],
    target: NDArray[np.bool_],
    known: NDArray[np.bool_],
    start: int,
    gap: int,
    keys: NDArray[np.int64],
) -> None:
    """Keys of a row for both classes, in place: the larger, the worse; of equals the first.

    High 32 bits: an integer that orders floats, -0 like 0 and NaN like infinity; low: the place.
    """
    nx = bits.size
    negatives, positives = keys[gap : gap + nx], keys[2 * gap + nx : 2 * (gap + nx)]
    for x in range(nx):
        b = np.int64(bits[x])
        magnitude = b & _MAGNITUDE
        good = ((b < 0) != target[x]) and magnitude <= _INFINITY
        size = min(magnitude, _INFINITY)
        key = ((-size if good else size) << 32) | (_LOW - (start + x))
        negatives[x] = key if known[x] and not target[x] else _NOTHING
        positives[x] = key if known[x] and target[x] else _NOTHING


@njit(cache=True, nogil=True)
def _pool_x(keys: NDArray[np.int64], reach: int, row: NDArray[np.int64]) -> None:
    n, first = row.size, min(1, reach)
    left, right = keys[reach - first :], keys[reach + first :]
    _largest(row, keys[reach : reach + n], left[:n], right[:n])
    for d in range(2, reach + 1):
        _largest(row, row, keys[reach - d : reach - d + n], keys[reach + d : reach + d + n])


@njit(cache=True, nogil=True)
def _pool_y(rows: NDArray[np.int64], reach: int, plane: NDArray[np.int64]) -> None:
    """Beyond the border stands the border's row, which is in the window already."""
    last, first = len(rows) - 1, min(1, reach)
    for y in range(len(rows)):
        row = plane[y]
        _largest(row, rows[y], rows[max(y - first, 0)], rows[min(y + first, last)])
        for d in range(2, reach + 1):
            _largest(row, row, rows[max(y - d, 0)], rows[min(y + d, last)])


@njit(cache=True, nogil=True)
def _pool_z(
    ring: NDArray[np.int64],
    reach: int,
    z: int,
    nz: int,
    target: NDArray[np.bool_],
    known: NDArray[np.bool_],
    places: NDArray[np.int32],
) -> None:
    """Pool plane z over the ring, which holds each plane in slot z % depth; write its places."""
    depth, first = len(ring), min(1, reach)
    ny, nx = target.shape
    best = np.empty(ring.shape[2], np.int64)
    middle = ring[z % depth]
    above, below = ring[max(z - first, 0) % depth], ring[min(z + first, nz - 1) % depth]
    for y in range(ny):
        _largest(best, middle[y], above[y], below[y])
        for d in range(2, reach + 1):
            up, down = max(z - d, 0) % depth, min(z + d, nz - 1) % depth
            _largest(best, best, ring[up, y], ring[down, y])
        _choose(best[:nx], best[-nx:], target[y], known[y], (z * ny + y) * nx, places[y])


@njit(cache=True, nogil=True)
def _choose(
    negatives: NDArray[np.int64],
    positives: NDArray[np.int64],
    target: NDArray[np.bool_],
    known: NDArray[np.bool_],
    start: int,
    places: NDArray[np.int32],
) -> None:
    """The place in the key of each element's own class; of an unknown element its own place."""
    for x in range(places.size):
        key = positives[x] if target[x] else negatives[x]
        places[x] = np.int32(_LOW - (key & _LOW)) if known[x] else np.int32(start + x)


@njit(cache=True, nogil=True)
def _largest(
    out: NDArray[np.int64], a: NDArray[np.int64], b: NDArray[np.int64], c: NDArray[np.int64]
) -> None:
    for i in range(out.size):
        out[i] = max(max(a[i], b[i]), c[i])


@njit(cache=True, nogil=True)
def _copy(values: NDArray[np.float32], places: NDArray[np.int32]) -> NDArray[np.float32]:
    """values[v, places[v, i]] for each i; both (V, N)."""
    copies = np.empty_like(values)
    for v in range(values.shape[0]):
        source, place, copy = values[v], places[v], copies[v]
        for i in range(source.size):
            copy[i] = source[np.uint32(place[i])]
    return copies


@njit(cache=True, nogil=True)
def _add_up(gradient: NDArray[np.float32], places: NDArray[np.int32]) -> NDArray[np.float32]:
    """The transpose of `_copy`."""
    total = np.zeros_like(gradient)
    for v in range(gradient.shape[0]):
        source, place, sums = gradient[v], places[v], total[v]
        for i in range(source.size):
            sums[np.uint32(place[i])] += source[i]
    return total
