"""Curves: what the scores would be under other conventions, from the same labels at the nodes."""

from __future__ import annotations

from pipeline.arrays.metric_curves import metric_curves
from pipeline.arrays.skeleton_forest import build_forest
from pipeline.geometry import Block
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.evaluate import scoring_parameters
from pipeline.stages.node_labels import by_tracing, gather_node_labels
from pipeline.stages.renaming import Renaming
from pipeline.stages.run import Run
from pipeline.stages.truth import check_truth, scored_truth, scoring_options
from pipeline.storage.atomic import replacing, write_json, write_text


def _curves(_block: Block, run: Run) -> BlockResult:
    # Drawing costs a second to import: only the process that draws pays.
    from pipeline.report.metric_charts import curves_chart
    from pipeline.report.sweep_chart import as_png, as_svg

    size = run.voxel_size_nm
    forests = [build_forest(skeleton, size) for skeleton in scored_truth(run)]
    labels = Renaming.of(run).apply(gather_node_labels("node_labels", run))
    found = metric_curves(forests, by_tracing(labels, run), size, scoring_options(run))
    figure = curves_chart(found)
    with replacing(run.path("curves_picture")) as temporary:
        temporary.write_bytes(as_png(figure))
    write_text(run.path("curves_drawing"), as_svg(figure))
    write_json(run.path("curves"), found.as_json())
    return BlockResult(stats={"rows": len(found.rows)})


def _create(run: Run) -> None:
    for name in ("curves_picture", "curves_drawing"):
        write_text(run.path(name), "")
    write_json(run.path("curves"), {})


CURVES = Stage(
    name="curves",
    version=1,
    reads=("node_labels", "source_skeletons"),
    optional=("source_lookup", "source_excluded"),
    writes=("curves", "curves_picture", "curves_drawing"),
    parameters=scoring_parameters,
    grid=one_block,
    create=_create,
    check=check_truth,
    process=_curves,
)
