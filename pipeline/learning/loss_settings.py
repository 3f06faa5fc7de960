"""Settings of every loss, by name: the half of the table of losses that needs no torch.

A loss is named alone (`ce`) or with its parameters (`{name: focal, gamma: 1}`); some contain
another one (`{name: scnp, of: {name: dice}}`). Adding a loss is a class here, a row in
`LOSS_SETTINGS`, and a row in `pipeline.learning.losses.LOSSES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Bound = Annotated[float, Field(ge=1.0, allow_inf_nan=False)]


class LossSettings(BaseModel):
    """What every loss has: its name. Frozen, and no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    finetune_share: ClassVar[float] = 0.5
    """Fine-tuning steps in steps of pretraining, where `finetune_steps` is null."""

    forms: ClassVar[tuple[str, ...]] = ("affinities", "foreground", "classes")
    """What the channels may mean."""

    name: str = Field(description="row of the table of losses")

    def problem(self, form: str, dimensions: int) -> str | None:
        """What is wrong with the loss, or one that it contains, for such targets; None: nothing."""
        if form not in self.forms:
            return f"loss {self.name} is not defined for {form}, only for {', '.join(self.forms)}"
        found = self._own_problem(form, dimensions)
        inner = (part.problem(form, dimensions) for part in self.parts())
        return found or next((text for text in inner if text), None)

    def _own_problem(self, form: str, dimensions: int) -> str | None:
        return None

    def parts(self) -> Iterator[LossSettings]:
        """The losses that this one contains."""
        for field in type(self).model_fields:
            value = getattr(self, field)
            if isinstance(value, LossSettings):
                yield value


def parse_loss(value: Any) -> LossSettings:
    """Settings of a loss from its name, or from a mapping with `name` and its parameters.

    Raises:
        ValueError: an unknown loss or parameter, named, with those that there are.
    """
    if isinstance(value, LossSettings):
        return value
    given = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or "name" not in given:
        raise ValueError(f"expected the name of a loss, or a mapping with its name, got {value!r}")
    known = LOSS_SETTINGS.get(given["name"]) if isinstance(given["name"], str) else None
    if known is None:
        raise ValueError(f"unknown loss {given['name']!r}: there are {', '.join(LOSS_SETTINGS)}")
    try:
        return known.model_validate(given)
    except ValidationError as error:
        raise ValueError(_explain(known, error)) from error


def _explain(known: type[LossSettings], error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown parameter {where!r}: there are {', '.join(known.model_fields)}")
        else:
            lines.append(f"{where}: {problem['msg']}" if where else problem["msg"])
    return f"loss {known.model_fields['name'].default}: {'; '.join(lines)}"


AnyLoss = Annotated[SerializeAsAny[LossSettings], BeforeValidator(parse_loss)]


class CrossEntropySettings(LossSettings):
    """`losses.cross_entropy`."""

    name: Literal["ce"] = "ce"
    class_balance_bound: Bound = Field(
        4.0,
        description="elements of the two classes are weighted to equal sums, but no weight exceeds "
        "this, nor falls below its inverse; 1 switches the balance off; not for several classes",
    )


class DiceSettings(LossSettings):
    """`losses.overlap`."""

    name: Literal["dice"] = "dice"


class CeDiceSettings(LossSettings):
    """`losses.overlap`."""

    name: Literal["ce_dice"] = "ce_dice"
    dice_share: Fraction = Field(0.5, description="weight of Dice; 1 - that of cross entropy")


class TverskySettings(LossSettings):
    """`losses.overlap`."""

    name: Literal["tversky"] = "tversky"
    false_positives: NonNegative = Field(0.3, description="weight of false positives (alpha)")
    false_negatives: NonNegative = Field(0.7, description="weight of false negatives (beta)")


class FocalSettings(LossSettings):
    """`losses.focal`."""

    name: Literal["focal"] = "focal"
    gamma: NonNegative = Field(2.0, description="exponent of 1 - p")
    foreground_weight: Fraction | None = Field(
        None, description="weight of foreground, 1 - that of background (alpha); none: equal"
    )


class SupervoxelSettings(LossSettings):
    """`losses.supervoxel`."""

    forms: ClassVar[tuple[str, ...]] = ("affinities", "foreground")
    name: Literal["supervoxel"] = "supervoxel"
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
        description="what a critical component's loss is divided by: the valid elements of the "
        "image, its own elements, or nothing",
    )
    critical: Literal["edges", "voxels"] = Field(
        "edges",
        description="for affinities: critical edges, which also see merges of touching objects, or "
        "critical voxels carried to edges; foreground always takes voxels",
    )
    mode: Literal["linear", "local", "global"] = Field(
        "linear",
        description="definition of a critical component; edges have the linear one alone",
    )
    connectivity: Literal[4, 6, 8, 18, 26] | None = Field(
        None,
        description="of voxels; none: 8 or 26 for foreground, 4 or 6 for affinities",
    )
    class_balance_bound: Bound = Field(4.0, description="as for ce")

    def _own_problem(self, form: str, dimensions: int) -> str | None:
        on_edges = form == "affinities" and self.critical == "edges"
        if on_edges and (self.mode != "linear" or self.connectivity is not None):
            return (
                f"loss supervoxel: mode {self.mode} and connectivity {self.connectivity} are for "
                "voxels; critical edges are linear, between neighbours along the axes: leave both "
                "out, or set critical: voxels"
            )
        known = (4, 8) if dimensions == 2 else (6, 18, 26)
        if self.connectivity not in (None, *known):
            return (
                f"loss supervoxel: connectivity {self.connectivity} in {dimensions} dimensions: "
                f"expected one of {known}"
            )
        return None


class ScnpSettings(LossSettings):
    """`losses.scnp`."""

    name: Literal["scnp"] = "scnp"
    of: AnyLoss = Field(CeDiceSettings(), description="the loss that gets the penalised logits")
    window: PositiveInt | tuple[PositiveInt, ...] = Field(
        3,
        description="extent of the neighbourhood, voxels, odd; or one for each axis, where voxels "
        "are anisotropic; best near the width of the structures",
    )
    with_plain: bool = Field(False, description="add the loss of the plain logits: L(z) + L(z~)")

    @model_validator(mode="after")
    def _check(self) -> Self:
        extents = self.window if isinstance(self.window, tuple) else (self.window,)
        if any(extent % 2 == 0 for extent in extents):
            raise ValueError(f"window must be odd along each axis, got {self.window}")
        if isinstance(self.window, tuple) and len(extents) not in (2, 3):
            raise ValueError(f"window must have one extent, or one for each axis, got {extents}")
        return self

    def _own_problem(self, form: str, dimensions: int) -> str | None:
        if isinstance(self.window, tuple) and len(self.window) != dimensions:
            return (
                f"loss scnp: window {self.window} in {dimensions} dimensions: give one extent, or "
                f"{dimensions}"
            )
        return None


class ContextSettings(LossSettings):
    """`losses.context`."""

    finetune_share: ClassVar[float] = 0.05
    name: Literal["context"] = "context"
    gamma: Annotated[float, Field(ge=0.0, lt=0.5)] = Field(
        0.1, description="weight of the loss inside the context mask, below 0.5"
    )
    dice_share: Fraction = Field(0.5, description="weight of Dice in the pixel loss")


class SkeletonRecallSettings(LossSettings):
    """`losses.skeleton_recall`."""

    name: Literal["skeleton_recall"] = "skeleton_recall"
    of: AnyLoss = Field(CeDiceSettings(), description="the generic loss that it is added to")
    weight: NonNegative = Field(1.0, description="weight of the skeleton recall term")
    dilation: Annotated[int, Field(ge=0)] = Field(
        2, description="dilations of skeletons along the axes, voxels; cut to the object"
    )


class ClDiceSettings(LossSettings):
    """`losses.cldice`."""

    name: Literal["cldice"] = "cldice"
    of: AnyLoss = Field(DiceSettings(), description="the loss that soft clDice is mixed with")
    share: Fraction = Field(0.5, description="weight of clDice; 1 - that of the other")
    iterations: PositiveInt = Field(10, description="soft erosions; about the largest radius")
    smooth: Positive = Field(
        1.0, description="added to numerators and denominators of precision and sensitivity"
    )


class CompoundClDiceSettings(LossSettings):
    """`losses.cldice`."""

    name: Literal["compound_cldice"] = "compound_cldice"
    of: AnyLoss = Field(CeDiceSettings(), description="pixel loss that soft clDice is mixed with")
    share: Fraction = Field(
        0.5, description="weight of the loss on the skeletons; 1 - that of the pixel loss"
    )
    dice_share: Fraction = Field(
        0.5, description="weight of clDice on the skeletons; 1 - that of cross entropy there"
    )
    iterations: PositiveInt = Field(10, description="soft erosions; about the largest radius")
    smooth: Positive = Field(
        1.0, description="added to numerators and denominators of precision and sensitivity"
    )


class MalisSettings(LossSettings):
    """`losses.malis`."""

    forms: ClassVar[tuple[str, ...]] = ("affinities",)
    name: Literal["malis"] = "malis"
    of: AnyLoss = Field(CrossEntropySettings(), description="voxelwise loss that is mixed in")
    share: Fraction = Field(0.5, description="weight of MALIS; 1 - that of the other loss")


LOSS_SETTINGS: dict[str, type[LossSettings]] = {
    "ce": CrossEntropySettings,
    "dice": DiceSettings,
    "ce_dice": CeDiceSettings,
    "tversky": TverskySettings,
    "focal": FocalSettings,
    "supervoxel": SupervoxelSettings,
    "scnp": ScnpSettings,
    "context": ContextSettings,
    "skeleton_recall": SkeletonRecallSettings,
    "cldice": ClDiceSettings,
    "compound_cldice": CompoundClDiceSettings,
    "malis": MalisSettings,
}


def compared_losses() -> dict[str, LossSettings]:
    """The losses that are compared unless a configuration names others, by row."""
    names = ("ce_dice", "supervoxel", "scnp", "context", "skeleton_recall", "cldice")
    # The baseline does not balance classes: what topology adds should not be mixed with that.
    plain = SupervoxelSettings(class_balance_bound=1.0)
    return {name: plain if name == plain.name else parse_loss(name) for name in names}
