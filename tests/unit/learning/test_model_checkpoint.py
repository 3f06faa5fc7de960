from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import InputError
from pipeline.learning.checkpoint import (
    digest,
    has_model,
    load_model,
    save_model,
)
from pipeline.learning.model import UNet, initialise
from pipeline.learning.precision import place
from pipeline.learning.settings import NetworkSettings, TrainSettings
from pipeline.learning.state import load_state, save_state, state_facts

NETWORK = NetworkSettings(width=2, levels=2)
TRAINING = TrainSettings()
CPU = torch.device("cpu")


def network(seed: int = 0, settings: NetworkSettings = NETWORK) -> UNet:
    model = UNet(settings)
    initialise(model, seed)
    return place(model, CPU)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(
        tmp_path / "model",
        network(),
        TRAINING,
        {"steps": 3},
        normalisation="zero mean, unit variance",
    )
    return tmp_path / "model"


def rewrite_note(directory: Path, **changes: object) -> None:
    path = directory / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_model_comes_back(saved: Path) -> None:
    loaded = load_model(saved)
    assert (loaded.network, loaded.training) == (NETWORK, TRAINING)
    assert loaded.note["facts"] == {"steps": 3}
    assert loaded.note["normalisation"] == "zero mean, unit variance"
    assert not loaded.model.training
    expected = network().state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in loaded.model.state_dict().items())


def test_bytes_and_digest_follow_the_content(saved: Path, tmp_path: Path) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        save_model(
            tmp_path / name, network(seed), TRAINING, {"steps": 3},
            normalisation="zero mean, unit variance",
        )  # fmt: skip
    for file in ("model.safetensors", "model.json"):
        assert (saved / file).read_bytes() == (tmp_path / "same" / file).read_bytes()
    assert digest(saved) == digest(tmp_path / "same") != digest(tmp_path / "other")
    assert sorted(p.name for p in saved.iterdir()) == ["model.json", "model.safetensors"]


def test_a_model_exists_once_its_note_does(saved: Path) -> None:
    assert has_model(saved)
    (saved / "model.json").unlink()
    assert not has_model(saved)


def test_wrong_channels_are_named(saved: Path) -> None:
    rewrite_note(saved, network=NETWORK.model_dump() | {"width": 3})
    with pytest.raises(InputError, match=r"encoders\.0.* \(2, 1, 3, 3, 3\).* \(3, 1, 3, 3, 3\)"):
        load_model(saved)


def test_missing_and_unexpected_tensors_are_named(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["stranger"] = weights.pop("head.bias")
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(InputError, match=r"missing \['head.bias'\], unexpected \['stranger'\]"):
        load_model(saved)


def test_replaced_weights_are_found(saved: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "other", network(1), TRAINING, {})
    (tmp_path / "other" / "model.safetensors").replace(saved / "model.safetensors")
    with pytest.raises(InputError, match="SHA-256"):
        load_model(saved)


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_damaged_weights_are_found(saved: Path, cut: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match="damaged"):
        load_model(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not a note of this project.*list"),
        ('{"format": "pytorch"}', "'pytorch'"),
    ],
)
def test_foreign_notes_are_refused(saved: Path, content: str, message: str) -> None:
    (saved / "model.json").write_text(content)
    for read in (load_model, digest):
        with pytest.raises(InputError, match=message):
            read(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2.*reads 1"),
        ({"network": {"depth": 3}}, "depth"),
        ({"network": None}, "network|NetworkSettings"),
    ],
)
def test_notes_of_other_programs_are_refused(
    saved: Path, changes: dict[str, object], message: str
) -> None:
    rewrite_note(saved, **changes)
    with pytest.raises(InputError, match=message):
        load_model(saved)


def test_an_absent_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.model\.json"):
        load_model(tmp_path / "nowhere")


Training = tuple[UNet, torch.optim.AdamW]


def trained(steps: int, start: Training | None = None) -> Training:
    model, optimiser = start or (m := network(), torch.optim.AdamW(m.parameters(), lr=0.1))
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        image = torch.randn(1, 1, 4, 4, 4, generator=generator)
        optimiser.zero_grad()
        model(image).square().mean().backward()
        optimiser.step()
    return model, optimiser


def test_a_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimiser = trained(3)
    save_state(tmp_path, model, optimiser, {"step": 3, "note": "x"})
    fresh = network(9)
    again = torch.optim.AdamW(fresh.parameters(), lr=0.1)
    assert state_facts(tmp_path) == {"step": 3, "note": "x", "copies": []}
    assert load_state(tmp_path, fresh, again) == {}
    expected = trained(2, (model, optimiser))[0].state_dict()
    found = trained(2, (fresh, again))[0].state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_states_that_cannot_be_used(tmp_path: Path) -> None:
    model, optimiser = trained(1)
    assert state_facts(tmp_path) is None
    with pytest.raises(InputError, match="no training state"):
        load_state(tmp_path, model, optimiser)
    save_state(tmp_path, model, optimiser, {"step": 1})
    wider = network(settings=NetworkSettings(width=3, levels=2))
    with pytest.raises(InputError, match="the network wants"):
        load_state(tmp_path, wider, torch.optim.AdamW(wider.parameters()))
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="damaged"):
        load_state(tmp_path, model, optimiser)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not a training state"):
        load_state(tmp_path, model, optimiser)
