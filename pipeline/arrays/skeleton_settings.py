"""Settings of the skeleton method; lengths left at null follow the voxel size."""

from __future__ import annotations

from pydantic import Field

from pipeline.settings import StrictModel


class SkeletonSettings(StrictModel):
    """TEASAR and the joining of blocks, for thin neurites in light microscopy.

    A path is drawn to every tip that lies further than scale * radius + const from the paths drawn
    before. Of a null length, the default is a number of voxel edges (the longest edge of a voxel).
    """

    scale: float = Field(1.5, ge=0)
    """Reach of a path, in radii of the neurite: side branches shorter than this are not drawn."""
    const_nm: float | None = Field(None, ge=0)
    """Further reach of a path, nanometres; null: 3 voxel edges."""
    centring_weight: float = Field(100_000.0, gt=0)
    """How much dearer the surface is than the centre line (`pdrf_scale`)."""
    centring_exponent: int = Field(4, ge=1, le=16)
    """How fast that price falls towards the centre line (`pdrf_exponent`)."""
    soma_detection_nm: float = Field(3_000.0, gt=0)
    """An object thicker than this radius is looked at for a soma: its holes are filled."""
    soma_acceptance_nm: float = Field(4_500.0, gt=0)
    """An object thicker than this radius is rooted in its soma, through which one star runs."""
    soma_scale: float = Field(1.5, ge=0)
    """Reach of a soma, in its radii: no other path begins inside."""
    soma_const_nm: float = Field(500.0, ge=0)
    """Further reach of a soma, nanometres."""
    min_voxels: int = Field(0, ge=0)
    """A component smaller than this is left out if it touches no face of its block."""
    join_radius_vox: float = Field(2.0, ge=0)
    """Ends of one segment that are no further apart are joined, voxels; 0 joins contacts only."""
    tick_nm: float | None = Field(None, ge=0)
    """Side branches shorter than this are removed, nanometres; null: 5 voxel edges."""
    dust_nm: float = Field(0.0, ge=0)
    """Components with less cable than this are removed, nanometres; 0 keeps every object."""
