"""Whether a trained network suits other data or another training, and if not, in what."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError
from pipeline.learning.checkpoint import SavedModel, VoxelSize
from pipeline.learning.settings import VOXEL_RATIO, NetworkSettings


def require_fit(
    directory: Path,
    saved: SavedModel,
    *,
    purpose: str,
    normalisation: str,
    voxel_size_nm: VoxelSize | None,
    network: NetworkSettings | None = None,
) -> None:
    """Refuse a network that does not suit.

    Args:
        directory: where it lies, for the message.
        saved: the network.
        purpose: what it was to be used for, for the message.
        normalisation: how the present images are made.
        voxel_size_nm: of the present images, z, y, x; None if unknown.
        network: settings that it must have, None if any will do.

    Raises:
        InputError: names everything that differs, with both values.
    """
    wrong = [] if network is None else _network_differences(saved.network, network)
    theirs = saved.note.get("normalisation")
    if theirs != normalisation:
        wrong.append(
            f"it was trained on images in which {theirs}; in this run {normalisation} (set "
            f"ingest.low_percentile and ingest.high_percentile as in its training)"
        )
    wrong += _voxel_differences(saved.voxel_size_nm, voxel_size_nm)
    if wrong:
        raise InputError(f"{directory}: this network cannot be used {purpose}: {'; '.join(wrong)}")


def _network_differences(theirs: NetworkSettings, ours: NetworkSettings) -> list[str]:
    return [
        f"network.{name} is {value!r} there, {getattr(ours, name)!r} here"
        for name, value in theirs
        if value != getattr(ours, name)
    ]


def _voxel_differences(theirs: VoxelSize | None, ours: VoxelSize | None) -> list[str]:
    if theirs is None or ours is None:
        return []
    ratios = [max(a, b) / min(a, b) for a, b in zip(theirs, ours, strict=True)]
    if max(ratios) <= VOXEL_RATIO:
        return []
    axis = ratios.index(max(ratios))
    return [
        f"its voxels were {theirs} nm (z, y, x), these are {ours} nm: along {'zyx'[axis]} they "
        f"differ by a factor of {ratios[axis]:.3g}, more than {VOXEL_RATIO} (resample the images)"
    ]
