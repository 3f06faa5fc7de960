"""The demo: a phantom, and everything run on it."""

from __future__ import annotations

from pathlib import Path

from flows.launch import launch, run_with_progress
from flows.phantom import needs_phantom, on_phantom, phantom_config
from flows.runs import begin, with_workers
from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError, InputError
from pipeline.stages import plan
from pipeline.stages.phantom import PHANTOM

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"


def run_demo(out: Path, workers: int | None, serial: bool, config: Path | None) -> Path:
    """Make the phantom in OUT/phantom and run the demo configuration on it in OUT.

    Raises:
        ConfigError: the configuration describes no phantom.
    """
    path = config or DEMO
    settings = with_workers(load_config(path), workers, serial)
    if not needs_phantom(settings):
        raise ConfigError(f"{path}: a demo needs a phantom section, and no input volume")
    return run_all(settings.model_copy(update={"run_dir": out}))


def run_all(config: RunConfig, until: str | None = None) -> Path:
    """Run every stage, or those up to `until`; gives the run directory.

    A configuration with a phantom and no volume makes the phantom first.

    Raises:
        InputError: no stage of this configuration is called `until`.
    """
    made = on_phantom(config) if needs_phantom(config) else config
    only = None if until is None else _stages_until(made, until)
    if made is not config:
        run_phantom(phantom_config(config), replace_output=True)
    return launch(made, only)


def _stages_until(config: RunConfig, last: str) -> list[str]:
    names = [stage.name for stage in plan(config)]
    if last not in names:
        raise InputError(f"--until {last}: this configuration runs {', '.join(names)}")
    return names[: names.index(last) + 1]


def run_phantom(config: RunConfig, *, replace_output: bool) -> Path:
    """Write a phantom: image.zarr, labels.zarr and swc/ in the run directory."""
    run = begin(config, (PHANTOM,), replace_output=replace_output)
    run_with_progress(run, (PHANTOM,))
    return run.directory
