"""Settings of the skeleton method; lengths left at null follow the voxel size."""

from __future__ import annotations

from math import isfinite
from typing import Literal

from pydantic import Field

from pipeline.errors import ConfigError, InputError
from pipeline.settings import StrictModel

VoxelSize = tuple[float, float, float]

_CONST_VOX = 3.0
_SOMA_DETECTION_NM, _SOMA_DETECTION_VOX = 3_000.0, 3.0
_SOMA_ACCEPTANCE_NM, _SOMA_ACCEPTANCE_VOX = 4_500.0, 4.0
# The reach of a path is that of the longest edge, 3 by default: beyond this ratio it swallows 150
# voxels of a plane, whole neurites with their neighbours' branches.
MAX_ANISOTROPY = 50.0
_LEAST_EDGE_NM = 1.0


class SkeletonSettings(StrictModel):
    """TEASAR and the joining of blocks, for thin neurites in light microscopy.

    A path is drawn to every tip that lies further than scale * radius + const from the paths drawn
    before. Of a null length, the default is a number of voxel edges (the longest edge of a voxel).
    """

    scale: float = Field(1.5, ge=0)
    """Reach of a path, in radii of the neurite: side branches shorter than this are not drawn."""
    const_nm: float | None = Field(None, ge=0)
    """Further reach of a path, nanometres; null: 3 voxel edges."""
    tracer: Literal["paths", "kimimaro"] = "paths"
    """What draws the paths: own ones, by which only an object that may be a soma goes to kimimaro;
    or kimimaro for all objects, in a time that grows with their tips times the block."""
    centring_weight: float = Field(100_000.0, gt=0)
    """How much dearer the surface is than the centre line (`pdrf_scale`)."""
    centring_exponent: int = Field(4, ge=1, le=16)
    """How fast that price falls towards the centre line (`pdrf_exponent`)."""
    soma_detection_nm: float | None = Field(None, gt=0)
    """An object thicker than this radius is looked at for a soma: its holes are filled. Null: 3 um,
    or 3 voxel edges if that is more."""
    soma_acceptance_nm: float | None = Field(None, gt=0)
    """An object thicker than this radius is rooted in its soma, through which one star runs. Null:
    4.5 um, or 4 voxel edges if that is more."""
    soma_scale: float = Field(1.5, ge=0)
    """Reach of a soma, in its radii: no other path begins inside."""
    soma_const_nm: float = Field(500.0, ge=0)
    """Further reach of a soma, nanometres."""
    min_voxels: int = Field(0, ge=0)
    """A component smaller than this is left out if it touches no face of its block."""
    max_fill: float = Field(0.25, gt=0, le=1)
    """A component of more than this share of a block's voxels (a soma, a merge, background under a
    label) is limited: of its skeleton there are only the ways to where it leaves the block."""
    keep_loops: bool = True
    """Close the rings that the object has: those longer than 2 pi * (scale * radius + const)."""
    join_radius_vox: float = Field(2.0, ge=0)
    """Ends of one segment that are no further apart are joined, voxels; 0 joins contacts only."""
    smooth_rounds: int = Field(4, ge=0, le=1000)
    """How often nodes are drawn towards their neighbours, within their voxels; 0 keeps centres."""
    tick_nm: float | None = Field(None, ge=0)
    """Side branches shorter than this are removed, nanometres; null: 5 voxel edges, and those that
    end within reach (scale * radius + const) of the node that they leave."""
    dust_nm: float = Field(0.0, ge=0)
    """Components with less cable than this are removed, nanometres; 0 keeps every object."""

    def soma_detection(self, voxel_size_nm: VoxelSize) -> float:
        """The radius from which an object is looked at for a soma, nanometres."""
        if self.soma_detection_nm is not None:
            return self.soma_detection_nm
        return max(_SOMA_DETECTION_NM, _SOMA_DETECTION_VOX * max(voxel_size_nm))

    def soma_acceptance(self, voxel_size_nm: VoxelSize) -> float:
        """The radius from which an object is rooted in its soma, nanometres."""
        if self.soma_acceptance_nm is not None:
            return self.soma_acceptance_nm
        return max(_SOMA_ACCEPTANCE_NM, _SOMA_ACCEPTANCE_VOX * max(voxel_size_nm))


def const_nm(settings: SkeletonSettings, voxel_size_nm: VoxelSize) -> float:
    """The constant part of a path's reach, nanometres."""
    return _CONST_VOX * max(voxel_size_nm) if settings.const_nm is None else settings.const_nm


def check_settings(voxel_size_nm: VoxelSize, settings: SkeletonSettings) -> None:
    """Refuse what gives no skeletons on voxels of this size, before anything is computed.

    Raises:
        InputError: a voxel edge is not a positive number, all are below 1 nm, or the longest is
            more than 50 times the shortest.
        ConfigError: a length of the settings cannot work: the reach of the thinnest path misses the
            next voxel (every voxel would become a tip), every object would be a soma, or no side
            branch is as short as `tick_nm`.
    """
    shortest, longest = min(voxel_size_nm), max(voxel_size_nm)
    if not all(isfinite(edge) and edge > 0 for edge in voxel_size_nm):
        raise InputError(
            f"voxel size {tuple(voxel_size_nm)} nm: skeletons need three positive edges; "
            f"give the voxel size of the volume"
        )
    if longest < _LEAST_EDGE_NM:
        raise InputError(
            f"voxel size {tuple(voxel_size_nm)} nm: no voxel of a microscope is that small; "
            f"give nanometres, not micrometres"
        )
    if longest > MAX_ANISOTROPY * shortest:
        raise InputError(
            f"voxel size {tuple(voxel_size_nm)} nm: the longest edge is {longest / shortest:.5g} "
            f"times the shortest, skeletons work up to {MAX_ANISOTROPY:g}; "
            f"downsample the volume along its short edges first"
        )
    reach = settings.scale * shortest + const_nm(settings, voxel_size_nm)
    if reach < longest:
        raise ConfigError(
            f"scale * radius + const_nm is {reach:g} nm on a neurite one voxel wide, less than the "
            f"voxel edge of {longest:g} nm, so every voxel would be a tip; "
            f"raise const_nm to {longest:g} or leave it null"
        )
    for name, radius in (
        ("soma_detection_nm", settings.soma_detection_nm),
        ("soma_acceptance_nm", settings.soma_acceptance_nm),
    ):
        if radius is not None and radius < longest:
            raise ConfigError(
                f"{name} is {radius:g} nm, less than the voxel edge of {longest:g} nm, so every "
                f"neurite would count as a soma; raise it or leave it null"
            )
    if settings.tick_nm is not None and 0 < settings.tick_nm < shortest:
        raise ConfigError(
            f"tick_nm is {settings.tick_nm:g} nm, less than the voxel edge of {shortest:g} nm, so "
            f"no side branch is as short; raise it, or 0 keeps all of them"
        )
