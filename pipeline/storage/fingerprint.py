"""Digests of parameters and of foreign inputs, the parts of a stage's key."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pipeline.storage.npz import stored_file


def digest(value: Any) -> str:
    """A hex digest of anything that JSON can say; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, default=str, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fingerprint(path: Path) -> str:
    """A digest of a foreign file or folder: path, and each object's name, size and mtime.

    Reading every voxel of a terabyte only to know whether it changed would cost more than most
    stages; a changed file has another size or time. Of an array in an .npz file it is that file's.
    """
    path = path.resolve()
    entries = hashlib.sha256(str(path).encode())
    for name, size, mtime_ns in sorted(_objects(stored_file(path))):
        entries.update(f"\n{name}\t{size}\t{mtime_ns}".encode())
    return entries.hexdigest()[:32]


def _objects(path: Path) -> list[tuple[str, int, int]]:
    if path.is_file():
        stat = path.stat()
        return [(path.name, stat.st_size, stat.st_mtime_ns)]
    found = []
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder) / name
            stat = file.stat()
            found.append((str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns))
    return found
