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


def test_null_steps_of_finetuning_are_a_share_of_pretraining() -> None:
    def resolved(loss: object, **values: object) -> int:
        values = {"finetune_steps": None, "loss": {"finetune": loss}, **values}
        return TrainSettings.model_validate(values).finetune_steps

    assert resolved("context") == 20  # 5 % of 400
    assert resolved({"name": "context", "gamma": 0.2}, pretrain_steps=1000) == 50
    assert resolved("supervoxel", pretrain_steps=1000) == 500
    assert resolved({"name": "skeleton_recall", "of": "ce"}, pretrain_steps=7) == 4
    assert resolved("context", finetune_steps=3) == 3
    assert TrainSettings(loss=PhaseLosses.model_validate({"finetune": "context"})).steps == 600
    given = TrainSettings.model_validate({"finetune_steps": None})
    assert TrainSettings.model_validate_json(given.model_dump_json()) == given


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pretrain_steps": 0}, "nothing to train"),
        ({"pretrain_steps": -1}, r"1 validation error.*\npretrain_steps"),
        ({"loss": {"finetune": "fokal"}}, r"1 validation error.*\nloss.finetune"),
    ],
)
def test_null_steps_of_nothing_are_refused_once(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainSettings.model_validate({"finetune_steps": None, **values})


def test_the_names_of_losses_are_the_table() -> None:
    assert list(LOSS_SETTINGS) == list(LOSSES)
    assert all(known().name == name for name, known in LOSS_SETTINGS.items())
