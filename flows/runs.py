"""Running the stages of a configuration, in order: plain functions, no server needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from flows.own_inputs import require_whole
from pipeline.config import RunConfig, save_config
from pipeline.errors import InputError
from pipeline.stages import plan
from pipeline.stages.base import Stage
from pipeline.stages.keys import StageKey, inputs_of, stage_keys
from pipeline.stages.run import ARTIFACTS, Run
from pipeline.storage.ledger import run_lock
from workers.executors import Executor, make_executor
from workers.runner import (
    Order,
    StageReport,
    refuse_foreign_output,
    require_complete,
    require_stored,
    run_stage,
)

# What another run gives to train on.
_LEARNED = (ARTIFACTS["image"], ARTIFACTS["targets"])

Observer = Callable[[Stage, StageReport], None]


def check(config: RunConfig, stages: Sequence[Stage], *, replace_output: bool) -> None:
    """Refuse, before anything is written or computed, what cannot succeed.

    Raises:
        InputError: unusable input or configuration, a folder that cannot be written.
        OutputExistsError: output of other parameters that must not be replaced.
    """
    require_writable(config.run_dir)
    _refuse_foreign_config(config.run_dir.resolve())
    if not stages:
        raise InputError("nothing to do: the configuration gives no input for any stage")
    draft = Run(config.run_dir.resolve(), config)
    _refuse_overlap(draft, stages)
    _refuse_unused_training_runs(config)
    _ = draft.shape, draft.train_roi, draft.validate_roi, draft.score_roi
    given, other = config.input, config.evaluate.compare_segments
    learned = [folder / name for folder in given.training_runs for name in _LEARNED]
    masks = (config.skeletonize.soma_mask,)
    for path in (given.affinities, given.segments, given.image, other, *masks, *learned):
        if path is not None:
            require_whole(path)
    for stage in stages:
        stage.check(draft)
    keys = stage_keys(draft, stages)
    for stage in stages:
        ledger = draft.ledger(stage.name)
        if not ledger.holds(keys[stage.name].key):
            refuse_foreign_output(stage, draft, keys[stage.name], ledger, replace=replace_output)


def _refuse_overlap(run: Run, stages: Sequence[Stage]) -> None:
    """Refuse inputs that a stage would replace, or that its output would become a part of."""
    given = {f"input.{n}": value for n, value in run.config.input if isinstance(value, Path)}
    for name in ("evaluate", "skeletonize"):
        section = getattr(run.config, name)
        given |= {f"{name}.{n}": value for n, value in section if isinstance(value, Path)}
    for stage in stages:
        for output in (run.path(artifact) for artifact in stage.writes):
            for name, path in given.items():
                source = path.resolve()
                if source.is_relative_to(output) or output.is_relative_to(source):
                    raise InputError(
                        f"{name} {path} and {output}, which stage {stage.name} writes, lie "
                        "in one another; choose another folder for the output"
                    )


def _refuse_foreign_config(folder: Path) -> None:
    """Refuse to replace a config.yaml that is no run's: those lie beside a ledger."""
    file = folder / "config.yaml"
    if file.exists() and not (folder / "ledger").is_dir():
        raise InputError(
            f"{file} is not of a run of axonloom and would be replaced; choose another folder for "
            "the output, or move the file"
        )


def _refuse_unused_training_runs(config: RunConfig) -> None:
    given = config.input
    own = (given.labels, given.skeletons)
    instead = (given.checkpoint, given.affinities, given.segments)
    if given.training_runs and given.image and not any((*own, *instead)):
        raise InputError(
            "input.training_runs adds to what this run trains on, but it has neither input.labels "
            "nor input.skeletons; give one of them, or train in another run and name its "
            "input.checkpoint here"
        )


def require_writable(folder: Path) -> None:
    """Refuse a folder in which nothing can be written; it need not exist yet."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise InputError(f"{folder}: expected a folder for the output, but {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be written (no permission in {place})")


def prepare(
    config: RunConfig, *, only: Sequence[str] | None = None, replace_output: bool = True
) -> tuple[Run, tuple[Stage, ...]]:
    """Check everything, then make the run directory and write the resolved configuration.

    Args:
        config: of the run.
        only: names of the stages to run; default all that the inputs allow.
        replace_output: whether output of other parameters may be replaced.
    """
    stages = plan(config)
    if only is not None:
        stages = tuple(stage for stage in stages if stage.name in only)
    return begin(config, stages, replace_output=replace_output), stages


def begin(config: RunConfig, stages: Sequence[Stage], *, replace_output: bool = True) -> Run:
    """As `prepare`, for stages that the caller names.

    Raises:
        InputError: the folder of the run cannot be made.
    """
    check(config, stages, replace_output=replace_output)
    directory = config.run_dir.resolve()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{directory}: the folder for the output cannot be made: {error.strerror}; "
            f"choose one that you may write to"
        ) from error
    resolved = config.model_copy(update={"run_dir": directory})
    with run_lock(directory / "ledger"):
        save_config(resolved, directory / "config.yaml")
    return Run(directory)


def run_stages(
    run: Run,
    stages: Sequence[Stage],
    *,
    order: Order | None = None,
    observe: Observer = lambda _stage, _report: None,
) -> list[StageReport]:
    """Run stages one after the other with the configured executor.

    Args:
        run: where.
        stages: all of the run, producers first: their keys hang together.
        order: of the blocks.
        observe: called with each stage's counts as they change.

    Raises:
        StageError: a stage ended with failed blocks; those before it stay done.
    """
    with open_stages(run, stages, order=order) as run_one:
        return [run_one(stage, observe) for stage in stages]


@contextmanager
def open_stages(
    run: Run, stages: Sequence[Stage], *, order: Order | None = None
) -> Iterator[Callable[[Stage, Observer], StageReport]]:
    """A function that runs one stage, for callers that do something between two stages.

    Lock, keys and executor are held throughout: no other run comes between two stages, and a
    cluster is started once.

    Raises:
        RunLockedError: another process is writing to this run.
    """
    executor = make_executor(run.config.execution)
    try:
        with run_lock(run.directory / "ledger"):
            keys = stage_keys(run, stages)

            def run_one(stage: Stage, observe: Observer) -> StageReport:
                return _run_one(stage, run, stages, keys, executor, order, observe)

            yield run_one
    except KeyboardInterrupt:
        # The cluster ends in the middle of its work; what its parts say of that helps nobody.
        logging.disable(logging.CRITICAL)
        raise
    finally:
        executor.close()


def _run_one(
    stage: Stage,
    run: Run,
    stages: Sequence[Stage],
    keys: Mapping[str, StageKey],
    executor: Executor,
    order: Order | None,
    observe: Observer,
) -> StageReport:
    needed = set(inputs_of(stage, run, stages))
    with closing(run.ledger(stage.name)) as ledger:
        finished = ledger.holds(keys[stage.name].key) and ledger.complete
    for other in stages:
        if needed & set(other.writes):
            require_complete(other, run, keys[other.name])
            if not finished:
                require_stored(other, run)
    if finished:
        require_stored(stage, run)
    return run_stage(
        stage,
        run,
        keys[stage.name],
        executor,
        order=order or Order(),
        progress=lambda report: observe(stage, report),
    )


def with_workers(config: RunConfig, workers: int | None, serial: bool) -> RunConfig:
    """The configuration with another number of local workers, or none."""
    if serial:
        execution = config.execution.model_copy(update={"kind": "serial", "address": None})
    elif workers is not None:
        update = {"kind": "local", "workers": workers, "address": None}
        execution = config.execution.model_copy(update=update)
    else:
        return config
    return config.model_copy(update={"execution": execution})
