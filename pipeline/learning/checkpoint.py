"""Trained networks on disk: safetensors and JSON, nothing that is unpickled.

A model is a directory with `model.safetensors` (weights) and `model.json` (what they are). Equal
content gives equal bytes. Every file is written beside its place, flushed to disk and renamed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import InputError
from pipeline.learning.model import UNet
from pipeline.learning.settings import NetworkSettings, TrainSettings
from pipeline.storage.atomic import replacing

FORMAT = "axonloom affinity network"
VERSION = 1

_WEIGHTS, _NOTE = "model.safetensors", "model.json"
_OUTPUTS = {
    "affinities": "(C, Z, Y, X) logits; channel d of three joins a voxel to its predecessor along "
    "axis d; two channels, of networks of two dimensions, are those of y and x",
    "foreground": "(1, Z, Y, X) logits of being inside an object",
}
VoxelSize = tuple[float, float, float]


@dataclass(frozen=True)
class SavedModel:
    """A loaded network (float32, on the CPU, in evaluation mode) and what its note says."""

    model: UNet
    network: NetworkSettings
    training: TrainSettings
    note: dict[str, Any]

    @property
    def voxel_size_nm(self) -> VoxelSize | None:
        """Of the training images, z, y, x; None if the note does not tell."""
        found = self.note.get("voxel_size_nm")
        return None if found is None else (float(found[0]), float(found[1]), float(found[2]))


def save_model(
    directory: Path,
    model: UNet,
    training: TrainSettings,
    facts: dict[str, Any],
    *,
    normalisation: str = "as given",
    voxel_size_nm: VoxelSize | None = None,
    config: dict[str, Any] | None = None,
) -> None:
    """Write a network.

    Args:
        directory: made if absent.
        model, training: the network and how it was trained.
        facts: JSON values added to its note, under "facts".
        normalisation: how image values were made; prediction must make them the same way.
        voxel_size_nm: of the training images, z, y, x; None if unknown.
        config: the whole configuration of the run that trained it, JSON values.
    """
    weights = save(plain(model.state_dict()))
    note = {
        "format": FORMAT,
        "version": VERSION,
        "network": model.settings.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "normalisation": normalisation,
        "input": "(1, Z, Y, X) normalised image",
        "output": _OUTPUTS[model.settings.output],
        "voxel_size_nm": None if voxel_size_nm is None else list(voxel_size_nm),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "facts": facts,
        "config": config,
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / _WEIGHTS, weights)
    write_atomically(directory / _NOTE, (json.dumps(note, indent=2) + "\n").encode())


def has_model(directory: Path) -> bool:
    """Whether a model was written to the end: its note comes last."""
    return (directory / _NOTE).is_file()


def load_model(directory: Path) -> SavedModel:
    """Read a network that `save_model` wrote.

    Raises:
        InputError: a file is missing, foreign, damaged, of a later version, or the weights are not
            those of the network that the note describes; the message names the difference.
    """
    note = _read_note(directory / _NOTE)
    try:
        network = NetworkSettings.model_validate(note["network"])
        training = TrainSettings.model_validate(note["training"])
    except (KeyError, ValidationError) as error:
        raise InputError(
            f"{directory / _NOTE}: settings are missing or invalid: {error}"
        ) from error
    path = directory / _WEIGHTS
    data = read_bytes(path)
    try:
        weights = load(data)
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file, or is damaged: {error}") from error
    model = UNet(network)
    check_weights(path, model.state_dict(), weights)
    if hashlib.sha256(data).hexdigest() != note.get("weights_sha256"):
        raise InputError(
            f"{path} does not hold the weights that {_NOTE} describes (SHA-256 differs): one of "
            f"the two was damaged or replaced; copy both again"
        )
    model.load_state_dict(weights)
    return SavedModel(model.eval(), network, training, note)


def digest(directory: Path) -> str:
    """SHA-256 over a model's note, which holds that of its weights: its identity.

    Raises:
        InputError: the note is missing or foreign.
    """
    _read_note(directory / _NOTE)
    return hashlib.sha256((directory / _NOTE).read_bytes()).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `path` so that it holds, after a crash at any moment, its old or its new content."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous: bytes that do not tell the memory layout."""
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; is it a model's place?") from error


def _read_note(path: Path) -> dict[str, Any]:
    data = read_bytes(path)
    try:
        note = json.loads(data)
    except ValueError as error:
        raise InputError(f"{path} is not JSON, or is damaged: {error}") from error
    if not isinstance(note, dict) or note.get("format") != FORMAT:
        found = note.get("format") if isinstance(note, dict) else type(note).__name__
        raise InputError(f"{path} is not a note of this project: format {FORMAT!r}, got {found!r}")
    if note.get("version") != VERSION:
        raise InputError(
            f"{path} has format version {note.get('version')!r}, this program reads {VERSION}"
        )
    return note


def check_weights(path: Path, expected: dict[str, Any], found: dict[str, Tensor]) -> None:
    """Refuse tensors of a file that are not, by name, shape and type, those expected.

    Raises:
        InputError: names the difference.
    """
    missing, surplus = sorted(expected.keys() - found), sorted(found.keys() - expected)
    if missing or surplus:
        raise InputError(
            f"{path} holds other tensors than the network that its settings describe: "
            f"missing {missing or 'none'}, unexpected {surplus or 'none'}"
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise InputError(
                f"{path}: tensor {name} is {found[name].dtype} {tuple(found[name].shape)}, the "
                f"network wants {tensor.dtype} {tuple(tensor.shape)}"
            )
