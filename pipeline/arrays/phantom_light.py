"""Loops over voxels that paint and photograph a phantom.

Only operations that IEEE 754 rounds exactly, in a fixed order: no exp, log or cos, whose vectorised
versions may differ from the scalar ones. So a voxel is the same in every box that holds it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.arrays.phantom_spec import BEAD_CELL
from pipeline.arrays.tube_kernels import axis_position, piece_box, piece_count

_CLOUD_VOX = (96, 12)  # periods of the background's clouds


# ---- random numbers that depend on a key and a place ----

_U = np.uint64
_STREAM_BRIGHTNESS, _STREAM_BEADS, _STREAM_CLOUDS, _STREAM_NOISE = 1, 2, 3, 5


@njit(cache=True, nogil=True)
def _mix(state):  # type: ignore[no-untyped-def]
    """Scramble 64 bits. Source: splitmix64, Steele et al. 2014."""
    z = _U(state) + _U(0x9E3779B97F4A7C15)
    z = (z ^ (z >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> _U(27))) * _U(0x94D049BB133111EB)
    return z ^ (z >> _U(31))


@njit(cache=True, nogil=True)
def _key(seed, stream, z, y):  # type: ignore[no-untyped-def]
    """A key for a row of voxels (or lattice points)."""
    return _mix(_mix(_mix(_mix(_U(seed)) ^ _U(stream)) ^ _U(np.int64(z))) ^ _U(np.int64(y)))


@njit(cache=True, nogil=True)
def _at(key, x):  # type: ignore[no-untyped-def]
    """64 random bits for place x of a row."""
    return _mix(key ^ (_U(np.int64(x)) * _U(0xD1342543DE82EF95)))


@njit(cache=True, nogil=True)
def _uniform(bits):  # type: ignore[no-untyped-def]
    return np.float64(np.int64(bits >> _U(11))) * 2.0**-53


@njit(cache=True, nogil=True)
def _gauss(bits, more):  # type: ignore[no-untyped-def]
    """Nearly normal, up to 4.9 sigma: eight 16-bit uniforms, added exactly, centred, scaled."""
    low = _U(0xFFFF)
    total = _U(0)
    for word in (bits, more):
        total += (word & low) + ((word >> _U(16)) & low)
        total += ((word >> _U(32)) & low) + (word >> _U(48))
    # The variance of one is (65536^2 - 1) / 12.
    return (np.float64(np.int64(total)) - 4.0 * 65535.0) * 1.8688375e-05


@njit(cache=True, nogil=True)
def _smooth(t):  # type: ignore[no-untyped-def]
    return t * t * (3.0 - 2.0 * t)


@njit(cache=True, nogil=True)
def _cloud(seed, stream, z, y, x):  # type: ignore[no-untyped-def]
    """A smooth random field in 0 .. 1 at a point in units of its lattice."""
    fz, fy, fx = np.floor(z), np.floor(y), np.floor(x)
    wz, wy, wx = _smooth(z - fz), _smooth(y - fy), _smooth(x - fx)
    value = 0.0
    for i in range(2):
        for j in range(2):
            key = _key(seed, stream, fz + i, fy + j)
            a, b = _uniform(_at(key, fx)), _uniform(_at(key, fx + 1))
            side = (wz if i else 1.0 - wz) * (wy if j else 1.0 - wy)
            value += side * (a + wx * (b - a))
    return value


# ---- emission ----


@njit(cache=True, nogil=True)
def brightness(ends, ids, scale, seed, low, high, dimmest):  # type: ignore[no-untyped-def]
    """(E, 2) counts at both ends of each edge.

    A field in space, one per neuron, is smooth along its neurites and needs no walk along them.
    """
    counts = np.empty((len(ends), 2))
    for e in range(len(ends)):
        own = _mix(_U(seed) ^ _mix(ids[e]))
        peak = low + (high - low) * _uniform(own)
        for side in range(2):
            p = ends[e, side] * scale
            value = _cloud(own, _STREAM_BRIGHTNESS, p[0], p[1], p[2])
            # The field seldom leaves its middle: stretch it to reach both ends.
            value = min(max(1.8 * (value - 0.5) + 0.5, 0.0), 1.0)
            counts[e, side] = peak * (dimmest + (1.0 - dimmest) * value)
    return counts


@njit(cache=True, nogil=True)
def glow(ends, radii, counts, spacing, origin, emission):  # type: ignore[no-untyped-def]
    """Raise `emission` to the light of capsules; the rim fades over one voxel of the plane.

    A voxel is much deeper than wide: the mean over depths keeps neurites even that cross planes.
    """
    rim = min(spacing[1], spacing[2])
    depths = max(int(np.rint(spacing[0] / rim)), 1)
    for e in range(len(ends)):
        margin = (max(radii[e, 0], radii[e, 1]) + rim) / spacing
        pieces = piece_count(ends[e], margin)
        for piece in range(pieces):
            box = piece_box(ends[e], piece, pieces, margin, origin, emission.shape)
            for i in range(box[0, 0], box[0, 1]):
                for j in range(box[1, 0], box[1, 1]):
                    cy = (j + origin[1] + 0.5) * spacing[1]
                    for k in range(box[2, 0], box[2, 1]):
                        cx = (k + origin[2] + 0.5) * spacing[2]
                        light = 0.0
                        for n in range(depths):
                            cz = (i + origin[0] + (n + 0.5) / depths) * spacing[0]
                            distance, t = axis_position(ends[e], spacing, cz, cy, cx)
                            radius = radii[e, 0] + t * (radii[e, 1] - radii[e, 0])
                            share = min(max((radius - distance) / rim + 0.5, 0.0), 1.0)
                            light += share * (counts[e, 0] + t * (counts[e, 1] - counts[e, 0]))
                        value = np.float32(light / depths)
                        if value > emission[i, j, k]:
                            emission[i, j, k] = value


@njit(cache=True, nogil=True)
def beads(begin, end, spacing, seed, chance, radius_range, brightest):  # type: ignore[no-untyped-def]
    """Beads that may show between two corners, as capsules of no length."""
    first, last = np.empty(3, np.int64), np.empty(3, np.int64)
    for k in range(3):
        reach = int(radius_range[1] / spacing[k]) + 2
        first[k] = (begin[k] - reach) // BEAD_CELL
        last[k] = (end[k] + reach) // BEAD_CELL + 1
    room = (last[0] - first[0]) * (last[1] - first[1]) * (last[2] - first[2])
    ends, radii, counts = np.empty((room, 2, 3)), np.empty((room, 2)), np.empty((room, 2))
    found = 0
    for z in range(first[0], last[0]):
        for y in range(first[1], last[1]):
            key = _key(seed, _STREAM_BEADS, z, y)
            for x in range(first[2], last[2]):
                bits = _at(key, x)
                if _uniform(bits) >= chance:
                    continue
                for k, cell in enumerate((z, y, x)):
                    bits = _mix(bits)
                    ends[found, :, k] = (cell + _uniform(bits)) * BEAD_CELL
                bits = _mix(bits)
                radii[found] = radius_range[0] + _uniform(bits) * (
                    radius_range[1] - radius_range[0]
                )
                bits = _mix(bits)
                counts[found] = brightest * _uniform(bits) ** 3
                found += 1
    return ends[:found], radii[:found], counts[:found]


# ---- blur: taps are added in the same order for every voxel ----


@njit(cache=True, nogil=True)
def blur_z(source, kernel, out):  # type: ignore[no-untyped-def]
    """Convolve along z into `out`, zero on entry and shorter by len(kernel) - 1."""
    for i in range(out.shape[0]):
        for n in range(len(kernel)):
            for j in range(out.shape[1]):
                for k in range(out.shape[2]):
                    out[i, j, k] += kernel[n] * source[i + n, j, k]


@njit(cache=True, nogil=True)
def blur_y(source, kernel, out):  # type: ignore[no-untyped-def]
    """Convolve along y into `out`, zero on entry and shorter by len(kernel) - 1."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for n in range(len(kernel)):
                for k in range(out.shape[2]):
                    out[i, j, k] += kernel[n] * source[i, j + n, k]


@njit(cache=True, nogil=True)
def blur_x(source, kernel, out):  # type: ignore[no-untyped-def]
    """Convolve along x into `out`, zero on entry and shorter by len(kernel) - 1."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for n in range(len(kernel)):
                for k in range(out.shape[2]):
                    out[i, j, k] += kernel[n] * source[i, j, k + n]


# ---- background and camera ----


@njit(cache=True, nogil=True)
def _cloud_row(seed, stream, period, z, y, first, count, knots):  # type: ignore[no-untyped-def]
    """Fill `knots` with a cloud's field at the lattice points along a row; returns the first."""
    begin = first // period
    fz, fy = np.floor(z / period), np.floor(y / period)
    wz, wy = _smooth(z / period - fz), _smooth(y / period - fy)
    a, b = _key(seed, stream, fz, fy), _key(seed, stream, fz, fy + 1)
    c, d = _key(seed, stream, fz + 1, fy), _key(seed, stream, fz + 1, fy + 1)
    for n in range((first + count - 1) // period + 2 - begin):
        x = begin + n
        near = _uniform(_at(a, x)) + wy * (_uniform(_at(b, x)) - _uniform(_at(a, x)))
        far = _uniform(_at(c, x)) + wy * (_uniform(_at(d, x)) - _uniform(_at(c, x)))
        knots[n] = near + wz * (far - near) - 0.5
    return begin


@njit(cache=True, nogil=True)
def camera(signal, origin, volume, seed, background, camera, image):  # type: ignore[no-untyped-def]
    """Counts of each voxel.

    Shot noise: (sqrt(mean) + g / 2)^2 - 1/4 with a normal g has the mean, the variance (nearly) and
    some skew of a Poisson variable. Read noise joins as light that is taken off again.
    """
    level, slope, slow, fine = background
    offset, gain, read_variance = camera
    length = image.shape[2]
    slow_knots = np.empty(length // _CLOUD_VOX[0] + 3)
    fine_knots = np.empty(length // _CLOUD_VOX[1] + 3)
    for i in range(image.shape[0]):
        z = i + origin[0]
        for j in range(image.shape[1]):
            y, first = j + origin[1], origin[2]
            s0 = _cloud_row(seed, _STREAM_CLOUDS, _CLOUD_VOX[0], z, y, first, length, slow_knots)
            f0 = _cloud_row(
                seed, _STREAM_CLOUDS + 1, _CLOUD_VOX[1], z, y, first, length, fine_knots
            )
            key = _key(seed, _STREAM_NOISE, z, y)
            for k in range(length):
                x = k + first
                tilt = (z / volume[0] + y / volume[1] + x / volume[2]) / 3.0 - 0.5
                shade = 1.0 + slope * tilt
                shade += slow * 2.0 * _between(slow_knots, x, s0, _CLOUD_VOX[0])
                shade += fine * 2.0 * _between(fine_knots, x, f0, _CLOUD_VOX[1])
                electrons = (level * max(shade, 0.0) + signal[i, j, k]) / gain + read_variance
                bits = _at(key, x)
                root = np.sqrt(electrons) + 0.5 * _gauss(bits, _mix(bits))
                counts = offset + gain * (root * root - 0.25 - read_variance)
                image[i, j, k] = np.uint16(min(max(np.rint(counts), 0.0), 65535.0))


@njit(cache=True, nogil=True)
def _between(knots, x, begin, period):  # type: ignore[no-untyped-def]
    n = x // period - begin
    t = _smooth((x % period) / period)
    return knots[n] + t * (knots[n + 1] - knots[n])
