"""What a phantom looks like: its size, the shapes of its neurons, the microscope."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import InputError
from pipeline.geometry import Triple, triple

BEAD_CELL = 16
"""Side in voxels of a cell that holds one bead at most."""


@dataclass(frozen=True)
class GrowthSpec:
    """The shapes of neurites. Pairs are the ends of a range, lengths in nm.

    Attributes:
        radius_nm: of a trunk where it begins.
        thinnest_nm: no neurite is thinner.
        taper_nm: length over which a radius falls by the factor e.
        persistence_nm: length over which the direction is forgotten; small is tortuous.
        cable_nm: longest cable of one neuron.
        branch_spacing_nm: mean cable between branch points.
        branch_length_nm: mean length of a branch, if nothing stops it.
        branch_angle_deg: between a branch and its parent.
        varicosity_spacing_nm: mean cable between swellings.
        varicosity_scale: radius of a swelling in radii of its neurite.
        soma_share: probability that a neuron's soma lies in the volume.
        soma_radius_nm: its radius.
        contacts: mean number of attempts per neuron to touch another one.
    """

    radius_nm: tuple[float, float] = (500.0, 900.0)
    thinnest_nm: float = 400.0
    taper_nm: float = 250_000.0
    persistence_nm: float = 50_000.0
    cable_nm: float = 600_000.0
    branch_spacing_nm: float = 55_000.0
    branch_length_nm: float = 45_000.0
    branch_angle_deg: tuple[float, float] = (30.0, 80.0)
    varicosity_spacing_nm: float = 14_000.0
    varicosity_scale: tuple[float, float] = (1.3, 1.9)
    soma_share: float = 0.1
    soma_radius_nm: tuple[float, float] = (2_500.0, 4_000.0)
    contacts: float = 2.0

    def __post_init__(self) -> None:
        for name in ("radius_nm", "branch_angle_deg", "varicosity_scale", "soma_radius_nm"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise InputError(f"{name}: expected 0 < low <= high, got {(low, high)}")
        lengths = ("thinnest_nm", "taper_nm", "persistence_nm", "cable_nm", "branch_spacing_nm")
        for name in (*lengths, "branch_length_nm", "varicosity_spacing_nm"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.soma_share <= 1 or not self.contacts >= 0:
            raise InputError(
                f"soma_share must lie in 0 .. 1 and contacts must not be negative, "
                f"got {self.soma_share} and {self.contacts}"
            )


@dataclass(frozen=True)
class LightSpec:
    """The microscope and the camera. Brightness in counts, lengths in nm.

    Attributes:
        neurite_counts: range over neurons of what a wide, bright neurite adds to the background
            before the blur; a thin one keeps a fraction of it.
        dimmest: brightness of the dimmest stretches of a neuron, in its brightest.
        stretch_nm: length over which brightness changes.
        background_counts: mean of the background.
        slope: background at the last corner of the volume minus at the first, in means.
        clouds: amplitudes of the slow and the fine clouds, in means.
        blur_nm: sigma of the point spread function, z, y, x.
        bead_density: beads per 10^6 voxels off the neurites.
        bead_radius_nm: range of their radii.
        bead_counts: brightness of the brightest bead; most are dim.
        offset_counts: what the camera reports in the dark.
        counts_per_electron: gain; shot noise grows with its square root.
        read_noise_counts: standard deviation.
    """

    neurite_counts: tuple[float, float] = (1_500.0, 4_000.0)
    dimmest: float = 0.3
    stretch_nm: float = 14_000.0
    background_counts: float = 900.0
    slope: float = 0.4
    clouds: tuple[float, float] = (0.35, 0.12)
    blur_nm: tuple[float, float, float] = (1_100.0, 380.0, 380.0)
    bead_density: float = 25.0
    bead_radius_nm: tuple[float, float] = (400.0, 1_100.0)
    bead_counts: float = 7_000.0
    offset_counts: float = 200.0
    counts_per_electron: float = 14.0
    read_noise_counts: float = 25.0

    def __post_init__(self) -> None:
        positive = (*self.neurite_counts, self.stretch_nm, *self.blur_nm, *self.bead_radius_nm)
        if not min(*positive, self.counts_per_electron) > 0:
            raise InputError(
                "neurite_counts, stretch_nm, blur_nm, bead_radius_nm and counts_per_electron "
                f"must be positive, got {self}"
            )
        rest = (self.background_counts, self.bead_counts, self.read_noise_counts, *self.clouds)
        if not (min(*rest, self.offset_counts) >= 0 and 0 <= self.dimmest <= 1):
            raise InputError(
                f"counts must not be negative and dimmest must lie in 0 .. 1, got {self}"
            )
        if not 0 <= self.bead_density <= 1e6 / BEAD_CELL**3:
            raise InputError(
                f"bead_density must lie in 0 .. {1e6 / BEAD_CELL**3:.0f} beads per 10^6 voxels, "
                f"got {self.bead_density}"
            )


@dataclass(frozen=True)
class PhantomSpec:
    """A whole phantom: equal specs give equal voxels.

    Attributes:
        shape: of the volume, z, y, x in voxels, at least 16 each.
        voxel_size_nm: z, y, x.
        neurons: how many.
        seed: 0 .. 2**63 - 1.
        growth: the shapes of the neurons.
        light: how they are seen.
    """

    shape: Triple = (128, 256, 256)
    voxel_size_nm: tuple[float, float, float] = (1_000.0, 400.0, 400.0)
    neurons: int = 12
    seed: int = 0
    growth: GrowthSpec = field(default_factory=GrowthSpec)
    light: LightSpec = field(default_factory=LightSpec)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", triple(self.shape, "shape"))
        if min(self.shape) < 16 or self.neurons < 0 or not 0 <= self.seed < 2**63:
            raise InputError(
                "a phantom has at least 16 voxels along each axis, no negative number of neurons "
                f"and a seed of 0 .. 2**63 - 1; got {self.shape}, {self.neurons}, {self.seed}"
            )
        if not min(self.voxel_size_nm) > 0:
            raise InputError(f"voxel size must be positive, got {self.voxel_size_nm} nm")
