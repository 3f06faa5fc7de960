"""Which bucket a segment belongs to: the shard of Neuroglancer's sharded format that holds its id.

Buckets split the segments into shares of about equal size that know nothing of blocks. Because a
bucket is a shard, the files of all buckets can be written at the same time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DtypeError, InputError

HASH = "murmurhash3_x86_128"
MINISHARD_BITS = 6
"""Of a hash, the lowest bits choose one of 64 lists within a shard, the next ones the shard."""

_BYTES_OF_AN_ID = np.uint32(8)
_LOW_WORD = np.uint64(0xFFFFFFFF)
_Words = NDArray[np.uint32]


def shard_bits(buckets: int) -> int:
    """The logarithm of a number of buckets.

    Raises:
        InputError: it is no power of two from 1 to 2^32.
    """
    if not 1 <= buckets <= 2**32 or buckets & (buckets - 1):
        raise InputError(f"buckets: expected a power of two from 1 to 2^32, got {buckets}")
    return buckets.bit_length() - 1


def bucket_of(
    segments: NDArray[np.unsignedinteger], buckets: int, minishard_bits: int = MINISHARD_BITS
) -> NDArray[np.int64]:
    """The bucket of each segment, from 0 to `buckets` - 1.

    Args:
        segments: ids of any shape, unsigned integers.
        buckets: a power of two.
        minishard_bits: bits of the hash below those of the shard.

    Returns:
        int64 of the same shape.

    Raises:
        InputError: `buckets` is no power of two, or the bits are more than the hash has.
        DtypeError: `segments` are no unsigned integers.
    """
    bits = shard_bits(buckets)
    if not 0 <= minishard_bits <= 64 - bits:
        raise InputError(f"minishard_bits: expected 0 to {64 - bits}, got {minishard_bits}")
    segments = np.asarray(segments)
    if segments.dtype.kind != "u":
        raise DtypeError(f"segments: expected unsigned integers, got {segments.dtype}")
    shifted = hash_of(segments.astype(np.uint64)) >> np.uint64(min(minishard_bits, 63))
    if minishard_bits == 64:
        shifted = np.zeros_like(shifted)
    return (shifted & np.uint64(buckets - 1)).astype(np.int64)


def hash_of(segments: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The low 64 bits of murmurhash3_x86_128 (seed 0) of each id, taken as 8 bytes, low byte first.

    Source: MurmurHash3 by Austin Appleby, in the public domain; the use of its low half is that of
    Neuroglancer's sharded format.
    """
    # Arrays wrap around without a word; numbers of numpy warn.
    ids = np.atleast_1d(segments)
    low = (ids & _LOW_WORD).astype(np.uint32)
    high = (ids >> np.uint64(32)).astype(np.uint32)
    first = _rotated(low * np.uint32(0x239B961B), 15) * np.uint32(0xAB0E9789)
    second = _rotated(high * np.uint32(0xAB0E9789), 16) * np.uint32(0x38B34AE5)
    # An id fills two of the four words of the state; the others hold its length alone, and stay
    # equal to each other.
    first, second = first ^ _BYTES_OF_AN_ID, second ^ _BYTES_OF_AN_ID
    rest = np.full_like(first, _BYTES_OF_AN_ID)
    first, second, rest = _added(first, second, rest)
    first, second, rest = _added(_mixed(first), _mixed(second), _mixed(rest))
    hashes = first.astype(np.uint64) | second.astype(np.uint64) << np.uint64(32)
    return hashes.reshape(np.shape(segments))


def _added(first: _Words, second: _Words, rest: _Words) -> tuple[_Words, _Words, _Words]:
    """The sum of all four words goes to the first, and that one to the others."""
    first = first + second + rest + rest
    return first, second + first, rest + first


def _rotated(words: _Words, bits: int) -> _Words:
    return words << np.uint32(bits) | words >> np.uint32(32 - bits)


def _mixed(words: _Words) -> _Words:
    words = (words ^ words >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    words = (words ^ words >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return words ^ words >> np.uint32(16)
