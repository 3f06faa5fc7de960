"""Curves: what the scores would be under other conventions, from the same labels at the nodes."""

from __future__ import annotations

from pipeline.arrays.metric_curves import metric_curves
from pipeline.geometry import Block
from pipeline.stages.base import BlockResult, Stage, one_block
from pipeline.stages.run import Run
from pipeline.stages.tracing_scores import scoring_parameters, tracing_scores
from pipeline.stages.truth import check_truth, scoring_options
from pipeline.storage.atomic import replacing, write_json, write_text


def _curves(_block: Block, run: Run) -> BlockResult:
    # Drawing costs a second to import: only the process that draws pays.
    from pipeline.report.metric_charts import curves_chart
    from pipeline.report.sweep_chart import as_png, as_svg

    scored = tracing_scores(run)
    found = metric_curves(scored.forests, scored.labels, run.voxel_size_nm, scoring_options(run))
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
