"""The configuration of a run: read once from YAML, checked, frozen.

Unknown keys are refused. Lengths are nanometres or voxels as each field's name says; triples are
z, y, x. Paths of what is read are relative to the configuration file, `run_dir` to the current
folder; `${NAME:-default}` in a path is replaced from the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.arrays.skeleton_settings import SkeletonSettings
from pipeline.arrays.waterz_process import Scoring
from pipeline.errors import ConfigError
from pipeline.geometry import Roi, Triple
from pipeline.learning.loss_settings import AnyLoss, compared_losses
from pipeline.learning.settings import NetworkSettings, PredictSettings, TrainSettings
from pipeline.settings import NmTriple, StrictModel, VoxelTriple
from pipeline.storage.atomic import write_text

Axis = Literal["z", "y", "x"]
Fraction = Field(ge=0, le=1)
# Beyond it a float64 cannot tell a voxel from the next.
Shift = Annotated[float, Field(ge=-(2.0**52), le=2.0**52)]


class SwcConfig(StrictModel):
    """How the coordinates of SWC files map to the volume."""

    axes: Literal["xyz", "xzy", "yxz", "yzx", "zxy", "zyx"] = "xyz"
    """Order of the coordinate columns; the standard is xyz."""
    unit: Literal["voxel", "um", "nm"] = "voxel"
    """Unit of the coordinates and radii."""
    offset: tuple[Shift, Shift, Shift] = (0.0, 0.0, 0.0)
    """Added to the coordinates after conversion to voxels; z, y, x."""
    flip: tuple[Axis, ...] = ()
    """Axes along which the tracing runs backwards: index becomes size - 1 - index."""


class InputConfig(StrictModel):
    """What the run starts from. Stages whose output is given here are not run.

    Images, labels and segments may be arrays of an .npz file: volume.npz/gray. Such an array is
    kept in memory.
    """

    image: Path | None = None
    """TIFF file, folder of TIFF planes, zarr (array or OME-NGFF), or array of an .npz file."""
    voxel_size_nm: NmTriple | None = None
    """Size of a voxel, z, y, x; needed unless the image's metadata say it."""
    labels: Path | None = None
    """Dense instance labels to train on and score against: integers, 0 is background, shape of
    the image."""
    skeletons: Path | None = None
    """Tracings to train on or score against: an SWC file, a folder of them, or a zip; or
    precomputed skeletons, which are in nanometres whatever `swc.unit` says."""
    swc: SwcConfig = SwcConfig()
    """How the tracings' coordinates map to the volume."""
    training_runs: tuple[Path, ...] = ()
    """Folders of other runs that are trained on as well: image, statistics and targets of each, in
    its own regions.train, normalised by its own percentiles. Prepare one with
    `axonloom run ITS_CONFIG --until targets`."""
    checkpoint: Path | None = None
    """Folder of a trained network; replaces the train stage."""
    start_from: Path | None = None
    """Folder of a trained network of the same kind, whose weights training begins with."""
    affinities: Path | None = None
    """zarr (3, z, y, x), uint8, uint16 or float32 in [0, 1]; replaces the stages before."""
    require_chunks: bool = False
    """An absent chunk of the affinities given is an error, instead of the fill value."""
    segments: Path | None = None
    """Labels as zarr, TIFF or array of an .npz file; replaces the segmentation stages."""
    fragments: Path | None = None
    """fragments.zarr of a finished segmentation; read by `axonloom sweep` alone."""
    history: Path | None = None
    """history.arrow of the same segmentation; read by `axonloom sweep` alone."""

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        if self.checkpoint is not None and self.start_from is not None:
            raise ValueError("checkpoint replaces training, start_from begins one: give one")
        return self


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
    """Training patches come from this box alone; default all."""
    validation: RegionConfig | None = None
    """Thresholds are chosen on this box alone; default the box of train."""
    score: RegionConfig | None = None
    """Only nodes of tracings and labelled voxels in this box are scored; default all."""


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
    """Radius of the tubes; null takes each node's own. This and what follows as far as
    sampled_seed is for tracings alone."""
    min_radius_nm: float | None = Field(None, gt=0)
    """Nodes thinner than this are drawn with this radius; null: the shortest edge of a voxel."""
    shell_nm: float = Field(0.0, ge=0)
    """Voxels within this distance of a tube's surface are ignored: its border is uncertain."""
    grow_nm: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Tubes grow into the bright voxels connected to them, as far as this from their surface; 0
    leaves them as drawn. The shell is then around what has grown too."""
    grow_fraction: float | None = Field(None, ge=0, le=1)
    """Bright is what exceeds the volume's median by this fraction of what the image along the
    tracing's axis does, and its noise; null is 0.5."""
    grow_threshold: float | None = Field(None, allow_inf_nan=False)
    """Bright is an image value of at least this; replaces grow_fraction."""
    background: Literal["near", "assumed", "sampled"] = "assumed"
    """near: only voxels within neighbourhood_nm of a tracing are known to be background.
    assumed: all the rest is, which holds if every neurite was traced.
    sampled: as near, and a random share of all tiles of 16x16x16 voxels is assumed to be
    background where no tracing is near; what lies in no such tile is ignored."""
    neighbourhood_nm: float = Field(10_000.0, gt=0)
    """See background."""
    sampled_share: float = Field(0.1, ge=0, le=1)
    """Share of the tiles, for background: sampled."""
    sampled_seed: int = Field(0, ge=0, lt=2**63)
    """Another seed samples other tiles."""
    ignore_labels: tuple[int, ...] = ()
    """Values of dense labels of which nothing is known, such as 0 where only a part is labelled;
    negative ones too. 2**64 - 1 is never known."""
    background_labels: tuple[int, ...] = ()
    """Values of dense labels that are background, besides 0. All others are instances; a class of
    many neurites serves as one as long as no two of them touch."""
    plane_components: bool = False
    """Values of dense labels are classes, and every plane is an image of its own: the pieces of a
    class in a plane (4 neighbours) are the instances."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        both = sorted(set(self.ignore_labels) & set(self.background_labels))
        if both:
            raise ValueError(
                f"ignore_labels and background_labels both name {both}: a value is one or the other"
            )
        if self.grow_fraction is not None and self.grow_threshold is not None:
            raise ValueError("grow_fraction and grow_threshold exclude each other: choose one")
        for name in ("grow_fraction", "grow_threshold"):
            if getattr(self, name) is not None and not self.grow_nm:
                raise ValueError(f"{name} is set, but nothing grows: set grow_nm too")
        return self


class SegmentConfig(StrictModel):
    """Watershed and agglomeration."""

    block: VoxelTriple = (128, 128, 128)
    """Block of the work; the result does not depend on it."""
    group: VoxelTriple = (1024, 1024, 1024)
    """What one step of agglomeration holds, rounded up to whole blocks; larger volumes are done by
    a tree of groups. The result does not depend on it."""
    tune: bool = True
    """Choose low, high and threshold on the validation region: by normalized ERL if there are
    tracings, else by VOI if there are dense labels. The values below are for runs with neither."""
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
    """The part of the validation region used for tuning is cut to this size."""

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

    PATHS: ClassVar[tuple[str, ...]] = ("lookup", "soma_mask")
    """Names of the fields that are paths."""

    block: VoxelTriple = (128, 128, 128)
    """Block of the work."""
    method: SkeletonSettings = SkeletonSettings()
    """Parameters of the method."""
    lookup: Path | None = None
    """A table of fragments and segments; `input.segments` then holds fragments."""
    lookup_missing: Literal["keep", "zero", "raise"] = "keep"
    """What becomes of a fragment that the lookup does not name: it keeps its id, goes, or ends."""
    level: Literal["segments", "fragments"] = "segments"
    """fragments: traced once, and fused by the lookup: another one costs no look at a voxel. Each
    fragment should be connected, as those of this project are: a pair is tied in one place."""
    soma_mask: Path | None = None
    """A volume of the same shape: where it is not 0 is soma, of which one node is left."""
    cross_sections: bool = False
    """Whether to measure the area of the cross-section at each node."""
    section_context: int = Field(16, ge=1)
    """Voxels beyond a block that are read for cross-sections: one that is larger is unknown."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lookup is None and self.lookup_missing != "keep":
            raise ValueError(f"lookup_missing: {self.lookup_missing} has no effect without lookup")
        if self.level == "fragments" and self.lookup is None:
            raise ValueError("level: fragments needs a lookup that says which fragments to fuse")
        if self.level == "fragments" and (self.cross_sections or self.soma_mask is not None):
            raise ValueError("cross_sections and soma_mask need level: segments")
        if self.level == "fragments" and self.method.min_voxels:
            raise ValueError(
                "method.min_voxels has no effect with level: fragments, where the smallest may tie "
                "two others; method.dust_nm removes what is short in the end"
            )
        return self


class EvaluateConfig(StrictModel):
    """Scores against tracings and dense labels."""

    PATHS: ClassVar[tuple[str, ...]] = ("compare_segments", "lookup", "exclude_ids")
    """Names of the fields that are paths."""

    compare_segments: Path | None = None
    """Another segmentation of the same volume, scored beside this one against the labels."""
    block: VoxelTriple = (512, 512, 512)
    """Block in which labels are read at the nodes, rounded up to whole chunks of the segments. The
    result does not depend on it."""
    lookup: Path | None = None
    """Fragment to segment, applied to the labels of input.segments in all scores: a lookup of
    `axonloom segment`, csv, parquet, npz or JSON."""
    lookup_missing: Literal["keep", "zero", "raise"] = "keep"
    """A label that the lookup does not name stays as it is, becomes background, or is an error;
    how many there are is told in the scores. Lookups of `axonloom segment` hold no label that
    stays."""
    exclude_ids: Path | None = None
    """Segments that count as background in all scores: a text file, one id a line."""
    curves: bool = True
    """Score over merge tolerances and largest gaps as well: at most 26 times as long."""
    bootstrap: int = Field(2000, ge=0)
    """Resamples of the neurons for the intervals of the scores; 0: none."""
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
    """Image value of the baseline; null chooses it on the validation region by normalized ERL."""

    @field_validator("bootstrap")
    @classmethod
    def _enough_or_none(cls, value: int) -> int:
        if 0 < value < 39:
            raise ValueError(f"a 95 % interval needs 39 resamples or more, got {value}; 0: none")
        return value


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


class ComparisonConfig(StrictModel):
    """Losses side by side; used by `axonloom compare-losses`.

    The network, its data and the steps of both phases are those of `network`, `train` and
    `regions`: each seed is pretrained once with `train.loss.pretrain`, and from there every loss
    is fine-tuned for `train.finetune_steps`. All get the same number of steps, also those whose
    authors fine-tune for a share of the pretraining (`context`: 5 %): what is compared are losses,
    not budgets. So the last network of each training is scored, and each training is one process:
    `train.loss.finetune`, `train.validate_every_steps` and `train.processes` are not used.
    """

    losses: dict[str, AnyLoss] = Field(default_factory=compared_losses)
    """Name of a row, and its loss: a name, or a mapping of name and parameters."""
    baseline: str = "ce_dice"
    """The row that the others are tested against."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights, patches and augmentation; every loss gets the same patches."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak rate of fine-tuning; null: half of train.learning_rate."""
    closing_radii_vox: tuple[int, ...] = (1, 2)
    """Radii of binary closings of the baseline, a row each."""
    window: VoxelTriple = (64, 64, 64)
    """Windows over which Betti errors are means, and which are the cases of the test in three
    dimensions; in two dimensions each plane is a case, and its z is not used."""
    cost_steps: int = Field(6, ge=1)
    """Steps that time and memory of each loss are measured on."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.baseline not in self.losses:
            raise ValueError(
                f"baseline {self.baseline!r} is none of the losses {', '.join(self.losses)}"
            )
        for name in self.losses:
            # A row names a folder.
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name == "pretrained":
                raise ValueError(
                    f"{name!r} cannot name a row: use letters, digits, '_', '-' and '.', begin "
                    "with one of the first three, and do not use 'pretrained'"
                )
        for field, least in (("seeds", 0), ("closing_radii_vox", 1)):
            values = getattr(self, field)
            known = all(least <= value < 2**31 for value in values)
            if len(set(values)) < len(values) or not known:
                raise ValueError(
                    f"{field}: expected different numbers from {least} to 2**31 - 1, got {values}"
                )
        if not self.seeds:
            raise ValueError("seeds: expected at least one")
        return self


class ProofreadConfig(StrictModel):
    """Files for the viewer."""

    levels: int = Field(2, ge=0, le=4)
    """Coarser levels of the precomputed segmentation."""
    swc: bool = True
    """Whether to write an SWC file a segment."""
    swc_unit: Literal["um", "nm"] = "um"
    """Unit of the SWC files."""
    sharded: Literal["auto", "yes", "no"] = "auto"
    """Whether precomputed skeletons lie in few large files; auto: from 10,000 segments on."""


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
    comparison: ComparisonConfig = ComparisonConfig()
    proofread: ProofreadConfig = ProofreadConfig()
    execution: ExecutionConfig = ExecutionConfig()

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        # A run on a phantom gets its labels later.
        known = self.input.labels is not None or self.phantom is not None
        if self.evaluate.compare_segments is not None and not known:
            raise ValueError("evaluate.compare_segments needs input.labels to score both against")
        if self.evaluate.lookup is not None and self.input.segments is None:
            raise ValueError("evaluate.lookup belongs to a segmentation given as input.segments")
        # Saved configurations name every field, so the default cannot be refused.
        if self.evaluate.lookup_missing != "keep" and self.evaluate.lookup is None:
            raise ValueError(
                f"evaluate.lookup_missing: {self.evaluate.lookup_missing} has no effect without "
                "evaluate.lookup; name a lookup, or leave lookup_missing out"
            )
        return self

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
    "image", "labels", "skeletons", "checkpoint", "start_from", "affinities", "segments",
    "fragments", "history",
    "training_runs",
)  # fmt: skip


def load_config(path: Path) -> RunConfig:
    """Read a YAML configuration; paths of what is read become absolute.

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
    if isinstance(values, dict):
        _make_absolute(values.get("input"), _INPUT_PATHS, path.resolve().parent)
        _make_absolute(values.get("evaluate"), EvaluateConfig.PATHS, path.resolve().parent)
        _make_absolute(values.get("skeletonize"), SkeletonizeConfig.PATHS, path.resolve().parent)
    return parse_config(values, str(path))


def _make_absolute(section: Any, names: Sequence[str], base: Path) -> None:
    """Turn the paths of a section, where they are given, into absolute ones."""
    if not isinstance(section, dict):
        return
    for name in names:
        given = section.get(name)
        if isinstance(given, str):
            section[name] = str((base / given).resolve())
        elif isinstance(given, list):
            section[name] = [str((base / g).resolve()) if isinstance(g, str) else g for g in given]


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved configuration: every field, every default."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {where}: unknown key")
        elif problem["type"] == "value_error":
            # A check of ours, which says what it got; pydantic would print a whole section.
            lines.append(f"  {where}: {problem['ctx']['error']}")
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
