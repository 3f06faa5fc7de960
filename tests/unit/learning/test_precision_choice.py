from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import InputError
from pipeline.learning import precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 avx512f", False),
        ("fpu avx512f avx512_bf16", True),
        ("fpu amx_bf16 amx_tile", True),
        ("fp asimd bf16", True),
        ("fp asimd sbf16x", False),
    ],
)
def test_auto_follows_the_flags(
    monkeypatch: pytest.MonkeyPatch, flags: str, expected: bool
) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags.split()))
    assert precision.choose_bf16("auto", CPU) is expected
    assert precision.choose_bf16("bf16", CPU) is True
    assert precision.choose_bf16("fp32", CPU) is False


def test_flags_are_those_of_the_first_processor(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: a b\n\nprocessor\t: 1\nflags\t\t: c\n")
    assert precision.cpu_flags(info) == {"a", "b"}
    assert precision.cpu_flags(tmp_path / "absent") == frozenset()


def test_a_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision.choose_device("auto") == CPU
    with pytest.raises(InputError, match="finds no GPU"):
        precision.choose_device("cuda")


def test_deterministic_restores_what_it_found() -> None:
    def state() -> tuple[int, bool, bool]:
        return (
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        )

    def fail_inside() -> None:
        with precision.deterministic(before[0] + 1, CPU):
            assert state() == (before[0] + 1, True, False)
            raise KeyError

    before = state()
    with pytest.raises(KeyError):
        fail_inside()
    assert state() == before
