"""The key of a stage: a digest of everything that its output depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InputError
from pipeline.stages.base import Stage
from pipeline.stages.run import Run
from pipeline.storage.fingerprint import digest, fingerprint
from pipeline.storage.npz import stored_file
from pipeline.storage.skeleton_files import stored_skeletons


@dataclass(frozen=True)
class StageKey:
    """A key, and the readable description that it is the digest of."""

    key: str
    description: dict[str, Any]


def stage_keys(run: Run, stages: Sequence[Stage]) -> dict[str, StageKey]:
    """The key of every stage of a run, given in an order in which producers come first.

    A key covers the stage's version and parameters, its grid, and the keys of what it reads: those
    of the stages that make it, or fingerprints of foreign files.

    Raises:
        InputError: a stage reads what nothing gives.
    """
    keys: dict[str, StageKey] = {}
    artifacts: dict[str, str] = {}
    for stage in stages:
        inputs = {}
        for name in inputs_of(stage, run, stages):
            if name not in artifacts:
                artifacts[name] = _foreign_key(name, run)
            inputs[name] = artifacts[name]
        grid = stage.grid(run)
        description = {
            "version": stage.version,
            "parameters": dict(stage.parameters(run)),
            "inputs": inputs,
            "grid": [grid.volume.offset, grid.volume.shape, grid.block_shape],
        }
        key = digest({"stage": stage.name, **description})
        keys[stage.name] = StageKey(key, description)
        artifacts.update(dict.fromkeys(stage.writes, key))
    return keys


def inputs_of(stage: Stage, run: Run, stages: Sequence[Stage]) -> list[str]:
    """The artifacts that a stage reads in this run: all it needs and those optional ones there.

    Each is named once.
    """
    made = {artifact for other in stages for artifact in other.writes}
    present = [name for name in stage.optional if name in made or run.foreign(name)]
    return [*dict.fromkeys((*stage.reads, *stage.more(run), *present))]


def _foreign_key(artifact: str, run: Run) -> str:
    path = run.foreign(artifact)
    if path is None:
        raise InputError(
            f"nothing gives {artifact}: no stage of this run makes it and no input names it"
        )
    if not stored_file(path).exists():
        raise InputError(f"{path}: no such file or folder (input {artifact} of the run)")
    return fingerprint(stored_skeletons(path) if artifact == "source_skeletons" else path)
