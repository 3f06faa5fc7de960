"""The base of every settings model: read once, frozen, unknown keys refused."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


class StrictModel(BaseModel):
    """Settings: immutable, every key known, every field described with its unit."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def _positive(values: object) -> object:
    if isinstance(values, list | tuple) and any(
        isinstance(v, int | float) and not v > 0 for v in values
    ):
        raise ValueError(f"expected positive numbers for z, y, x, got {list(values)}")
    return values


VoxelTriple = Annotated[tuple[int, int, int], BeforeValidator(_positive)]
NmTriple = Annotated[tuple[float, float, float], BeforeValidator(_positive)]
