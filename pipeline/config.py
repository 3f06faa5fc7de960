"""The configuration of a run: read once from YAML, checked, frozen.

Unknown keys are refused. Lengths are nanometres or voxels as each field's name says; triples are
z, y, x. Input paths are relative to the configuration file, `run_dir` to the current folder;
`${NAME:-default}` in a path is replaced from the environment.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.arrays.skeleton_settings import SkeletonSettings
from pipeline.arrays.waterz_process import Scoring
from pipeline.errors import ConfigError
from pipeline.geometry import Roi, Triple
from pipeline.learning.settings import NetworkSettings, PredictSettings, TrainSettings
from pipeline.settings import NmTriple, StrictModel, VoxelTriple
from pipeline.storage.atomic import write_text

Axis = Literal["z", "y", "x"]
Fraction = Field(ge=0, le=1)


class SwcConfig(StrictModel):
    """How the coordinates of SWC files map to the volume."""

    axes: Literal["xyz", "xzy", "yxz", "yzx", "zxy", "zyx"] = "xyz"
    """Order of the coordinate columns; the standard is xyz."""
    unit: Literal["voxel", "um", "nm"] = "voxel"
    """Unit of the coordinates and radii."""
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Added to the coordinates after conversion to voxels; z, y, x."""
    flip: tuple[Axis, ...] = ()
    """Axes along which the tracing runs backwards: index becomes size - 1 - index."""


class InputConfig(StrictModel):
    """What the run starts from. Stages whose output is given here are not run."""

    image: Path | None = None
    """TIFF file, folder of TIFF planes, or zarr (array or OME-NGFF)."""
    voxel_size_nm: NmTriple | None = None
    """Size of a voxel, z, y, x; needed unless the image's metadata say it."""
    labels: Path | None = None
    """Dense instance labels to train on: integers, 0 is background, shape of the image."""
    skeletons: Path | None = None
    """Tracings to train on or score against: an SWC file, a folder of them, or a zip."""
    swc: SwcConfig = SwcConfig()
    """How the tracings' coordinates map to the volume."""
    checkpoint: Path | None = None
    """Folder of a trained network; replaces the train stage."""
    affinities: Path | None = None
    """zarr (3, z, y, x), uint8, uint16 or float32 in [0, 1]; replaces the stages before."""
    require_chunks: bool = False
    """An absent chunk of the affinities given is an error, instead of the fill value."""
    segments: Path | None = None
    """zarr or TIFF labels; replaces the segmentation stages."""
    fragments: Path | None = None
    """fragments.zarr of a finished segmentation; read by `axonloom sweep` alone."""
    history: Path | None = None
    """history.arrow of the same segmentation; read by `axonloom sweep` alone."""


class RegionConfig(StrictModel):
    """A half-open box of voxels."""

    begin: tuple[int, int, int]
    """First voxel, z, y, x."""
    end: tuple[int, int, int]
    """First voxel beyond, z, y, x."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if min(self.begin) < 0 or any(b >= e for b, e in zip(self.begin, self.end, strict=True)):
            raise ValueError(f"expected 0 <= begin < end, got {self.begin} and {self.end}")
        return self

    @property
    def roi(self) -> Roi:
        """The box."""
        return Roi.between(self.begin, self.end)


class RegionsConfig(StrictModel):
    """Which part of the volume is learned from and which is scored."""

    train: RegionConfig | None = None
    """Training patches and the choice of thresholds use this box alone; default all."""
    score: RegionConfig | None = None
    """Only skeleton nodes in this box are scored; default all."""


class IngestConfig(StrictModel):
    """From the source to the working volume."""

    block: VoxelTriple = (128, 128, 128)
    """Block of the work, rounded up to whole chunks."""
    chunk: VoxelTriple = (64, 64, 64)
    """Chunk of every volume that the run writes."""
    levels: int = Field(2, ge=0, le=4)
    """Coarser levels of the image for viewers."""
    low_percentile: float = Field(1.0, ge=0, le=100)
    """Intensity that becomes 0 in the network's input, over the whole volume."""
    high_percentile: float = Field(99.9, ge=0, le=100)
    """Intensity that becomes 1."""
    mask_sigma: float | None = Field(4.0, gt=0)
    """Tissue mask: a tile counts if a 4x4x4 mean in it exceeds the median by this many standard
    errors; null turns the mask off."""
    mask_dilation_tiles: int = Field(1, ge=0)
    """The mask is grown by this many 32-voxel tiles."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low_percentile >= self.high_percentile:
            raise ValueError(
                f"low_percentile {self.low_percentile} must be below "
                f"high_percentile {self.high_percentile}"
            )
        return self


class TargetConfig(StrictModel):
    """What the network is trained on."""

    source: Literal["auto", "labels", "skeletons"] = "auto"
    """Dense labels, or tracings drawn as tubes; auto takes labels if they are given."""
    radius_nm: float | None = Field(None, gt=0)
    """Radius of the tubes; null takes each node's own."""
    min_radius_nm: float | None = Field(None, gt=0)
    """Nodes thinner than this are drawn with this radius; null: the shortest edge of a voxel."""
    shell_nm: float = Field(0.0, ge=0)
    """Voxels within this distance of a tube's surface are ignored: its border is uncertain."""
    background: Literal["near", "assumed"] = "assumed"
    """near: only voxels within neighbourhood_nm of a tracing are known to be background.
    assumed: all the rest is, which holds if every neurite was traced."""
    neighbourhood_nm: float = Field(10_000.0, gt=0)
    """See background."""


class SegmentConfig(StrictModel):
    """Watershed and agglomeration."""

    block: VoxelTriple = (128, 128, 128)
    """Block of the work; the result does not depend on it."""
    group: VoxelTriple = (1024, 1024, 1024)
    """What one step of agglomeration holds, rounded up to whole blocks; larger volumes are done by
    a tree of groups. The result does not depend on it."""
    tune: bool = True
    """Choose low, high and threshold by normalized ERL on the training region, if there are
    tracings; the values below are then only the fall-back."""
    low: float = Field(0.5, gt=0, le=1)
    """Voxels without an affinity of at least this are background."""
    high: float = Field(0.95, gt=0, le=1)
    """Affinities of at least this are joined first."""
    thresholds: tuple[float, ...] = (0.5,)
    """Agglomerate while the mean affinity is at least this; the first one makes the segments."""
    engine: Literal["exact", "waterz"] = "exact"
    """exact: any size, one history for all thresholds. waterz: the whole volume in one process,
    the thresholds given alone, no history."""
    scoring: Scoring = "mean"
    """Score of an edge; quantiles need the engine waterz."""
    min_voxels: int = Field(0, ge=0)
    """Segments with fewer voxels in the whole volume become background."""
    tune_max_voxels: int = Field(2**27, gt=0)
    """The part of the training region used for tuning is cut to this size."""

    @field_validator("thresholds")
    @classmethod
    def _in_range(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values or not all(0 <= v <= 1 for v in values):
            raise ValueError(f"expected one or more thresholds in [0, 1], got {values}")
        return tuple(abs(v) for v in values)  # -0.0 names the same file as 0.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        if self.engine == "exact" and self.scoring != "mean":
            raise ValueError(f"scoring {self.scoring} needs engine: waterz")
        return self


class SkeletonizeConfig(StrictModel):
    """Centre lines of the segments."""

    block: VoxelTriple = (128, 128, 128)
    """Block of the work."""
    method: SkeletonSettings = SkeletonSettings()
    """Parameters of the method."""


class EvaluateConfig(StrictModel):
    """Scores against tracings."""

    repair: bool = True
    """Close gaps between nodes of equal label before counting."""
    max_gap_nm: float | None = Field(None, gt=0)
    """Longest gap that is closed; null closes any."""
    merge_min_nodes: int = Field(1, ge=1)
    """A label is on a skeleton if at least this many of its nodes carry it."""
    merge_min_nm: float = Field(0.0, ge=0)
    """and if it covers at least this cable."""
    out_of_bounds: Literal["zero", "drop", "raise"] = "zero"
    """What happens to nodes outside the volume."""
    baseline: bool = True
    """Score threshold + connected components of the image beside the segmentation."""
    baseline_threshold: float | None = None
    """Image value of the baseline; null chooses it on the training region by normalized ERL."""


class SweepConfig(StrictModel):
    """Scores over agglomeration thresholds; used by `axonloom sweep`."""

    thresholds: tuple[float, ...] | None = None
    """In [0, 1]; null takes 21 from the lower end of the merge history to 1."""

    @field_validator("thresholds")
    @classmethod
    def _in_range(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if values is None:
            return None
        if not values or not all(0 <= v <= 1 for v in values):
            raise ValueError(f"expected one or more thresholds in [0, 1], got {values}")
        return tuple(sorted(set(values)))


class ProofreadConfig(StrictModel):
    """Files for the viewer."""

    levels: int = Field(2, ge=0, le=4)
    """Coarser levels of the precomputed segmentation."""
    swc_unit: Literal["um", "nm"] = "um"
    """Unit of the SWC files."""


class ExecutionConfig(StrictModel):
    """Where blocks run. Nothing here changes a result."""

    kind: Literal["serial", "local", "address"] = "local"
    """serial: in this process. local: a cluster of processes. address: a scheduler that runs."""
    workers: int = Field(2, ge=1)
    """Processes of a local cluster."""
    address: str | None = None
    """Of a running Dask scheduler, as tcp://host:8786."""
    tries: int = Field(3, ge=1)
    """How often a block is tried when its error may pass."""

    @model_validator(mode="after")
    def _addressed(self) -> Self:
        if (self.kind == "address") != (self.address is not None):
            raise ValueError("kind: address and an address go together")
        return self


class PhantomConfig(StrictModel):
    """A synthetic volume to try things on."""

    shape: VoxelTriple = (128, 256, 256)
    """Voxels, z, y, x; at least 16 each."""
    voxel_size_nm: NmTriple = (1000.0, 400.0, 400.0)
    """z, y, x."""
    neurons: int = Field(12, ge=0)
    """Number of neurons."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Equal seeds give equal voxels."""
    brightness: float = Field(1.0, gt=0)
    """Brightness of the neurites, over that of an ordinary light-sheet recording."""
    dimmest: float = Field(0.25, ge=0, le=1)
    """Brightness of the dimmest stretches of a neuron, in its brightest."""


class RunConfig(StrictModel):
    """Everything about one run."""

    name: str = "run"
    """Heading of the report."""
    run_dir: Path = Path("runs/run")
    """Where everything is written."""
    input: InputConfig = InputConfig()
    phantom: PhantomConfig | None = None
    """Makes a phantom; used by `axonloom phantom` and `axonloom demo`."""
    regions: RegionsConfig = RegionsConfig()
    ingest: IngestConfig = IngestConfig()
    targets: TargetConfig = TargetConfig()
    network: NetworkSettings = NetworkSettings()
    train: TrainSettings = TrainSettings()
    predict: PredictSettings = PredictSettings()
    predict_block: VoxelTriple = (128, 128, 128)
    """Block of the predict stage, rounded up to whole tiles and chunks."""
    segment: SegmentConfig = SegmentConfig()
    skeletonize: SkeletonizeConfig = SkeletonizeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    sweep: SweepConfig = SweepConfig()
    proofread: ProofreadConfig = ProofreadConfig()
    execution: ExecutionConfig = ExecutionConfig()

    @property
    def chunk(self) -> Triple:
        """Chunk of every final volume."""
        return self.ingest.chunk


def parse_config(values: Any, source: str = "configuration") -> RunConfig:
    """A checked configuration from plain values.

    Raises:
        ConfigError: an unknown key, a wrong type or a contradiction; every one is named.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected a mapping of settings, got {type(values).__name__}")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}:\n{_explain(error)}") from error


_INPUT_PATHS = (
    "image", "labels", "skeletons", "checkpoint", "affinities", "segments", "fragments", "history",
)  # fmt: skip


def load_config(path: Path) -> RunConfig:
    """Read a YAML configuration; input paths become absolute.

    Raises:
        ConfigError: missing file, no YAML, or as `parse_config`.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    values = _expand(values)
    if isinstance(values, dict) and isinstance(values.get("input"), dict):
        base = path.resolve().parent
        for name in _INPUT_PATHS:
            if isinstance(values["input"].get(name), str):
                values["input"][name] = str((base / values["input"][name]).resolve())
    return parse_config(values, str(path))


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved configuration: every field, every default."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {where}: unknown key")
        else:
            lines.append(f"  {where}: {problem['msg']} (got {problem['input']!r})")
    return "\n".join(lines)


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _expand(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item) for item in value]
    if isinstance(value, str):
        return _VARIABLE.sub(_variable, value)
    return value


def _variable(match: re.Match[str]) -> str:
    name, default = match.group(1), match.group(2)
    found = os.environ.get(name, default)
    if found is None:
        raise ConfigError(f"the environment variable {name} is not set and has no default")
    return found
