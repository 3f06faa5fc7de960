"""Sites: where the segmentation went wrong, as a table, as layers for a viewer, and as SWC."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.arrays.error_sites import find_sites, moved_sites
from pipeline.geometry import Block, triple
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.run import Run
from pipeline.stages.tracing_scores import scoring_parameters, tracing_scores
from pipeline.stages.truth import check_truth
from pipeline.storage.annotations import write_site_layers
from pipeline.storage.site_files import write_site_swc, write_sites
from pipeline.storage.source import source_offset


def _sites(_block: Block, run: Run) -> BlockResult:
    found, size = tracing_scores(run), run.voxel_size_nm
    sites = find_sites(found.truth, found.forests, found.scores, size)
    # Where the format of the volume says that its first voxel lies elsewhere, so do its sites.
    begin = source_offset(run.source)
    sites = moved_sites(sites, begin, size)
    truth = [replace(s, nodes=s.nodes + np.asarray(begin, np.float64)) for s in found.truth]
    ends = triple([first + n for first, n in zip(begin, run.shape, strict=True)])
    write_site_layers(run.path("site_layers"), sites, ends, size)
    write_site_swc(run.path("site_swc"), sites, truth, found.forests, found.scores, size)
    write_sites(run.path("sites"), sites)
    return BlockResult(stats={"sites": len(sites)})


SITES = Stage(
    name="sites",
    version=2,
    reads=("node_labels", "source_skeletons"),
    optional=("source_lookup", "source_excluded"),
    writes=("sites", "site_swc", "site_layers"),
    parameters=scoring_parameters,
    grid=one_block,
    check=check_truth,
    process=_sites,
)
