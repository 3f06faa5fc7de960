"""The command line: `axonloom COMMAND --help`.

Exit codes: 0 success; 1 a run began and failed; 2 the input or the configuration cannot be used,
nothing was computed; 130 interrupted.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from pipeline.config import EvaluateConfig, RunConfig, load_config, parse_config
from pipeline.errors import InputError, PipelineError, StageError

app = typer.Typer(
    name="axonloom",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="From light-microscopy volumes to neurons that a person can proofread, and their scores.",
)

INTERRUPTED = 130
Shape = tuple[int, int, int]
Size = tuple[float, float, float]

Out = Annotated[Path, typer.Option("--out", help="Folder for the output; made if absent.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Local worker processes; 2 by default.")
]
Serial = Annotated[bool, typer.Option("--serial", help="One process, no cluster.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace output of other parameters in --out.")
]
VoxelSize = Annotated[
    Size | None,
    typer.Option("--voxel-size", metavar="Z Y X", help="Nanometres; default: the metadata."),
]
BlockShape = Annotated[
    Shape | None, typer.Option("--block", metavar="Z Y X", help="Voxels of a block of work.")
]
Image = Annotated[Path, typer.Option("--image", help="TIFF, folder of TIFF planes, or zarr.")]
# How tracings are read and scored.
SwcAxes = Annotated[str, typer.Option("--axes", help="Order of the SWC columns.")]
SwcUnit = Annotated[str, typer.Option("--swc-unit", help="voxel, um or nm.")]
SwcOffset = Annotated[
    Size, typer.Option("--offset", metavar="Z Y X", help="Voxels added to the tracing.")
]
SwcFlip = Annotated[
    list[str] | None, typer.Option("--flip", help="Axis that runs backwards; repeatable.")
]
OutOfBounds = Annotated[str, typer.Option("--out-of-bounds", help="zero, drop, raise.")]
Repair = Annotated[bool, typer.Option("--repair/--no-repair", help="Close gaps first.")]
MaxGap = Annotated[
    float | None, typer.Option("--max-gap-nm", help="Longest gap that is closed; default any.")
]
MergeNodes = Annotated[
    int, typer.Option("--merge-min-nodes", min=1, help="Nodes that make a label count as a merge.")
]
MergeLength = Annotated[
    float, typer.Option("--merge-min-nm", min=0, help="Cable that makes a label count as a merge.")
]
Segmentation = Annotated[
    Path, typer.Option("--segmentation", help="Labels: zarr, OME-Zarr, precomputed or TIFF.")
]
Skeletons = Annotated[
    Path,
    typer.Option("--skeletons", help="SWC file, folder or zip; or precomputed skeletons."),
]


def main() -> None:
    """Run the command line; errors of the user become one message and an exit code."""
    try:
        app()
    except InputError as error:
        _fail(error, 2)
    except StageError as error:
        # Not `axonloom run config.yaml`: a command of a few stages would run all of them.
        _fail(f"{error}\nTo resume: {shlex.join(['axonloom', *sys.argv[1:]])}", 1)
    except PipelineError as error:
        _fail(error, 1)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer answers Ctrl+C itself, without a word
            Console(stderr=True).print("interrupted; run the same command again to go on")
        raise


def _fail(error: Exception | str, code: int) -> None:
    Console(stderr=True, soft_wrap=True, emoji=False).print(
        f"[red]error:[/red] {_escape(str(error))}"
    )
    sys.exit(code)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _config(out: Path, workers: int | None, serial: bool, **sections: Any) -> RunConfig:
    from flows.runs import with_workers

    values = {"name": out.resolve().name, "run_dir": out, **sections}
    return with_workers(parse_config(values, "command line"), workers, serial)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.resolve()


def _swc(axes: str, unit: str, offset: Size, flip: list[str] | None) -> dict[str, Any]:
    """The section input.swc: how tracings are read."""
    return {"axes": axes, "unit": unit, "offset": offset, "flip": tuple(flip or ())}


def _conventions(
    repair: bool,
    max_gap_nm: float | None,
    merge_min_nodes: int,
    merge_min_nm: float,
    out_of_bounds: str,
) -> dict[str, Any]:
    """The section evaluate: how tracings are scored."""
    return {
        "repair": repair,
        "max_gap_nm": max_gap_nm,
        "merge_min_nodes": merge_min_nodes,
        "merge_min_nm": merge_min_nm,
        "out_of_bounds": out_of_bounds,
    }


def _base(settings: Path | None, *sections: str, inputs: tuple[str, ...]) -> dict[str, Any]:
    """What a command keeps of a configuration file: these sections, and these of its inputs."""
    if settings is None:
        return {"input": {}}
    values = load_config(settings).model_dump()
    given = {name: values["input"][name] for name in inputs}
    return {**{name: values[name] for name in sections}, "input": given}


def _execute(
    config: RunConfig,
    only: tuple[str, ...] | None,
    *,
    overwrite: bool,
    order: str = "grid",
    seed: int = 0,
) -> Path:
    from flows.launch import launch
    from workers.runner import Order

    if order not in ("grid", "shuffled"):
        raise InputError(f"--order: expected grid or shuffled, got {order!r}")
    kind: Literal["grid", "shuffled"] = "shuffled" if order == "shuffled" else "grid"
    return launch(config, only, replace_output=overwrite, order=Order(kind, seed))


def _prepare_prefect() -> None:
    """Import prefect with what it logs kept off the terminal, where `main` tells of an error.

    It comes before anything that configures logging, because prefect then keeps its hands off it.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    import flows.reconstruct  # noqa: F401


def _reconstruct(config: RunConfig) -> Path:
    from flows.reconstruct import reconstruct

    try:
        return Path(reconstruct(config)).parent
    except StageError as error:
        # The flow has said how to resume; `main` would say it again.
        raise PipelineError(str(error)) from error


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/demo.yaml, or a run.")],
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Folder of the run, instead of the file's.")
    ] = None,
    workers: Workers = None,
    serial: Serial = False,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="STAGE", help="The last stage to run, such as targets."),
    ] = None,
    prefect: Annotated[
        bool, typer.Option("--prefect", help="Run as a Prefect flow (server or embedded).")
    ] = False,
) -> None:
    """Run every stage that the inputs allow; what is done is not computed again.

    Run the same command again after a crash or a changed parameter: it continues, and computes
    again what depends on the change and nothing else.
    """
    if prefect and until is not None:
        raise InputError("run: --until and --prefect exclude each other")
    if prefect:
        _prepare_prefect()
    from flows.demo import run_all
    from flows.launch import report_and_tell, tell
    from flows.runs import with_workers

    if config.is_dir():
        config = config / "config.yaml"
    settings = with_workers(load_config(config), workers, serial)
    if run_dir is None and config.name == "config.yaml" and (config.parent / "ledger").is_dir():
        # The configuration of a run lies in its folder, which may have been moved.
        run_dir = config.resolve().parent
    if run_dir is not None:
        settings = settings.model_copy(update={"run_dir": run_dir})
    if prefect:
        tell(_reconstruct(settings))
        return
    if until is not None:
        run_all(settings, until)
        return
    report_and_tell(run_all(settings))


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    workers: Workers = None,
    serial: Serial = False,
    config: Annotated[
        Path | None, typer.Option("--config", help="Another demo configuration.")
    ] = None,
) -> None:
    """Make a phantom and run everything on it: neurons, pictures and numbers in minutes."""
    from flows.demo import run_demo
    from flows.launch import report_and_tell

    report_and_tell(run_demo(out, workers, serial, config))


@app.command()
def phantom(
    out: Out,
    shape: Annotated[Shape, typer.Option("--shape", metavar="Z Y X", help="Voxels.")] = (
        128,
        256,
        256,
    ),
    neurons: Annotated[int, typer.Option("--neurons", min=0)] = 12,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    voxel_size: VoxelSize = None,
    block: BlockShape = None,
    workers: Workers = None,
    serial: Serial = False,
    overwrite: Overwrite = False,
) -> None:
    """Make a synthetic volume: image.zarr, labels.zarr and the true tracings in swc/."""
    from flows.demo import run_phantom

    spec = _given(shape=shape, neurons=neurons, seed=seed, voxel_size_nm=voxel_size)
    config = _config(out, workers, serial, phantom=spec, ingest=_given(block=block))
    run_phantom(config, replace_output=overwrite)


@app.command()
def ingest(
    image: Image,
    out: Out,
    voxel_size: VoxelSize = None,
    block: BlockShape = None,
    workers: Workers = None,
    serial: Serial = False,
    overwrite: Overwrite = False,
) -> None:
    """Copy an image to image.zarr, with pyramid, statistics and tissue mask."""
    given = _given(image=image.resolve(), voxel_size_nm=voxel_size)
    config = _config(out, workers, serial, input=given, ingest=_given(block=block))
    _execute(config, INGEST_STAGES, overwrite=overwrite)


INGEST_STAGES = ("ingest", "statistics", "pyramid")


@app.command()
def train(
    image: Image,
    out: Out,
    labels: Annotated[Path | None, typer.Option("--labels", help="Dense labels.")] = None,
    skeletons: Annotated[
        Path | None, typer.Option("--skeletons", help="SWC file, folder or zip.")
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="YAML whose sections (train, network, regions, ...) are used, and of its inputs "
            "swc, voxel_size_nm, training_runs and start_from.",
        ),
    ] = None,
    voxel_size: VoxelSize = None,
    workers: Workers = None,
    serial: Serial = False,
    overwrite: Overwrite = False,
) -> None:
    """Train the affinity network from dense labels or tracings; the result is OUT/checkpoint."""
    given = _given(
        image=image.resolve(),
        voxel_size_nm=voxel_size,
        labels=_absolute(labels),
        skeletons=_absolute(skeletons),
    )
    if labels is None and skeletons is None:
        raise InputError("train: give --labels or --skeletons to learn from")
    others = ("name", "run_dir", "input", "phantom")
    sections = [name for name in RunConfig.model_fields if name not in others]
    inputs = ("swc", "voxel_size_nm", "training_runs", "start_from")
    base = _base(settings, *sections, inputs=inputs)
    if settings is not None:
        # They belong to that file's image, and what is missing to its lookup.
        base["evaluate"] |= dict.fromkeys(EvaluateConfig.PATHS) | {"lookup_missing": "keep"}
    base["input"] |= given
    config = _config(out, workers, serial, **base)
    _execute(config, (*INGEST_STAGES, "placement", "targets", "train"), overwrite=overwrite)


@app.command()
def predict(
    image: Image,
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="Folder of a trained network.")],
    out: Out,
    voxel_size: VoxelSize = None,
    block: BlockShape = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="YAML whose sections ingest, network, predict and execution, predict_block and "
            "input.voxel_size_nm are used.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="auto, cpu or cuda [default: auto].")
    ] = None,
    workers: Workers = None,
    serial: Serial = False,
    overwrite: Overwrite = False,
) -> None:
    """Predict affinities blockwise into OUT/affinities.zarr."""
    given = _given(image=image.resolve(), checkpoint=checkpoint.resolve(), voxel_size_nm=voxel_size)
    sections = ("ingest", "network", "predict", "predict_block", "execution")
    base = _base(settings, *sections, inputs=("voxel_size_nm",))
    base["input"] |= given
    base["predict"] = {**base.get("predict", {}), **_given(device=device)}
    base |= _given(predict_block=block)
    config = _config(out, workers, serial, **base)
    _execute(config, (*INGEST_STAGES, "predict"), overwrite=overwrite)


@app.command()
def segment(
    affinities: Annotated[
        Path, typer.Option("--affinities", help="zarr (3, z, y, x): uint8, uint16 or float32.")
    ],
    out: Out,
    low: Annotated[float, typer.Option("--low", help="Least affinity of foreground.")] = 0.5,
    high: Annotated[float, typer.Option("--high", help="Affinities that always join.")] = 0.95,
    threshold: Annotated[
        list[float] | None,
        typer.Option(
            "--threshold",
            help="Agglomerate down to this mean affinity, 0.5 by default; repeatable, the first "
            "one makes the segments.",
        ),
    ] = None,
    block: BlockShape = None,
    engine: Annotated[
        str, typer.Option("--engine", help="exact, or waterz: whole volume at once, no history.")
    ] = "exact",
    scoring: Annotated[
        str, typer.Option("--scoring", help="mean; with --engine waterz also quantile_50 and more.")
    ] = "mean",
    min_voxels: Annotated[
        int, typer.Option("--min-voxels", min=0, help="Smaller segments become background.")
    ] = 0,
    group: Annotated[
        Shape | None,
        typer.Option(
            "--group", metavar="Z Y X", help="Voxels that one step agglomerates; 1024^3 by default."
        ),
    ] = None,
    require_chunks: Annotated[
        bool,
        typer.Option(
            "--require-chunks", help="An absent chunk of A is an error, not its fill value."
        ),
    ] = False,
    voxel_size: VoxelSize = None,
    workers: Workers = None,
    serial: Serial = False,
    order: Annotated[str, typer.Option("--order", help="grid or shuffled.")] = "grid",
    seed: Annotated[int, typer.Option("--seed", help="Of a shuffled order.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Segment affinities into OUT/segments.zarr, the same for every block, order and worker."""
    section = _given(block=block, min_voxels=min_voxels, low=low, high=high, group=group)
    section |= {"engine": engine, "scoring": scoring}
    section["thresholds"] = tuple(threshold or (0.5,))
    given = _given(affinities=affinities.resolve(), voxel_size_nm=voxel_size)
    given["require_chunks"] = require_chunks
    config = _config(out, workers, serial, input=given, segment=section)
    stages = ("fragments", "stitch", "edges", "agglomerate", "collect", "relabel")
    _execute(config, stages, overwrite=overwrite, order=order, seed=seed)


Lookup = Annotated[
    Path | None,
    typer.Option("--lookup", help="Fragment to segment: arrow, csv, parquet, npz or JSON."),
]
LookupMissing = Annotated[
    str | None,
    typer.Option(
        "--lookup-missing",
        help="Labels that it does not name: keep, zero, raise; keep by default.",
    ),
]
SKELETON_STAGES = (
    "skeletonize",
    "skeleton_index",
    "join",
    "fragment_join",
    "scatter",
    "scatter_index",
    "fuse",
    "export",
    "skeleton_files",
    "proofread",
    "project",
)


@app.command()
def skeletonize(
    segmentation: Segmentation,
    out: Out,
    lookup: Lookup = None,
    lookup_missing: LookupMissing = None,
    level: Annotated[
        str,
        typer.Option(
            "--level",
            help="segments, or fragments: traced once, fused by any lookup without voxels.",
        ),
    ] = "segments",
    soma_mask: Annotated[
        Path | None,
        typer.Option("--soma-mask", help="Volume that is not 0 in somata: one node is left."),
    ] = None,
    voxel_size: VoxelSize = None,
    scale: Annotated[
        float | None, typer.Option("--scale", help="Reach of a path, in radii of the neurite.")
    ] = None,
    const_nm: Annotated[
        float | None, typer.Option("--const-nm", help="Further reach of a path, nm.")
    ] = None,
    tracer: Annotated[
        str | None,
        typer.Option("--tracer", help="paths, or kimimaro for all objects, which is slower."),
    ] = None,
    soma_nm: Annotated[
        float | None,
        typer.Option("--soma-nm", help="A radius from which an object is rooted in its soma, nm."),
    ] = None,
    min_voxels: Annotated[
        int | None, typer.Option("--min-voxels", help="Smaller objects are left out.")
    ] = None,
    tick_nm: Annotated[
        float | None, typer.Option("--tick-nm", help="Shorter side branches go, nm.")
    ] = None,
    dust_nm: Annotated[
        float | None, typer.Option("--dust-nm", help="Pieces with less cable go, nm.")
    ] = None,
    cross_sections: Annotated[
        bool, typer.Option("--cross-sections", help="Measure the area across each node.")
    ] = False,
    swc_unit: Annotated[str, typer.Option("--swc-unit", help="um or nm.")] = "um",
    block: BlockShape = None,
    workers: Workers = None,
    serial: Serial = False,
    order: Annotated[str, typer.Option("--order", help="grid or shuffled.")] = "grid",
    seed: Annotated[int, typer.Option("--seed", help="Of a shuffled order.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Trace the centre lines of segments, joined across blocks.

    OUT/precomputed with skeletons for Neuroglancer and cloud-volume, swc/ID.swc, segments.csv and
    .parquet (cable, branch points, tips, components, loops, box of each), report.html.
    """
    from flows.launch import tell_skeletons

    given = _given(segments=segmentation.resolve(), voxel_size_nm=voxel_size)
    method = _given(
        scale=scale,
        const_nm=const_nm,
        tracer=tracer,
        soma_acceptance_nm=soma_nm,
        min_voxels=min_voxels,
        tick_nm=tick_nm,
        dust_nm=dust_nm,
    )
    section = _given(
        block=block,
        lookup=_absolute(lookup),
        lookup_missing=lookup_missing,
        soma_mask=_absolute(soma_mask),
    )
    section |= {"method": method, "cross_sections": cross_sections, "level": level}
    config = _config(
        out, workers, serial, input=given, skeletonize=section, proofread={"swc_unit": swc_unit}
    )
    _execute(config, SKELETON_STAGES, overwrite=overwrite, order=order, seed=seed)
    tell_skeletons(out)


@app.command()
def evaluate(
    segmentation: Segmentation,
    skeletons: Skeletons,
    out: Out,
    lookup: Lookup = None,
    lookup_missing: LookupMissing = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Dense true labels, for scores of voxels.")
    ] = None,
    ignore_label: Annotated[
        list[int] | None,
        typer.Option("--ignore-label", help="True label of which nothing is known; repeatable."),
    ] = None,
    exclude_ids: Annotated[
        Path | None,
        typer.Option("--exclude-ids", help="Segments that count as background, one id a line."),
    ] = None,
    voxel_size: VoxelSize = None,
    axes: SwcAxes = "xyz",
    swc_unit: SwcUnit = "voxel",
    offset: SwcOffset = (0.0, 0.0, 0.0),
    flip: SwcFlip = None,
    out_of_bounds: OutOfBounds = "zero",
    repair: Repair = True,
    max_gap_nm: MaxGap = None,
    merge_min_nodes: MergeNodes = 1,
    merge_min_nm: MergeLength = 0.0,
    curves: Annotated[
        bool,
        typer.Option("--curves/--no-curves", help="Scores over merge tolerance and largest gap."),
    ] = True,
    block: BlockShape = None,
    workers: Workers = None,
    serial: Serial = False,
    order: Annotated[str, typer.Option("--order", help="grid or shuffled.")] = "grid",
    seed: Annotated[int, typer.Option("--seed", help="Of a shuffled order.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Score a segmentation against tracings, and say where it went wrong.

    OUT/metrics.json, neurons.csv and .parquet, sites.parquet with annotation layers and SWC, and
    report.html. Each chunk that holds a node is read once; another lookup, other exclusions or
    conventions (with --overwrite) read none.
    """
    from flows.launch import tell_evaluation

    if lookup_missing is not None and lookup is None:
        raise InputError(
            f"--lookup-missing {lookup_missing} has no effect without --lookup; give a lookup, or "
            "leave it out"
        )
    if ignore_label and labels is None:
        raise InputError(
            "--ignore-label is about true labels: give them with --labels, or leave it out"
        )
    given = _given(
        segments=segmentation.resolve(),
        skeletons=skeletons.resolve(),
        labels=_absolute(labels),
        voxel_size_nm=voxel_size,
        swc=_swc(axes, swc_unit, offset, flip),
    )
    section = _conventions(repair, max_gap_nm, merge_min_nodes, merge_min_nm, out_of_bounds)
    section |= _given(lookup=_absolute(lookup), exclude_ids=_absolute(exclude_ids), block=block)
    section |= {"curves": curves, **_given(lookup_missing=lookup_missing)}
    targets = {"ignore_labels": tuple(ignore_label or ())}
    config = _config(out, workers, serial, input=given, evaluate=section, targets=targets)
    _execute(config, EVALUATION_STAGES, overwrite=overwrite, order=order, seed=seed)
    tell_evaluation(out)


EVALUATION_STAGES = (
    "node_labels",
    "label_placement",
    "label_overlap",
    "label_scores",
    "evaluate",
    "sites",
    "curves",
)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Output folder of an evaluation, or metrics.json.")],
    b: Annotated[Path, typer.Argument(help="Another, of the same tracings.")],
    out: Out,
    allow_differences: Annotated[
        bool, typer.Option("--allow-differences", help="Compare though the conventions differ.")
    ] = False,
    resamples: Annotated[
        int, typer.Option("--resamples", min=39, help="Of the neurons, for the intervals.")
    ] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of resamples and tests.")] = 0,
) -> None:
    """Compare two scored segmentations neuron by neuron, with intervals and a paired test.

    OUT/comparison.json, .csv, .png and .svg, and comparison_neurons.csv. No voxel is read.
    """
    from flows.compare_segmentations import compare_segmentations, tell_comparison

    done = compare_segmentations(
        a, b, out, allow_differences=allow_differences, n_resamples=resamples, seed=seed
    )
    tell_comparison(done)


@app.command()
def sweep(
    segmentation: Annotated[
        Path, typer.Argument(help="Output folder of `axonloom segment` or `axonloom run`.")
    ],
    out: Out,
    skeletons: Annotated[
        Path | None, typer.Option("--skeletons", help="SWC file, folder or zip.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Dense true labels: zarr or TIFF.")
    ] = None,
    thresholds: Annotated[
        str | None,
        typer.Option("--thresholds", metavar="FROM:TO:STEP", help="Such as 0.2:0.9:0.05."),
    ] = None,
    threshold: Annotated[
        list[float] | None, typer.Option("--threshold", help="One more; repeatable.")
    ] = None,
    voxel_size: VoxelSize = None,
    axes: SwcAxes = "xyz",
    swc_unit: SwcUnit = "voxel",
    offset: SwcOffset = (0.0, 0.0, 0.0),
    flip: SwcFlip = None,
    out_of_bounds: OutOfBounds = "zero",
    repair: Repair = True,
    max_gap_nm: MaxGap = None,
    merge_min_nodes: MergeNodes = 1,
    merge_min_nm: MergeLength = 0.0,
    workers: Workers = None,
    serial: Serial = False,
    overwrite: Overwrite = False,
) -> None:
    """Score many thresholds of a segmentation without reading a voxel twice: OUT/sweep.json.

    Thresholds reach from 1 down to the lowest that the segmentation was made with; by default 21
    over that range. A second sweep into the same --out (with --overwrite) reads no voxel at all.
    Scores are those before small segments are dropped (--min-voxels of the segmentation).
    """
    from flows.sweep import parse_thresholds, run_sweep, segmentation_inputs, tell_sweep

    if skeletons is None and labels is None:
        raise InputError("sweep: give --skeletons, --labels or both to score by")
    given = _given(
        **segmentation_inputs(segmentation, out),
        skeletons=_absolute(skeletons),
        labels=_absolute(labels),
        voxel_size_nm=voxel_size,
        swc=_swc(axes, swc_unit, offset, flip),
    )
    section = _conventions(repair, max_gap_nm, merge_min_nodes, merge_min_nm, out_of_bounds)
    wanted = _given(thresholds=parse_thresholds(thresholds, threshold))
    config = _config(out, workers, serial, input=given, evaluate=section, sweep=wanted)
    tell_sweep(run_sweep(config, replace_output=overwrite), segmentation)


@app.command("compare-losses")
def compare_losses(
    config: Annotated[Path, typer.Argument(help="Configuration of the run, YAML.")],
    workers: Workers = None,
    serial: Serial = False,
) -> None:
    """Train with each loss from shared pretrainings, and test the scores against a baseline.

    The losses, seeds and tests are in the section `comparison` of the configuration. What an
    earlier, interrupted or smaller comparison has trained is kept.
    """
    from flows.compare_losses import report_and_tell_comparison, run_comparison
    from flows.runs import with_workers

    directory = run_comparison(with_workers(load_config(config), workers, serial))
    report_and_tell_comparison(directory)


@app.command()
def proofread(
    segmentation: Segmentation,
    out: Out,
    voxel_size: VoxelSize = None,
    image: Annotated[Path | None, typer.Option("--image", help="Shown under the segments.")] = None,
    workers: Workers = None,
    serial: Serial = False,
    overwrite: Overwrite = False,
) -> None:
    """Write what a viewer needs: precomputed segments, skeletons, SWC and a Neuroglancer state."""
    from flows.launch import tell_skeletons

    given = _given(
        segments=segmentation.resolve(), image=_absolute(image), voxel_size_nm=voxel_size
    )
    config = _config(out, workers, serial, input=given)
    first = INGEST_STAGES if image is not None else ()
    _execute(config, (*first, *SKELETON_STAGES), overwrite=overwrite)
    tell_skeletons(out)


@app.command()
def status(run_dir: Annotated[Path, typer.Argument(help="Folder of a run.")]) -> None:
    """Show the stages of a run: blocks done, empty, masked and failed, and speed."""
    from flows.status import print_status

    print_status(run_dir, Console())


@app.command()
def view(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run.")],
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.")] = 0,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Show a run in Neuroglancer, served from this machine, offline."""
    from flows.launch import view_run

    view_run(run_dir, host, port)
