"""The Neuroglancer state of a run: image, segments with skeletons, truth, and sites of errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.error_sites import KINDS, OMISSION_SITE, Sites, moved_sites
from pipeline.geometry import triple
from pipeline.report.viewer import ImageLayer, SegmentLayer, Site, viewer_state
from pipeline.stages.ingest import statistics_of
from pipeline.stages.run import ARTIFACTS, Run
from pipeline.stages.skeleton_join import longest_segments, read_joined
from pipeline.storage.atomic import write_json
from pipeline.storage.precomputed_skeletons import write_skeletons
from pipeline.storage.site_files import read_sites
from pipeline.storage.source import source_offset

SHOWN = 30
SITES_SHOWN = 500


def write_viewer_state(run: Run) -> None:
    """Write the state; the truth, where there is one, becomes a layer of its own."""
    longest = longest_segments(run, SHOWN)
    first = read_joined(run, longest[:1])
    state = viewer_state(
        shape=run.shape,
        voxel_size_nm=run.voxel_size_nm,
        image=_image(run),
        segments=SegmentLayer(ARTIFACTS["precomputed"], segments=longest),
        truth=_truth(run),
        sites=_sites(run),
        position=_middle(first[longest[0]].nodes) if longest else None,
    )
    write_json(run.path("viewer_state"), state)


def _image(run: Run) -> ImageLayer | None:
    if run.config.input.image is None:
        return None
    statistics = statistics_of(run)
    return ImageLayer(ARTIFACTS["image"], limits=(statistics.low, statistics.high))


def _truth(run: Run) -> SegmentLayer | None:
    if run.config.input.skeletons is None:
        return None
    truth: dict[int, Any] = dict(enumerate(run.truth(), start=1))
    write_skeletons(run.path("truth_layer"), truth, run.voxel_size_nm)
    # Shown on demand: over the skeletons it would hide them.
    return SegmentLayer(
        ARTIFACTS["truth_layer"], segments=list(truth), name="tracings", visible=False
    )


def _sites(run: Run) -> list[Site]:
    """The errors that cost most cable, in that order; none where nothing was scored."""
    if run.config.input.skeletons is None or not run.path("sites").exists():
        return []
    # What is shown beside them was exported from the first voxel on.
    begin = triple([-first for first in source_offset(run.source)])
    sites = moved_sites(read_sites(run.path("sites")), begin, run.voxel_size_nm)
    return [_site(sites, i) for i in range(min(SITES_SHOWN, len(sites)))]


def _site(sites: Sites, i: int) -> Site:
    kind, lost = KINDS[sites.kind[i]], sites.cable_nm[i] / 1000
    is_line = sites.kind[i] != OMISSION_SITE
    begin = sites.end_a_vox[i] if is_line else sites.position_vox[i]
    labels = sorted({int(sites.label_a[i]), int(sites.label_b[i])} - {0})
    return Site(
        _position(begin),
        f"{i + 1}: {kind}, {lost:,.2f} um of cable lost",
        end=_position(sites.end_b_vox[i]) if is_line else None,
        segments=labels,
    )


def _position(place: NDArray[np.float64]) -> tuple[float, float, float]:
    z, y, x = (float(v) for v in place)
    return z, y, x


def _middle(nodes: NDArray[np.float64]) -> tuple[float, float, float]:
    """A node, because the middle of the box may be empty."""
    return _position(nodes[len(nodes) // 2])
