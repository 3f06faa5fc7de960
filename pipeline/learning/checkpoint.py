"""Trained networks and training states on disk: safetensors and JSON, nothing that is unpickled.

A model is a directory with `model.safetensors` (weights) and `model.json` (what they are). A
training state is the single file `state.safetensors`: weights, both moments of AdamW, and a JSON
note in the file's header, so that it is replaced as a whole or not at all. Equal content gives
equal bytes. Every file is written beside its place, flushed to disk and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import InputError
from pipeline.learning.model import AffinityUNet
from pipeline.learning.settings import NetworkSettings, TrainSettings

FORMAT = "axonloom affinity network"
VERSION = 1

_WEIGHTS, _NOTE, _STATE = "model.safetensors", "model.json", "state.safetensors"
_HEADER = "axonloom"  # the one metadata entry: several would be written in random order
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class SavedModel:
    """A loaded network (float32, on the CPU, in evaluation mode) and what its note says."""

    model: AffinityUNet
    network: NetworkSettings
    training: TrainSettings
    note: dict[str, Any]


def save_model(
    directory: Path,
    model: AffinityUNet,
    training: TrainSettings,
    facts: dict[str, Any],
    *,
    normalisation: str = "as given",
) -> None:
    """Write a network.

    Args:
        directory: made if absent.
        model, training: the network and how it was trained.
        facts: JSON values added to its note, under "facts".
        normalisation: how image values were made; prediction must make them the same way.
    """
    weights = save(_plain(model.state_dict()))
    note = {
        "format": FORMAT,
        "version": VERSION,
        "network": model.settings.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "normalisation": normalisation,
        "input": "(1, Z, Y, X) normalised image",
        "output": "(3, Z, Y, X) logits; channel d joins a voxel to its predecessor along axis d",
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "facts": facts,
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
    data = _read(path)
    try:
        weights = load(data)
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file, or is damaged: {error}") from error
    model = AffinityUNet(network)
    _check_weights(path, model.state_dict(), weights)
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


def save_state(
    directory: Path, model: AffinityUNet, optimiser: torch.optim.AdamW, facts: dict[str, Any]
) -> None:
    """Replace the training state; `facts` (JSON values) hold at least "step"."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = optimiser.state[parameter][moment]
    directory.mkdir(parents=True, exist_ok=True)
    header = {_HEADER: json.dumps(facts, sort_keys=True)}
    write_atomically(directory / _STATE, save(_plain(tensors), header))


def state_facts(directory: Path) -> dict[str, Any] | None:
    """The facts of the saved state, or None if there is none.

    Raises:
        InputError: the file is damaged or foreign.
    """
    path = directory / _STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get(_HEADER, "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it to start anew") from error
    if not isinstance(facts, dict):
        raise InputError(f"{path} is not a training state of this project: move it elsewhere")
    return facts


def load_state(directory: Path, model: AffinityUNet, optimiser: torch.optim.AdamW) -> None:
    """Put the saved state, which must exist, into `model` and `optimiser`.

    Raises:
        InputError: there is none, it is damaged, or it belongs to another network.
    """
    path = directory / _STATE
    facts = state_facts(directory)
    if facts is None:
        raise InputError(f"there is no training state {path}")
    tensors = load(_read(path))
    parameters = dict(model.named_parameters())
    expected = {f"{kind}.{n}": p for kind in ("model", *_MOMENTS) for n, p in parameters.items()}
    _check_weights(path, expected, tensors)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
            # Moments keep the parameter's memory layout: with another one, vectorised loops
            # round other elements than in an undisturbed run.
            state: dict[str, Tensor] = {"step": torch.tensor(float(facts["step"]))}
            for moment in _MOMENTS:
                state[moment] = torch.zeros_like(parameter).copy_(tensors[f"{moment}.{name}"])
            optimiser.state[parameter] = state


def write_atomically(path: Path, data: bytes) -> None:
    """Write `path` so that it holds, after a crash at any moment, its old or its new content."""
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous: bytes that do not tell the memory layout."""
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; is it a model's place?") from error


def _read_note(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(_read(path))
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


def _check_weights(path: Path, expected: dict[str, Any], found: dict[str, Tensor]) -> None:
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
