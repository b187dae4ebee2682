"""Comparison of an operation with native PyTorch, on numbers whose sums are exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import manualgrad
from tests.conftest import run_forward_backward

INF, NAN = math.inf, math.nan


def conv2d(x: Tensor, w: Tensor, b: Tensor | None = None, **options: Any) -> Tensor:
    return manualgrad.conv2d(x, w, b, **options, flip_kernel=False)


def whole_numbers(*shape: int) -> Tensor:
    return torch.randint(-3, 4, shape).float()


def assert_native(
    ours: Callable[..., Any], native: Callable[..., Any], *inputs: Tensor, g: Tensor | None = None
) -> dict[str, Tensor]:
    """Assert that values and gradients equal native ones, NaN included, and return them."""
    results = [
        run_forward_backward(function, inputs, lambda output: torch.ones_like(output) if g is None else g)
        for function in (ours, native)
    ]
    torch.testing.assert_close(*results, equal_nan=True)
    return results[0]
