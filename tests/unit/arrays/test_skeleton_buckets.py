"""Buckets of segments are the shards of Neuroglancer's format."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.arrays.skeleton_buckets import MINISHARD_BITS, bucket_of, hash_of, shard_bits
from pipeline.errors import DtypeError, InputError
from pipeline.storage.precomputed import CloudVolume  # noqa: F401  (quiets its import)


def ids(count: int = 200) -> np.ndarray:
    drawn = np.random.default_rng(3).integers(0, 2**64, count, np.uint64, endpoint=False)
    assert (drawn >= 2**63).any()
    assert (drawn < 2**63).any()
    return np.concatenate([drawn, np.array([0, 1, 2, 2**32, 2**63, 2**64 - 1], np.uint64)])


@pytest.mark.parametrize(
    ("buckets", "minishard_bits"), [(16, MINISHARD_BITS), (1, 0), (256, 3), (2**20, 0), (1, 64)]
)
def test_as_cloud_volume_has_them(buckets: int, minishard_bits: int) -> None:
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification

    specification = ShardingSpecification(
        type="neuroglancer_uint64_sharded_v1",
        preshift_bits=0,
        hash="murmurhash3_x86_128",
        minishard_bits=minishard_bits,
        shard_bits=shard_bits(buckets),
    )
    expected = [
        int(specification.compute_shard_location(segment).shard_number, 16)
        for segment in ids().tolist()
    ]
    found = bucket_of(ids(), buckets, minishard_bits)
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_any_shape_type_and_stride() -> None:
    given = ids(30)
    expected = bucket_of(given, 64)
    assert bucket_of(given[::-2], 64).tolist() == expected[::-2].tolist()
    assert bucket_of(given.reshape(2, -1), 64).tolist() == expected.reshape(2, -1).tolist()
    assert bucket_of(given[:0], 64).tolist() == []
    small = np.arange(50, dtype=np.uint16)
    assert bucket_of(small, 64).tolist() == bucket_of(small.astype(np.uint64), 64).tolist()
    assert bucket_of(given.astype(">u8"), 64).tolist() == expected.tolist()
    assert hash_of(np.zeros((), np.uint64)).shape == ()
    assert int(bucket_of(given[3], 64)) == expected[3]


def test_neighbouring_ids_spread_evenly() -> None:
    counts = np.bincount(bucket_of(np.arange(1, 64_001, dtype=np.uint64), 64), minlength=64)
    assert counts.min() > 850
    assert counts.max() < 1150


def test_refusals() -> None:
    for buckets in (0, 3, -4, 2**33):
        with pytest.raises(InputError, match=f"power of two from 1 to 2\\^32, got {buckets}"):
            bucket_of(ids(), buckets)
    with pytest.raises(InputError, match="expected 0 to 60, got 61"):
        bucket_of(ids(), 16, 61)
    with pytest.raises(DtypeError, match="got int64"):
        bucket_of(np.arange(3), 4)  # type: ignore[arg-type]
