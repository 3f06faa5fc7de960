"""What is trained, how far it has come, and how it is saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.learning import checkpoint
from pipeline.learning.checkpoint import VoxelSize
from pipeline.learning.ema import AveragedWeights
from pipeline.learning.fit import require_fit
from pipeline.learning.journal import Journal, last_loss
from pipeline.learning.model import UNet, initialise
from pipeline.learning.precision import place
from pipeline.learning.settings import NetworkSettings, TrainSettings
from pipeline.learning.state import load_state, save_state
from pipeline.learning.step import make_optimiser


class Training:
    """The network, its optimiser, the mean of its weights, and the best weights so far.

    Attributes:
        facts: what must stay the same for a training to be resumed; part of the state.
        directory: where it is saved.
        device: where it computes.
        step: number of steps done.
        chosen: {"score", "step"} of the best validation so far; None before the first.
    """

    def __init__(
        self,
        settings: TrainSettings,
        network: NetworkSettings,
        device: torch.device,
        directory: Path,
        facts: dict[str, Any],
    ) -> None:
        """A network with fresh weights."""
        self._settings, self.directory, self.facts = settings, directory, facts
        self.device = device
        model = UNet(network)
        initialise(model, settings.seed)
        self.model = place(model, device)
        self.optimiser = make_optimiser(self.model, settings)
        self.averaged = AveragedWeights(self.model, settings.ema)
        self.step = 0
        self.chosen: dict[str, Any] | None = None
        self._best: dict[str, Tensor] = {}

    def start_from(self, source: Path, normalisation: str, voxel_size_nm: VoxelSize | None) -> None:
        """Begin with the weights of another training.

        Raises:
            InputError: it is no model, or of another network, normalisation or voxel size.
        """
        saved = checkpoint.load_model(source)
        require_fit(
            source,
            saved,
            purpose="to start from",
            normalisation=normalisation,
            voxel_size_nm=voxel_size_nm,
            network=self.model.settings,
        )
        weights = dict(saved.model.named_parameters())
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])
        self.averaged.put(weights)

    def resume(self, saved: dict[str, Any]) -> None:
        """Go on from the saved state whose facts are given.

        Raises:
            InputError: it is damaged.
        """
        copies = load_state(self.directory, self.model, self.optimiser)
        if self._settings.ema:
            self.averaged.put(copies["average"])
        self._best = copies.get("best", {})
        self.step, self.chosen = int(saved["step"]), saved["chosen"]

    def count_step(self) -> None:
        """Take in that one more step was made."""
        self.averaged.update(self.step)
        self.step += 1

    def consider(self, score: float) -> bool:
        """Keep the present mean of the weights if no earlier one had a better score."""
        if self.chosen is not None and score < self.chosen["score"]:
            return False
        self.chosen = {"score": score, "step": self.step - 1}
        self._best = self.averaged.copy()
        return True

    def save(self, journal: Journal) -> None:
        """The logs first, then the state that tells their lengths: a log is never the shorter one.

        Raises:
            DataError: a weight is not finite; the state saved before stays.
        """
        for name, weight in self.model.named_parameters():
            if not torch.isfinite(weight).all():
                raise DataError(
                    f"after training step {self.step - 1} weights of {name} are not finite: what "
                    f"was saved before stays; lower learning_rate (now "
                    f"{self._settings.learning_rate:.3g} at its peak)"
                )
        lengths = journal.sync()
        copies = {"average": self.averaged.copy()} if self._settings.ema else {}
        if self._best:
            copies["best"] = self._best
        now = {"step": self.step, "chosen": self.chosen, **lengths}
        save_state(self.directory, self.model, self.optimiser, self.facts | now, copies=copies)

    def finish(
        self, normalisation: str, voxel_size_nm: VoxelSize | None, config: dict[str, Any] | None
    ) -> None:
        """Write the best network, or the last one where none was validated."""
        done: dict[str, Any] = {"steps": self.step, "loss": last_loss(self.directory)}
        done |= {name: self.facts[name] for name in ("data", "start")}
        done["chosen"] = self.chosen or {"score": None, "step": self.step - 1}
        if self._best:
            self.averaged.put(self._best)
        checkpoint.save_model(
            self.directory,
            self.averaged.model,
            self._settings,
            done,
            normalisation=normalisation,
            voxel_size_nm=voxel_size_nm,
            config=config,
        )


def checked_scores(scores: dict[str, float], step: int) -> dict[str, float]:
    """Scores of a validation as plain numbers.

    Raises:
        DataError: there is no "score", or one of them is not finite.
    """
    plain = {name: float(value) for name, value in scores.items()}
    if "score" not in plain or not all(math.isfinite(value) for value in plain.values()):
        raise DataError(
            f"validation after training step {step}: expected finite figures, one of them 'score', "
            f"got {scores}"
        )
    return plain
