"""The supervoxel loss in its affinity form: cross entropy, with critical mistakes weighted up.

    L = (1 - alpha) L0 + alpha * (split_weight * L0(split-critical edges)
                                  + merge_weight * L0(merge-critical edges))

L0 is the class-balanced binary cross entropy of affinities (`losses.bce`). Critical edges are those
of `pipeline.learning.critical_edges`: the LINEAR definition (Corollaries 1 to 3 of the paper), on
labels decoded at affinity 1/2 and on edges proper, sample by sample. They are constants for the
gradient. The weights are 1 - beta and beta unless the settings name them.

Normalisation of the two critical terms, which the paper leaves open:

    image       the sum over critical edges, divided by the batch's valid edges, as L0 itself is
    component   the mean over each critical component's edges, added up
    sum         the sum

Source: Grim, Chandrashekar, Sumbul: "Efficient connectivity-preserving instance segmentation with
supervoxel-based loss function", Definitions 1 to 4.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.learning.critical_edges import number_critical_edges
from pipeline.learning.losses.bce import class_weights, edge_bce
from pipeline.learning.settings import LossSettings
from pipeline.learning.targets import LossBatch, LossValue


def supervoxel(batch: LossBatch) -> LossValue:
    """The loss above; parts are its three terms before they are weighted."""
    split, merge = critical_numbers(batch)
    return supervoxel_loss(
        batch.logits, batch.targets, batch.mask, split, merge, settings=batch.settings
    )


def supervoxel_loss(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor,
    split: NDArray[np.int32],
    merge: NDArray[np.int32],
    *,
    settings: LossSettings,
) -> LossValue:
    """The loss for given critical edges.

    Args:
        logits, targets, mask: (B, 3, Z, Y, X), as in `LossBatch`.
        split, merge: same shape; 0 or, within each sample, the number of the edge's component.

    A term without critical edges is 0 with gradient 0, and so is all without a valid edge.
    """
    weights = class_weights(targets, mask, settings.class_balance_bound)
    edges = edge_bce(logits, targets, mask, weights)
    valid = mask.sum().clamp(min=1)
    voxel = edges.sum() / valid
    splits, merges = (_term(edges, numbers, valid, settings) for numbers in (split, merge))
    split_weight, merge_weight = sign_weights(settings)
    topology = split_weight * splits + merge_weight * merges
    total = (1.0 - settings.alpha) * voxel + settings.alpha * topology
    terms = {"voxel_loss": voxel, "split_loss": splits, "merge_loss": merges}
    return LossValue(total, {name: float(term.detach()) for name, term in terms.items()})


def sign_weights(settings: LossSettings) -> tuple[float, float]:
    """The weights of splits and of merges: those named, else 1 - beta and beta."""
    split, merge = settings.split_weight, settings.merge_weight
    return (
        1.0 - settings.beta if split is None else split,
        settings.beta if merge is None else merge,
    )


def critical_numbers(batch: LossBatch) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Numbers of the split- and merge-critical edges at affinity 1/2, (B, 3, Z, Y, X) each."""
    positive: NDArray[np.bool_] = (batch.logits.detach() > 0).cpu().numpy()
    apply = map if batch.pool is None else batch.pool.map
    found = list(apply(number_critical_edges, batch.labels, positive))
    return np.stack([split for split, _ in found]), np.stack([merge for _, merge in found])


def _term(
    edges: Tensor, numbers: NDArray[np.int32], valid: Tensor, settings: LossSettings
) -> Tensor:
    if settings.normalisation == "component":
        shares = torch.from_numpy(np.stack([_shares(sample) for sample in numbers]))
        return (edges * shares.to(edges)).sum()
    total = (edges * torch.from_numpy(numbers > 0).to(edges.device)).sum()
    return total / valid if settings.normalisation == "image" else total


def _shares(numbers: NDArray[np.int32]) -> NDArray[np.float32]:
    """One over the size of each edge's component; 0 outside."""
    sizes = np.bincount(numbers.ravel())
    inverse = (1.0 / np.maximum(sizes, 1)).astype(np.float32)
    inverse[0] = 0.0
    return inverse[numbers]
