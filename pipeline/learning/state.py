"""The state of a training on disk: what it needs to go on as if nothing had happened.

The single file `state.safetensors` holds the weights, both moments of AdamW, the running mean of
the weights, the best weights so far, and a JSON note in its header, so that it is replaced as a
whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import InputError
from pipeline.learning.checkpoint import check_weights, plain, read_bytes, write_atomically
from pipeline.learning.model import UNet

Weights = Mapping[str, Tensor]

_STATE = "state.safetensors"
_HEADER = "axonloom"  # the one metadata entry: several would be written in random order
_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_state(
    directory: Path,
    model: UNet,
    optimiser: torch.optim.AdamW,
    facts: dict[str, Any],
    *,
    copies: Mapping[str, Weights] | None = None,
) -> None:
    """Replace the training state.

    Args:
        directory: made if absent.
        model, optimiser: what is trained.
        facts: JSON values; at least "step", the number of steps done.
        copies: further weights of the same network by name, such as their mean.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = optimiser.state[parameter][moment]
    for kind, weights in (copies or {}).items():
        tensors |= {f"{kind}.{name}": value for name, value in weights.items()}
    directory.mkdir(parents=True, exist_ok=True)
    note = facts | {"copies": sorted(copies or {})}
    header = {_HEADER: json.dumps(note, sort_keys=True)}
    write_atomically(directory / _STATE, save(plain(tensors), header))


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


def load_state(
    directory: Path, model: UNet, optimiser: torch.optim.AdamW
) -> dict[str, dict[str, Tensor]]:
    """Put the saved state, which must exist, into `model` and `optimiser`.

    Returns:
        The copies by name: float32 on the CPU.

    Raises:
        InputError: there is none, it is damaged, or it belongs to another network.
    """
    path = directory / _STATE
    facts = state_facts(directory)
    if facts is None:
        raise InputError(f"there is no training state {path}")
    tensors = load(read_bytes(path))
    parameters, copies = dict(model.named_parameters()), facts.get("copies", [])
    kinds = ("model", *_MOMENTS, *copies)
    check_weights(
        path, {f"{kind}.{n}": p for kind in kinds for n, p in parameters.items()}, tensors
    )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
            # Moments keep the parameter's memory layout: with another one, vectorised loops
            # round other elements than in an undisturbed run.
            state: dict[str, Tensor] = {"step": torch.tensor(float(facts["step"]))}
            for moment in _MOMENTS:
                state[moment] = torch.zeros_like(parameter).copy_(tensors[f"{moment}.{name}"])
            optimiser.state[parameter] = state
    return {kind: {name: tensors[f"{kind}.{name}"] for name in parameters} for kind in copies}
