from __future__ import annotations

import pytest
import torch

from pipeline.learning.batch import masked

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_what_the_mask_holds_is_left(dtype: torch.dtype) -> None:
    values = torch.tensor([1.5, NAN, -2.0, INF, NAN, -INF, -0.0], dtype=dtype)
    mask = torch.tensor([True, False, False, False, True, True, True])
    found = masked(values, mask)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found, torch.where(mask, values, 0.0), equal_nan=True, rtol=0, atol=0
    )
    assert values[0] == 1.5, "the input is only read"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_masked_too(dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, NAN, 3.0], dtype=dtype, requires_grad=True)
    mask = torch.tensor([True, False, True])
    masked(values, mask).backward(torch.tensor([2.0, NAN, -4.0], dtype=dtype))
    assert values.grad is not None
    assert values.grad.tolist() == [2.0, 0.0, -4.0]


def test_any_layout() -> None:
    values = torch.arange(24.0).view(2, 3, 4).transpose(0, 2)
    mask = (torch.arange(6) % 2 == 0).view(3, 2).expand(4, 3, 2)
    assert torch.equal(masked(values, mask), torch.where(mask, values, 0.0))
    assert masked(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool)).shape == (0, 3)
