"""Sharded entries, read back by two other readers of the format."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import tensorstore as ts

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ImportWarning)
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification, ShardReader

from pipeline.errors import DataError, InputError
from pipeline.storage import shards
from pipeline.storage.shards import IDENTITY, MURMUR, read_shard_entry, write_shards

TOP = 2**64 - 1


def entries_of(count: int, *, dense: bool = False) -> dict[int, bytes]:
    rng = np.random.default_rng(count)
    keys = np.arange(count) if dense else rng.integers(0, 2**64, count, np.uint64)
    found = {int(key): rng.bytes(int(rng.integers(0, 60))) for key in keys}
    return found if dense else {TOP: b"top", 0: b"", **found}


CASES = {
    "none": ({}, MURMUR, False),
    "one": ({TOP: b"x"}, MURMUR, True),
    "empty data": ({5: b"", 6: b"", 7: b"a"}, IDENTITY, False),
    "dense": (entries_of(3000, dense=True), IDENTITY, False),
    "spread": (entries_of(3000), MURMUR, True),
    "spread, plain": (entries_of(5000), IDENTITY, False),
}


@pytest.mark.parametrize("shard_bytes", [1 << 26, 4096])
@pytest.mark.parametrize("case", CASES)
def test_other_readers_find_every_entry(tmp_path, monkeypatch, case, shard_bytes):
    monkeypatch.setattr(shards, "_SHARD_BYTES", shard_bytes)
    entries, hash_name, compress = CASES[case]
    sharding = write_shards(tmp_path, entries, hash_name=hash_name, compress=compress)
    assert sharding["@type"] == "neuroglancer_uint64_sharded_v1"
    specification = ShardingSpecification.from_dict(sharding)
    reader = ShardReader(None, None, specification)
    found: dict[int, bytes] = {}
    for path in tmp_path.iterdir():
        inside = reader.disassemble_shard(path.read_bytes())
        for key in inside:
            assert path.name == f"{specification.compute_shard_location(key).shard_number}.shard"
        found |= {int(key): bytes(data) for key, data in inside.items()}
    assert found == entries
    store = ts.KvStore.open(
        {
            "driver": "neuroglancer_uint64_sharded",
            "metadata": sharding,
            "base": f"file://{tmp_path}/",
        }
    ).result()
    for key in sorted(entries)[::17]:
        assert store.read(struct.pack(">Q", key)).result().value == entries[key]
        assert read_shard_entry(tmp_path, sharding, key) == entries[key]
    for absent in {1, 12345678901234567, TOP - 1} - set(entries):
        assert read_shard_entry(tmp_path, sharding, absent) is None
        assert store.read(struct.pack(">Q", absent)).result().state == "missing"


def test_what_others_write_is_read(tmp_path):
    entries = entries_of(200)
    specification = ShardingSpecification(
        "neuroglancer_uint64_sharded_v1", 3, MURMUR, 2, 5, "raw", "gzip"
    )
    for name, data in specification.synthesize_shards(entries).items():
        (tmp_path / name).write_bytes(data)
    sharding = specification.to_dict()
    sharding = {k: v if isinstance(v, str) else int(v) for k, v in sharding.items()}
    for key, data in entries.items():
        assert read_shard_entry(tmp_path, sharding, key) == data


def test_numbers_of_shards_follow_the_entries(tmp_path, monkeypatch):
    found = write_shards(tmp_path, dict.fromkeys(range(512), b"ab"))
    assert (found["minishard_bits"], found["shard_bits"]) == (0, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["0.shard"]
    found = write_shards(tmp_path, dict.fromkeys(range(513), b"ab"), hash_name=IDENTITY)
    assert (found["preshift_bits"], found["minishard_bits"], found["shard_bits"]) == (9, 1, 0)
    found = write_shards(tmp_path, dict.fromkeys(range(4096), b"ab"), mean_bytes=2**20)
    assert (found["minishard_bits"], found["shard_bits"]) == (0, 6)
    assert len(list(tmp_path.iterdir())) == 64
    assert {len(p.stem) for p in tmp_path.iterdir()} == {2}
    monkeypatch.setattr(shards, "_MOST_MINISHARD_BITS", 1)
    found = write_shards(tmp_path, dict.fromkeys(range(4096), b"ab"))
    assert (found["minishard_bits"], found["shard_bits"]) == (1, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{i}.shard" for i in range(4)]


def test_equal_entries_give_equal_bytes_in_any_order(tmp_path):
    entries = entries_of(2000)
    for name, given in (("a", entries), ("b", dict(reversed(entries.items())))):
        write_shards(tmp_path / name, given, compress=True)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


class Failing(Mapping[int, bytes]):
    """A mapping that makes its entries on demand, until one fails."""

    def __getitem__(self, key: int) -> bytes:
        if key == 700:
            raise OSError("lost")
        return b"entry"

    def __len__(self) -> int:
        return 1000

    def __iter__(self) -> Iterator[int]:
        return iter(range(1000))


def test_nothing_is_left_of_a_shard_that_fails(tmp_path):
    with pytest.raises(OSError, match="lost"):
        write_shards(tmp_path, Failing(), mean_bytes=5)
    assert list(tmp_path.iterdir()) == []


def test_refusals(tmp_path):
    for key in (-1, 2**64):
        with pytest.raises(InputError, match="integers from 0 to 2"):
            write_shards(tmp_path, {key: b""})
    with pytest.raises(InputError, match="hash: expected"):
        write_shards(tmp_path, {}, hash_name="md5")
    sharding = write_shards(tmp_path, {7: b"seven"}, compress=True)
    whole = (tmp_path / "0.shard").read_bytes()
    for damaged in (whole[:10], whole[:-5], whole[:16] + b"xxxx" + whole[20:]):
        (tmp_path / "0.shard").write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            read_shard_entry(tmp_path, sharding, 7)
