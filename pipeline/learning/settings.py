"""Typed settings of the network, of training and of prediction.

Numbers only: nothing here computes. Unknown keys are refused, contradictions too, so that what
comes after can trust what it gets. Triples are z, y, x in voxels of the working resolution.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

PositiveTriple = tuple[PositiveInt, PositiveInt, PositiveInt]
NonNegativeTriple = tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Precision = Literal["auto", "bf16", "fp32"]
Device = Literal["auto", "cpu", "cuda"]
LossName = Literal["bce", "supervoxel"]


class _Settings(BaseModel):
    """Frozen, and no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkSettings(_Settings):
    """Shape of the affinity network (`pipeline.learning.model.AffinityUNet`)."""

    width: PositiveInt = Field(12, description="channels at full resolution; doubled per level")
    levels: PositiveInt = Field(3, description="number of resolutions, the full one included")
    kernel: PositiveTriple = Field((3, 3, 3), description="extent of a convolution, voxels; odd")
    pool: tuple[PositiveTriple, ...] = Field(
        ((2, 2, 2),),
        min_length=1,
        description="pooling factors from one level to the next, the last repeated for deeper "
        "levels; begin with (1, 2, 2) where z is coarser than y and x",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(extent % 2 == 0 for extent in self.kernel):
            raise ValueError(f"kernel must be odd along each axis, got {self.kernel}")
        if self.levels > 1 and len(self.pool) > self.levels - 1:
            raise ValueError(
                f"{self.levels} levels have {self.levels - 1} poolings, got {len(self.pool)} "
                f"factors {self.pool}"
            )
        return self


class LossSettings(_Settings):
    """Which losses the two phases minimise, and their weights."""

    pretrain: LossName = Field("bce", description="loss of the first phase")
    finetune: LossName = Field("supervoxel", description="loss of the second phase")
    alpha: Fraction = Field(0.5, description="share of the topology terms; 1 - alpha is voxelwise")
    beta: Fraction = Field(
        0.5, description="weight of merges; 1 - beta that of splits (paper's Definition 1)"
    )
    split_weight: NonNegative | None = Field(
        None, description="weight of splits in place of 1 - beta; none: 1 - beta"
    )
    merge_weight: NonNegative | None = Field(
        None, description="weight of merges in place of beta; none: beta"
    )
    normalisation: Literal["image", "component", "sum"] = Field(
        "image",
        description="what a critical component's loss is divided by: the valid edges of the image, "
        "its own edges, or nothing",
    )
    class_balance_bound: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = Field(
        4.0,
        description="edges of the two classes are weighted to equal sums, but no weight exceeds "
        "this, nor falls below its inverse; 1 switches the balance off",
    )


class AugmentSettings(_Settings):
    """Random changes of a training patch. Geometry is changed before targets are computed."""

    flip: bool = Field(True, description="mirror each axis with probability 1/2")
    transpose: Literal["none", "yx", "zyx"] = Field(
        "yx", description="axes that may change places; zyx only where voxels are isotropic"
    )
    scale: NonNegative = Field(0.2, description="standard deviation of the log of the gain")
    shift: NonNegative = Field(0.05, description="standard deviation of the offset, image units")
    gamma: NonNegative = Field(0.2, description="standard deviation of the log of the exponent")
    noise: NonNegative = Field(
        0.05, description="largest standard deviation of added Gaussian noise, image units"
    )


class TrainSettings(_Settings):
    """One training run: pretraining, then fine-tuning with the topology loss."""

    patch: PositiveTriple = Field((48, 48, 48), description="extent of a training patch, voxels")
    batch: PositiveInt = Field(2, description="patches per step")
    pretrain_steps: NonNegativeInt = Field(400, description="steps with the voxelwise loss")
    finetune_steps: NonNegativeInt = Field(200, description="steps with the topology loss")
    learning_rate: Positive = Field(2e-3, description="peak rate of AdamW, after the warm-up")
    final_rate_fraction: Fraction = Field(
        0.05, description="rate at the last step over the peak rate (cosine between them)"
    )
    weight_decay: NonNegative = Field(1e-4, description="AdamW decay of convolution kernels")
    warmup_steps: NonNegativeInt = Field(20, description="steps of linear warm-up")
    gradient_clip: Positive = Field(1.0, description="largest norm of the gradient")
    seed: NonNegativeInt = Field(0, lt=2**63, description="of weights, patches and augmentation")
    foreground_fraction: Fraction = Field(
        0.75, description="share of the patches that are centred on a labelled voxel"
    )
    loss: LossSettings = Field(default_factory=LossSettings, description="losses and weights")
    augment: AugmentSettings = Field(
        default_factory=AugmentSettings, description="random changes of a patch"
    )
    precision: Precision = Field("auto", description="arithmetic of the convolutions")
    device: Device = Field("auto", description="where to compute; auto: a GPU if there is one")
    threads: PositiveInt = Field(1, description="CPU threads; results are exact for one number")
    checkpoint_every_steps: PositiveInt = Field(50, description="steps between saved states")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pretrain_steps + self.finetune_steps == 0:
            raise ValueError("pretrain_steps and finetune_steps are both 0: nothing to train")
        return self


class PredictSettings(_Settings):
    """How a volume is cut into network inputs. The lattice is anchored at the volume's origin."""

    tile: PositiveTriple = Field((64, 64, 64), description="extent of a lattice tile, voxels")
    context: NonNegativeTriple = Field(
        (16, 16, 16), description="voxels read around a tile on each side, and discarded"
    )
    precision: Precision = Field("auto", description="arithmetic of the convolutions")
    device: Device = Field("auto", description="where to compute; auto: a GPU if there is one")
    threads: PositiveInt = Field(1, description="CPU threads of one prediction")
