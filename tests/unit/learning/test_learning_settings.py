from __future__ import annotations

import re
from itertools import product

import pytest
from pydantic import BaseModel, ValidationError

from pipeline.learning.loss_settings import LOSS_SETTINGS, parse_loss
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


LINEAR_ONLY = "critical edges are linear"


@pytest.mark.parametrize(
    ("loss", "form", "dimensions", "message"),
    [
        ({"name": "scnp", "window": [3, 3]}, "foreground", 3, "one extent, or 3"),
        ({"name": "scnp", "of": {"name": "scnp", "window": [3, 3]}}, "classes", 3, "or 3"),
        ({"name": "scnp", "window": [3, 5, 5]}, "affinities", 2, "one extent, or 2"),
        ({"name": "scnp", "of": "malis"}, "foreground", 3, "malis is not defined for foreground"),
        ({"name": "supervoxel", "mode": "global"}, "affinities", 3, LINEAR_ONLY),
        ({"name": "supervoxel", "connectivity": 6}, "affinities", 3, LINEAR_ONLY),
        ({"name": "supervoxel", "connectivity": 8}, "foreground", 3, r"\(6, 18, 26\)"),
        (
            {"name": "supervoxel", "critical": "voxels", "connectivity": 26},
            "affinities", 2, r"\(4, 8\)",
        ),
    ],
)  # fmt: skip
def test_losses_that_do_not_suit_the_targets_say_why(
    loss: dict[str, object], form: str, dimensions: int, message: str
) -> None:
    assert re.search(message, parse_loss(loss).problem(form, dimensions) or "nothing")


def test_losses_that_suit_have_no_problem() -> None:
    for form, dimensions in product(("affinities", "foreground", "classes"), (2, 3)):
        for name in LOSS_SETTINGS:
            loss = parse_loss(name)
            suits = all(form in part.forms for part in (loss, *loss.parts()))
            assert (loss.problem(form, dimensions) is None) == suits
    voxels = {"name": "supervoxel", "critical": "voxels", "mode": "global", "connectivity": 26}
    assert parse_loss(voxels).problem("affinities", 3) is None
    assert parse_loss({"name": "supervoxel", "mode": "local"}).problem("foreground", 2) is None


@pytest.mark.parametrize("name", [["ce"], {}, None, 3])
def test_a_name_that_is_no_text_is_refused(name: object) -> None:
    with pytest.raises(ValidationError, match="unknown loss"):
        PhaseLosses.model_validate({"finetune": {"name": name}})
