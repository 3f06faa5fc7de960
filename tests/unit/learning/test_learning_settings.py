from __future__ import annotations

from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from pipeline.learning.losses import LOSSES
from pipeline.learning.settings import (
    AugmentSettings,
    LossName,
    LossSettings,
    NetworkSettings,
    PredictSettings,
    TrainSettings,
)

ALL = (NetworkSettings, LossSettings, AugmentSettings, TrainSettings, PredictSettings)


@pytest.mark.parametrize("model", ALL)
def test_unknown_keys_and_changes_are_refused(model: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        model(no_such_key=1)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(model(), next(iter(model.model_fields)), 1)


@pytest.mark.parametrize("model", ALL)
def test_every_field_says_what_it_is(model: type[BaseModel]) -> None:
    assert all(field.description for field in model.model_fields.values())


@pytest.mark.parametrize("model", ALL)
def test_settings_survive_json(model: type[BaseModel]) -> None:
    assert model.model_validate_json(model().model_dump_json()) == model()


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (NetworkSettings, {"kernel": (3, 2, 3)}, "odd"),
        (NetworkSettings, {"levels": 2, "pool": ((1, 2, 2), (2, 2, 2))}, "1 poolings"),
        (NetworkSettings, {"width": 0}, "greater than 0"),
        (TrainSettings, {"pretrain_steps": 0, "finetune_steps": 0}, "nothing to train"),
        (TrainSettings, {"patch": (8, 8)}, "patch"),
        (TrainSettings, {"learning_rate": float("inf")}, "finite"),
        (TrainSettings, {"loss": {"finetune": "focal"}}, "supervoxel"),
        (LossSettings, {"alpha": 1.5}, "less than or equal to 1"),
        (PredictSettings, {"tile": (0, 8, 8)}, "greater than 0"),
    ],
)
def test_contradictions_are_refused(
    model: type[BaseModel], values: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        model.model_validate(values)


def test_the_names_of_losses_are_the_table() -> None:
    assert set(get_args(LossName)) == set(LOSSES)
