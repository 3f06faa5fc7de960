"""What a training is: settings, data and beginning. It goes on only as what it began as."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import OutputExistsError
from pipeline.geometry import middle_part
from pipeline.learning.checkpoint import SavedModel, VoxelSize
from pipeline.learning.sampling import ForegroundIndex, Region
from pipeline.learning.settings import NetworkSettings, TrainSettings


def data_digest(sources: Sequence[Region], index: ForegroundIndex, settings: TrainSettings) -> str:
    """SHA-256 over the indexed labels, the regions, and a patch of image in the middle of each."""
    sha = hashlib.sha256(index.digest.encode())
    for source, allowed in sources:
        middle = middle_part(allowed, math.prod(settings.patch))
        sha.update(np.ascontiguousarray(source.image(middle)).tobytes())
    return sha.hexdigest()


def describe_training(
    settings: TrainSettings,
    network: NetworkSettings,
    *,
    data: str,
    start: str | None,
    validated: bool,
    normalisation: str | None,
    voxel_size_nm: VoxelSize | None,
) -> dict[str, Any]:
    """The facts that must stay the same from the first step to the last.

    Args:
        settings, network: of the training.
        data: see `data_digest`.
        start: digest of the network that it begins with.
        validated: whether validation chooses the network.
        normalisation: how image values are made.
        voxel_size_nm: z, y, x; None if unknown.

    Returns:
        JSON values: "settings" in parts, "data", "start".
    """
    return {
        "settings": {
            "network": network.model_dump(mode="json"),
            "train": settings.deciding(),
            "run": {
                "start": start,
                "validated": validated,
                "normalisation": normalisation,
                "voxel_size_nm": None if voxel_size_nm is None else list(map(float, voxel_size_nm)),
            },
        },
        "data": data,
        "start": start,
    }


def describe_finished(saved: SavedModel) -> dict[str, Any]:
    """The same facts of the training that made a network, from its note."""
    facts = saved.note["facts"]
    return describe_training(
        saved.training,
        saved.network,
        data=facts["data"],
        start=facts["start"],
        validated=facts["chosen"]["score"] is not None,
        normalisation=saved.note.get("normalisation"),
        voxel_size_nm=saved.voxel_size_nm,
    )


def require_same(directory: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to go on with another training than the one that a directory belongs to.

    Raises:
        OutputExistsError: names what differs.
    """
    found, now = saved["settings"], wanted["settings"]
    changed = [
        f"{part}.{key}: {found.get(part, {}).get(key)!r} there, {now[part].get(key)!r} now"
        for part in now
        for key in now[part].keys() | found.get(part, {}).keys()
        if found.get(part, {}).get(key) != now[part].get(key)
    ]
    if saved["data"] != wanted["data"]:
        changed.append("another image, other labels or other regions than those given now")
    if changed:
        raise OutputExistsError(
            f"{directory} belongs to another training ({'; '.join(sorted(changed))}): train into "
            f"another directory, or empty this one"
        )
