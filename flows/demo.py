"""The demo: a phantom, and everything run on it."""

from __future__ import annotations

from pathlib import Path

from flows.launch import launch
from flows.runs import check, require_writable, run_stages, with_workers
from pipeline.config import RunConfig, load_config, save_config
from pipeline.errors import ConfigError
from pipeline.stages.phantom import PHANTOM
from pipeline.stages.run import Run
from rich.console import Console
from flows.progress import QuietProgress, TerminalProgress

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"


def run_demo(out: Path, workers: int | None, serial: bool, config: Path | None) -> Path:
    """Make the phantom in OUT/phantom and run the demo configuration on it in OUT.

    Raises:
        ConfigError: the configuration describes no phantom.
    """
    path = config or DEMO
    settings = with_workers(load_config(path), workers, serial)
    if settings.phantom is None:
        raise ConfigError(f"{path}: a demo needs a phantom section")
    folder = out.resolve() / "phantom"
    made = settings.model_copy(update={"run_dir": folder, "name": "phantom"})
    run_phantom(made, replace_output=True)
    given = settings.input.model_copy(
        update={
            "image": folder / "image.zarr",
            "labels": folder / "labels.zarr",
            "skeletons": folder / "swc",
            "swc": settings.input.swc.model_copy(update={"unit": "um"}),
        }
    )
    return launch(settings.model_copy(update={"input": given, "run_dir": out}))


def run_phantom(config: RunConfig, *, replace_output: bool) -> Path:
    """Write a phantom: image.zarr, labels.zarr and swc/ in the run directory."""
    check(config, (PHANTOM,), replace_output=replace_output)
    require_writable(config.run_dir)
    directory = config.run_dir.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    save_config(config.model_copy(update={"run_dir": directory}), directory / "config.yaml")
    run, console = Run(directory), Console(stderr=True)
    if console.is_terminal:
        with TerminalProgress(run, console) as progress:
            run_stages(run, (PHANTOM,), observe=progress.observe)
    else:
        run_stages(run, (PHANTOM,), observe=QuietProgress(console).observe)
    return directory
