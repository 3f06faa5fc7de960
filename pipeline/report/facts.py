"""What a run report is made from: plain data, every part optional."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.skeleton import Skeleton
from pipeline.geometry import Roi, Triple
from pipeline.report.projections import ProjectionGrid

Pictures = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""The projections of one volume along z (y, x), y (z, x) and x (z, y)."""


Scope = Literal["run", "evaluation", "skeletons"]
"""What was done: a whole run, a given segmentation scored, or its skeletons made."""

Numbers = Sequence[float] | NDArray[Any]
"""A row of numbers, as a list or as an array of one axis."""


@dataclass(frozen=True)
class InputFacts:
    """The volume that was reconstructed.

    Attributes:
        path: as the user gave it.
        shape: voxels, z, y, x.
        dtype: name of the data type.
        voxel_size_nm: z, y, x.
    """

    path: str
    shape: Triple
    dtype: str
    voxel_size_nm: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class LineSet:
    """Skeletons as straight lines.

    Attributes:
        ends: (E, 2, 3) float64, both ends of each edge, z, y, x in voxels.
        ids: (E,) uint64, the segment of each edge; None where they have none (tracings).
    """

    ends: NDArray[np.float64]
    ids: NDArray[np.uint64] | None = None

    @classmethod
    def of(cls, skeletons: Sequence[Skeleton], ids: Sequence[int] | None = None) -> LineSet:
        """The edges of `skeletons`; `ids` names the segment of each."""
        ends = [s.nodes[s.edges] for s in skeletons]
        counts = [len(e) for e in ends]
        names = None if ids is None else np.repeat(np.array(ids, np.uint64), counts)
        return cls(np.concatenate([np.zeros((0, 2, 3)), *ends]), names)


@dataclass(frozen=True, eq=False)
class ProjectionFacts:
    """Projections of the volume, and what is drawn over them.

    Attributes:
        grid: the pixels of the pictures.
        image: of any numeric type.
        affinities: strengths between 0 and `affinity_max`.
        affinity_max: the stored value that stands for 1: 255, or 65535 for uint16 affinities.
        segments: labels, 0 is background.
        skeletons: of the segments.
        tracings: the truth.
        regions: named boxes to outline, such as "scored" and "trained".
    """

    grid: ProjectionGrid
    image: Pictures | None = None
    affinities: Pictures | None = None
    affinity_max: int = 255
    segments: Pictures | None = None
    skeletons: LineSet | None = None
    tracings: LineSet | None = None
    regions: Mapping[str, Sequence[Roi]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TrainingPhase:
    """Curves of one training phase.

    Attributes:
        name: such as "pretrain" or "supervoxel loss".
        steps: (S,) step numbers, rising; they may start again in each phase.
        terms: name of a loss term to its (S,) values.
        learning_rate: (S,), or None.
    """

    name: str
    steps: Numbers
    terms: Mapping[str, Numbers]
    learning_rate: Numbers | None = None


@dataclass(frozen=True, eq=False)
class StageFacts:
    """How one stage went: counts of blocks, and times.

    Attributes:
        voxels: processed by this run, for the rate; None where it has no meaning.
        block_seconds: of the blocks that this run computed.
    """

    name: str
    total: int
    done: int = 0
    empty: int = 0
    masked: int = 0
    failed: int = 0
    wall_seconds: float | None = None
    voxels: int | None = None
    block_seconds: Numbers = ()

    @property
    def missing(self) -> int:
        """Blocks without a final state."""
        return self.total - self.done - self.empty - self.masked - self.failed


@dataclass(frozen=True)
class LevelFacts:
    """One level of the tree of block groups that agglomeration goes through.

    Attributes:
        level: 0 is that of the finest groups.
        groups: how many there are.
        rows: of the region graph, that the groups had to decide on together.
        rows_up: those of them that they had to leave to the next level.
        merges: that they made.
        largest: rows of the largest group: what a worker holds at most.
    """

    level: int
    groups: int
    rows: int
    rows_up: int
    merges: int
    largest: int

    @property
    def share_up(self) -> float:
        """Share of the rows that moved up, in [0, 1]."""
        return self.rows_up / self.rows if self.rows else 0.0


@dataclass(frozen=True, eq=False)
class ScoreFacts:
    """Scores against tracings, of this run and of the plain baseline.

    Attributes:
        run, baseline: the metrics, with the keys `overall`, `per_skeleton` and `conventions` of
            metrics.json. Values may be None.
        run_intervals, baseline_intervals: key of a metric to the bounds of its 95 % interval.
        scored_on, trained_on: which data, in words.
        renamed: what became of the labels before they were scored, in words; empty: nothing.
    """

    run: Mapping[str, Any]
    baseline: Mapping[str, Any] | None = None
    baseline_name: str = "plain baseline"
    run_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    baseline_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    scored_on: str = ""
    trained_on: str = ""
    renamed: Sequence[str] = ()


@dataclass(frozen=True)
class SiteRow:
    """One place where a segmentation is wrong.

    Attributes:
        number: its rank by the cable that is lost, from 1.
        kind: "split", "merge" or "omission", with what is special about it.
        tracings: that it lies on, one or two.
        labels: of the segments that end, or meet, there.
        position_vox: z, y, x.
        position_nm: z, y, x.
        gap_nm: of a split the gap, of a merge the distance of the tracings.
        cable_nm: that is lost by it.
    """

    number: int
    kind: str
    tracings: str
    labels: str
    position_vox: tuple[float, float, float]
    position_nm: tuple[float, float, float]
    gap_nm: float
    cable_nm: float


@dataclass(frozen=True)
class SiteFacts:
    """Where a segmentation is wrong.

    Attributes:
        rows: the first of all sites, the most cable first.
        counts: number of sites of each kind.
    """

    rows: Sequence[SiteRow]
    counts: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class LabelScoreFacts:
    """Scores against dense labels, of this run and of another segmentation.

    Attributes:
        run, reference: the measures, as `pipeline.arrays.contingency` names them. None: of the run
            where no voxel of the region has a label; of the reference where there is none.
        conventions: topic to text.
        scored_on: which data, in words.
    """

    run: Mapping[str, float] | None
    reference: Mapping[str, float] | None = None
    conventions: Mapping[str, str] = field(default_factory=dict)
    scored_on: str = ""


@dataclass(frozen=True, eq=False)
class ThresholdFacts:
    """How the agglomeration threshold was chosen.

    Attributes:
        thresholds: (T,) between 0 and 1.
        scores: name of a curve (such as "this run") to its (T,) scores; None is a gap.
        chosen: the threshold in use.
        metric: what the scores are.
        data: on which data they were measured.
    """

    thresholds: Numbers
    scores: Mapping[str, Sequence[float | None]]
    chosen: float | None = None
    metric: str = "normalized ERL"
    data: str = "training data"


@dataclass(frozen=True)
class SegmentRow:
    """One of the largest segments."""

    id: int
    voxels: int
    cable_nm: float | None = None
    branch_points: int | None = None


@dataclass(frozen=True, eq=False)
class SegmentFacts:
    """The segments: voxels of every one of them, and rows for the largest."""

    sizes: Numbers
    largest: Sequence[SegmentRow] = ()


@dataclass(frozen=True)
class SkeletonRow:
    """The skeleton of one of the segments with most cable."""

    id: int
    nodes: int
    cable_nm: float
    branch_points: int
    tips: int
    components: int
    loops: int
    largest_radius_nm: float


@dataclass(frozen=True, eq=False)
class SkeletonFacts:
    """The skeletons of the segments, and how they came about.

    Attributes:
        cable_nm: (S,) of every segment that has a skeleton.
        branch_points, tips, components, loops: of all of them together.
        longest: rows of those with most cable.
        traced: what tracing met, by the names of `BlockSkeletonReport`: sums over blocks.
        joined: what joining did, by the names of `JoinReport`; to fragments where `fused` is given.
        fused: what fusing did, by the names of `FuseReport`; None: segments were traced.
        warnings: what makes some of them doubtful, in full sentences.
        notes: what else was done to some of them, in full sentences.
    """

    cable_nm: Numbers
    branch_points: int = 0
    tips: int = 0
    components: int = 0
    loops: int = 0
    longest: Sequence[SkeletonRow] = ()
    traced: Mapping[str, float] = field(default_factory=dict)
    joined: Mapping[str, float] = field(default_factory=dict)
    fused: Mapping[str, float] | None = None
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class OutputFile:
    """A file or folder that the run wrote; `path` is relative to the report."""

    path: str
    what: str = ""
    size_bytes: int | None = None


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything that the report shows.

    Attributes:
        name: of the run.
        when: time stamp to print, as text.
        commands: purpose to command line: "made with", "resume", "view", "score"; in this order.
        versions: name of a program or library to its version.
        wall_seconds: of the whole run.
        neurons: how many neurons came out; the number of segments stands in where it is None.
        levels: of the agglomeration; none where one step held everything.
        curves: drawing (SVG) of the scores over merge tolerance and largest gap.
        sites: where the segmentation is wrong.
        foreground_share: (Z, Y, X) share of foreground in each block, NaN where not known.
        warnings: what seems wrong with the run, in full sentences.
        scope: what was done; what belongs to a whole run alone is left out of the others, instead
            of being said to be missing.
    """

    name: str
    when: str = ""
    source: InputFacts | None = None
    commands: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    wall_seconds: float | None = None
    neurons: int | None = None
    projections: ProjectionFacts | None = None
    training: Sequence[TrainingPhase] = ()
    stages: Sequence[StageFacts] = ()
    levels: Sequence[LevelFacts] = ()
    foreground_share: NDArray[np.float64] | None = None
    scores: ScoreFacts | None = None
    label_scores: LabelScoreFacts | None = None
    curves: bytes | None = None
    sites: SiteFacts | None = None
    threshold: ThresholdFacts | None = None
    segments: SegmentFacts | None = None
    skeletons: SkeletonFacts | None = None
    outputs: Sequence[OutputFile] = ()
    warnings: Sequence[str] = ()
    scope: Scope = "run"
