"""The table of stages, and which of them a configuration runs."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.config import RunConfig
from pipeline.stages.agglomerate import AGGLOMERATE
from pipeline.stages.base import Stage
from pipeline.stages.collect import COLLECT
from pipeline.stages.curves import CURVES
from pipeline.stages.edges import EDGES
from pipeline.stages.evaluate import BASELINE, EVALUATE, NODE_LABELS
from pipeline.stages.fragments import FRAGMENTS
from pipeline.stages.ingest import INGEST, PYRAMID, STATISTICS
from pipeline.stages.label_placement import LABEL_PLACEMENT
from pipeline.stages.label_scores import LABEL_OVERLAP, LABEL_SCORES, REFERENCE_OVERLAP
from pipeline.stages.placement import PLACEMENT
from pipeline.stages.predict import PREDICT
from pipeline.stages.project import PROJECT
from pipeline.stages.proofread import EXPORT, PROOFREAD
from pipeline.stages.relabel import RELABEL
from pipeline.stages.sites import SITES
from pipeline.stages.skeleton_files import SKELETON_FILES
from pipeline.stages.skeleton_fuse import FRAGMENT_JOIN, FUSE, SCATTER, SCATTER_INDEX
from pipeline.stages.skeleton_join import JOIN
from pipeline.stages.skeletonize import SKELETON_INDEX, SKELETONIZE
from pipeline.stages.stitch import STITCH
from pipeline.stages.targets import TARGETS
from pipeline.stages.train import TRAIN
from pipeline.stages.tune import TUNE


def _has_image(config: RunConfig) -> bool:
    return config.input.image is not None


def _places(config: RunConfig) -> bool:
    return _has_image(config) and config.input.skeletons is not None


def _trains(config: RunConfig) -> bool:
    given = config.input
    return (
        _has_image(config)
        and given.checkpoint is None
        and given.affinities is None
        and given.segments is None
        and (given.labels is not None or given.skeletons is not None)
    )


def _predicts(config: RunConfig) -> bool:
    given = config.input
    absent = given.affinities is None and given.segments is None
    return _has_image(config) and absent and (given.checkpoint is not None or _trains(config))


def _segments(config: RunConfig) -> bool:
    given = config.input
    return given.segments is None and (given.affinities is not None or _predicts(config))


def _labelled(config: RunConfig) -> bool:
    return config.input.segments is not None or _segments(config)


def _fuses(config: RunConfig) -> bool:
    return _labelled(config) and config.skeletonize.level == "fragments"


def _joins_segments(config: RunConfig) -> bool:
    return _labelled(config) and not _fuses(config)


def _scores(config: RunConfig) -> bool:
    return _labelled(config) and config.input.skeletons is not None


def _draws_curves(config: RunConfig) -> bool:
    return _scores(config) and config.evaluate.curves


def _given_and_scored(config: RunConfig) -> bool:
    return _scores(config) and config.input.segments is not None


def _scores_labels(config: RunConfig) -> bool:
    return _labelled(config) and config.input.labels is not None


def _compares(config: RunConfig) -> bool:
    return _scores_labels(config) and config.evaluate.compare_segments is not None


def _tunes(config: RunConfig) -> bool:
    known = config.input.skeletons is not None or config.input.labels is not None
    return _segments(config) and config.segment.tune and known


def _baselines(config: RunConfig) -> bool:
    return _scores(config) and _has_image(config) and config.evaluate.baseline


_TABLE: tuple[tuple[Stage, Callable[[RunConfig], bool]], ...] = (
    (INGEST, _has_image),
    (STATISTICS, _has_image),
    (PYRAMID, _has_image),
    (PLACEMENT, _places),
    (TARGETS, _trains),
    (TRAIN, _trains),
    (PREDICT, _predicts),
    (TUNE, _tunes),
    (FRAGMENTS, _segments),
    (STITCH, _segments),
    (EDGES, _segments),
    (AGGLOMERATE, _segments),
    (COLLECT, _segments),
    (RELABEL, _segments),
    (SKELETONIZE, _labelled),
    (SKELETON_INDEX, _labelled),
    (JOIN, _joins_segments),
    (FRAGMENT_JOIN, _fuses),
    (SCATTER, _fuses),
    (SCATTER_INDEX, _fuses),
    (FUSE, _fuses),
    (NODE_LABELS, _scores),
    (LABEL_PLACEMENT, _given_and_scored),
    (BASELINE, _baselines),
    (LABEL_OVERLAP, _scores_labels),
    (REFERENCE_OVERLAP, _compares),
    (LABEL_SCORES, _scores_labels),
    (EVALUATE, _scores),
    (SITES, _scores),
    (CURVES, _draws_curves),
    (EXPORT, _labelled),
    (SKELETON_FILES, _labelled),
    (PROOFREAD, _labelled),
    (PROJECT, _labelled),
)

STAGES: tuple[Stage, ...] = tuple(stage for stage, _ in _TABLE)


def plan(config: RunConfig) -> tuple[Stage, ...]:
    """The stages that the configuration's inputs allow, producers first."""
    return tuple(stage for stage, wanted in _TABLE if wanted(config))
