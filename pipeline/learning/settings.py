"""Typed settings of the network, of training and of prediction.

Numbers only: nothing here computes. Unknown keys are refused, contradictions too, so that what
comes after can trust what it gets. Triples are z, y, x in voxels of the working resolution.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipeline.learning.loss_settings import (
    AnyLoss,
    CrossEntropySettings,
    Fraction,
    NonNegative,
    Positive,
    SupervoxelSettings,
)

PositiveTriple = tuple[PositiveInt, PositiveInt, PositiveInt]
NonNegativeTriple = tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]
Precision = Literal["auto", "bf16", "fp32"]
Device = Literal["auto", "cpu", "cuda"]
Form = Literal["affinities", "foreground", "classes"]
"""What the channels of a network or loss mean; see `pipeline.learning.targets`."""


VOXEL_RATIO = 1.5
"""Voxels that differ in size by no more than this factor may stand for one another."""


class _Settings(BaseModel):
    """Frozen, and no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkSettings(_Settings):
    """Shape of the network (`pipeline.learning.model.UNet`)."""

    output: Literal["affinities", "foreground"] = Field(
        "affinities",
        description="affinities: one channel per axis, tells touching objects apart; foreground: "
        "one channel, inside any object or not",
    )
    dimensions: Literal[2, 3] = Field(
        3, description="2: planes are seen one by one, and nothing joins them"
    )
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
        if self.dimensions == 2 and (self.kernel[0] > 1 or any(f[0] > 1 for f in self.pool)):
            raise ValueError(
                f"dimensions: 2 needs kernel and pool to be 1 along z, got kernel {self.kernel} "
                f"and pool {self.pool}: use kernel [1, 3, 3] and pool [[1, 2, 2]]"
            )
        return self

    @property
    def channels(self) -> int:
        """Output channels."""
        return self.dimensions if self.output == "affinities" else 1


class PhaseLosses(_Settings):
    """Which losses the two phases minimise: a name, or a mapping of name and parameters."""

    pretrain: AnyLoss = Field(CrossEntropySettings(), description="loss of the first phase")
    finetune: AnyLoss = Field(SupervoxelSettings(), description="loss of the second phase")


class AugmentSettings(_Settings):
    """Random changes of a training patch. Geometry is changed before targets are computed."""

    flip: bool = Field(True, description="mirror each axis with probability 1/2")
    transpose: Literal["none", "yx", "zyx"] = Field(
        "yx", description="axes that may change places, where voxels are about as long along both"
    )
    deform_fraction: Fraction = Field(
        0.5, description="share of the patches that elastic, rotation, tilt and zoom act on"
    )
    elastic: NonNegative = Field(
        0.0,
        description="standard deviation of a smooth random displacement, in voxels of the finest "
        "axis; 0 is off: deformed objects thinner than about three voxels may break. Cut off where "
        "it would fold, at 0.4 of elastic_spacing before smoothing",
    )
    elastic_spacing: float = Field(
        16.0,
        ge=4,
        allow_inf_nan=False,
        description="distance of its control points, in voxels of the finest axis",
    )
    rotation_degrees: float = Field(
        0.0, ge=0, le=180, description="largest rotation in the plane of y and x; 180 is any"
    )
    tilt_degrees: float = Field(
        0.0, ge=0, le=90, description="largest tilt of that plane; none for patches of one plane"
    )
    zoom: NonNegative = Field(
        0.0, le=0.5, description="standard deviation of the log of the magnification"
    )
    scale: NonNegative = Field(0.2, description="standard deviation of the log of the gain")
    shift: NonNegative = Field(0.05, description="standard deviation of the offset, image units")
    gamma: NonNegative = Field(0.2, description="standard deviation of the log of the exponent")
    noise: NonNegative = Field(
        0.05, description="largest standard deviation of added Gaussian noise, image units"
    )
    blur: NonNegative = Field(
        0.7, description="largest standard deviation of a Gaussian blur, voxels of the finest axis"
    )
    blur_fraction: Fraction = Field(0.2, description="share of the patches that are blurred")
    missing_sections: Fraction = Field(
        0.0,
        description="share of the z planes that are lost: dark, or a copy of the plane before; "
        "labels stay. For volumes of serial sections; none for patches of one plane",
    )
    low_contrast_sections: Fraction = Field(
        0.0,
        description="share of the z planes with a tenth to a half of their contrast; likewise",
    )


class TrainSettings(_Settings):
    """One training run: pretraining, then fine-tuning with the topology loss."""

    patch: PositiveTriple = Field((48, 48, 48), description="extent of a training patch, voxels")
    batch: PositiveInt = Field(2, description="patches per step")
    loss: PhaseLosses = Field(default_factory=PhaseLosses, description="losses and parameters")
    pretrain_steps: NonNegativeInt = Field(400, description="steps with the voxelwise loss")
    finetune_steps: NonNegativeInt = Field(
        200,
        description="steps with the topology loss; null takes the schedule of the loss's paper, a "
        "share of pretrain_steps: 5 % for context, one half for the others",
    )
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
    augment: AugmentSettings = Field(
        default_factory=AugmentSettings, description="random changes of a patch"
    )
    precision: Precision = Field("auto", description="arithmetic of the convolutions")
    device: Device = Field("auto", description="where to compute; auto: a GPU if there is one")
    threads: PositiveInt = Field(1, description="CPU threads; results are exact for one number")
    ema: Fraction = Field(
        0.99,
        description="decay per step of the running mean of the weights, which is what is validated "
        "and saved; less at the beginning: min(ema, (1 + step) / (10 + step)); 0: the weights",
    )
    processes: PositiveInt = Field(
        1, description="processes that share each batch equally, one GPU each where there are GPUs"
    )
    compile: bool = Field(
        False, description="compile the network (torch.compile): a slow start, then faster steps"
    )
    validate_every_steps: NonNegativeInt = Field(
        0,
        description="steps between validations; the network of the best one is kept. 0: none, the "
        "last network is kept",
    )
    validate_max_voxels: PositiveInt = Field(
        2**24, description="the region of validation is cut to this size"
    )
    checkpoint_every_steps: PositiveInt = Field(50, description="steps between saved states")
    loader_threads: PositiveInt = Field(1, description="threads that make patches ahead of time")
    tensorboard: bool = Field(True, description="curves and pictures for TensorBoard")

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        ("checkpoint_every_steps", "loader_threads", "tensorboard")
    )
    """Fields that change no result: training may be resumed with other values."""

    def deciding(self) -> dict[str, Any]:
        """The fields that the result depends on, JSON values."""
        idle = set(self.WITHOUT_EFFECT)
        if not self.validate_every_steps:
            idle.add("validate_max_voxels")
        return self.model_dump(mode="json", exclude=idle)

    @field_validator("finetune_steps", mode="before", json_schema_input_type=NonNegativeInt | None)
    @classmethod
    def _share_of_pretraining(cls, given: object, info: ValidationInfo) -> object:
        if given is not None:
            return given
        # Fields are checked in their order: what is missing here was refused.
        if not {"loss", "pretrain_steps"} <= info.data.keys():
            return 0
        losses: PhaseLosses = info.data["loss"]
        return round(losses.finetune.finetune_share * info.data["pretrain_steps"])

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pretrain_steps + self.finetune_steps == 0:
            raise ValueError("pretrain_steps and finetune_steps are both 0: nothing to train")
        if self.batch % self.processes:
            raise ValueError(
                f"batch {self.batch} cannot be shared equally by processes {self.processes}: make "
                f"batch a multiple of it"
            )
        return self

    @property
    def steps(self) -> int:
        """Steps of both phases."""
        return self.pretrain_steps + self.finetune_steps

    def phase(self, step: int) -> Literal["pretrain", "finetune"]:
        """The phase that a step, counted from 0, belongs to."""
        return "pretrain" if step < self.pretrain_steps else "finetune"


class PredictSettings(_Settings):
    """How a volume is cut into network inputs. The lattice is anchored at the volume's origin.

    Networks of two dimensions see no context along z: it is taken as 0 there.
    """

    tile: PositiveTriple = Field((64, 64, 64), description="extent of a lattice tile, voxels")
    context: NonNegativeTriple = Field(
        (16, 16, 16), description="voxels read around a tile on each side, and discarded"
    )
    precision: Precision = Field("auto", description="arithmetic of the convolutions")
    device: Device = Field("auto", description="where to compute; auto: a GPU if there is one")
    threads: PositiveInt = Field(1, description="CPU threads of one prediction")
    flips: Literal["none", "yx", "zyx"] = Field(
        "none",
        description="probabilities are averaged over mirrored inputs: 4 (yx) or 8 (zyx) times the "
        "time; affinities need a context of at least 1 along these axes. Networks of two "
        "dimensions mirror y and x alone",
    )
