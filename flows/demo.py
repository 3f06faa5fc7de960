"""The demo: a phantom, and everything run on it."""

from __future__ import annotations

from pathlib import Path

from flows.launch import launch, run_with_progress
from flows.phantom import needs_phantom, on_phantom, phantom_config
from flows.runs import begin, with_workers
from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError
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


def run_all(config: RunConfig) -> Path:
    """Run every stage; a configuration with a phantom and no volume makes the phantom first."""
    if not needs_phantom(config):
        return launch(config)
    run_phantom(phantom_config(config), replace_output=True)
    return launch(on_phantom(config))


def run_phantom(config: RunConfig, *, replace_output: bool) -> Path:
    """Write a phantom: image.zarr, labels.zarr and swc/ in the run directory."""
    run = begin(config, (PHANTOM,), replace_output=replace_output)
    run_with_progress(run, (PHANTOM,))
    return run.directory
