"""Sites: where the segmentation went wrong, as a table, as layers for a viewer, and as SWC."""

from __future__ import annotations

from pipeline.arrays.error_sites import find_sites
from pipeline.arrays.metrics import score_forests
from pipeline.arrays.skeleton_forest import build_forest
from pipeline.geometry import Block
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.evaluate import scoring_parameters
from pipeline.stages.node_labels import by_tracing, gather_node_labels
from pipeline.stages.renaming import Renaming
from pipeline.stages.run import Run
from pipeline.stages.truth import check_truth, scored_truth, scoring_options
from pipeline.storage.annotations import write_site_layers
from pipeline.storage.site_files import write_site_swc, write_sites


def _sites(_block: Block, run: Run) -> BlockResult:
    truth, size = scored_truth(run), run.voxel_size_nm
    forests = [build_forest(skeleton, size) for skeleton in truth]
    labels = Renaming.of(run).apply(gather_node_labels("node_labels", run))
    scores = score_forests(forests, by_tracing(labels, run), size, scoring_options(run))
    sites = find_sites(truth, forests, scores, size)
    write_site_layers(run.path("site_layers"), sites, run.shape, size)
    write_site_swc(run.path("site_swc"), sites, truth, forests, scores, size)
    write_sites(run.path("sites"), sites)
    return BlockResult(stats={"sites": len(sites)})


SITES = Stage(
    name="sites",
    version=1,
    reads=("node_labels", "source_skeletons"),
    optional=("source_lookup", "source_excluded"),
    writes=("sites", "site_swc", "site_layers"),
    parameters=scoring_parameters,
    grid=one_block,
    check=check_truth,
    process=_sites,
)
