from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from pipeline.learning.loss_settings import LOSS_SETTINGS
from pipeline.learning.losses import LOSSES
from pipeline.learning.settings import (
    AugmentSettings,
    NetworkSettings,
    PhaseLosses,
    PredictSettings,
    TrainSettings,
)

ALL = (
    *LOSS_SETTINGS.values(), NetworkSettings, PhaseLosses, AugmentSettings, TrainSettings,
    PredictSettings,
)  # fmt: skip


@pytest.mark.parametrize("model", ALL)
def test_unknown_keys_and_changes_are_refused(model: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        model(no_such_key=1)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(model(), next(iter(model.model_fields)), 1)


@pytest.mark.parametrize("model", ALL)
def test_every_field_says_what_it_is(model: type[BaseModel]) -> None:
    assert all(f.description for name, f in model.model_fields.items() if name != "name")


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
        (TrainSettings, {"loss": {"finetune": "fokal"}}, "unknown loss 'fokal': .*supervoxel"),
        (PhaseLosses, {"finetune": {"name": "dice", "gamma": 2}}, "unknown parameter 'gamma'"),
        (PhaseLosses, {"finetune": {"gamma": 2}}, "name"),
        (PhaseLosses, {"finetune": {"name": "supervoxel", "alpha": 2}}, "less than or equal to 1"),
        (PredictSettings, {"tile": (0, 8, 8)}, "greater than 0"),
    ],
)
def test_contradictions_are_refused(
    model: type[BaseModel], values: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        model.model_validate(values)


def test_the_names_of_losses_are_the_table() -> None:
    assert list(LOSS_SETTINGS) == list(LOSSES)
    assert all(known().name == name for name, known in LOSS_SETTINGS.items())
