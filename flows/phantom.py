"""The phantom that a configuration describes, in place of an image."""

from __future__ import annotations

from pipeline.config import RunConfig


def needs_phantom(config: RunConfig) -> bool:
    """Whether the run starts from a phantom: one is described, and no volume is given."""
    given = config.input
    volumes = (given.image, given.affinities, given.segments)
    return config.phantom is not None and not any(volumes)


def phantom_config(config: RunConfig) -> RunConfig:
    """The run that makes the phantom, in the folder phantom of the run directory."""
    folder = config.run_dir.resolve() / "phantom"
    return config.model_copy(update={"run_dir": folder, "name": "phantom"})


def on_phantom(config: RunConfig) -> RunConfig:
    """The configuration with the phantom's image, labels and tracings as its input."""
    folder = phantom_config(config).run_dir
    given = config.input.model_copy(
        update={
            "image": folder / "image.zarr",
            "labels": folder / "labels.zarr",
            "skeletons": folder / "swc",
            "swc": config.input.swc.model_copy(update={"unit": "um"}),
        }
    )
    return config.model_copy(update={"input": given})
