"""Many small entries in few files: Neuroglancer's sharded format for data kept under integers.

An entry's key, hashed, tells its shard (a file) and its minishard (a part of the file that has an
index of its own). A reader takes the index of a minishard and then the entry by its byte range, so
that 100,000 entries need a handful of files. Shards are written one after the other and entries
fetched a minishard at a time: they need not fit in memory at once. Written here because the writer
of cloud-volume holds all of them and takes several times as long. Equal entries give equal bytes.

Source: google/neuroglancer, src/datasource/precomputed/sharded.md; MurmurHash3 of Austin Appleby.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton_buckets import HASH, hash_of
from pipeline.errors import DataError, InputError
from pipeline.storage.atomic import replacing

Keys = NDArray[np.uint64]

IDENTITY, MURMUR = "identity", HASH

_TYPE = "neuroglancer_uint64_sharded_v1"
_MINISHARD_BITS_OF_KEYS = 9  # as many keys as a minishard shall have on average, or fewer
_MOST_MINISHARD_BITS = 12  # the index of a shard has 16 bytes a minishard
_SHARD_BYTES = 1 << 26  # what a shard shall hold on average, or less
_SAMPLE = 1000  # entries whose size is measured


def write_shards(
    folder: Path,
    entries: Mapping[int, bytes],
    *,
    hash_name: str = MURMUR,
    compress: bool = False,
    mean_bytes: float | None = None,
) -> dict[str, Any]:
    """Write entries as shards, replacing those of the folder; each file appears when it is whole.

    The folder as a whole is not exchanged at once: whatever tells readers of it should be removed
    before and written after.

    Args:
        folder: made if it is missing.
        entries: by key from 0 to 2^64 - 1. Each is asked for once, in the order of the files, so
            that a mapping may make them on demand.
        hash_name: `MURMUR` spreads keys of any kind evenly; `IDENTITY` keeps neighbours together
            where keys are numbered without large gaps.
        compress: whether each entry is compressed (gzip); does not pay for less than some 200
            bytes.
        mean_bytes: size of an entry; None: measured on some of them.

    Returns:
        The member "sharding" that the folder's `info` shall have.

    Raises:
        InputError: a key that is none, or an unknown hash.
    """
    if hash_name not in (IDENTITY, MURMUR):
        raise InputError(f"hash: expected {IDENTITY} or {MURMUR}, got {hash_name!r}")
    keys = _keys(entries)
    if mean_bytes is None:
        sample = keys[:: max(1, len(keys) // _SAMPLE)].tolist()
        mean_bytes = sum(len(entries[key]) for key in sample) / max(1, len(sample))
    sharding = _specification(len(keys), mean_bytes, hash_name, compress)
    shard, minishard = _locate(keys, sharding)
    order = np.lexsort((keys, minishard, shard))
    keys, shard, minishard = keys[order], shard[order], minishard[order]
    folder.mkdir(parents=True, exist_ok=True)
    numbers, starts = np.unique(shard, return_index=True)
    ends = [*starts.tolist(), len(keys)][1:]
    written = set()
    for number, start, end in zip(numbers.tolist(), starts.tolist(), ends, strict=True):
        path = folder / _file_name(number, sharding)
        written.add(path)
        with replacing(path) as temporary, temporary.open("wb") as file:
            _write_entries(file, keys[start:end], minishard[start:end], entries, sharding)
    for stale in set(folder.glob("*.shard")) - written:
        stale.unlink()
    return sharding


def write_shard(
    folder: Path, number: int, entries: Mapping[int, bytes], sharding: Mapping[str, Any]
) -> None:
    """Write one shard; no other file is touched, so several can be written at the same time.

    Equal entries give equal bytes. Without entries there is no file, as the format has it.

    Args:
        folder: which exists.
        number: of the shard.
        entries: all of that shard, by key.
        sharding: the member "sharding" of the folder's `info`.

    Raises:
        InputError: a key is none, or belongs to another shard.
    """
    keys = _keys(entries)
    shard, minishard = _locate(keys, sharding)
    wrong = np.flatnonzero(shard != np.uint64(number))
    if len(wrong):
        raise InputError(
            f"{folder}: key {keys[wrong[0]]} belongs to shard {shard[wrong[0]]}, not to {number}"
        )
    path = folder / _file_name(number, sharding)
    if not len(keys):
        path.unlink(missing_ok=True)
        return
    order = np.lexsort((keys, minishard))
    with replacing(path) as temporary, temporary.open("wb") as file:
        _write_entries(file, keys[order], minishard[order], entries, sharding)


def read_shard_entry(folder: Path, sharding: Mapping[str, Any], key: int) -> bytes | None:
    """The entry of a key, None where there is none.

    Args:
        folder: of `write_shards`, or of any writer of the format.
        sharding: what that returned.
        key: from 0 to 2^64 - 1.

    Raises:
        InputError: no such key can be.
        DataError: a shard is damaged.
    """
    shard, minishard = (int(part[0]) for part in _locate(_keys([key]), sharding))
    path = folder / _file_name(shard, sharding)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return _find(file, sharding, minishard, key)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: damaged, or no shard of this kind: {error}") from error


def _keys(keys: Mapping[int, bytes] | list[int]) -> Keys:
    try:
        return np.fromiter(keys, np.uint64, len(keys))
    except (OverflowError, TypeError, ValueError) as error:
        raise InputError(f"keys: expected integers from 0 to 2^64 - 1: {error}") from error


def _specification(count: int, mean_bytes: float, hash_name: str, compress: bool) -> dict[str, Any]:
    """Bits such that minishards hold some hundred keys and shards some ten megabytes."""
    needed = max(0, math.ceil(math.log2(max(1, count))) - _MINISHARD_BITS_OF_KEYS)
    shard_bits = max(0, math.ceil(math.log2(max(1.0, count * mean_bytes / _SHARD_BYTES))))
    shard_bits = max(shard_bits, needed - _MOST_MINISHARD_BITS)
    together = _MINISHARD_BITS_OF_KEYS if hash_name == IDENTITY and needed else 0
    return {
        "@type": _TYPE,
        "preshift_bits": together,
        "hash": hash_name,
        "minishard_bits": max(0, needed - shard_bits),
        "shard_bits": shard_bits,
        "minishard_index_encoding": "gzip",
        "data_encoding": "gzip" if compress else "raw",
    }


def _locate(keys: Keys, sharding: Mapping[str, Any]) -> tuple[Keys, Keys]:
    """The shard and the minishard of each key."""
    hashed = keys >> np.uint64(sharding["preshift_bits"])
    if sharding["hash"] == MURMUR:
        hashed = hash_of(hashed)
    inner, outer = sharding["minishard_bits"], sharding["shard_bits"]
    minishard = hashed & np.uint64(2**inner - 1)
    return (hashed >> np.uint64(inner)) & np.uint64(2**outer - 1), minishard


def _file_name(shard: int, sharding: Mapping[str, Any]) -> str:
    return f"{shard:x}".zfill(math.ceil(sharding["shard_bits"] / 4)) + ".shard"


def _write_entries(
    file: BinaryIO,
    keys: Keys,
    minishard: Keys,
    entries: Mapping[int, bytes],
    sharding: Mapping[str, Any],
) -> None:
    """The index of the shard, the entries, the indices of its minishards."""
    index = np.zeros((2 ** sharding["minishard_bits"], 2), "<u8")
    file.write(index.tobytes())
    numbers, starts = np.unique(minishard, return_index=True)
    stops = [*starts.tolist(), len(keys)][1:]
    parts = []
    at = 0
    for start, stop in zip(starts.tolist(), stops, strict=True):
        data = [entries[key] for key in keys[start:stop].tolist()]
        if sharding["data_encoding"] == "gzip":
            data = [_compressed(entry) for entry in data]
        # Keys as steps from the one before, places as gaps after the one before: there are none.
        part = np.zeros((3, stop - start), "<u8")
        part[0] = np.diff(keys[start:stop], prepend=np.uint64(0))
        part[1, 0] = at
        part[2] = [len(entry) for entry in data]
        parts.append(_compressed(part.tobytes()))
        at += file.write(b"".join(data))
    for number, part_index in zip(numbers.tolist(), parts, strict=True):
        index[number] = at, at + len(part_index)
        at += file.write(part_index)
    file.seek(0)
    file.write(index.tobytes())


def _compressed(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


def _find(file: BinaryIO, sharding: Mapping[str, Any], minishard: int, key: int) -> bytes | None:
    origin = 16 * 2 ** sharding["minishard_bits"]
    file.seek(16 * minishard)
    start, end = np.frombuffer(_exactly(file, 16), "<u8").tolist()
    if start == end:
        return None
    file.seek(origin + start)
    part = _decoded(_exactly(file, end - start), sharding.get("minishard_index_encoding", "raw"))
    steps, gaps, sizes = np.frombuffer(part, "<u8").reshape(3, -1)
    found = np.flatnonzero(np.cumsum(steps) == key)
    if not len(found):
        return None
    i = int(found[0])
    file.seek(origin + int(gaps[: i + 1].sum() + sizes[:i].sum()))
    return _decoded(_exactly(file, int(sizes[i])), sharding.get("data_encoding", "raw"))


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError(f"{size} bytes expected, {len(data)} found")
    return data


def _decoded(data: bytes, encoding: str) -> bytes:
    return gzip.decompress(data) if encoding == "gzip" else data
